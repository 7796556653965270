"""Functions to minimize other than networks, in float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from benchmarks.common.data import Split
from benchmarks.common.networks import Params, mean_square
from benchmarks.common.problems import Problem

Init = Callable[[jax.Array], Params]


def function(
    name: str,
    description: str,
    init: Init,
    loss: Callable[..., Any],
    *,
    dtype: str = "float64",
    **data: Any,
) -> Problem:
    """A problem whose loss is called with the parameters, and the data by name."""
    return Problem(
        name,
        description,
        dtype,
        init,
        lambda params, data: loss(params, **data),
        Split({part: jnp.asarray(array) for part, array in data.items()}),
    )


def near(start: Any, deviation: float = 0.1, *, relative: bool = False) -> Init:
    """Starts around an array or a dictionary of them, with normal noise."""

    def init(key: jax.Array, start: Any = start) -> Params:
        if isinstance(start, dict):
            keys = jax.random.split(key, len(start))
            return dict(zip(start, map(init, keys, start.values()), strict=True))
        noise = deviation * jax.random.normal(key, start.shape, "float64")
        return start * (1 + noise) if relative else start + noise

    return init


def quadratic(*, rotated: bool, size: int = 30, condition: float = 1e4) -> Problem:
    """A quadratic with geometric eigenvalues from 1 to `condition`."""
    axes = np.eye(size)
    if rotated:
        axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    eigenvalues = np.geomspace(1, condition, size)
    return function(
        f"quadratic, {'rotated' if rotated else 'axis-parallel'}",
        f"{size} dimensions, condition number {condition:,.0f}",
        near(np.zeros(size), 1.0),
        lambda params, roots: 0.5 * ((roots @ params) ** 2).sum(),
        roots=np.sqrt(eigenvalues)[:, None] * axes.T,
    )


def rosenbrock(size: int = 10) -> Problem:
    """Rosenbrock's valley, chained."""
    return function(
        "Rosenbrock",
        f"chained, {size} dimensions",
        near(np.resize([-1.2, 1.0], size)),
        lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
    )


def powell_singular() -> Problem:
    """Powell's function, whose Hessian is singular at the minimum."""

    def loss(x: jax.Array) -> jax.Array:
        a, b, c, d = x.reshape(4, -1)
        return jnp.sum(
            (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4
        )

    start = near(np.repeat([3.0, -1.0, 0.0, 1.0], 5))
    return function("Powell singular", "extended, 20 dimensions", start, loss)


def beale() -> Problem:
    """Beale's function of two variables."""

    def loss(params: jax.Array, constants: jax.Array) -> jax.Array:
        x, y = params
        return jnp.sum((constants - x * (1 - y ** jnp.arange(1.0, 4.0))) ** 2)

    constants = np.array([1.5, 2.25, 2.625])
    return function(
        "Beale", "2 dimensions", near(np.ones(2)), loss, constants=constants
    )


def factorization() -> Problem:
    """A matrix of 20 x 15 as a product of rank 3, with noise."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 15))
    matrix += 0.1 * rng.normal(size=matrix.shape)
    return function(
        "matrix factorization",
        "20 x 15, rank 3, mean square",
        near({"left": np.zeros((20, 3)), "right": np.zeros((3, 15))}, 1.0),
        lambda params, matrix: mean_square(params["left"] @ params["right"], matrix),
        matrix=matrix,
    )


def gaussian_process(rows: int = 60) -> Problem:
    """The marginal likelihood of a Gaussian process, a length scale per input."""
    inputs, targets = datasets.make_friedman1(rows, 8, noise=1.0, random_state=0)

    def init(key: jax.Array) -> Params:
        return {
            "log_length_scales": 0.5 * jax.random.normal(key, (8,), "float64"),
            "log_amplitude": jnp.zeros((), "float64"),
            "log_noise": jnp.zeros((), "float64"),
        }

    def loss(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        scaled = inputs / jnp.exp(params["log_length_scales"])
        squares = jnp.sum((scaled[:, None] - scaled[None]) ** 2, axis=-1)
        kernel = jnp.exp(2 * params["log_amplitude"] - 0.5 * squares)
        noise = jnp.exp(2 * params["log_noise"]) * jnp.eye(rows)
        factor = jnp.linalg.cholesky(kernel + noise)
        whitened = jax.scipy.linalg.solve_triangular(factor, targets, lower=True)
        log_determinant = jnp.sum(jnp.log(jnp.diag(factor)))
        constant = 0.5 * jnp.log(2 * jnp.pi)
        return (0.5 * whitened @ whitened + log_determinant) / rows + constant

    return function(
        "GP likelihood",
        f"Friedman's function, {rows} rows, 8 length scales, amplitude, noise",
        init,
        loss,
        inputs=inputs,
        targets=(targets - targets.mean()) / targets.std(),
    )


def peaks() -> Problem:
    """Three Gaussian peaks on a sloping line, all parameters in their units."""
    grid = np.linspace(0, 10, 200)
    # The truth, and the initial guess.
    numbers = {
        "heights": ([900.0, 250.0, 500.0], [600.0, 400.0, 400.0]),
        "centers": ([2.5, 5.0, 6.5], [2.3, 4.6, 6.9]),
        "widths": ([0.3, 0.8, 0.5], [0.5, 0.5, 0.5]),
        "line": ([120.0, -4.0], [0.0, 0.0]),
    }
    truth = {part: np.array(true) for part, (true, _) in numbers.items()}
    guess = {part: np.array(guess) for part, (_, guess) in numbers.items()}

    def curve(params: Params, grid: Any) -> Any:
        distances = (grid[:, None] - params["centers"]) / params["widths"]
        bells = jnp.exp(-0.5 * distances**2) @ params["heights"]
        return bells + params["line"][0] + params["line"][1] * grid

    noise = np.random.default_rng(0).normal(size=grid.size)
    return function(
        "peak fitting",
        "3 Gaussian peaks on a line, 11 parameters from 0.3 to 900, mean square",
        near(guess, relative=True),
        lambda params, grid, observed: mean_square(curve(params, grid), observed),
        grid=grid,
        observed=curve(truth, grid) + 5 * noise,
    )


def predator_prey() -> Problem:
    """The four rates of Lotka and Volterra's equations, from noisy counts."""
    rates = np.array([1.1, 0.4, 0.1, 0.4])
    step, steps = 0.2, 60

    def velocity(state: jax.Array, rates: Any) -> jax.Array:
        prey, predators = state
        growth, hunting, feeding, death = rates
        born = growth * prey - hunting * prey * predators
        return jnp.stack([born, feeding * prey * predators - death * predators])

    def solve(rates: Any) -> jax.Array:
        def runge_kutta(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            k1 = velocity(state, rates)
            k2 = velocity(state + 0.5 * step * k1, rates)
            k3 = velocity(state + 0.5 * step * k2, rates)
            k4 = velocity(state + step * k3, rates)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return state, state

        return jax.lax.scan(runge_kutta, jnp.array([10.0, 5.0]), length=steps)[1]

    noise = np.random.default_rng(0).normal(size=(steps, 2))
    return function(
        "predator and prey",
        "4 rates of an ordinary differential equation, 60 Runge-Kutta steps",
        near(rates, 0.2, relative=True),
        lambda rates, observed: mean_square(solve(rates), observed),
        observed=solve(jnp.asarray(rates)) * (1 + 0.05 * noise),
    )
