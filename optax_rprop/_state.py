"""The optimizer's state, and the two layouts in which it is kept.

A layout turns the step sizes and remembered signs of one parameter leaf into
the arrays that the state stores for it, and back. Only this module knows how.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

StateLayout = Literal["split", "packed"]


class RpropState(NamedTuple):
    """State of Rprop: what the next step needs, and nothing else.

    Attributes:
      step_sizes: Pytree of the parameters' structure, shapes and shardings:
        the step size of every coordinate, in units of the parameter. float64
        for float64 parameters and float32 for all others, so that a parameter
        of low precision does not lose the growth of its step size to rounding.
      prev_grad_signs: Pytree like the parameters, dtype int8: the sign of the
        previous gradient, -1 or 1; 0 where it was 0 or NaN, where no step was
        made yet, and, but for ``rprop-``, where the sign has just changed.
      prev_value: The last finite loss, shape (), dtype float32 or, if x64 is
        enabled, float64, for ``irprop+``; None for the other variants.
    """

    step_sizes: optax.Params
    prev_grad_signs: optax.Params
    prev_value: jax.Array | None  # shape=(), dtype=float


class PackedRpropState(NamedTuple):
    """State of Rprop with ``state_layout="packed"``: one array per parameter.

    `get_rprop_state` reads it back as the plain `RpropState`.

    Attributes:
      signed_step_sizes: Pytree of the parameters' structure, shapes and
        shardings, in the dtype that the step sizes have in `RpropState`. The
        sign is the remembered sign and the magnitude the step size; a
        remembered 0 is kept as the step size times 2**-84.
      prev_value: As in `RpropState`.
    """

    signed_step_sizes: optax.Params
    prev_value: jax.Array | None  # shape=(), dtype=float


# A power of two scales without rounding. With the smallest step size a half of
# its exponent, both the scaled and the plain range are normal in float32, and
# they cannot overlap: 2**-126 .. 2**-42 and 2**-42 .. 2**42.
_FORGOTTEN = 2.0**-84
PACKED_SMALLEST = 2.0**-42
PACKED_LARGEST = 2.0**42

Fields = tuple[jax.Array, ...]


def memory_dtype(param: jax.typing.ArrayLike) -> jax.typing.DTypeLike:
    """The dtype of what is remembered in the units of a parameter or its gradient."""
    dtype = jnp.result_type(param)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


class Layout(NamedTuple):
    """How the memory of one leaf is stored.

    Attributes:
      state_type: The state; its fields are those of `encode`, then the loss.
      encode: Step sizes and signs to the stored arrays.
      decode: The stored arrays to step sizes and signs.
      moves: The stored arrays to the product of step sizes and signs.
    """

    state_type: type[RpropState] | type[PackedRpropState]
    encode: Callable[[jax.Array, jax.Array], Fields]
    decode: Callable[[Fields], tuple[jax.Array, jax.Array]]
    moves: Callable[[Fields], jax.Array]


def _encode_split(step_sizes: jax.Array, signs: jax.Array) -> Fields:
    # True of every step size; but now the signs depend on the step sizes, so that
    # XLA writes them last and need not copy the old ones, which both read.
    signs = jnp.where(step_sizes >= 0, signs, jnp.zeros_like(signs))
    return step_sizes, signs.astype(jnp.int8)


def _decode_split(fields: Fields) -> tuple[jax.Array, jax.Array]:
    step_sizes, signs = fields
    return step_sizes, signs


def _moves_split(fields: Fields) -> jax.Array:
    step_sizes, signs = fields
    moves = jnp.where(signs < 0, -step_sizes, step_sizes)
    return jnp.where(signs == 0, jnp.zeros_like(moves), moves)


def _encode_packed(step_sizes: jax.Array, signs: jax.Array) -> Fields:
    signs = signs.astype(step_sizes.dtype)
    return (jnp.where(signs == 0, step_sizes * _FORGOTTEN, step_sizes * signs),)


def _decode_packed(fields: Fields) -> tuple[jax.Array, jax.Array]:
    (signed,) = fields
    magnitudes = jnp.abs(signed)
    forgotten = magnitudes < PACKED_SMALLEST
    step_sizes = jnp.where(forgotten, magnitudes / _FORGOTTEN, magnitudes)
    ones = jnp.ones_like(signed)
    signs = jnp.where(signed < 0, -ones, ones)
    return step_sizes, jnp.where(forgotten, jnp.zeros_like(signed), signs)


def _moves_packed(fields: Fields) -> jax.Array:
    (signed,) = fields
    return jnp.where(jnp.abs(signed) < PACKED_SMALLEST, jnp.zeros_like(signed), signed)


LAYOUTS: dict[str, Layout] = {
    "split": Layout(RpropState, _encode_split, _decode_split, _moves_split),
    "packed": Layout(PackedRpropState, _encode_packed, _decode_packed, _moves_packed),
}
