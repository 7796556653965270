"""The step sizes that a byte can name, and which hyper-parameters fit them."""

import math
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optax_rprop._check_hyperparams import concrete_number
from optax_rprop._layouts.interface import HyperParams
from optax_rprop._rule import IRpropPlus, Mark, RpropPlus

_LARGEST_DENOMINATOR = 16
# A bound counts as a level if it is one but for rounding.
_SLACK = 1e-4


class Capacity(NamedTuple):
    """How a byte is divided: codes from -most to most, and so many levels for each."""

    most: int
    levels: int


def capacity(variant: Mark) -> Capacity:
    """How many codes and levels the states of a variant have."""
    takes_back = isinstance(variant, RpropPlus | IRpropPlus)
    return Capacity(2, 51) if takes_back else Capacity(1, 85)


class Lattice(NamedTuple):
    """The step sizes that a byte can name; all of them scalars.

    Level n stands for the step size ``unit * base**(n - unit_level)``.

    Attributes:
      unit: The initial step size, in units of the parameters, float.
      unit_level: Its level, int32.
      log2_base: The binary logarithm of the base, float.
    """

    unit: jax.Array
    unit_level: jax.Array
    log2_base: jax.Array


class Prepared(NamedTuple):
    """Hyper-parameters whose factors are powers of one base."""

    hyperparams: HyperParams
    variant: Mark
    log2_base: float
    up: int
    down: int


def _bounds_that_fit(
    unit: float, lower: float, upper: float, log2_base: float, levels: int
) -> tuple[float, float] | None:
    """Narrower bounds of the step sizes, if there are too many levels within these."""
    lowest, highest = (
        math.log2(max(bound, 1e-45) / unit) / log2_base for bound in (lower, upper)
    )
    # Powers of two must be normal in float32.
    last = min(levels - 1, math.floor(126 / log2_base))
    if math.floor(highest + _SLACK) - math.ceil(lowest - _SLACK) <= last:
        return None
    lowest = min(max(lowest, highest - last), 0)
    highest = min(highest, lowest + last)
    return unit * 2 ** (lowest * log2_base), unit * 2 ** (highest * log2_base)


def prepare(hyperparams: HyperParams, variant: Mark) -> Prepared:
    """Refuse hyper-parameters that a byte cannot hold, and find the base.

    Raises:
      TypeError: A factor is an array.
      ValueError: The factors are not powers of one base, or the bounds too far apart.
    """
    _, levels = capacity(variant)
    unit, shrink, grow, lower, upper = (
        concrete_number(name, number) for name, number in hyperparams._asdict().items()
    )
    if shrink is None or grow is None:
        raise TypeError(
            "eta_minus and eta_plus must be Python numbers with"
            ' state_layout="byte", got a JAX array. With optax.inject_hyperparams,'
            ' pass static_args=("eta_minus", "eta_plus").'
        )

    def bounds_that_fit(down: int) -> tuple[float, float] | None:
        if unit is None or lower is None or upper is None:
            return None
        return _bounds_that_fit(unit, lower, upper, -math.log2(shrink) / down, levels)

    exact = math.log(grow) / -math.log(shrink)
    ratio = Fraction(exact).limit_denominator(_LARGEST_DENOMINATOR)
    if abs(ratio / exact - 1) > 1e-6:
        candidates = [
            Fraction(max(round(exact * down), 1), down)
            for down in range(1, _LARGEST_DENOMINATOR + 1)
            if down == 1 or not bounds_that_fit(down)
        ]
        nearest = min(candidates, key=lambda candidate: abs(candidate - exact))
        raise ValueError(
            "eta_minus and eta_plus must be powers of one base with"
            f' state_layout="byte", got {shrink} and {grow}. The nearest that fit are'
            f" eta_minus={shrink} and eta_plus={shrink}**-({nearest}), about"
            f" {shrink ** -float(nearest):.4g}."
        )
    up, down = ratio.numerator, ratio.denominator
    fitting = bounds_that_fit(down)
    if fitting:
        raise ValueError(
            f"min_step_size and max_step_size must be at most {levels} levels apart"
            f' with this variant and state_layout="byte", got {lower} and {upper}.'
            f" With these factors, min_step_size={fitting[0]:.6g} and"
            f' max_step_size={fitting[1]:.6g} fit; state_layout="packed" has no such'
            " limit."
        )
    return Prepared(hyperparams, variant, -math.log2(shrink) / down, up, down)


@jax.jit
def level_bounds(
    unit: jax.Array, numbers: HyperParams, log2_base: jax.typing.ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """The lowest and the highest level within the bounds, counted from the unit's."""
    tiny = jnp.finfo(unit.dtype).tiny
    farthest = 126 / jnp.asarray(log2_base, unit.dtype)
    lowest, highest = (
        jnp.clip(
            jnp.log2(jnp.maximum(jnp.asarray(bound, unit.dtype), tiny) / unit)
            / jnp.asarray(log2_base, unit.dtype),
            -farthest,
            farthest,
        )
        for bound in (numbers.min_step_size, numbers.max_step_size)
    )
    levels = jnp.ceil(lowest - _SLACK), jnp.floor(highest + _SLACK)
    return levels[0].astype(jnp.int32), levels[1].astype(jnp.int32)


def make_lattice(prepared: Prepared) -> Lattice:
    """The lattice on which the initial step size lies."""
    dtype = jnp.result_type(float)
    unit = jnp.asarray(prepared.hyperparams.learning_rate, dtype)
    lowest, highest = level_bounds(unit, prepared.hyperparams, prepared.log2_base)
    _, levels = capacity(prepared.variant)
    # Levels that are to spare are for bounds that are changed later. Bounds that are
    # arrays may also be too far apart, and then both give way.
    spare = levels - 1 - (highest - lowest)
    below = jnp.where(
        spare >= 0, -lowest + spare // 2, jnp.minimum(-lowest, levels // 2)
    )
    return Lattice(unit, below, jnp.asarray(prepared.log2_base, dtype))
