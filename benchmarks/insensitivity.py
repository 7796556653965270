"""How much the initial step size matters, against how much a learning rate does.

Every optimizer trains each problem from the same starts to the same training loss,
at rates over seven decades: the learning rate of Adam, Lion and SGD, the initial step
size of Rprop. What is shown is how many gradients (epochs, for the networks) and how
many seconds that took.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import tqdm
from common import markdown_table, parser, write_results
from contenders import CONTENDERS, PICTURE_STYLE, RATES, Runner, compile_all
from problems import Problem, digits, find_proben1, proben1, quadratic
from timing import optional_torch

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import NullFormatter

TORCH = "torch.optim.Rprop"
LINE_SEARCHES = {contender.name for contender in CONTENDERS if contender.line_search}
Measure = Callable[[float, int], tuple[float, float]]
"""Evaluations and seconds to the target, of a rate and a seed."""


class Task(NamedTuple):
    """A problem, the training loss to reach, and how many gradients that may take."""

    problem: Problem
    target: float
    budget: int


class Curve(NamedTuple):
    """Evaluations and seconds to the target, each of shape (rates, seeds)."""

    evaluations: np.ndarray
    seconds: np.ndarray


def tasks(options: argparse.Namespace) -> list[Task]:
    """The problems; a single small one with ``--quick``."""
    chosen = [Task(digits(64 if options.quick else 1024), 0.01, 1000)]
    path = find_proben1(options.data_dir, options.data_set)
    if path is not None:
        chosen.append(Task(proben1(path), options.data_set_target, 1000))
    chosen += [
        Task(quadratic(rotated=rotated), 1e-4, 10_000) for rotated in (False, True)
    ]
    if options.quick:
        return [task._replace(budget=100) for task in chosen[-3:-2]]
    return chosen


def torch_measure(torch: Any, task: Task) -> Measure:
    """PyTorch's Rprop on PyTorch's own gradients, from the same starts."""
    problem, target, budget = task
    torch_loss = problem.torch_loss
    assert torch_loss is not None

    def tensor(array: jax.Array) -> Any:
        numbers = np.array(array)
        # PyTorch takes class numbers in 64 bits only.
        return torch.tensor(numbers.astype("i8") if numbers.dtype == "i4" else numbers)

    data = jax.tree.map(tensor, dict(problem.train))

    def measure(rate: float, seed: int) -> tuple[float, float]:
        params = jax.tree.map(tensor, problem.start(seed))
        leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(params)]
        optimizer = torch.optim.Rprop(leaves, lr=rate)
        start = time.perf_counter()
        for evaluation in range(1, budget + 1):
            optimizer.zero_grad()
            loss = torch_loss(params, data)
            loss.backward()
            if loss.item() <= target:
                return evaluation, time.perf_counter() - start
            optimizer.step()
        return math.inf, math.inf

    return measure


def measures(task: Task, torch: Any) -> dict[str, Measure]:
    """Every contender on a problem, compiled."""

    def measure(runner: Runner, rate: float, seed: int) -> tuple[float, float]:
        return runner(rate, seed, task.target).until(task.target)

    ready: dict[str, Measure] = {
        name: functools.partial(measure, runner)
        for name, runner in compile_all(task.problem, task.budget).items()
    }
    if torch is not None:
        ready[TORCH] = torch_measure(torch, task)
    return ready


def sweep(measure: Measure, grid: np.ndarray, seeds: int, progress: tqdm.tqdm) -> Curve:
    """All rates, each from all starts."""
    measured = np.empty((len(grid), seeds, 2))
    for i, rate in enumerate(grid):
        for seed in range(seeds):
            measured[i, seed] = measure(rate, seed)
            progress.update()
    return Curve(measured[..., 0], measured[..., 1])


def summarize(curve: Curve, grid: np.ndarray) -> dict[str, Any]:
    """What a curve says, in numbers: medians over seeds, all of which must arrive."""
    arrived = np.isfinite(curve.evaluations).all(axis=1)
    medians = np.where(arrived, np.median(curve.evaluations, axis=1), np.inf)
    best = int(medians.argmin())
    if not arrived.any():
        return {"rates_that_arrive": 0}
    return {
        "rates_that_arrive": int(arrived.sum()),
        "rates_within_twice_the_best": int(np.sum(medians <= 2 * medians[best])),
        "best_rate": float(grid[best]),
        "best_evaluations": float(medians[best]),
        "most_evaluations": float(medians.max()) if arrived.all() else None,
        "best_seconds": float(np.median(curve.seconds[best])),
    }


def table(summaries: Mapping[str, dict[str, Any]], rates: int) -> str:
    """One row a contender."""
    rows = []
    for name, found in summaries.items():
        searches = name in LINE_SEARCHES
        if not found["rates_that_arrive"]:
            rows.append([name, "0" if searches else f"0 of {rates}", *["-"] * 5])
            continue
        most = found["most_evaluations"]
        rows.append(
            [
                name,
                "no rate" if searches else f"{found['rates_that_arrive']} of {rates}",
                "" if searches else found["rates_within_twice_the_best"],
                "" if searches else f"{found['best_rate']:.2g}",
                f"{found['best_evaluations']:.0f}",
                "not all arrive" if most is None else f"{most:.0f}",
                f"{1000 * found['best_seconds']:.3g}",
            ]
        )
    header = (
        "optimizer",
        "rates that reach the target",
        "of these within 2x of the best",
        "best rate",
        "gradients there",
        "gradients at the worst rate",
        "ms at the best rate",
    )
    return markdown_table(header, rows)


def picture(
    found: Sequence[tuple[Task, Mapping[str, Curve]]],
    grid: np.ndarray,
    path: Path,
) -> None:
    """Gradients above, seconds below; a column a problem."""
    with pyplot.rc_context(PICTURE_STYLE):
        figure, axes = pyplot.subplots(
            2,
            len(found),
            figsize=(3.4 * len(found) + 0.4, 6.4),
            sharex=True,
            squeeze=False,
            layout="constrained",
        )
        handles: dict[str, Any] = {}
        for column, (task, curves) in zip(axes.T, found, strict=True):
            for axis, quantity in zip(column, Curve._fields, strict=True):
                _draw(axis, quantity, curves, grid, handles)
            column[0].axhline(task.budget, color="0.6", lw=0.8, ls=":")
            column[0].text(
                grid[0],
                task.budget,
                f"budget: {task.budget:,}",
                color="0.4",
                va="bottom",
                fontsize=8,
            )
            column[0].set_ylim(top=1.6 * task.budget)
            column[0].set_title(f"{task.problem.name}\nto a loss of {task.target:g}")
        axes[0, 0].set_ylabel("gradients to the target (median)")
        axes[1, 0].set_ylabel("seconds to the target (median)")
        for axis in axes[1]:
            axis.set_xlabel("initial step size or learning rate")
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=5
        )
        figure.savefig(path)
        pyplot.close(figure)


def _draw(
    axis: Any,
    quantity: str,
    curves: Mapping[str, Curve],
    grid: np.ndarray,
    handles: dict[str, Any],
) -> None:
    styles = {contender.name: contender for contender in CONTENDERS}
    for name, curve in curves.items():
        # A seed that did not arrive is infinite, and so is missing in the line.
        values = getattr(curve, quantity)
        medians = np.median(values, axis=1)
        medians[~np.isfinite(values).all(axis=1)] = np.nan
        if name == TORCH:
            (line,) = axis.plot(
                grid, medians, "o", mfc="none", mec="#555555", ms=6, zorder=1
            )
        elif styles[name].line_search:
            line = axis.axhline(medians[0], color=styles[name].color, lw=1.2)
        else:
            (line,) = axis.plot(
                grid,
                medians,
                "o",
                color=styles[name].color,
                ls=styles[name].linestyle,
                ms=2.5,
                lw=1.6,
            )
        handles.setdefault(name, line)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.yaxis.set_minor_formatter(NullFormatter())


def options() -> argparse.ArgumentParser:
    """The command line."""
    choices = parser(__doc__)
    choices.add_argument("--seeds", type=int, default=3, help="starts per rate")
    choices.add_argument(
        "--data-dir",
        type=Path,
        help="folder with Proben1's .dt files; left out if none",
    )
    choices.add_argument(
        "--data-set", default="building1", help="the Proben1 set, without .dt"
    )
    choices.add_argument(
        "--data-set-target",
        type=float,
        default=0.002,
        help="its training loss to reach",
    )
    return choices


def main() -> None:
    """Measure, tabulate, draw."""
    choices = options()
    arguments = choices.parse_args()
    if arguments.seeds < 1:
        choices.error(f"--seeds must be at least 1, got {arguments.seeds}.")
    jax.config.update("jax_enable_x64", True)
    grid = RATES[::7] if arguments.quick else RATES
    seeds = 1 if arguments.quick else arguments.seeds
    torch = optional_torch()

    found: list[tuple[Task, dict[str, Curve]]] = []
    for task in tasks(arguments):
        ready = measures(task, torch)
        curves = {}
        runs = sum(1 if name in LINE_SEARCHES else len(grid) for name in ready) * seeds
        with tqdm.tqdm(total=runs, desc=task.problem.name) as progress:
            for name, measure in ready.items():
                rates = grid[:1] if name in LINE_SEARCHES else grid
                curve = sweep(measure, rates, seeds, progress)
                curves[name] = curve
        found.append((task, curves))

    report = [
        "# Insensitivity to the initial step size",
        f"Median of {seeds} starts; a rate counts only if all of them reach the target."
        f" Rates: {', '.join(f'{rate:.2g}' for rate in grid)}; the same for all, and"
        " nothing else is tuned. L-BFGS has a line search and no rate.",
    ]
    results = {"rates": list(grid), "seeds": seeds, "problems": {}}
    for task, curves in found:
        problem, target, budget = task
        summaries = {name: summarize(curve, grid) for name, curve in curves.items()}
        report += [
            f"## {problem.name[0].upper()}{problem.name[1:]}",
            f"{problem.description}. Target: training loss {target:g}, at most"
            f" {budget:,} gradients.",
            table(summaries, len(grid)),
        ]
        results["problems"][problem.name] = {
            "description": problem.description,
            "target": target,
            "budget": budget,
            "summaries": summaries,
            "evaluations": {
                name: [
                    [None if np.isinf(n) else int(n) for n in row] for row in curve[0]
                ]
                for name, curve in curves.items()
            },
        }
    write_results(arguments.output_dir, "insensitivity", results, "\n\n".join(report))
    path = arguments.output_dir / "insensitivity.png"
    picture(found, grid, path)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
