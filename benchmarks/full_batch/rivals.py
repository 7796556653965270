"""Each optimizer at its best: evaluations, seconds and held-out error.

Each optimizer is tuned on one start and measured on others: once with the setting that
is best for the problem, once with the one setting that is best over all problems. And
once, beside optimizers that were made for it, with nothing tuned at all.
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
from benchmarks.common.optimizers import OPTIMIZERS, RATES, TUNING_FREE, Optimizer
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.bout import Bout

TOLERANCES = (1e-2, 1e-4)
TUNING_RUN = 0
# Tuned to each problem; one setting for all; by the validation loss on each.
EACH, ONE, VALIDATION = "each", "one", "validation loss"
AT_DEFAULTS = (*(o for o in OPTIMIZERS if o.default > 0 or not o.tuned), *TUNING_FREE)
RUNS = range(1, 6)
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


def early_stopped(
    bout: Bout, name: str, setting: float, run: int
) -> tuple[float, float, int]:
    """At the lowest validation loss: that, the test error and the evaluations."""
    trace = bout.run(name, setting, run).trace
    best = np.nanargmin(trace.validation_losses)
    return trace.validation_losses[best], trace.errors[best], trace.evaluations[best]


class Choice(NamedTuple):
    """An optimizer's setting for a problem, and the way in which it was chosen."""

    tuning: str
    tolerance: float
    bout: Bout
    optimizer: Optimizer
    setting: float

    def row(self, run: int) -> dict[str, Any]:
        """What was measured from a start."""
        tuning, tolerance, bout, (name, *_), setting = self
        who = {"problem": bout.problem.name, "optimizer": name}
        who |= {"setting": setting, "run": run}
        if tuning == VALIDATION:
            _, error, evaluations = early_stopped(bout, name, setting, run)
            return who | {"error": error, "evaluations": evaluations}
        evaluations, seconds = bout.cost(name, setting, run, tolerance)
        how = {"tuning": tuning, "tolerance": tolerance}
        return how | who | {"evaluations": evaluations, "seconds": seconds}


def choose_by_cost(bouts: Sequence[Bout], grid: Sequence[float]) -> Iterator[Choice]:
    """By the costs from the tuning start, for each problem and for all.

    On a problem, a setting scores the fewest evaluations of any optimizer over its
    own, and 0 if it does not solve it; if no setting does, the one that comes lowest
    is best. The best single setting has the highest mean score.
    """
    for tolerance, optimizer in itertools.product(TOLERANCES, OPTIMIZERS):
        name, tried = optimizer.name, optimizer.settings(grid)
        scores = [bout.scores(name, tried, TUNING_RUN, tolerance) for bout in bouts]
        one = tried[int(np.mean(scores, axis=0).argmax())]
        for bout, its in zip(bouts, scores, strict=True):
            runs = [bout.run(name, setting, TUNING_RUN) for setting in tried]
            lowest = [np.nanmin(run.trace.losses) for run in runs]
            each = tried[int(its.argmax() if its.any() else np.argmin(lowest))]
            yield Choice(EACH, tolerance, bout, optimizer, each)
            yield Choice(ONE, tolerance, bout, optimizer, one)


def choose_by_validation(
    bouts: Sequence[Bout], grid: Sequence[float]
) -> Iterator[Choice]:
    """By the validation loss from the tuning start, where there are held-out data."""
    for bout, optimizer in itertools.product(bouts, OPTIMIZERS):
        if bout.problem.error is not None:
            tried = optimizer.settings(grid)
            found = [early_stopped(bout, optimizer.name, s, TUNING_RUN) for s in tried]
            best = tried[int(np.argmin([loss for loss, *_ in found]))]
            yield Choice(VALIDATION, np.nan, bout, optimizer, best)


def untuned_row(tolerance: float, bout: Bout, run: int) -> dict[str, Any]:
    """Evaluations until solved with nothing tuned, a column an optimizer."""
    return {"tolerance": tolerance, "problem": bout.problem.name, "run": run} | {
        name: bout.cost(name, default, run, tolerance)[0]
        for name, _, default, *_ in AT_DEFAULTS
    }


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
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "rivals", ["tuning"])
    if study.has(EACH):
        return
    grid, runs = (RATES[::4], (1,)) if options.quick else (RATES, RUNS)
    bouts = [
        Bout(problem, (*OPTIMIZERS, *TUNING_FREE), budget, watch=True)
        for problem, budget in tqdm.tqdm(problems(options), desc="compile")
    ]
    for bout, optimizer in tqdm.tqdm([*itertools.product(bouts, OPTIMIZERS)], "tune"):
        for setting in optimizer.settings(grid):
            bout.run(optimizer.name, setting, TUNING_RUN)
    by_cost = list(choose_by_cost(bouts, grid))
    by_validation = list(choose_by_validation(bouts, grid))
    # All runs come before the rows, as the lowest loss of any says what is solved.
    pairs = list(itertools.product([*by_cost, *by_validation], runs))
    for choice, run in tqdm.tqdm(pairs, "measure"):
        choice.bout.run(choice.optimizer.name, choice.setting, run)
    for bout, optimizer, run in itertools.product(bouts, AT_DEFAULTS, runs):
        bout.run(optimizer.name, optimizer.default, run)
    starts = itertools.product(TOLERANCES, bouts, runs)
    study.add((untuned_row(*start) for start in starts), "untuned")
    study.add(map(problem_row, bouts), "problems")
    stopped = itertools.product(by_validation, runs)
    study.add((choice.row(run) for choice, run in stopped), "held_out")
    study.add(choice.row(run) for choice, run in itertools.product(by_cost, runs))


if __name__ == "__main__":
    main()
