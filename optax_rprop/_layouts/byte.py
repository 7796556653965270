"""The layout ``"byte"``: step size and code in one byte, without quantization.

If both factors are powers of one base, ``eta_plus = base**up`` and ``eta_minus =
base**-down``, every step size is the initial one times a power of the base, and its
exponent is all that has to be kept.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._layouts.interface import Fields, HyperParams, Layout, memory_dtype
from optax_rprop._rule import Decision, IRpropPlus, Mark, RpropPlus
from optax_rprop._validation import concrete_number

_LARGEST_DENOMINATOR = 16
# A bound counts as a level if it is one but for rounding.
_SLACK = 1e-4


class _Capacity(NamedTuple):
    """How a byte is divided: codes from -most to most, and so many levels for each."""

    most: int
    levels: int


def _capacity(variant: Mark) -> _Capacity:
    takes_back = isinstance(variant, RpropPlus | IRpropPlus)
    return _Capacity(2, 51) if takes_back else _Capacity(1, 85)


class Lattice(NamedTuple):
    """The step sizes that a byte can name; all of them scalars.

    Level n stands for the step size ``unit * base**(n - unit_level)``.

    Attributes:
      unit: The initial step size, in units of the parameters, float.
      unit_level: Its level, int32.
      log2_base: The binary logarithm of the base, float.
    """

    unit: jax.Array
    unit_level: jax.Array
    log2_base: jax.Array


class ByteRpropState(NamedTuple):
    """State of Rprop with ``state_layout="byte"``: one byte per parameter.

    `get_rprop_state` reads it back as the plain `RpropState`.

    Attributes:
      codes: Pytree of the parameters' structure, shapes and shardings, dtype uint8.
        With the remembered sign p, -1, 0 or 1, the level of the step size plus
        85 * (p + 1). For the variants that take updates back it is the level plus
        51 * (p + 2), where 2 or -2 is twice the sign of an update that was just
        taken back.
      lattice: What the levels stand for, a `Lattice`.
      prev_value: As in `RpropState`.
      variant: As in `RpropState`.
    """

    codes: Any
    lattice: Lattice
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


class _Prepared(NamedTuple):
    hyperparams: HyperParams
    variant: Mark
    log2_base: float
    up: int
    down: int


class _Context(NamedTuple):
    lattice: Lattice
    variant: Mark
    up: Any
    down: Any
    lowest: jax.Array
    highest: jax.Array


def _bounds_that_fit(
    unit: float, lower: float, upper: float, log2_base: float, levels: int
) -> tuple[float, float] | None:
    """Narrower bounds of the step sizes, if there are too many levels within these."""
    lowest, highest = (
        math.log2(max(bound, 1e-45) / unit) / log2_base for bound in (lower, upper)
    )
    # Powers of two must be normal in float32.
    last = min(levels - 1, math.floor(126 / log2_base))
    if math.floor(highest + _SLACK) - math.ceil(lowest - _SLACK) <= last:
        return None
    lowest = min(max(lowest, highest - last), 0)
    highest = min(highest, lowest + last)
    return unit * 2 ** (lowest * log2_base), unit * 2 ** (highest * log2_base)


def _prepare(hyperparams: HyperParams, variant: Mark) -> _Prepared:
    _, levels = _capacity(variant)
    unit, shrink, grow, lower, upper = (
        concrete_number(name, number) for name, number in hyperparams._asdict().items()
    )
    if shrink is None or grow is None:
        raise TypeError(
            "eta_minus and eta_plus must be Python numbers with"
            ' state_layout="byte", got a JAX array. With optax.inject_hyperparams,'
            ' pass static_args=("eta_minus", "eta_plus").'
        )

    def bounds_that_fit(down: int) -> tuple[float, float] | None:
        if unit is None or lower is None or upper is None:
            return None
        return _bounds_that_fit(unit, lower, upper, -math.log2(shrink) / down, levels)

    exact = math.log(grow) / -math.log(shrink)
    ratio = Fraction(exact).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(ratio / exact - 1) > 1e-6:
        candidates = [
            Fraction(max(round(exact * down), 1), down)
            for down in range(1, _LARGEST_DENOMINATOR + 1)
            if down == 1 or not bounds_that_fit(down)
        ]
        nearest = min(candidates, key=lambda candidate: abs(candidate - exact))
        raise ValueError(
            "eta_minus and eta_plus must be powers of one base with"
            f' state_layout="byte", got {shrink} and {grow}. The nearest that fit are'
            f" eta_minus={shrink} and eta_plus={shrink}**-({nearest}), about"
            f" {shrink ** -float(nearest):.4g}."
        )
    up, down = ratio.numerator, ratio.denominator
    fitting = bounds_that_fit(down)
    if fitting:
        raise ValueError(
            f"min_step_size and max_step_size must be at most {levels} levels apart"
            f' with this variant and state_layout="byte", got {lower} and {upper}.'
            f" With these factors, min_step_size={fitting[0]:.6g} and"
            f' max_step_size={fitting[1]:.6g} fit; state_layout="packed" has no such'
            " limit."
        )
    return _Prepared(hyperparams, variant, -math.log2(shrink) / down, up, down)


@jax.jit
def _level_bounds(
    unit: jax.Array, numbers: HyperParams, log2_base: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest level within the bounds, counted from the unit's."""
    tiny = jnp.finfo(unit.dtype).tiny
    farthest = 126 / jnp.asarray(log2_base, unit.dtype)
    lowest, highest = (
        jnp.clip(
            jnp.log2(jnp.maximum(jnp.asarray(bound, unit.dtype), tiny) / unit)
            / jnp.asarray(log2_base, unit.dtype),
            -farthest,
            farthest,
        )
        for bound in (numbers.min_step_size, numbers.max_step_size)
    )
    levels = jnp.ceil(lowest - _SLACK), jnp.floor(highest + _SLACK)
    return levels[0].astype(jnp.int32), levels[1].astype(jnp.int32)


