"""Fit the hyperparameters of a Gaussian process to real data, without a transform.

The data are scikit-learn's 442 diabetes patients: ten measurements, and how far the
disease progressed within a year. The twelve hyperparameters are the relevance of each
measurement (the inverse of its length scale, 0 if it does not matter), the variance of
the signal and that of the noise. Nothing keeps the variances positive; if one is not,
the Cholesky factor of the covariance is NaN. A far too large initial step size leads
there at once; irprop+ undoes that update and continues with half the step size.
Compared with Adam at several rates and with L-BFGS-B, which is given the bounds.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import example_io
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

from optax_rprop import rprop

FEATURES = (
    "age",
    "sex",
    "BMI",
    "blood pressure",
    "total cholesterol",
    "LDL",
    "HDL",
    "cholesterol / HDL",
    "triglycerides (log)",
    "blood sugar",
)
BMI = FEATURES.index("BMI")
ROWS = range(20, 423)  # of 442, so that neither set is too small
# The fraction of the best run's gain to reach: there are other local optima.
GAIN = 0.9
STATIONARY = 1e-2  # nats per unit; about 100 at the start
SMALLEST_VARIANCE = 1e-6

Params = dict[str, jax.Array]


class Patients(NamedTuple):
    """Measurements, shape (patients, 10), and progression, shape (patients,)."""

    inputs: np.ndarray
    targets: np.ndarray


class Data(NamedTuple):
    """Both sets in units of the training set's standard deviations about its means."""

    train: Patients
    test: Patients
    means: Patients
    deviations: Patients

    def score(self, standardized: Any) -> np.ndarray:
        """A progression in its original unit."""
        return standardized * self.deviations.targets + self.means.targets

    def body_mass_index(self, standardized: np.ndarray) -> np.ndarray:
        """In kg/m²."""
        return standardized * self.deviations.inputs[BMI] + self.means.inputs[BMI]


def load_data(rows: int, seed: int) -> Data:
    """The patients: `rows` drawn at random for training, the others for the test."""
    patients: Any = load_diabetes(scaled=False)
    parts = train_test_split(
        patients.data, patients.target, train_size=rows, random_state=seed
    )
    train_inputs, test_inputs, train_targets, test_targets = map(np.asarray, parts)
    train = Patients(train_inputs, train_targets)
    means, deviations = (
        Patients(*(statistic(field, axis=0) for field in train))
        for statistic in (np.mean, np.std)
    )

    def standardize(patients: Patients) -> Patients:
        return Patients(
            *(
                (field - mean) / deviation
                for field, mean, deviation in zip(
                    patients, means, deviations, strict=True
                )
            )
        )

    test = Patients(test_inputs, test_targets)
    return Data(standardize(train), standardize(test), means, deviations)


def start() -> Params:
    """Every measurement equally relevant; half signal, half noise."""
    size = len(FEATURES)
    return {
        "relevances": jnp.full(size, size**-0.5),
        "signal_variance": jnp.array(1.0),
        "noise_variance": jnp.array(1.0),
    }


def lower_bounds() -> Params:
    """The bounds for L-BFGS-B; Rprop and Adam get none."""
    return {
        "relevances": jnp.full(len(FEATURES), -jnp.inf),
        "signal_variance": jnp.array(SMALLEST_VARIANCE),
        "noise_variance": jnp.array(SMALLEST_VARIANCE),
    }


def covariance(params: Params, rows: Any, columns: Any) -> jax.Array:
    """Squared exponential covariances, shape (rows, columns)."""
    rows, columns = rows * params["relevances"], columns * params["relevances"]
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(columns**2, axis=1)
    distances = jnp.maximum(squares - 2 * rows @ columns.T, 0.0)
    return params["signal_variance"] * jnp.exp(-0.5 * distances)


def factorize(params: Params, train: Patients) -> tuple[jax.Array, jax.Array]:
    """Lower Cholesky factor of the targets' covariance, and its solution for them."""
    noise = params["noise_variance"] * jnp.eye(len(train.targets))
    factor = jnp.linalg.cholesky(covariance(params, train.inputs, train.inputs) + noise)
    return factor, jax.scipy.linalg.solve_triangular(factor, train.targets, lower=True)


def negative_log_likelihood(params: Params, train: Patients) -> jax.Array:
    """Of the training targets, with the function integrated out; in nats."""
    factor, whitened = factorize(params, train)
    log_determinant = 2 * jnp.sum(jnp.log(jnp.diag(factor)))
    size = len(train.targets)
    return 0.5 * (whitened @ whitened + log_determinant + size * jnp.log(2 * jnp.pi))


