"""Checks of everything that comes from outside, with errors made for people.

Only concrete numbers are checked: `optax.inject_hyperparams` and `jax.vmap` hand
over JAX arrays, whose values are not known when a function is traced and which
a schedule may move past the bounds that hold for a start.
"""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._rule import VARIANTS, Variant

# Python numbers, so that a huge integer can be compared with them.
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


def _hint(argument: Any) -> str:
    if isinstance(argument, str) and argument in VARIANTS:
        return f" Pass it by name: variant={argument!r}."
    if isinstance(argument, dict):
        return " Parameters go to `init`: rprop().init(params)."
    if isinstance(argument, tuple):
        return (
            " PyTorch's etas are eta_minus and eta_plus here, and its step_sizes are"
            " min_step_size and max_step_size."
        )
    return ""


def concrete_number(name: str, number: Any, owner: str = "rprop") -> float | None:
    """A hyper-parameter of `owner` as a float, or None if it is a JAX array."""
    if callable(number):
        if name == "learning_rate":
            raise TypeError(
                "learning_rate must be a number, got a callable. It is the initial"
                " step size and is read only once, so a schedule has no meaning."
                " To anneal the moves, use optax.chain(rprop(...),"
                " optax.scale_by_schedule(schedule)); to anneal their bound,"
                " optax.inject_hyperparams(rprop)(max_step_size=schedule)."
            )
        raise TypeError(
            f"{name} must be a number, got a callable. To schedule it, use"
            f" optax.inject_hyperparams({owner})({name}=schedule)."
        )
    if isinstance(number, jax.Array | np.ndarray):
        if number.shape != ():
            raise ValueError(
                f"{name} must be a scalar, got an array of shape {number.shape}. For"
                " settings of their own for groups of parameters, use"
                " optax.partition."
            )
        is_real = any(
            jnp.issubdtype(number.dtype, kind) for kind in (jnp.floating, jnp.integer)
        )
    else:
        is_real = isinstance(number, int | float | np.floating | np.integer)
    if not is_real or isinstance(number, bool):
        raise TypeError(f"{name} must be a real number, got {number!r}.{_hint(number)}")
    if isinstance(number, jax.Array):
        return None
    if isinstance(number, np.ndarray | np.generic):
        number = number.item()
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{name} must be finite in float32, got {number}.")
    return float(number)


def check_option(name: str, option: Any, options: Collection[str]) -> None:
    """Raise a ValueError if an option is not one of those there are."""
    if not isinstance(option, str) or option not in options:
        names = ", ".join(map(repr, options))
        raise ValueError(f"{name} must be one of {names}, got {option!r}.")


def check_hyperparams(
    *,
    learning_rate: Any,
    eta_minus: Any,
    eta_plus: Any,
    min_step_size: Any,
    max_step_size: Any,
    skip_zero_grads: Any,
) -> None:
    """Refuse hyper-parameters with which Rprop has no meaning.

    Raises:
      TypeError: One is of the wrong type.
      ValueError: One is outside its range.
    """
    if not isinstance(skip_zero_grads, bool):
        raise TypeError(
            f"skip_zero_grads must be True or False, got {skip_zero_grads!r}."
        )
    step = concrete_number("learning_rate", learning_rate)
    shrink = concrete_number("eta_minus", eta_minus)
    grow = concrete_number("eta_plus", eta_plus)
    lower = concrete_number("min_step_size", min_step_size)
    upper = concrete_number("max_step_size", max_step_size)

    if shrink is not None and not 0 < shrink < 1:
        raise ValueError(f"eta_minus must lie in (0, 1), got {eta_minus}.")
    if grow is not None and not grow > 1:
        raise ValueError(f"eta_plus must be greater than 1, got {eta_plus}.")
    if lower is not None and lower < 0:
        raise ValueError(f"min_step_size must not be negative, got {min_step_size}.")
    if step is not None and not step >= _SMALLEST:
        raise ValueError(
            f"learning_rate must be positive in float32, got {learning_rate}. It is"
            " the initial step size; the sign of the moves is not part of it."
        )
    if lower is not None and upper is not None and lower > upper:
        raise ValueError(
            "min_step_size must not exceed max_step_size, got"
            f" {min_step_size} > {max_step_size}."
        )
    if step is not None and lower is not None and step < lower:
        raise ValueError(
            f"learning_rate must not be less than min_step_size={min_step_size}, got"
            f" {learning_rate}. Raise it, or lower min_step_size."
        )
    if step is not None and upper is not None and step > upper:
        raise ValueError(
            f"learning_rate must not exceed max_step_size={max_step_size}, got"
            f" {learning_rate}. Lower it, or raise max_step_size."
        )


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
