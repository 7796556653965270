"""Rprop in a learned orthogonal basis that nearly decouples the coordinates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_rprop._arguments import (
    is_floating,
    matching_leaves,
    real_leaves,
    scalar_loss,
    shape_of,
)
from optax_rprop._eigenbasis.flattened import flattened
from optax_rprop._eigenbasis.rotation import Frame, rotated_axes
from optax_rprop._eigenbasis.state import (
    EigenbasisState,
    learn,
    new_state,
    read_memory,
)
from optax_rprop._hyperparams import check_arrays, read_decay, read_integer


def in_eigenbasis(
    inner: optax.GradientTransformation,
    *,
    decay: jax.typing.ArrayLike = 0.9,
    interval: int = 5,
    max_size: int = 1024,
    full_matrix: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Run Rprop in a learned orthogonal basis that nearly decouples the coordinates.

    Rprop adapts each coordinate independently and is slow in valleys that are not
    aligned with the axes. This wrapper learns an orthogonal basis from gradient
    differences, applies Rprop to the rotated gradient, and rotates the update back.

    A matrix of shape (a, b) has bases of sizes a and b. For the difference of
    successive gradients :math:`Y = G_t - G_{t-1}`, divided by its Frobenius norm, it
    keeps

    .. math::

      L \leftarrow \lambda L + Y Y^T, \qquad R \leftarrow \lambda R + Y^T Y,

    with the decay :math:`\lambda`. At the second gradient, and after every `interval`
    further ones, the bases are set to the eigenvectors :math:`Q_L, Q_R` of L and R.
    Rprop sees :math:`Q_L^T G Q_R`, and its memory is transferred. For a new direction:

    - The step size is the root mean square of the old step sizes, weighted by the
      squared components of the direction.
    - The sign is that of the previous gradient along it, or 0 if no more than half of
      that mean square comes from coordinates with a remembered sign.

    Leaves of higher rank have a basis for each axis. Axes above `max_size`, vectors and
    scalars are not rotated.

    **Full matrix.** With `full_matrix`, all leaves are flattened into one vector with a
    single basis; use this for up to a few hundred parameters that are coupled across
    leaves, such as those of Gaussian processes, differential equations and regressions.
    The basis is learned in units of the current step sizes, so other units of the
    parameters hardly matter: each basis update first measures every parameter in units
    of the root mean square of its update, rounded to a power of 2, the largest being 1.
    The step size of a new direction is then the root of the weighted sum of squares.

    A non-finite gradient or `value` leaves the basis unchanged, so ``irprop+`` undoes a
    step out of the domain in the basis in which it was made. But if one derivative is
    NaN, the rotated gradient of the whole array is, so that only ``rprop+``, and
    ``irprop+`` if the loss rose or is NaN or +inf, update it in that step. At a
    boundary where the loss stays finite, as of a square root, a run can stop short of
    an optimum that plain Rprop reaches: optimize the logarithm of that parameter. A
    coordinate whose derivative is less than the rounding of the largest in its array,
    1e-7 of it in float32, is updated at random, whereas plain Rprop would still see its
    sign. Directions without any gradient difference so far stay as they are, so that
    runs agree across devices.

    **Bounds.** Use ``min_step_size=1e-12, max_step_size=1e12`` in `inner`. Where the
    curvature at the start is above 1e6, a first update of 0.01 is far too long: lower
    `learning_rate`.

    **Initial step sizes.** The first basis is that of the parameters, so `inner` may
    have initial step sizes for each of them. With `full_matrix` its parameters are one
    vector, all leaves flattened and joined: give it a callable that works on vectors.

    **Cost.** For a leaf of shape (a, b): 2 (a² + b²) + a b numbers of state, about
    3 a b (a + b) multiplications per step, and one symmetric eigenproblem of each size
    per basis update. The same holds under ``jax.vmap`` if ``init`` and the loop are
    inside the mapped function; if only ``update`` is mapped, over existing states, the
    eigenproblems are solved at every step. Leaves that are sharded over Explicit mesh
    axes are gathered, and the bases replicated.

    Args:
      inner: The transformation to run in rotated coordinates: `optax_rprop.rprop`, or a
        chain with one Rprop, in the layout ``"split"`` or ``"packed"``. It is not given
        the parameters, so weight decay has to be chained before `in_eigenbasis`. Only
        Rprop's own memory is transferred between bases.
      decay: Factor by which the moments are discounted at each gradient difference, in
        (0, 1].
      interval: Number of gradients between basis updates, an integer. Use at least 2:
        with 1, most problems are not solved. A basis update that is due at a non-finite
        gradient is skipped.
      max_size: Size above which an axis is not rotated, and `full_matrix` is refused.
      full_matrix: Whether all parameters share one basis.

    Returns:
      The gradient transformation, with an `EigenbasisState`. Updates have the dtypes of
      the gradients. Further arguments of ``update`` are passed on to `inner`. The basis
      is a constant when differentiating through the updates.

    Raises:
      TypeError: An argument has the wrong type; by ``update``, as in `rprop`.
      ValueError: A number is out of range. By ``init``: `inner` does not hold one Rprop
        for all parameters, there are too many parameters for `full_matrix`, or there is
        nothing to rotate without it. By ``update``, as in `rprop`.

    Example:
      A valley along the diagonal, 10,000 times as steep across as along:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_rprop
      >>> def loss(x):
      ...     return (x[0] + x[1]) ** 2 + 1e4 * (x[0] - x[1]) ** 2
      >>> rprop = optax_rprop.rprop(min_step_size=1e-12, max_step_size=1e12)
      >>> for optimizer in (rprop, in_eigenbasis(rprop, full_matrix=True)):
      ...     params = jnp.array([3.0, 1.0])
      ...     state = optimizer.init(params)
      ...     update = jax.jit(optimizer.update)
      ...     for _ in range(100):
      ...         updates, state = update(jax.grad(loss)(params), state)
      ...         params = optax.apply_updates(params, updates)
      ...     print(loss(params) < 1e-5)
      False
      True

    References:
      Rprop with the natural gradient: Igel, Toussaint and Weishui, Rprop using the
      natural gradient, 2005, https://doi.org/10.1007/3-7643-7356-3_19

      Factors per axis: Gupta, Koren and Singer, Shampoo: preconditioned stochastic
      tensor optimization, ICML 2018, https://doi.org/10.48550/arXiv.1802.09568

      Adam in the eigenbasis of gradients: Vyas et al., SOAP: improving and stabilizing
      Shampoo using Adam, ICLR 2025, https://doi.org/10.48550/arXiv.2409.11321
    """
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"inner must be a gradient transformation, such as rprop(), got {inner!r}."
        )
    decay = read_decay(decay)
    interval = read_integer("interval", interval)
    max_size = read_integer("max_size", max_size)
    inner = optax.with_extra_args_support(inner)
    rotated = _rotated(inner, decay, interval, max_size, is_vector=full_matrix)
    return flattened(rotated, max_size) if full_matrix else rotated


