"""The layout ``"byte"``: step size and code in one byte, without quantization.

If both factors are powers of one base, ``eta_plus = base**up`` and ``eta_minus =
base**-down``, every step size is the initial one times a power of the base, and its
exponent is all that has to be kept.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._layouts.interface import Fields, Layout, memory_dtype, update_of
from optax_rprop._layouts.lattice import (
    Lattice,
    Prepared,
    capacity,
    level_bounds,
    make_lattice,
    prepare,
)
from optax_rprop._rule import Decision, Mark


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


class _Context(NamedTuple):
    lattice: Lattice
    variant: Mark
    up: Any
    down: Any
    lowest: jax.Array
    highest: jax.Array


def _init(param: Any, prepared: Prepared, shared: dict[str, Any]) -> Fields:
    level = shared["lattice"].unit_level
    code = _encode(level, jnp.zeros_like(level), prepared.variant)
    return (jnp.full_like(param, code, dtype=jnp.uint8),)


def _bind(state: ByteRpropState, prepared: Prepared) -> _Context:
    lattice = state.lattice
    _, levels = capacity(state.variant)
    lowest, highest = (
        jnp.clip(level + lattice.unit_level, 0, levels - 1)
        for level in level_bounds(
            lattice.unit, prepared.hyperparams, prepared.log2_base
        )
    )
    return _Context(lattice, state.variant, prepared.up, prepared.down, lowest, highest)


def _encode(level: jax.Array, codes: jax.Array, variant: Mark) -> jax.Array:
    most, levels = capacity(variant)
    # The last operation has two operands of full size: XLA would make one of a single
    # operand again for each of its readers, and with it all that comes before.
    return level.astype(jnp.uint8) + (codes + most).astype(jnp.uint8) * np.uint8(levels)


def _decode(fields: Fields, variant: Mark) -> tuple[jax.Array, jax.Array]:
    """Levels, int32, and codes, int8."""
    (stored,) = fields
    most, levels = capacity(variant)
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
    return update_of(step_sizes, codes, dtype)


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
    prepare=prepare,
    shared_fields=lambda prepared: {"lattice": make_lattice(prepared)},
    init=_init,
    bind=_bind,
    codes=_codes,
    advance=_advance,
    moves=_moves,
    read=_read,
    spacing=lambda state: jnp.max(jnp.exp2(state.lattice.log2_base)),
    write=None,
)
