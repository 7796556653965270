"""The contract of Optax and JAX, for every transformation of the package."""

import collections
import functools
import itertools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import (
    FLOATS,
    LAYOUTS,
    REPRESENTATIVE,
    assert_identical,
    each_configuration,
    injected,
    rprop,
)
from workloads import feed, gradient_stream, value_stream

import optax_rprop

pytestmark = pytest.mark.stack

STEPS = 12
# What has all fields that a state can have.
WRAPPED = {"variant": "irprop+", "state_layout": "byte"}

LEAST = [rprop(0.5, **options) for options in REPRESENTATIVE]
CHAINS = [
    optax_rprop.minibatch_rprop(statistics_dtype=dtype) for dtype in (None, "bfloat16")
]
ROTATED = [
    optax_rprop.in_eigenbasis(
        optax_rprop.rprop(variant="irprop+"), interval=2, full_matrix=full_matrix
    )
    for full_matrix in (False, True)
]
NAMES = ["split", "packed", "byte", "minibatch", "minibatch bfloat16"]
ALL = [*NAMES, "eigenbasis", "full matrix"]


def each(names, by_default):
    """Parametrizes over these names; by default, some are skipped."""
    optimizers = dict(zip(ALL, LEAST + CHAINS + ROTATED, strict=True))
    marks = {name: () if name in by_default else pytest.mark.slow for name in names}
    return pytest.mark.parametrize(
        "optimizer",
        [pytest.param(optimizers[name], id=name, marks=marks[name]) for name in names],
    )


each_optimizer = each(ALL, NAMES)
# For expensive tests: the layout and the chain with the largest programs.
each_if_slow = each(ALL, ["byte", "minibatch"])
each_elementwise = each(NAMES, ["byte", "minibatch"])

# All compilations of the process.
_compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **__: "backend_compile" in event and _compilations.append(event)
)


def two_leaves(seed=1):
    """Parameters, and their gradients and losses of `STEPS` steps."""
    params = {"a": jnp.ones(3, "float32"), "b": -jnp.ones((2, 2), "float32")}
    grads = {
        name: gradient_stream((STEPS, *leaf.shape), seed)
        for name, leaf in params.items()
    }
    return params, grads, value_stream(STEPS, seed)


@functools.cache
def plain_run(variant, state_layout):
    """Parameters, state and updates after `two_leaves`, without any wrapper."""
    optimizer = rprop(0.5, variant=variant, state_layout=state_layout)
    return jax.jit(functools.partial(feed, optimizer))(*two_leaves())


def get_step_sizes(state):
    """Those of a state in any layout."""
    return optax_rprop.get_rprop_state(state).step_sizes


def build(options):
    """The optimizer of `plain_run`."""
    return rprop(0.5, **options)


def types(tree):
    """Structure, shapes and dtypes, weakly typed or not."""

    def type_of(leaf):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)

    return jax.tree.map(type_of, tree)


# ----------------------------------------------------------------------------
# Types


def drive(optimizer, params, value):
    """Steps under scan, cond and while_loop, which refuse a state that changes."""

    def step(params, state, value):
        updates, state = optimizer.update(params, state, params, value=value)
        return optax.apply_updates(params, updates), state

    def branch(carry, value):
        carry = jax.lax.cond(
            value > 0, lambda carry: step(*carry, value), lambda carry: carry, carry
        )
        return carry, None

    carry = jax.lax.while_loop(
        lambda carry: carry[1] > 0,
        lambda carry: (step(*carry[0], value), carry[1] - 1),
        ((params, optimizer.init(params)), jnp.array(2)),
    )[0]
    return jax.lax.scan(branch, carry, jnp.stack([value, -value, value]))[0]


@each_optimizer
def test_types_are_stable_under_control_flow(x64, optimizer):
    """All dtypes in one tree, and each alone, with a loss of each dtype."""
    mixed = {dtype: np.ones((2, 2), dtype) for dtype in FLOATS}
    for dtype in FLOATS:
        for params in (mixed, mixed[dtype]):
            # Traced but not compiled, which is enough for types.
            expected = types((params, jax.eval_shape(optimizer.init, params)))
            run = functools.partial(drive, optimizer)
            value = np.ones((), dtype)
            assert types(jax.eval_shape(run, params, value)) == expected


