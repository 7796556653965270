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


def pytest_configure(config):
    """Keeps what XLA compiles, which is most of the time, for the next test or run."""
    if hasattr(config, "cache"):  # Not with -p no:cacheprovider.
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("xla")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# By default, the rules are tested in every layout, and all else in the default one.
IN_EVERY_LAYOUT = {"test_rules.py"}
LEFT_TO_CI = {
    "test_devices.py",
    "test_diagnostics.py",
    "test_eigenbasis.py",
    "test_minibatch_rprop.py",
    "test_performance.py",
}
ONCE = {
    "test_examples.py",
    "test_mutations.py",
    "test_rivals.py",
    "test_science_examples.py",
    "test_train_minibatch.py",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks what is left out by default, and what one stack is enough for."""
    for item in items:
        folder, name = item.path.parent.name, item.path.name
        layout = getattr(item, "callspec", None) and item.callspec.params.get(
            "state_layout"
        )
        repeats = layout not in (None, "split") and name not in IN_EVERY_LAYOUT
        if repeats or name in ONCE or folder == "benchmarks":
            item.add_marker(pytest.mark.once)
        if (
            item.get_closest_marker("once")
            or folder == "examples"
            or name in LEFT_TO_CI
        ):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def cpu_devices():
    """Eight CPU devices stand in for any; single arrays lie on the first."""
    devices = jax.devices("cpu")
    assert len(devices) == 8
    with jax.default_device(devices[0]):
        yield devices


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
