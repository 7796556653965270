"""Is Rprop as good on a standard test set, and under noise?"""
