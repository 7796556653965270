"""The sequential sign test, elementwise."""

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._layouts.layout import Fields


def _unpack(memory: Fields) -> Fields:
    if len(memory) == 2:
        return memory
    (bits,) = memory
    # A bfloat16 is the upper half of a float32.
    halves = bits & np.uint32(0xFFFF0000), bits << np.uint32(16)
    sums, norms = (jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves)
    return sums, norms


def _pack(sums: jax.Array, norms: jax.Array) -> Fields:
    halves = (
        jax.lax.bitcast_convert_type(number.astype(jnp.bfloat16), jnp.uint16)
        for number in (sums, norms)
    )
    upper, lower = (half.astype(jnp.uint32) for half in halves)
    return ((upper << np.uint32(16)) | lower,)


def _distances(params: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """How many root mean squares of its array each parameter lies from 0, up to 2."""
    params = params.astype(dtype)
    square = jnp.mean(params * params)
    # One NaN or infinity must not keep a whole array from being resolved.
    usable = (square > 0) & jnp.isfinite(square)
    inverse = 1 / jnp.sqrt(jnp.where(usable, square, jnp.ones_like(square)))
    return jnp.where(usable, jnp.clip(params * inverse, -2, 2), jnp.zeros_like(params))


@jax.jit
def resolve_leaf(
    grads: jax.Array,
    memory: Fields,
    params: jax.Array | None,
    threshold: jax.typing.ArrayLike,
    decay: jax.typing.ArrayLike,
    lean: jax.typing.ArrayLike,
) -> tuple[jax.Array, Fields]:
    """Add gradients to what was seen, and test which signs are known now.

    Args:
      grads: The gradient, of any shape and any real floating dtype.
      memory: S and R of the same shape, as the fields of a `ResolveSignsState` hold
        them, or the one field of a `PackedResolveSignsState`.
      params: The parameters, same shape; None if nothing leans.
      threshold: As in `optax_rprop.resolve_signs`.
      decay: Likewise.
      lean: Likewise.

    Returns:
      What is emitted, in the dtype of the gradients, and the new memory.
    """
    sums, norms = _unpack(memory)
    dtype = sums.dtype
    zeros = jnp.zeros_like(sums)
    threshold, kept, lean = (jnp.asarray(x, dtype) for x in (threshold, decay, lean))
    known = jnp.where(jnp.isnan(grads), zeros, grads.astype(dtype))
    sums = jnp.where(norms < 0, known, kept * sums + known)
    norms = kept * jnp.abs(norms)
    # In the norm, an infinity would be all that is left for thousands of steps.
    sizes = jnp.where(jnp.isinf(known), zeros, jnp.abs(known))
    # The square of 1e-23 is 0 in float32, and that of 1e20 infinite: bring the
    # larger number near 1 by a power of two, which is exact. `jnp.hypot` does
    # so by a division, and takes three times as long on CPU.
    largest = jnp.maximum(norms, sizes)
    exponent = jnp.finfo(dtype).maxexp
    low, high = 2.0 ** (-5 * exponent // 16), 2.0 ** (5 * exponent // 16)
    up = jnp.where(largest < low, high**2, jnp.where(largest > high, low**2, 1.0))
    down = jnp.where(largest < low, low**2, jnp.where(largest > high, high**2, 1.0))
    up, down = up.astype(dtype), down.astype(dtype)
    # An infinity counts as the largest number, and is resolved at once.
    finite = jnp.finfo(dtype if len(memory) == 2 else jnp.bfloat16).max.astype(dtype)
    tiny = jnp.finfo(dtype).tiny
    # All that was seen has decayed to 0, and a rest of the sum is no evidence. On GPU,
    # unlike CPU, it would stay among the subnormal numbers, where rounding decides.
    faded = (largest < tiny) & jnp.isfinite(known)
    sums = jnp.where(faded, zeros, jnp.clip(sums, -finite, finite))
    overflows = jnp.abs(sums) == finite
    squares = (norms * up) ** 2 + (sizes * up) ** 2
    bound = threshold
    if params is not None:
        # Not by the sign of S times w, for that may underflow.
        bound = threshold - lean * _distances(params, dtype) * jnp.sign(sums)
        bound = jnp.maximum(bound, jnp.minimum(threshold, jnp.asarray(1.05, dtype)))
    # Equal gradients can reach a threshold exactly: rounding shall not decide.
    bound = bound * jnp.asarray(1 - 16 * jnp.finfo(dtype).eps, dtype)
    resolved = ((sums * up) ** 2 >= bound**2 * squares) & (sums != 0) | overflows
    # Large gradients that cancel must not leave an infinity behind.
    norms = jnp.where(faded, zeros, jnp.minimum(jnp.sqrt(squares) * down, finite))
    # The sign of a norm is a flag, and 0 has none.
    flagged = -jnp.maximum(norms, tiny)
    norms = jnp.where(resolved, flagged, norms)
    memory = (sums, norms) if len(memory) == 2 else _pack(sums, norms)
    # Read from the new memory, so that XLA does not do the test again.
    sums, norms = _unpack(memory)
    emitted = jnp.where(norms < 0, sums, zeros)
    if jnp.finfo(grads.dtype).bits < jnp.finfo(dtype).bits:
        # A sum of finite gradients may exceed what their dtype can hold.
        largest = jnp.finfo(grads.dtype).max.astype(dtype)
        emitted = jnp.clip(emitted, -largest, largest)
    return emitted.astype(grads.dtype), memory
