"""Fit enzyme kinetics: six constants that span eight orders of magnitude.

An enzyme E binds its substrate S, E + S <-> ES, and converts it to a product,
ES -> E + P. A spectrometer measures ES and P at four concentrations of S, from
0.3 ms to 100 s, with noise. We fit the three rate constants, the two extinction
coefficients and the zero of the instrument. In the usual units they range from
2e6 to -0.02. Rprop, with one initial step size for all of them, is compared with
Adam at its best rate, with L-BFGS-B and with nonlinear least squares, first
without a transform, then with the logarithms of the five positive constants.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import example_io
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.optimize import least_squares
from tqdm import tqdm

from optax_rprop import diagnostics_by_leaf, rprop

ENZYME = 5e-6  # mol/L
SUBSTRATE = (5e-6, 15e-6, 50e-6, 150e-6)  # mol/L
NOISE = 0.005  # absorbance
# With the default upper bound, 50, k_on would change too slowly.
MAX_STEP_SIZE = 1e8
TOLERANCE = 4  # standard errors


class Constant(NamedTuple):
    """One of the constants to fit."""

    unit: str
    truth: float
    start: float
    positive: bool = True


CONSTANTS = {
    "k_on": Constant("L/mol/s", 2e6, 1e5),
    "k_off": Constant("1/s", 30.0, 1.0),
    "k_cat": Constant("1/s", 4.0, 1.0),
    "eps_P": Constant("L/mol/cm", 6220.0, 1e4),
    "eps_ES": Constant("L/mol/cm", 15000.0, 1e4),
    "zero": Constant("absorbance", -0.02, 0.0, positive=False),
}

Params = dict[str, jax.Array]


def constants(field: str) -> Params:
    """A field of all constants, as parameters."""
    return {
        name: jnp.asarray(getattr(constant, field), float)
        for name, constant in CONSTANTS.items()
    }


def to_log(params: Params) -> Params:
    """The logarithms of the positive constants; the others unchanged."""
    return {
        name: jnp.log(number) if CONSTANTS[name].positive else number
        for name, number in params.items()
    }


def from_log(params: Params) -> Params:
    """The inverse of `to_log`."""
    return {
        name: jnp.exp(number) if CONSTANTS[name].positive else number
        for name, number in params.items()
    }


def lower_bounds() -> Params:
    """0 for the positive constants, none for the others."""
    return {
        name: jnp.array(0.0 if constant.positive else -jnp.inf)
        for name, constant in CONSTANTS.items()
    }


def reaction(time: Any, state: jax.Array, args: tuple[Params, jax.Array]) -> jax.Array:
    """Mass action: the rates of change of ES and P, in mol/L/s."""
    del time
    params, substrate = args
    bound, product = state
    binding = params["k_on"] * (ENZYME - bound) * (substrate - bound - product)
    turnover = params["k_cat"] * bound
    return jnp.stack([binding - params["k_off"] * bound - turnover, turnover])


@jax.jit
def absorbance(params: Params, times: jax.Array) -> jax.Array:
    """The measured absorbance, shape (concentrations, times).

    NaN where the solver fails, as it may for unphysical constants.
    """

    def one(substrate: jax.Array) -> jax.Array:
        solution: Any = diffrax.diffeqsolve(
            diffrax.ODETerm(reaction),
            diffrax.Kvaerno3(),
            t0=0.0,
            t1=times[-1],
            dt0=1e-5,
            y0=jnp.zeros(2),
            args=(params, substrate),
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=1e-5, atol=1e-10),
            # Forward mode is cheaper for six parameters and 180 outputs.
            adjoint=diffrax.ForwardMode(),
            max_steps=500,
            throw=False,
        )
        bound, product = solution.ys.T
        seen = params["eps_ES"] * bound + params["eps_P"] * product + params["zero"]
        solved = solution.result == diffrax.RESULTS.successful
        return jnp.where(solved, seen, jnp.nan)

    return jax.vmap(one)(jnp.array(SUBSTRATE))


@dataclasses.dataclass(frozen=True)
class Problem:
    """The data and the residuals.

    Attributes:
      times: In seconds, shape (times,).
      data: Absorbances, shape (concentrations, times).
      residuals: Of parameters, in units of the noise's standard deviation.
    """

    times: jax.Array
    data: jax.Array
    residuals: Callable[[Params], jax.Array]

    @functools.cached_property
    def linearize(self) -> Callable[[Params], tuple[jax.Array, Params]]:
        """The residuals, and their derivatives by each parameter.

        Compiled once for all optimizers, because that takes longer than most runs.
        """

        def residuals_twice(params: Params) -> tuple[jax.Array, jax.Array]:
            residuals = self.residuals(params)
            return residuals, residuals

        @jax.jit
        def linearize(params: Params) -> tuple[jax.Array, Params]:
            # Forward mode, like that of the solver.
            derivatives, residuals = jax.jacfwd(residuals_twice, has_aux=True)(params)
            return residuals, derivatives

        return linearize

    def jacobian(self, params: Params) -> np.ndarray:
        """The derivatives as a matrix, shape (residuals, parameters)."""
        _, derivatives = self.linearize(params)
        return np.stack([np.ravel(d) for d in jax.tree.leaves(derivatives)], axis=1)

    def loss_and_gradient(
        self, decode: Callable[[Params], Params]
    ) -> example_io.LossAndGradient:
        """The loss, half the mean square of the residuals, and its gradient.

        The loss of the true parameters is about 0.5.

        Args:
          decode: Maps the optimizer's form of the parameters to the constants.
        """

        @jax.jit
        def chain_rule(
            params: Params, residuals: jax.Array, derivatives: Params
        ) -> tuple[jax.Array, Params]:
            _, pull_back = jax.vjp(decode, params)
            grads = jax.tree.map(lambda d: jnp.mean(residuals * d), derivatives)
            return 0.5 * jnp.mean(residuals**2), pull_back(grads)[0]

        return lambda params: chain_rule(params, *self.linearize(decode(params)))


def make_problem(seed: int) -> Problem:
    """Simulate the measurement."""
    times = jnp.logspace(-3.5, 2.0, 45)
    exact = absorbance(constants("truth"), times)
    noise = np.random.default_rng(seed).normal(size=exact.shape)
    data = exact + NOISE * noise
    return Problem(
        times, data, lambda params: (absorbance(params, times) - data) / NOISE
    )


class Comparison(NamedTuple):
    """The runs of all optimizers in one form of the parameters."""

    rprop: example_io.Run
    adam: list[example_io.Run]
    lbfgs: example_io.Run

    @property
    def all(self) -> list[example_io.Run]:
        """Every run."""
        return [self.rprop, *self.adam, self.lbfgs]

    @property
    def best(self) -> list[example_io.Run]:
        """One run for each method; Adam's is that of the best rate."""
        return [self.rprop, example_io.best_of(self.adam), self.lbfgs]


