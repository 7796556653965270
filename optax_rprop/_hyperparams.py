"""The arguments that optimizers are made with, validated, with errors meant for users.

Only Python and NumPy numbers are checked when an optimizer is made:
`optax.inject_hyperparams` and `jax.vmap` hand over JAX arrays, whose values are not
known when a function is traced. `check_arrays` checks those that are.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from optax_rprop._rule import VARIANTS

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Python numbers, so that a huge integer can be compared with them.
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
# What counts as the learning rate where each parameter has its own: only the layout
# "byte" reads it, as the step size from which its levels are counted.
_UNIT = 0.01

_PYTORCH_NAMES = {
    "lr": "learning_rate",
    "etas": "eta_minus and eta_plus",
    "step_sizes": "min_step_size and max_step_size",
}


class HyperParams(NamedTuple):
    """The numbers that `optax_rprop.rprop` accepts, under the same names."""

    learning_rate: float | jax.Array
    eta_minus: float | jax.Array
    eta_plus: float | jax.Array
    min_step_size: float | jax.Array
    max_step_size: float | jax.Array


def translates_pytorch(factory: Callable[_P, _T]) -> Callable[_P, _T]:
    """For PyTorch's argument names, raises an error with those of this package.

    A decorator, and no `**kwargs` in the signature, which `optax.inject_hyperparams`
    and editors read.
    """

    @functools.wraps(factory)
    def translating(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        theirs = [name for name in _PYTORCH_NAMES if name in kwargs]
        if theirs:
            names = " or ".join(map(repr, theirs))
            pairs = (
                f"PyTorch's {name} is {_PYTORCH_NAMES[name]} here" for name in theirs
            )
            raise TypeError(
                f"{factory.__name__} has no argument {names}: {', '.join(pairs)}."
            )
        return factory(*args, **kwargs)

    return translating


def hint(argument: object) -> str:
    """What may have been meant by an argument that is no number, or nothing."""
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


def read_number(name: str, number: Any) -> float | jax.Array:
    """A hyper-parameter: Python and NumPy numbers as a float, once for all.

    As an integer, a number could be cut to 32 bits later. JAX arrays stay arrays.
    """
    if callable(number):
        if name == "learning_rate":
            raise TypeError(
                "learning_rate must be a number, got a callable. To compute it from"
                " the parameters, name the argument of the callable `params`: `init`"
                " calls learning_rate(params=params). A schedule would have no effect,"
                " because the initial step size is read only once: schedule"
                " max_step_size instead, by optax.inject_hyperparams."
            )
        raise TypeError(
            f"{name} must be a number, got a callable. To schedule it, wrap the"
            " function that takes it:"
            f" optax.inject_hyperparams(function)({name}=schedule)."
        )
    if isinstance(number, jax.Array | np.ndarray) and number.shape != ():
        raise ValueError(
            f"{name} must be a scalar, got an array of shape {number.shape}. To"
            " give groups of parameters different settings, use optax.partition."
        )
    check_real(name, number)
    if isinstance(number, jax.Array):
        return number
    if isinstance(number, np.ndarray | np.generic):
        number = number.item()
    check_finite(name, number)
    return float(number)


def check_real(name: str, number: object) -> None:
    """Raise a TypeError unless it is a real number or an array of such."""
    if isinstance(number, jax.Array | np.ndarray):
        is_real = any(
            jnp.issubdtype(number.dtype, kind) for kind in (jnp.floating, jnp.integer)
        )
    else:
        is_real = isinstance(number, int | float | np.floating | np.integer)
    if not is_real or isinstance(number, bool):
        raise TypeError(f"{name} must be a real number, got {number!r}.{hint(number)}")


def check_finite(name: str, number: float) -> None:
    """Raise a ValueError unless single precision holds the number."""
    if not abs(number) <= _LARGEST:
        raise ValueError(f"{name} must be finite in float32, got {number}.")


def read_integer(name: str, number: object) -> int:
    """A positive integer, of Python or NumPy."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer):
        raise TypeError(
            f"{name} must be an integer, got {number!r}. For"
            f' optax.inject_hyperparams, name "{name}" in its static_args.'
        )
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}.")
    return int(number)


def read_decay(decay: object, name: str = "decay") -> float | jax.Array:
    """The decay of a running sum."""
    decay = read_number(name, decay)
    if value_or_nan(decay) <= 0 or value_or_nan(decay) > 1:
        raise ValueError(f"{name} must lie in (0, 1], got {decay}.")
    return decay


