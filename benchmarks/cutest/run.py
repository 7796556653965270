"""Optimizers on CUTEst problems: exact, rounded, with noise, or in other units.

The lowest loss after each evaluation is written to one file per problem and optimizer,
which is not kept in the repository. The evaluations to each tolerance are counted from
all files that exist.
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
# Fewer for the other views, so that a clone stays small.
IF_NOT_EXACT = TOLERANCES[1:3]
UNBOUNDED = -1e15


Traces = dict[str, dict[str, Any]]
"""By optimizer and view: the lowest exact loss after each evaluation."""


def key(view: View) -> str:
    """The key of a view's trace in its file."""
    return f"{view.name}|{view.seed}"


def counted(traces: Traces) -> Iterator[dict[str, Any]]:
    """Rows of one problem: evaluations to each tolerance, 0 where not solved.

    The lowest loss is that of all optimizers in all views.
    """
    lowest = min(trace[-1] for run in traces.values() for trace in run.values())
    if lowest < UNBOUNDED:
        return
    seen = dict.fromkeys(view for run in traces.values() for view in run)
    for view, tolerance in itertools.product(seen, TOLERANCES):
        name, seed = view.split("|")
        if name != "exact" and tolerance not in IF_NOT_EXACT:
            continue
        row = {"view": name, "seed": int(seed), "tolerance": tolerance}
        for optimizer in descend.OPTIMIZERS:
            trace = traces.get(optimizer, {}).get(view)
            if trace is None or not np.isfinite(trace[0]):
                row[optimizer] = None
                continue
            reached = trace <= lowest + tolerance * (trace[0] - lowest)
            row[optimizer] = int(np.argmax(reached)) + 1 if reached[-1] else 0
        yield row


def load(folder: Path, problem: str) -> Traces:
    """The existing traces of a problem."""
    return {
        path.stem.split("+", 1)[1]: dict(np.load(path))
        for path in sorted(folder.glob(f"{problem}+*.npz"))
    }


def measure(
    problem: Problem,
    optimizers: Iterable[str],
    wanted: Iterable[View],
    known: Traces | None = None,
) -> Traces:
    """Add the missing traces to the known ones."""
    runs = descend.Runs(problem)
    scales = problem.start.size <= views.LARGEST_SCALED
    traces = dict(known or {})
    for name in optimizers:
        run = traces.get(name, {})
        descent = runs.descent(name)
        for view in wanted:
            if key(view) not in run and (scales or not view.scaled):
                run = run | {key(view): runs.lowest(descent, view)}
        traces[name] = run
    return traces


def main(arguments: list[str] | None = None) -> None:
    """Run the missing views, then count the evaluations of all."""
    parser = cli.parser(__doc__, "cutest")
    parser.add_argument(
        "--problems",
        type=int,
        default=200,
        help="number of problems, in the random order",
    )
    parser.add_argument(
        "--optimizers", nargs="+", default=list(descend.OPTIMIZERS), help="which"
    )
    parser.add_argument(
        "--views", nargs="+", default=list(views.VIEWS), help="groups of views to run"
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
    rows, facts = [], []
    for problem in tqdm.tqdm(drawn, total=total, unit="problem"):
        known = load(folder, problem.name)
        traces = measure(problem, options.optimizers, wanted, known)
        for name, run in traces.items():
            if run.keys() != known.get(name, {}).keys():
                np.savez_compressed(folder / f"{problem.name}+{name}.npz", **run)
        facts.append({"problem": problem.name, "size": problem.start.size})
        rows += [{"problem": problem.name, **row} for row in counted(traces)]
    for name in ("runs", "runs_problems"):
        (options.output_dir / f"{name}.csv").unlink(missing_ok=True)
    study = Study(options.output_dir, "runs", (), script="run")
    study.add(facts, "problems")
    study.add(rows)


if __name__ == "__main__":
    main()
