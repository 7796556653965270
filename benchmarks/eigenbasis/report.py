"""Tables and the picture of Rprop in a learned eigenbasis."""

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.tables import in_order, markdown, number, report

RESULTS = Path(__file__).parent / "results"
EIGENBASIS = "eigenbasis"
ORDER = (EIGENBASIS, "irprop+", "L-BFGS", "Adam", "Muon", "SOAP")
# Of the eigenbasis; the first that ran on a problem stands for it.
KINDS = ("full matrix", "Kronecker")
GROUPS = ("development", "unseen")
TUNING_RUN = 0
TOLERANCES = ("0.01", "0.0001", "1e-06")
EVALUATIONS, SECONDS = 0, 1
Choose = Callable[[str, str], float]
Costs = dict[str, list[float]]


class Cost(NamedTuple):
    """What a run took to the tolerance; infinite if it did not get there."""

    evaluations: float
    seconds: float


class Runs(NamedTuple):
    """All runs, at one tolerance.

    Attributes:
      groups: Of each problem.
      costs: By problem and optimizer, then by setting: one a run. The eigenbasis is
        the full matrix where that was run, and else Kronecker's.
    """

    groups: dict[str, str]
    costs: dict[tuple[str, str], dict[float, list[Cost]]]

    def problems(self, group: str) -> list[str]:
        """Those of a group."""
        return [problem for problem, its in self.groups.items() if its == group]

    def names(self, order: Iterable[str] = ORDER) -> list[str]:
        """The optimizers that ran anywhere, in this order."""
        ran = {name for _, name in self.costs}
        return [name for name in order if name in ran]

    def measured(self, problem: str, name: str, setting: float) -> list[Cost]:
        """The costs from all starts but the one to tune on; none if it did not run."""
        return self.costs.get((problem, name), {}).get(setting, [])[TUNING_RUN + 1 :]

    def starts(self, problem: str) -> int:
        """How many starts there are to measure on."""
        return max(
            len(costs) - 1
            for (its, _), settings in self.costs.items()
            if its == problem
            for costs in settings.values()
        )

    def tuned(self, problem: str, name: str) -> float:
        """The setting that takes the fewest evaluations from the tuning start."""
        settings = self.costs.get((problem, name), {math.nan: [Cost(0, 0)]})
        return min(sorted(settings), key=lambda s: settings[s][TUNING_RUN].evaluations)

    def settings(self, name: str) -> list[float]:
        """Those with which an optimizer ran anywhere."""
        return sorted(
            {s for (_, n), found in self.costs.items() if n == name for s in found}
        )

    def single(self, name: str) -> float:
        """The one setting: of the highest mean of best evaluations over its own."""

        def score(setting: float) -> float:
            total = 0.0
            for problem in self.problems("development"):
                costs = self.costs.get((problem, name), {}).get(setting)
                if costs and math.isfinite(costs[TUNING_RUN].evaluations):
                    total += self._fewest(problem) / costs[TUNING_RUN].evaluations
            return total

        return max(self.settings(name), key=score)

    def _fewest(self, problem: str) -> float:
        return min(
            costs[TUNING_RUN].evaluations
            for (its, _), settings in self.costs.items()
            if its == problem
            for costs in settings.values()
        )


@functools.lru_cache(maxsize=16)
def load(folder: Path, tolerance: str) -> Runs:
    """The runs at one tolerance."""
    facts = results.read(folder, "runs_problems")
    rows = results.read(folder, "runs").sort_values("run", kind="stable")
    evaluations = rows[f"to_{tolerance}"].fillna(np.inf)
    seconds = rows["ms_per_evaluation"] / 1e3 * evaluations
    seconds = seconds.where(evaluations < np.inf, np.inf)
    runs = Runs(dict(zip(facts["problem"], facts["group"], strict=True)), {})
    keys = (rows[column] for column in ("problem", "optimizer", "setting"))
    for problem, name, setting, *cost in zip(*keys, evaluations, seconds, strict=True):
        by_setting = runs.costs.setdefault((problem, name), {})
        by_setting.setdefault(setting, []).append(Cost(*cost))
    for problem in runs.groups:
        kinds = [kind for kind in KINDS if (problem, kind) in runs.costs]
        runs.costs[problem, EIGENBASIS] = runs.costs[problem, kinds[0]]
    return runs