def value_or_nan(number: float | jax.Array) -> float:
    """The number, or, for an array, NaN, for which no comparison holds."""
    return number if isinstance(number, float) else math.nan


def check_option(name: str, option: object, options: Collection[str]) -> None:
    """Raise a ValueError if an option is not one of those there are."""
    if not isinstance(option, str) or option not in options:
        names = ", ".join(map(repr, options))
        raise ValueError(f"{name} must be one of {names}, got {option!r}.")


def per_parameter(learning_rate: Any) -> Callable[..., Any] | None:
    """What makes initial step sizes of ``params``; None if it is not given by those.

    A schedule does not take ``params``, and is left for `read_number` to refuse.
    """
    is_leaf = learning_rate is None or jax.tree_util.all_leaves([learning_rate])
    # Some trees, such as modules of Equinox, can be called, too.
    is_function = is_leaf or isinstance(learning_rate, jax.tree_util.Partial)
    if callable(learning_rate) and is_function:
        try:
            inspect.signature(learning_rate).bind(params=None)
        except (TypeError, ValueError):
            return None
        return learning_rate
    if is_leaf and getattr(learning_rate, "shape", ()) == ():
        return None
    return lambda params: learning_rate


def read_hyperparams(
    learning_rate: Any,
    eta_minus: object,
    eta_plus: object,
    min_step_size: object,
    max_step_size: object,
) -> HyperParams:
    """The hyper-parameters of Rprop.

    A tree or a callable of the parameters is left for `init` to read.

    Raises:
      TypeError: One is not a number.
      ValueError: One is outside its range.
    """
    is_number = per_parameter(learning_rate) is None
    numbers = HyperParams(
        read_number("learning_rate", learning_rate) if is_number else _UNIT,
        read_number("eta_minus", eta_minus),
        read_number("eta_plus", eta_plus),
        read_number("min_step_size", min_step_size),
        read_number("max_step_size", max_step_size),
    )
    step, shrink, grow, lower, upper = map(value_or_nan, numbers)
    if shrink <= 0 or shrink >= 1:
        raise ValueError(f"eta_minus must lie in (0, 1), got {shrink}.")
    if grow <= 1:
        raise ValueError(f"eta_plus must be greater than 1, got {grow}.")
    if lower < 0:
        raise ValueError(f"min_step_size must not be negative, got {lower}.")
    if lower > upper:
        raise ValueError(
            f"min_step_size must not exceed max_step_size, got {lower} > {upper}."
        )
    if is_number:
        check_step_size("learning_rate", step, lower, upper)
    return numbers


def check_step_size(
    name: str,
    step: float,
    lower: float,
    upper: float,
    dtype: jax.typing.DTypeLike = float,
    remedy: str = "",
) -> None:
    """Raise a ValueError unless an initial step size of this dtype is in range."""
    if step < _SMALLEST:
        raise ValueError(
            f"{name} must be positive, and at least {_SMALLEST:.3g}, the smallest"
            f" normal float32, got {step}. It is the initial step size; the direction"
            f" comes from the gradient.{remedy}"
        )
    # A bound passes as it is written in that dtype. It may be infinite there.
    with np.errstate(over="ignore"):
        lowest, highest = np.array([lower, upper]).astype(dtype).astype(float)
    if step < lowest:
        raise ValueError(
            f"{name} must not be less than min_step_size={lower}, got {step}."
            " Raise it, or lower min_step_size."
        )
    if step > highest:
        raise ValueError(
            f"{name} must not exceed max_step_size={upper}, got {step}. Lower"
            " it, or raise max_step_size."
        )


def check_arrays(**numbers: float | jax.Array) -> None:
    """Refuse JAX arrays, where their values are known, with which nothing can work.

    How they compare is not checked: schedules may cross.

    Raises:
      ValueError: One is not finite, or not positive.
    """
    for name, number in numbers.items():
        if not isinstance(number, jax.Array) or isinstance(number, Tracer):
            continue
        size = float(number)
        is_positive = size > 0 or (size == 0 and name in ("min_step_size", "lean"))
        if not (is_positive and size < float("inf")):
            raise ValueError(
                f"{name} must be positive and finite, got {number} of dtype"
                f" {number.dtype}. optax.inject_hyperparams casts numbers to the dtype"
                " of the parameters, and keeps integers: pass floats, and, for"
                " parameters of low precision, hyperparam_dtype=jnp.float32."
            )
