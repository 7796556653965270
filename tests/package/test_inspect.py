"""Inspection: the right numbers, wherever the state is nested."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_identical, each_layout, rprop

import optax_rprop

pytestmark = pytest.mark.stack

PARAMS = {"a": jnp.zeros(()), "b": jnp.zeros((2, 2)), "empty": jnp.zeros((0, 3))}
BOUNDS = {"min_step_size": 0.125, "max_step_size": 1.0}
SETTINGS = {"learning_rate": 0.25, "eta_plus": 2.0, **BOUNDS}
# Grows twice, to 1. Grows once, to 0.5. Changes sign, to 0.125. Ends with a gradient
# of 0 after growing to 0.5. Starts with a gradient of 0, then is updated by 0.25.
GRADS = [
    {"a": 1.0, "b": [[-1.0, 1.0], [1.0, 0.0]]},
    {"a": 2.0, "b": [[-2.0, -2.0], [2.0, 0.0]]},
    {"a": 3.0, "b": [[0.0, 0.0], [0.0, 3.0]]},
]
STEP_SIZES = {"a": 1.0, "b": [[0.5, 0.125], [0.5, 0.25]]}
SIGNS = {"a": 1, "b": [[0, 0], [0, 1]]}
SUMMARY = optax_rprop.RpropDiagnostics(
    smallest_step_size=0.125,
    median_step_size=0.5,
    largest_step_size=1.0,
    fraction_at_min=0.2,
    fraction_at_max=0.2,
    fraction_forgotten=0.6,
)
SUMMARY_OF_A = optax_rprop.RpropDiagnostics(1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
SUMMARY_OF_B = optax_rprop.RpropDiagnostics(0.125, 0.375, 0.5, 0.25, 0.0, 0.75)


def on_tree(numbers, dtype=jnp.float32):
    """Numbers as arrays, with a leaf of size 0."""
    return {
        "a": jnp.asarray(numbers["a"], dtype),
        "b": jnp.asarray(numbers["b"], dtype),
        "empty": jnp.zeros((0, 3), dtype),
    }


def negative(numbers):
    """The opposite gradients."""
    return jax.tree.map(lambda number: -number, numbers)


def run(optimizer, params=PARAMS):
    """The optimizer's state after three steps."""
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in GRADS:
        _, state = update(on_tree(grads), state, params)
    return state


def assert_close(actual, expected):
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-6)


@pytest.mark.slow
@each_layout
def test_finds_the_state(state_layout):
    """And its summary: nested, in any layout, as NumPy arrays, and compiled."""
    optimizer = optax_rprop.rprop(**SETTINGS, state_layout=state_layout)
    state = run(optax.chain(optax.clip(10.0), optax.chain(optax.identity(), optimizer)))
    plain = optax_rprop.get_rprop_state(state)
    assert type(plain) is optax_rprop.RpropState
    assert_identical(plain.step_sizes, on_tree(STEP_SIZES))
    assert_identical(plain.prev_grad_signs, on_tree(SIGNS))
    assert {leaf.dtype for leaf in jax.tree.leaves(plain.prev_grad_signs)} == {
        np.dtype(np.int8)
    }
    assert plain.prev_value is None
    assert_close(optax_rprop.diagnostics(state, **BOUNDS), SUMMARY)
    by_leaf = optax_rprop.diagnostics_by_leaf(state, **BOUNDS)
    assert list(by_leaf) == ["['a']", "['b']"]
    assert_close(by_leaf["['a']"], SUMMARY_OF_A)
    assert_close(by_leaf["['b']"], SUMMARY_OF_B)
    # As serializers return them.
    state = jax.tree.map(np.asarray, state)
    with jax.debug_nans(True), jax.debug_infs(True):
        assert_close(optax_rprop.diagnostics(state, **BOUNDS), SUMMARY)
    assert_identical(jax.jit(optax_rprop.get_rprop_state)(state), plain)
    summarize = jax.jit(lambda state, each: optax_rprop.diagnostics(state, **each))
    assert_close(summarize(state, BOUNDS), SUMMARY)


def test_is_the_whole_state():
    """With the last loss; reading it again, or continuing in "split", is the same."""
    options = SETTINGS | {"variant": "irprop+"}
    optimizer = optax_rprop.rprop(**options, state_layout="byte")
    update = jax.jit(optimizer.update)
    state = jax.jit(optimizer.init)(PARAMS)
    # The second update is undone, so the step size will shrink.
    for grads, value in zip((GRADS[0], negative(GRADS[0])), (1.0, 2.5), strict=True):
        _, state = update(on_tree(grads), state, value=value)
    read = jax.jit(optax_rprop.get_rprop_state)
    plain = read(state)
    # No sign is remembered, but the state shows the pending shrink.
    assert jax.jit(optax_rprop.diagnostics)(state).fraction_forgotten == 1
    assert plain.prev_value == 2.5
    assert plain.prev_grad_signs["a"] == 2
    assert_identical(read(plain), plain)
    split = optax_rprop.scale_by_rprop(**options)
    grads = on_tree(GRADS[0])
    expected, plain = jax.jit(split.update)(grads, plain, value=1.0)
    updates, state = update(grads, state, value=1.0)
    assert_identical(updates, jax.tree.map(jnp.negative, expected))
    assert_identical(read(state), plain)