def _rotated(
    inner: optax.GradientTransformationExtraArgs,
    decay: float | jax.Array,
    interval: int,
    max_size: int,
    *,
    is_vector: bool,
) -> optax.GradientTransformationExtraArgs:
    """`in_eigenbasis` for trees, or for the vector that `flattened` makes from them."""

    def init_fn(params: optax.Params) -> EigenbasisState:
        check_arrays(decay=decay)
        leaves = real_leaves(params)
        shapes = list(map(shape_of, leaves))
        rotates = rotated_axes(shapes, max_size, is_vector)
        inner_state = inner.init(params)
        kept = [step_sizes.shape for step_sizes, _ in read_memory(inner_state)]
        if kept != shapes:
            raise ValueError(
                f"inner must keep step sizes of shapes {shapes}, those of the"
                f" parameters, got {kept}. Put masks and groups of parameters around"
                " `in_eigenbasis`, not inside."
            )
        return new_state(params, inner_state, rotates, scaled=is_vector)

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: Any = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EigenbasisState]:
        del params  # Their coordinates differ from those of the inner gradient.
        if not isinstance(state, EigenbasisState):
            raise TypeError(
                "state must be the EigenbasisState that `init` returns, got"
                f" {type(state).__name__}."
            )
        leaves = matching_leaves(updates, [state.prev_grads])
        dtypes = [leaf.dtype for leaf in leaves]
        treedef = jax.tree.structure(updates)
        frames = [Frame((), None)] * len(leaves)
        if isinstance(state.bases, tuple):
            prev_grads = jax.tree.leaves(state.prev_grads)
            pairs = zip(leaves, prev_grads, strict=True)
            leaves = [leaf.astype(prev.dtype) for leaf, prev in pairs]
            finite = jnp.asarray(True)
            if value is not None and is_floating(value):
                finite = jnp.isfinite(scalar_loss(value))
            # The basis is a constant when differentiating, as all signs are.
            lessons = list(map(jax.lax.stop_gradient, leaves))
            state = learn(state, lessons, finite, decay, interval)
            frames = state.frames()
        inner_updates, inner_state = inner.update(
            treedef.unflatten(map(Frame.into, frames, leaves)),
            state.inner_state,
            value=value,
            **extra_args,
        )
        new = [
            frame.back(update).astype(dtype)
            for frame, update, dtype in zip(
                frames, jax.tree.leaves(inner_updates), dtypes, strict=True
            )
        ]
        return treedef.unflatten(new), state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
