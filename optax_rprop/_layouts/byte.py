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
from optax_rprop._rule import Decision, Mark
from optax_rprop._validation import concrete_number

_LARGEST_DENOMINATOR = 16
# A bound counts as a level if it is one but for rounding.
_SLACK = 1e-4


class _Capacity(NamedTuple):
    """How a byte is divided: codes from -most to most, and so many levels for each."""

    most: int
    levels: int


# The rules that take updates back need five codes, the others three. As many bits as
# the levels have tell the two apart.
_CAPACITIES = {6: _Capacity(2, 51), 7: _Capacity(1, 85)}


class Lattice(NamedTuple):
    """The step sizes that a byte can name.

    Level n stands for the step size ``unit * base**(n - unit_level)``.

    Attributes:
      unit: The initial step size, in units of the parameters, shape (), float.
      unit_level: Its level, shape (), int32.
      powers: The base to the powers 1, 2, 4 and so on, float, of shape (7,) for 85
        levels, or, for the variants that take updates back, (6,) for 51.
    """

    unit: jax.Array
    unit_level: jax.Array
    powers: jax.Array


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
    up: int
    down: int
    powers: np.ndarray


class _Context(NamedTuple):
    lattice: Lattice
    up: Any
    down: Any
    lowest: jax.Array
    highest: jax.Array


def _bounds_that_fit(
    unit: float, lower: float, upper: float, base: float, bits: int
) -> tuple[float, float] | None:
    """Narrower bounds of the step sizes, if there are too many levels within these."""
    lowest, highest = (
        math.log(max(bound, 1e-45) / unit, base) for bound in (lower, upper)
    )
    last = _CAPACITIES[bits].levels - 1
    if math.floor(highest + _SLACK) - math.ceil(lowest - _SLACK) <= last:
        return None
    lowest = min(max(lowest, highest - last), 0)
    return unit * base**lowest, unit * base ** min(highest, lowest + last)


def _prepare(hyperparams: HyperParams, takes_back: bool) -> _Prepared:
    bits = 6 if takes_back else 7
    unit, shrink, grow, lower, upper = (
        concrete_number(name, number) for name, number in hyperparams._asdict().items()
    )
    if shrink is None or grow is None:
        raise TypeError(
            "eta_minus and eta_plus must be Python numbers with"
            ' state_layout="byte", got a JAX array. With optax.inject_hyperparams,'
            ' pass static_args=("eta_minus", "eta_plus").'
        )
    known = (unit, lower, upper) if unit and lower is not None and upper else None
    exact = math.log(grow) / -math.log(shrink)
    ratio = Fraction(exact).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(ratio / exact - 1) > 1e-6:
        candidates = [
            Fraction(max(round(exact * down), 1), down)
            for down in range(1, _LARGEST_DENOMINATOR + 1)
            if down == 1
            or not (known and _bounds_that_fit(*known, shrink ** (-1 / down), bits))
        ]
        nearest = min(candidates, key=lambda candidate: abs(candidate - exact))
        raise ValueError(
            "eta_minus and eta_plus must be powers of one base with"
            f' state_layout="byte", got {shrink} and {grow}. The nearest that fit are'
            f" eta_minus={shrink} and eta_plus={shrink}**-({nearest}), about"
            f" {shrink ** -float(nearest):.4g}."
        )
    base = shrink ** (-1 / ratio.denominator)
    fitting = known and _bounds_that_fit(*known, base, bits)
    if fitting:
        raise ValueError(
            "min_step_size and max_step_size must be at most"
            f" {_CAPACITIES[bits].levels} levels apart with this variant and"
            f' state_layout="byte", got {lower} and {upper}. With these factors,'
            f" min_step_size={fitting[0]:.6g} and max_step_size={fitting[1]:.6g} fit;"
            ' state_layout="packed" has no such limit.'
        )
    # In the bits that no level within the range of float32 has, anything will do.
    powers = np.exp2(np.minimum(np.log2(base) * 2.0 ** np.arange(bits), 127))
    return _Prepared(hyperparams, ratio.numerator, ratio.denominator, powers)


