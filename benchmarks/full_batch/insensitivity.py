"""How much the initial step size matters, against how much a learning rate does.

Every optimizer trains each problem from the same starts to the same training loss,
with settings over seven decades: the learning rate of Adam, Lion and SGD, the initial
step size of Rprop. Counted are gradients (epochs, for the networks) and seconds.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from benchmarks.common import cli, pytorch
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import OPTIMIZERS, RATES, TORCH, TUNING_FREE
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch.bout import Bout
from benchmarks.full_batch.functions import quadratic
from benchmarks.full_batch.models import proben1

CONTENDERS = (*OPTIMIZERS, *TUNING_FREE)
DATA_SET = "building1"
RUNS = 3
Measure = Callable[[float, int], tuple[float, float]]
"""Evaluations and seconds to the target, of a setting and a run; NaN if never."""


class Task(NamedTuple):
    """A problem, the training loss to reach, and how many gradients that may take."""

    problem: Problem
    target: float
    budget: int


def tasks(options: argparse.Namespace) -> list[Task]:
    """The problems; a single small one with ``--quick``."""
    chosen = [Task(digits(64 if options.quick else 1024), 0.01, 1000)]
    paths = find_proben1(options.data_dir, [DATA_SET])
    chosen += [Task(proben1(path), 0.002, 1000) for path in paths.values()]
    if options.quick:
        return [chosen[-1]._replace(budget=100)]
    for rotated in (False, True):
        chosen.append(Task(quadratic(rotated=rotated), 1e-4, 10_000))
    return chosen


def torch_measure(torch: Any, task: Task) -> Measure:
    """PyTorch's Rprop on PyTorch's own gradients, from the same starts."""
    problem, target, budget = task
    torch_loss: Any = problem.torch_loss or problem.loss
    data = pytorch.tensors(torch, dict(problem.data.train))

    def measure(setting: float, run: int) -> tuple[float, float]:
        params = pytorch.tensors(torch, problem.start(run))
        leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(params)]
        optimizer = torch.optim.Rprop(leaves, lr=setting)
        start = time.perf_counter()
        for evaluation in range(1, budget + 1):
            optimizer.zero_grad()
            loss = torch_loss(params, data)
            loss.backward()
            if loss.item() <= target:
                return evaluation, time.perf_counter() - start
            optimizer.step()
        return np.nan, np.nan

    return measure


def measures(
    task: Task, grid: Sequence[float], torch: Any
) -> dict[str, tuple[Sequence[float], Measure]]:
    """What to try of every optimizer on a problem, and how; compiled."""
    bout = Bout(task.problem, CONTENDERS, task.budget, target=task.target)

    def measure(name: str) -> Measure:
        return lambda setting, run: bout.run(name, setting, run).until(task.target)

    ready = {o.name: (o.settings(grid), measure(o.name)) for o in CONTENDERS}
    if torch is not None:
        ready[TORCH] = grid, torch_measure(torch, task)
    return ready


def main(arguments: list[str] | None = None) -> None:
    """Measure every problem that is not there yet."""
    parser = cli.parser(__doc__, "full_batch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "insensitivity", ["problem"])
    grid, runs = (RATES[::7], 1) if options.quick else (RATES, RUNS)
    torch = pytorch.optional_torch()
    for task in tasks(options):
        where = {"problem": task.problem.name}
        if study.has(task.problem.name):
            continue
        rows, times = [], []
        ready = measures(task, grid, torch)
        for name, (settings, measure) in tqdm.tqdm(ready.items(), task.problem.name):
            for setting in settings:
                who = where | {"optimizer": name, "setting": setting}
                found = [measure(setting, run) for run in range(runs)]
                rows += [
                    who | {"run": run, "evaluations": evaluations}
                    for run, (evaluations, _) in enumerate(found)
                ]
                seconds = np.median([seconds for _, seconds in found])
                if np.isfinite(seconds):
                    times.append(who | {"median_seconds": seconds})
        facts = {"description": task.problem.description}
        facts |= {"target": task.target, "budget": task.budget}
        study.add([where | facts], "problems")
        study.add(times, "seconds")
        study.add(rows)


if __name__ == "__main__":
    main()
