"""Rotations of one leaf, with one basis per axis.

Functions of arrays, not of pytrees. Leaves that are sharded over Explicit mesh axes are
gathered, processed on every device, and sharded again as before.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_rprop._layouts.layout import Memory
from optax_rprop._rule import UNDONE, remembered, was_undone
from optax_rprop._sharding import gathered, placed_like

Matrices = tuple[jax.Array | None, ...]
"""For each axis of a leaf a matrix of its size, or None if the axis is not rotated."""

# Some devices multiply float32 with 8 or 11 bits by default; then bases would not stay
# orthogonal.
_PRECISION = jax.lax.Precision.HIGHEST


def rotated_axes(
    shapes: list[tuple[int, ...]], max_size: int, is_vector: bool
) -> list[list[bool]]:
    """Which axes of each leaf are rotated.

    Raises:
      ValueError: No axis of any non-empty leaf is rotated.
    """
    rotates = [
        [
            math.prod(shape) > 0
            and (is_vector or len(shape) > 1)
            and 1 < size <= max_size
            for size in shape
        ]
        for shape in shapes
    ]
    filled = [shape for shape in shapes if math.prod(shape)]
    if not filled or is_vector or any(map(any, rotates)):
        return rotates
    if max(map(len, filled)) < 2:
        those = f"all {len(filled)} parameters are scalars or vectors"
        if len(filled) == 1:
            those = "the only parameter is a scalar or vector"
        raise ValueError(
            f"in_eigenbasis has nothing to rotate: {those}. Use full_matrix=True."
        )
    raise ValueError(
        "in_eigenbasis has nothing to rotate: no axis of a matrix has from 2 to"
        f" max_size={max_size} entries. Raise max_size, use full_matrix=True, or leave"
        " in_eigenbasis out."
    )


class Frame(NamedTuple):
    """The coordinates of a leaf in which Rprop runs.

    Attributes:
      bases: Orthogonal matrices, whose columns are the directions that become
        coordinates.
      units: Powers of 2, of the leaf's shape, in which the bases measure the leaf; None
        if all are 1.
    """

    bases: Matrices
    units: jax.Array | None

    def measured(self, grads: jax.Array) -> jax.Array:
        """A gradient in units of the frame, not rotated."""
        return grads if self.units is None else self.units * grads

    def into(self, grads: jax.Array) -> jax.Array:
        """A gradient in the coordinates of the frame."""
        return _rotated(self.measured(grads), self.bases, side=0)

    def back(self, updates: jax.Array) -> jax.Array:
        """Updates in the coordinates of the parameters."""
        return self.measured(_rotated(updates, self.bases, side=1))


def _rotated(leaf: jax.Array, matrices: Matrices, side: int) -> jax.Array:
    whole = leaf
    for axis, matrix in enumerate(matrices):
        if matrix is not None:
            sides = axis, side
            whole = jnp.tensordot(gathered(whole), matrix, sides, precision=_PRECISION)
            whole = jnp.moveaxis(whole, -1, axis)
    return leaf if whole is leaf else placed_like(whole, leaf)


def decayed_moments(
    moments: Matrices, change: jax.Array, decay: jax.typing.ArrayLike
) -> Matrices:
    """The second moments after one more gradient difference, scaled to norm 1.

    A difference of 0 leaves them unchanged.
    """
    change = gathered(change)
    # Divided by its largest entry first, so that squares do not underflow.
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


def with_new_bases(
    memory: Memory, prev_grads: jax.Array, moments: Matrices, old: Frame
) -> tuple[Memory, Matrices, Frame]:
    """Change the bases of a leaf to the eigenvectors of its moments.

    Args:
      memory: Step sizes and codes in the old frame.
      prev_grads: The previous gradient, not rotated.
      moments: The moments, in units of the old frame.
      old: The old frame.

    Returns:
      Memory, moments and frame.
    """
    if all(moment is None for moment in moments):
        return memory, moments, old
    inverse, units = old.bases, old.units
    if units is not None:
        # This is one vector with one basis. Powers of 2 scale without rounding.
        basis, moment = old.bases[0], moments[0]
        assert basis is not None
        assert moment is not None
        new_units = _units(memory[0], basis, units)
        ratio = new_units / units
        rescaled = ratio[:, None] * moment * ratio[None, :]
        # Older differences keep their weight.
        total = jnp.trace(rescaled)
        weight = jnp.trace(moment) / jnp.where(total > 0, total, jnp.ones_like(total))
        moments = (weight * rescaled,)
        inverse, units = (basis / ratio[:, None],), new_units
    bases = tuple(
        None if moment is None or basis is None else _eigenvectors(moment, basis)
        for moment, basis in zip(moments, old.bases, strict=True)
    )
    new = Frame(bases, units)
    weights = tuple(
        None
        if before is None or after is None
        else jnp.matmul(before.T, after, precision=_PRECISION) ** 2
        for before, after in zip(inverse, bases, strict=True)
    )
    return carried_over(memory, prev_grads, weights, new), moments, new


def _units(step_sizes: jax.Array, basis: jax.Array, units: jax.Array) -> jax.Array:
    """The root mean square of each parameter's update as a power of 2, 1 at most."""
    squares = (step_sizes / jnp.max(step_sizes)) ** 2
    sizes = units * jnp.sqrt(jnp.matmul(basis**2, squares, precision=_PRECISION))
    limits = jnp.finfo(sizes.dtype)
    # Rounded before the maximum, so that changing the units of parameters by powers of
    # 2 changes none of the numbers that follow.
    exponents = jnp.round(jnp.log2(jnp.maximum(sizes, limits.tiny))).astype(jnp.int32)
    exponents = jnp.maximum(exponents - jnp.max(exponents), limits.minexp // 4)
    # Not `exp2`, which rounds.
    return jnp.ldexp(jnp.ones_like(sizes), exponents)


def _eigenvectors(moment: jax.Array, basis: jax.Array) -> jax.Array:
    # Directions without any difference so far have equal eigenvalues, so rounding would
    # choose them, differently on each device. An anchor that is too small to matter
    # elsewhere keeps them as they are.
    size = len(moment)
    order = jnp.arange(1, size + 1, dtype=moment.dtype) / size
    anchor = jnp.matmul(basis * order[None, :], basis.T, precision=_PRECISION)
    weight = max(1e-12, 64 * float(jnp.finfo(moment.dtype).eps)) * jnp.max(
        jnp.abs(moment)
    )
    # A moment of low rank has equal eigenvalues, for which the derivative is NaN.
    return jnp.linalg.eigh(jax.lax.stop_gradient(moment + weight * anchor))[1]


def carried_over(
    memory: Memory, prev_grads: jax.Array, weights: Matrices, new: Frame
) -> Memory:
    """Step sizes and codes in a new frame.

    The step size along a new direction is the root of the weighted sum of the old ones'
    squares. Its sign is that of the previous gradient along it, if more than half of
    that sum comes from coordinates that remember a sign, and 0 otherwise. If more than
    half of it comes from coordinates whose last update was undone, its step size will
    shrink like theirs. Bases are updated only at finite losses, where the direction of
    that update does not matter.

    Args:
      memory: Step sizes and codes in the old frame.
      prev_grads: The previous gradient, not rotated.
      weights: The squares of the new directions' components in the old frame.
      new: The new frame.
    """
    step_sizes, codes = memory
    most = jnp.max(step_sizes)
    squares = (step_sizes / most) ** 2
    sums = _rotated(squares, weights, side=0)
    known, undone = (
        2 * _rotated(jnp.where(condition, squares, 0.0 * squares), weights, side=0)
        > sums
        for condition in (remembered(codes) != 0, was_undone(codes))
    )
    # The derivative of a root is infinite at 0.
    roots = jnp.sqrt(jnp.where(sums > 0, sums, jnp.ones_like(sums)))
    roots = jnp.where(sums > 0, roots, jnp.zeros_like(sums))
    step_sizes = most * roots
    if new.units is None:
        # Means lie between the extremes, even if squares underflow or sums are
        # rounded, so step sizes stay within their bounds.
        step_sizes = jnp.clip(step_sizes, jnp.min(memory[0]), most)
    else:
        limits = jnp.finfo(step_sizes.dtype)
        step_sizes = jnp.clip(step_sizes, limits.tiny, limits.max)
    signs = jnp.sign(new.into(prev_grads)).astype(codes.dtype)
    new_codes = jnp.where(known, signs, jnp.zeros_like(signs))
    return step_sizes, jnp.where(undone, jnp.full_like(signs, UNDONE), new_codes)
