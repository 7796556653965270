"""The state of `in_eigenbasis`, and how it learns from a gradient."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_rprop._eigenbasis.rotation import carry_over, decayed_moments, turned
from optax_rprop._layouts import Found, find_states, is_rprop_state
from optax_rprop._layouts.layout import Memory, trees_of


class EigenbasisState(NamedTuple):
    """State of `in_eigenbasis`.

    Where nothing is rotated, `moments` and `bases` are a scalar 0, by which
    ``optax.tree.map_params`` sees that they do not belong to parameters.

    Attributes:
      inner_state: The state of the inner transformation, in rotated coordinates.
      prev_grads: The last finite gradient, in no basis: a pytree like the parameters,
        or one vector with ``full_matrix``. float64 for float64 parameters and float32
        for all others, as are moments and bases.
      moments: For each leaf a tuple with, for each axis, the second moment of gradient
        differences, a matrix of the axis's size, or None if it is not rotated.
      bases: Likewise the bases. Columns are the directions that become coordinates.
      phase: 0 before the first gradient, then the number of the next difference, from
        1, with which the bases turn, to ``interval``. Shape (), dtype int32.
    """

    inner_state: optax.OptState
    prev_grads: optax.Updates
    moments: Any
    bases: Any
    phase: jax.Array  # shape=(), dtype=int32


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
            " sizes are powers of one base, and those along new directions are not."
        )
    return found[0]


def read_memory(inner_state: optax.OptState) -> list[Memory]:
    """Step sizes and codes of each leaf, from the one state of Rprop in a state."""
    return _find(inner_state).memory()


def write_memory(inner_state: optax.OptState, memory: list[Memory]) -> optax.OptState:
    """The state, with these step sizes and codes in its state of Rprop."""
    _, state, layout = _find(inner_state)
    structure = jax.tree.structure(getattr(state, layout.tree_names[0]))
    fields = [layout.write(leaf) for leaf in memory]
    new_state = state._replace(**trees_of(layout, fields, structure))
    return jax.tree.map(
        lambda node: new_state if node is state else node,
        inner_state,
        is_leaf=is_rprop_state,
    )


def learn(
    state: EigenbasisState,
    grads: list[jax.Array],
    finite: jax.Array,
    decay: jax.typing.ArrayLike,
    interval: int,
) -> EigenbasisState:
    """Compare a gradient with the last, and turn the bases if it is time.

    Args:
      state: The state, in which at least one axis is rotated.
      grads: The leaves of the gradient, in the dtypes of the last.
      finite: Whether the loss is finite, shape ().
      decay: Factor of the moments.
      interval: Number of differences from turn to turn.

    Returns:
      The state as the inner transformation is to see it.
    """
    prev_grads, treedef = jax.tree.flatten(state.prev_grads)
    pairs = list(zip(grads, prev_grads, strict=True))
    # One number that is not finite, and nothing is learned at this point.
    for grad in grads:
        finite &= jnp.all(jnp.isfinite(grad))
    compared = finite & (state.phase > 0)
    moments = tuple(
        decayed_moments(moment, *pair, compared, decay)
        for moment, pair in zip(state.moments, pairs, strict=True)
    )
    differs = jnp.stack([jnp.any(grad != prev) for grad, prev in pairs]).any()

    def turn(bases: Any, inner_state: Any) -> tuple[Any, Any]:
        new = tuple(map(turned, moments))
        leaves = zip(read_memory(inner_state), prev_grads, bases, new, strict=True)
        memory = [carry_over(*leaf) for leaf in leaves]
        return new, write_memory(inner_state, memory)

    # Never after a point outside the domain: Rprop undoes its last update in the basis
    # in which it was made.
    bases, inner_state = jax.lax.cond(
        compared & differs & (state.phase == 1),
        turn,
        lambda *kept: kept,
        state.bases,
        state.inner_state,
    )
    counts = finite & (differs | (state.phase == 0))
    return EigenbasisState(
        inner_state=inner_state,
        prev_grads=treedef.unflatten([jnp.where(finite, *pair) for pair in pairs]),
        moments=moments,
        bases=bases,
        phase=jnp.where(counts, state.phase % interval + 1, state.phase),
    )
