"""Checks of the hyper-parameters, with errors made for people.

Only concrete numbers are checked: `optax.inject_hyperparams` and `jax.vmap` hand
over JAX arrays, whose values are not known when a function is traced and which
a schedule may move past the bounds that hold for a start.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optax_rprop._rule import VARIANTS

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
