"""Rprop in a learned eigenbasis, beside its rivals: every run into a CSV file.

Each contender runs with each rate from each start, with one budget of gradients. A
problem is solved once the loss has fallen the fraction 1 - tolerance of the way from
the start to the lowest value that any run found from that start. ``report.py`` makes
tables of it.
"""

import argparse
import csv
import functools
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import problems as catalog  # noqa: E402
from contenders import Contender, Runner  # noqa: E402
from problems import Problem  # noqa: E402
from unseen import unseen  # noqa: E402

import optax_rprop  # noqa: E402

RATES = (1e-3, 1e-2, 3.2e-2, 0.1, 0.32, 1.0)
SOAP_RATES = (1e-3, 1e-2, 0.1)
SEEDS = (0, 1, 2, 3)
TOLERANCES = (1e-2, 1e-4, 1e-6)
LARGEST_FULL_MATRIX = 150
FIELDS = (
    "group",
    "problem",
    "size",
    "contender",
    "rate",
    "seed",
    "tolerance",
    "evaluations",
    "seconds",
)


class Trace(NamedTuple):
    """The losses of a run, before each step; evaluations and seconds up to there."""

    losses: np.ndarray
    evaluations: np.ndarray
    seconds: np.ndarray


def irprop_plus(rate: Any) -> optax.GradientTransformation:
    """The variant that stands for plain Rprop, and that is rotated."""
    return optax_rprop.rprop(rate, variant="irprop+")


def in_eigenbasis(rate: Any, **options: Any) -> optax.GradientTransformation:
    """The same, rotated."""
    return optax_rprop.in_eigenbasis(irprop_plus(rate), **options)


def contenders(problem: Problem) -> list[Contender]:
    """Those that make sense: Muon for matrices, the full matrix for small problems."""
    leaves = jax.tree.leaves(problem.start(0))
    found = [
        Contender("irprop+", irprop_plus, ""),
        Contender("L-BFGS", lambda rate: optax.lbfgs(), "", line_search=True),
        Contender("Adam", optax.adam, ""),
    ]
    if any(leaf.ndim > 1 for leaf in leaves):
        found.append(Contender("Kronecker", in_eigenbasis, ""))
        found.append(Contender("Muon", optax.contrib.muon, ""))
    if sum(leaf.size for leaf in leaves) <= LARGEST_FULL_MATRIX:
        full = functools.partial(in_eigenbasis, full_matrix=True)
        found.append(Contender("full matrix", full, ""))
    return found


def development(data_dir: Path | None) -> list[tuple[Problem, int]]:
    """The twenty problems of ``rivals.py``, on some of which settings were chosen."""
    import rivals

    options = argparse.Namespace(
        quick=False, data_dir=data_dir, data_sets=["building1", "glass1", "heart1"]
    )
    return rivals.collection(options)


def soap(problem: Problem, budget: int) -> Iterator[tuple[float, int, Trace]]:
    """SOAP of pytorch-optimizer on JAX's gradients; its time is not comparable."""
    import torch
    from pytorch_optimizer import SOAP

    gradient = jax.jit(jax.value_and_grad(lambda p: problem.loss(p, problem.train)))
    for rate in SOAP_RATES:
        for seed in SEEDS:
            leaves, treedef = jax.tree.flatten(problem.start(seed))
            tensors = [torch.tensor(np.array(leaf)) for leaf in leaves]
            optimizer = SOAP(tensors, lr=rate, weight_decay=0.0)
            losses = np.empty(budget)
            for i in range(budget):
                arrays = [jnp.asarray(tensor.numpy()) for tensor in tensors]
                losses[i], grads = gradient(treedef.unflatten(arrays))
                for tensor, grad in zip(tensors, jax.tree.leaves(grads), strict=True):
                    tensor.grad = torch.tensor(np.array(grad))
                optimizer.step()
            unknown = np.full(budget, np.nan)
            yield rate, seed, Trace(losses, np.arange(1, budget + 1), unknown)


def run_all(
    problem: Problem, budget: int, entrants: Iterable[Contender], seeds: Iterable[int]
) -> dict[tuple[str, float, int], Trace]:
    """All runs on one problem."""
    traces = {}
    for contender in entrants:
        runner = Runner(problem, contender, budget)
        rates = RATES[:1] if contender.line_search else RATES
        for rate in rates:
            for seed in seeds:
                trace, seconds = runner(rate, seed)
                share = seconds * trace.evaluations / trace.evaluations[-1]
                traces[contender.name, rate, seed] = Trace(
                    np.asarray(trace.losses), np.asarray(trace.evaluations), share
                )
    return traces


def rows(
    group: str, problem: Problem, traces: dict[tuple[str, float, int], Trace]
) -> Iterator[tuple[Any, ...]]:
    """One row for each run and tolerance; empty cells where it is not solved."""
    size = sum(leaf.size for leaf in jax.tree.leaves(problem.start(0)))
    lowest: dict[int, float] = {}
    for (_, _, seed), trace in traces.items():
        lowest[seed] = min(np.nanmin(trace.losses), lowest.get(seed, np.inf))
    for run, trace in traces.items():
        for tolerance in TOLERANCES:
            least = lowest[run[2]]
            target = least + tolerance * (trace.losses[0] - least)
            reached = np.flatnonzero(trace.losses <= target)
            cost: tuple[Any, Any] = ("", "")
            if reached.size:
                i = reached[0]
                cost = int(trace.evaluations[i]), f"{trace.seconds[i]:.3g}"
            yield group, problem.name, size, *run, tolerance, *cost


def main() -> None:
    """Run everything; what is in the file already is not run again."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="one small problem")
    options.add_argument(
        "--data-dir", type=Path, help="folder with Proben1's .dt files"
    )
    options.add_argument("--soap", action="store_true", help="with pytorch-optimizer")
    options.add_argument("--output-dir", type=Path, default=HERE / "results")
    arguments = options.parse_args()
    jax.config.update("jax_enable_x64", True)
    if arguments.quick:
        groups = {"development": [(catalog.small_regression(), 20)]}
    else:
        groups = {
            "unseen": unseen(arguments.data_dir),
            "development": development(arguments.data_dir),
        }
    path = arguments.output_dir / "runs.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = set()
    if path.exists():
        with path.open(newline="") as file:
            done = {row["problem"] for row in csv.DictReader(file)}
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if not done:
            writer.writerow(FIELDS)
        for group, chosen in groups.items():
            for problem, budget in chosen:
                if problem.name in done:
                    continue
                begun = time.perf_counter()
                entrants = contenders(problem)
                traces = run_all(problem, budget, entrants, SEEDS)
                if arguments.soap and problem.dtype == "float32":  # Networks.
                    for rate, seed, trace in soap(problem, budget):
                        traces["SOAP", rate, seed] = trace
                writer.writerows(rows(group, problem, traces))
                file.flush()
                print(
                    f"{problem.name}: {time.perf_counter() - begun:.0f} s", flush=True
                )


if __name__ == "__main__":
    main()
