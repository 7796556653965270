"""Benchmarks of optax_rprop, one folder per topic; see README.md."""
