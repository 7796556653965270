"""The step sizes that a byte can hold, and which hyper-parameters fit them."""

import functools
import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from optax_rprop._hyperparams import HyperParams, value_or_nan
from optax_rprop._layouts.layout import as_step_size
from optax_rprop._rule import Rule

_LARGEST_DENOMINATOR = 16
# A bound counts as a level if it is one but for rounding.
_SLACK = 1e-4


class Lattice(NamedTuple):
    """The step sizes that the state of the layout ``"byte"`` can hold.

    Level n stands for the step size ``unit * base**(n - unit_level)``.

    Attributes:
      unit: The initial step size, in units of the parameters, shape (), float; where
        each parameter is given its own, 0.01, or the bound nearest to it.
      unit_level: Its level, shape (), int32.
      log2_base: A dict whose one key is the binary logarithm of the base, written as
        ``repr`` writes it, and whose value is empty. As a key it is part of the
        structure of the state, so that a compiled update, too, can refuse a state of
        another base.
    """

    unit: jax.Array
    unit_level: jax.Array
    log2_base: dict[str, tuple[()]]


class Base(NamedTuple):
    """A base of which both factors are powers: ``base**up`` and ``base**-down``."""

    up: int
    down: int
    log2: float


def levels_of(rule: Rule) -> int:
    """How many levels fit into a byte, beside the codes of a rule."""
    return 51 if rule.undoes else 85


def log2_base_of(lattice: Lattice) -> float:
    """The binary logarithm of a lattice's base."""
    (key,) = lattice.log2_base
    return float(key)


