"""How does Rprop compare with other optimizers, tuned and untuned?

Each optimizer is tuned on one start and measured on others: with the setting that is
best for the problem, with the one setting that is best over all problems, and, like
optimizers without a setting, with the default of its library.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import OPTIMIZERS, RATES, TUNING_FREE, Optimizer
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.comparison import Comparison

TOLERANCES = (1e-2, 1e-4)
TUNING_RUN = 0
# Tuned to each problem; one setting for all; nothing tuned.
TUNINGS = EACH, ONE, DEFAULT = ("each", "one", "default")
# For saturating units, for which the default bound of 50 is too large.
BOUNDED = Optimizer(
    "irprop-, steps up to 0.5",
    lambda rate: optax_rprop.rprop(rate, max_step_size=0.5),
    0.01,
)
AT_DEFAULTS = (
    *(o for o in OPTIMIZERS if o.default > 0 or not o.tuned),
    BOUNDED,
    *TUNING_FREE,
)
RUNS = range(1, 6)
DATA_SETS = ("building1", "glass1", "heart1")
Choice = tuple[str, float, Comparison, str, float]
"""A way of tuning, a tolerance, a problem's runs, an optimizer, its setting."""


def problems(data_dir: Path | None) -> list[tuple[Problem, int]]:
    """Twenty problems, each with its budget of gradients."""
    chosen = [
        (functions.quadratic(rotated=False), 2000),
        (functions.quadratic(rotated=True), 2000),
        (functions.rosenbrock(), 2000),
        (functions.powell_singular(), 2000),
        (functions.beale(), 2000),
        (functions.factorization(), 2000),
        (functions.peaks(), 2000),
        (models.least_squares(), 2000),
        (models.logistic("wine", standardized=False), 1000),
        (models.logistic("wine", standardized=True), 1000),
        (models.logistic("cancer", standardized=False), 1000),
        (models.logistic("cancer", standardized=True), 1000),
        (functions.gaussian_process(), 300),
        (functions.predator_prey(), 300),
        (models.small_regression(), 1000),
        (digits(512), 300),
        (models.deep_sigmoid(), 300),
    ]
    paths = find_proben1(data_dir, DATA_SETS)
    return [*chosen, *((models.proben1(path), 300) for path in paths.values())]


def choose(
    comparisons: Sequence[Comparison], grid: Sequence[float]
) -> Iterator[Choice]:
    """All choices: by the costs from the tuning start, and the defaults.

    On a problem, the score of a setting is the fewest evaluations of any optimizer
    divided by its own, and 0 if it does not solve the problem; if no setting does, the
    one with the lowest loss is best. The best single one has the highest mean score.
    """
    for tolerance, (name, _, default, *_) in itertools.product(TOLERANCES, AT_DEFAULTS):
        for comparison in comparisons:
            yield DEFAULT, tolerance, comparison, name, default
    for tolerance, optimizer in itertools.product(TOLERANCES, OPTIMIZERS):
        name, tried = optimizer.name, optimizer.settings(grid)
        scores = [
            comparison.scores(name, tried, TUNING_RUN, tolerance)
            for comparison in comparisons
        ]
        one = tried[int(np.mean(scores, axis=0).argmax())]
        for comparison, its in zip(comparisons, scores, strict=True):
            runs = [comparison.run(name, setting, TUNING_RUN) for setting in tried]
            lowest = [np.nanmin(run.trace.losses) for run in runs]
            each = tried[int(its.argmax() if its.any() else np.argmin(lowest))]
            yield EACH, tolerance, comparison, name, each
            yield ONE, tolerance, comparison, name, one


def measure(choice: Choice, run: int) -> dict[str, Any]:
    """The cost of a chosen setting from a start."""
    tuning, tolerance, comparison, name, setting = choice
    evaluations, seconds = comparison.cost(name, setting, run, tolerance)
    how = {"tuning": tuning, "tolerance": tolerance, "problem": comparison.problem.name}
    how |= {"optimizer": name, "setting": setting, "run": run}
    return how | {"evaluations": evaluations, "seconds": seconds}


def main(arguments: list[str] | None = None) -> None:
    """Tune on one start, measure on the others, unless the results exist."""
    parser = cli.parser(__doc__, "full_batch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "baselines", ["tuning"])
    if study.has(EACH):
        return
    grid, runs = (RATES[::7], (1,)) if options.quick else (RATES, RUNS)
    chosen = [] if options.quick else problems(options.data_dir)
    chosen.append((models.encoder(), 50 if options.quick else 2000))
    comparisons = [
        Comparison(problem, (*OPTIMIZERS, BOUNDED, *TUNING_FREE), budget)
        for problem, budget in tqdm.tqdm(chosen, desc="compile")
    ]
    for comparison, optimizer in tqdm.tqdm(
        [*itertools.product(comparisons, OPTIMIZERS)], "tune"
    ):
        for setting in optimizer.settings(grid):
            comparison.run(optimizer.name, setting, TUNING_RUN)
    # All runs come before the rows, because the lowest loss defines which are solved.
    pairs = list(itertools.product(choose(comparisons, grid), runs))
    for (_, _, comparison, name, setting), run in tqdm.tqdm(pairs, "measure"):
        comparison.run(name, setting, run)
    facts = [
        {
            "problem": comparison.problem.name,
            "description": comparison.problem.description,
            "budget": comparison.budget,
        }
        for comparison in comparisons
    ]
    study.add(facts, "problems")
    study.add(itertools.starmap(measure, pairs))


if __name__ == "__main__":
    main()
