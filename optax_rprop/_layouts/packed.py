"""The layout ``"packed"``: step size and code in one float.

Its magnitude lies in one of three bands, which tell the code's magnitude: the step
size times 2**-84 (0), the step size itself (1), or times 2**84 (2). Its sign is that
of the code. A power of two scales without rounding, and the bands of a step size
between 2**-42 and 2**42 are normal in float32 and cannot overlap.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._check_hyperparams import concrete_number
from optax_rprop._layouts.interface import (
    Fields,
    HyperParams,
    Layout,
    adapt,
    memory_dtype,
)
from optax_rprop._rule import Decision, Mark

_SMALLEST, _LARGEST = 2.0**-42, 2.0**42
_DOWN, _UP = 2.0**-84, 2.0**84


class PackedRpropState(NamedTuple):
    """State of Rprop with ``state_layout="packed"``: one array per parameter.

    `get_rprop_state` reads it back as the plain `RpropState`;
    ``optax.tree.get(state, "step_sizes")`` finds nothing here and returns None.

    Attributes:
      signed_step_sizes: Pytree of the parameters' structure, shapes and
        shardings, in the dtype that the step sizes have in `RpropState`. The
        sign is the remembered sign and the magnitude the step size; a
        remembered 0 is kept as the step size times 2**-84, and an update that
        was just taken back as its sign times the step size times 2**84.
      prev_value: As in `RpropState`.
      variant: As in `RpropState`.
    """

    signed_step_sizes: Any
    prev_value: jax.Array | None  # shape=(), dtype=float
    variant: Mark


def _within_range(number: Any) -> Any:
    # Numbers have been checked. Arrays have not: outside of the range, what is stored
    # would be read back as something else, such as a tiny step size as a huge one.
    if not isinstance(number, jax.Array):
        return number
    number = number.astype(jnp.result_type(float))
    return jnp.clip(number, _SMALLEST, _LARGEST / 2)


def _prepare(hyperparams: HyperParams, variant: Mark) -> HyperParams:
    for name in ("min_step_size", "learning_rate"):
        number = concrete_number(name, getattr(hyperparams, name))
        if number is not None and number < _SMALLEST:
            raise ValueError(
                f"{name} must be at least 2**-42 (about {_SMALLEST:.2g}) with"
                f' state_layout="packed", got {number}. Raise it, or use'
                ' state_layout="split".'
            )
    upper = concrete_number("max_step_size", hyperparams.max_step_size)
    # In float32, a number just below may be equal.
    if upper is not None and np.float32(upper) >= _LARGEST:
        raise ValueError(
            f"max_step_size must be less than 2**42 (about {_LARGEST:.2g}) with"
            f' state_layout="packed", got {upper}. Lower it, or use'
            ' state_layout="split".'
        )
    return hyperparams._replace(
        learning_rate=_within_range(hyperparams.learning_rate),
        min_step_size=_within_range(hyperparams.min_step_size),
        max_step_size=_within_range(hyperparams.max_step_size),
    )


def _init(param: Any, numbers: HyperParams, shared: dict[str, Any]) -> Fields:
    dtype = memory_dtype(param)
    number = jnp.asarray(numbers.learning_rate, dtype) * jnp.asarray(_DOWN, dtype)
    return (jnp.full_like(param, number, dtype=dtype),)


def _codes(fields: Fields, numbers: HyperParams | None = None) -> jax.Array:
    (signed,) = fields
    magnitudes = jnp.abs(signed)
    ones = jnp.ones_like(signed)
    codes = jax.lax.select(magnitudes < _LARGEST, ones, ones + ones)
    codes = jax.lax.select(magnitudes < _SMALLEST, jnp.zeros_like(codes), codes)
    return jax.lax.select(signed < 0, -codes, codes)


def _step_sizes(fields: Fields) -> jax.Array:
    magnitudes = jnp.abs(fields[0])
    return jax.lax.select(
        magnitudes < _SMALLEST,
        magnitudes * _UP,
        jax.lax.select(magnitudes < _LARGEST, magnitudes, magnitudes * _DOWN),
    )


def _advance(fields: Fields, decision: Decision, numbers: HyperParams) -> Fields:
    step_sizes = adapt(_step_sizes(fields), decision, numbers)
    return _encode(step_sizes, decision.codes)


def _encode(step_sizes: jax.Array, codes: jax.Array) -> Fields:
    signed = jax.lax.select(codes < 0, -step_sizes, step_sizes)
    signed = jax.lax.select(codes == 0, step_sizes * _DOWN, signed)
    return (jax.lax.select(jnp.abs(codes) == 2, signed * _UP, signed),)


def _moves(fields: Fields, numbers: HyperParams, dtype: Any) -> jax.Array:
    (signed,) = fields
    magnitudes = jnp.abs(signed)
    moves = jax.lax.select(magnitudes < _LARGEST, signed, signed * -_DOWN)
    zeros = jnp.zeros_like(moves)
    return jax.lax.select(magnitudes < _SMALLEST, zeros, moves).astype(dtype)


LAYOUT = Layout(
    state_type=PackedRpropState,
    parameter_fields=("signed_step_sizes",),
    prepare=_prepare,
    shared_fields=lambda numbers: {},
    init=_init,
    bind=lambda state, numbers: numbers,
    codes=_codes,
    advance=_advance,
    moves=_moves,
    read=lambda fields, state: (_step_sizes(fields), _codes(fields)),
    spacing=lambda state: 1.0,
    write=_encode,
)
