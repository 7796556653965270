"""The layout ``"split"``: step sizes and codes in separate trees."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from optax_rprop._rule import Decision, Mark, last_update


class RpropState(NamedTuple):
    """State of Rprop: what the next step needs, and nothing else.

    Attributes:
      step_sizes: Pytree with the structure, shapes and shardings of the parameters:
        the step size of every coordinate, in units of the parameter. float64 for
        float64 parameters and float32 for all others, so that a parameter of low
        precision does not lose the growth of its step size to rounding.
      prev_grad_signs: Pytree like the parameters, dtype int8: the sign of the
        previous gradient, -1 or 1; 0 where it was 0 or NaN, where no update was
        made yet, and, except for ``rprop-``, where the sign has just changed. 2 or
        -2 is twice the sign of an update that was just undone: it counts as 0, and
        the step size, still that of the undone update, shrinks in the next step.
      prev_value: The last finite loss, shape (), dtype float32 or, if x64 is
        enabled, float64, for ``irprop+``; None for the other variants.
      variant: Marks the variant. Holds no array.
    """

    step_sizes: Any
    prev_grad_signs: Any
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Split(Layout):
    """Bound to the hyper-parameters and the rule."""

    state_type = RpropState
    tree_names = ("step_sizes", "prev_grad_signs")

    def init(self, param: Any, step_size: float | jax.Array) -> Fields:
        dtype = memory_dtype(param)
        step_sizes = filled_like(param, as_step_size(step_size, dtype), dtype)
        # `zeros_like` keeps the parameter's sharding.
        return step_sizes, jnp.zeros_like(param, dtype=jnp.int8)

    def codes(self, fields: Fields) -> jax.Array:
        return fields[1]

    def advance(self, fields: Fields, decision: Decision) -> Fields:
        step_sizes = adapt(fields[0], decision, self.numbers)
        # True of every step size; but now the codes depend on the step sizes, so that
        # XLA writes them last and need not copy the old ones, which both read.
        codes = decision.new_codes
        zeros = jnp.zeros_like(codes)
        return step_sizes, jax.lax.select(step_sizes >= 0, codes, zeros)

    def updates(self, fields: Fields, dtype: jax.typing.DTypeLike) -> jax.Array:
        step_sizes, codes = fields
        return narrowed(last_update(codes, step_sizes, self.rule), dtype)

    @classmethod
    def read(cls, fields: Fields, state: object) -> Memory:
        del state
        step_sizes, codes = fields
        return step_sizes, codes

    @classmethod
    def write(cls, memory: Memory) -> Fields:
        step_sizes, codes = memory
        return step_sizes, codes.astype(jnp.int8)
