"""Rprop on mini-batches."""
