"""A state goes on where it stopped: with other settings, layouts and optimizers."""

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, SETTINGS, VARIANTS, assert_identical, rprop
from workloads import gradient_stream, value_stream

import optax_rprop
from optax_rprop import (
    ByteRpropState,
    get_rprop_state,
    minibatch_rprop,
    scale_by_rprop,
)

NAN = float("nan")
UNDOING = ("rprop+", "irprop+")
ONES = jnp.ones(1)
THIRD = {"eta_minus": 0.5, "eta_plus": 2 ** (1 / 3)}
TWO = {"eta_minus": 0.5, "eta_plus": 2.0}
NARROW = {"min_step_size": 1e-3, "max_step_size": 1.0}
REMEDY = r"(?s)(?=.*`?init`?)(?=.*get_rprop_state).*split"

each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
# By default, the layout that differs most, and a variant that undoes.
ALWAYS = (("rprop+", "byte"),)
each_stored = pytest.mark.parametrize(
    ("variant", "stored"),
    [
        pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.slow)
        for case in itertools.product(VARIANTS, LAYOUTS)
    ],
)
# What only a byte may refuse, the others do.
byte_or_others = pytest.mark.parametrize(
    "stored",
    [
        "byte",
        pytest.param("split", marks=pytest.mark.slow),
        pytest.param("packed", marks=pytest.mark.slow),
    ],
)


def after(optimizer, state, steps, grads=ONES):
    """The state after some equal gradients."""
    for _ in range(steps):
        _, state = optimizer.update(grads, state, grads, value=1.0)
    return state


# ----------------------------------------------------------------------------
# The plain state is the state


@functools.cache
def every_code():
    """Four gradients for each coordinate, in all orders, and losses with all trends."""
    orders = itertools.product([1.0, -1.0, 0.0, NAN], repeat=4)
    return jnp.array(list(orders)).T, jnp.array([1.0, 2.0, NAN, 0.5])


@each_stored
def test_the_plain_state_is_continued_exactly(variant, stored):
    """After every sequence of signs, whatever is pending; and in every layout."""
    stored = scale_by_rprop(**SETTINGS, variant=variant, state_layout=stored)
    split = scale_by_rprop(**SETTINGS, variant=variant)
    grads, values = every_code()
    state = stored.init(grads[0])
    seen = set()
    for grad, value in zip(grads, values, strict=True):
        plain = get_rprop_state(state)
        updates, state = stored.update(grad, state, value=value)
        assert_identical(split.update(grad, plain, value=value)[0], updates)
        codes = np.asarray(get_rprop_state(state).prev_grad_signs)
        assert codes.dtype == np.int8
        seen |= set(codes.tolist())
    assert seen == ({-2, -1, 0, 1, 2} if variant in UNDOING else {-1, 0, 1})


@pytest.mark.parametrize("variant", UNDOING)
@each_layout
def test_an_undone_update_is_not_forgotten(variant, state_layout):
    """The step size is still to shrink: 0.06 is the next update, and not 0.12."""
    optimizer = optax_rprop.scale_by_rprop(
        **{"learning_rate": 0.1, "variant": variant, "state_layout": state_layout},
        **({"eta_plus": 2.0, "max_step_size": 0.125} if state_layout == "byte" else {}),
    )
    state = optimizer.init(ONES)
    for grad, value in ((1.0, 1.0), (1.0, 1.0), (-1.0, 2.0)):
        updates, state = optimizer.update(grad * ONES, state, value=value)
    plain = get_rprop_state(state)
    assert plain.prev_grad_signs[0] == 2
    split = scale_by_rprop(0.1, variant=variant)
    expected, _ = optimizer.update(ONES, state, value=1.0)
    actual, _ = split.update(ONES, plain, value=1.0)
    assert_identical(actual, expected)
    np.testing.assert_allclose(actual, updates / -2, rtol=1e-6)


