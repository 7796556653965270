"""Checks of what `init` and `update` are given, with errors made for people."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optax_rprop._rule import VARIANTS, Variant


def _named_leaves(name: str, tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree, each with the expression that names it."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(name + jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def _check_real_floating(name: str, leaf: Any, remedy: str) -> None:
    # Anything with shape and dtype will do, abstract arrays too. What merely has a
    # dtype, or names one as some strings do, will not.
    if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
        dtype = got = leaf.dtype
    elif isinstance(leaf, int | float | complex):
        dtype = got = jnp.result_type(leaf)
    else:
        dtype, got = None, repr(leaf)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating):
            remedy = (
                "Complex numbers have no sign: wrap the optimizer in"
                " optax.contrib.split_real_and_imaginary, whose update takes no `value`"
                " (optax.with_extra_args_support drops it), or, for 'irprop+', train"
                " real and imaginary parts as two arrays."
            )
        raise TypeError(f"{name} must have a real floating dtype, got {got}. {remedy}")


_NOT_TRAINED = (
    "Leave out what is not trained, in Equinox by eqx.filter(model,"
    " eqx.is_inexact_array), or use optax.partition with optax.set_to_zero."
)


def check_params(params: Any) -> list[Any]:
    """The leaves of the parameters.

    Raises:
      TypeError: One is complex, integer, boolean or no array.
    """
    named = _named_leaves("params", params)
    for name, leaf in named:
        _check_real_floating(name, leaf, _NOT_TRAINED)
    return [leaf for _, leaf in named]


def check_state(
    state: Any, state_type: type, state_layout: str, variant: Variant
) -> None:
    """Refuse what another optimizer's `init` returned.

    Raises:
      TypeError: The state is of another type.
      ValueError: It is of another variant.
    """
    if not isinstance(state, state_type):
        raise TypeError(
            f"state must be a {state_type.__name__}, as `init` returns it with"
            f" state_layout={state_layout!r}, got {type(state).__name__}."
            " The arguments of update are (grads, state, params), in this order. A"
            " checkpoint is restored into the state that `init` returns."
        )
    marks = {type(rule.mark): name for name, rule in VARIANTS.items()}
    actual = marks.get(type(state.variant))
    if actual != variant:
        raise ValueError(
            f"state must come from variant {variant!r}, got that of {actual!r}."
            " Variants remember different things: start from `init`."
        )


def check_updates(
    updates: Any, memory: Sequence[Any], argument: str = "updates"
) -> list[jax.Array]:
    """The leaves of the gradient, which must fit each tree that the state holds.

    So must parameters, where an update needs them.

    Raises:
      TypeError: A leaf is complex, integer, boolean or no array.
      ValueError: The gradient has another structure than the memory, or a leaf
        another shape.
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
    named = _named_leaves(argument, updates)
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


def check_value(value: Any) -> jax.Array:
    """The loss as an array.

    Raises:
      TypeError: It is not a real number.
      ValueError: It is missing or not a scalar.
    """
    if value is None:
        raise ValueError(
            'variant "irprop+" compares losses, so it needs `value`: call'
            " update(grads, state, params, value=loss). Where a library calls update"
            ' without it, take "irprop-", or "rprop+", which goes back on a NaN'
            " gradient."
        )
    _check_real_floating("value", value, "Pass the loss at the current parameters.")
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"value must be a scalar loss, got shape {value.shape}. Reduce it, for"
            " instance by jnp.mean."
        )
    return value
