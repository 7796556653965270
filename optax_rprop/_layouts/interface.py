"""What a state layout is: how a leaf's step sizes and codes are stored."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_rprop._rule import Decision, Mark

Fields = tuple[jax.Array, ...]
"""What a state stores for one leaf of the parameters: arrays of its shape."""


class HyperParams(NamedTuple):
    """The numbers that `optax_rprop.rprop` takes, under the same names."""

    learning_rate: Any
    eta_minus: Any
    eta_plus: Any
    min_step_size: Any
    max_step_size: Any


class Layout(NamedTuple):
    """A state layout: all that depends on how step sizes and codes are stored.

    Attributes:
      state_type: The state, a NamedTuple. Besides the fields named below, it has
        `prev_value` and `variant`.
      parameter_fields: The names of its fields that are trees like the parameters.
      prepare: Hyper-parameters and the variant's mark to what the functions below
        need of them. Raises an error for those that the layout cannot hold.
      shared_fields: From what was prepared, the state's other fields by name.
      init: A parameter, what was prepared, and the shared fields, to the fields of its
        leaf.
      bind: The state, and what was prepared, to the context: scalars that the
        functions below share between the leaves.
      codes: Fields and context to codes, see `optax_rprop._rule.decide`.
      advance: Fields, decision and context to the new fields.
      moves: Fields, context and a dtype to the update that the fields encode, in this
        dtype, to be subtracted from the parameters.
      read: Fields and the state to step sizes and codes.
      spacing: The state to the factor between neighbouring step sizes: where it is not
        1, they may end short of their bounds.
      write: Step sizes and codes to fields; None if the layout holds only the step
        sizes that it comes to by itself.
    """

    state_type: type
    parameter_fields: tuple[str, ...]
    prepare: Callable[[HyperParams, Mark], Any]
    shared_fields: Callable[[Any], dict[str, Any]]
    init: Callable[[Any, Any, dict[str, Any]], Fields]
    bind: Callable[[Any, Any], Any]
    codes: Callable[[Fields, Any], jax.Array]
    advance: Callable[[Fields, Decision, Any], Fields]
    moves: Callable[[Fields, Any, Any], jax.Array]
    read: Callable[[Fields, Any], tuple[jax.Array, jax.Array]]
    spacing: Callable[[Any], jax.typing.ArrayLike]
    write: Callable[[jax.Array, jax.Array], Fields] | None


def leaves_of(layout: Layout, state: Any) -> list[Fields]:
    """What a state stores, leaf by leaf."""
    trees = [getattr(state, name) for name in layout.parameter_fields]
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


def trees_of(layout: Layout, leaves: list[Fields], treedef: Any) -> dict[str, Any]:
    """The inverse: the fields of a state by name."""
    # By number, not by `zip`: a tree without leaves has its fields too.
    return {
        name: treedef.unflatten([leaf[i] for leaf in leaves])
        for i, name in enumerate(layout.parameter_fields)
    }


def memory_dtype(param: jax.typing.ArrayLike) -> Any:
    """The dtype of what is remembered in the units of a parameter or its gradient."""
    dtype = jnp.result_type(param)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def adapt(step_sizes: jax.Array, decision: Decision, numbers: HyperParams) -> jax.Array:
    """Carry a decision out on step sizes stored as floats."""
    shrink, grow, lower, upper = (
        jnp.asarray(number, step_sizes.dtype) for number in numbers[1:]
    )
    # One `clamp` around a selected factor says the same, but compiles to one more
    # copy of a whole buffer on CPU and takes three times as long.
    adapted = jax.lax.select(
        decision.grow,
        jax.lax.clamp(lower, step_sizes * grow, upper),
        jax.lax.select(
            decision.shrink,
            jax.lax.clamp(lower, step_sizes * shrink, upper),
            jax.lax.clamp(lower, step_sizes, upper),
        ),
    )
    if decision.take_back is None:
        return adapted
    return jax.lax.select(decision.take_back, step_sizes, adapted)


def update_of(step_sizes: jax.Array, codes: jax.Array, dtype: Any) -> jax.Array:
    """The update that step sizes and codes encode, to be subtracted."""
    # Of the codes in order, from -2 to 2: d, -d, 0, d, -d.
    backward = (codes == -1) | (codes == 2)
    moves = jax.lax.select(backward, -step_sizes, step_sizes)
    return jax.lax.select(codes == 0, jnp.zeros_like(moves), moves).astype(dtype)
