"""A number means the same whatever type it has, and cannot wrap, overflow or vanish."""

import contextlib
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS

from optax_rprop import (
    get_rprop_state,
    in_eigenbasis,
    minibatch_rprop,
    resolve_signs,
    rprop,
    scale_by_rprop,
)

PARAMS = jnp.ones((2, 2))
# Every type holds them exactly, and every layout.
NUMBERS = {
    "learning_rate": 1,
    "eta_minus": 0.5,
    "eta_plus": 2,
    "min_step_size": 1,
    "max_step_size": 64,
}
TEST = {"threshold": 1, "decay": 1, "lean": 2}
TYPES = [
    *(int, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32),
    *(np.uint64, np.float16, np.float32, np.float64, np.longdouble),
    functools.partial(np.array, dtype="int64"),
    functools.partial(np.array, dtype="float16"),
]


def name_of(kind):
    """The name of a type in a test's."""
    return getattr(kind, "__name__", None) or f"array-{kind.keywords['dtype']}"


# Python's, and those that JAX cuts or rounds.
ALWAYS = ("int", "int64", "float16", "array-int64")
each_type = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(
            kind,
            id=name_of(kind),
            marks=[] if name_of(kind) in ALWAYS else pytest.mark.slow,
        )
        for kind in TYPES
    ],
)
each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)


def as_type(kind, numbers):
    """The numbers in this type; a fraction stays a float where it is an integer."""
    return {
        name: kind(number) if kind(number) == number else number
        for name, number in numbers.items()
    }


FACTORIES = {
    "rprop": lambda kind, **options: rprop(**as_type(kind, NUMBERS), **options),
    "scale_by_rprop": lambda kind, **options: scale_by_rprop(
        **as_type(kind, NUMBERS), **options
    ),
    "minibatch_rprop": lambda kind, **options: minibatch_rprop(
        **as_type(kind, NUMBERS), **as_type(kind, TEST), **options
    ),
    "in_eigenbasis": lambda kind, **options: in_eigenbasis(
        rprop(**as_type(kind, NUMBERS), **options), **as_type(kind, {"decay": 1})
    ),
}
CASES = [
    (name, state_layout)
    for name in FACTORIES
    for state_layout in LAYOUTS
    if (name, state_layout) != ("in_eigenbasis", "byte")
]


def program(optimizer, params=PARAMS):
    """What `init` and `update` compute, in JAX's own language, with all constants."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params, grads):
        state = optimizer.init(params)
        return optimizer.update(grads, state, params, value=1.0)

    closed = jax.make_jaxpr(step)(params, params)
    return str(closed), [np.asarray(const).tolist() for const in closed.consts]


@functools.cache
def program_of_floats(name, state_layout):
    """What all others are to equal."""
    return program(FACTORIES[name](float, state_layout=state_layout))


@pytest.mark.parametrize(("name", "state_layout"), CASES)
@each_type
def test_each_type_of_number_makes_the_same_program(name, state_layout, kind):
    """Constants and their dtypes included: it counts for nothing but its value."""
    optimizer = FACTORIES[name](kind, state_layout=state_layout)
    assert program(optimizer) == program_of_floats(name, state_layout)


@each_type
def test_each_type_of_number_makes_the_same_test(kind):
    """`resolve_signs` likewise."""
    expected = program(resolve_signs(**as_type(float, TEST)))
    assert program(resolve_signs(**as_type(kind, TEST))) == expected


# Cut to 32 bits, it is 0.
HUGE = 2**40
HUGE_NUMBERS = [kind(HUGE) for kind in (int, np.int64, np.uint64, np.array)]


@pytest.mark.parametrize("bound", HUGE_NUMBERS, ids=lambda bound: type(bound).__name__)
@each_layout
def test_integers_of_more_than_32_bits_are_kept(bound, state_layout):
    """As a bound that is never reached: a step size grows with each equal sign."""
    optimizer = rprop(1.0, 0.5, 2.0, max_step_size=bound, state_layout=state_layout)
    state = optimizer.init(jnp.zeros(1))
    for step in range(4):
        updates, state = optimizer.update(jnp.ones(1), state)
        np.testing.assert_array_equal(updates, [-(2.0**step)])


def huge_bound(number):
    """Each variant and wrapper, with this bound."""
    options = {"eta_plus": 2.0, "max_step_size": number}
    return [
        *(rprop(**options, variant=variant) for variant in VARIANTS),
        scale_by_rprop(**options, state_layout="byte"),
        minibatch_rprop(**options),
        in_eigenbasis(rprop(**options, state_layout="packed")),
        in_eigenbasis(rprop(**options), full_matrix=True),
        optax.partition({"a": rprop(**options)}, "a"),
        optax.masked(rprop(**options), True),
    ]


@pytest.mark.parametrize("kind", [int, np.int64])
def test_variants_and_wrappers_keep_them(kind):
    """A bound of more than 32 bits makes the program that its float makes."""
    pairs = zip(huge_bound(kind(HUGE)), huge_bound(float(HUGE)), strict=True)
    for actual, expected in pairs:
        assert program(actual) == program(expected)


@contextlib.contextmanager
def cut_and_rounded_silently():
    """NumPy and JAX may warn of it, depending on their versions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("factory", [rprop, minibatch_rprop], ids=lambda f: f.__name__)