def predict(
    params: Params, train: Patients, inputs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations of new targets, each of shape (rows,)."""
    factor, whitened = factorize(params, train)
    cross = covariance(params, train.inputs, inputs)
    weights = jax.scipy.linalg.solve_triangular(factor, cross, lower=True)
    explained = jnp.sum(weights**2, axis=0)
    variances = params["signal_variance"] + params["noise_variance"] - explained
    return np.asarray(whitened @ weights), np.sqrt(variances)


def plot_convergence(axis: Axes, runs: Sequence[example_io.Run], best: float) -> None:
    """The distance of each run from the best likelihood, and its failures."""
    # Smaller differences do not matter.
    smallest = 1e-4
    for run, colour, style in zip(
        runs, example_io.COLOURS, example_io.LINE_STYLES, strict=False
    ):
        counts = np.arange(1, len(run.losses) + 1)
        gaps = np.maximum(np.fmin.accumulate(run.losses) - best, smallest)
        axis.plot(counts, gaps, color=colour, linestyle=style, label=run.name)
        failed = ~np.isfinite(run.losses)
        if failed.any():
            axis.plot(counts[failed], gaps[failed], "x", color=colour, ms=9, mew=2)
    axis.plot([], [], "x", color="0.3", ms=9, mew=2, label="Cholesky factor failed")
    axis.set(yscale="log", xlabel="evaluations of loss and gradient")
    axis.set(ylabel="nats above the best", ylim=(smallest, None))
    axis.set_title("Negative log likelihood, best so far")
    axis.legend(fontsize="small")


def plot_relevances(axis: Axes, params: Params) -> None:
    """One bar for each measurement."""
    relevances = np.abs(params["relevances"])
    axis.barh(FEATURES, relevances, color=example_io.COLOURS[0])
    axis.invert_yaxis()
    axis.set_xlabel("relevance (1 / standard deviation of the measurement)")
    axis.set_title("Relevance for the progression")


def plot_slice(axis: Axes, params: Params, data: Data) -> None:
    """The prediction over the body-mass index, all else average."""
    grid = np.zeros((200, len(FEATURES)))
    observed = data.train.inputs[:, BMI]
    grid[:, BMI] = np.linspace(observed.min(), observed.max(), len(grid))
    means, deviations = predict(params, data.train, grid)
    low, middle, high = (data.score(means + z * deviations) for z in (-1.96, 0.0, 1.96))
    index = data.body_mass_index(grid[:, BMI])
    colour = example_io.COLOURS[0]
    axis.fill_between(index, low, high, color=colour, alpha=0.2, label="95 %")
    axis.plot(index, middle, color=colour, label="mean")
    axis.plot(
        data.body_mass_index(observed),
        data.score(data.train.targets),
        ".",
        color=example_io.COLOURS[3],
        label="training patients",
    )
    axis.set(xlabel="body-mass index (kg/m²)", ylabel="progression (score)")
    axis.set_title("The fit, all other measurements average")
    axis.legend(fontsize="small")


def plot_predictions(axis: Axes, params: Params, data: Data) -> None:
    """Predicted and measured progression of the held-out patients."""
    means, deviations = predict(params, data.train, data.test.inputs)
    measured = data.score(data.test.targets)
    axis.errorbar(
        measured,
        data.score(means),
        data.score(1.96 * deviations) - data.score(0.0),
        fmt="o",
        ms=4,
        color=example_io.COLOURS[0],
        ecolor=example_io.COLOURS[2],
        elinewidth=0.8,
        label="held-out patients, 95 %",
    )
    limits = [measured.min(), measured.max()]
    axis.plot(limits, limits, "--", color=example_io.COLOURS[1], label="equal")
    axis.set(xlabel="measured progression (score)", ylabel="predicted (score)")
    axis.set_title("Held-out patients")
    axis.legend(fontsize="small", loc="upper left")


def plot(
    runs: Sequence[example_io.Run], best: float, params: Params, data: Data, path: Path
) -> None:
    """Convergence, relevances, the fit along one measurement, and the test."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    plot_convergence(axes[0, 0], runs, best)
    plot_relevances(axes[0, 1], params)
    plot_slice(axes[1, 0], params, data)
    plot_predictions(axes[1, 1], params, data)
    for axis in axes.flat:
        axis.set_axisbelow(True)
        axis.grid(alpha=0.3)
    example_io.save(figure, path)


def print_test(params: Params, data: Data) -> float:
    """Print the errors for the held-out patients; returns that of the process.

    It is the root mean square, as a fraction of that of the training mean.
    """
    means, deviations = predict(params, data.train, data.test.inputs)
    linear = LinearRegression().fit(*data.train).predict(data.test.inputs)
    residuals = {
        "mean of the training set": data.test.targets,
        "linear regression": data.test.targets - linear,
        "Gaussian process": data.test.targets - means,
    }
    errors = {name: np.sqrt(np.mean(r**2)) for name, r in residuals.items()}
    scale = data.deviations.targets
    example_io.print_table(
        ["prediction", "RMS error (score)"],
        [[name, f"{error * scale:.1f}"] for name, error in errors.items()],
    )
    within = np.mean(np.abs(residuals["Gaussian process"]) <= 1.96 * deviations)
    print(f"{within:.0%} of them are within the 95 % interval of the process.")
    return errors["Gaussian process"] / errors["mean of the training set"]


def main(arguments: list[str] | None = None) -> int:
    """Fit, report, and return the exit status."""
    parser = example_io.parser(__doc__)
    parser.add_argument(
        "--rows", type=example_io.positive, default=300, help="patients to train on"
    )
    parser.add_argument(
        "--evaluations",
        type=example_io.positive,
        default=150,
        help="of likelihood and gradient, for each optimizer",
    )
    parser.add_argument(
        "--initial-step-sizes",
        type=example_io.positive_number,
        nargs="+",
        default=[0.01, 0.1, 1.0, 10.0],
        metavar="STEP",
        help="of irprop+; the last one should fail at first",
    )
    parser.add_argument(
        "--adam-rates",
        type=example_io.positive_number,
        nargs="+",
        default=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
        metavar="RATE",
        help="learning rates to try for Adam",
    )
    options = example_io.parse(parser, arguments)
    if options.rows not in ROWS:
        parser.error(
            f"argument --rows: must lie between {ROWS[0]} and {ROWS[-1]}, got"
            f" {options.rows}"
        )
    jax.config.update("jax_enable_x64", True)

    data = load_data(options.rows, options.seed)
    evaluate = jax.jit(
        lambda params: jax.value_and_grad(negative_log_likelihood)(params, data.train)
    )
    settings = (evaluate, start(), options.evaluations)
    # Such small matrices gain nothing from several threads, which on a busy machine
    # cost far more than the work itself.
    threadpool_limits(limits=1, user_api="blas")
    rprops = [
        example_io.run_optax(
            f"irprop+, initial step size {size:g}",
            rprop(size, variant="irprop+"),
            *settings,
        )
        for size in options.initial_step_sizes
    ]
    adams = [
        example_io.run_optax(f"Adam, rate {rate:g}", optax.adam(rate), *settings)
        for rate in options.adam_rates
    ]
    lbfgs = example_io.run_lbfgs("L-BFGS-B (SciPy)", *settings, lower_bounds())

    runs = [*rprops, *adams, lbfgs]
    best = example_io.best_of(runs).best_loss
    print(
        f"Negative log likelihood of {options.rows} patients, in nats, and evaluations"
        " until within a distance of the best"
    )
    example_io.print_comparison(
        runs, {f"within {gap:g}": best + gap for gap in (1.0, 0.1, 0.01)}
    )
    for run in runs:
        _, grads = evaluate(run.best_params)
        stationary = optax.tree.norm(grads) < STATIONARY
        if stationary and run.best_loss > best + 0.01:
            print(f"{run.name} ended in another local optimum: its gradient is 0.")
    recovered = rprops[-1]
    losses = " ".join(f"{loss:.1f}" for loss in recovered.losses[:8])
    print(
        f"\n{recovered.name}, the first losses: {losses}\nnan: the Cholesky factor"
        " failed, so the update was undone and the step size halved."
    )

    print(f"\n{len(data.test.targets)} held-out patients")
    relative_error = print_test(recovered.best_params, data)
    plot(
        [rprops[0], recovered, example_io.best_of(adams), lbfgs],
        best,
        recovered.best_params,
        data,
        options.output_dir / "gaussian_process.png",
    )

    first = recovered.losses[0]
    problems = [
        f"{run.name} got from {first:.2f} to {run.best_loss:.2f} nats, less than"
        f" {GAIN:.0%} of the way to the best, {best:.2f}. It may need more"
        " --evaluations."
        for run in rprops
        if not first - run.best_loss >= GAIN * (first - best)
    ]
    if not recovered.failures:
        problems.append(
            f"{recovered.name} never left the domain, so it shows no recovery. Use a"
            " larger last one of --initial-step-sizes."
        )
    if not relative_error < 1:
        problems.append("The process predicts no better than the mean.")
    return example_io.exit_status(problems)


if __name__ == "__main__":
    sys.exit(main())
