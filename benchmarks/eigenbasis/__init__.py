"""Rprop in a learned eigenbasis, beside its rivals."""