def test_injected_numbers_of_more_than_32_bits(factory):
    """Numbers are kept, and arrays, which Optax itself cuts, are refused by `init`."""
    injected = optax.inject_hyperparams(factory)
    for number in (float(HUGE), np.int64(HUGE)):
        assert f"{float(HUGE)}:f32" in program(injected(max_step_size=number))[0]
    with cut_and_rounded_silently():
        for number, cut in ((2**40, 0), (2**32 - 1, -1)):
            optimizer = injected(max_step_size=np.array(number))
            with pytest.raises(ValueError, match=rf"max_step_size .*got {cut}\b"):
                optimizer.init(PARAMS)


@pytest.mark.parametrize("name", ["interval", "max_size"])
def test_sizes_are_integers_of_any_type(name):
    """Python's and NumPy's, but neither truth values nor floats."""
    expected = program(in_eigenbasis(rprop(), **{name: 3}))
    for kind in (np.int8, np.int32, np.int64, np.uint16):
        assert program(in_eigenbasis(rprop(), **{name: kind(3)})) == expected
    for number in (True, np.True_, 3.0, np.float32(3), "3", None, jnp.array(3)):
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            in_eigenbasis(rprop(), **{name: number})
    for number in (0, -1, np.int64(0)):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            in_eigenbasis(rprop(), **{name: number})


# ----------------------------------------------------------------------------
# JAX arrays


BAD_ARRAYS = [
    (name, number)
    for name in NUMBERS
    for number in (-1.0, 0.0, np.nan, np.inf)
    if (name, number) != ("min_step_size", 0.0)
]


@pytest.mark.parametrize(("name", "number"), BAD_ARRAYS)
@pytest.mark.parametrize(
    "factory", [rprop, scale_by_rprop, minibatch_rprop], ids=lambda f: f.__name__
)
def test_init_refuses_arrays_that_make_no_sense(factory, name, number):
    """Where their values are known; the message names argument and value."""
    optimizer = factory(**{name: jnp.array(number)})
    with pytest.raises(ValueError, match=rf"{name} .*got {number}"):
        optimizer.init(PARAMS)


@pytest.mark.parametrize("state_layout", ["packed", "byte"])
@pytest.mark.parametrize("name", ["learning_rate", "min_step_size", "max_step_size"])
def test_init_refuses_them_in_every_layout(name, state_layout):
    """As the layout "split" does."""
    for number in (-1.0, np.nan, np.inf):
        bad = {name: jnp.array(number)}
        optimizer = rprop(**{"eta_plus": 2.0} | bad, state_layout=state_layout)
        with pytest.raises(ValueError, match=rf"{name} .*got {number}"):
            optimizer.init(PARAMS)
        with pytest.raises(ValueError, match=rf"{name} .*got {number}"):
            jax.eval_shape(optimizer.init, PARAMS)


@pytest.mark.parametrize(
    ("factory", "name", "numbers"),
    [
        (resolve_signs, "threshold", [-1.0, np.nan, np.inf]),
        (resolve_signs, "decay", [-1.0, np.nan, np.inf]),
        (resolve_signs, "lean", [-1.0, np.nan, np.inf]),
        (minibatch_rprop, "threshold", [-1.0, np.nan]),
        (functools.partial(in_eigenbasis, rprop()), "decay", [-1.0, np.nan, np.inf]),
    ],
    ids=["threshold", "decay", "lean", "minibatch", "eigenbasis"],
)
def test_init_refuses_arrays_of_the_other_factories(factory, name, numbers):
    """Where their values are known, likewise."""
    for number in numbers:
        optimizer = factory(**{name: jnp.array(number)})
        with pytest.raises(ValueError, match=rf"{name} .*got {number}"):
            optimizer.init(PARAMS)


