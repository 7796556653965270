"""A sequential sign test, by which Rprop trains on mini-batches."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rprop._layouts.interface import Fields, memory_dtype
from optax_rprop._validation import check_params, check_updates, concrete_number


class ResolveSignsState(NamedTuple):
    """State of `resolve_signs`.

    Both fields are pytrees of the parameters' structure, shapes and shardings,
    float64 for float64 parameters and float32 for all others, and never hold NaN
    or infinities.

    Attributes:
      grad_sums: The decayed sum of each coordinate's gradients since its sign was
        last resolved, S. Where R is 0, the sign was just resolved: S is what was
        emitted, and counts as 0 from then on.
      grad_norms: The root of the decayed sum of their squares, R.
    """

    grad_sums: optax.Params
    grad_norms: optax.Params


class PackedResolveSignsState(NamedTuple):
    """State of `resolve_signs` with ``statistics_dtype="bfloat16"``.

    Attributes:
      statistics: Pytree of the parameters' structure, shapes and shardings, dtype
        uint32: the bits of S as bfloat16, then those of R.
    """

    statistics: optax.Params


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


@jax.jit
def _update_leaf(
    grads: jax.Array,
    memory: Fields,
    threshold: jax.typing.ArrayLike,
    decay: jax.typing.ArrayLike,
) -> tuple[jax.Array, Fields]:
    sums, norms = _unpack(memory)
    dtype = sums.dtype
    zeros = jnp.zeros_like(sums)
    known = jnp.where(jnp.isnan(grads), zeros, grads.astype(dtype))
    kept = jnp.asarray(decay, dtype)
    sums = jnp.where(norms == 0, known, kept * sums + known)
    norms = kept * norms
    # The square of 1e-23 is 0 in float32, and that of 1e20 infinite: bring the
    # larger number near 1 by a power of two, which is exact. `jnp.hypot` does
    # so by a division, and takes three times as long on CPU.
    largest = jnp.maximum(norms, jnp.abs(known))
    exponent = jnp.finfo(dtype).maxexp
    low, high = 2.0 ** (-5 * exponent // 16), 2.0 ** (5 * exponent // 16)
    up = jnp.where(largest < low, high**2, jnp.where(largest > high, low**2, 1.0))
    down = jnp.where(largest < low, low**2, jnp.where(largest > high, high**2, 1.0))
    up, down = up.astype(dtype), down.astype(dtype)
    # An infinity counts as the largest number, and is resolved at once.
    finite = jnp.finfo(dtype if len(memory) == 2 else jnp.bfloat16).max.astype(dtype)
    sums = jnp.clip(sums, -finite, finite)
    # All that was seen has decayed to 0, and a rest of the sum is no evidence.
    sums = jnp.where(largest == 0, zeros, sums)
    squares = (norms * up) ** 2 + (known * up) ** 2
    # Four equal gradients reach a threshold of 2 exactly: rounding shall not
    # decide.
    slack = 1 - 16 * jnp.finfo(dtype).eps
    bound = jnp.asarray(threshold, dtype) * jnp.asarray(slack, dtype)
    resolved = ((sums * up) ** 2 >= bound**2 * squares) | (jnp.abs(sums) == finite)
    # Large gradients that cancel must not leave an infinity behind.
    norms = jnp.minimum(jnp.sqrt(squares) * down, finite)
    norms = jnp.where(resolved, zeros, norms)
    memory = (sums, norms) if len(memory) == 2 else _pack(sums, norms)
    # Read from the new memory, so that XLA does not do the test again.
    sums, norms = _unpack(memory)
    return jnp.where(norms == 0, sums, zeros).astype(grads.dtype), memory


def resolve_signs(
    threshold: jax.typing.ArrayLike = 1.7,
    decay: jax.typing.ArrayLike = 0.95,
    *,
    statistics_dtype: jax.typing.DTypeLike | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Let each coordinate wait until the sign of its gradient is known.

    The optimizer to train a network on mini-batches with is ``optax.chain(
    resolve_signs(), rprop(0.05, eta_minus=0.75, skip_zero_grads=True))``. How it fares,
    better than Adam at its customary 0.001, and not always as well as Adam at a rate
    tuned to the problem, is in ``benchmarks/minibatch``.

    A sequential test per coordinate. With the gradients :math:`g` since the
    coordinate was last resolved, and the decay :math:`\lambda`, it keeps

    .. math::

      S \leftarrow \lambda S + g, \qquad R \leftarrow \sqrt{\lambda^2 R^2 + g^2}.

    Once :math:`|S| \geq c R`, for the threshold :math:`c`, the sign is resolved:
    :math:`S` is emitted and both begin at 0 again. Until then 0 is emitted. To be
    put before a transformation that looks only at signs, and for which a gradient
    of 0 means that nothing is known.

    With a threshold of at most 1 every gradient is resolved at once, and what comes
    in goes out. A NaN is passed over as if it were 0. An infinity counts as the
    largest number, and is resolved at once.

    **Threshold.** Rprop's step sizes grow only if successive signs are right with a
    probability above 0.821, or, with an ``eta_minus`` of 0.75, 0.678. What a threshold
    buys is that false decisions are rare; none excludes them, for noise resolves, too,
    if one looks often enough. For signs that are right with probability q,
    independently, without decay, and growth from 0.678 within 5,000 gradients:

    ========= ========================= =================== ====================
    threshold growth wants q of at least mean wait, q = 0.6  mean wait, q = 0.8
    ========= ========================= =================== ====================
    1         0.678                      1                    1
    1.5       0.517                     32                    6.5
    1.7       0.511                     44                    7.5
    2         0.507                     73                   10.4
    ========= ========================= =================== ====================

    Of 1.5 to 2, 1.7 had the least validation error on five problems. As
    :math:`|S| \leq \sqrt n R`, gradients that all agree need :math:`c^2` of them: 3.

    **Decay.** While a coordinate waits, the others move, and what it has seen grows
    stale. Without decay, the mean wait of pure noise is infinite.

    **When not to use it.** Where gradients are deterministic, as on the full data:
    nothing is gained, and two steps of three are lost. And where a step is made only
    now and then: a coordinate moves once in three steps at most.

    Args:
      threshold: How many standard deviations, were the mean 0, the sum must lie
        from 0. Positive.
      decay: Factor of what was seen before, at every step, in (0, 1]; 1 never
        forgets.
      statistics_dtype: None: S and R are kept in float64 for float64 parameters and
        in float32 for all others, 8 bytes per parameter. ``"bfloat16"``: in 4 bytes
        together, rounded to three digits; in ten contests test errors differ by less
        than two standard errors, see ``benchmarks/minibatch``.

    Returns:
      The gradient transformation. Its state is a `ResolveSignsState`, or, in
      bfloat16, a `PackedResolveSignsState`. Updates have the dtypes of the gradients.

    Raises:
      TypeError: An argument is not a number. By ``init`` and ``update``: a parameter or
        gradient is not of real floating dtype, or the state is of another
        transformation.
      ValueError: An argument is out of range, or no sign could be resolved. By
        ``update``: the gradient has another structure or shape than the parameters.
        Arguments that are JAX arrays are not checked for range.

    Example:
      The first coordinate has a signal, the second is noise. Four gradients that
      agree resolve a sign at the threshold of 2:

      >>> import jax.numpy as jnp
      >>> tx = resolve_signs(threshold=2.0, decay=1.0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grads in ([3.0, 1.0], [3.0, -1.0], [3.0, 1.0], [3.0, -1.0]):
      ...     updates, state = tx.update(jnp.array(grads), state)
      ...     print(updates)
      [0. 0.]
      [0. 0.]
      [0. 0.]
      [12.  0.]

    References:
      The same statistic decides when a coordinate's gradient is worth sending to
      other workers in Tsuzuku, Imachi and Akiba, Variance-based gradient compression
      for efficient distributed deep learning, 2018,
      https://arxiv.org/abs/1802.06058

      Signs taken with their probability, without waiting: Balles and Hennig,
      Dissecting Adam, ICML 2018, https://arxiv.org/abs/1705.07774; Zadaianchuk,
      Probabilistic RPROP, a project report and code.

      The wait of pure noise: Breiman, First exit times from a square root boundary,
      Fifth Berkeley Symposium, volume 2, part 2, 1967.
    """
    bound = concrete_number("threshold", threshold, "resolve_signs")
    kept = concrete_number("decay", decay, "resolve_signs")
    if bound is not None and not bound > 0:
        raise ValueError(f"threshold must be positive, got {threshold}.")
    if kept is not None and not 0 < kept <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}.")
    if (
        bound is not None
        and kept is not None
        and bound > 1
        and (1 - kept) * bound**2 >= 1 + kept
    ):
        raise ValueError(
            "threshold must be less than sqrt((1 + decay) / (1 - decay)), or not even"
            f" equal gradients resolve, got threshold={threshold} with decay={decay}."
            " Lower the threshold, or raise the decay."
        )

    packed = statistics_dtype is not None
    if packed and jnp.dtype(statistics_dtype) != jnp.bfloat16:
        raise ValueError(
            f'statistics_dtype must be None or "bfloat16", got {statistics_dtype!r}.'
        )
    state_type = PackedResolveSignsState if packed else ResolveSignsState

    def zeros(params: optax.Params) -> Any:
        leaves = [
            jnp.zeros_like(param, dtype=jnp.uint32 if packed else memory_dtype(param))
            for param in check_params(params)
        ]
        return jax.tree.structure(params).unflatten(leaves)

    def init_fn(params: optax.Params) -> Any:
        # A call for each: the fields must not share arrays, or donation fails.
        return state_type(*(zeros(params) for _ in state_type._fields))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        if not isinstance(state, state_type):
            raise TypeError(
                f"state must be a {state_type.__name__}, as `init` returns it, got"
                f" {type(state).__name__}."
            )
        grads = check_updates(updates, state)
        memories = zip(*map(jax.tree.leaves, state), strict=True)
        pairs = [
            _update_leaf(grad, memory, threshold, decay)
            for grad, memory in zip(grads, memories, strict=True)
        ]
        treedef = jax.tree.structure(updates)
        fields = (
            treedef.unflatten([memory[i] for _, memory in pairs])
            for i in range(len(state))
        )
        return treedef.unflatten([emitted for emitted, _ in pairs]), state_type(*fields)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
