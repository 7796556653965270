"""What a state layout is: how the step sizes and codes of a leaf are stored."""

import abc
import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._hyperparams import HyperParams
from optax_rprop._rule import Decision, Rule

Fields = tuple[jax.Array, ...]
"""What a state stores for one leaf of the parameters: arrays of its shape."""

Memory = tuple[jax.Array, jax.Array]
"""Step sizes and codes of one leaf, whatever the layout."""


@dataclasses.dataclass(frozen=True)
class Layout(abc.ABC):
    """A state layout. Its instances are bound to hyper-parameters, and pytrees.

    Attributes:
      state_type: The state, a NamedTuple. Besides the fields named below, it has
        `prev_value` and `variant`.
      tree_names: The names of its fields that are trees like the parameters.
      holds_any: Whether it holds any step size, and `write` works.
      rule: The rule, which tells what codes there can be.
    """

    state_type: ClassVar[Any]
    tree_names: ClassVar[tuple[str, ...]]
    holds_any: ClassVar[bool] = True
    numbers: HyperParams
    rule: Rule = dataclasses.field(metadata={"static": True})

    @classmethod
    def fitted(cls, numbers: HyperParams, rule: Rule) -> HyperParams:
        """The hyper-parameters, arrays clipped to the range that the layout holds.

        Raises:
          TypeError: One of them has a type with which the layout cannot work.
          ValueError: The layout cannot hold them.
        """
        del rule
        return numbers

    @classmethod
    def bound(cls, numbers: HyperParams, rule: Rule, state: Any = None) -> Self:
        """The layout of a state, or, without one, of a new state.

        Raises:
          ValueError: The state does not fit the hyper-parameters.
        """
        del state
        return cls(numbers, rule)

    def shared_fields(self) -> dict[str, Any]:
        """The fields of a new state that belong to no single parameter."""
        return {}

    @abc.abstractmethod
    def init(self, param: Any, step_size: float | jax.Array) -> Fields:
        """The first fields of a leaf: new arrays, with the parameter's sharding.

        Args:
          param: The leaf, which may be abstract.
          step_size: Its initial step sizes, of a shape that broadcasts to its own.
        """

    @abc.abstractmethod
    def codes(self, fields: Fields) -> jax.Array:
        """The codes, see `optax_rprop._rule`."""

    @abc.abstractmethod
    def advance(self, fields: Fields, decision: Decision) -> Fields:
        """The fields after a decision."""

    @abc.abstractmethod
    def updates(self, fields: Fields, dtype: jax.typing.DTypeLike) -> jax.Array:
        """The update that the fields encode, to be subtracted from the parameters."""

    @classmethod
    @abc.abstractmethod
    def read(cls, fields: Fields, state: Any) -> Memory:
        """The step sizes, in their dtype, and the codes, in any signed dtype."""

    @classmethod
    def write(cls, memory: Memory) -> Fields:
        """The inverse of `read`."""
        raise NotImplementedError

    @classmethod
    def spacing(cls, state: Any) -> float:
        """The factor between neighbouring step sizes; 1 if there is no lattice."""
        del state
        return 1.0


def fields_of(layout: type[Layout], state: Any) -> list[Fields]:
    """The fields of a state, leaf by leaf."""
    trees = [getattr(state, name) for name in layout.tree_names]
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


def trees_of(
    layout: type[Layout], leaves: list[Fields], treedef: Any
) -> dict[str, Any]:
    """The inverse: the trees of a state by name."""
    # By number, not by `zip`: a tree without leaves has its fields too.
    return {
        name: treedef.unflatten([leaf[i] for leaf in leaves])
        for i, name in enumerate(layout.tree_names)
    }


def memory_dtype(param: jax.typing.ArrayLike | jax.typing.DTypeLike) -> np.dtype:
    """The dtype of what is remembered in the units of a parameter or its gradient."""
    dtype = jnp.result_type(param)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype("float32")


def as_step_size(
    number: jax.typing.ArrayLike, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """A step size, or a bound of step sizes, as a new array.

    It is a positive normal number: a step size that underflows to 0 never grows again.
    """
    limits = jnp.finfo(dtype)
    return jax.lax.clamp(limits.tiny, jnp.asarray(number, dtype), limits.max)


def filled_like(param: Any, values: jax.Array, dtype: jax.typing.DTypeLike) -> Any:
    """A new array of these values, with the parameter's shape and sharding."""
    if values.ndim == 0:
        return jnp.full_like(param, values, dtype=dtype)
    # Filled with an array, `full_like` would forget the sharding.
    return jnp.full_like(param, 1, dtype=dtype) * values


def narrowed(updates: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Updates in another dtype, finite also where its range is smaller."""
    limits = jnp.finfo(dtype)
    if limits.bits < jnp.finfo(updates.dtype).bits:
        largest = limits.max.astype(updates.dtype)
        updates = jax.lax.clamp(-largest, updates, largest)
    return updates.astype(dtype)


def adapt(step_sizes: jax.Array, decision: Decision, numbers: HyperParams) -> jax.Array:
    """Carry a decision out on step sizes stored as floats."""
    dtype = step_sizes.dtype
    shrink, grow = (
        jnp.asarray(numbers.eta_minus, dtype),
        jnp.asarray(numbers.eta_plus, dtype),
    )
    lower = as_step_size(numbers.min_step_size, dtype)
    upper = as_step_size(numbers.max_step_size, dtype)
    others = jax.lax.select(decision.shrink, step_sizes * shrink, step_sizes)
    # One `clamp` around it all says the same. But XLA's CPU compiler makes an operation
    # with a single operand of full size again for each operation that reads it, with
    # all that comes before: one more copy of a whole buffer, and three times as long.
    adapted = jax.lax.select(
        decision.grow,
        jax.lax.clamp(lower, step_sizes * grow, upper),
        jax.lax.clamp(lower, others, upper),
    )
    if decision.undo is None:
        return adapted
    return jax.lax.select(decision.undo, step_sizes, adapted)
