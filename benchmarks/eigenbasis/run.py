"""Rprop in a learned eigenbasis, beside its rivals: every run into a CSV file.

Each optimizer runs with each rate from each start, with one budget of gradients.
``report.py`` makes tables of it.
"""

import functools
import importlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import ADAM, LBFGS, Optimizer
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study
from benchmarks.eigenbasis.unseen import nist, unseen
from benchmarks.full_batch import models, rivals
from benchmarks.full_batch.bout import Bout
from benchmarks.full_batch.descend import Run, Trace

RATES = (1e-3, 1e-2, 3.2e-2, 0.1, 0.32, 1.0)
SOAP_RATES = (1e-3, 1e-2, 0.1)
# Beside the unseen networks.
SOAP_PROBLEMS = ("matrix factorization", "regression net")
RUNS = range(4)
TOLERANCES = ("0.01", "0.0001", "1e-06")
LARGEST_FULL_MATRIX = 150


def irprop_plus(rate: Any) -> optax.GradientTransformation:
    """The variant that stands for plain Rprop, and that is rotated."""
    return optax_rprop.rprop(rate, variant="irprop+")


def in_eigenbasis(rate: Any, **options: Any) -> optax.GradientTransformation:
    """The same, rotated."""
    return optax_rprop.in_eigenbasis(irprop_plus(rate), **options)


PLAIN = Optimizer("irprop+", irprop_plus)
FULL_MATRIX = functools.partial(in_eigenbasis, full_matrix=True)


def has_matrix(problem: Problem) -> bool:
    """Whether there is something for Kronecker factors, and for Muon."""
    return any(leaf.ndim > 1 for leaf in jax.tree.leaves(problem.start(0)))


def size(problem: Problem) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(problem.start(0)))


def optimizers(problem: Problem) -> list[Optimizer]:
    """Those that make sense: Muon for matrices, the full matrix for small problems."""
    found = [PLAIN, LBFGS, ADAM]
    if has_matrix(problem):
        found.append(Optimizer("Kronecker", in_eigenbasis))
        found.append(Optimizer("Muon", optax.contrib.muon))
    if size(problem) <= LARGEST_FULL_MATRIX:
        found.append(Optimizer("full matrix", FULL_MATRIX))
    return found


def soap(bout: Bout, settings: Iterable[float], runs: Iterable[int]) -> None:
    """SOAP of pytorch-optimizer on JAX's gradients; its time is not comparable."""
    torch = importlib.import_module("torch")
    build = importlib.import_module("pytorch_optimizer").SOAP
    problem, train = bout.problem, bout.problem.data.train
    gradient = jax.jit(jax.value_and_grad(problem.loss))
    for setting, run in itertools.product(settings, runs):
        leaves, treedef = jax.tree.flatten(problem.start(run))
        tensors = [torch.tensor(np.array(leaf)) for leaf in leaves]
        optimizer = build(tensors, lr=setting, weight_decay=0.0)
        losses = np.empty(bout.budget)
        for i in range(bout.budget):
            arrays = [jnp.asarray(tensor.numpy()) for tensor in tensors]
            losses[i], grads = gradient(treedef.unflatten(arrays), train)
            for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
                tensor.grad = torch.tensor(np.array(grad))
            optimizer.step()
        trace = Trace(np.arange(1, bout.budget + 1), losses)
        bout.keep("SOAP", setting, run, Run(trace, np.nan))


def rows(bout: Bout) -> Iterator[dict[str, Any]]:
    """One row a run; evaluations to each tolerance, missing where it is not solved."""
    for (name, setting, run), made in bout.runs.items():
        milliseconds = 1e3 * made.seconds / made.trace.evaluations[-1]
        who = {"problem": bout.problem.name, "optimizer": name}
        how = {"setting": setting, "run": run, "ms_per_evaluation": milliseconds}
        yield (
            who
            | how
            | {
                f"to_{tolerance}": bout.cost(name, setting, run, float(tolerance))[0]
                for tolerance in TOLERANCES
            }
        )


def main(arguments: list[str] | None = None) -> None:
    """Run every problem that is not there yet."""
    parser = cli.parser(__doc__, "eigenbasis")
    cli.add_data_dir(parser)
    parser.add_argument("--soap", action="store_true", help="with pytorch-optimizer")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    if options.quick:
        new, known = [(nist("DanWood"), 20)], [(models.small_regression(), 20)]
        grid, soap_grid, runs = (0.01, 0.1), (0.1,), range(2)
    else:
        new, known = unseen(options.data_dir), rivals.problems(options)
        grid, soap_grid, runs = RATES, SOAP_RATES, RUNS
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    tasks = [("unseen", *task) for task in new]
    tasks += [("development", *task) for task in known]
    for group, problem, budget in tqdm.tqdm(tasks, unit="problem"):
        if study.has(problem.name):
            continue
        entrants = optimizers(problem)
        bout = Bout(problem, entrants, budget)
        for optimizer in entrants:
            for setting, run in itertools.product(optimizer.settings(grid), runs):
                bout.run(optimizer.name, setting, run)
        unseen_network = group == "unseen" and has_matrix(problem)
        if options.soap and (unseen_network or problem.name in SOAP_PROBLEMS):
            soap(bout, soap_grid, runs)
        facts = {"problem": problem.name, "group": group, "size": size(problem)}
        study.add([facts], "problems")
        study.add(rows(bout))


if __name__ == "__main__":
    main()
