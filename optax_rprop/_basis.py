"""The state of `in_eigenbasis`, and what a gradient teaches it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_rprop._layouts import LAYOUT_OF
from optax_rprop._layouts.interface import leaves_of, trees_of
from optax_rprop._rotation import carry_over, decayed_moments, turned

Memory = list[tuple[jax.Array, jax.Array]]


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


def _find(opt_state: Any) -> tuple[list[Any], Any, int]:
    """The nodes of a state, its structure, and which node is the state of Rprop."""
    nodes, treedef = jax.tree.flatten(opt_state, lambda node: type(node) in LAYOUT_OF)
    found = [i for i, node in enumerate(nodes) if type(node) in LAYOUT_OF]
    if len(found) != 1:
        raise ValueError(
            f"inner must hold one state of Rprop, got {len(found)}. For groups of"
            " parameters, use optax.partition with `in_eigenbasis` inside."
        )
    if LAYOUT_OF[type(nodes[found[0]])].write is None:
        raise ValueError(
            'inner must have state_layout="split" or "packed", got "byte". Its step'
            " sizes are powers of one base, and those along new directions are not."
        )
    return nodes, treedef, found[0]


def read_memory(opt_state: Any) -> Memory:
    """Step sizes and codes of each leaf, from the one state of Rprop in a state."""
    nodes, _, i = _find(opt_state)
    state, layout = nodes[i], LAYOUT_OF[type(nodes[i])]
    return [layout.read(leaf, state) for leaf in leaves_of(layout, state)]


def write_memory(opt_state: Any, memory: Memory) -> Any:
    """The state, with these step sizes and codes in its state of Rprop."""
    nodes, treedef, i = _find(opt_state)
    layout = LAYOUT_OF[type(nodes[i])]
    assert layout.write is not None  # As `_find` has it.
    leaves = [layout.write(*leaf) for leaf in memory]
    structure = jax.tree.structure(getattr(nodes[i], layout.parameter_fields[0]))
    nodes[i] = nodes[i]._replace(**trees_of(layout, leaves, structure))
    return treedef.unflatten(nodes)


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
        memory = [
            carry_over(*remembered, prev, old, basis)
            for remembered, prev, old, basis in leaves
        ]
        return new, write_memory(inner_state, memory)

    # Never on the way back from outside the domain: Rprop undoes its last update in the
    # basis in which it was made.
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
