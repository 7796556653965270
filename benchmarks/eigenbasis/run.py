"""What does Rprop gain in a learned eigenbasis, compared with other optimizers?

Each optimizer runs with each setting from each start, with one budget of gradients.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import optax
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import ADAM, LBFGS, NO_SETTING, Optimizer
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study
from benchmarks.eigenbasis.unseen import nist, unseen
from benchmarks.full_batch import baselines, functions
from benchmarks.full_batch.comparison import Comparison

RATES = (1e-3, 1e-2, 3.2e-2, 0.1, 0.32, 1.0)
RUNS = range(4)
TOLERANCES = ("0.01", "0.0001", "1e-06")
LARGEST_FULL_MATRIX = 150
# The problem in the picture, and its number of evaluations.
VALLEY, VALLEY_EVALUATIONS = "quadratic, rotated", 300


def irprop_plus(rate: Any) -> optax.GradientTransformation:
    """The variant that represents plain Rprop and runs in the eigenbasis."""
    return optax_rprop.rprop(rate, variant="irprop+")


def in_eigenbasis(rate: Any, **options: Any) -> optax.GradientTransformation:
    """The same variant in the eigenbasis."""
    return optax_rprop.in_eigenbasis(irprop_plus(rate), **options)


PLAIN = Optimizer("irprop+", irprop_plus)
FULL_MATRIX = functools.partial(in_eigenbasis, full_matrix=True)


def has_matrix(problem: Problem) -> bool:
    """Whether there is a matrix, which Kronecker factors and Muon need."""
    return any(leaf.ndim > 1 for leaf in jax.tree.leaves(problem.start(0)))


def size(problem: Problem) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(problem.start(0)))


def optimizers(problem: Problem) -> list[Optimizer]:
    """The applicable ones: Muon for matrices, the full matrix for small problems."""
    found = [PLAIN, LBFGS, ADAM]
    if has_matrix(problem):
        found.append(Optimizer("Kronecker", in_eigenbasis))
        found.append(Optimizer("Muon", optax.contrib.muon))
    if size(problem) <= LARGEST_FULL_MATRIX:
        found.append(Optimizer("full matrix", FULL_MATRIX))
    return found


def rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One row per run: evaluations to each tolerance, missing where not solved."""
    for (name, setting, run), made in comparison.runs.items():
        milliseconds = 1e3 * made.seconds / made.trace.evaluations[-1]
        who = {"problem": comparison.problem.name, "optimizer": name}
        how = {"setting": setting, "run": run, "ms_per_evaluation": milliseconds}
        yield (
            who
            | how
            | {
                f"to_{tolerance}": comparison.cost(
                    name, setting, run, float(tolerance)
                )[0]
                for tolerance in TOLERANCES
            }
        )


def valley(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """The loss over evaluations, from the first start."""
    names = {name: name for name in (PLAIN.name, LBFGS.name)}
    for name, label in (names | {"full matrix": "irprop+ in_eigenbasis"}).items():
        trace = comparison.run(
            name, NO_SETTING if name == LBFGS.name else 0.01, 0
        ).trace
        for evaluations, loss in zip(trace.evaluations, trace.losses, strict=True):
            if evaluations <= VALLEY_EVALUATIONS:
                yield {"optimizer": label, "evaluations": evaluations, "loss": loss}


def main(arguments: list[str] | None = None) -> None:
    """Run every missing problem."""
    parser = cli.parser(__doc__, "eigenbasis")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    if options.quick:
        new = [(nist("DanWood"), 20)]
        known = [(functions.quadratic(rotated=True, size=4), 20)]
        grid, runs = (0.001, 0.01), range(2)
    else:
        new, known = unseen(options.data_dir), baselines.problems(options.data_dir)
        grid, runs = RATES, RUNS
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    tasks = [("unseen", *task) for task in new]
    tasks += [("development", *task) for task in known]
    for group, problem, budget in tqdm.tqdm(tasks, unit="problem"):
        if study.has(problem.name):
            continue
        compared = optimizers(problem)
        comparison = Comparison(problem, compared, budget)
        for optimizer in compared:
            for setting, run in itertools.product(optimizer.settings(grid), runs):
                comparison.run(optimizer.name, setting, run)
        facts = {"problem": problem.name, "group": group, "size": size(problem)}
        study.add([facts], "problems")
        if problem.name == VALLEY:
            study.add(valley(comparison), "valley")
        study.add(rows(comparison))


if __name__ == "__main__":
    main()
