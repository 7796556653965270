"""The tables of the README, from ``results/`` alone: ``cog -r README.md`` runs it."""

import csv
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"
EIGENBASIS = "eigenbasis"
ORDER = (EIGENBASIS, "irprop+", "L-BFGS", "Adam", "Muon", "SOAP")
TUNING_SEED = 0
STARTS = 3
INFINITY = math.inf


class Cost(NamedTuple):
    """What a run took to the tolerance; infinite if it did not get there."""

    evaluations: float
    seconds: float


Runs = dict[tuple[str, str, float, int], Cost]
"""By problem, contender, rate and seed."""


def read(name: str) -> list[dict[str, str]]:
    """The rows of a file."""
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def load(tolerance: float) -> tuple[Runs, dict[str, str]]:
    """The runs at one tolerance, and the group of each problem.

    The eigenbasis is the full matrix where that was run, and else Kronecker's.
    """
    runs: Runs = {}
    groups = {}
    for row in read("runs.csv"):
        groups[row["problem"]] = row["group"]
        if float(row["tolerance"]) == tolerance:
            key = row["problem"], row["contender"], float(row["rate"]), int(row["seed"])
            runs[key] = Cost(
                float(row["evaluations"] or INFINITY),
                float(row["seconds"] or INFINITY),
            )
    full = {problem for problem, name, _, _ in runs if name == "full matrix"}
    for (problem, name, rate, seed), cost in list(runs.items()):
        if name == ("full matrix" if problem in full else "Kronecker"):
            runs[problem, EIGENBASIS, rate, seed] = cost
    return runs, groups


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|---" + "|--:" * (len(header) - 1) + "|",
    ]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def starts(
    runs: Runs, problem: str, name: str, rate: float, *, tuning: bool = False
) -> list[Cost]:
    """The costs from the starts to measure on, or from the one to tune on."""
    return [
        cost
        for (p, n, r, seed), cost in sorted(runs.items())
        if (p, n, r) == (problem, name, rate) and (seed == TUNING_SEED) == tuning
    ]


def rates_of(runs: Runs, name: str) -> list[float]:
    """The rates with which a contender ran."""
    return sorted({rate for _, n, rate, _ in runs if n == name})


def tuned(runs: Runs, problem: str, name: str) -> float:
    """The rate that takes the fewest evaluations from the tuning start."""
    rates = sorted({rate for p, n, rate, _ in runs if (p, n) == (problem, name)})
    return min(
        rates, key=lambda rate: starts(runs, problem, name, rate, tuning=True)[0][0]
    )


def single(runs: Runs, problems: Iterable[str], name: str) -> float:
    """The one rate for all: of the highest mean of best evaluations over its own."""

    def score(rate: float) -> float:
        total = 0.0
        for problem in problems:
            best = min(
                cost[0]
                for (p, _, _, seed), cost in runs.items()
                if (p, seed) == (problem, TUNING_SEED)
            )
            own = starts(runs, problem, name, rate, tuning=True)
            if own and math.isfinite(own[0][0]):
                total += best / own[0][0]
        return total

    return max(rates_of(runs, name), key=score)


def profile_table(tolerance: float, by: int = 0) -> str:
    """Percent of the starts from which a contender ran: cheapest, near it, solved.

    Args:
      tolerance: What counts as solved.
      by: 0 for evaluations, 1 for seconds.
    """
    runs, groups = load(tolerance)
    development = [p for p, group in groups.items() if group == "development"]
    # SOAP's time is that of PyTorch and of carrying gradients over to it.
    names = [name for name in ORDER if by == 0 or name != "SOAP"]
    one = {name: single(runs, development, name) for name in names}
    choices: dict[str, Callable[[str, str], float]] = {
        "tuned to each": lambda problem, name: tuned(runs, problem, name),
        "one rate": lambda problem, name: one[name],
    }
    columns = {}
    for title, choose in choices.items():
        for group in ("development", "unseen"):
            chosen = [p for p, g in groups.items() if g == group]
            found: dict[str, list[float]] = defaultdict(list)
            for problem in chosen:
                for name in names:
                    # Muon and SOAP did not run where there is no matrix.
                    ran = any((p, n) == (problem, name) for p, n, _, _ in runs)
                    rate = choose(problem, name) if ran else 0.0
                    costs = [c[by] for c in starts(runs, problem, name, rate)]
                    found[name] += costs or [math.nan] * STARTS
            columns[f"{group}, {title}"] = shares(found)
    rows = [
        [name, "" if name == "L-BFGS" else f"{one[name]:g}"]
        + [column[name] for column in columns.values()]
        for name in names
    ]
    return markdown(["optimizer", "the one rate", *columns], rows)


