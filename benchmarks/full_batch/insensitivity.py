"""How much the initial step size matters, against how much a learning rate does.

Every optimizer trains each problem from the same starts to the same training loss,
with settings over seven decades: the learning rate of Adam, Lion and SGD, the initial
step size of Rprop. Counted are gradients (epochs, for the networks) and seconds.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from benchmarks.common import cli, pytorch
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import OPTIMIZERS, RATES, TORCH, TUNING_FREE
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch.descend import Runner, compile_all
from benchmarks.full_batch.functions import quadratic
from benchmarks.full_batch.models import proben1

CONTENDERS = (*OPTIMIZERS, *TUNING_FREE)
UNTUNED = {optimizer.name for optimizer in CONTENDERS if not optimizer.tuned}
DATA_SET = "building1"
Measure = Callable[[float, int], tuple[float, float]]
"""Evaluations and seconds to the target, of a setting and a run; or infinities."""


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
    torch_loss: Any = problem.torch_loss
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
        return np.inf, np.inf

    return measure


def measures(task: Task, torch: Any) -> dict[str, Measure]:
    """Every optimizer on a problem, compiled."""

    def measure(runner: Runner, setting: float, run: int) -> tuple[float, float]:
        return runner(setting, run, task.target).until(task.target)

    ready: dict[str, Measure] = {
        name: functools.partial(measure, runner)
        for name, runner in compile_all(task.problem, CONTENDERS, task.budget).items()
    }
    if torch is not None:
        ready[TORCH] = torch_measure(torch, task)
    return ready


def sweep(
    measure: Measure, optimizer: str, grid: np.ndarray, runs: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All settings, each from all starts: rows of evaluations, and median seconds."""
    rows, times = [], []
    untuned = optimizer in UNTUNED
    for setting in grid[:1] if untuned else grid:
        found = [measure(float(setting), run) for run in range(runs)]
        who = {"optimizer": optimizer, "setting": np.nan if untuned else setting}
        for run, (evaluations, _) in enumerate(found):
            count = evaluations if np.isfinite(evaluations) else np.nan
            rows.append(who | {"run": run, "evaluations": count})
        seconds = float(np.median([seconds for _, seconds in found]))
        if np.isfinite(seconds):
            times.append(who | {"median_seconds": seconds})
    return rows, times


def main(arguments: list[str] | None = None) -> None:
    """Measure every problem that is not there yet."""
    parser = cli.parser(__doc__, "full_batch")
    cli.add_data_dir(parser)
    parser.add_argument(
        "--runs", type=cli.at_least(1), default=3, help="starts per setting"
    )
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "insensitivity", ["problem"])
    grid, runs = (RATES[::7], 1) if options.quick else (RATES, options.runs)
    torch = pytorch.optional_torch()
    for task in tasks(options):
        name = task.problem.name
        if study.has(name):
            continue
        rows, times = [], []
        for optimizer, measure in tqdm.tqdm(measures(task, torch).items(), desc=name):
            more_rows, more_times = sweep(measure, optimizer, grid, runs)
            rows += more_rows
            times += more_times
        where = {"problem": name}
        facts = {
            "description": task.problem.description,
            "target": task.target,
            "budget": task.budget,
        }
        study.add([where | facts], "problems")
        study.add([where | row for row in times], "seconds")
        study.add([where | row for row in rows])


if __name__ == "__main__":
    main()
