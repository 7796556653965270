"""Each optimizer at its best: evaluations, seconds and held-out error.

A problem is solved once the loss has fallen the fraction 1 - tolerance of the way
from the start to the lowest value that any of the contenders found from that start
(Moré and Wild, 2009, https://doi.org/10.1137/080724083). Each contender is tuned on
one start and measured on others: once with the rate that is best for the problem,
once with the one rate that is best over all problems. The picture is the performance
profile of Dolan and Moré (2002, https://doi.org/10.1007/s101070100263): the fraction
of all starts that a contender solves within a multiple of the cost of the cheapest.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import problems as catalog
import tqdm
from common import markdown_table, parser, write_results
from contenders import (
    CONTENDERS,
    PICTURE_STYLE,
    RATES,
    Contender,
    Run,
    compile_all,
)

matplotlib.use("Agg")
from matplotlib import pyplot

TOLERANCES = (1e-2, 1e-4)
TUNING_SEED = 0
COSTS = ("evaluations", "seconds")


def collection(options: argparse.Namespace) -> list[tuple[catalog.Problem, int]]:
    """The problems, each with the number of gradients that a run may take."""
    if options.quick:
        return [(catalog.small_regression(), 50)]
    chosen = [
        (catalog.quadratic(rotated=False), 2000),
        (catalog.quadratic(rotated=True), 2000),
        (catalog.rosenbrock(), 2000),
        (catalog.powell_singular(), 2000),
        (catalog.beale(), 2000),
        (catalog.factorization(), 2000),
        (catalog.peaks(), 2000),
        (catalog.least_squares(), 2000),
        (catalog.logistic("wine", standardized=False), 1000),
        (catalog.logistic("wine", standardized=True), 1000),
        (catalog.logistic("cancer", standardized=False), 1000),
        (catalog.logistic("cancer", standardized=True), 1000),
        (catalog.gaussian_process(), 300),
        (catalog.predator_prey(), 300),
        (catalog.small_regression(), 1000),
        (catalog.digits(512), 300),
        (catalog.deep_sigmoid(), 300),
    ]
    for name in options.data_sets:
        path = catalog.find_proben1(options.data_dir, name)
        if path is not None:
            chosen.append((catalog.proben1(path), 300))
    return chosen


class Bout:
    """A problem with all its contenders, and every run that was made on it."""

    def __init__(self, problem: catalog.Problem, budget: int):
        self.problem = problem
        self.budget = budget
        self._runners = compile_all(problem, budget, watch=True)
        self._runs: dict[tuple[str, float, int], Run] = {}
        self._start: dict[int, float] = {}
        self._lowest: dict[int, float] = {}

    def run(self, name: str, rate: float, seed: int) -> Run:
        """The run with these settings; made once."""
        key = (name, rate, seed)
        if key not in self._runs:
            self._runs[key] = run = self._runners[name](rate, seed)
            self._start[seed] = float(run.trace.losses[0])
            lowest = float(np.nanmin(run.trace.losses))
            self._lowest[seed] = min(lowest, self._lowest.get(seed, np.inf))
        return self._runs[key]

    def cost(
        self, name: str, rate: float, seed: int, tolerance: float
    ) -> tuple[float, float]:
        """Evaluations and seconds until solved, or infinities."""
        lowest = self._lowest[seed]
        target = lowest + tolerance * (self._start[seed] - lowest)
        return self.run(name, rate, seed).until(target)

    def fewest(self, seed: int, tolerance: float) -> float:
        """The evaluations of the fastest of all runs from this start."""
        return min(
            self.cost(name, rate, seed, tolerance)[0]
            for name, rate, at in list(self._runs)
            if at == seed
        )

    def early_stopped(self, name: str, rate: float, seed: int) -> dict[str, float]:
        """What early stopping would keep: the step of the lowest validation loss."""
        trace = self.run(name, rate, seed).trace
        best = np.nanargmin(trace.validation_losses)
        return {
            "validation_loss": float(trace.validation_losses[best]),
            "error": float(trace.errors[best]),
            "evaluations": int(trace.evaluations[best]),
        }


def grid_of(contender: Contender, grid: np.ndarray) -> np.ndarray:
    """The rates to try; with a line search there is nothing to try."""
    return grid[:1] if contender.line_search else grid


def tune(
    bouts: Sequence[Bout], name: str, grid: np.ndarray, tolerance: float
) -> tuple[list[float], float]:
    """The best rate on each problem, and the best single one, by the tuning start.

    On a problem, a rate scores the fewest evaluations of any contender over its own,
    and 0 if it does not solve it; if no rate does, the one that comes lowest is best.
    The best single rate has the highest mean score.
    """
    scores = np.zeros((len(bouts), len(grid)))
    best = []
    for i, bout in enumerate(bouts):
        costs = [bout.cost(name, rate, TUNING_SEED, tolerance)[0] for rate in grid]
        scores[i] = bout.fewest(TUNING_SEED, tolerance) / np.array(costs)
        if not scores[i].any():
            traces = [bout.run(name, rate, TUNING_SEED).trace for rate in grid]
            costs = [np.nanmin(trace.losses) for trace in traces]
        best.append(float(grid[np.argmin(costs)]))
    return best, float(grid[scores.mean(axis=0).argmax()])


def performance_profile(costs: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The fraction of instances solved within multiples of the cheapest's cost.

    Args:
      costs: Shape (contenders, instances); infinite where not solved. An instance
        that nobody solves counts, as solved by nobody.
      ratios: The multiples, shape (ratios,).

    Returns:
      The fractions, shape (contenders, ratios).
    """
    cheapest = costs.min(axis=0)
    within = costs[..., None] <= cheapest[:, None] * ratios
    return (within & np.isfinite(costs)[..., None]).mean(axis=1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Costs with the rates that one way of tuning chose.

    Attributes:
      title: The way of tuning.
      tolerance: What counts as solved.
      rates: Shape (contenders, problems).
      costs: Evaluations and seconds, shape (2, contenders, problems, starts).
    """

    title: str
    tolerance: float
    rates: np.ndarray
    costs: np.ndarray


def measure(
    bouts: Sequence[Bout], grid: np.ndarray, seeds: Sequence[int]
) -> tuple[list[Outcome], dict[str, dict[str, Any]]]:
    """Tune on one start, measure on the others.

    Returns:
      The outcomes, and for every problem with held-out data, by contender, what early
      stopping keeps with the rate of the lowest validation loss.
    """
    names = [contender.name for contender in CONTENDERS]
    grids = [grid_of(contender, grid) for contender in CONTENDERS]
    with tqdm.tqdm(total=sum(map(len, grids)) * len(bouts), desc="tune") as progress:
        for bout in bouts:
            for name, rates in zip(names, grids, strict=True):
                for rate in rates:
                    bout.run(name, rate, TUNING_SEED)
                    progress.update()

    plans: list[tuple[str, float, np.ndarray]] = []
    for tolerance in TOLERANCES:
        tuned = [
            tune(bouts, name, rates, tolerance)
            for name, rates in zip(names, grids, strict=True)
        ]
        per_problem = np.array([best for best, _ in tuned])
        single = np.array([[rate] * len(bouts) for _, rate in tuned])
        plans.append(("tuned to each problem", tolerance, per_problem))
        plans.append(("one rate for all problems", tolerance, single))
    held_out_rates: dict[tuple[int, str], float] = {}
    for i, bout in enumerate(bouts):
        if bout.problem.error is not None:
            for name, rates in zip(names, grids, strict=True):
                losses = [
                    bout.early_stopped(name, rate, TUNING_SEED)["validation_loss"]
                    for rate in rates
                ]
                held_out_rates[i, name] = float(rates[np.argmin(losses)])

    wanted = {
        (i, name, float(rates[j, i]))
        for _, _, rates in plans
        for j, name in enumerate(names)
        for i in range(len(bouts))
    }
    wanted |= {(i, name, rate) for (i, name), rate in held_out_rates.items()}
    for i, name, rate in tqdm.tqdm(sorted(wanted), desc="measure"):
        for seed in seeds:
            bouts[i].run(name, rate, seed)

    outcomes = []
    for title, tolerance, rates in plans:
        costs = [
            [
                [bout.cost(name, float(rate), seed, tolerance) for seed in seeds]
                for bout, rate in zip(bouts, row, strict=True)
            ]
            for name, row in zip(names, rates, strict=True)
        ]
        outcomes.append(
            Outcome(title, tolerance, rates, np.moveaxis(np.array(costs), -1, 0))
        )
    held_out: dict[str, dict[str, Any]] = {}
    for (i, name), rate in held_out_rates.items():
        stops = [bouts[i].early_stopped(name, rate, seed) for seed in seeds]
        held_out.setdefault(bouts[i].problem.name, {})[name] = {
            "rate": rate,
            "errors": [stop["error"] for stop in stops],
            "evaluations": [stop["evaluations"] for stop in stops],
        }
    return outcomes, held_out


# --- The report --------------------------------------------------------------


def bold_lowest(cells: Sequence[str], numbers: Sequence[float]) -> list[str]:
    """The cells, the lowest of them in bold type."""
    lowest = min(numbers)
    return [
        f"**{cell}**" if number == lowest and np.isfinite(number) else cell
        for cell, number in zip(cells, numbers, strict=True)
    ]


def cost_table(bouts: Sequence[Bout], outcome: Outcome, cost: int) -> str:
    """The median over the starts, or how many were solved if not all."""
    unit = (1, 1000)[cost]
    rows = []
    for i, bout in enumerate(bouts):
        costs = outcome.costs[cost, :, i]
        solved = np.isfinite(costs)
        medians = np.where(solved.all(axis=1), np.median(costs, axis=1), np.inf)
        cells = [
            f"{unit * median:.{0 if cost == 0 else 3}{'fg'[cost]}}"
            if np.isfinite(median)
            else f"({row.sum()} of {row.size})"
            for median, row in zip(medians, solved, strict=True)
        ]
        rows.append([bout.problem.name, *bold_lowest(cells, list(medians))])
    return markdown_table(_header("problem"), rows)


def _header(first: str) -> list[str]:
    return [first, *(contender.name for contender in CONTENDERS)]


def rate_table(bouts: Sequence[Bout], outcome: Outcome) -> str:
    """The rates that were best on the tuning start."""
    rows = [
        [
            bout.problem.name,
            *(
                "" if contender.line_search else f"{rate:.2g}"
                for contender, rate in zip(CONTENDERS, outcome.rates[:, i], strict=True)
            ),
        ]
        for i, bout in enumerate(bouts)
    ]
    return markdown_table(_header("problem"), rows)


def profile_table(outcomes: Sequence[Outcome], cost: int) -> str:
    """How often each contender is the cheapest, near it, and there at all."""
    columns = []
    for outcome in outcomes:
        costs = outcome.costs[cost].reshape(len(CONTENDERS), -1)
        fractions = performance_profile(costs, np.array([1, 2, np.inf]))
        columns.append([" / ".join(f"{100 * f:.0f}" for f in row) for row in fractions])
    titles = [f"{outcome.title}, {outcome.tolerance:g}" for outcome in outcomes]
    names = [contender.name for contender in CONTENDERS]
    return markdown_table(["optimizer", *titles], zip(names, *columns, strict=True))


def held_out_table(held_out: Mapping[str, Any], units: Mapping[str, str]) -> str:
    """Mean and standard deviation over the starts."""
    rows = []
    for problem, found in held_out.items():
        means = [float(np.mean(found[c.name]["errors"])) for c in CONTENDERS]
        deviations = [float(np.std(found[c.name]["errors"])) for c in CONTENDERS]
        cells = [
            f"{mean:.3g} ± {deviation:.2g}"
            for mean, deviation in zip(means, deviations, strict=True)
        ]
        rows.append([f"{problem}, {units[problem]}", *bold_lowest(cells, means)])
    return markdown_table(_header("problem"), rows)


def picture(outcomes: Sequence[Outcome], cost: int, path: Path) -> None:
    """Performance profiles: a row a way of tuning, a column a tolerance."""
    most = {"evaluations": 100.0, "seconds": 1000.0}[COSTS[cost]]
    ratios = np.geomspace(1, most, 400)
    with pyplot.rc_context(PICTURE_STYLE):
        figure, axes = pyplot.subplots(
            2, 2, figsize=(11, 8), sharex=True, sharey=True, layout="constrained"
        )
        # Outcomes come by tolerance, then by way of tuning.
        for axis, outcome in zip(axes.T.flat, outcomes, strict=True):
            costs = outcome.costs[cost].reshape(len(CONTENDERS), -1)
            fractions = 100 * performance_profile(costs, ratios)
            for contender, row in zip(CONTENDERS, fractions, strict=True):
                axis.step(
                    ratios,
                    row,
                    where="post",
                    color=contender.color,
                    ls=contender.linestyle,
                    lw=1.8,
                )
            heights = spread_out(fractions[:, -1], gap=5.0)
            for contender, height, row in zip(
                CONTENDERS, heights, fractions, strict=True
            ):
                axis.annotate(
                    contender.name,
                    (ratios[-1], row[-1]),
                    (1.25 * ratios[-1], height),
                    color=contender.color,
                    fontsize=8,
                    va="center",
                    annotation_clip=False,
                    # The line ends at the left edge of the name, not behind it.
                    arrowprops={
                        "arrowstyle": "-",
                        "color": contender.color,
                        "lw": 0.6,
                        "relpos": (0, 0.5),
                    },
                )
            axis.set(xscale="log", xlim=(1, ratios[-1]), ylim=(0, 101))
            axis.set_title(f"{outcome.title}, tolerance {outcome.tolerance:g}")
        figure.supxlabel(f"{COSTS[cost]}, as a multiple of the cheapest optimizer's")
        figure.supylabel("solved, % of all starts on all problems")
        figure.savefig(path)
        pyplot.close(figure)


def spread_out(heights: np.ndarray, gap: float) -> np.ndarray:
    """Heights for labels, in the same order, at least a gap apart and within 0, 100."""
    order = np.argsort(heights, kind="stable")
    placed = heights[order].astype(float)
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed[-1] = min(placed[-1], 100.0)
    for i in reversed(range(len(placed) - 1)):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    result = np.empty_like(placed)
    result[order] = placed
    return result


def options() -> argparse.ArgumentParser:
    """The command line."""
    choices = parser(__doc__)
    choices.add_argument(
        "--seeds", type=int, default=5, help="starts to measure on, after the tuning"
    )
    choices.add_argument(
        "--data-dir",
        type=Path,
        help="folder with Proben1's .dt files; left out if none",
    )
    choices.add_argument(
        "--data-sets",
        nargs="*",
        default=["building1", "glass1", "heart1"],
        help="the Proben1 sets, without .dt",
    )
    return choices


def main() -> None:
    """Tune, measure, tabulate, draw."""
    choices = options()
    arguments = choices.parse_args()
    if arguments.seeds < 1:
        choices.error(f"--seeds must be at least 1, got {arguments.seeds}.")
    jax.config.update("jax_enable_x64", True)
    grid = RATES[::4] if arguments.quick else RATES
    seeds = range(1, (1 if arguments.quick else arguments.seeds) + 1)
    bouts = [
        Bout(problem, budget)
        for problem, budget in tqdm.tqdm(collection(arguments), desc="compile")
    ]
    outcomes, held_out = measure(bouts, grid, seeds)

    units = {bout.problem.name: bout.problem.error_name for bout in bouts}
    grid_text = ", ".join(f"{rate:.2g}" for rate in grid)
    report = [
        "# Rivals, each at its best",
        f"Tuning grid, the same for all: {grid_text}. Nothing else is tuned. L-BFGS"
        " has a line search and no rate. Tuned on one start, measured on"
        f" {len(seeds)} others.",
        "## How often cheapest / within twice the cheapest / solved at all",
        "In percent of all starts on all problems. Evaluations of loss and gradient:",
        profile_table(outcomes, 0),
        "Seconds:",
        profile_table(outcomes, 1),
    ]
    single = [outcome for outcome in outcomes if outcome.title.startswith("one")]
    report += [
        "The one rate for all problems:",
        markdown_table(
            _header("tolerance"),
            [
                [
                    f"{outcome.tolerance:g}",
                    *(
                        "" if contender.line_search else f"{rate:.2g}"
                        for contender, rate in zip(
                            CONTENDERS, outcome.rates[:, 0], strict=True
                        )
                    ),
                ]
                for outcome in single
            ],
        ),
    ]
    for outcome in outcomes:
        if outcome in single:
            continue
        report += [
            f"## Tuned to each problem, tolerance {outcome.tolerance:g}",
            "Evaluations, median over the starts; in brackets how many were solved if"
            " not all were:",
            cost_table(bouts, outcome, 0),
            "Milliseconds, likewise:",
            cost_table(bouts, outcome, 1),
            "Rates:",
            rate_table(bouts, outcome),
        ]
    if held_out:
        report += [
            "## Test error with early stopping",
            "At the step of the lowest validation loss, with the rate that had the"
            " lowest validation loss on the tuning start; mean and standard deviation"
            " over the starts.",
            held_out_table(held_out, units),
        ]
    report += [
        "## Problems",
        markdown_table(
            ["problem", "description", "gradients allowed"],
            [
                [bout.problem.name, bout.problem.description, bout.budget]
                for bout in bouts
            ],
        ),
    ]
    results = {
        "rates": list(grid),
        "contenders": [contender.name for contender in CONTENDERS],
        "problems": [bout.problem.name for bout in bouts],
        "outcomes": [
            {
                "tuning": outcome.title,
                "tolerance": outcome.tolerance,
                "rates": outcome.rates.tolist(),
                "evaluations": finite(outcome.costs[0]),
                "seconds": finite(outcome.costs[1]),
            }
            for outcome in outcomes
        ],
        "held_out": held_out,
    }
    write_results(arguments.output_dir, "rivals", results, "\n\n".join(report))
    for cost, title in enumerate(COSTS):
        path = arguments.output_dir / f"rivals_{title}.png"
        picture(outcomes, cost, path)
        print(f"Written: {path}")


def finite(costs: np.ndarray) -> Any:
    """Nested lists for JSON, which has no infinity: null where not solved."""
    digits = costs.astype(object)
    digits[~np.isfinite(costs)] = None
    return digits.tolist()


if __name__ == "__main__":
    main()