def first_step_table(tolerance: float) -> str:
    """The three percentages against L-BFGS alone, with one first step for all."""
    runs, groups = load(tolerance)
    names = (EIGENBASIS, "irprop+", "L-BFGS")
    rows = []
    for rate in rates_of(runs, EIGENBASIS):
        cells = []
        for group in ("development", "unseen"):
            found: dict[str, list[float]] = {name: [] for name in names}
            for problem in (p for p, g in groups.items() if g == group):
                for name in names:
                    own = rate if name != "L-BFGS" else tuned(runs, problem, name)
                    found[name] += [c[0] for c in starts(runs, problem, name, own)]
            cells += shares(found).values()
        rows.append([f"{rate:g}", *cells])
    header = [f"{name}, {g}" for g in ("development", "unseen") for name in names]
    return markdown(["first step", *header], rows)


def shares(found: dict[str, list[float]]) -> dict[str, str]:
    """For each contender the three percentages of the starts from which it ran."""
    cheapest = [
        min(cost for cost in costs if not math.isnan(cost))
        for costs in zip(*found.values(), strict=True)
    ]
    cells = {}
    for name, costs in found.items():
        ratios = [
            cost / least if math.isfinite(cost) else INFINITY
            for cost, least in zip(costs, cheapest, strict=True)
            if not math.isnan(cost)
        ]
        counts = [
            sum(ratio <= most for ratio in ratios)
            for most in (1, 2, sys.float_info.max)
        ]
        shown = [f"{100 * n / len(ratios):.0f}" for n in counts] if ratios else []
        cells[name] = " / ".join(shown)
    return cells


def problem_table(group: str, tolerance: float) -> str:
    """Median evaluations with the one rate; in brackets how many starts were solved."""
    runs, groups = load(tolerance)
    development = [p for p, g in groups.items() if g == "development"]
    names = ("full matrix", "Kronecker", *ORDER[1:])
    one = {name: single(runs, development, name) for name in names}
    rows = []
    for problem in (p for p, g in groups.items() if g == group):
        medians = {}
        cells = []
        for name in names:
            costs = [c[0] for c in starts(runs, problem, name, one[name])]
            solved = sum(map(math.isfinite, costs))
            median = statistics.median(costs) if costs else INFINITY
            if costs and solved == len(costs):
                medians[name] = median
                cells.append(f"{median:.0f}")
            else:
                cells.append(f"({solved} of {len(costs)})" if costs else "")
        least = min(medians.values(), default=INFINITY)
        cells = [
            f"**{cell}**" if medians.get(name) == least else cell
            for name, cell in zip(names, cells, strict=True)
        ]
        rows.append([problem, *cells])
    return markdown(["problem", *names], rows)


def plain_table(name: str) -> str:
    """A small file as it is."""
    rows = read(name)
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def ablation_table() -> str:
    """A row a change, a column a problem; in brackets how many runs arrived."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    problems = {}
    for row in read("ablation.csv"):
        problems[row["problem"]] = f"{row['problem']} ({row['kind']})"
        reached, _, runs = row["solved"].split()
        cells[row["change"]][row["problem"]] = (
            f"{float(row['evaluations']):.0f}"
            if reached == runs
            else f"({row['solved']})"
        )
    return markdown(
        ["", *problems.values()],
        [[change, *by_problem.values()] for change, by_problem in cells.items()],
    )


def picture() -> None:
    """Draw ``results/valley.png``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in read("valley.csv"):
        point = float(row["evaluations"]), float(row["loss"])
        lines[row["optimizer"]].append(point)
    figure, axis = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for (name, points), color in zip(
        lines.items(), ("#0072B2", "#000000", "#D55E00"), strict=True
    ):
        axis.plot(*zip(*points, strict=True), color=color, label=name)
    axis.set(yscale="log", xlabel="evaluations of loss and gradient", ylabel="loss")
    axis.set_title("Rotated quadratic, 30 dimensions, condition 10,000", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(RESULTS / "valley.png", dpi=150)


if __name__ == "__main__":
    picture()
