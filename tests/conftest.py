"""Strict mode for all tests; each relaxation is local and says why."""

import os
import re

import jax
import pytest

# XLA's pools have as many threads as there are devices, or as this says. Without spare
# threads, collectives of all devices sometimes waited forever and aborted.
os.environ.setdefault("NPROC", "16")
# Eight devices, so that tests of sharding need no separate process.
jax.config.update("jax_num_cpu_devices", 8)
# No silent promotion: the library must cast explicitly.
jax.config.update("jax_numpy_dtype_promotion", "strict")
ALL_SLOW = re.compile(r"^pytestmark = \[\s*pytest\.mark\.slow\b", re.MULTILINE)


def pytest_configure(config):
    """Keeps XLA's results, which take most of the time, for the next test or run."""
    if hasattr(config, "cache"):  # Not with -p no:cacheprovider.
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_ignore_collect(collection_path, config):
    """By default, skips modules that are all slow: their imports take seconds."""
    by_default = config.getoption("markexpr") == "not slow and not once"
    if by_default and collection_path.suffix == ".py":
        return ALL_SLOW.search(collection_path.read_text()) and True
    return None


def pytest_collection_modifyitems(items):
    """Marks the examples in docstrings, which cannot do so themselves."""
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.stack)


@pytest.fixture
def cpu_devices():
    """Eight simulated CPU devices; single arrays are on the first."""
    devices = jax.devices("cpu")
    assert len(devices) == 8
    with jax.default_device(devices[0]):
        yield devices


@pytest.fixture
def precision():
    """Restores the precision that a script sets."""
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def x64(precision):
    """Double precision for one test."""
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def standard_promotion():
    """The promotion that users have; Flax and diffrax rely on it."""
    with jax.numpy_dtype_promotion("standard"):
        yield
