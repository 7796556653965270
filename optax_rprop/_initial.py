"""Per-parameter initial step sizes, validated, with errors meant for users."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from optax_rprop._arguments import named_leaves, shape_of, spread_leaves
from optax_rprop._hyperparams import (
    HyperParams,
    check_finite,
    check_real,
    check_step_size,
    hint,
    read_number,
    value_or_nan,
)
from optax_rprop._layouts.layout import as_step_size, memory_dtype

# A number, a tree of numbers and arrays, or a callable that makes one of `params`.
InitialStepSizes = jax.typing.ArrayLike | Callable[..., Any] | Any


def initial_step_sizes(
    tree: Any, params: optax.Params, numbers: HyperParams
) -> list[jax.Array]:
    """For each leaf of the parameters, step sizes that broadcast to its shape.

    All lie within the bounds: those that are known are checked, and others clipped.

    Raises:
      TypeError: The tree holds something that is no real number.
      ValueError: It has another structure than the parameters, or a leaf a shape or
        values that do not fit.
    """
    named = named_leaves("learning_rate", tree)
    numbered = jax.tree.structure(tree).unflatten(range(len(named)))
    try:
        places = spread_leaves(numbered, params)
    except ValueError as error:
        structure = jax.tree.structure(params)
        remedy = hint(tree)
        if jax.tree_util.treedef_is_leaf(structure):
            remedy += (
                " Inside in_eigenbasis with full_matrix=True, the parameters are one"
                " vector: give a callable of it."
            )
        raise ValueError(
            "learning_rate must be a number, or a tree of numbers with the structure of"
            f" the parameters, {structure}, or a prefix of it, got"
            f" {jax.tree.structure(tree)}.{remedy}"
        ) from error
    read = [_read(name, leaf, numbers) for name, leaf in named]
    step_sizes = []
    for place, (param_name, param) in zip(
        places, named_leaves("params", params), strict=True
    ):
        name, leaf = named[place][0], read[place]
        if not _broadcasts(np.shape(leaf), shape_of(param)):
            raise ValueError(
                f"{name} must have the shape of {param_name}, {shape_of(param)}, or one"
                f" that broadcasts to it, got {np.shape(leaf)}."
            )
        dtype = memory_dtype(param)
        lower, upper = (
            as_step_size(bound, dtype)
            for bound in (numbers.min_step_size, numbers.max_step_size)
        )
        step_sizes.append(jnp.clip(as_step_size(leaf, dtype), lower, upper))
    return step_sizes


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _read(name: str, leaf: Any, numbers: HyperParams) -> Any:
    """A leaf, checked: a number as a float, an array as it is."""
    check_real(name, leaf)
    if np.shape(leaf) == ():
        leaf = read_number(name, leaf)
    if isinstance(leaf, Tracer) or not getattr(leaf, "is_fully_addressable", True):
        return leaf
    values = np.asarray(leaf)
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else float
    values = values.astype(float)
    for extreme in (values.min(), values.max()) if values.size else ():
        check_finite(name, extreme)
        check_step_size(
            name,
            float(extreme),
            value_or_nan(numbers.min_step_size),
            value_or_nan(numbers.max_step_size),
            dtype,
            " If it is computed from the parameters, keep it above 0, for example by"
            " jnp.maximum. Parameters themselves go to `init`: rprop().init(params).",
        )
    return leaf
