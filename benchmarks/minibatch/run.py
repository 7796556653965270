"""The first sequential sign test on mini-batches, and tuned rivals.

For every problem and batch size, each setting of each optimizer trains in every run.
An optimizer's setting is the one with the least validation error, and its test error
counts. A run's number sets the split, the initial weights and the order of the
batches, the same for all optimizers. Early stopping is the same for all, too: errors
are those of the checkpoint with the least validation error.

Then: parts of the optimizer changed one at a time; the sign test on gradients whose
mean is known; and a look inside while networks train.
"""

import argparse
import concurrent.futures
import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study, exists
from benchmarks.minibatch import problems as sets
from benchmarks.minibatch.inside import CHECKPOINTS, look_inside, sign_decisions
from benchmarks.minibatch.methods import FIRST, OPTIMIZERS
from benchmarks.minibatch.train import FULL, STEPS, ablate, contest, runs_and_rows

RUNS, INSIDE_RUNS = 10, 3
# Parts at a time; more want more than 20 GB of memory.
WORKERS = 2
# Networks that cost several times as much a step train on this alone.
LARGE_NETWORKS = ("digits, convolutional", "marked sum, recurrent")
FULL_BATCH = ("digits", "cancer", "diabetes1")
ABLATED = ("digits", "clusters", "building1", "heart1")
INSIDE = {
    "digits": (8, 32, 512),
    "thyroid1": (32,),
    "friedman1": (32,),
    "heart1": (32,),
}


class Part(NamedTuple):
    """What is run, or skipped, at a time."""

    study: str
    problem: Problem
    batch: Any


def load_problems(options: argparse.Namespace, runs: int) -> list[Problem]:
    """The packaged problems, and those of Proben1 where they are given."""
    if options.quick:
        return [sets.small(runs)]
    packaged = sets.packaged(runs)
    paths = find_proben1(options.data_dir, sets.PROBEN1)
    given = [sets.proben1(path, runs) for path in paths.values()]
    # The networks that cost most come last.
    few = len(LARGE_NETWORKS)
    return [*packaged[:-few], *given, *packaged[-few:]]


def batch_sizes(problem: Problem) -> list[Any]:
    """The batch sizes that make sense for a problem."""
    if problem.name in LARGE_NETWORKS:
        return [32]
    _, rows = runs_and_rows(problem.data)
    sizes: list[Any] = [size for size in (8, 32, 128, 512) if 2 * size <= rows]
    return sizes + [FULL] * (problem.name in FULL_BATCH)


def list_parts(problems: list[Problem], *, quick: bool) -> list[Part]:
    """Batch by batch, so that an interrupted study has all problems at some sizes."""
    contests = [
        Part("contests", problem, size)
        for size in ((32,) if quick else (32, 8, 128, FULL, 512))
        for problem in problems
        if size in batch_sizes(problem)
    ]
    ablated = [Part("ablations", p, 32) for p in problems if p.name in ABLATED]
    insides = [
        Part("inside", problem, size)
        for problem in problems
        for size in INSIDE.get(problem.name, ())
        if size == 32 or not quick
    ]
    small = [part for part in contests if part.batch == 32]
    return [*small, *ablated, *insides, *contests[len(small) :]]


def first_runs(problem: Problem, runs: int) -> Problem:
    """The same problem with the data of the first runs."""
    data = jax.tree.map(lambda leaf: leaf[:runs], problem.data)
    return dataclasses.replace(problem, data=data)


def problem_row(problem: Problem) -> dict[str, Any]:
    """What the table of problems says."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    return {
        "problem": problem.name,
        "description": problem.description,
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)),
        "error_name": problem.error_name,
    }


def run_part(part: Part, study: Study, *, quick: bool) -> None:
    """Run one part and write its rows."""
    start = time.perf_counter()
    _, rows = runs_and_rows(part.problem.data)
    size = rows if part.batch == FULL else part.batch
    steps = 2 * CHECKPOINTS if quick else STEPS[part.batch]
    tried: list[dict[str, Any]] = []
    if part.study == "contests":
        optimizers = list(OPTIMIZERS)
        if quick:
            some = [o for o in OPTIMIZERS if o.name in {FIRST, "SGD", "Adam"}]
            optimizers = [o._replace(settings=o.settings[:1]) for o in some]
        found, tried = contest(part.problem, optimizers, size, steps)
    elif part.study == "ablations":
        found = list(ablate(part.problem, size, steps, quick=quick))
    else:
        # Longer, to see what comes when nothing more is to be learned.
        steps *= 2
        problem = first_runs(part.problem, INSIDE_RUNS)
        found = list(look_inside(problem, size, steps).rows(steps))
    where = {"problem": part.problem.name, "batch": part.batch}
    seconds = time.perf_counter() - start
    study.add([where | {"steps": steps, "seconds": seconds}], "parts")
    if tried:
        study.add([where | row for row in tried], "settings")
    study.add([where | row for row in found])


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    parser.add_argument(
        "--runs",
        type=cli.at_least(2),
        default=RUNS,
        help="splits, initial weights and orders of the batches",
    )
    options = parser.parse_args(arguments)
    folder, quick = options.output_dir, options.quick
    signs = Study(folder, "signs", ["threshold", "decay"], script="run")
    if not exists(folder, "signs"):
        signs.add(sign_decisions(500 if quick else 20_000))
    problems = load_problems(options, 2 if quick else options.runs)
    listed = Study(folder, "problems", ["problem"], script="run")
    new = [problem for problem in problems if not listed.has(problem.name)]
    if new:
        listed.add(map(problem_row, new))

    studies = {
        name: Study(folder, name, ["problem", "batch"], script="run")
        for name in ("contests", "ablations", "inside")
    }
    parts = [
        part
        for part in list_parts(problems, quick=quick)
        if not studies[part.study].has(part.problem.name, part.batch)
    ]

    def run(part: Part) -> None:
        run_part(part, studies[part.study], quick=quick)

    # Training many small networks at once keeps hardly more than one core busy.
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for _ in tqdm(pool.map(run, parts), total=len(parts), unit="part"):
            pass


if __name__ == "__main__":
    main()
