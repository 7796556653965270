"""Rprop on the full batch, compared with other optimizers."""