@jax.jit
def _level_bounds(
    unit: jax.Array, numbers: HyperParams, base: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest level within the bounds, counted from the unit's."""
    tiny = jnp.finfo(unit.dtype).tiny
    lowest, highest = (
        jnp.log(jnp.maximum(jnp.asarray(bound, unit.dtype), tiny) / unit)
        / jnp.log(base)
        for bound in (numbers.min_step_size, numbers.max_step_size)
    )
    levels = jnp.ceil(lowest - _SLACK), jnp.floor(highest + _SLACK)
    return levels[0].astype(jnp.int32), levels[1].astype(jnp.int32)


def _lattice(prepared: _Prepared) -> Lattice:
    dtype = jnp.result_type(float)
    unit = jnp.asarray(prepared.hyperparams.learning_rate, dtype)
    powers = jnp.asarray(prepared.powers, dtype)
    lowest, highest = _level_bounds(unit, prepared.hyperparams, powers[0])
    levels = _CAPACITIES[len(powers)].levels
    # Levels that are to spare are for bounds that are changed later. Bounds that are
    # arrays may also be too far apart, and then both give way.
    spare = levels - 1 - (highest - lowest)
    below = jnp.where(
        spare >= 0, -lowest + spare // 2, jnp.minimum(-lowest, levels // 2)
    )
    return Lattice(unit, below, powers)


def _init(param: Any, prepared: _Prepared) -> Fields:
    lattice = _lattice(prepared)
    code = _encode(lattice.unit_level, jnp.zeros_like(lattice.unit_level), lattice)
    return (jnp.full_like(param, code, dtype=jnp.uint8),)


def _bind(state: ByteRpropState, prepared: _Prepared) -> _Context:
    lattice = state.lattice
    levels = _CAPACITIES[len(lattice.powers)].levels
    lowest, highest = (
        jnp.clip(level + lattice.unit_level, 0, levels - 1)
        for level in _level_bounds(
            lattice.unit, prepared.hyperparams, lattice.powers[0]
        )
    )
    return _Context(lattice, prepared.up, prepared.down, lowest, highest)


def _encode(level: jax.Array, codes: jax.Array, lattice: Lattice) -> jax.Array:
    most, levels = _CAPACITIES[len(lattice.powers)]
    # The last operation has two operands of full size: XLA would make one of a single
    # operand again for each of its readers, and with it all that comes before.
    return level.astype(jnp.uint8) + (codes + most).astype(jnp.uint8) * np.uint8(levels)


def _decode(fields: Fields, lattice: Lattice) -> tuple[jax.Array, jax.Array]:
    """Levels and codes, int32."""
    stored = fields[0].astype(jnp.int32)
    most, levels = _CAPACITIES[len(lattice.powers)]
    level, codes = stored - 2 * most * levels, jnp.full_like(stored, most)
    # Selected one by one: a sum of comparisons takes three times as long on CPU.
    for zone in range(2 * most, 0, -1):
        lower = stored < zone * levels
        level = jnp.where(lower, stored - (zone - 1) * levels, level)
        codes = jnp.where(lower, zone - 1 - most, codes)
    return level, codes


def _codes(fields: Fields, context: _Context) -> jax.Array:
    return _decode(fields, context.lattice)[1]


def _advance(fields: Fields, decision: Decision, context: _Context) -> Fields:
    level, _ = _decode(fields, context.lattice)
    change = jnp.where(decision.shrink, -context.down, 0)
    change = jnp.where(decision.grow, context.up, change)
    new_level = jnp.clip(level + change, context.lowest, context.highest)
    if decision.take_back is not None:
        new_level = jnp.where(decision.take_back, level, new_level)
    return (_encode(new_level, decision.codes, context.lattice),)


def _step_sizes(level: jax.Array, lattice: Lattice, dtype: Any) -> jax.Array:
    exponent = level - lattice.unit_level
    distance = jnp.abs(exponent)
    unit = lattice.unit.astype(dtype)
    # A product by bits is exact for the unit itself and for powers of two, and the
    # same on every backend, as an exponential is not.
    power = jnp.ones_like(level, dtype=dtype)
    for bit, factor in enumerate(lattice.powers.astype(dtype)):
        power = jnp.where(distance & (1 << bit) != 0, power * factor, power)
    return jnp.where(exponent < 0, unit / power, unit * power)


def _moves(fields: Fields, context: _Context, dtype: Any) -> jax.Array:
    level, codes = _decode(fields, context.lattice)
    step_sizes = _step_sizes(level, context.lattice, memory_dtype(dtype))
    moves = jnp.where((codes == -1) | (codes == 2), -step_sizes, step_sizes)
    return jnp.where(codes == 0, jnp.zeros_like(moves), moves).astype(dtype)


def _read(fields: Fields, state: ByteRpropState) -> tuple[jax.Array, jax.Array]:
    def read(stored: jax.Array, lattice: Lattice) -> tuple[jax.Array, jax.Array]:
        level, codes = _decode((stored,), lattice)
        return _step_sizes(level, lattice, jnp.result_type(float)), codes

    # The state of many models at once has a lattice for each.
    for _ in range(state.lattice.unit.ndim):
        read = jax.vmap(read)
    return read(*fields, state.lattice)


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