# --- How often -----------------------------------------------------------------


def fractions(costs: Costs) -> dict[str, list[float]]:
    """Percent of the starts from which it ran: cheapest, within twice that, solved.

    Args:
      costs: Of each optimizer, one a start: infinite where it did not solve it, NaN
        where it did not run.
    """
    table = np.array([*costs.values()])
    cheapest = np.nanmin(table, axis=0)
    found = {}
    for name, row in zip(costs, table, strict=True):
        ran = ~np.isnan(row)
        solved = np.isfinite(row[ran])
        counts = [solved & (row[ran] <= n * cheapest[ran]) for n in (1, 2)] + [solved]
        found[name] = [
            100 * count.mean() if ran.any() else math.nan for count in counts
        ]
    return found


def group_fractions(
    runs: Runs, group: str, names: Iterable[str], choose: Choose, by: int = EVALUATIONS
) -> dict[str, list[float]]:
    """The same of all starts on all problems of a group."""
    costs: Costs = {name: [] for name in names}
    for problem in runs.problems(group):
        for name, found in costs.items():
            measured = runs.measured(problem, name, choose(problem, name))
            # Muon and SOAP did not run where there is no matrix.
            unknown = [math.nan] * runs.starts(problem)
            found += [cost[by] for cost in measured] or unknown
    return fractions(costs)


def _shown(percents: list[float]) -> str:
    return "" if math.isnan(percents[0]) else " / ".join(f"{x:.0f}" for x in percents)


def profiles(tolerance: str, by: int, folder: Path = RESULTS) -> str:
    """Cheapest / within twice the cheapest / solved, tuned and not, %."""
    runs = load(folder, tolerance)
    # SOAP's time is that of PyTorch and of carrying gradients over to it.
    names = [n for n in runs.names() if by == EVALUATIONS or n != "SOAP"]
    one = {name: runs.single(name) for name in names}
    choices: dict[str, Choose] = {
        "tuned to each": runs.tuned,
        "one rate": lambda problem, name: one[name],
    }
    columns: dict[str, list[str]] = {
        "the one rate": ["" if n == "L-BFGS" else f"{one[n]:g}" for n in names]
    }
    for title, choose in choices.items():
        for group in GROUPS:
            found = group_fractions(runs, group, names, choose, by)
            columns[f"{group}, {title}"] = [_shown(found[name]) for name in names]
    return markdown(pd.DataFrame(columns, pd.Index(names, name="optimizer")))


