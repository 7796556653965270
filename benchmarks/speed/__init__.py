"""The cost of optimizer steps."""
