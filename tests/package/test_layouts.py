"""Each layout against "split", from every state that it can hold.

A layout only stores. So if one step from every state is that of "split", and the rule
of "split" is right, it is right for every run of every variant.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import FLOATS, UNDOING, assert_identical, each_variant

import optax_rprop

GRADS = (-3.0, 0.0, 5.0, np.nan)
# The loss falls, rises, and leaves the domain.
LOSSES = (0.5, 2.0, np.nan)
# A byte is exact where its base is a power of two.
FACTORS = {"packed": (0.3, 1.2), "byte": (0.25, 2.0)}


def every_byte(variant):
    """What all bytes but 255 stand for, as `ByteRpropState` has it."""
    most, levels = (2, 51) if variant in UNDOING else (1, 85)
    stored = np.arange(255)
    return 2.0 ** (stored % levels - levels // 2), stored // levels - most, stored


def packed_floats(variant):
    """Each exponent with three significands, as `PackedRpropState` has it."""
    most = 2 if variant in UNDOING else 1
    grid = itertools.product(
        np.float32([1.0, 1.3, 1.9]), range(-42, 42), range(-most, most + 1)
    )
    significands, exponents, codes = map(np.array, zip(*grid, strict=True))
    # The last of them is the largest bound that the layout has.
    step_sizes = np.minimum(significands * 2.0**exponents, 2.0**41)
    bands = np.array([2.0**-84, 1.0, 2.0**84])[np.abs(codes)]
    return step_sizes, codes, np.where(codes < 0, -1, 1) * step_sizes * bands


STATES = {"packed": packed_floats, "byte": every_byte}
FIELDS = {"packed": "signed_step_sizes", "byte": "codes"}


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
        """What "split" makes of a state, and what this layout does."""
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
    assert_identical(jax.jit(optax_rprop.get_rprop_state)(state), plain)

    # A byte holds a bound between levels as the next level within.
    for bounds in ((lowest, highest), (2.0**-7, 2.0**9)):
        for value in LOSSES if variant == "irprop+" else LOSSES[:1]:
            expected, actual = step(plain, state, value, *bounds)
            assert_identical(actual, expected)


@pytest.mark.stack
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@each_variant
@pytest.mark.parametrize("state_layout", STATES)
def test_one_step_from_every_state(state_layout, variant, skip):
    """Bit for bit as in "split", whatever gradient, loss and bounds come."""
    check_one_step(state_layout, variant, skip, ("float32",))


@pytest.mark.stack
@pytest.mark.parametrize("state_layout", STATES)
def test_one_step_in_every_dtype(x64, state_layout):
    """The same in a tree of all dtypes; of irprop+, which does all there is."""
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
