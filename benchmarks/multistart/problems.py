"""Small problems to fit from many starts at once, in float64."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NIST = Path(__file__).parents[1] / "eigenbasis" / "nist"


class Problem(NamedTuple):
    """A function of one vector, with normally distributed starts around a center."""

    name: str
    loss: Callable[[jax.Array], jax.Array]
    center: Any
    spread: Any
    total: int = 256  # Of starts.

    def starts(self, most: int) -> np.ndarray:
        """The starts, one per row, at most this many."""
        count = min(self.total, most)
        noise = np.random.default_rng(0).normal(size=(count, np.size(self.center)))
        return np.asarray(self.center) + np.asarray(self.spread) * noise


def trajectory(
    velocity: Callable[[jax.Array], jax.Array], start: Any, step: float, steps: int
) -> jax.Array:
    """Runge and Kutta's method of fourth order."""

    def advance(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        k1 = velocity(state)
        k2 = velocity(state + 0.5 * step * k1)
        k3 = velocity(state + 0.5 * step * k2)
        k4 = velocity(state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return state, state

    return jax.lax.scan(advance, jnp.asarray(start), length=steps)[1]


def fitted(
    name: str, solve: Callable[[Any], jax.Array], truth: Any, center: Any, spread: Any
) -> Problem:
    """Mean square error of a model on its own noisy output at the true parameters."""
    observed = np.asarray(solve(jnp.asarray(truth)))
    noise = np.random.default_rng(0).normal(size=observed.shape)
    observed = observed * (1 + 0.05 * noise)
    return Problem(name, lambda x: jnp.mean((solve(x) - observed) ** 2), center, spread)


def predator_prey() -> Problem:
    """The four rates of Lotka and Volterra."""

    def solve(rates: Any) -> jax.Array:
        def velocity(state: jax.Array) -> jax.Array:
            prey, predators = state
            met = prey * predators
            return jnp.stack(
                [
                    rates[0] * prey - rates[1] * met,
                    rates[2] * met - rates[3] * predators,
                ]
            )

        return trajectory(velocity, [10.0, 5.0], 0.2, 60)

    rates = np.array([1.1, 0.4, 0.1, 0.4])
    return fitted("predator and prey", solve, rates, rates, 0.2 * rates)


def neuron() -> Problem:
    """The three constants of FitzHugh and Nagumo's neuron."""

    def solve(constants: Any) -> jax.Array:
        a, b, c = constants

        def velocity(state: jax.Array) -> jax.Array:
            v, r = state
            return jnp.stack([c * (v - v**3 / 3 + r), -(v - a + b * r) / c])

        return trajectory(velocity, [-1.0, 1.0], 0.1, 200)

    return fitted("neuron", solve, [0.2, 0.2, 3.0], [0.5, 0.5, 2.5], [0.2, 0.2, 0.3])


def gaussian_process(rows: int = 30) -> Problem:
    """Log length scales of two inputs, log amplitude and log noise."""
    rng = np.random.default_rng(0)
    inputs = rng.uniform(size=(rows, 2))
    targets = np.sin(6 * inputs[:, 0]) + inputs[:, 1] + 0.1 * rng.normal(size=rows)
    differences = (inputs[:, None] - inputs[None]) ** 2

    def loss(x: jax.Array) -> jax.Array:
        kernel = jnp.exp(2 * x[2] - 0.5 * differences @ jnp.exp(-2 * x[:2]))
        kernel += jnp.exp(2 * x[3]) * jnp.eye(rows)
        factor = jnp.linalg.cholesky(kernel)
        whitened = jax.scipy.linalg.solve_triangular(factor, targets, lower=True)
        return (0.5 * whitened @ whitened + jnp.log(jnp.diag(factor)).sum()) / rows

    return Problem("Gaussian process", loss, np.zeros(4), 0.5, total=32)


def nist(name: str, model: Callable[[Any, Any], Any]) -> Problem:
    """A nonlinear regression of NIST, around its second start."""
    path = NIST / f"{name}.dat"
    start = re.findall(r"^ *b\d+ = +\S+ +(\S+)", path.read_text(), re.MULTILINE)
    center = np.array(start, float)
    y, x = np.loadtxt(path, skiprows=60, unpack=True)
    return Problem(
        f"NIST {name}", lambda b: jnp.mean((model(b, x) - y) ** 2), center, 0.1 * center
    )


def network(hidden: int = 8, rows: int = 40) -> Problem:
    """A net 1-8-1 on a sine."""
    inputs = np.linspace(-1, 1, rows)

    def loss(x: jax.Array) -> jax.Array:
        weights, biases, out = x[:-1].reshape(3, hidden)
        outputs = jnp.tanh(inputs[:, None] * weights + biases) @ out + x[-1]
        return jnp.mean((outputs - jnp.sin(np.pi * inputs)) ** 2)

    return Problem("small network", loss, np.zeros(3 * hidden + 1), 0.7)


def rosenbrock(size: int = 10) -> Problem:
    """Rosenbrock's valley, chained."""
    return Problem(
        "Rosenbrock",
        lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        np.resize([-1.2, 1.0], size),
        0.1,
    )


def problems() -> list[Problem]:
    """All of them."""
    return [
        predator_prey(),
        neuron(),
        gaussian_process(),
        nist("Rat43", lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3])),
        nist(
            "MGH17",
            lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
        ),
        network(),
        rosenbrock(),
    ]
