"""Which decay and which interval are best for `in_eigenbasis`?

One change at a time, on development problems.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.common import cli
from benchmarks.common.optimizers import Optimizer
from benchmarks.common.problems import digits
from benchmarks.common.results import Study, exists
from benchmarks.eigenbasis.run import in_eigenbasis
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.comparison import Comparison

CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    **{f"decay {decay:g}": {"decay": decay} for decay in (0.7, 0.95, 1.0)},
    **{f"interval {n}": {"interval": n} for n in (1, 2, 10, 20)},
}


def rows(*, quick: bool) -> Iterator[dict[str, Any]]:
    """Median evaluations to the tolerance 1e-4, of two starts and two step sizes."""
    small, networks = [functions.beale()], []
    if not quick:
        wine = models.logistic("wine", standardized=False)
        small = [functions.quadratic(rotated=True), functions.peaks(), wine]
        small.append(functions.rosenbrock())
        networks = [models.deep_sigmoid(), digits(512)]
    problems = [("full matrix", problem) for problem in small]
    problems += [("Kronecker", problem) for problem in networks]
    starts = list(itertools.product((1e-3, 0.1), (0, 1)))
    changes = dict(list(CHANGES.items())[:: 7 if quick else 1])
    for kind, problem in problems:
        build = functools.partial(in_eigenbasis, full_matrix=kind == "full matrix")
        compared = [
            Optimizer(name, functools.partial(build, **options))
            for name, options in changes.items()
        ]
        comparison = Comparison(problem, compared, 30 if quick else 300)
        for name, start in itertools.product(changes, starts):
            comparison.run(name, *start)
        for name in changes:
            costs = np.array(
                [comparison.cost(name, *start, 1e-4)[0] for start in starts]
            )
            reached = costs[np.isfinite(costs)]
            yield {
                "kind": kind,
                "problem": problem.name,
                "change": name,
                "evaluations": np.median(reached) if reached.size else np.nan,
                "solved": f"{reached.size} of {len(starts)}",
            }


def main(arguments: list[str] | None = None) -> None:
    """Run all changes, unless the results exist."""
    options = cli.parser(__doc__, "eigenbasis").parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    if not exists(options.output_dir, "ablation"):
        study = Study(options.output_dir, "ablation", ())
        study.add(rows(quick=options.quick))


if __name__ == "__main__":
    main()