def first_steps(tolerance: str, folder: Path = RESULTS) -> str:
    """The three percentages against L-BFGS alone, with one first step for all."""
    runs = load(folder, tolerance)
    names = (EIGENBASIS, "irprop+", "L-BFGS")
    rows = {}
    for setting in runs.settings(EIGENBASIS):

        def choose(problem: str, name: str, setting: float = setting) -> float:
            return runs.tuned(problem, name) if name == "L-BFGS" else setting

        rows[f"{setting:g}"] = {
            f"{name}, {group}": _shown(percents)
            for group in GROUPS
            for name, percents in group_fractions(runs, group, names, choose).items()
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return markdown(table.rename_axis("first step"))


def headline(folder: Path = RESULTS) -> str:
    """How many starts are solved with one setting for all problems."""
    runs = load(folder, TOLERANCES[1])
    names = runs.names()
    one = {name: runs.single(name) for name in names}
    found = [
        group_fractions(runs, group, names, lambda problem, name: one[name])
        for group in GROUPS
    ]

    def both(name: str, which: int) -> str:
        known, new = (percents[name][which] for percents in found)
        return f"{known:.0f} and {new:.0f} %"

    return (
        "With one setting for all problems, `irprop+` in a learned eigenbasis solves"
        f" {both(EIGENBASIS, 2)} of the starts (on problems it was developed on, and on"
        f" others) and is the cheapest on {both(EIGENBASIS, 0)}; plain `irprop+`"
        f" solves {both('irprop+', 2)}, L-BFGS {both('L-BFGS', 2)}."
    )


# --- Problem by problem ----------------------------------------------------------


def evaluations(group: str, tolerance: str, folder: Path = RESULTS) -> str:
    """Median evaluations with the one rate; in brackets how many starts were solved."""
    runs = load(folder, tolerance)
    names = runs.names((*KINDS, *ORDER[1:]))
    one = {name: runs.single(name) for name in names}
    rows = {}
    for problem in runs.problems(group):
        cells, medians = {}, {}
        for name in names:
            costs = [c.evaluations for c in runs.measured(problem, name, one[name])]
            solved = sum(map(math.isfinite, costs))
            cells[name] = f"({solved} of {len(costs)})" if costs else ""
            if costs and solved == len(costs):
                medians[name] = np.median(costs)
                cells[name] = f"{medians[name]:.0f}"
        for name, median in medians.items():
            if median == min(medians.values()):
                cells[name] = f"**{cells[name]}**"
        rows[problem] = cells
    return markdown(pd.DataFrame.from_dict(rows, orient="index").rename_axis("problem"))


# --- Studies -----------------------------------------------------------------


def ablation(folder: Path = RESULTS) -> str:
    """A row a change, a column a problem; in brackets how many runs arrived."""
    rows = results.read(folder, "ablation")
    reached = rows["solved"].str.split(" of ", expand=True)
    cells = rows["evaluations"].map(number)
    rows["cell"] = cells.where(reached[0] == reached[1], "(" + rows["solved"] + ")")
    rows["problem"] += " (" + rows["kind"] + ")"
    wide = rows.pivot(index="change", columns="problem", values="cell")
    wide = wide.loc[in_order(rows, "change"), in_order(rows, "problem")]
    return markdown(wide.rename_axis(index=None, columns=None))


def cost(folder: Path = RESULTS) -> str:
    """Time and memory of one update."""
    rows = results.read(folder, "cost")
    for column in ("milliseconds", "bytes per parameter"):
        rows[column] = rows[column].map(number)
    return markdown(rows.set_index("size"))


def minibatch(folder: Path = RESULTS) -> str:
    """Losses and errors after mini-batches."""
    rows = results.read(folder, "minibatch")
    rows["training loss"] = rows["training loss"].map("{:.4f}".format)
    for column in ("test error, %", "its deviation"):
        rows[column] = rows[column].map("{:.2f}".format)
    return markdown(rows.set_index("batch"))


def valley_picture(folder: Path = RESULTS) -> Figure:
    """The loss over evaluations."""
    rows = results.read(folder, "valley")
    picture = plots.figure(6, 3.4)
    axes = picture.subplots()
    for name, line in rows.groupby("optimizer", sort=False):
        style = plots.style(str(name))
        if name == "irprop+ in_eigenbasis":
            style["color"] = "#D55E00"
        axes.plot(line["evaluations"], line["loss"], **style)
    axes.set(yscale="log", xlabel="evaluations of loss and gradient", ylabel="loss")
    axes.set_title("Rotated quadratic, 30 dimensions, condition 10,000")
    axes.legend()
    return picture


SHOWN = (
    headline,
    *(functools.partial(profiles, tolerance, EVALUATIONS) for tolerance in TOLERANCES),
    functools.partial(profiles, TOLERANCES[1], SECONDS),
    functools.partial(first_steps, TOLERANCES[1]),
    *(functools.partial(evaluations, group, TOLERANCES[1]) for group in GROUPS),
    ablation,
    cost,
    minibatch,
)
PICTURES = {"valley": valley_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
