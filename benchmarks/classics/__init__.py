"""Experiments from the literature of Rprop, once more."""