def _bounds_that_fit(
    numbers: HyperParams, base: Base, levels: int
) -> tuple[float, float] | None:
    """Narrower bounds, if there are known to be too many levels within these."""
    unit, _, _, lower, upper = map(value_or_nan, numbers)
    if math.isnan(unit + lower + upper):
        return None
    lowest, highest = (
        math.log2(max(bound, 1e-45) / unit) / base.log2 for bound in (lower, upper)
    )
    # Powers of two must be normal in float32.
    last = min(levels - 1, math.floor(126 / base.log2))
    if math.floor(highest + _SLACK) - math.ceil(lowest - _SLACK) <= last:
        return None
    # A run must shrink its step sizes by more than it has to grow them.
    lowest = max(lowest, min(highest, last // 3) - last)
    highest = min(highest, lowest + last)
    return unit * 2 ** (lowest * base.log2), unit * 2 ** (highest * base.log2)


@functools.lru_cache
def base_of(eta_minus: float, eta_plus: float) -> Base | None:
    """The base of which both factors are powers, if there is one."""
    exact = math.log(eta_plus) / -math.log(eta_minus)
    ratio = Fraction(exact).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(ratio / exact - 1) > 1e-6:
        return None
    up, down = ratio.numerator, ratio.denominator
    return Base(up, down, -math.log2(eta_minus) / down)


def check_byte(numbers: HyperParams, levels: int) -> Base:
    """Refuse hyper-parameters that a byte cannot hold.

    Returns:
      The base.

    Raises:
      TypeError: A factor is an array.
      ValueError: The factors are not powers of one base, or the bounds too far apart.
    """
    shrink, grow = numbers.eta_minus, numbers.eta_plus
    if isinstance(shrink, jax.Array) or isinstance(grow, jax.Array):
        raise TypeError(
            "eta_minus and eta_plus must be Python numbers with"
            ' state_layout="byte", got a JAX array. With optax.inject_hyperparams,'
            ' pass static_args=("eta_minus", "eta_plus").'
        )
    base = base_of(shrink, grow)
    if base is None:
        exact = math.log(grow) / -math.log(shrink)
        candidates = [
            Base(max(round(exact * down), 1), down, -math.log2(shrink) / down)
            for down in range(1, _LARGEST_DENOMINATOR + 1)
        ]
        candidates = [
            base
            for base in candidates
            if base.down == 1 or not _bounds_that_fit(numbers, base, levels)
        ]
        nearest = min(candidates, key=lambda base: abs(base.up / base.down - exact))
        ratio = Fraction(nearest.up, nearest.down)
        power = ratio if ratio.denominator == 1 else f"({ratio})"
        raise ValueError(
            'With state_layout="byte", eta_minus and eta_plus must be powers of a'
            f" common base, got {shrink} and {grow}. The closest valid pair is"
            f" eta_minus={shrink}, eta_plus={shrink}**-{power} (about"
            f" {shrink ** -float(ratio):.4g})."
        )
    fitting = _bounds_that_fit(numbers, base, levels)
    if fitting:
        raise ValueError(
            'With state_layout="byte" and this variant, min_step_size and max_step_size'
            f" must be at most {levels} levels apart, got {numbers.min_step_size} and"
            f" {numbers.max_step_size}. With these factors, a window around a step size"
            f" of {numbers.learning_rate} fits: min_step_size={fitting[0]:.6g} and"
            f' max_step_size={fitting[1]:.6g}. state_layout="packed" has no such limit.'
        )
    return base


@jax.jit
def level_bounds(
    unit: jax.Array, numbers: HyperParams, log2_base: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest level within the bounds, counted from the unit's."""
    log2_base = jnp.asarray(log2_base, unit.dtype)
    farthest = 126 / log2_base
    lowest, highest = (
        jnp.clip(
            jnp.log2(as_step_size(bound, unit.dtype) / unit) / log2_base,
            -farthest,
            farthest,
        )
        for bound in (numbers.min_step_size, numbers.max_step_size)
    )
    levels = jnp.ceil(lowest - _SLACK), jnp.floor(highest + _SLACK)
    return levels[0].astype(jnp.int32), levels[1].astype(jnp.int32)


def make_lattice(numbers: HyperParams, base: Base, levels: int) -> Lattice:
    """The lattice on which the initial step size lies."""
    dtype = jnp.result_type(float)
    # An array may lie beyond the bounds, where no level is.
    unit = jnp.clip(
        as_step_size(numbers.learning_rate, dtype),
        as_step_size(numbers.min_step_size, dtype),
        as_step_size(numbers.max_step_size, dtype),
    )
    lowest, highest = level_bounds(unit, numbers, base.log2)
    # Spare levels are for bounds that are changed later. Bounds that are arrays may
    # also be too far apart; then both are moved inwards.
    spare = levels - 1 - (highest - lowest)
    below = jnp.where(
        spare >= 0, -lowest + spare // 2, jnp.minimum(-lowest, levels // 2)
    )
    return Lattice(unit, jnp.clip(below, 0, levels - 1), {repr(base.log2): ()})


def nearest_level(lattice: Lattice, step_size: float | jax.Array) -> jax.Array:
    """The levels of initial step sizes, rounded, int32."""
    dtype = lattice.unit.dtype
    # Not the logarithm of a quotient, which could overflow.
    distance = jnp.log2(as_step_size(step_size, dtype)) - jnp.log2(lattice.unit)
    levels = jnp.round(distance / jnp.asarray(log2_base_of(lattice), dtype))
    return levels.astype(jnp.int32) + lattice.unit_level


def check_lattice(
    lattice: Lattice, numbers: HyperParams, base: Base, levels: int
) -> None:
    """Refuse a resumed state that cannot hold the step sizes of an optimizer.

    Raises:
      ValueError: It has another base, or cannot hold the bounds, where they are known.
    """
    remedy = (
        "Start again from `init`, or convert the state by get_rprop_state and continue"
        ' with state_layout="split".'
    )
    actual = log2_base_of(lattice)
    if not math.isclose(actual, base.log2, rel_tol=1e-6):
        raise ValueError(
            f"The step sizes of this state are powers of {2**actual:.6g}, but"
            f" eta_minus={numbers.eta_minus} and eta_plus={numbers.eta_plus} are powers"
            f" of {2**base.log2:.6g}. {remedy}"
        )
    unit, unit_level = lattice.unit, lattice.unit_level
    is_array = any(isinstance(number, jax.Array) for number in numbers)
    if is_array or isinstance(unit, Tracer) or unit.ndim:
        return
    lowest, highest = level_bounds(unit, numbers, base.log2)
    if lowest + unit_level < 0 or highest + unit_level >= levels:
        least, most = (
            float(unit) * 2 ** (float(level - unit_level) * base.log2)
            for level in (0, levels - 1)
        )
        raise ValueError(
            f"This state can hold step sizes from {least:.6g} to {most:.6g}, but"
            f" min_step_size={numbers.min_step_size} and"
            f" max_step_size={numbers.max_step_size}. {remedy}"
        )
