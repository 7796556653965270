"""Rotations of one leaf, by an orthogonal basis for each of its axes.

Arrays in, arrays out, no pytrees. `Matrices` holds for each axis of the leaf a matrix
of its size, or None if the axis is not rotated. The columns of a basis are the
directions that become coordinates. Leaves that are sharded over Explicit mesh axes are
gathered, computed with on every device, and laid out again as they came.
"""

import jax
import jax.numpy as jnp

from optax_rprop._layouts.layout import Memory
from optax_rprop._rule import UNDONE, remembered, was_undone
from optax_rprop._sharding import gathered, placed_like

Matrices = tuple[jax.Array | None, ...]
# Where single precision is cut to 8 or 11 bits otherwise, bases would not stay
# orthogonal.
_PRECISION = jax.lax.Precision.HIGHEST


def rotate(leaf: jax.Array, bases: Matrices, *, back: bool = False) -> jax.Array:
    """Into the coordinates of bases, or back."""
    whole = leaf
    for axis, basis in enumerate(bases):
        if basis is not None:
            sides = axis, int(back)
            whole = jnp.tensordot(gathered(whole), basis, sides, precision=_PRECISION)
            whole = jnp.moveaxis(whole, -1, axis)
    return leaf if whole is leaf else placed_like(whole, leaf)


def decayed_moments(
    moments: Matrices,
    grads: jax.Array,
    prev_grads: jax.Array,
    compared: jax.Array,
    decay: jax.typing.ArrayLike,
) -> Matrices:
    """The second moments after one more difference of gradients, of norm 1.

    A difference of 0, or one that is not to be `compared`, leaves them as they are.
    """
    # Halved, so that it does not overflow, and divided by its largest number before
    # its norm, so that its squares do not underflow.
    change = jnp.where(compared, grads / 2 - prev_grads / 2, jnp.zeros_like(grads))
    change = gathered(change)
    largest = jnp.max(jnp.abs(change), initial=0)
    change /= jnp.where(largest > 0, largest, jnp.ones_like(largest))
    norm = jnp.sqrt(jnp.sum(change**2))
    change /= jnp.where(norm > 0, norm, jnp.ones_like(norm))
    factor = jnp.where(norm > 0, jnp.asarray(decay, norm.dtype), jnp.ones_like(norm))

    def decayed(axis: int, moment: jax.Array) -> jax.Array:
        others = [other for other in range(change.ndim) if other != axis]
        product = jnp.tensordot(change, change, (others, others), precision=_PRECISION)
        return factor * moment + product

    return tuple(
        None if moment is None else decayed(axis, moment)
        for axis, moment in enumerate(moments)
    )


def turned(moments: Matrices) -> Matrices:
    """The eigenvectors of the second moments."""
    # A moment of low rank has equal eigenvalues, for which the derivative is NaN.
    return tuple(
        None if moment is None else jnp.linalg.eigh(jax.lax.stop_gradient(moment))[1]
        for moment in moments
    )


def carry_over(
    memory: Memory, prev_grads: jax.Array, old: Matrices, new: Matrices
) -> Memory:
    """The step sizes and codes of a leaf, from an old basis to a new one.

    The squares of a new direction's components in the old basis are weights, which sum
    to 1. Its step size is the root of the weighted mean of the old ones' squares. Its
    sign is that of the previous gradient along it, if more than half of that mean
    comes from coordinates that remember a sign, and else 0. If more than half of it
    comes from coordinates whose last update was undone, its step size is to shrink
    like theirs. Bases turn at finite losses only, where it does not matter which way
    that update went.
    `prev_grads` is in no basis.
    """
    step_sizes, codes = memory
    if all(matrix is None for matrix in new):
        return step_sizes, codes
    weights = tuple(
        None
        if before is None or after is None
        else jnp.matmul(before.T, after, precision=_PRECISION) ** 2
        for before, after in zip(old, new, strict=True)
    )
    least, most = jnp.min(step_sizes), jnp.max(step_sizes)
    squares = (step_sizes / most) ** 2
    means = rotate(squares, weights)
    known, undone = (
        2 * rotate(jnp.where(condition, squares, 0.0 * squares), weights) > means
        for condition in (remembered(codes) != 0, was_undone(codes))
    )
    # The derivative of a root is infinite at 0.
    roots = jnp.sqrt(jnp.where(means > 0, means, jnp.ones_like(means)))
    roots = jnp.where(means > 0, roots, jnp.zeros_like(means))
    # Means lie between the extremes, also where squares vanish and sums are rounded:
    # so the bounds of step sizes hold as before.
    step_sizes = jnp.clip(most * roots, least, most)
    signs = jnp.sign(rotate(prev_grads, new)).astype(codes.dtype)
    new_codes = jnp.where(known, signs, jnp.zeros_like(signs))
    return step_sizes, jnp.where(undone, jnp.full_like(signs, UNDONE), new_codes)
