"""The sequential sign test, elementwise."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._layouts.layout import Fields, memory_dtype, narrowed


def _unpack(memory: Fields) -> Fields:
    if len(memory) == 2:
        return memory
    (bits,) = memory
    # A bfloat16 is the upper half of a float32.
    halves = bits & np.uint32(0xFFFF0000), bits << np.uint32(16)
    sums, norms = (jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves)
    return sums, norms


def _pack(sums: jax.Array, norms: jax.Array) -> Fields:
    half, whole = jnp.uint16, jnp.uint32
    upper = jax.lax.bitcast_convert_type(sums.astype(jnp.bfloat16), half)
    # A norm changes by less than half of its last digit in a step, and would stay as it
    # is if it were rounded to the nearest. The digits that the sum loses are as good as
    # random, and decide which way it is rounded.
    bits = jax.lax.bitcast_convert_type(norms, whole)
    lost = (jax.lax.bitcast_convert_type(sums, whole) ^ bits) & np.uint32(0xFFFF)
    lower = (bits + lost) >> np.uint32(16)
    return ((upper.astype(whole) << np.uint32(16)) | lower,)


def _leaning(params: jax.Array, lean: jax.Array) -> jax.Array:
    """The lean times the distance from 0 in root mean squares of the array, up to 2."""
    params = params.astype(lean.dtype)
    square = jnp.sum(params * params)
    # One NaN or infinity must not keep a whole array from being resolved.
    usable = (square >= jnp.finfo(lean.dtype).tiny) & jax.lax.is_finite(square)
    unit = lean * jnp.asarray(math.sqrt(params.size), lean.dtype)
    far = params * (unit * jax.lax.rsqrt(square))
    far = jax.lax.clamp(-2 * lean, far, 2 * lean)
    return jax.lax.select(usable, far, jnp.zeros_like(far))


@jax.jit
def mean_size(leaves: list[jax.Array]) -> jax.Array:
    """The mean absolute value of all numbers."""
    dtype = jnp.result_type(float)
    # Nothing but a sum of sizes, or XLA's CPU compiler stores what is to be summed.
    sums = (jnp.sum(jnp.abs(leaf.astype(memory_dtype(leaf)))) for leaf in leaves)
    total = sum((each.astype(dtype) for each in sums), jnp.zeros((), dtype))
    return total / max(1, sum(leaf.size for leaf in leaves))


@jax.jit
def resolve_leaf(
    grads: jax.Array,
    memory: Fields,
    params: jax.Array | None,
    unit: jax.Array,
    ratio: jax.Array,
    threshold: jax.typing.ArrayLike,
    decay: jax.typing.ArrayLike,
    norm_decay: jax.typing.ArrayLike,
    lean: jax.typing.ArrayLike,
) -> tuple[jax.Array, Fields]:
    """Add gradients to what was seen, and test which signs are known now.

    Args:
      grads: The gradient, of any shape and any real floating dtype.
      memory: S and R of the same shape, as the fields of a `ResolveSignsState` hold
        them, or the one field of a `PackedResolveSignsState`.
      params: The parameters, same shape; None if nothing leans.
      unit: By what gradients are multiplied.
      ratio: By what R is multiplied before S is compared with it.
      threshold: As in `optax_rprop.resolve_signs`.
      decay: Likewise.
      norm_decay: Likewise.
      lean: Likewise.

    Returns:
      What is emitted, in the dtype of the gradients, and the new memory.
    """
    sums, norms = _unpack(memory)
    dtype = sums.dtype
    zeros = jnp.zeros_like(sums)
    tiny = jnp.finfo(dtype).tiny
    finite = jnp.finfo(dtype if len(memory) == 2 else jnp.bfloat16).max.astype(dtype)
    unit, ratio, threshold, decay, norm_decay, lean = (
        jnp.asarray(x, dtype) for x in (unit, ratio, threshold, decay, norm_decay, lean)
    )
    grads_dtype, grads = grads.dtype, grads.astype(dtype) * unit
    missing = jnp.isnan(grads)
    known = jax.lax.select(missing, zeros, grads)
    # An infinity counts as the largest number, and is resolved at once.
    first, total = (
        jax.lax.clamp(-finite, number, finite)
        for number in (known, decay * sums + known)
    )
    # Where all that was seen has decayed to 0, a rest of the sum is no evidence. On
    # GPU, unlike CPU, it would stay among the subnormal numbers.
    sums = jax.lax.select(norms <= 0, first, total)
    norms = norm_decay * jnp.abs(norms)
    # In the norm, an infinity would be all that is left for thousands of steps. But not
    # 0 either, for a norm of 0 could not be flagged.
    least = jax.lax.select(missing, zeros, jnp.full_like(zeros, tiny))
    sizes = jax.lax.select(jax.lax.is_finite(grads), jnp.abs(grads), least)
    # The square of 1e-23 is 0 in float32, and that of 1e20 infinite. `jnp.hypot` minds
    # more cases, and takes longer.
    larger, smaller = jax.lax.max(norms, sizes), jax.lax.min(norms, sizes)
    quotient = smaller / larger
    norms = larger * jax.lax.sqrt(1 + quotient * quotient)
    norms = jax.lax.select(larger < tiny, zeros, norms)
    # Equal gradients can reach a threshold exactly: rounding shall not decide.
    margin = jnp.asarray(1 - 16 * jnp.finfo(dtype).eps, dtype)
    bound = threshold * margin
    if params is not None:
        lowest = jnp.minimum(threshold, jnp.asarray(1.05, dtype)) * margin
        # Not by the sign of S times w, for that may underflow.
        towards = _leaning(params, lean * margin) * jnp.sign(sums)
        bound = jnp.maximum(bound - towards, lowest)
    # No sum of 0 reaches it, and any that overflows does.
    resolved = jnp.abs(sums) >= jax.lax.clamp(tiny, bound * (ratio * norms), finite)
    # Large gradients that cancel must not leave an infinity behind.
    norms = jnp.minimum(norms, finite)
    # The sign of a norm is a flag, and 0 has none.
    norms = jax.lax.select(resolved, -norms, norms)
    memory = (sums, norms) if len(memory) == 2 else _pack(sums, norms)
    # Read from the new memory, so that XLA does not do the test again.
    sums, norms = _unpack(memory)
    # A sum of finite gradients may exceed what their dtype can hold.
    return narrowed(jax.lax.select(norms < 0, sums, zeros), grads_dtype), memory
