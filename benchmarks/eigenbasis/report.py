"""Tables and the picture of Rprop in a learned eigenbasis."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import (
    markdown,
    median_costs,
    number,
    performance_profile,
    pivot,
    report,
    slashed,
)
from benchmarks.eigenbasis.run import TOLERANCES

RESULTS = Path(__file__).parent / "results"
H100 = RESULTS / "h100"
EIGENBASIS = "eigenbasis"
ORDER = (EIGENBASIS, "irprop+", "L-BFGS", "Adam", "Muon", "SOAP")
KINDS = ("full matrix", "Kronecker")
GROUPS = ("development", "unseen")
TUNING_RUN = 0


# --- All runs ----------------------------------------------------------------


@functools.lru_cache
def load(folder: Path, tolerance: str) -> Frame:
    """A row a group, problem, optimizer and setting; all costs of all runs.

    Costs are infinite where a run did not get to the tolerance. The eigenbasis is the
    full matrix where that was run, and else Kronecker's. What has no setting, has 0.
    """
    rows = results.read(folder, "runs").fillna({"setting": 0})
    rows["evaluations"] = rows[f"to_{tolerance}"]
    rows["seconds"] = rows["evaluations"] * rows["ms_per_evaluation"] / 1e3
    costs = ["evaluations", "seconds"]
    rows[costs] = rows[costs].fillna(np.inf)
    small = rows.loc[rows["optimizer"] == KINDS[0], "problem"].unique()
    kind = np.where(rows["problem"].isin(small), *KINDS)
    rows = pd.concat(
        [rows, rows[rows["optimizer"] == kind].assign(optimizer=EIGENBASIS)]
    )
    rows = rows.merge(results.read(folder, "runs_problems"), sort=False)
    keys = ["group", "problem", "optimizer", "setting"]
    return rows.pivot(index=keys, columns="run", values=costs)


def tuned(runs: Frame) -> Frame:
    """The rows with the fewest evaluations from the tuning start on each problem."""
    costs = runs["evaluations", TUNING_RUN]
    return runs.loc[costs.groupby(["group", "problem", "optimizer"]).idxmin()]


def one_setting(runs: Frame) -> Frame:
    """By optimizer: that of the highest mean of best evaluations over its own."""
    costs = runs["evaluations", TUNING_RUN]
    scores = costs.groupby("problem").transform("min") / costs
    scores = scores.where(scores.index.get_level_values("group") == GROUPS[0], 0)
    scores = scores.groupby(["optimizer", "setting"]).sum().unstack()
    return scores.idxmax(axis=1)


def with_settings(runs: Frame, settings: Frame) -> Frame:
    """The rows with these settings, by optimizer."""
    index = runs.index
    wanted = index.get_level_values("optimizer").map(settings)
    return runs[index.get_level_values("setting") == wanted]


def measured(rows: Frame, group: str, cost: str = "evaluations") -> Frame:
    """A row a problem of a group and an optimizer, a column a start but the first."""
    costs = rows.loc[group, cost].drop(columns=TUNING_RUN)
    return costs.droplevel("setting")


def fractions(
    rows: Frame, group: str, names: Sequence[str], cost: str = "evaluations"
) -> Frame:
    """Percent of the starts from which it ran: cheapest, within twice that, solved."""
    wide = measured(rows, group, cost).unstack("problem")
    return performance_profile(wide.reindex(names))


def profiles(tolerance: str, cost: str, folder: Path = RESULTS) -> str:
    """Cheapest / within twice the cheapest / solved, tuned and not, %."""
    runs = load(folder, tolerance)
    # SOAP's time is that of PyTorch and of carrying gradients over to it.
    names = [name for name in ORDER if cost == "evaluations" or name != "SOAP"]
    one = one_setting(runs)
    table = {"the one rate": one.reindex(names).replace(0, np.nan).map(number)}
    choices = {"tuned to each": tuned(runs), "one rate": with_settings(runs, one)}
    for title, rows in choices.items():
        for group in GROUPS:
            found = fractions(rows, group, names, cost)
            table[f"{group}, {title}"] = slashed(found)
    return markdown(pd.DataFrame(table).rename_axis("optimizer"))


def first_steps(tolerance: str, folder: Path = RESULTS) -> str:
    """The three percentages against L-BFGS alone, with one first step for all."""
    runs = load(folder, tolerance)
    names = (EIGENBASIS, "irprop+", "L-BFGS")
    table = {}
    for setting in runs.xs(EIGENBASIS, level="optimizer").index.unique("setting"):
        rows = with_settings(runs, dict(zip(names, (setting, setting, 0), strict=True)))
        table[number(setting)] = {
            f"{name}, {group}": cell
            for group in GROUPS
            for name, cell in slashed(fractions(rows, group, names)).items()
        }
    table = pd.DataFrame.from_dict(table, orient="index")
    return markdown(table.rename_axis("first step"))


def headline(folder: Path = RESULTS) -> str:
    """How many starts are solved with one setting for all problems."""
    runs = load(folder, TOLERANCES[1])
    rows = with_settings(runs, one_setting(runs))
    found = [fractions(rows, group, ORDER) for group in GROUPS]

    def both(name: str, ratio: float) -> str:
        known, new = (percents.loc[name, ratio] for percents in found)
        return f"{known:.0f} and {new:.0f} %"

    return (
        "With one setting for all problems, `irprop+` in a learned eigenbasis solves"
        f" {both(EIGENBASIS, np.inf)} of the starts (on problems it was developed on,"
        f" and on others) and is the cheapest on {both(EIGENBASIS, 1)}; plain `irprop+`"
        f" solves {both('irprop+', np.inf)}, L-BFGS {both('L-BFGS', np.inf)}."
    )


def evaluations(group: str, tolerance: str, folder: Path = RESULTS) -> str:
    """Median evaluations with the one rate; in brackets how many starts were solved."""
    runs = load(folder, tolerance)
    rows = with_settings(runs, one_setting(runs).drop(EIGENBASIS))
    cells = median_costs(measured(rows, group), "{:.0f}".format)
    problems = results.read(folder, "runs_problems")["problem"]
    problems = [problem for problem in problems if problem in cells.index]
    names = (*KINDS, *ORDER[1:])
    return markdown(cells.reindex(problems, columns=names, fill_value=""))


# --- Studies -----------------------------------------------------------------


def ablation(folder: Path = RESULTS) -> str:
    """A row a change, a column a problem; in brackets how many runs arrived."""
    rows = results.read(folder, "ablation")
    reached = rows["solved"].str.split(" of ", expand=True)
    cells = rows["evaluations"].map(number)
    rows["cell"] = cells.where(reached[0] == reached[1], "(" + rows["solved"] + ")")
    rows["problem"] += " (" + rows["kind"] + ")"
    return markdown(pivot(rows, "change", "problem", "cell").rename_axis(index=None))


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
        axes.plot(line["evaluations"], line["loss"], **plots.style(str(name)))
    axes.set(yscale="log", xlabel="evaluations of loss and gradient", ylabel="loss")
    axes.set_title("Rotated quadratic, 30 dimensions, condition 10,000")
    axes.legend()
    return picture


SHOWN = (
    headline,
    *(
        functools.partial(profiles, tolerance, "evaluations")
        for tolerance in TOLERANCES
    ),
    functools.partial(profiles, TOLERANCES[1], "seconds"),
    functools.partial(first_steps, TOLERANCES[1]),
    *(functools.partial(evaluations, group, TOLERANCES[1]) for group in GROUPS),
    ablation,
    cost,
    minibatch,
)
PICTURES = {"valley": valley_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