def _lattice(prepared: _Prepared) -> Lattice:
    dtype = jnp.result_type(float)
    unit = jnp.asarray(prepared.hyperparams.learning_rate, dtype)
    lowest, highest = _level_bounds(unit, prepared.hyperparams, prepared.log2_base)
    _, levels = _capacity(prepared.variant)
    # Levels that are to spare are for bounds that are changed later. Bounds that are
    # arrays may also be too far apart, and then both give way.
    spare = levels - 1 - (highest - lowest)
    below = jnp.where(
        spare >= 0, -lowest + spare // 2, jnp.minimum(-lowest, levels // 2)
    )
    return Lattice(unit, below, jnp.asarray(prepared.log2_base, dtype))


def _init(param: Any, prepared: _Prepared) -> Fields:
    level = _lattice(prepared).unit_level
    code = _encode(level, jnp.zeros_like(level), prepared.variant)
    return (jnp.full_like(param, code, dtype=jnp.uint8),)


def _bind(state: ByteRpropState, prepared: _Prepared) -> _Context:
    lattice = state.lattice
    _, levels = _capacity(state.variant)
    lowest, highest = (
        jnp.clip(level + lattice.unit_level, 0, levels - 1)
        for level in _level_bounds(
            lattice.unit, prepared.hyperparams, prepared.log2_base
        )
    )
    return _Context(lattice, state.variant, prepared.up, prepared.down, lowest, highest)


def _encode(level: jax.Array, codes: jax.Array, variant: Mark) -> jax.Array:
    most, levels = _capacity(variant)
    # The last operation has two operands of full size: XLA would make one of a single
    # operand again for each of its readers, and with it all that comes before.
    return level.astype(jnp.uint8) + (codes + most).astype(jnp.uint8) * np.uint8(levels)


def _decode(fields: Fields, variant: Mark) -> tuple[jax.Array, jax.Array]:
    """Levels, int32, and codes, int8."""
    (stored,) = fields
    most, levels = _capacity(variant)
    level, codes = stored, jnp.full_like(stored, most, dtype=jnp.int8)
    for zone in range(2 * most, 0, -1):
        start = np.uint8(zone * levels)
        # What lies below the start of a zone becomes a large number.
        level = jax.lax.min(level, stored - start)
        below = jnp.full_like(codes, zone - 1 - most)
        codes = jax.lax.select(stored < start, below, codes)
    return level.astype(jnp.int32), codes


def _codes(fields: Fields, context: _Context) -> jax.Array:
    return _decode(fields, context.variant)[1]


def _advance(fields: Fields, decision: Decision, context: _Context) -> Fields:
    level, _ = _decode(fields, context.variant)
    change = jnp.where(decision.shrink, -context.down, 0)
    change = jnp.where(decision.grow, context.up, change)
    new_level = jax.lax.clamp(context.lowest, level + change, context.highest)
    if decision.take_back is not None:
        new_level = jax.lax.select(decision.take_back, level, new_level)
    return (_encode(new_level, decision.codes, context.variant),)


def _step_sizes(level: jax.Array, lattice: Lattice, dtype: Any) -> jax.Array:
    exponent = (level - lattice.unit_level).astype(dtype) * lattice.log2_base.astype(
        dtype
    )
    # Powers of two are exact, and the rest is near 1: errors do not grow with levels.
    whole = jnp.round(exponent)
    rest = jnp.exp((exponent - whole) * jnp.asarray(math.log(2), dtype))
    bits = jnp.finfo(dtype)
    integer = jnp.int32 if bits.bits == 32 else jnp.int64
    biased = whole.astype(integer) + (bits.maxexp - 1)
    power = jax.lax.bitcast_convert_type(biased << bits.nmant, dtype)
    return lattice.unit.astype(dtype) * rest * power


def _moves(fields: Fields, context: _Context, dtype: Any) -> jax.Array:
    level, codes = _decode(fields, context.variant)
    step_sizes = _step_sizes(level, context.lattice, memory_dtype(dtype))
    backward = (codes == -1) | (codes == 2)
    moves = jax.lax.select(backward, -step_sizes, step_sizes)
    return jax.lax.select(codes == 0, jnp.zeros_like(moves), moves).astype(dtype)


def _read(fields: Fields, state: ByteRpropState) -> tuple[jax.Array, jax.Array]:
    def read(stored: jax.Array, lattice: Lattice) -> tuple[jax.Array, jax.Array]:
        level, codes = _decode((stored,), state.variant)
        return _step_sizes(level, lattice, jnp.result_type(float)), codes

    # The state of many models at once has a lattice for each.
    vectorized: Any = read
    for _ in range(state.lattice.unit.ndim):
        vectorized = jax.vmap(vectorized)
    return vectorized(*fields, state.lattice)


LAYOUT = Layout(
    state_type=ByteRpropState,
    parameter_fields=("codes",),
    prepare=_prepare,
    shared_fields=lambda prepared: {"lattice": _lattice(prepared)},
    init=_init,
    bind=_bind,
    codes=_codes,
    advance=_advance,
    moves=_moves,
    read=_read,
)
