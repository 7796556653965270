"""Shared by the examples: options, runs to compare, tables and pictures."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy.optimize import minimize
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# The first colours of Matplotlib's style "tableau-colorblind10".
COLOURS = ("#006BA4", "#FF800E", "#ABABAB", "#595959", "#5F9ED1", "#C85200")
LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))

LossAndGradient = Callable[[Any], tuple[jax.Array, Any]]

_FAILED = 1e10
"""Replaces NaN for a line search, which cannot interpolate it."""


def positive(text: str) -> int:
    """An option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def positive_number(text: str) -> float:
    """An option that is a step size or a rate."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return number


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every example has."""
    options = argparse.ArgumentParser(
        description=(description or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    options.add_argument("--seed", type=int, default=0, help="of all random numbers")
    options.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder of the picture; created if missing",
    )
    return options


def parse(
    options: argparse.ArgumentParser, arguments: list[str] | None
) -> argparse.Namespace:
    """Parse the command line and create the folder of the picture."""
    parsed = options.parse_args(arguments)
    if parsed.seed < 0:
        options.error(f"argument --seed: must not be negative, got {parsed.seed}")
    try:
        parsed.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        options.error(f"argument --output-dir: cannot create the folder: {error}")
    return parsed


class Run(NamedTuple):
    """One optimizer's run, with an entry per evaluation of loss and gradient.

    Attributes:
      name: For tables and legends.
      losses: The losses, shape (evaluations,); NaN where an evaluation failed.
      params: The parameters at which they were evaluated.
      opt_states: The optimizer's state after each, for Optax's optimizers.
    """

    name: str
    losses: np.ndarray
    params: list[Any]
    opt_states: list[Any]

    @property
    def best_loss(self) -> float:
        """The smallest loss, +inf if every evaluation failed."""
        return float(np.min(self.losses, initial=np.inf, where=~np.isnan(self.losses)))

    @property
    def best_params(self) -> Any:
        """The parameters of the smallest loss."""
        return self.params[int(np.argmin(np.nan_to_num(self.losses, nan=np.inf)))]

    @property
    def failures(self) -> int:
        """The number of evaluations with a non-finite loss."""
        return int(np.sum(~np.isfinite(self.losses)))

    def evaluations_to(self, loss: float) -> int | None:
        """The number of the first evaluation with at most this loss."""
        reached = np.flatnonzero(self.losses <= loss)
        return int(reached[0]) + 1 if reached.size else None


def best_of(runs: Sequence[Run]) -> Run:
    """The run with the smallest loss."""
    return min(runs, key=lambda run: run.best_loss)


def run_optax(
    name: str,
    optimizer: optax.GradientTransformation,
    loss_and_gradient: LossAndGradient,
    params: Any,
    evaluations: int,
    project: Callable[[Any], Any] = lambda params: params,
) -> Run:
    """Make one update per evaluation.

    Args:
      name: For tables and legends.
      optimizer: Any of Optax's, or Rprop; it gets the loss as `value`.
      loss_and_gradient: Compiled, so that several runs share one compilation.
      params: The initial ones.
      evaluations: Number of evaluations.
      project: Maps updated parameters into the feasible set.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params: Any, opt_state: Any, loss: jax.Array, grads: Any) -> Any:
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        return project(optax.apply_updates(params, updates)), opt_state

    opt_state = optimizer.init(params)
    losses, history, opt_states = [], [], []
    for _ in tqdm(range(evaluations), desc=name, unit=" evaluations", leave=False):
        loss, grads = loss_and_gradient(params)
        losses.append(float(loss))
        history.append(params)
        params, opt_state = step(params, opt_state, loss, grads)
        opt_states.append(opt_state)
    return Run(name, np.array(losses), history, opt_states)


def run_lbfgs(
    name: str,
    loss_and_gradient: LossAndGradient,
    params: Any,
    evaluations: int,
    lower_bounds: Any = None,
) -> Run:
    """Run SciPy's L-BFGS-B until it stops.

    Args:
      name: For tables and legends.
      loss_and_gradient: Compiled.
      params: The initial ones.
      evaluations: Maximum number, including those of the line search.
      lower_bounds: Like the parameters, -inf for none; or None.
    """
    start, unravel = ravel_pytree(params)
    bounds = None
    if lower_bounds is not None:
        bounds = [(float(bound), None) for bound in ravel_pytree(lower_bounds)[0]]
    losses, history = [], []

    def evaluate(vector: np.ndarray) -> tuple[float, np.ndarray]:
        here = unravel(jnp.asarray(vector))
        loss, grads = loss_and_gradient(here)
        losses.append(float(loss))
        history.append(here)
        progress.update()
        if not np.isfinite(losses[-1]):
            return _FAILED, np.zeros_like(vector)
        return losses[-1], np.asarray(ravel_pytree(grads)[0])

    with tqdm(
        total=evaluations, desc=name, unit=" evaluations", leave=False
    ) as progress:
        minimize(
            evaluate,
            np.asarray(start),
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            # It stops only when rounding prevents further progress.
            options={
                "maxiter": evaluations,
                "maxfun": evaluations,
                "ftol": 1e-15,
                "gtol": 1e-9,
            },
        )
    # The last line search may exceed the limit.
    return Run(name, np.array(losses[:evaluations]), history[:evaluations], [])


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns, the first one aligned to the left, the others to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        first, *rest = (
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())


def print_comparison(runs: Sequence[Run], targets: dict[str, float]) -> None:
    """Print the best loss of each run, and when it reached the targets.

    Args:
      runs: The runs.
      targets: The loss to reach, by column title.
    """

    def row(run: Run) -> list[str]:
        counts = [run.evaluations_to(loss) for loss in targets.values()]
        return [
            run.name,
            f"{run.best_loss:.4f}",
            *("-" if count is None else str(count) for count in counts),
            str(len(run.losses)),
            str(run.failures),
        ]

    header = ["optimizer", "best loss", *targets, "evaluations", "failed"]
    print_table(header, map(row, runs))


def save(figure: Figure, path: Path) -> None:
    """Save a picture and print its path."""
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"Picture: {path}")


def exit_status(problems: Sequence[str]) -> int:
    """Report problems on standard error; returns 1 if there are any, else 0."""
    for problem in problems:
        print(f"Check failed: {problem}", file=sys.stderr)
    return 1 if problems else 0
