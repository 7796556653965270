"""Benchmarks of optax_rprop, one question a folder; see README.md."""
