"""Each optimizer at its best: evaluations, seconds and held-out error.

A problem is solved once the loss has fallen the fraction 1 - tolerance of the way
from the start to the lowest value that any of the optimizers found from that start
(Moré and Wild, 2009, https://doi.org/10.1137/080724083). Each optimizer is tuned on
one start and measured on others: once with the setting that is best for the problem,
once with the one setting that is best over all problems. And once, beside optimizers
that were made for it, with nothing tuned at all.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import (
    OPTIMIZERS,
    RATES,
    TUNING_FREE,
    Optimizer,
)
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.descend import Run, compile_all

TOLERANCES = (1e-2, 1e-4)
TUNING_RUN = 0
# Tuned to each problem, or one setting for all.
EACH, ONE = "each", "one"
UNTUNED = (*(o for o in OPTIMIZERS if o.default > 0 or not o.tuned), *TUNING_FREE)
DATA_SETS = ("building1", "glass1", "heart1")


def problems(options: argparse.Namespace) -> list[tuple[Problem, int]]:
    """The problems, each with the number of gradients that a run may take."""
    if options.quick:
        return [(models.small_regression(), 50)]
    chosen = [
        (functions.quadratic(rotated=False), 2000),
        (functions.quadratic(rotated=True), 2000),
        (functions.rosenbrock(), 2000),
        (functions.powell_singular(), 2000),
        (functions.beale(), 2000),
        (functions.factorization(), 2000),
        (functions.peaks(), 2000),
        (models.least_squares(), 2000),
        (models.logistic("wine", standardized=False), 1000),
        (models.logistic("wine", standardized=True), 1000),
        (models.logistic("cancer", standardized=False), 1000),
        (models.logistic("cancer", standardized=True), 1000),
        (functions.gaussian_process(), 300),
        (functions.predator_prey(), 300),
        (models.small_regression(), 1000),
        (digits(512), 300),
        (models.deep_sigmoid(), 300),
    ]
    paths = find_proben1(options.data_dir, DATA_SETS)
    return [*chosen, *((models.proben1(path), 300) for path in paths.values())]


class Bout:
    """A problem with all optimizers, and every run that was made on it."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem = problem
        self.budget = budget
        self._runners = compile_all(
            problem, (*OPTIMIZERS, *TUNING_FREE), budget, watch=True
        )
        self._runs: dict[tuple[str, float, int], Run] = {}
        self._start: dict[int, float] = {}
        self._lowest: dict[int, float] = {}

    def run(self, name: str, setting: float, run: int) -> Run:
        """The run of an optimizer, made once."""
        key = (name, setting, run)
        if key not in self._runs:
            self._runs[key] = made = self._runners[name](setting, run)
            self._start[run] = float(made.trace.losses[0])
            lowest = float(np.nanmin(made.trace.losses))
            self._lowest[run] = min(lowest, self._lowest.get(run, np.inf))
        return self._runs[key]

    def cost(
        self, name: str, setting: float, run: int, tolerance: float
    ) -> tuple[float, float]:
        """Evaluations and seconds until solved, or infinities."""
        lowest = self._lowest[run]
        target = lowest + tolerance * (self._start[run] - lowest)
        return self.run(name, setting, run).until(target)

    def fewest(self, run: int, tolerance: float) -> float:
        """The evaluations of the fastest optimizer and setting from this start."""
        return min(
            self.cost(name, setting, run, tolerance)[0]
            for name, setting, at in list(self._runs)
            if at == run
        )

    def early_stopped(self, name: str, setting: float, run: int) -> dict[str, float]:
        """What early stopping would keep: the step of the lowest validation loss."""
        trace = self.run(name, setting, run).trace
        best = np.nanargmin(trace.validation_losses)
        return {
            "validation_loss": float(trace.validation_losses[best]),
            "error": float(trace.errors[best]),
            "evaluations": int(trace.evaluations[best]),
        }


def settings(optimizer: Optimizer, grid: Sequence[float]) -> Sequence[float]:
    """What to try; some have nothing to try."""
    return grid if optimizer.tuned else grid[:1]


def tune(
    bouts: Sequence[Bout], name: str, grid: Sequence[float], tolerance: float
) -> tuple[list[float], float]:
    """The best setting on each problem, and the best single one, by the tuning start.

    On a problem, a setting scores the fewest evaluations of any optimizer over its
    own, and 0 if it does not solve it; if no setting does, the one that comes lowest
    is best. The best single setting has the highest mean score.
    """
    scores = np.zeros((len(bouts), len(grid)))
    best = []
    for i, bout in enumerate(bouts):
        costs = [bout.cost(name, s, TUNING_RUN, tolerance)[0] for s in grid]
        scores[i] = bout.fewest(TUNING_RUN, tolerance) / np.array(costs)
        if not scores[i].any():
            traces = [bout.run(name, s, TUNING_RUN).trace for s in grid]
            costs = [np.nanmin(trace.losses) for trace in traces]
        best.append(grid[int(np.argmin(costs))])
    return best, grid[int(scores.mean(axis=0).argmax())]