@each_optimizer
def test_dtypes_of_state_and_updates(x64, optimizer):
    """The state has the dtypes of the parameters, updates those of the gradients."""
    for param_dtype, grad_dtype in itertools.product(FLOATS, FLOATS):
        params, grads = np.ones((2, 2), param_dtype), np.ones((2, 2), grad_dtype)
        state = jax.eval_shape(optimizer.init, params)
        updates, new_state = jax.eval_shape(
            functools.partial(optimizer.update, value=1.0), grads, state, params
        )
        assert updates.dtype == grad_dtype
        assert types(new_state) == types(state)
        precisions = {
            leaf.dtype
            for leaf in jax.tree.leaves(state)
            if leaf.shape and jnp.issubdtype(leaf.dtype, jnp.floating)
        }
        expected = "float64" if param_dtype == "float64" else "float32"
        assert precisions <= {np.dtype(expected)}


def test_dtypes_of_what_a_byte_and_a_sign_are_in(x64):
    """Integers of 8 bits, and a loss in double precision where JAX has it."""
    params = {dtype: np.ones(3, dtype) for dtype in FLOATS}
    split, _, byte = (jax.eval_shape(tx.init, params)[0] for tx in LEAST)
    assert {leaf.dtype.name for leaf in split.prev_grad_signs.values()} == {"int8"}
    for dtype, leaf in byte.codes.items():
        assert leaf.dtype == ("int8" if dtype == "float64" else "uint8")
    assert byte.prev_value.dtype == "float64"


# ----------------------------------------------------------------------------
# Trees


class Pair(NamedTuple):
    """A node that is a tuple, but not built like one."""

    first: object
    second: object


def leaf(number):
    return jnp.array([number])


TREES = {
    "empty": {},
    "None": None,
    "no leaves": ((), [], {"a": None}),
    "None among leaves": {"a": None, "b": leaf(-2.0)},
    "scalar": jnp.array(3.0),
    "zero-size": {"a": jnp.zeros((0, 3)), "b": leaf(2.0)},
    "tuple of 1": (leaf(1.0),),
    "tuple of 2": (leaf(-1.0), leaf(2.0)),
    "tuple of tuples": ((leaf(1.0), leaf(-1.0)), (leaf(0.0), leaf(2.0))),
    "named tuple": Pair(leaf(-1.0), Pair(leaf(2.0), None)),
    "ordered": collections.OrderedDict(z=leaf(1.0), a=[leaf(-1.0)]),
    "Python floats": {"a": 1.5, "b": (-2.5, 0.0)},
    "NumPy": {"a": np.array([1.0, -2.0], np.float32), "b": np.float32(-1.0)},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_trees_of_any_kind(tree):
    """The structure is kept, signs decide per leaf, weak types become strong."""
    expected = jax.tree.map(lambda leaf: -0.5 * np.sign(leaf), tree)
    for optimizer in LEAST:
        state = optimizer.init(tree)
        updates, new_state = optimizer.update(tree, state, tree, value=1.0)
        assert_identical(updates, expected)
        assert types(new_state) == types(state)
        compiled_updates, compiled_state = jax.eval_shape(
            functools.partial(optimizer.update, value=1.0), tree, new_state
        )
        assert types(compiled_state) == types(state)
        assert types(compiled_updates) == types(updates)
        optax.apply_updates(tree, updates)
    for optimizer in CHAINS:
        state = jax.eval_shape(optimizer.init, tree)
        assert types(jax.eval_shape(optimizer.update, tree, state, tree)) == (
            types((updates, state))
        )


@each_optimizer
def test_init_of_abstract_parameters(optimizer):
    """`ShapeDtypeStruct`s suffice, and give the state of real parameters."""
    params = {"a": jnp.ones((2, 3), "bfloat16"), "b": (jnp.ones(()), None)}
    abstract = jax.eval_shape(lambda: params)
    expected = optimizer.init(params)
    assert_identical(optimizer.init(abstract), expected)
    assert types(jax.eval_shape(optimizer.init, abstract)) == types(expected)


# ----------------------------------------------------------------------------
# Compilation and memory


def pointers(tree):
    """The memory that the leaves of a tree occupy."""
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) if leaf.size]


