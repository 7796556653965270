"""Does mini-batch Rprop train as well as other optimizers, tuned and untuned?

A task is a problem and a batch size. On each, every setting of every optimizer trains
in every run. An optimizer's setting is the one with the least validation error, and its
test error counts, at the iterates and at their average. The number of a run sets the
split, the initial weights and the order of the batches, identically for all optimizers.
Early stopping is the same for all, too: errors are those of the checkpoint with the
least validation error.
"""

import argparse
import concurrent.futures
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study
from benchmarks.minibatch import methods
from benchmarks.minibatch import problems as sets
from benchmarks.minibatch.methods import OPTIMIZERS, Optimizer
from benchmarks.minibatch.train import (
    CHECKPOINTS,
    FULL,
    STEPS,
    Curves,
    Rows,
    at_best,
    by_run,
    runs_and_rows,
    train,
)

RUNS = 10
# Parts at a time; more need more than 20 GB of memory.
WORKERS = 2
FULL_BATCH = ("digits", "diabetes1")
# Our settings were chosen on the first; the last are newer than all of them.
CHOSEN, HELD_OUT, UNSEEN = GROUPS = ("chosen on", "held out", "unseen")
ITERATE, AVERAGE = EVALUATED = ("iterate", "average")


class Part(NamedTuple):
    """The part of a study that is run, or skipped, at a time.

    Attributes:
      study: Names the file of results.
      problem: The problem to train.
      batch: The batch size.
      measure: From problem, rows in a batch and steps: the rows of each table.
      steps: How many; None means those of `STEPS`.
    """

    study: str
    problem: Problem
    batch: Any
    measure: Callable[[Problem, int, int], dict[str, Rows]]
    steps: int | None = None


def run_parts(parts: Sequence[Part], folder: Path, script: str, *, quick: bool) -> None:
    """Run those that are not there yet, and write their rows."""
    studies = {
        name: Study(folder, name, ["problem", "batch"], script=script)
        for name in {part.study for part in parts}
    }

    def run(part: Part) -> dict[str, list[Any]]:
        _, rows = runs_and_rows(part.problem.data)
        size = rows if part.batch == FULL else part.batch
        steps = 2 * CHECKPOINTS if quick else part.steps or STEPS[part.batch]
        where = {"problem": part.problem.name, "batch": part.batch}
        tables = part.measure(part.problem, size, steps)
        return {name: [where | row for row in found] for name, found in tables.items()}

    missing = [p for p in parts if not studies[p.study].has(p.problem.name, p.batch)]
    # Training many small networks at once keeps hardly more than one core busy.
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        done = zip(missing, pool.map(run, missing), strict=True)
        for part, tables in tqdm(done, total=len(missing), unit="part"):
            for table, rows in tables.items():
                studies[part.study].add(rows, table)


def known_problems(options: argparse.Namespace, runs: int) -> list[Problem]:
    """The packaged problems, and those of Proben1 if there is a folder."""
    paths = find_proben1(options.data_dir, sets.PROBEN1)
    return [
        *sets.packaged(runs),
        *(sets.proben1(path, runs) for path in paths.values()),
    ]


def unseen_problems(options: argparse.Namespace, runs: int) -> list[Problem]:
    """The problems on which nothing was chosen; likewise."""
    return sets.unseen(find_proben1(options.data_dir, sets.UNSEEN_PROBEN1), runs)


def batch_sizes(problem: Problem) -> Sequence[Any]:
    """The batch sizes that make sense for a problem."""
    if problem.name in sets.BATCHES:
        return sets.BATCHES[problem.name]
    _, rows = runs_and_rows(problem.data)
    sizes: list[Any] = [size for size in STEPS if size != FULL and 2 * size <= rows]
    return sizes + [FULL] * (problem.name in FULL_BATCH)


def problem_row(problem: Problem, group: str) -> dict[str, Any]:
    """The facts of a problem for the reader."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    row = {"problem": problem.name, "group": group}
    row |= {"description": problem.description, "parameters": sum(sizes)}
    return row | {"error_name": problem.error_name}


def measure(
    problem: Problem,
    size: int,
    steps: int,
    *,
    optimizers: Sequence[Optimizer],
    judge: Callable[[Curves], Curves] = at_best,
) -> dict[str, Rows]:
    """Train all settings, and choose each optimizer's by the validation sets.

    Returns:
      A table of settings, a row, of means, for each. And test errors, a row a run and
      kind of parameters, a column an optimizer.
    """
    errors: dict[str, dict[str, np.ndarray]] = {name: {} for name in EVALUATED}
    tried = []
    for optimizer in optimizers:
        found = train(problem, optimizer, size, steps)
        for evaluated, scores in zip(EVALUATED, map(judge, found), strict=True):
            means = Curves(*(score.mean(axis=1) for score in scores))
            # The loss decides between settings of the same error.
            best = np.lexsort((means.validation_loss, means.validation_error))[0]
            errors[evaluated][optimizer.name] = scores.test_error[best]
            if evaluated == ITERATE:
                tried += [
                    {
                        "optimizer": optimizer.name,
                        "setting": methods.describe(setting),
                        "validation_error": means.validation_error[i],
                        "test_error": means.test_error[i],
                    }
                    for i, setting in enumerate(optimizer.settings)
                ]
    rows = [
        {"evaluated": evaluated} | row
        for evaluated in EVALUATED
        for row in by_run(errors[evaluated])
    ]
    return {"settings": tried, "": rows}


def main(arguments: list[str] | None = None) -> None:
    """Run all tasks that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    quick = options.quick
    if quick:
        groups = {CHOSEN: [sets.small(2)]}
    else:
        known = known_problems(options, RUNS)
        chosen = [p for p in known if p.name in sets.DEVELOPED_ON]
        held_out = [p for p in known if p.name not in sets.DEVELOPED_ON]
        groups = {CHOSEN: chosen, HELD_OUT: held_out}
        groups[UNSEEN] = unseen_problems(options, RUNS)
    study = Study(options.output_dir, "tasks_problems", ["problem"], script="tasks")
    for group, problems in groups.items():
        new = [problem for problem in problems if not study.has(problem.name)]
        study.add(problem_row(problem, group) for problem in new)
    train_all = functools.partial(
        measure, optimizers=OPTIMIZERS[: 1 if quick else None]
    )
    # Batch by batch, so that an interrupted study has all problems at some sizes.
    parts = [
        Part("tasks", problem, batch, train_all)
        for batch in ((32,) if quick else STEPS)
        for problem in itertools.chain(*groups.values())
        if batch in batch_sizes(problem)
    ]
    run_parts(parts, options.output_dir, "tasks", quick=quick)


if __name__ == "__main__":
    main()