class Choice(NamedTuple):
    """An optimizer's setting for a problem, and the way in which it was chosen."""

    tuning: str
    tolerance: float
    bout: Bout
    optimizer: Optimizer
    setting: float

    def row(self, run: int, **found: float) -> dict[str, Any]:
        """A row of results, with missing values for infinities."""
        return {
            "problem": self.bout.problem.name,
            "optimizer": self.optimizer.name,
            "setting": self.setting if self.optimizer.tuned else np.nan,
            "run": run,
            **{k: v if np.isfinite(v) else np.nan for k, v in found.items()},
        }


def choose(
    bouts: Sequence[Bout], grid: Sequence[float]
) -> tuple[list[Choice], list[Choice]]:
    """Settings by costs, and by validation loss where there are held-out data."""
    by_costs, by_validation = [], []
    for tolerance, optimizer in itertools.product(TOLERANCES, OPTIMIZERS):
        tried = settings(optimizer, grid)
        each, one = tune(bouts, optimizer.name, tried, tolerance)
        for bout, setting in zip(bouts, each, strict=True):
            by_costs += [
                Choice(EACH, tolerance, bout, optimizer, setting),
                Choice(ONE, tolerance, bout, optimizer, one),
            ]
    for bout, optimizer in itertools.product(bouts, OPTIMIZERS):
        if bout.problem.error is None:
            continue
        tried = settings(optimizer, grid)
        losses = [
            bout.early_stopped(optimizer.name, s, TUNING_RUN)["validation_loss"]
            for s in tried
        ]
        best = tried[int(np.argmin(losses))]
        by_validation.append(Choice("validation loss", 0.0, bout, optimizer, best))
    return by_costs, by_validation


def measure(choices: Sequence[Choice], runs: Sequence[int]) -> None:
    """Make all runs first, as the lowest loss of any of them says what is solved."""
    for choice, run in tqdm.tqdm([*itertools.product(choices, runs)], desc="measure"):
        choice.bout.run(choice.optimizer.name, choice.setting, run)


def cost_rows(
    choices: Sequence[Choice], runs: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Evaluations and seconds until solved."""
    for choice, run in itertools.product(choices, runs):
        tuning, tolerance, bout, optimizer, setting = choice
        evaluations, seconds = bout.cost(optimizer.name, setting, run, tolerance)
        how = {"tuning": tuning, "tolerance": tolerance}
        yield how | choice.row(run, evaluations=evaluations, seconds=seconds)


def untuned_rows(
    bouts: Sequence[Bout], grid: Sequence[float], runs: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Evaluations until solved with nothing tuned, a column an optimizer."""
    # What has no setting runs with any.
    names = {o.name: o.default if o.tuned else grid[0] for o in UNTUNED}
    for bout, run, setting in itertools.product(bouts, runs, names.items()):
        bout.run(*setting, run)
    for tolerance, bout, run in itertools.product(TOLERANCES, bouts, runs):
        found = {
            name: bout.cost(name, setting, run, tolerance)[0]
            for name, setting in names.items()
        }
        where = {"tolerance": tolerance, "problem": bout.problem.name, "run": run}
        yield where | {k: v if np.isfinite(v) else np.nan for k, v in found.items()}


def held_out_rows(
    choices: Sequence[Choice], runs: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """What early stopping keeps."""
    for choice, run in itertools.product(choices, runs):
        found = choice.bout.early_stopped(choice.optimizer.name, choice.setting, run)
        del found["validation_loss"]
        yield choice.row(run, **found)


def problem_row(bout: Bout) -> dict[str, Any]:
    """What the reader must know about a problem."""
    return {
        "problem": bout.problem.name,
        "description": bout.problem.description,
        "budget": bout.budget,
        "error_name": bout.problem.error_name,
    }


def main(arguments: list[str] | None = None) -> None:
    """Tune on one start, measure on the others, unless that has been done."""
    parser = cli.parser(__doc__, "full_batch")
    cli.add_data_dir(parser)
    parser.add_argument(
        "--runs", type=cli.at_least(1), default=5, help="starts, after the tuning"
    )
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "rivals", ["tuning"])
    if study.has(EACH):
        return
    grid = (RATES[::4] if options.quick else RATES).tolist()
    runs = range(1, 1 + (1 if options.quick else options.runs))
    bouts = [Bout(*task) for task in tqdm.tqdm(problems(options), desc="compile")]
    for bout, optimizer in tqdm.tqdm([*itertools.product(bouts, OPTIMIZERS)], "tune"):
        for setting in settings(optimizer, grid):
            bout.run(optimizer.name, setting, TUNING_RUN)
    by_costs, by_validation = choose(bouts, grid)
    measure([*by_costs, *by_validation], runs)
    # First, as its runs may find a lower loss, which says what is solved.
    study.add(untuned_rows(bouts, grid, runs), "untuned")
    study.add(map(problem_row, bouts), "problems")
    study.add(held_out_rows(by_validation, runs), "held_out")
    study.add(cost_rows(by_costs, runs))


if __name__ == "__main__":
    main()
