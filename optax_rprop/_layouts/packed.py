"""The layout ``"packed"``: step size and code in one float.

Its magnitude lies in one of three bands, which tell the code's magnitude: the step
size times 2**-84 (0), the step size itself (1), or times 2**84 (2). Its sign is that
of the code. A power of two scales without rounding, and the bands of a step size
between 2**-42 and 2**42 are normal in float32 and cannot overlap.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._hyperparams import HyperParams
from optax_rprop._layouts.layout import (
    Fields,
    Layout,
    Memory,
    adapt,
    as_step_size,
    filled_like,
    memory_dtype,
    narrowed,
)
from optax_rprop._rule import Decision, Mark, Rule, was_undone

_SMALLEST, _LARGEST = 2.0**-42, 2.0**42
_DOWN, _UP = 2.0**-84, 2.0**84


class PackedRpropState(NamedTuple):
    """State of Rprop with ``state_layout="packed"``: one array per parameter.

    `get_rprop_state` converts it to a plain `RpropState`;
    ``optax.tree.get(state, "step_sizes")`` finds nothing here and returns None.

    Attributes:
      signed_step_sizes: Pytree of the parameters' structure, shapes and
        shardings, in the dtype that the step sizes have in `RpropState`. The
        sign is the remembered sign and the magnitude the step size; a
        remembered 0 is kept as the step size times 2**-84, and an update that
        was just undone as its sign times the step size times 2**84.
      prev_value: As in `RpropState`.
      variant: As in `RpropState`.
    """

    signed_step_sizes: Any
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


def _clipped(number: float | jax.Array) -> float | jax.Array:
    # Numbers have been checked. Arrays have not: outside of the range, what is stored
    # would be read back as something else, such as a tiny step size as a huge one.
    if isinstance(number, jax.Array):
        number = number.astype(jnp.result_type(float))
        return jnp.clip(number, _SMALLEST, _LARGEST / 2)
    return number


# A rule that never undoes has no use for the uppermost band, and its steps compile
# faster without.


def _codes(signed: jax.Array, *, undoes: bool) -> jax.Array:
    magnitudes = jnp.abs(signed)
    codes = ones = jnp.ones_like(signed)
    if undoes:
        codes = jax.lax.select(magnitudes < _LARGEST, ones, ones + ones)
    codes = jax.lax.select(magnitudes < _SMALLEST, jnp.zeros_like(codes), codes)
    return jax.lax.select(signed < 0, -codes, codes)


def _step_sizes(signed: jax.Array, *, undoes: bool) -> jax.Array:
    step_sizes = magnitudes = jnp.abs(signed)
    if undoes:
        scaled = magnitudes * _DOWN
        step_sizes = jax.lax.select(magnitudes < _LARGEST, magnitudes, scaled)
    return jax.lax.select(magnitudes < _SMALLEST, magnitudes * _UP, step_sizes)


def _encode(memory: Memory, *, undoes: bool) -> Fields:
    step_sizes, codes = memory
    signed = jax.lax.select(codes < 0, -step_sizes, step_sizes)
    signed = jax.lax.select(codes == 0, step_sizes * _DOWN, signed)
    if undoes:
        signed = jax.lax.select(was_undone(codes), signed * _UP, signed)
    return (signed,)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed(Layout):
    """Bound to the hyper-parameters and the rule."""

    state_type = PackedRpropState
    tree_names = ("signed_step_sizes",)

    @classmethod
    def fitted(cls, numbers: HyperParams, rule: Rule) -> HyperParams:
        del rule
        for name in ("min_step_size", "learning_rate"):
            number = getattr(numbers, name)
            if isinstance(number, float) and number < _SMALLEST:
                raise ValueError(
                    f"{name} must be at least 2**-42 (about {_SMALLEST:.2g}) with"
                    f' state_layout="packed", got {number}. Raise it, or use'
                    ' state_layout="split".'
                )
        upper = numbers.max_step_size
        # In float32, a number just below may be equal.
        if isinstance(upper, float) and np.float32(upper) >= _LARGEST:
            raise ValueError(
                f"max_step_size must be less than 2**42 (about {_LARGEST:.2g}) with"
                f' state_layout="packed", got {upper}. Lower it, or use'
                ' state_layout="split".'
            )
        return numbers._replace(
            learning_rate=_clipped(numbers.learning_rate),
            min_step_size=_clipped(numbers.min_step_size),
            max_step_size=_clipped(numbers.max_step_size),
        )

    def init(self, param: Any, step_size: float | jax.Array) -> Fields:
        dtype = memory_dtype(param)
        step_sizes = as_step_size(step_size, dtype)
        return (filled_like(param, step_sizes * jnp.asarray(_DOWN, dtype), dtype),)

    def codes(self, fields: Fields) -> jax.Array:
        return _codes(*fields, undoes=self.rule.undoes)

    def advance(self, fields: Fields, decision: Decision) -> Fields:
        undoes = self.rule.undoes
        step_sizes = _step_sizes(*fields, undoes=undoes)
        adapted = adapt(step_sizes, decision, self.numbers)
        return _encode((adapted, decision.new_codes), undoes=undoes)

    def updates(self, fields: Fields, dtype: jax.typing.DTypeLike) -> jax.Array:
        (signed,) = fields
        magnitudes, zeros, updates = jnp.abs(signed), jnp.zeros_like(signed), signed
        if self.rule.undoes:
            updates = jax.lax.select(magnitudes < _LARGEST, signed, signed * -_DOWN)
        updates = jax.lax.select(magnitudes < _SMALLEST, zeros, updates)
        return narrowed(updates, dtype)

    @classmethod
    def read(cls, fields: Fields, state: object) -> Memory:
        del state
        return _step_sizes(*fields, undoes=True), _codes(*fields, undoes=True)

    @classmethod
    def write(cls, memory: Memory) -> Fields:
        step_sizes, codes = memory
        step_sizes = jnp.clip(step_sizes, _SMALLEST, _LARGEST / 2)
        return _encode((step_sizes, codes), undoes=True)