@pytest.mark.slow
def test_bounds_between_the_levels_of_a_byte():
    """A step size that cannot get closer to its bound is at it."""
    bounds = {"min_step_size": 0.9, "max_step_size": 15.0}
    optimizer = optax_rprop.rprop(
        3.0, eta_plus=2.0, variant="rprop-", state_layout="byte", **bounds
    )
    state, update = optimizer.init(jnp.zeros(3)), jax.jit(optimizer.update)
    for sign in (1.0, -1.0, 1.0, -1.0):
        _, state = update(jnp.array([1.0, sign, 0.0]), state)
    found = optax_rprop.diagnostics(state, **bounds)
    assert (found.smallest_step_size, found.largest_step_size) == (1.5, 12.0)
    np.testing.assert_allclose(
        (found.fraction_at_min, found.fraction_at_max), 1 / 3, rtol=1e-6
    )


def test_without_bounds():
    """The state does not contain them, so the fractions at them are None."""
    state = optax_rprop.rprop(0.5, max_step_size=0.5).init({"w": jnp.zeros(3)})
    summarize = optax_rprop.diagnostics
    for summary in (
        summarize(state),
        jax.jit(summarize)(state),
        optax_rprop.diagnostics_by_leaf(state)["['w']"],
    ):
        assert (summary.fraction_at_min, summary.fraction_at_max) == (None, None)
    for bound in (0.5, np.float16(0.5), np.array(0.5), jnp.array(0.5)):
        assert summarize(state, max_step_size=bound)[3:5] == (None, 1)
        assert summarize(state, min_step_size=bound)[3:5] == (1, None)
    assert summarize(state, max_step_size=np.int64(2**40)).fraction_at_max == 0


def test_a_bound_of_0_is_the_smallest_normal_number():
    """As in `rprop`, whose step sizes are never less."""
    smallest = float(np.finfo(np.float32).tiny)
    state = optax_rprop.rprop(smallest, min_step_size=0).init(jnp.zeros(3))
    for bound in (0, 0.0, 1e-40, jnp.array(0.0), smallest):
        summary = optax_rprop.diagnostics(state, min_step_size=bound)
        assert summary.fraction_at_min == 1


@pytest.mark.slow
@each_layout
def test_dtypes_mix(x64, state_layout):
    """float16, float32 and float64 leaves, compared with bounds in their dtype."""
    params = {name: jnp.zeros(2, name) for name in ("float16", "float32", "float64")}
    state = rprop(0.1, min_step_size=0.1, state_layout=state_layout).init(params)
    summary = optax_rprop.diagnostics(state, min_step_size=0.1)
    assert summary.fraction_at_min == 1
    numbers = [field for field in summary if field is not None]
    assert {field.dtype for field in numbers} == {np.dtype(np.float64)}
    assert {field.shape for field in numbers} == {()}


@pytest.mark.slow
def test_leaves_sharded_each_its_own_way(cpu_devices):
    """A summary over leaves whose shardings differ."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("Explicit axes of this version of JAX are not complete")
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh(
        (4, 2), ("x", "y"), axis_types=(kind, kind), devices=cpu_devices
    )
    specs = {"w": ("x", "y"), "v": (None, "x"), "b": ("y",)}
    params = {
        name: jax.device_put(
            jnp.zeros((8,) * len(spec)),
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)),
        )
        for name, spec in specs.items()
    }
    with jax.set_mesh(mesh):
        state = optax_rprop.rprop(0.25).init(params)
        for summary in (
            optax_rprop.diagnostics(state),
            optax_rprop.diagnostics_by_leaf(state)["['v']"],
            jax.jit(optax_rprop.diagnostics)(state),
        ):
            assert_close(summary[:3], (0.25, 0.25, 0.25))
            assert summary.fraction_forgotten == 1


def reads(state):
    """All functions that read a state."""
    yield lambda: optax_rprop.get_rprop_state(state)
    yield lambda: optax_rprop.diagnostics(state)
    yield lambda: optax_rprop.diagnostics_by_leaf(state)


@pytest.mark.parametrize(
    "state",
    [(), None, {}, optax.sgd(0.1).init(PARAMS), (optax.EmptyState(), jnp.zeros(2))],
    ids=["empty", "None", "dict", "sgd", "arrays"],
)
def test_no_state_of_rprop(state):
    """The message says so, and names the type."""
    for read in reads(state):
        with pytest.raises(ValueError, match="hold a state of Rprop, got none in Py"):
            read()


def test_several_states_of_rprop():
    """The message says where they are."""
    state = rprop(state_layout="byte").init(PARAMS)
    other = optax_rprop.scale_by_rprop().init(PARAMS)
    for read in reads({"a": state, "b": [other]}):
        with pytest.raises(
            ValueError,
            match=r"one state of Rprop, got 2: opt_state\['a'\]\[0\],"
            r" opt_state\['b'\]\[0\]\. Pass one",
        ):
            read()


@pytest.mark.slow
@pytest.mark.parametrize(
    "params", [{}, None, {"w": jnp.zeros((0, 2))}], ids=["dict", "None", "zero size"]
)
def test_no_coordinate(params):
    """Raises an error; leaf by leaf, the summary is empty."""
    state = optax_rprop.rprop().init(params)
    with pytest.raises(ValueError, match="at least one step size, got none"):
        optax_rprop.diagnostics(state)
    assert optax_rprop.diagnostics_by_leaf(state) == {}
    plain = optax_rprop.get_rprop_state(state)
    assert jax.tree.structure(plain.step_sizes) == jax.tree.structure(params)
