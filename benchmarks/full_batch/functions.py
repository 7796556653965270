"""Functions to minimize that are no networks, in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from benchmarks.common.data import Data, Split
from benchmarks.common.networks import Params, mean_square
from benchmarks.common.problems import Loss, Problem


def _function(
    name: str, description: str, start: np.ndarray, loss: Loss, **data: jax.Array
) -> Problem:
    """Starts at the textbook's point, with noise of standard deviation 0.1."""

    def init(key: jax.Array) -> Params:
        noise = jax.random.normal(key, start.shape, "float64")
        return jnp.asarray(start) + 0.1 * noise

    return Problem(name, description, "float64", init, loss, Split(data))


def quadratic(*, rotated: bool, size: int = 30, condition: float = 1e4) -> Problem:
    """A quadratic with geometric eigenvalues from 1 to `condition`."""
    eigenvalues = np.geomspace(1, condition, size)
    axes = np.eye(size)
    if rotated:
        axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    roots = jnp.asarray(np.sqrt(eigenvalues)[:, None] * axes.T)

    def loss(params: Params, data: Data) -> jax.Array:
        return 0.5 * jnp.sum((data["roots"] @ params) ** 2)

    return Problem(
        name=f"quadratic, {'rotated' if rotated else 'axis-parallel'}",
        description=f"{size} dimensions, condition number {condition:,.0f}",
        dtype="float64",
        init=lambda key: jax.random.normal(key, (size,), "float64"),
        loss=loss,
        data=Split({"roots": roots}),
        torch_loss=lambda params, data: 0.5 * ((data["roots"] @ params) ** 2).sum(),
    )


def rosenbrock(size: int = 10) -> Problem:
    """Rosenbrock's valley, chained."""

    def loss(x: Params, data: Data) -> jax.Array:
        del data
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    start = np.resize([-1.2, 1.0], size)
    return _function("Rosenbrock", f"chained, {size} dimensions", start, loss)


def powell_singular() -> Problem:
    """Powell's function, whose Hessian is singular at the minimum."""

    def loss(x: Params, data: Data) -> jax.Array:
        del data
        a, b, c, d = x.reshape(4, -1)
        return jnp.sum(
            (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4
        )

    start = np.repeat([3.0, -1.0, 0.0, 1.0], 5)
    return _function("Powell singular", "extended, 20 dimensions", start, loss)


def beale() -> Problem:
    """Beale's function of two variables."""
    constants = jnp.asarray([1.5, 2.25, 2.625])

    def loss(params: Params, data: Data) -> jax.Array:
        x, y = params
        powers = y ** jnp.arange(1.0, 4.0)
        return jnp.sum((data["constants"] - x * (1 - powers)) ** 2)

    start = np.ones(2)
    return _function("Beale", "2 dimensions", start, loss, constants=constants)


def factorization() -> Problem:
    """A matrix of 20 x 15 as a product of rank 3, with noise."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 15))
    matrix += 0.1 * rng.normal(size=matrix.shape)

    def init(key: jax.Array) -> Params:
        left, right = jax.random.split(key)
        return {
            "left": jax.random.normal(left, (20, 3), "float64"),
            "right": jax.random.normal(right, (3, 15), "float64"),
        }

    return Problem(
        "matrix factorization",
        "20 x 15, rank 3, mean square",
        "float64",
        init,
        lambda params, data: mean_square(
            params["left"] @ params["right"], data["matrix"]
        ),
        Split({"matrix": jnp.asarray(matrix)}),
    )


def gaussian_process(rows: int = 60) -> Problem:
    """The marginal likelihood of a Gaussian process, a length scale per input."""
    inputs, targets = datasets.make_friedman1(rows, 8, noise=1.0, random_state=0)
    targets = (targets - targets.mean()) / targets.std()

    def init(key: jax.Array) -> Params:
        return {
            "log_length_scales": 0.5 * jax.random.normal(key, (8,), "float64"),
            "log_amplitude": jnp.zeros((), "float64"),
            "log_noise": jnp.zeros((), "float64"),
        }

    def loss(params: Params, data: Data) -> jax.Array:
        scaled = data["inputs"] / jnp.exp(params["log_length_scales"])
        squares = jnp.sum((scaled[:, None] - scaled[None]) ** 2, axis=-1)
        kernel = jnp.exp(2 * params["log_amplitude"] - 0.5 * squares)
        noise = jnp.exp(2 * params["log_noise"]) * jnp.eye(rows)
        factor = jnp.linalg.cholesky(kernel + noise)
        whitened = jax.scipy.linalg.solve_triangular(
            factor, data["targets"], lower=True
        )
        log_determinant = jnp.sum(jnp.log(jnp.diag(factor)))
        constant = 0.5 * jnp.log(2 * jnp.pi)
        return (0.5 * whitened @ whitened + log_determinant) / rows + constant

    return Problem(
        "GP likelihood",
        f"Friedman's function, {rows} rows, 8 length scales, amplitude, noise",
        "float64",
        init,
        loss,
        Split({"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)}),
    )


def peaks() -> Problem:
    """Three Gaussian peaks on a sloping line, all parameters in their units."""
    grid = np.linspace(0, 10, 200)
    truth = {
        "heights": np.array([900.0, 250.0, 500.0]),
        "centers": np.array([2.5, 5.0, 6.5]),
        "widths": np.array([0.3, 0.8, 0.5]),
        "line": np.array([120.0, -4.0]),
    }
    guess = {
        "heights": np.array([600.0, 400.0, 400.0]),
        "centers": np.array([2.3, 4.6, 6.9]),
        "widths": np.array([0.5, 0.5, 0.5]),
        "line": np.array([0.0, 0.0]),
    }

    def curve(params: Params, grid: Any) -> Any:
        distances = (grid[:, None] - params["centers"]) / params["widths"]
        bells = jnp.exp(-0.5 * distances**2) @ params["heights"]
        return bells + params["line"][0] + params["line"][1] * grid

    noise = np.random.default_rng(0).normal(size=grid.size)
    observed = jnp.asarray(curve(truth, grid) + 5 * noise)

    def init(key: jax.Array) -> Params:
        keys = dict(zip(guess, jax.random.split(key, len(guess)), strict=True))
        return {
            part: numbers
            * (1 + 0.1 * jax.random.normal(keys[part], numbers.shape, "float64"))
            for part, numbers in guess.items()
        }

    return Problem(
        "peak fitting",
        "3 Gaussian peaks on a line, 11 parameters from 0.3 to 900, mean square",
        "float64",
        init,
        lambda params, data: mean_square(curve(params, data["grid"]), data["observed"]),
        Split({"grid": jnp.asarray(grid), "observed": observed}),
    )


def predator_prey() -> Problem:
    """The four rates of Lotka and Volterra's equations, from noisy counts."""
    rates = np.array([1.1, 0.4, 0.1, 0.4])
    step, steps = 0.2, 60

    def velocity(state: jax.Array, rates: Any) -> jax.Array:
        prey, predators = state
        growth, hunting, feeding, death = rates
        return jnp.stack(
            [
                growth * prey - hunting * prey * predators,
                feeding * prey * predators - death * predators,
            ]
        )

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
    observed = solve(jnp.asarray(rates)) * (1 + 0.05 * noise)

    return Problem(
        "predator and prey",
        "4 rates of an ordinary differential equation, 60 Runge-Kutta steps",
        "float64",
        lambda key: rates * (1 + 0.2 * jax.random.normal(key, (4,), "float64")),
        lambda params, data: mean_square(solve(params), data["observed"]),
        Split({"observed": observed}),
    )
