"""What is not settled: it is tested, but may change or go in any version.

The sequential sign test lets Rprop train on mini-batches. Its rule is tested as
the rest of the package is; its comparison with tuned rivals,
``benchmarks/minibatch.py``, has not been run in full, so its defaults may change.
"""

from optax_rprop._sign_test import ResolveSignsState, minibatch_rprop, resolve_signs

__all__ = ["ResolveSignsState", "minibatch_rprop", "resolve_signs"]