@pytest.mark.slow
@each_stored
def test_a_run_moves_on_to_the_layout_split(variant, stored):
    """Halfway through a stream, inside `rprop`: the rest is the same."""
    optimizer = rprop(**SETTINGS, variant=variant, state_layout=stored)
    split = rprop(**SETTINGS, variant=variant)
    grads, values = gradient_stream((16, 60), 3), value_stream(16, 3)

    def feed(optimizer, state, stream):
        def step(state, grad_and_value):
            grad, value = grad_and_value
            updates, state = optimizer.update(grad, state, value=value)
            return state, updates

        return jax.lax.scan(step, state, stream)

    @jax.jit
    def run(grads, values):
        first, second = ((grads[i : i + 8], values[i : i + 8]) for i in (0, 8))
        state, _ = feed(optimizer, optimizer.init(grads[0]), first)
        _, *others = split.init(grads[0])
        moved = get_rprop_state(state), *others
        return feed(optimizer, state, second)[1], feed(split, moved, second)[1]

    assert_identical(*run(grads, values))


@pytest.mark.parametrize(
    ("stored", "params"),
    [
        pytest.param(*case, marks=[] if case[0] == "byte" else pytest.mark.slow)
        for case in itertools.product(
            LAYOUTS, ["float16", "bfloat16", "float32", "float64"]
        )
    ],
)
def test_step_sizes_have_the_dtype_that_the_layout_split_has(x64, stored, params):
    """float64 for float64 parameters and float32 for all others, alone and mixed."""
    tree = {params: jnp.ones(2, params), "other": jnp.ones(2, "float64")}
    for variant in VARIANTS:
        for each in (tree, tree[params], {"a": tree[params], "b": jnp.ones(())}):
            optimizer = scale_by_rprop(**SETTINGS, variant=variant, state_layout=stored)
            split = scale_by_rprop(**SETTINGS, variant=variant)
            expected = jax.eval_shape(split.init, each)
            actual = jax.eval_shape(
                lambda each, tx=optimizer: get_rprop_state(
                    tx.update(each, tx.init(each), value=1.0)[1]
                ),
                each,
            )
            types = (jax.tree.map(lambda leaf: leaf.dtype, actual),)
            assert types == (jax.tree.map(lambda leaf: leaf.dtype, expected),)


@pytest.mark.slow
def test_a_byte_of_double_precision_is_signed(x64):
    """So that the state tells the dtype of its step sizes; its bits are the same."""
    options = TWO | NARROW | {"variant": "irprop+", "state_layout": "byte"}
    optimizer = scale_by_rprop(**options)
    update = jax.jit(optimizer.update)
    params = {name: jnp.ones(6, name) for name in ("float16", "float32", "float64")}
    state = optimizer.init(params)
    for sign in (1.0, 1.0, -1.0, -1.0):
        signs = sign * jnp.array([1.0, -1.0, 1.0, 0.0, jnp.nan, 1.0])
        grads = {name: signs.astype(name) for name in params}
        _, state = update(grads, state, value=1.0 - sign)
        codes = {name: np.asarray(leaf) for name, leaf in state.codes.items()}
        assert [codes[name].dtype for name in params] == [np.uint8, np.uint8, np.int8]
        for leaf in codes.values():
            np.testing.assert_array_equal(leaf.view(np.uint8), codes["float32"])


# ----------------------------------------------------------------------------
# Other factors


@byte_or_others
def test_other_factors_are_obeyed_or_refused(stored):
    """By layouts of floats obeyed; by a byte refused, with a word on what to do."""
    options = NARROW | {"state_layout": stored}
    old, new = (scale_by_rprop(**factors, **options) for factors in (THIRD, TWO))
    state = after(old, old.init(ONES), 2)
    before = get_rprop_state(state).step_sizes
    if stored == "byte":
        with pytest.raises(ValueError, match=REMEDY):
            new.update(ONES, state)
        # What the message says.
        new, state = scale_by_rprop(**TWO, **NARROW), get_rprop_state(state)
    state = after(new, state, 1)
    np.testing.assert_allclose(get_rprop_state(state).step_sizes, 2 * before, rtol=1e-6)
    state = after(new, state, 1, -ONES)
    np.testing.assert_allclose(get_rprop_state(state).step_sizes, before, rtol=1e-6)


def chained(factors):
    """Inside other transformations."""
    optimizer = rprop(**factors, **NARROW, state_layout="byte")
    return optax.chain(optax.clip(1.0), optimizer)


