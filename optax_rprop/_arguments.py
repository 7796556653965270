"""Reads and checks the arguments of `init` and `update`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_rprop._rule import Rule, variant_of


def named_leaves(name: str, tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree, each with the expression that names it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def spread_leaves(prefix: Any, tree: Any) -> list[Any]:
    """For each leaf of a tree, the leaf of its prefix that applies to it.

    Raises:
      ValueError: It is no prefix of the tree.
    """
    spread = jax.tree.map(
        lambda leaf, part: jax.tree.map(lambda _: leaf, part), prefix, tree
    )
    return jax.tree.leaves(spread)


def _dtype_of(leaf: Any) -> Any:
    """The dtype of an array, abstract or not, or of a number; else None."""
    # An object that only has a dtype, or a string that names one, is not an array.
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        return leaf.dtype
    return jnp.result_type(leaf) if isinstance(leaf, int | float | complex) else None


def shape_of(leaf: Any) -> tuple[int, ...]:
    """The shape of an array, abstract or not, or of a number."""
    return getattr(leaf, "shape", ())


def is_floating(value: Any) -> bool:
    """Whether it is an array or a number of real floating dtype."""
    dtype = _dtype_of(value)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _check_real_floating(name: str, leaf: Any, remedy: str) -> None:
    if is_floating(leaf):
        return
    dtype = _dtype_of(leaf)
    if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
        remedy = (
            "Complex numbers have no sign: wrap the optimizer in"
            " optax.contrib.split_real_and_imaginary, whose update accepts no `value`"
            " (optax.with_extra_args_support drops it), or, for 'irprop+', train"
            " real and imaginary parts as two arrays."
        )
    got = repr(leaf) if dtype is None else dtype
    raise TypeError(f"{name} must have a real floating dtype, got {got}. {remedy}")


_NOT_TRAINED = (
    "Convert it to floating point, or, if it is not trained, leave it out, in Equinox"
    " with eqx.filter(model, eqx.is_inexact_array), or use optax.partition with"
    " optax.set_to_zero."
)


def real_leaves(params: Any) -> list[Any]:
    """The leaves of the parameters, abstract or not.

    Raises:
      TypeError: A leaf is complex, integer, boolean or not an array.
    """
    named = named_leaves("params", params)
    for name, leaf in named:
        _check_real_floating(name, leaf, _NOT_TRAINED)
    return [leaf for _, leaf in named]


def check_state(state: Any, state_type: Any, state_layout: str, rule: Rule) -> None:
    """Refuse a state of another optimizer.

    Raises:
      TypeError: The state has another type.
      ValueError: The state belongs to another variant.
    """
    if not isinstance(state, state_type):
        raise TypeError(
            f"state must be the {state_type.__name__} that `init` returns with"
            f" state_layout={state_layout!r}, got {type(state).__name__}."
            " The arguments of update are (grads, state, params), in this order."
            " Restore checkpoints into a state from `init`."
        )
    if type(state.variant) is not type(rule.mark):
        actual, expected = variant_of(state.variant), variant_of(rule.mark)
        raise ValueError(
            f"This state belongs to variant {actual!r}, but the optimizer is"
            f" {expected!r}. The variants store different things; start"
            " again from `init`."
        )


def matching_leaves(
    updates: Any, memory: Sequence[Any], argument: str = "updates"
) -> list[jax.Array]:
    """The leaves of the gradient as arrays; they must match each tree of the state.

    Also used for parameters, where an update needs them.

    Raises:
      TypeError: A leaf is complex, integer, boolean or not an array.
      ValueError: The structure, or the shape of a leaf, differs from the state's.
    """
    actual = jax.tree.structure(updates)
    for tree in memory:
        expected = jax.tree.structure(tree)
        if expected != actual:
            raise ValueError(
                f"{argument} must have the structure of the parameters given to"
                f" `init`, {expected}, got {actual}."
            )
    grads = []
    named = named_leaves(argument, updates)
    for (name, leaf), *kept in zip(named, *map(jax.tree.leaves, memory), strict=True):
        _check_real_floating(name, leaf, _NOT_TRAINED)
        grads.append(jnp.asarray(leaf))
        for array in kept:
            if grads[-1].shape != array.shape:
                raise ValueError(
                    f"{name} must have the shape of its parameter, {array.shape}, got"
                    f" {grads[-1].shape}."
                )
    return grads


def scalar_loss(value: Any) -> jax.Array:
    """The loss as an array.

    Raises:
      TypeError: It is not a real number.
      ValueError: It is missing or not a scalar.
    """
    if value is None:
        raise ValueError(
            'variant "irprop+" compares losses, so it needs `value`: call'
            " update(grads, state, params, value=loss). If a library calls update"
            ' without it, use "irprop-", or "rprop+", which undoes the last update when'
            " the gradient is NaN."
        )
    _check_real_floating("value", value, "Pass the loss at the current parameters.")
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"value must be a scalar loss, got shape {value.shape}. Reduce it, for"
            " instance with jnp.mean."
        )
    return value
