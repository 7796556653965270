"""The states of `resolve_signs`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

# Of the running mean of gradient sizes. Without a memory, batches with hardly any
# gradient would count as much as others; with a long one, a loss that blew up at the
# start would hide all that follows.
_SIZE_DECAY = 0.8


class GradientScale(NamedTuple):
    """What makes the gradients of different steps comparable.

    All fields are scalars, float64 if JAX's double precision is enabled and float32
    otherwise.

    Attributes:
      size: The decayed sum of the mean absolute gradient of all parameters.
      size_weight: The sum of the weights in it.
      sum_weight: The sum of the squared weights in S, if no sign had been resolved.
      norm_weight: The sum of the squared weights in R.
    """

    size: jax.Array
    size_weight: jax.Array
    sum_weight: jax.Array
    norm_weight: jax.Array


@jax.jit
def rescaled(
    scale: GradientScale,
    size: jax.Array,
    decay: jax.typing.ArrayLike,
    norm_decay: jax.typing.ArrayLike,
) -> tuple[GradientScale, jax.Array, jax.Array]:
    """The scale after a step with gradients of this size.

    Returns:
      The scale, by what it multiplies gradients, and by what R for a comparison.
    """
    decay, norm_decay = (jnp.asarray(x, size.dtype) for x in (decay, norm_decay))
    sizes = _SIZE_DECAY * scale.size + size, _SIZE_DECAY * scale.size_weight + 1
    # A step with a NaN or an infinity says nothing about the size of gradients.
    old = scale.size, scale.size_weight
    size, weight = (
        jnp.where(jnp.isfinite(size), new, kept)
        for new, kept in zip(sizes, old, strict=True)
    )
    scale = GradientScale(
        size=size,
        size_weight=weight,
        sum_weight=decay * decay * scale.sum_weight + 1,
        norm_weight=norm_decay * norm_decay * scale.norm_weight + 1,
    )
    # Whatever the gradients are, this and its inverse are normal numbers of float32.
    unit = jnp.clip(size / jnp.maximum(weight, 1), 2.0**-125, 2.0**125)
    unit = jnp.where(weight == 0, jnp.ones_like(unit), unit)
    return scale, 1 / unit, jnp.sqrt(scale.sum_weight / scale.norm_weight)


class ResolveSignsState(NamedTuple):
    """State of `resolve_signs`.

    S and R are pytrees of the parameters' structure, shapes and shardings, float64 for
    float64 parameters and float32 for all others, and never hold NaN or infinities.

    Attributes:
      grad_sums: The decayed sum of each coordinate's scaled gradients since its sign
        was last resolved, S. Where it was just resolved, what was emitted, which counts
        as 0 from then on.
      grad_norms: The root of the decayed sum of the squares of all scaled gradients, R;
        stored as -R where the sign was just resolved.
      scale: By what gradients are divided, and how R is compared with S, a
        `GradientScale`.
    """

    grad_sums: optax.Params
    grad_norms: optax.Params
    scale: GradientScale


class PackedResolveSignsState(NamedTuple):
    """State of `resolve_signs` with ``statistics_dtype="bfloat16"``.

    Attributes:
      statistics: Pytree of the parameters' structure, shapes and shardings, dtype
        uint32: the bits of S as bfloat16, then those of R, or of -R where the sign
        was just resolved.
      scale: As in `ResolveSignsState`.
    """

    statistics: optax.Params
    scale: GradientScale
