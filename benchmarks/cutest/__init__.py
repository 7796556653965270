"""Is it as good on the test set of the field, and what is left of that under noise?"""
