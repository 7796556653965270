"""Each layout compared with "split", from every state that it can hold, and resumed.

A layout only stores. So if one step from every state equals that of "split", which is
right, the layout is right for every run of every variant.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import FLOATS, UNDOING, VARIANTS, assert_identical, play

import optax_rprop

GRADS = (-3.0, 0.0, 5.0, np.nan)
# The loss falls, rises, and becomes non-finite.
LOSSES = (0.5, 2.0, np.nan)
# A byte is exact where its base is a power of two.
FACTORS = {"packed": (0.3, 1.2), "byte": (0.25, 2.0)}


def every_byte(variant):
    """The meaning of all bytes but 255, by the docstring of `ByteRpropState`."""
    most, levels = (2, 51) if variant in UNDOING else (1, 85)
    stored = np.arange(255)
    return 2.0 ** (stored % levels - levels // 2), stored // levels - most, stored


def packed_floats(variant):
    """Each exponent with three significands; see `PackedRpropState`."""
    most = 2 if variant in UNDOING else 1
    grid = itertools.product(
        np.float32([1.0, 1.3, 1.9]), range(-42, 42), range(-most, most + 1)
    )
    significands, exponents, codes = map(np.array, zip(*grid, strict=True))
    # The last of them is the largest bound of the layout.
    step_sizes = np.minimum(significands * 2.0**exponents, 2.0**41)
    bands = np.array([2.0**-84, 1.0, 2.0**84])[np.abs(codes)]
    return step_sizes, codes, np.where(codes < 0, -1, 1) * step_sizes * bands


STATES = {"packed": packed_floats, "byte": every_byte}
FIELDS = {"packed": "signed_step_sizes", "byte": "codes"}


def types(tree):
    """The dtype of each leaf."""
    return jax.tree.map(lambda leaf: leaf.dtype.name, tree)


def check_one_step(state_layout, variant, skip, dtypes):
    """The same updates and states, in leaves of these dtypes, at any bounds."""
    columns = STATES[state_layout](variant)
    step_sizes, codes, stored = (np.repeat(column, len(GRADS)) for column in columns)
    grads = np.tile(GRADS, len(codes) // len(GRADS))
    grads = {dtype: jnp.asarray(grads, dtype) for dtype in dtypes}
    lowest, highest = float(step_sizes.min()), float(step_sizes.max())

    def build(layout, lower=lowest, upper=highest):
        return optax_rprop.scale_by_rprop(
            1.0,
            *FACTORS[state_layout],
            lower,
            upper,
            variant=variant,
            skip_zero_grads=skip,
            state_layout=layout,
        )

    @jax.jit
    def step(plain, state, value, *bounds):
        """The results of "split" and of this layout from a state."""
        expected = build("split", *bounds).update(grads, plain, value=value)
        updates, state = build(state_layout, *bounds).update(grads, state, value=value)
        return expected, (updates, optax_rprop.get_rprop_state(state))

    plain, state = build("split").init(grads), build(state_layout).init(grads)
    plain = plain._replace(
        step_sizes={
            dtype: jnp.asarray(step_sizes, leaf.dtype)
            for dtype, leaf in plain.step_sizes.items()
        },
        prev_grad_signs=dict.fromkeys(dtypes, jnp.asarray(codes, jnp.int8)),
    )
    fields = {
        dtype: jnp.asarray(
            stored.astype(np.uint8).view(leaf.dtype)
            if state_layout == "byte"
            else stored.astype(leaf.dtype)
        )
        for dtype, leaf in getattr(state, FIELDS[state_layout]).items()
    }
    state = state._replace(**{FIELDS[state_layout]: fields})
    if variant == "irprop+":
        loss = jnp.ones_like(plain.prev_value)
        plain, state = (each._replace(prev_value=loss) for each in (plain, state))
    read = jax.jit(optax_rprop.get_rprop_state)(state)
    assert_identical(read, plain)
    assert types(read) == types(plain)

    # A byte replaces a bound between levels by the next level within.
    for bounds in ((lowest, highest), (2.0**-7, 2.0**9)):
        for value in LOSSES if variant == "irprop+" else LOSSES[:1]:
            expected, actual = step(plain, state, value, *bounds)
            assert_identical(actual, expected)


# Gradients of 0 are skipped in the same way for all variants.
SKIPPING = [
    *((variant, False) for variant in VARIANTS),
    ("irprop+", True),
    *(pytest.param(each, True, marks=pytest.mark.slow) for each in VARIANTS[:3]),
]


@pytest.mark.stack
@pytest.mark.parametrize(("variant", "skip"), SKIPPING)
@pytest.mark.parametrize("state_layout", STATES)
def test_one_step_from_every_state(state_layout, variant, skip):
    """Bit for bit as in "split", for every gradient, loss and bounds."""
    check_one_step(state_layout, variant, skip, ("float32",))


@pytest.mark.stack
@pytest.mark.parametrize("state_layout", STATES)
def test_one_step_in_every_dtype(x64, state_layout):
    """The same in a tree of all dtypes, for irprop+, which uses everything."""
    check_one_step(state_layout, "irprop+", False, FLOATS)


@pytest.mark.parametrize(("dtype", "accuracy"), [("float32", 3e-6), ("float64", 5e-15)])
@pytest.mark.parametrize(
    ("base", "up", "down"), [(2 ** (1 / 3), 1, 3), (1.08, 1, 2), (1.9, 1, 7)]
)
def test_step_sizes_of_a_byte(request, base, up, down, dtype, accuracy):
    """Powers of any base, at all levels, as accurate as the dtype."""
    if dtype == "float64":
        request.getfixturevalue("x64")
    optimizer = optax_rprop.scale_by_rprop(
        0.3, base**-down, base**up, 0.3, 0.3, state_layout="byte"
    )
    levels = np.arange(85, dtype=np.uint8)
    state = optimizer.init(jnp.zeros(85, dtype))
    state = state._replace(codes=jnp.asarray(levels.view(state.codes.dtype)))
    actual = jax.jit(optax_rprop.get_rprop_state)(state).step_sizes
    expected = 0.3 * base ** (levels - float(state.lattice.unit_level))
    np.testing.assert_allclose(actual, expected, rtol=accuracy)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_initial_step_sizes_of_a_byte(x64, dtype):
    """Rounded to the nearest level within the bounds; those of a level stay."""
    base, unit = 2 ** (1 / 3), 0.01
    bounds = unit * base**-30.7, unit * base**30.7
    sizes = np.geomspace(*bounds, 500)
    on_levels = unit * base ** np.arange(-30, 31)
    for given in (sizes, on_levels):
        optimizer = optax_rprop.scale_by_rprop(
            given, 0.5, base, *bounds, state_layout="byte"
        )
        state = optimizer.init(jnp.zeros(given.shape, dtype))
        actual = optax_rprop.get_rprop_state(state).step_sizes
        assert actual.dtype == dtype
        accuracy = 3e-6 if dtype == "float32" else 1e-13
        levels = np.clip(np.round(np.log(given / unit) / np.log(base)), -30, 30)
        np.testing.assert_allclose(actual, unit * base**levels, rtol=accuracy)
    np.testing.assert_allclose(actual, on_levels, rtol=accuracy)
    # The start is a level of the lattice, whatever the step sizes are.
    assert state.lattice.unit == unit


# ----------------------------------------------------------------------------
# Resumed with other factors or bounds

ONES = jnp.ones(1)
THIRD = {"eta_minus": 0.5, "eta_plus": 2 ** (1 / 3)}
TWO = {"eta_minus": 0.5, "eta_plus": 2.0}
BOUNDS = {"min_step_size": 2.0**-10, "max_step_size": 2.0**10}
BYTE = {"state_layout": "byte"}
REMEDY = r"(?s)(?=.*`?init`?)(?=.*get_rprop_state).*split"


def after(optimizer, state, *grads):
    """The state after these gradients, by a compiled update."""
    update = jax.jit(optimizer.update)
    for grad in grads:
        _, state = update(grad * ONES, state, value=1.0)
    return state


@pytest.mark.parametrize("state_layout", ["packed", "byte"])
def test_other_factors_are_obeyed_or_refused(state_layout):
    """Refused by a byte anywhere, because its levels are powers of the old ones."""
    options = BOUNDS | {"state_layout": state_layout}
    old, new = (
        optax_rprop.scale_by_rprop(1.0, **factors, **options)
        for factors in (THIRD, TWO)
    )
    state = after(old, old.init(ONES), 1, 1)
    if state_layout == "byte":
        # As most libraries restore it, and as a tracer.
        restored = jax.tree.map(np.asarray, state)
        for over in (lambda update: update, jax.jit):
            with pytest.raises(ValueError, match=REMEDY):
                over(new.update)(ONES, restored)
        wrapped = [optax.chain(optax.clip(1.0), each) for each in (old, new)]
        with pytest.raises(ValueError, match=REMEDY):
            wrapped[1].update(ONES, wrapped[0].init(ONES))
        # Equal up to rounding is the same.
        same = optax_rprop.scale_by_rprop(1.0, eta_plus=1 / 0.5 ** (1 / 3), **options)
        same.update(ONES, state)
        # What the message says.
        new = optax_rprop.scale_by_rprop(1.0, **TWO, **BOUNDS)
        state = optax_rprop.get_rprop_state(state)
    for grad, expected in ((1, 2 ** (4 / 3)), (-1, 2 ** (1 / 3))):
        state = after(new, state, grad)
        step_size = optax_rprop.get_rprop_state(state).step_sizes
        np.testing.assert_allclose(step_size, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("start", "lower", "upper", "held"),
    [
        (2.0**-2, 2.0**-2, 2.0**2, True),
        # Within and beyond the spare levels of a byte.
        (1.0, 2.0**-20, 2.0**20, True),
        (1.0, 2.0**-20, 2.0**50, False),
        (2.0**60, 2.0**50, 2.0**70, False),
    ],
)
def test_other_bounds_are_obeyed_refused_or_clipped(start, lower, upper, held):
    """By a byte, whose levels end: refused if known, otherwise clipped to them."""
    old = optax_rprop.scale_by_rprop(1.0, **TWO, **BOUNDS, **BYTE)
    new = optax_rprop.scale_by_rprop(
        start, **TWO, min_step_size=lower, **BYTE, max_step_size=upper
    )
    state = old.init(ONES)
    if held:
        new.update(ONES, state)
    else:
        with pytest.raises(ValueError, match=REMEDY):
            new.update(ONES, state)
    state = after(new, state, *[1] * 50)
    step_size = optax_rprop.get_rprop_state(state).step_sizes[0]
    assert step_size == (upper if held else 2.0**42)


@pytest.mark.parametrize("grads", [[1] * 60, [1, -1] * 60], ids=["upper", "lower"])
def test_traced_bounds_beyond_the_packed_range_are_clipped(grads):
    """Bounds beyond the range must not be read back as other numbers."""
    options = {"variant": "rprop-", "state_layout": "packed"}

    @jax.jit
    def run(*bounds):
        optimizer = optax_rprop.scale_by_rprop(1.0, 0.25, 2.0, *bounds, **options)
        return play(optimizer, jnp.float32(grads), jnp.float32(grads)).step_sizes

    step_sizes = np.asarray(run(0.0, 1e30))
    assert step_sizes[-1] == (2.0**41 if len(grads) == 60 else 2.0**-42)
    # Up to the limit, all in one direction.
    assert len({-1, 1} & set(np.sign(np.diff(step_sizes)).tolist())) == 1