def test_traced_arrays_are_let_through():
    """Nobody knows their values."""

    def init(number):
        return rprop(number, max_step_size=number).init(PARAMS)

    for number in (-1.0, 0.0, np.nan):
        jax.eval_shape(init, jnp.array(number))
        jax.eval_shape(jax.vmap(init), jnp.array([number]))


def test_low_precision_says_how_to_keep_the_numbers():
    """Optax casts injected numbers to the parameters' dtype; small ones vanish."""
    half = jnp.zeros(1, "float16")
    for name, number in (("learning_rate", 1e-8), ("max_step_size", 1e12)):
        numbers = {"min_step_size": 1e-12} | {name: number}
        remedy = rf"{name} .*hyperparam_dtype=jnp.float32"
        with cut_and_rounded_silently(), pytest.raises(ValueError, match=remedy):
            optax.inject_hyperparams(rprop)(**numbers).init(half)
        inject = optax.inject_hyperparams(rprop, hyperparam_dtype=jnp.float32)
        state = inject(**numbers).init(half)
        assert state.hyperparams[name] == np.float32(number)
    step_sizes = get_rprop_state(inject(1e-8, min_step_size=0.0).init(half)).step_sizes
    assert step_sizes == np.float32(1e-8)


# ----------------------------------------------------------------------------
# The range of floating-point numbers


def step_sizes_of(optimizer, grads, params):
    """The step size after each gradient of a single coordinate."""

    def step(state, grad):
        _, state = optimizer.update(jnp.full_like(params, grad), state, value=0.0)
        return state, get_rprop_state(state).step_sizes

    return jax.lax.scan(step, optimizer.init(params), jnp.array(grads, "float32"))[1]


# The second gradient changes its sign, the third is neutral; then two equal ones.
SHRINKS_THEN_GROWS = [1.0, -1.0, -1.0, -1.0, -1.0, -1.0]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_without_a_lower_bound_step_sizes_do_not_vanish(x64, variant, dtype):
    """They stop at the smallest normal number, from where they can grow again."""
    factor = 1e-30 if dtype == "float64" else 1e-3
    optimizer = rprop(
        2e-38, factor, 2.0, min_step_size=0, max_step_size=1.0, variant=variant
    )
    kept = "float64" if dtype == "float64" else "float32"
    tiny = float(np.finfo(kept).tiny)
    grads = SHRINKS_THEN_GROWS * (11 if dtype == "float64" else 1)
    if dtype == "float64":
        grads = [1.0, -1.0, -1.0] + [1.0, 1.0, -1.0, -1.0] * 11 + [-1.0, -1.0]
        if variant == "rprop-":
            grads = [1.0, -1.0] * 12 + [-1.0, -1.0]
    sizes = np.asarray(step_sizes_of(optimizer, grads, jnp.zeros((), dtype)))
    assert sizes.dtype == kept
    assert np.min(sizes) == tiny
    assert sizes[-1] >= 2 * tiny


@pytest.mark.parametrize("variant", VARIANTS)
def test_traced_bounds_leave_step_sizes_finite(variant):
    """Those that are 0 or infinite stand for the outermost numbers there are."""

    @jax.jit
    def run(rate, lower, upper, grads):
        optimizer = rprop(rate, 1e-30, 1e30, lower, upper, variant=variant)
        return step_sizes_of(optimizer, grads, jnp.zeros(()))

    limits = np.finfo(np.float32)
    for rate, lower, upper in (
        (1.0, 0.0, np.inf),
        (np.inf, 0.0, np.inf),
        (0.0, 0.0, 1.0),
        (1.0, 0.0, 1.0),
    ):
        for grads in ([1.0] * 6, [1.0, -1.0] * 3):
            grads = jnp.array(grads)
            sizes = np.asarray(run(*map(jnp.float32, (rate, lower, upper)), grads))
            assert np.all((sizes >= limits.tiny) & (sizes <= limits.max))