def compare(
    problem: Problem, logarithms: bool, adam_rates: Sequence[float], evaluations: int
) -> Comparison:
    """Run all optimizers from the same start, within the same bounds."""

    def as_it_is(params: Params) -> Params:
        return params

    def within_bounds(params: Params) -> Params:
        return jax.tree.map(jnp.maximum, params, lower_bounds())

    encode, decode = (to_log, from_log) if logarithms else (as_it_is, as_it_is)
    evaluate = problem.loss_and_gradient(decode)
    start = encode(constants("start"))
    settings = (evaluate, start, evaluations)
    project = as_it_is if logarithms else within_bounds
    return Comparison(
        # "irprop-" undoes no update; after a projection the undo would be wrong.
        example_io.run_optax(
            "irprop-",
            rprop(max_step_size=MAX_STEP_SIZE, variant="irprop-"),
            *settings,
            project,
        ),
        [
            example_io.run_optax(f"Adam, rate {r:g}", optax.adam(r), *settings, project)
            for r in adam_rates
        ],
        example_io.run_lbfgs(
            "L-BFGS-B (SciPy)", *settings, None if logarithms else lower_bounds()
        ),
    )


def run_least_squares(problem: Problem, evaluations: int) -> example_io.Run:
    """SciPy's trust-region method for sums of squares, which uses all residuals."""
    start, unravel = ravel_pytree(constants("start"))
    name = "least_squares (SciPy)"
    losses, history = [], []

    def evaluate(vector: np.ndarray) -> np.ndarray:
        history.append(unravel(jnp.asarray(vector)))
        residuals = np.ravel(problem.residuals(history[-1]))
        losses.append(0.5 * np.mean(residuals**2))
        progress.update()
        return residuals

    with tqdm(
        total=evaluations, desc=name, unit=" evaluations", leave=False
    ) as progress:
        least_squares(
            evaluate,
            np.asarray(start),
            # SciPy accepts a function; its type stubs allow only strings.
            jac=lambda vector: problem.jacobian(unravel(jnp.asarray(vector))),  # type: ignore
            bounds=(np.asarray(ravel_pytree(lower_bounds())[0]), np.inf),
            x_scale="jac",
            max_nfev=evaluations,
        )
    return example_io.Run(name, np.array(losses), history, [])


def standard_errors(problem: Problem, params: Params) -> Params:
    """Of the estimates, from the curvature of the loss and the known noise."""
    _, unravel = ravel_pytree(params)
    jacobian = problem.jacobian(params)
    # Unscaled, the matrix to invert would have a condition number of 1e17.
    lengths = np.linalg.norm(jacobian, axis=0)
    scaled = jacobian / lengths
    variances = np.diag(np.linalg.inv(scaled.T @ scaled))
    return unravel(np.sqrt(variances) / lengths)