def injected(factors):
    """With injected numbers: factors are those that a byte wants to be static."""
    inject = optax.inject_hyperparams(
        optax_rprop.rprop, static_args=("eta_minus", "eta_plus")
    )
    return inject(**factors, **NARROW, state_layout="byte")


WRAPPERS = {
    "rprop": lambda factors: rprop(**factors, **NARROW, state_layout="byte"),
    "irprop+": lambda factors: scale_by_rprop(
        **factors, **NARROW, state_layout="byte", variant="irprop+"
    ),
    "chain": chained,
    "inject": injected,
    "minibatch": lambda factors: minibatch_rprop(
        **factors, **NARROW, state_layout="byte", lean=0
    ),
    "partition": lambda factors: optax.partition({"x": chained(factors)}, "x"),
    "MultiSteps": lambda factors: optax.MultiSteps(chained(factors), 2),
    "masked": lambda factors: optax.masked(chained(factors), True),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_byte_refuses_other_factors_wherever_it_is(standard_promotion, wrapper):
    """In wrappers, compiled and under vmap, where no value is known."""
    old, new = (WRAPPERS[wrapper](factors) for factors in (THIRD, TWO))

    def update(optimizer, params):
        state = old.init(params)
        return optimizer.update(params, state, params, value=1.0)

    for over in (lambda update: update, jax.jit, jax.vmap):
        with pytest.raises(ValueError, match=REMEDY):
            jax.eval_shape(over(functools.partial(update, new)), ONES)
    jax.eval_shape(functools.partial(update, old), ONES)


@pytest.mark.slow
@pytest.mark.parametrize(
    "factors",
    [
        {"eta_minus": 0.25, "eta_plus": 2.0},
        {"eta_minus": 0.5, "eta_plus": 4.0},
        {"eta_minus": 0.25, "eta_plus": 4.0},
        {"eta_minus": 0.7, "eta_plus": 0.7**-0.5},
        {"eta_minus": 2**-0.5, "eta_plus": 2**0.25},
        {"eta_minus": 0.5, "eta_plus": 2**0.25},
    ],
    ids=lambda factors: "-".join(f"{number:.2f}" for number in factors.values()),
)
def test_a_byte_resumed_is_right_or_an_error(factors):
    """Its step size grows and shrinks by the factors of the optimizer that runs."""
    options = {"min_step_size": 1e-3, "max_step_size": 16.0, "state_layout": "byte"}
    for first in (THIRD, TWO, {"eta_minus": 0.25, "eta_plus": 2.0}):
        old, new = (scale_by_rprop(1.0, **f, **options) for f in (first, factors))
        state = after(old, old.init(ONES), 1)
        with contextlib.suppress(ValueError):
            state = after(new, state, 1)
            grown = factors["eta_plus"]
            assert get_rprop_state(state).step_sizes == pytest.approx(grown, rel=1e-5)
            state = after(new, state, 1, -ONES)
            shrunk = grown * factors["eta_minus"]
            assert get_rprop_state(state).step_sizes == pytest.approx(shrunk, rel=1e-5)


def test_factors_that_are_equal_but_for_rounding_are_the_same():
    """However the same number was written."""
    common = NARROW | {"state_layout": "byte"}
    state = scale_by_rprop(eta_plus=2 ** (1 / 3), **common).init(ONES)
    for number in (1 / 0.5 ** (1 / 3), np.cbrt(2.0), np.float32(2 ** (1 / 3))):
        optimizer = scale_by_rprop(eta_plus=number, **common)
        with contextlib.suppress(ValueError):
            # A factor may be too far from a power for a byte; a state never is.
            optimizer = scale_by_rprop(eta_plus=float(number), **common)
        _, state = optimizer.update(ONES, state)
    assert isinstance(state, ByteRpropState)


# ----------------------------------------------------------------------------
# Other bounds


WIDE = {"min_step_size": 1e-6, "max_step_size": 50.0}
OTHER_BOUNDS = [
    # A window within, higher, and lower than all that it can hold.
    ({"min_step_size": 1e-3, "max_step_size": 1e4}, 1e4),
    ({"learning_rate": 1e4, "min_step_size": 1e3, "max_step_size": 1e6}, 1e6),
]


@pytest.mark.parametrize(("bounds", "expected"), OTHER_BOUNDS)
@byte_or_others
def test_other_bounds_are_obeyed_or_refused(stored, bounds, expected):
    """By layouts of floats obeyed; by a byte that cannot hold them refused."""
    options = THIRD | {"state_layout": stored}
    old = scale_by_rprop(**WIDE, **options)
    new = scale_by_rprop(**options | bounds)
    state = after(old, old.init(ONES), 3)
    if stored == "byte":
        with pytest.raises(ValueError, match=REMEDY):
            new.update(ONES, state)
        new, state = scale_by_rprop(**THIRD | bounds), get_rprop_state(state)
    update = jax.jit(new.update)
    for _ in range(60):
        _, state = update(ONES, state)
    assert get_rprop_state(state).step_sizes[0] == np.float32(expected)


@pytest.mark.slow
def test_bounds_that_a_byte_can_hold_are_obeyed():
    """Narrower ones, and those that its spare levels reach."""
    options = TWO | {"state_layout": "byte"}
    old = scale_by_rprop(1.0, **options, min_step_size=2.0**-10, max_step_size=2.0**10)
    for bounds in ((2.0**-2, 2.0**2), (2.0**-20, 2.0**20), (2.0**2, 2.0**3)):
        limits = dict(zip(("min_step_size", "max_step_size"), bounds, strict=True))
        new = scale_by_rprop(limits["min_step_size"], **options, **limits)
        state = old.init(jnp.ones(2))
        update = jax.jit(new.update)
        for sign in (1.0, -1.0) * 24:
            _, state = update(jnp.array([1.0, sign]), state)
        # A change of sign, and then a neutral step, in turn.
        assert get_rprop_state(state).step_sizes.tolist() == list(bounds)[::-1]
        new.update(jnp.ones(2), state)


def test_compiled_bounds_beyond_a_byte_are_clipped_to_it():
    """Where no value is known: at the outermost level there is, and never around."""
    options = TWO | {"state_layout": "byte", "variant": "rprop-"}
    old = scale_by_rprop(1.0, **options, min_step_size=2.0**-42, max_step_size=2.0**42)
    for rate, lower, upper in ((1.0, 2.0**-30, 2.0**50), (2.0**100, 2.0**90, 2.0**110)):
        new = scale_by_rprop(rate, **options, min_step_size=lower, max_step_size=upper)
        state = old.init(ONES)
        with pytest.raises(ValueError, match=REMEDY):
            new.update(ONES, state)
        update = jax.jit(new.update)
        for _ in range(60):
            _, state = update(ONES, state)
        assert get_rprop_state(state).step_sizes[0] == 2.0**42


def test_bounds_of_many_models_are_clipped_too():
    """Under vmap no value is known either."""
    options = THIRD | {"state_layout": "byte"}
    old = scale_by_rprop(**WIDE, **options)
    new = scale_by_rprop(**options, min_step_size=1e-3, max_step_size=1e4)
    state = jax.eval_shape(jax.vmap(old.init), jnp.ones((2, 1)))
    jax.eval_shape(jax.vmap(lambda state: new.update(ONES, state)), state)


# ----------------------------------------------------------------------------
# Through a checkpoint


@pytest.mark.parametrize(
    "variant", [pytest.param("irprop-", marks=pytest.mark.slow), "irprop+"]
)
def test_a_byte_survives_a_checkpoint(variant):
    """As NumPy arrays in the structure of a fresh state, as most libraries restore."""
    options = THIRD | NARROW | {"variant": variant, "state_layout": "byte"}
    optimizer = scale_by_rprop(**options)
    state = after(optimizer, optimizer.init(ONES), 2)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    fresh = scale_by_rprop(**options).init(ONES)
    restored = jax.tree.structure(fresh).unflatten(leaves)
    assert_identical(get_rprop_state(restored), get_rprop_state(state))
    assert_identical(
        optimizer.update(ONES, restored, value=1.0),
        optimizer.update(ONES, state, value=1.0),
    )
    with pytest.raises(ValueError, match=REMEDY):
        scale_by_rprop(**options | TWO).update(ONES, restored, value=1.0)
