"""Rprop in a learned eigenbasis, compared with other optimizers."""
