"""Strict mode for all tests; each relaxation is local and says why."""

import os

import jax
import pytest

# XLA gives its pools as many threads as there are devices, or as this says. With none
# to spare, collectives of all devices have been seen to wait for ever, and to abort.
os.environ.setdefault("NPROC", "16")
# Eight devices, so that tests of sharding need no process of their own.
jax.config.update("jax_num_cpu_devices", 8)
# No silent promotion: the library must cast where it means to.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def precision():
    """Takes back the precision that a script sets."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def x64(precision):
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def standard_promotion():
    """As users run examples and benchmarks; Flax and diffrax rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