def plot(
    problem: Problem, plain: Comparison, logs: Comparison, squares: Any, path: Path
) -> None:
    """Data and fit, the losses, the step sizes and the errors of the constants."""
    figure, axes = plt.subplots(2, 2, figsize=(14, 8.5), layout="constrained")
    (fit, loss), (steps, errors) = axes

    curves = absorbance(plain.rprop.best_params, problem.times)
    for colour, substrate, points, curve in zip(
        example_io.COLOURS, SUBSTRATE, problem.data, curves, strict=False
    ):
        label = f"{substrate * 1e6:g} µmol/L"
        fit.plot(problem.times, points, "o", ms=4, color=colour, label=label)
        fit.plot(problem.times, curve, color=colour)
    fit.set(xscale="log", xlabel="time (s)", ylabel="absorbance (1 cm)")
    fit.set_title("Data (points) and the fit by irprop- (lines)")
    fit.legend(title="substrate")

    for runs, style, form in ((plain, "-", "plain"), (logs, "--", "logarithms")):
        for colour, run in zip(example_io.COLOURS, runs.best, strict=False):
            counts = np.arange(1, len(run.losses) + 1)
            loss.plot(
                counts,
                np.fmin.accumulate(run.losses),
                style,
                color=colour,
                label=f"{run.name}, {form}",
            )
    loss.plot(
        np.arange(1, len(squares.losses) + 1),
        np.fmin.accumulate(squares.losses),
        ":",
        color=example_io.COLOURS[3],
        label=squares.name,
    )
    loss.set(
        xscale="log", yscale="log", xlabel="evaluations", ylabel="best loss so far"
    )
    loss.set_title("Loss; Adam at its best rate of the grid")
    loss.legend(loc="upper left", bbox_to_anchor=(1.01, 1))

    evaluations = np.arange(1, len(plain.rprop.losses) + 1)
    summaries = list(map(jax.jit(diagnostics_by_leaf), plain.rprop.opt_states))
    truth = constants("truth")
    for (name, constant), colour, style in zip(
        CONSTANTS.items(), example_io.COLOURS, example_io.LINE_STYLES, strict=True
    ):
        look = {"color": colour, "linestyle": style}
        sizes = [summary[f"['{name}']"].median_step_size for summary in summaries]
        steps.plot(evaluations, sizes, **look)
        estimates = np.array([params[name] for params in plain.rprop.params])
        relative = np.abs(estimates / float(truth[name]) - 1)
        errors.plot(evaluations, relative, **look, label=f"{name} ({constant.unit})")
    steps.set(
        yscale="log", xlabel="evaluations", ylabel="step size (units in the legend)"
    )
    steps.set_title("Step sizes of irprop-, all from 0.01")
    errors.set(yscale="log", xlabel="evaluations", ylabel="|estimate / truth - 1|")
    errors.set_title("Errors of the constants by irprop-")
    errors.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    example_io.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Fit, report, and return the exit status."""
    parser = example_io.parser(__doc__)
    parser.add_argument(
        "--evaluations",
        type=example_io.positive,
        default=500,
        help="of loss and gradient, for each optimizer",
    )
    parser.add_argument(
        "--adam-rates",
        type=example_io.positive_number,
        nargs="+",
        default=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0],
        metavar="RATE",
        help="learning rates to try for Adam",
    )
    options = example_io.parse(parser, arguments)
    jax.config.update("jax_enable_x64", True)

    problem = make_problem(options.seed)
    settings = (options.adam_rates, options.evaluations)
    plain = compare(problem, False, *settings)
    logs = compare(problem, True, *settings)
    squares = run_least_squares(problem, options.evaluations)

    best = example_io.best_of([*plain.all, *logs.all, squares]).best_loss
    targets = {"within 1 %": 1.01 * best, "within 0.01 %": 1.0001 * best}
    print(
        "Half the mean squared residual, and evaluations until within a distance of"
        f" the best, {best:.4f}\n\nSix constants from 2e6 to -0.02, without a transform"
    )
    example_io.print_comparison([*plain.all, squares], targets)
    print("\nLogarithms of the five positive constants")
    example_io.print_comparison(logs.all, targets)

    estimates = plain.rprop.best_params
    errors = standard_errors(problem, estimates)
    print("\nThe constants by irprop-, without a transform")
    example_io.print_table(
        ["constant", "unit", "truth", "start", "estimate", "standard error"],
        [
            [
                name,
                constant.unit,
                f"{constant.truth:g}",
                f"{constant.start:g}",
                f"{estimates[name]:.5g}",
                f"{errors[name]:.2g}",
            ]
            for name, constant in CONSTANTS.items()
        ],
    )
    plot(problem, plain, logs, squares, options.output_dir / "ode_fit.png")

    problems = []
    if not plain.rprop.best_loss <= targets["within 1 %"]:
        problems.append(
            f"irprop- reached a loss of {plain.rprop.best_loss:.4f}, more than 1 %"
            f" above the best, {best:.4f}. It may need more --evaluations."
        )
    problems += [
        f"{name} is {estimates[name]:.5g}, more than {TOLERANCE} standard errors"
        f" ({errors[name]:.2g}) from the truth, {constant.truth:g}."
        for name, constant in CONSTANTS.items()
        # Written so that a NaN fails.
        if not abs(estimates[name] - constant.truth) <= TOLERANCE * errors[name]
    ]
    return example_io.exit_status(problems)


if __name__ == "__main__":
    sys.exit(main())
