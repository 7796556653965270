"""Numbers of all types are read alike, and never leave their range."""

import functools
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, play, program, property_test, rprop
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from optax_rprop import (
    get_rprop_state,
    in_eigenbasis,
    minibatch_rprop,
    resolve_signs,
    scale_by_rprop,
)

PARAMS = jnp.ones((2, 2))

# ----------------------------------------------------------------------------
# Numbers of Python and NumPy

# Every layout stores them exactly; in an integer of 32 bits, the last is 0.
NUMBERS = {
    "learning_rate": 1,
    "eta_minus": 0.5,
    "eta_plus": 2,
    "min_step_size": 1,
    "max_step_size": 2**40,
}
TEST = {"threshold": 1, "decay": 1, "lean": 2}
TYPES = [
    *(int, np.int64, np.uint64, np.float16, np.float32, np.longdouble),
    functools.partial(np.array, dtype="int64"),
    functools.partial(np.array, dtype="float16"),
]


def as_type(kind, numbers):
    """The numbers in this type; those that it cannot represent remain floats."""
    with np.errstate(over="ignore"):
        return {
            name: kind(number) if float(kind(number)) == number else float(number)
            for name, number in numbers.items()
        }


FACTORIES = {
    **{
        layout: lambda kind, layout=layout: rprop(
            **as_type(kind, NUMBERS), state_layout=layout
        )
        for layout in LAYOUTS
    },
    "resolve_signs": lambda kind: resolve_signs(**as_type(kind, TEST)),
    "minibatch": lambda kind: minibatch_rprop(**as_type(kind, NUMBERS | TEST)),
    "eigenbasis": lambda kind: in_eigenbasis(
        rprop(**as_type(kind, NUMBERS)), **as_type(kind, {"decay": 1})
    ),
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_a_number_counts_for_nothing_but_its_value(factory):
    """Each type gives the same program as floats, including constants."""
    expected = program(FACTORIES[factory](float), PARAMS)
    for kind in TYPES:
        assert program(FACTORIES[factory](kind), PARAMS) == expected


@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_a_number_for_each_parameter_is_that_number(x64, state_layout):
    """However it is written; a bound is within, also rounded to a lower precision."""
    params = {name: jnp.ones(2, name) for name in ("float16", "float32", "float64")}
    bounds = {"min_step_size": 1e-6, "max_step_size": 0.1, "state_layout": state_layout}

    def step_sizes(learning_rate):
        state = rprop(learning_rate, **bounds).init(params)
        return get_rprop_state(state).step_sizes

    # A byte holds a bound only if it is a level.
    for number in (0.01,) if state_layout == "byte" else (0.01, 1e-6, 0.1):
        for tree in (
            dict.fromkeys(params, number),
            lambda params, number=number: number,
            np.array([number]),
            np.array([number] * 2, np.longdouble),
        ):
            jax.tree.map(
                np.testing.assert_array_equal, step_sizes(tree), step_sizes(number)
            )
    for number in (1e-6, 0.1):
        for tree in (
            {name: jnp.array([number], name) for name in params},
            {name: jnp.array(number, "float16") for name in params},
        ):
            for sizes in step_sizes(tree).values():
                assert np.all((sizes > 0.9e-6) & (sizes < 0.1000001))


def test_sizes_are_integers():
    """Those of Python and NumPy are accepted, bools and floats are not."""
    for name in ("interval", "max_size"):
        expected = program(in_eigenbasis(rprop(), **{name: 3}), PARAMS)
        for kind in (np.int8, np.int64, np.uint16):
            assert program(in_eigenbasis(rprop(), **{name: kind(3)}), PARAMS) == (
                expected
            )
        for number in (True, np.True_, 3.0, np.float32(3), "3", None, jnp.array(3)):
            with pytest.raises(TypeError, match=f"{name} must be an integer"):
                in_eigenbasis(rprop(), **{name: number})
        for number in (0, -1, np.int64(0)):
            with pytest.raises(ValueError, match=f"{name} must be at least 1"):
                in_eigenbasis(rprop(), **{name: number})


# ----------------------------------------------------------------------------
# Arrays of JAX

SIZES = ("learning_rate", "min_step_size", "max_step_size")
FACTORS = ("eta_minus", "eta_plus")
REFUSING = {
    "scale_by_rprop": (scale_by_rprop, SIZES + FACTORS),
    "packed": (functools.partial(rprop, state_layout="packed"), SIZES),
    "byte": (functools.partial(rprop, state_layout="byte"), SIZES),
    "minibatch": (minibatch_rprop, (*SIZES, *FACTORS, *TEST)),
    "resolve_signs": (resolve_signs, TEST),
    "eigenbasis": (functools.partial(in_eigenbasis, rprop()), ["decay"]),
}


@pytest.mark.parametrize("factory", REFUSING)
def test_init_refuses_arrays_that_make_no_sense(factory):
    """If their values are known; the message names argument and value."""
    factory, names = REFUSING[factory]
    for name in names:
        for number in (-1.0, np.nan, np.inf):
            optimizer = factory(**{name: jnp.array(number)})
            for init in (
                optimizer.init,
                functools.partial(jax.eval_shape, optimizer.init),
            ):
                with pytest.raises(ValueError, match=rf"{name} .*got {number}"):
                    init(PARAMS)


def test_traced_arrays_are_let_through():
    """Their values are not known."""

    def init(number):
        return scale_by_rprop(number, max_step_size=number).init(PARAMS)

    jax.eval_shape(init, jnp.array(np.nan))
    jax.eval_shape(jax.vmap(init), jnp.array([-1.0]))


def test_numbers_that_optax_cuts_or_rounds_are_refused():
    """When it injects them; the message says how to keep small ones."""
    half = jnp.zeros(1, "float16")
    inject = optax.inject_hyperparams
    # NumPy scalars are passed on unchanged.
    for number in (2.0**40, np.int64(2**40)):
        optimizer = inject(scale_by_rprop)(max_step_size=number)
        assert f"{2.0**40}:f32" in program(optimizer, PARAMS)[0]
    with warnings.catch_warnings():
        # NumPy and JAX may warn of it, depending on their versions.
        warnings.simplefilter("ignore")
        for number, cut in ((2**40, 0), (2**32 - 1, -1)):
            optimizer = inject(scale_by_rprop)(max_step_size=np.array(number))
            with pytest.raises(ValueError, match=rf"max_step_size .*got {cut}\b"):
                optimizer.init(PARAMS)
        for name, number in (("learning_rate", 1e-8), ("max_step_size", 1e12)):
            numbers = {"min_step_size": 1e-12, name: number}
            remedy = rf"{name} .*hyperparam_dtype=jnp.float32"
            with pytest.raises(ValueError, match=remedy):
                inject(scale_by_rprop)(**numbers).init(half)
    optimizer = inject(scale_by_rprop, hyperparam_dtype=jnp.float32)
    state = optimizer(1e-8, min_step_size=0.0).init(half)
    assert get_rprop_state(state).step_sizes == np.float32(1e-8)


# ----------------------------------------------------------------------------
# Range


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_a_lower_bound_step_sizes_do_not_vanish(x64, dtype):
    """They stop at the smallest normal number, from which they can grow again."""
    tiny = np.finfo(dtype).tiny
    optimizer = scale_by_rprop(
        1.0, 1e-30, 2.0, min_step_size=0, max_step_size=1.0, variant="rprop-"
    )
    update = jax.jit(optimizer.update)
    grads = jnp.ones((), dtype)
    state, sign = optimizer.init(grads), 1
    for _ in range(14):
        sign = -sign
        _, state = update(sign * grads, state)
    assert state.step_sizes == tiny
    _, state = update(sign * grads, state)
    assert state.step_sizes == 2 * tiny


def test_traced_bounds_leave_step_sizes_finite():
    """Bounds of 0 or infinity mean the outermost representable numbers."""

    @jax.jit
    def run(rate, lower, upper, grads):
        optimizer = rprop(rate, 1e-30, 1e30, lower, upper, variant="rprop-")

        return play(optimizer, grads, grads).step_sizes

    limits = np.finfo(np.float32)
    for numbers in ((1, 0, np.inf), (np.inf, 0, np.inf), (0, 0, 1), (1, 0, 1)):
        for grads in ([1.0] * 6, [1.0, -1.0] * 3):
            sizes = np.asarray(run(*np.float32(numbers), np.float32(grads)))
            assert np.all((sizes >= limits.tiny) & (sizes <= limits.max))


STEPS, SIZE = 12, 4


@jax.jit
def run(grads, values):
    """Steps in two dtypes."""
    leaves = grads, grads.astype("float16")
    return play(rprop(variant="irprop+"), leaves, values)


@property_test
@hypothesis.given(
    grads=arrays.arrays(
        np.float32, (STEPS, SIZE), elements=strategies.floats(width=32)
    ),
    values=arrays.arrays(np.float32, (STEPS,), elements=strategies.floats(width=32)),
)
def test_step_sizes_and_updates_stay_finite(grads, values):
    """With NaN, infinities, subnormal and huge numbers."""
    for leaf in jax.tree.leaves(run(grads, values)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()