@each_optimizer
def test_a_step_is_compiled_once_and_made_in_place(optimizer):
    """Each finds types, weak types, placement and memory of the last one.

    Unused donations would cause a warning.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads, value):
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    # Two equal leaves: their state must not be the same array.
    params = {name: jnp.ones((10, 10)) for name in "ab"} | {
        "c": jnp.ones(9, "bfloat16")
    }
    grads = jax.tree.map(jnp.copy, params)
    value, counts = jnp.array(1.0), []
    for init in (optimizer.init, jax.jit(optimizer.init)):
        carry = params, init(params)
        memory = pointers(carry)
        assert len(set(memory)) == len(memory)
        for _ in range(2):
            donated = jax.tree.leaves(carry)
            before = len(_compilations)
            carry = step(*carry, grads, value)
            counts.append(len(_compilations) - before)
            assert all(leaf.is_deleted() for leaf in donated)
            if optimizer not in ROTATED:  # The last two gradients swap places.
                assert pointers(carry) == memory
        params, _ = carry
    assert counts == [1, 0, 0, 0]


# A state could share arrays of shape (); those of a byte share the unit.
GIVEN = {"learning_rate": 0.1, "min_step_size": 1e-3, "max_step_size": 50.0}


def given(layout):
    """Rprop with the caller's arrays as hyper-parameters, and these arrays."""
    arrays = {name: jnp.array(number) for name, number in GIVEN.items()}
    options = {"eta_plus": 2.0, "variant": "rprop+", "state_layout": layout}
    return optax_rprop.rprop(**arrays, **options), arrays


def of_arrays(wrap):
    """The same in the layout "split" and a wrapper."""
    optimizer, arrays = given("split")
    return wrap(optimizer), arrays


def signs(**options):
    """`resolve_signs`, likewise."""
    arrays = {"threshold": jnp.float32(0.9), "decay": jnp.float32(0.9)}
    return optax_rprop.resolve_signs(**arrays, lean=0, **options), arrays


def own_step_sizes(layout):
    """Rprop whose initial step sizes are the parameters themselves."""
    options = {"eta_plus": 2.0, "min_step_size": 1e-3, "state_layout": layout}
    return optax_rprop.rprop(lambda params: params, **options), {}


def shared_step_size():
    """Rprop with an array of the caller for all parameters."""
    size = jnp.array(0.1)
    make = functools.partial(jax.tree.map, lambda _: size)
    return optax_rprop.rprop(lambda params: make(params)), {"size": size}


OWNING = {
    **{
        f"own {layout}": functools.partial(own_step_sizes, layout) for layout in LAYOUTS
    },
    "shared": shared_step_size,
    **{layout: functools.partial(given, layout) for layout in LAYOUTS},
    "inject": lambda: (injected(**GIVEN), {}),
    "inject byte": lambda: (injected(**GIVEN, state_layout="byte"), {}),
    "inject minibatch": lambda: (
        optax.inject_hyperparams(optax_rprop.minibatch_rprop)(lean=0.0),
        {},
    ),
    "signs": signs,
    "signs bfloat16": lambda: signs(statistics_dtype="bfloat16"),
    "partition": lambda: of_arrays(lambda tx: optax.partition({"x": tx}, "x")),
    "MultiSteps": lambda: of_arrays(lambda tx: optax.MultiSteps(tx, 2)),
    "eigenbasis": lambda: of_arrays(
        lambda tx: optax_rprop.in_eigenbasis(tx, full_matrix=True)
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "eigenbasis" else ())
        for name in OWNING
    ],
)
def test_state_owns_its_memory(standard_promotion, name):
    """No array belongs to the caller or twice to the state; the caller's stay alive."""
    optimizer, arrays = OWNING[name]()
    optimizer = optax.with_extra_args_support(optimizer)
    for params in ({"a": jnp.array(1.0), "b": jnp.array(2.0)}, {"a": jnp.ones(2)}):
        state = optimizer.init(params)
        made = pointers(state)
        assert len(set(made)) == len(made)
        assert not set(made) & set(pointers((params, arrays)))
    updates, new_state = optimizer.update(params, state, params, value=1.0)
    made = pointers((updates, new_state))
    assert len(set(made)) == len(made)
    assert not set(made) & set(pointers((params, arrays)))


# ----------------------------------------------------------------------------
# Debugging aids of JAX


