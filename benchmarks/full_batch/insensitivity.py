"""How much does the initial step size matter, compared with a learning rate?

Every optimizer trains each problem from the same starts to the same training loss,
with settings over seven decades: the learning rate of Adam, Lion and SGD, the initial
step size of Rprop. We count gradients (epochs, for the networks).
"""

import argparse
import itertools
from typing import NamedTuple

import jax
import tqdm

from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import OPTIMIZERS, RATES, TUNING_FREE
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch.comparison import Comparison
from benchmarks.full_batch.functions import quadratic
from benchmarks.full_batch.models import proben1

COMPARED = (*OPTIMIZERS, *TUNING_FREE)
DATA_SET = "building1"
RUNS = 3


class Task(NamedTuple):
    """A problem, its target training loss, and its budget of gradients."""

    problem: Problem
    target: float
    budget: int


def tasks(options: argparse.Namespace) -> list[Task]:
    """The problems; a single small one with ``--quick``."""
    if options.quick:
        return [Task(digits(64), 0.01, 100)]
    paths = find_proben1(options.data_dir, [DATA_SET])
    return [
        Task(digits(), 0.01, 1000),
        *(Task(proben1(path), 0.002, 1000) for path in paths.values()),
        *(Task(quadratic(rotated=rotated), 1e-4, 10_000) for rotated in (False, True)),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure every missing problem."""
    parser = cli.parser(__doc__, "full_batch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "insensitivity", ["problem"])
    grid, runs = (RATES[::7], 1) if options.quick else (RATES, RUNS)
    for problem, target, budget in tasks(options):
        if study.has(problem.name):
            continue
        comparison = Comparison(problem, COMPARED, budget, target=target)
        rows = [
            {
                "problem": problem.name,
                "optimizer": optimizer.name,
                "setting": setting,
                "run": run,
                "evaluations": comparison.run(optimizer.name, setting, run).until(
                    target
                )[0],
            }
            for optimizer in tqdm.tqdm(COMPARED, problem.name)
            for setting, run in itertools.product(optimizer.settings(grid), range(runs))
        ]
        facts = {"problem": problem.name, "description": problem.description}
        study.add([facts | {"target": target, "budget": budget}], "problems")
        study.add(rows)


if __name__ == "__main__":
    main()
