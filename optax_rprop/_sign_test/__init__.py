"""The sequential sign test as a gradient transformation, for mini-batches."""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rprop._arguments import matching_leaves, real_leaves, spread_leaves
from optax_rprop._hyperparams import (
    check_arrays,
    read_decay,
    read_number,
    value_or_nan,
)
from optax_rprop._layouts.layout import memory_dtype
from optax_rprop._sharding import zero_of
from optax_rprop._sign_test.leaf import mean_size, resolve_leaf
from optax_rprop._sign_test.states import (
    GradientScale,
    PackedResolveSignsState,
    ResolveSignsState,
    rescaled,
)

LeanMask = Any | Callable[[optax.Params], Any]


def resolve_signs(
    threshold: jax.typing.ArrayLike = 1.2,
    *,
    decay: jax.typing.ArrayLike = 0.95,
    norm_decay: jax.typing.ArrayLike = 0.995,
    lean: jax.typing.ArrayLike = 0.1,
    lean_mask: LeanMask | None = None,
    statistics_dtype: Literal["bfloat16"] | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Emit each coordinate's accumulated gradient only once its sign is resolved.

    What is emitted is in units of the running mean absolute gradient. To train a
    network on mini-batches, use `minibatch_rprop`, which chains this test with Rprop.

    A sequential test per coordinate. Gradients are first divided by a running mean,
    with a decay of 0.8, of the mean absolute gradient of all parameters, so that those
    of different steps are comparable while the gradient shrinks. This couples all
    leaves: freezing or adding one changes the scale of the others. Of a coordinate's
    scaled gradients :math:`g`, with the decays :math:`\lambda` and :math:`\rho`, it
    keeps

    .. math::

      S \leftarrow \lambda S + g, \qquad R \leftarrow \sqrt{\rho^2 R^2 + g^2}.

    The sign is resolved once S is not 0 and

    .. math::

      |S| \geq c R \sqrt{\frac{\sum_{k < t} \lambda^{2 k}}{\sum_{k < t} \rho^{2 k}}}

    after t steps, where the root corrects for the different memories of S and R: were
    the gradients independent, with mean 0, the right side would be c standard
    deviations of S. Then S is emitted and restarts at 0, while R is kept. Until then, 0
    is emitted. Chain this before a transformation that uses only signs and treats 0 as
    "unknown".

    R remembers longer than S, so that a coordinate whose gradient is nearly always tiny
    and rarely large, such as the logit of a rare class, waits for the large ones, each
    of which may resolve its sign alone.

    **Lean.** The test favours steps towards zero. For a parameter :math:`w` whose
    distance from zero is :math:`r = \min(|w| / \mathrm{rms}, 2)` in units of its
    array's root mean square,

    .. math::

      c = \max(c_0 - a r \, \mathrm{sign}(S w), \min(c_0, 1.05)),

    for the threshold :math:`c_0` and the lean :math:`a`. Steps go against the sign of
    S, so a step towards zero needs less evidence and a step away from it more, which
    acts as a weight decay in units of the noise. Distances above 2 count as 2, and c is
    at least 1.05, or :math:`c_0` if that is less: at 1, the first gradient alone would
    resolve its sign. Where the root mean square is 0 or not finite, in float32 at
    magnitudes below 1e-19 or above 1e19, r is 0.

    **Sharding.** The root mean squares and the mean absolute gradient each cost an
    all-reduce of one number per array. Inside ``jax.shard_map`` they are those of the
    shard, so that all parameters must vary over the same axes.

    A NaN gradient counts as 0. An infinity counts as the largest number, is resolved at
    once, and leaves no trace in R. A step with either leaves the running mean as it is.

    **Threshold.** With factors 0.85 and 1.1, step sizes grow only if successive
    resolved signs are right with a probability above 0.694. A higher threshold makes
    wrong decisions rarer but cannot rule them out, because pure noise is eventually
    resolved too. For signs that are right with probability q, independently, with the
    default decay, no lean, and R in its steady state (waits in gradients):

    ========= ========================= =================== ====================
    threshold step sizes grow if q >    mean wait, q = 0.6  mean wait, q = 0.8
    ========= ========================= =================== ====================
    1         0.551                     13.6                 6.6
    1.2       0.541                     19.4                 8.3
    1.5       0.532                     29.2                10.3
    ========= ========================= =================== ====================

    At the default threshold, noise of constant magnitude is resolved after 25 gradients
    on average. In the steady state 5 equal gradients resolve a sign, 2 at the start.

    **Decay.** While a coordinate waits, the others change and its evidence becomes
    stale. Without decay, the right side grows forever, and so do the waits.

    **When not to use it.** For deterministic gradients, as on the full batch, it skips
    four updates out of five. With few steps: of gradients of constant magnitude, a
    threshold above 1 allows an update at most every second step.

    Args:
      threshold: How many standard deviations from 0 the sum must be, were its
        gradients independent with mean 0. Positive.
      decay: Factor by which past evidence is discounted at every step, in (0, 1]; 1
        never forgets.
      norm_decay: Factor by which R is discounted at every step, in (0, 1].
      lean: How much the threshold is lowered for steps towards zero, and raised for
        steps away from it, per unit of distance from zero, in root mean squares of the
        array. Not negative. A Python 0 treats both alike, and needs no parameters; with
        ``optax.inject_hyperparams``, name ``lean`` in its ``static_args``.
      lean_mask: Which parameters the test leans for: a pytree of bools with the
        structure of the parameters, or a prefix of it, or a callable that returns one.
        Exclude scales of normalization layers and temperatures. None leans for all.
        With ``optax.inject_hyperparams``, a callable must be named in its
        ``static_args``; otherwise Optax calls it with a count, as a schedule.
      statistics_dtype: None: S and R are kept in float64 for float64 parameters and in
        float32 for all others, 8 bytes per parameter. ``"bfloat16"``: in 4 bytes
        together, rounded to three digits, with decays of at most 0.995, or 1.

    Returns:
      The gradient transformation. Its state is a `ResolveSignsState`, or, in bfloat16,
      a `PackedResolveSignsState`. Updates have the dtypes of the gradients. Pass the
      parameters to ``update``, as in ``update(grads, state, params)``.

    Raises:
      TypeError: An argument is not a number. By ``init`` and ``update``: a parameter or
        gradient is not of real floating dtype, or the state belongs to another
        transformation.
      ValueError: An argument is out of range, or a sign might never be resolved, as
        with a `threshold` + 2 `lean` of sqrt((1 + decay) / (1 - decay)) or more. By
        ``init``: the structure of `lean_mask` does not fit the parameters, or an
        argument that is a JAX array is not finite or not positive. By ``update``: the
        gradient's structure or shapes differ from the parameters', or the parameters
        are missing although `lean` is not 0.

    Example:
      The first coordinate has a signal, the second is noise. Two gradients that agree
      resolve the first sign, because R starts at 0:

      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> tx = optax_rprop.resolve_signs(lean=0)
      >>> state = tx.init(jnp.zeros(2))
      >>> for grads in ([4.0, 4.0], [4.0, -4.0], [4.0, 4.0]):
      ...     updates, state = tx.update(jnp.array(grads), state)
      ...     print(updates)
      [0. 0.]
      [1.95 0.  ]
      [0. 0.]

    References:
      The same statistic, with both sums reset, decides when a coordinate's
      gradient is worth sending to other workers in Tsuzuku, Imachi and Akiba,
      Variance-based gradient compression for efficient distributed deep learning,
      2018, https://arxiv.org/abs/1802.06058

      Signs weighted by their probability, without waiting: Balles and Hennig,
      Dissecting Adam, ICML 2018, https://arxiv.org/abs/1705.07774; Zadaianchuk,
      Probabilistic RPROP, a project report and code.
    """
    threshold = read_number("threshold", threshold)
    decay = read_decay(decay)
    norm_decay = read_decay(norm_decay, "norm_decay")
    lean = read_number("lean", lean)
    _check_resolvable(threshold, decay, lean)
    packed = _is_packed(statistics_dtype, decay=decay, norm_decay=norm_decay)
    leans = value_or_nan(lean) != 0
    state_type: Any = PackedResolveSignsState if packed else ResolveSignsState

    def zeros(params: optax.Params) -> Any:
        leaves = [
            jnp.zeros_like(param, dtype=jnp.uint32 if packed else memory_dtype(param))
            for param in real_leaves(params)
        ]
        return jax.tree.structure(params).unflatten(leaves)

    def init_fn(params: optax.Params) -> Any:
        check_arrays(threshold=threshold, decay=decay, norm_decay=norm_decay, lean=lean)
        # New arrays for each field: if two share one, donation fails.
        trees = (zeros(params) for _ in state_type._fields[:-1])
        leaves = jax.tree.leaves(params)
        # Optax's `map_params` asks with a stand-in for parameters that has no leaves.
        if leaves and leans:
            mask_leaves(params)
        zero = zero_of(leaves)
        scale = GradientScale(*(zero + 0.0 for _ in GradientScale._fields))
        return state_type(*trees, scale)

    def mask_leaves(params: optax.Params) -> list[bool]:
        """For each leaf whether its test leans."""
        if lean_mask is None:
            return [True] * len(jax.tree.leaves(params))
        mask = lean_mask(params) if callable(lean_mask) else lean_mask
        try:
            spread = spread_leaves(mask, params)
        except ValueError as error:
            raise ValueError(
                "lean_mask must be a tree of bools with the structure of the"
                f" parameters, or a prefix of it, got {jax.tree.structure(mask)}."
            ) from error
        for leaf in spread:
            if not isinstance(leaf, bool | np.bool_):
                raise TypeError(f"lean_mask must hold bools, got {leaf!r}.")
        return spread

    def params_to_lean(params: optax.Params | None, state: Any) -> list[Any]:
        """For each leaf its parameters, or None if its test does not lean."""
        if params is None:
            raise ValueError(
                "params must be given, because the test leans towards 0: call"
                " update(grads, state, params). Where there are no parameters in the"
                " coordinates of the gradient, as inside in_eigenbasis, use lean=0;"
                " with optax.inject_hyperparams, name lean in its static_args."
            )
        weights = matching_leaves(params, state, "params")
        pairs = zip(weights, mask_leaves(params), strict=True)
        return [weight if used else None for weight, used in pairs]

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del extra_args
        if not isinstance(state, state_type):
            raise TypeError(
                f"state must be the {state_type.__name__} that `init` returns, got"
                f" {type(state).__name__}."
            )
        *trees, scale = state
        grads = matching_leaves(updates, trees)
        if not grads:
            return updates, state
        weights = params_to_lean(params, trees) if leans else [None] * len(grads)
        memories = zip(*map(jax.tree.leaves, trees), strict=True)
        scale, unit, ratio = rescaled(scale, mean_size(grads), decay, norm_decay)
        pairs = [
            resolve_leaf(*leaf, unit, ratio, threshold, decay, norm_decay, lean)
            for leaf in zip(grads, memories, weights, strict=True)
        ]
        treedef = jax.tree.structure(updates)
        fields = (
            treedef.unflatten([memory[i] for _, memory in pairs])
            for i in range(len(trees))
        )
        emitted = treedef.unflatten([emitted for emitted, _ in pairs])
        return emitted, state_type(*fields, scale)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _check_resolvable(
    threshold: float | jax.Array, decay: float | jax.Array, lean: float | jax.Array
) -> None:
    bound, kept, leaning = (
        value_or_nan(threshold),
        value_or_nan(decay),
        value_or_nan(lean),
    )
    if bound <= 0:
        raise ValueError(f"threshold must be positive, got {bound}.")
    if leaning < 0:
        raise ValueError(f"lean must not be negative, got {leaning}.")
    highest = bound if math.isnan(leaning) else bound + 2 * leaning
    if (1 - kept) * highest**2 >= 1 + kept:
        raise ValueError(
            "threshold + 2 * lean must be less than sqrt((1 + decay) / (1 - decay)),"
            " otherwise even a constant gradient is never resolved, got"
            f" threshold={bound} and lean={leaning} with decay={kept}. Lower threshold"
            " or lean, or raise decay."
        )


def _is_packed(statistics_dtype: object, **decays: float | jax.Array) -> bool:
    if statistics_dtype is None:
        return False
    if statistics_dtype not in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        raise ValueError(
            f'statistics_dtype must be None or "bfloat16", got {statistics_dtype!r}.'
        )
    # With 8 bits, the product with a decay near 1 rounds back, and nothing fades.
    for name, decay in decays.items():
        if 0.995 < value_or_nan(decay) < 1:
            raise ValueError(
                f'{name} must be at most 0.995, or 1, with statistics_dtype="bfloat16",'
                f" got {decay}: rounded to 8 bits, sums would not decay. Use"
                " statistics_dtype=None."
            )
    return True
