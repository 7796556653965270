"""What does Rprop gain in a learned eigenbasis, compared with other optimizers?

Each optimizer runs at its defaults from each start, with one budget of gradients.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import tqdm
from jax.flatten_util import ravel_pytree

import optax_rprop
from benchmarks.common import cli, scipy_methods
from benchmarks.common.optimizers import (
    ADAM,
    LBFGS,
    NO_SETTING,
    WIDE,
    Optimizer,
    irprop_plus,
)
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study
from benchmarks.eigenbasis.unseen import nist, unseen
from benchmarks.full_batch import baselines, functions
from benchmarks.full_batch.comparison import Comparison
from benchmarks.full_batch.descend import Run, Trace

RUNS = range(5)
TOLERANCES = ("0.01", "0.0001", "1e-06")
LARGEST_FULL_MATRIX = 150
# SciPy's BFGS multiplies two dense matrices in each step.
LARGEST_BFGS = 1500
# The problem in the picture, and its number of evaluations.
VALLEY, VALLEY_EVALUATIONS = "quadratic, rotated", 200
IN_VALLEY = ("irprop+", "full matrix", "optax.lbfgs", "SciPy BFGS")


def in_eigenbasis(rate: Any, **options: Any) -> optax.GradientTransformation:
    """The same variant in the eigenbasis, with the bounds recommended for it."""
    return optax_rprop.in_eigenbasis(irprop_plus(rate, **WIDE), **options)


FULL_MATRIX = functools.partial(in_eigenbasis, full_matrix=True)


def has_matrix(problem: Problem) -> bool:
    """Whether there is a matrix, which Kronecker factors need."""
    return any(leaf.ndim > 1 for leaf in jax.tree.leaves(problem.start(0)))


def size(problem: Problem) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(problem.start(0)))


def optimizers(problem: Problem) -> list[Optimizer]:
    """Those of Optax that apply: the full matrix is for small problems."""
    lbfgs = LBFGS._replace(name="optax.lbfgs")
    found = [Optimizer("irprop+", irprop_plus, 0.01), lbfgs, ADAM]
    if has_matrix(problem):
        found.append(Optimizer("Kronecker", in_eigenbasis, 0.01))
    if size(problem) <= LARGEST_FULL_MATRIX:
        found.append(Optimizer("full matrix", FULL_MATRIX, 0.01))
    return found


def add_scipy(comparison: Comparison, runs: Iterable[int]) -> None:
    """Run SciPy's methods, which see the flattened parameters."""
    problem = comparison.problem
    _, unravel = ravel_pytree(problem.start(0))
    evaluate = jax.jit(
        jax.value_and_grad(lambda point, data: problem.loss(unravel(point), data))
    )
    small = size(problem) <= LARGEST_BFGS
    methods = [m for m in scipy_methods.METHODS if small or m != "BFGS"]
    for method, run in itertools.product(methods, runs):
        _, losses = scipy_methods.descend(
            method,
            lambda point: evaluate(point, problem.data.train),
            np.asarray(ravel_pytree(problem.start(run))[0]),
            comparison.budget,
        )
        trace = Trace(1 + np.arange(losses.size), losses)
        comparison.keep(f"SciPy {method}", NO_SETTING, run, Run(trace, np.nan))


def rows(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """One row per run: evaluations to each tolerance, missing where not solved."""
    for name, setting, run in comparison.runs:
        who = {"problem": comparison.problem.name, "optimizer": name, "run": run}
        costs = {
            f"to_{tolerance}": comparison.cost(name, setting, run, float(tolerance))[0]
            for tolerance in TOLERANCES
        }
        yield who | costs


def valley(comparison: Comparison) -> Iterator[dict[str, Any]]:
    """The loss over evaluations, from the first start."""
    for (name, _, run), made in comparison.runs.items():
        if run != 0 or name not in IN_VALLEY:
            continue
        for evaluations, loss in zip(*made.trace, strict=True):
            if evaluations <= VALLEY_EVALUATIONS:
                yield {"optimizer": name, "evaluations": evaluations, "loss": loss}


def main(arguments: list[str] | None = None) -> None:
    """Run every missing problem."""
    parser = cli.parser(__doc__, "eigenbasis")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    # SciPy waits for each evaluation.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if options.quick:
        new = [(nist("DanWood"), 20)]
        known = [(functions.quadratic(rotated=True, size=4), 20)]
    else:
        new, known = unseen(options.data_dir), baselines.problems(options.data_dir)
    runs = range(2) if options.quick else RUNS
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    tasks = [("unseen", *task) for task in new]
    tasks += [("development", *task) for task in known]
    for group, problem, budget in tqdm.tqdm(tasks, unit="problem"):
        if study.has(problem.name):
            continue
        compared = optimizers(problem)
        comparison = Comparison(problem, compared, budget)
        for optimizer, run in itertools.product(compared, runs):
            comparison.run(optimizer.name, optimizer.default, run)
        add_scipy(comparison, runs)
        facts = {"problem": problem.name, "group": group, "size": size(problem)}
        study.add([facts], "problems")
        if problem.name == VALLEY:
            study.add(valley(comparison), "valley")
        study.add(rows(comparison))


if __name__ == "__main__":
    main()
