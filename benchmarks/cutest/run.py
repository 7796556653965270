"""Optimizers on problems of CUTEst, seen exactly, rounded, with noise, in other units.

The lowest loss after each evaluation goes into files that are not kept, a problem and
optimizer each. From all that are there, the evaluations to each tolerance are counted.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

from benchmarks.common import cli
from benchmarks.common.results import Study
from benchmarks.cutest import descend, problems, views
from benchmarks.cutest.problems import Problem
from benchmarks.cutest.views import View

TOLERANCES = (1e-1, 1e-3, 1e-5, 1e-7)
UNBOUNDED = -1e15


def key(view: View) -> str:
    """Of a view's trace in its file."""
    return f"{view.name}|{view.seed}"


def counted(traces: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of one problem: evaluations to each tolerance, missing where not solved.

    The lowest loss is that of all optimizers, however they saw the problem.
    """
    lowest = min(trace[-1] for run in traces.values() for trace in run.values())
    if lowest < UNBOUNDED:
        return
    for optimizer, run in traces.items():
        for view, trace in run.items():
            name, seed = view.split("|")
            first = trace[0]
            row = {"view": name, "seed": int(seed), "optimizer": optimizer}
            for tolerance in TOLERANCES:
                reached = trace <= lowest + tolerance * (first - lowest)
                row[f"to_{tolerance:g}"] = (
                    np.argmax(reached) + 1 if reached[-1] else None
                )
            yield row


def judge(folder: Path) -> list[dict[str, Any]]:
    """The rows of all problems in a folder of traces."""
    rows = []
    for problem in sorted({path.name.split("+")[0] for path in folder.glob("*.npz")}):
        files = sorted(folder.glob(f"{problem}+*.npz"))
        traces = {path.stem.split("+", 1)[1]: dict(np.load(path)) for path in files}
        rows += [{"problem": problem, **row} for row in counted(traces)]
    return rows


def measure(
    problem: Problem, folder: Path, optimizers: Iterable[str], wanted: Iterable[View]
) -> None:
    """Add the traces that are not there yet."""
    runs = descend.Runs(problem)
    scales = problem.start.size <= views.LARGEST_SCALED
    for name in optimizers:
        path = folder / f"{problem.name}+{name}.npz"
        traces = dict(np.load(path)) if path.exists() else {}
        views_of = [view for view in wanted if scales or not view.scaled]
        missing = [view for view in views_of if key(view) not in traces]
        if missing:
            descent = runs.descent(name)
            traces |= {key(view): runs.lowest(descent, view) for view in missing}
            np.savez_compressed(path, **traces)


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, then count all that is."""
    parser = cli.parser(__doc__, "cutest")
    parser.add_argument(
        "--problems", type=cli.at_least(1), default=200, help="how many of the order"
    )
    parser.add_argument(
        "--optimizers", nargs="+", default=list(descend.OPTIMIZERS), help="which"
    )
    parser.add_argument(
        "--views", nargs="+", default=list(views.VIEWS), help="which groups of views"
    )
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    # SciPy waits for each evaluation.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    folder = options.output_dir / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [view for group in options.views for view in views.VIEWS[group]]
    total = 1 if options.quick else options.problems
    drawn = itertools.islice(problems.drawn(), total)
    for problem in tqdm.tqdm(drawn, total=total, unit="problem"):
        measure(problem, folder, options.optimizers, wanted)
    (options.output_dir / "runs.csv").unlink(missing_ok=True)
    Study(options.output_dir, "runs", (), script="run").add(judge(folder))


if __name__ == "__main__":
    main()
