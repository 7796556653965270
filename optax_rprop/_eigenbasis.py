"""Rprop in a learned, orthogonal basis, in which coordinates are not coupled."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rprop._basis import EigenbasisState, learn, read_memory
from optax_rprop._check_arguments import check_params, check_updates, check_value
from optax_rprop._check_hyperparams import concrete_number
from optax_rprop._layouts.interface import memory_dtype
from optax_rprop._rotation import Matrices, gathered, placed_like, rotate


def _check_options(inner: Any, decay: Any, **integers: Any) -> None:
    if not isinstance(inner, optax.GradientTransformation):
        raise TypeError(
            f"inner must be a gradient transformation, such as rprop(), got {inner!r}."
        )
    kept = concrete_number("decay", decay, "in_eigenbasis")
    if kept is not None and not 0 < kept <= 1:
        raise ValueError(f"decay must lie in (0, 1], got {decay}.")
    for name, number in integers.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(
                f"{name} must be an integer, got {number!r}. For"
                f' optax.inject_hyperparams, name "{name}" in its static_args.'
            )
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")


def in_eigenbasis(
    inner: optax.GradientTransformation,
    decay: jax.typing.ArrayLike = 0.9,
    *,
    interval: int = 5,
    max_size: int = 1024,
    full_matrix: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Run Rprop in rotated coordinates, in which the loss hardly couples them.

    Rprop adapts each coordinate alone, and is slow in a valley that lies across them.
    This wrapper learns an orthogonal basis from how the gradient changes, rotates the
    gradient into it for an unchanged Rprop, and rotates the move back.

    A matrix of shape (a, b) has bases of sizes a and b. For the difference of
    successive gradients :math:`Y = G_t - G_{t-1}`, divided by its Frobenius norm, it
    keeps

    .. math::

      L \leftarrow \lambda L + Y Y^T, \qquad R \leftarrow \lambda R + Y^T Y,

    with the decay :math:`\lambda`. With the first difference, and after every
    `interval` more, the bases turn to their eigenvectors :math:`Q_L, Q_R`. Rprop sees
    :math:`Q_L^T G Q_R`, and its memory is carried over: the step size along a new
    direction is the root of the old ones' mean square, weighted by the squares of the
    direction's components; its sign is that of the previous gradient along it, or 0 if
    at most half of that mean comes from coordinates that remember a sign.

    Leaves of higher rank have a basis for each axis. Axes above `max_size`, vectors and
    scalars are not rotated. With `full_matrix` all leaves are one vector with one
    basis, for up to some hundred parameters that are coupled across leaves, such as
    those of Gaussian processes, differential equations and regressions.

    A gradient that is not finite, or whose `value` is not, teaches nothing, and the
    basis stays: so ``irprop+`` takes a step out of the loss's domain back as it was
    made. But in a rotated leaf one NaN reaches every coordinate. And a coordinate whose
    derivative is less than the rounding of the leaf's largest, 1e-7 of it in float32,
    moves by chance, where plain Rprop sees its sign. In directions in which no
    difference was seen yet, rounding chooses the basis: runs on two devices may part.

    **Cost.** For a leaf of shape (a, b) 2 (a² + b²) + a b numbers, about 3 a b (a + b)
    multiplications a step, and a symmetric eigenproblem of each size a turn.
    ``jax.vmap`` pays for a turn in every step. Leaves that are sharded over Explicit
    mesh axes are gathered, and the bases replicated.

    Args:
      inner: The transformation to run in rotated coordinates: `optax_rprop.rprop`, or a
        chain with one Rprop, in the layout ``"split"`` or ``"packed"``. It gets no
        parameters, so weight decay comes before, and of its memory only that of Rprop
        is carried over.
      decay: Factor of the moments at each difference, in (0, 1].
      interval: Number of differences from turn to turn. With 1 it fails: every step
        would then be along directions whose sign has just changed.
      max_size: Size above which an axis is not rotated, and `full_matrix` refused.
      full_matrix: Whether all parameters share one basis.

    Returns:
      The gradient transformation, with an `EigenbasisState`. Updates have the dtypes of
      the gradients. Further arguments of ``update`` are passed on to `inner`.

    Raises:
      TypeError: An argument is of the wrong type; as by `rprop` in ``update``.
      ValueError: A number is out of range. By ``init``: `inner` does not hold one Rprop
        for all parameters, or they are too many for `full_matrix`.

    Example:
      A valley along the diagonal, 10,000 times as steep across as along:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_rprop
      >>> def loss(x):
      ...     return (x[0] + x[1]) ** 2 + 1e4 * (x[0] - x[1]) ** 2
      >>> rprop = optax_rprop.rprop()
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
    _check_options(inner, decay, interval=interval, max_size=max_size)
    inner = optax.with_extra_args_support(inner)

    def joined(tree: Any) -> Any:
        """What is rotated: the tree as it is, or all its leaves as one vector."""
        if not full_matrix:
            return tree
        leaves = check_updates(tree, [])
        dtype = np.result_type(np.float32, *map(memory_dtype, leaves))
        vectors = [jnp.ravel(gathered(leaf)).astype(dtype) for leaf in leaves]
        return jnp.concatenate([jnp.zeros(0, dtype), *vectors])

    def parted(tree: Any, like: Any) -> Any:
        """The inverse of `joined`, in the dtypes of another tree."""
        parts = jax.tree.leaves(tree)
        leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, like))
        if full_matrix:
            starts = itertools.accumulate((leaf.size for leaf in leaves), initial=0)
            parts = [
                placed_like(parts[0][i : i + leaf.size].reshape(leaf.shape), leaf)
                for i, leaf in zip(starts, leaves, strict=False)
            ]
        cast = [
            part.astype(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)
        ]
        return treedef.unflatten(cast)

    def for_each_axis(leaves: list[Any], make: Any) -> Any:
        def of_leaf(leaf: Any) -> Matrices:
            shape, dtype = jnp.shape(leaf), memory_dtype(leaf)
            rotates = math.prod(shape) > 0 and (full_matrix or len(shape) > 1)
            return tuple(
                make(size, dtype=dtype) if rotates and 1 < size <= max_size else None
                for size in shape
            )

        matrices = tuple(map(of_leaf, leaves))
        return matrices if jax.tree.leaves(matrices) else jnp.zeros(())

    def init_fn(params: optax.Params) -> EigenbasisState:
        size = sum(math.prod(jnp.shape(leaf)) for leaf in check_params(params))
        if full_matrix and size > max_size:
            raise ValueError(
                f"params must have at most max_size={max_size} coordinates for"
                f" full_matrix=True, got {size}. Raise max_size, at a cost that grows"
                " with its cube, or leave full_matrix out."
            )
        tree = joined(params)
        leaves, treedef = jax.tree.flatten(tree)
        inner_state = inner.init(tree)
        shapes = [jnp.shape(step_sizes) for step_sizes, _ in read_memory(inner_state)]
        if shapes != list(map(jnp.shape, leaves)):
            raise ValueError(
                f"inner must keep step sizes of shapes {list(map(jnp.shape, leaves))},"
                f" those of the parameters, got {shapes}. Put masks and groups of"
                " parameters around `in_eigenbasis`, not inside."
            )
        zeros = [jnp.zeros_like(leaf, dtype=memory_dtype(leaf)) for leaf in leaves]
        return EigenbasisState(
            inner_state=inner_state,
            prev_grads=treedef.unflatten(zeros),
            moments=for_each_axis(leaves, lambda n, dtype: jnp.zeros((n, n), dtype)),
            bases=for_each_axis(leaves, jnp.eye),
            phase=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, EigenbasisState]:
        del params  # They are in other coordinates than the inner gradient.
        if not isinstance(state, EigenbasisState):
            raise TypeError(
                "state must be an EigenbasisState, as `init` returns it, got"
                f" {type(state).__name__}."
            )
        tree = joined(updates)
        leaves = check_updates(tree, [state.prev_grads])
        treedef = jax.tree.structure(tree)
        bases = [()] * len(leaves)
        if isinstance(state.bases, tuple):
            prev_grads = jax.tree.leaves(state.prev_grads)
            pairs = zip(leaves, prev_grads, strict=True)
            leaves = [leaf.astype(prev.dtype) for leaf, prev in pairs]
            finite = jnp.asarray(True)
            if value is not None:
                finite = jnp.isfinite(check_value(value))
            state = learn(state, leaves, finite, decay, interval)
            bases = state.bases
        moves, inner_state = inner.update(
            treedef.unflatten(map(rotate, leaves, bases)),
            state.inner_state,
            value=value,
            **extra_args,
        )
        moves = [
            rotate(move, basis, back=True)
            for move, basis in zip(jax.tree.leaves(moves), bases, strict=True)
        ]
        updates = parted(treedef.unflatten(moves), updates)
        return updates, state._replace(inner_state=inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
