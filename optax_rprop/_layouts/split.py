"""The layout ``"split"``: step sizes and codes in trees of their own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_rprop._layouts.interface import (
    Fields,
    HyperParams,
    Layout,
    adapt,
    memory_dtype,
    update_of,
)
from optax_rprop._rule import Decision, Mark


class RpropState(NamedTuple):
    """State of Rprop: what the next step needs, and nothing else.

    Attributes:
      step_sizes: Pytree of the parameters' structure, shapes and shardings:
        the step size of every coordinate, in units of the parameter. float64
        for float64 parameters and float32 for all others, so that a parameter
        of low precision does not lose the growth of its step size to rounding.
      prev_grad_signs: Pytree like the parameters, dtype int8: the sign of the
        previous gradient, -1 or 1; 0 where it was 0 or NaN, where no step was
        made yet, and, but for ``rprop-``, where the sign has just changed. 2 or
        -2 is twice the sign of an update that was just taken back: it counts as
        0, and the step size, as yet the one that was taken back, shrinks in the
        next step. `get_rprop_state` shows it as 0.
      prev_value: The last finite loss, shape (), dtype float32 or, if x64 is
        enabled, float64, for ``irprop+``; None for the other variants.
      variant: Marks the variant. Holds no array.
    """

    step_sizes: Any
    prev_grad_signs: Any
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


def _prepare(hyperparams: HyperParams, variant: Mark) -> HyperParams:
    return hyperparams


def _init(param: Any, numbers: HyperParams, shared: dict[str, Any]) -> Fields:
    # `full_like` and `zeros_like` keep the parameter's sharding.
    step_sizes = jnp.full_like(param, numbers.learning_rate, dtype=memory_dtype(param))
    return step_sizes, jnp.zeros_like(param, dtype=jnp.int8)


def _codes(fields: Fields, numbers: HyperParams) -> jax.Array:
    return fields[1]


def _advance(fields: Fields, decision: Decision, numbers: HyperParams) -> Fields:
    step_sizes = adapt(fields[0], decision, numbers)
    # True of every step size; but now the codes depend on the step sizes, so that
    # XLA writes them last and need not copy the old ones, which both read.
    codes = decision.codes
    return step_sizes, jax.lax.select(step_sizes >= 0, codes, jnp.zeros_like(codes))


def _moves(fields: Fields, numbers: HyperParams, dtype: Any) -> jax.Array:
    step_sizes, codes = fields
    return update_of(step_sizes, codes, dtype)


LAYOUT = Layout(
    state_type=RpropState,
    parameter_fields=("step_sizes", "prev_grad_signs"),
    prepare=_prepare,
    shared_fields=lambda numbers: {},
    init=_init,
    bind=lambda state, numbers: numbers,
    codes=_codes,
    advance=_advance,
    moves=_moves,
    read=lambda fields, state: (fields[0], fields[1]),
    spacing=lambda state: 1.0,
    write=lambda step_sizes, codes: (step_sizes, codes.astype(jnp.int8)),
)
