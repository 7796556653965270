"""The layout ``"byte"``: step size and code in one byte, without quantization.

If both factors are powers of one base, ``eta_plus = base**up`` and ``eta_minus =
base**-down``, every step size is the initial one times a power of the base, and its
exponent is all that has to be stored. Per-parameter initial step sizes are rounded to
such a power times one number.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._hyperparams import HyperParams
from optax_rprop._layouts.lattice import (
    Base,
    Lattice,
    check_byte,
    check_lattice,
    level_bounds,
    levels_of,
    log2_base_of,
    make_lattice,
    nearest_level,
)
from optax_rprop._layouts.layout import (
    Fields,
    Layout,
    Memory,
    filled_like,
    memory_dtype,
    narrowed,
)
from optax_rprop._rule import VARIANTS, Decision, Mark, Rule, last_update, variant_of


class ByteRpropState(NamedTuple):
    """State of Rprop with ``state_layout="byte"``: one byte per parameter.

    `get_rprop_state` converts it to a plain `RpropState`.

    Attributes:
      codes: Pytree with the structure, shapes and shardings of the parameters, dtype
        uint8, or int8 with the same bits where step sizes are float64. With the
        remembered sign p, -1, 0 or 1, the level of the step size plus 85 * (p + 1).
        For the variants that undo updates, it is the level plus 51 * (p + 2), where 2
        or -2 is twice the sign of an update that was just undone.
      lattice: The step sizes that the levels stand for, a `Lattice`.
      prev_value: As in `RpropState`.
      variant: As in `RpropState`.
    """

    codes: Any
    lattice: Lattice
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


def _most(rule: Rule) -> int:
    """The largest code of a rule."""
    return 2 if rule.undoes else 1


def _encode(
    level: jax.Array, codes: jax.Array, rule: Rule, dtype: jax.typing.DTypeLike
) -> jax.Array:
    # The last operation has two operands of full size: XLA would make one of a single
    # operand again for each operation that reads it, and with it all that comes before.
    zones = (codes + _most(rule)).astype(jnp.uint8) * np.uint8(levels_of(rule))
    return _as_byte(level.astype(jnp.uint8) + zones, dtype)


def _decode(fields: Fields, rule: Rule) -> Memory:
    """Levels, int32, and codes, int8."""
    most = _most(rule)
    stored = _as_byte(fields[0], np.uint8)
    level, codes = stored, jnp.full_like(stored, most, dtype=jnp.int8)
    for zone in range(2 * most, 0, -1):
        start = np.uint8(zone * levels_of(rule))
        # What lies below the start of a zone becomes a large number.
        level = jax.lax.min(level, stored - start)
        below = jnp.full_like(codes, zone - 1 - most)
        codes = jax.lax.select(stored < start, below, codes)
    return level.astype(jnp.int32), codes


def _as_byte(stored: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    if stored.dtype == dtype:
        return stored
    return jax.lax.bitcast_convert_type(stored, dtype)


def _step_sizes(
    level: jax.Array, lattice: Lattice, dtype: jax.typing.DTypeLike
) -> jax.Array:
    log2_base = jnp.asarray(log2_base_of(lattice), dtype)
    exponent = (level - lattice.unit_level).astype(dtype) * log2_base
    # Powers of two are exact, and the rest is near 1: errors do not grow with levels.
    whole = jnp.round(exponent)
    rest = jnp.exp((exponent - whole) * jnp.asarray(math.log(2), dtype))
    bits = jnp.finfo(dtype)
    integer = jnp.int32 if bits.bits == 32 else jnp.int64
    biased = whole.astype(integer) + (bits.maxexp - 1)
    power = jax.lax.bitcast_convert_type(biased << bits.nmant, dtype)
    return lattice.unit.astype(dtype) * rest * power


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Byte(Layout):
    """Bound to a lattice, and to the lowest and highest level within the bounds."""

    state_type = ByteRpropState
    tree_names = ("codes",)
    holds_any = False
    lattice: Lattice
    lowest: jax.Array
    highest: jax.Array
    base: Base = dataclasses.field(metadata={"static": True})

    @classmethod
    def fitted(cls, numbers: HyperParams, rule: Rule) -> HyperParams:
        check_byte(numbers, levels_of(rule))
        return numbers

    @classmethod
    def bound(cls, numbers: HyperParams, rule: Rule, state: Any = None) -> Self:
        levels = levels_of(rule)
        base = check_byte(numbers, levels)
        if state is None:
            lattice = make_lattice(numbers, base, levels)
        else:
            lattice = state.lattice
            check_lattice(lattice, numbers, base, levels)
        lowest, highest = (
            jnp.clip(level + lattice.unit_level, 0, levels - 1)
            for level in level_bounds(lattice.unit, numbers, base.log2)
        )
        return cls(numbers, rule, lattice, lowest, highest, base)

    def shared_fields(self) -> dict[str, Any]:
        return {"lattice": self.lattice}

    def init(self, param: Any, step_size: float | jax.Array) -> Fields:
        level = nearest_level(self.lattice, step_size)
        level = jax.lax.clamp(self.lowest, level, self.highest)
        is_double = memory_dtype(param) == jnp.float64
        dtype = jnp.int8 if is_double else jnp.uint8
        code = _encode(level, jnp.zeros_like(level), self.rule, dtype)
        return (filled_like(param, code, dtype),)

    def codes(self, fields: Fields) -> jax.Array:
        return _decode(fields, self.rule)[1]

    def advance(self, fields: Fields, decision: Decision) -> Fields:
        level, _ = _decode(fields, self.rule)
        change = jnp.where(decision.shrink, -self.base.down, 0)
        change = jnp.where(decision.grow, self.base.up, change)
        new_level = jax.lax.clamp(self.lowest, level + change, self.highest)
        if decision.undo is not None:
            new_level = jax.lax.select(decision.undo, level, new_level)
        return (_encode(new_level, decision.new_codes, self.rule, fields[0].dtype),)

    def updates(self, fields: Fields, dtype: jax.typing.DTypeLike) -> jax.Array:
        level, codes = _decode(fields, self.rule)
        step_sizes = _step_sizes(level, self.lattice, memory_dtype(dtype))
        return narrowed(last_update(codes, step_sizes, self.rule), dtype)

    @classmethod
    def read(cls, fields: Fields, state: Any) -> Memory:
        rule = VARIANTS[variant_of(state.variant)]

        def read(stored: jax.Array, lattice: Lattice) -> Memory:
            level, codes = _decode((stored,), rule)
            dtype = jnp.float64 if stored.dtype == jnp.int8 else jnp.float32
            return _step_sizes(level, lattice, dtype), codes

        # The state of many models at once has a lattice for each.
        vectorized: Any = read
        for _ in range(state.lattice.unit.ndim):
            vectorized = jax.vmap(vectorized)
        return vectorized(*fields, state.lattice)

    @classmethod
    def spacing(cls, state: Any) -> float:
        return 2 ** log2_base_of(state.lattice)
