"""Rprop on whole data sets, beside other optimizers."""
