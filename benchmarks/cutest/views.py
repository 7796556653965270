"""How optimizers see a problem: rounded, noisy, or in other units."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cutest.problems import Problem


class View(NamedTuple):
    """A way to see a problem; noise is relative."""

    name: str
    seed: int = 0
    dtype: str = "float64"
    loss_noise: float = 0.0  # Independent at every evaluation.
    gradient_noise: float = 0.0  # The same, relative to the largest component.
    roughness: float = 0.0  # In both; equal at equal points.
    scaled: bool = False
    displaced: float = 0.0  # Of the start, relative to it, or to 1 if it is smaller.


class Numbers(NamedTuple):
    """A view as arrays, so that one compiled function serves them all."""

    normal: Any  # One row per evaluation, drawn in advance: this compiles faster.
    loss_noise: Any
    gradient_noise: Any
    roughness: Any
    units: Any


LARGEST_SCALED = 50
ROWS = 2**13
VIEWS = {
    "exact": [View("exact")],
    "float32": [View("float32", dtype="float32")],
    "noise": [
        View(f"noise {level:g}", seed, loss_noise=level, gradient_noise=level)
        for level, seed in itertools.product((1e-6, 1e-3, 1e-1), (0, 1))
    ],
    "units": [View("units", draw, scaled=True) for draw in range(3)],
    "starts": [View("start", seed, displaced=0.1) for seed in (0, 1)],
    "kinds": [
        View("rough 0.001", roughness=1e-3),
        *(View("loss 0.001", seed, loss_noise=1e-3) for seed in (0, 1)),
        *(View("gradient 0.001", seed, gradient_noise=1e-3) for seed in (0, 1)),
    ],
}
"""By group; the views of a group run together."""

Observe = Callable[[jax.Array, Any, Numbers], tuple[jax.Array, jax.Array]]


def numbers(view: View, size: int) -> Numbers:
    """The view of a problem of this size; units are log-uniform over six decades."""
    exponents = np.random.default_rng(view.seed).uniform(-3, 3, size)
    units = 10**exponents if view.scaled else np.ones(size)
    normal = np.random.default_rng([1, view.seed]).normal(size=(ROWS, size + 1))
    return Numbers(
        normal=normal,
        loss_noise=np.float64(view.loss_noise),
        gradient_noise=np.float64(view.gradient_noise),
        roughness=np.float64(view.roughness),
        units=units,
    )


def wave(point: jax.Array, phases: jax.Array) -> jax.Array:
    """Fast, deterministic waves between -1 and 1: those of Moré and Wild, shifted."""
    taxicab, largest = jnp.sum(jnp.abs(point)), jnp.max(jnp.abs(point))
    fast = jnp.sin(100 * taxicab + phases) * jnp.cos(100 * largest + phases)
    waves = 0.9 * fast + 0.1 * jnp.cos(jnp.linalg.norm(point) + phases)
    return waves * (4 * waves**2 - 3)


def observed(problem: Problem) -> Observe:
    """The observed loss and gradient, from the point in its units, step and view.

    Noise is independent at each step, and at each point of a line search.
    """
    loss = problem.approximation or problem.loss

    def observe(point: jax.Array, step: Any, view: Numbers) -> Any:
        x = view.units * point
        value, grads = jax.value_and_grad(loss)(x)
        grads *= view.units
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32).ravel()
        mixed = jnp.sum(bits * jnp.arange(1, 2 * bits.size, 2, jnp.uint32))
        normal = view.normal[(jnp.uint32(step) + mixed) % ROWS]
        rough = view.roughness * wave(x, jnp.arange(x.size + 1.0))
        noise = view.gradient_noise * normal[1:] + rough[1:]
        # Infinity times 0 is NaN, which would spread.
        noise = jnp.where(noise == 0, 0, jnp.max(jnp.abs(grads)) * noise)
        return value * (1 + view.loss_noise * normal[0] + rough[0]), grads + noise

    return observe