@each_if_slow
def test_debugging_flags_find_nothing(optimizer):
    """No infinity or NaN in between, not even in branches that are not selected."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.zeros(0)}
    rows = [[1, -1, 1, 0], [1, 1, -1, 0], [1, 1, 0, 1e30], [1, -1, 1e-30, -1]]
    with jax.debug_nans(True), jax.debug_infs(True):
        state = optimizer.init(params)
        for value, row in enumerate(rows):
            grads = {"a": jnp.array(row, "float32").reshape(2, 2), "b": jnp.zeros(0)}
            value = jnp.array(value, "float32")
            # Eagerly, so that each operation is checked.
            _, state = optimizer.update(grads, state, params, value=value)
        jax.jit(optimizer.update)(grads, state, params, value=value)
        # The flags are active.
        with pytest.raises(FloatingPointError):
            jnp.array(3e38) * 2.0


@each_optimizer
def test_leaks_no_tracer_and_promotes_no_rank(optimizer):
    """No tracer outlives its trace, and no rank is promoted silently."""
    params, grads, values = two_leaves()
    with jax.checking_leaks(), jax.numpy_rank_promotion("raise"):
        run = jax.jit(functools.partial(feed, optimizer))
        jax.eval_shape(run, params, grads, values)
        # The same optimizer again, in another trace.
        jax.eval_shape(jax.vmap(run, (None, None, 0)), params, grads, values[None])


# ----------------------------------------------------------------------------
# Ways to run it


@each_elementwise
def test_ways_to_run_it_agree(optimizer):
    """Compiled or not, scanned or in a loop: the same bits."""
    grads = np.asarray(gradient_stream((6, 2, 3), 5))
    values = np.asarray(value_stream(6, 6))
    feed_all = jax.jit(functools.partial(feed, optimizer))
    _, final, scanned = feed_all(grads[0], grads, values)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        params = grads[0]
        state = optimizer.init(params)
        for grad, value, expected in zip(grads, values, scanned, strict=True):
            updates, state = update(grad, state, params, value=value)
            assert_identical(updates, expected)
            params = params + np.asarray(updates)
        assert_identical(optax_rprop.get_rprop_state(state), final)


@each_elementwise
def test_lowers_for_devices_that_are_not_there(optimizer):
    """A whole step, for parameters of each dtype that accelerators have."""
    params = {dtype: np.ones((8, 128), dtype) for dtype in FLOATS[:3]}

    @jax.jit
    def step(params, state, value):
        updates, state = optimizer.update(params, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    traced = step.trace(params, state, np.float32(1))
    for platform in ("tpu", "cuda", "rocm"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.multiply" in text
        # Nothing specific to one platform.
        assert "custom_call" not in text


def test_saving_and_loading_in_mid_run(x64):
    """A run that is resumed from a file equals an uninterrupted one."""
    serialization = pytest.importorskip("flax.serialization")
    optimizer = optax.chain(optax.clip(10.0), build(WRAPPED))
    dtypes = ("bfloat16", "float32", "float64")
    stream = {dtype: gradient_stream((8, 3), 7, dtype) for dtype in dtypes}
    values = value_stream(8, seed=8)
    traces = []

    @jax.jit
    def step(params, state, number):
        traces.append(None)
        grads = jax.tree.map(operator.itemgetter(number), stream)
        updates, state = optimizer.update(grads, state, params, value=values[number])
        return optax.apply_updates(params, updates), state

    params = {dtype: jnp.asarray(np.zeros(3), dtype) for dtype in dtypes}
    run = start = params, jax.jit(optimizer.init)(params)
    for number in range(4):
        run = step(*run, number)
    restored = serialization.from_bytes(start, serialization.to_bytes(run))
    assert jax.tree.structure(restored) == jax.tree.structure(run)
    assert_identical(restored, run)
    for number in range(4, 8):
        run, restored = step(*run, number), step(*restored, number)
    assert_identical(restored, run)
    assert types(restored) == types(run) == types(start)
    assert len(traces) == 1


# ----------------------------------------------------------------------------
# Hyper-parameters that are not constants


@each_configuration
def test_injected_hyperparameters_change_nothing(options):
    """Hyper-parameters may be traced numbers, from `init` on."""
    optimizer = injected(0.5, **options)
    run = jax.jit(functools.partial(feed, optimizer))
    assert_identical(run(*two_leaves()), plain_run(**options))


@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_initial_step_sizes_under_transformations(state_layout):
    """Traced ones are those that `init` makes of the same values, and clipped."""
    bounds = {"min_step_size": 0.125, "max_step_size": 64.0}

    def init(params, scale=0.25):
        def sizes(params):
            return jax.tree.map(lambda leaf: scale * jnp.abs(leaf), params)

        return get_step_sizes(
            rprop(sizes, **bounds, state_layout=state_layout).init(params)
        )

    # Powers of two, which a byte does not round.
    models = {"w": jnp.array([[1.0, 2.0], [4.0, -8.0]]), "b": jnp.array([1.0, 16.0])}
    expected = jax.tree.map(lambda leaf: jnp.abs(leaf) / 4, models)
    for run in (init, jax.jit(init), jax.vmap(init), jax.jit(jax.vmap(init))):
        assert_identical(run(models), expected)
    for scale, bound in ((1e-9, 0.125), (1e9, 64.0)):
        expected = jax.tree.map(lambda leaf, b=bound: jnp.full_like(leaf, b), models)
        assert_identical(jax.jit(init)(models, scale), expected)


def test_initial_step_sizes_are_read_by_init_alone():
    """Never by `update`, nor do they become a part of what it compiles."""
    calls = []

    def sizes(params):
        calls.append(params)
        return 0.5

    optimizer = rprop(sizes)
    params, grads, values = two_leaves()
    run = jax.jit(functools.partial(feed, optimizer))
    assert_identical(run(params, grads, values), plain_run("irprop-", "split"))
    state = optimizer.init(params)
    assert len(calls) == 2
    assert calls[1] is params
    optimizer.update(params, state)
    # A byte, too, is resumed by whoever gives other ones.
    old, new = (
        rprop(number, state_layout="byte", min_step_size=1e-3)
        for number in ({"a": 0.5, "b": 0.25}, 1.0)
    )
    for before, after in ((old, new), (new, old)):
        after.update(params, before.init(params))
    assert len(calls) == 2


@pytest.mark.parametrize("over", [lambda init: init, jax.jit], ids=["", "jit"])
def test_injected_initial_step_sizes(over):
    """Trees go through Optax as they are; a callable has to be named as static."""
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}

    def first_updates(factory, learning_rate):
        optimizer = factory(learning_rate, max_step_size=optax.constant_schedule(1.0))
        state = over(optimizer.init)(params)
        updates, _ = over(optimizer.update)(params, state, params)
        return jax.tree.map(lambda leaf: float(leaf[0]), updates)

    tree = {"a": 0.5, "b": 0.25}
    plain = optax.inject_hyperparams(optax_rprop.rprop)
    static = optax.inject_hyperparams(optax_rprop.rprop, static_args="learning_rate")
    for factory, learning_rate in (
        (plain, tree),
        (static, tree),
        (static, lambda params: tree),
    ):
        assert first_updates(factory, learning_rate) == {"a": -0.5, "b": -0.25}
    assert first_updates(plain, np.array([0.5])) == {"a": -0.5, "b": -0.5}
    # Where it is not static, Optax takes it for a schedule.
    counts = []
    plain(lambda params: counts.append(params) or 0.5).init(params)
    assert np.shape(counts[0]) == ()


# ----------------------------------------------------------------------------
# Optax's wrappers


@each_configuration
def test_map_params(options):
    """Optax finds the trees of the state that are like the parameters."""
    params = {"a": jnp.ones(3), "b": (jnp.ones((2, 2)), None)}

    def kinds(optimizer):
        state = optimizer.init(params)
        mapped = optax.tree.map_params(
            optimizer,
            lambda leaf, param, name: name if leaf.shape == param.shape else "wrong",
            state,
            params,
            {"a": "a", "b": ("b", None)},
            transform_non_params=lambda leaf: "other",
        )
        found = collections.Counter(jax.tree.leaves(mapped))
        assert found.total() == len(jax.tree.leaves(state))
        del found["other"]
        return found

    fields = 2 if options["state_layout"] == "split" else 1
    for optimizer in (
        build(options),
        rprop({"a": 0.1, "b": 0.2}, **options),
        rprop(lambda params: {"a": 0.1, "b": params["b"][0]}, **options),
        optax.masked(build(options), True),
        injected(0.5, **options),
    ):
        assert kinds(optimizer) == {"a": fields, "b": fields}


def test_no_field_is_taken_for_another():
    """Optax looks up stored losses and gradients by name, and must find none."""
    state = build(WRAPPED).init(jnp.ones(2))
    for name in ("value", "grad", "count"):
        assert optax.tree.get(state, name) is None
    with pytest.raises(ValueError, match="not found in the state"):
        optax.value_and_grad_from_state(jnp.sum)(jnp.ones(2), state=state)


def test_extra_arguments():
    """`params` by position, by name or not at all; unknown extras are ignored."""
    optimizer = build(WRAPPED)
    assert isinstance(optimizer, optax.GradientTransformationExtraArgs)
    params = {"w": jnp.array([0.5, -1.0])}
    state = optimizer.init(params)
    expected = optimizer.update(params, state, params, value=1.0)
    for arguments, extras in (
        ((), {}),
        ((None,), {}),
        ((), {"params": params, "grad": params, "value_fn": None, "surprise": "!"}),
    ):
        actual = optimizer.update(params, state, *arguments, value=1.0, **extras)
        assert_identical(actual, expected)
