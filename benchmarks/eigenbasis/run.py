"""Rprop in a learned eigenbasis, beside its rivals: every run into a CSV file.

Each optimizer runs with each rate from each start, with one budget of gradients. A
problem is solved once the loss has fallen the fraction 1 - tolerance of the way from
the start to the lowest value that any run found from that start. ``report.py`` makes
tables of it.
"""

import functools
import importlib
from collections.abc import Iterator
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
from benchmarks.full_batch.descend import Run, Runner, Trace

RATES = (1e-3, 1e-2, 3.2e-2, 0.1, 0.32, 1.0)
SOAP_RATES = (1e-3, 1e-2, 0.1)
# Beside the unseen networks.
SOAP_PROBLEMS = ("matrix factorization", "regression net")
RUNS = 4
TOLERANCES = ("0.01", "0.0001", "1e-06")
LARGEST_FULL_MATRIX = 150
Runs = dict[tuple[str, float, int], Run]
"""By optimizer, setting and run."""


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


def soap(problem: Problem, budget: int, settings: Any, runs: int) -> Runs:
    """SOAP of pytorch-optimizer on JAX's gradients; its time is not comparable."""
    torch = importlib.import_module("torch")
    build = importlib.import_module("pytorch_optimizer").SOAP
    data = problem.data.train
    gradient = jax.jit(jax.value_and_grad(lambda params: problem.loss(params, data)))
    made = {}
    for setting in settings:
        for run in range(runs):
            leaves, treedef = jax.tree.flatten(problem.start(run))
            tensors = [torch.tensor(np.array(leaf)) for leaf in leaves]
            optimizer = build(tensors, lr=setting, weight_decay=0.0)
            losses = np.empty(budget)
            for i in range(budget):
                arrays = [jnp.asarray(tensor.numpy()) for tensor in tensors]
                losses[i], grads = gradient(treedef.unflatten(arrays))
                for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
                    tensor.grad = torch.tensor(np.array(grad))
                optimizer.step()
            unknown = np.full(budget, np.nan)
            counts = np.arange(1, budget + 1)
            trace = Trace(counts, losses, unknown, unknown, budget)
            made["SOAP", setting, run] = Run(trace, np.nan)
    return made


def run_all(problem: Problem, budget: int, settings: Any, runs: int) -> Runs:
    """All runs on one problem."""
    made = {}
    for optimizer in optimizers(problem):
        runner = Runner(problem, optimizer, budget, watch=False)
        for setting in settings if optimizer.tuned else settings[:1]:
            for run in range(runs):
                made[optimizer.name, setting, run] = runner(setting, run)
    return made


def rows(made: Runs) -> Iterator[dict[str, Any]]:
    """One row a run; evaluations to each tolerance, missing where it is not solved."""
    lowest: dict[int, float] = {}
    for (_, _, run), (trace, _) in made.items():
        lowest[run] = min(float(np.nanmin(trace.losses)), lowest.get(run, np.inf))
    for (name, setting, run), found in made.items():
        start, least = float(found.trace.losses[0]), lowest[run]
        costs = {
            f"to_{tolerance}": found.until(least + float(tolerance) * (start - least))
            for tolerance in TOLERANCES
        }
        yield {
            "optimizer": name,
            "setting": setting,
            "run": run,
            "ms_per_evaluation": 1e3 * found.seconds / found.trace.evaluations[-1],
            **{k: n if np.isfinite(n) else np.nan for k, (n, _) in costs.items()},
        }


def main(arguments: list[str] | None = None) -> None:
    """Run every problem that is not there yet."""
    parser = cli.parser(__doc__, "eigenbasis")
    cli.add_data_dir(parser)
    parser.add_argument("--soap", action="store_true", help="with pytorch-optimizer")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    if options.quick:
        groups = {
            "unseen": [(nist("DanWood"), 20)],
            "development": [(models.small_regression(), 20)],
        }
        settings, soap_settings, runs = (0.01, 0.1), (0.1,), 2
    else:
        groups = {
            "unseen": unseen(options.data_dir),
            "development": rivals.problems(options),
        }
        settings, soap_settings, runs = RATES, SOAP_RATES, RUNS
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    tasks = [(group, *task) for group, chosen in groups.items() for task in chosen]
    for group, problem, budget in tqdm.tqdm(tasks, unit="problem"):
        if study.has(problem.name):
            continue
        made = run_all(problem, budget, settings, runs)
        unseen_network = group == "unseen" and has_matrix(problem)
        if options.soap and (unseen_network or problem.name in SOAP_PROBLEMS):
            made |= soap(problem, budget, soap_settings, runs)
        where = {"problem": problem.name}
        study.add([where | {"group": group, "size": size(problem)}], "problems")
        study.add([where | row for row in rows(made)])


if __name__ == "__main__":
    main()
