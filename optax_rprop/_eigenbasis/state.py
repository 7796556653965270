"""The state of `in_eigenbasis`, and how a gradient changes it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_rprop._eigenbasis.rotation import Frame, decayed_moments, with_new_bases
from optax_rprop._layouts import Found, find_states, is_rprop_state
from optax_rprop._layouts.layout import Memory, memory_dtype, trees_of
from optax_rprop._sharding import zero_of


class EigenbasisState(NamedTuple):
    """State of `in_eigenbasis`.

    Where nothing is rotated, `moments` and `bases` are a scalar 0, which tells
    ``optax.tree.map_params`` that they do not belong to parameters; so is `units`
    without ``full_matrix``.

    Attributes:
      inner_state: The state of the inner transformation, in rotated coordinates.
      prev_grads: The last finite gradient, not rotated: a pytree like the parameters,
        or one vector with ``full_matrix``. float64 for float64 parameters and float32
        for all others, as are moments, bases and units. 0 before the first.
      moments: For each leaf a tuple with, for each axis, the second moment of gradient
        differences, a matrix of the axis's size, or None if it is not rotated.
      bases: The bases in the same structure: orthogonal matrices whose columns are the
        directions that become coordinates.
      units: For each leaf the units in which moments and bases measure the parameters:
        powers of 2, of the leaf's shape, at most 1.
      phase: 0 before the first gradient, then counts from 1 to ``interval``; the bases
        are updated at the gradient for which it is 1. Shape (), dtype int32. It does
        not depend on data, so models under ``jax.vmap`` update their bases together.
    """

    inner_state: optax.OptState
    prev_grads: optax.Updates
    moments: Any
    bases: Any
    units: Any
    phase: jax.Array  # shape=(), dtype=int32

    def frames(self) -> list[Frame]:
        """The coordinates of each leaf, if one is rotated."""
        scaled = isinstance(self.units, tuple)
        units = self.units if scaled else [None] * len(self.bases)
        return list(map(Frame, self.bases, units))


def _find(inner_state: optax.OptState) -> Found:
    found = find_states(inner_state)
    if len(found) != 1:
        raise ValueError(
            f"inner must hold one state of Rprop, got {len(found)}. For groups of"
            " parameters, use optax.partition with `in_eigenbasis` inside."
        )
    if not found[0].layout.holds_any:
        raise ValueError(
            'inner must have state_layout="split" or "packed", got "byte". Its step'
            " sizes are powers of one base, but those along new directions are not."
        )
    return found[0]


def read_memory(inner_state: optax.OptState) -> list[Memory]:
    """Step sizes and codes of each leaf, from the one state of Rprop in a state."""
    return _find(inner_state).memory()


def write_memory(inner_state: optax.OptState, memory: list[Memory]) -> optax.OptState:
    """The state, with these step sizes and codes in its state of Rprop."""
    found = _find(inner_state)
    state, layout = found.state, found.layout
    fields = [layout.write(leaf) for leaf in memory]
    trees = trees_of(layout, fields, jax.tree.structure(found.tree))
    new_state = state._replace(**trees)
    return jax.tree.map(
        lambda node: new_state if node is state else node,
        inner_state,
        is_leaf=is_rprop_state,
    )


def new_state(
    params: optax.Params,
    inner_state: optax.OptState,
    rotates: list[list[bool]],
    *,
    scaled: bool,
) -> EigenbasisState:
    """The state before the first gradient; `rotates` says which axes are rotated."""
    leaves, treedef = jax.tree.flatten(params)
    prev_grads = [jnp.zeros_like(leaf, dtype=memory_dtype(leaf)) for leaf in leaves]
    zero = zero_of(leaves)

    def for_each_axis(make: Callable[[int, Any], jax.Array]) -> Any:
        matrices = tuple(
            tuple(
                make(size, leaf.dtype) + zero.astype(leaf.dtype) if rotated else None
                for size, rotated in zip(leaf.shape, axes, strict=True)
            )
            for leaf, axes in zip(prev_grads, rotates, strict=True)
        )
        return matrices if jax.tree.leaves(matrices) else zero

    moments = for_each_axis(lambda size, dtype: jnp.zeros((size, size), dtype))
    units = tuple(map(jnp.ones_like, prev_grads))
    return EigenbasisState(
        inner_state=inner_state,
        prev_grads=treedef.unflatten(prev_grads),
        moments=moments,
        bases=for_each_axis(lambda size, dtype: jnp.eye(size, dtype=dtype)),
        units=units if scaled and isinstance(moments, tuple) else zero,
        phase=jnp.zeros((), jnp.int32),
    )


def learn(
    state: EigenbasisState,
    grads: list[jax.Array],
    finite: jax.Array,
    decay: jax.typing.ArrayLike,
    interval: int,
) -> EigenbasisState:
    """Compare a gradient with the last, and update the bases if that is due.

    Args:
      state: The state, in which at least one axis is rotated.
      grads: The leaves of the gradient, in the dtypes of the last.
      finite: Whether the loss is finite, shape ().
      decay: Factor by which the moments are discounted.
      interval: Number of gradients between basis updates.

    Returns:
      The state for the update of the inner transformation.
    """
    prev_grads, treedef = jax.tree.flatten(state.prev_grads)
    pairs = list(zip(grads, prev_grads, strict=True))
    # A single non-finite number, and nothing is learned from this gradient.
    for grad in grads:
        finite &= jnp.all(jnp.isfinite(grad))
    compared = finite & jnp.stack([jnp.any(prev != 0) for prev in prev_grads]).any()
    differs = jnp.stack([jnp.any(grad != prev) for grad, prev in pairs]).any()

    def difference(grad: jax.Array, prev: jax.Array) -> jax.Array:
        # Halved, so that it does not overflow.
        return jnp.where(compared, grad / 2 - prev / 2, jnp.zeros_like(grad))

    moments = tuple(
        decayed_moments(moment, frame.measured(difference(*pair)), decay)
        for moment, frame, pair in zip(
            state.moments, state.frames(), pairs, strict=True
        )
    )
    # Only the fields that a basis update changes. If the phase depended on data, it
    # would differ between models under `jax.vmap`.
    changing = state._replace(moments=moments, prev_grads=None, phase=None)

    def update_bases(state: EigenbasisState) -> EigenbasisState:
        memory = read_memory(state.inner_state)
        leaves = zip(memory, prev_grads, state.moments, state.frames(), strict=True)
        changed = (with_new_bases(*leaf) for leaf in leaves)
        memory, moments, frames = zip(*changed, strict=True)
        bases, units = zip(*frames, strict=True)
        new = state._replace(
            inner_state=write_memory(state.inner_state, list(memory)),
            moments=moments,
            bases=bases,
            units=units if isinstance(state.units, tuple) else state.units,
        )
        # Never after a non-finite loss: Rprop undoes its last update in the basis in
        # which it was made.
        learned = compared & differs
        return jax.tree.map(lambda *pair: jnp.where(learned, *pair), new, state)

    # Under `jax.vmap`, a condition on data would solve the eigenproblems at every step.
    changed = jax.lax.cond(
        state.phase == 1, update_bases, lambda state: state, changing
    )
    return changed._replace(
        prev_grads=treedef.unflatten([jnp.where(finite, *pair) for pair in pairs]),
        phase=state.phase % interval + 1,
    )
