"""Strict mode for all tests; each relaxation is local and says why."""

import jax
import pytest

# Eight devices, so that tests of sharding need no process of their own.
jax.config.update("jax_num_cpu_devices", 8)
# No silent promotion: the library must cast where it means to.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def x64():
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
