"""Mini-batch Rprop, and tuned rivals.

For every problem and batch size, each setting of each optimizer trains in every run.
An optimizer's setting is the one with the least validation error, and its test error
counts. A run's number sets the split, the initial weights and the order of the
batches, the same for all optimizers. Early stopping is the same for all, too: errors
are those of the checkpoint with the least validation error.

Then: numbers of the optimizer changed one at a time; its statistics in half the
memory; the sign test on gradients whose mean is known; and a look inside while networks
train.
"""

import argparse
import concurrent.futures
import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study, exists
from benchmarks.minibatch import methods
from benchmarks.minibatch import problems as sets
from benchmarks.minibatch.inside import CHECKPOINTS, look_inside, sign_decisions
from benchmarks.minibatch.methods import ADAM, OPTIMIZERS, OURS
from benchmarks.minibatch.train import (
    FULL,
    STEPS,
    Rows,
    contest,
    runs_and_rows,
    side_by_side,
)

RUNS = 10
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
    """What is run, or skipped, at a time.

    Attributes:
      study: Names the file of results.
      problem: What to train.
      batch: Its size.
      measure: Of problem, rows in a batch and steps, the rows of each table.
    """

    study: str
    problem: Problem
    batch: Any
    measure: Callable[[Problem, int, int], dict[str, Rows]]


def run_parts(parts: Sequence[Part], folder: Path, script: str, *, quick: bool) -> None:
    """Run those that are not there yet, and write their rows."""
    studies = {
        name: Study(folder, name, ["problem", "batch"], script=script)
        for name in {part.study for part in parts}
    }

    def run(part: Part) -> dict[str, list[Any]]:
        _, rows = runs_and_rows(part.problem.data)
        size = rows if part.batch == FULL else part.batch
        steps = 2 * CHECKPOINTS if quick else STEPS[part.batch]
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


def list_problems(
    problems: Sequence[Problem], folder: Path, name: str, script: str
) -> None:
    """Write what the table of problems says."""
    study = Study(folder, name, ["problem"], script=script)
    for problem in problems:
        if not study.has(problem.name):
            params = jax.eval_shape(problem.init, jax.random.key(0))
            sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
            row = {"problem": problem.name, "description": problem.description}
            row |= {"parameters": sum(sizes), "error_name": problem.error_name}
            study.add([row])


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


def list_parts(problems: Sequence[Problem], *, quick: bool) -> list[Part]:
    """Batch by batch, so that an interrupted study has all problems at some sizes."""
    optimizers = list(OPTIMIZERS)
    names, ablations = methods.ablations()
    if quick:
        some = [o for o in OPTIMIZERS if o.name in {OURS, "SGD", ADAM}]
        optimizers = [o._replace(settings=o.settings[:1]) for o in some]
        ablations = [ablations[0]._replace(settings=ablations[0].settings[:2])]
        names = names[:2]
    compete = functools.partial(contest, optimizers=optimizers)
    ablate = functools.partial(side_by_side, optimizers=ablations, names=names)
    compare = functools.partial(
        side_by_side,
        optimizers=methods.PRECISIONS,
        names=[dtype.name for dtype in methods.PRECISIONS],
    )

    def look(problem: Problem, size: int, steps: int) -> dict[str, Rows]:
        # Longer, to see what comes when nothing more is to be learned.
        return {"": look_inside(problem, size, 2 * steps, 2 if quick else 3)}

    contests = [
        Part("contests", problem, size, compete)
        for size in ((32,) if quick else (32, 8, 128, FULL, 512))
        for problem in problems
        if size in batch_sizes(problem)
    ]
    ablated = [Part("ablations", p, 32, ablate) for p in problems if p.name in ABLATED]
    others = [
        Part(study, problem, size, measure)
        for problem in problems
        for study, sizes, measure in (
            ("inside", INSIDE.get(problem.name, ()), look),
            ("precision", (32, 128) * (problem.name in sets.DEVELOPED_ON), compare),
        )
        for size in sizes
        if size == 32 or not quick
    ]
    small = [part for part in contests if part.batch == 32]
    return [*small, *ablated, *others, *contests[len(small) :]]


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    folder, quick = options.output_dir, options.quick
    if not exists(folder, "signs"):
        signs = Study(folder, "signs", ["threshold", "decay"], script="run")
        signs.add(sign_decisions(500 if quick else 20_000))
    problems = load_problems(options, 2 if quick else RUNS)
    list_problems(problems, folder, "problems", "run")
    run_parts(list_parts(problems, quick=quick), folder, "run", quick=quick)


if __name__ == "__main__":
    main()
