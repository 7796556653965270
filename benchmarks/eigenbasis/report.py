"""Tables and the picture of Rprop in a learned eigenbasis."""

import functools
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

RESULTS = Path(__file__).parent / "results"
TOLERANCE = "0.0001"
EIGENBASIS = "eigenbasis"
ORDER = (EIGENBASIS, "irprop+", "L-BFGS", "Adam", "Muon")
KINDS = ("full matrix", "Kronecker")
GROUPS = ("development", "unseen")
TUNING_RUN = 0
# Defaults of the libraries; 0 for optimizers without a setting.
DEFAULTS = dict.fromkeys((EIGENBASIS, *KINDS, "irprop+"), 0.01)
DEFAULTS |= {"L-BFGS": 0, "Adam": 0.001}


@functools.lru_cache
def load(folder: Path) -> Frame:
    """Costs of all runs: one row per group, problem, optimizer and setting.

    Costs are infinite where a run did not reach the tolerance. The eigenbasis is the
    full matrix where that was run, and Kronecker's otherwise.
    """
    rows = results.read(folder, "runs").fillna({"setting": 0})
    rows["evaluations"] = rows[f"to_{TOLERANCE}"]
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
    """The rows with the fewest evaluations from the tuning start of each problem."""
    costs = runs["evaluations", TUNING_RUN]
    return runs.loc[costs.groupby(["group", "problem", "optimizer"]).idxmin()]


def untuned(runs: Frame) -> Frame:
    """The rows with the default setting, of optimizers that have one."""
    wanted = runs.index.get_level_values("optimizer").map(DEFAULTS)
    return runs[runs.index.get_level_values("setting") == wanted]


def measured(rows: Frame, group: str, cost: str = "evaluations") -> Frame:
    """One row per problem of a group and optimizer; all starts but the first."""
    costs = rows.loc[group, cost].drop(columns=TUNING_RUN)
    return costs.droplevel("setting")


def fractions(rows: Frame, group: str, cost: str = "evaluations") -> Frame:
    """Percent of the starts: cheapest, within twice the cheapest, solved."""
    wide = measured(rows, group, cost).unstack("problem")
    return performance_profile(wide.loc[[name for name in ORDER if name in wide.index]])


def profiles(folder: Path = RESULTS) -> str:
    """Cheapest / within twice the cheapest / solved, %, tuned and not."""
    runs = load(folder)
    columns = {
        f"{group}, {title}": slashed(fractions(rows, group, cost))
        for title, rows, cost in (
            ("nothing tuned", untuned(runs), "evaluations"),
            ("tuned to each", tuned(runs), "evaluations"),
            ("tuned, in seconds", tuned(runs), "seconds"),
        )
        for group in GROUPS
    }
    table = pd.DataFrame(columns).reindex(ORDER).dropna(how="all").fillna("")
    return markdown(table.rename_axis("optimizer"))


def headline(folder: Path = RESULTS) -> str:
    """How many starts are solved with nothing tuned."""
    rows = untuned(load(folder))
    found = [fractions(rows, group) for group in GROUPS]
    known, new = (measured(rows, g).xs(EIGENBASIS, level=1).size for g in GROUPS)

    def both(name: str, ratio: float) -> str:
        known, new = (percents.loc[name, ratio] for percents in found)
        return f"{known:.0f} and {new:.0f} %"

    return (
        f"To a tolerance of {float(TOLERANCE):g}, with nothing tuned, `irprop+` in a"
        f" learned eigenbasis solves {both(EIGENBASIS, np.inf)} of the starts (of"
        f" {known} on problems it was developed on, and of {new} on others) and is the"
        f" cheapest on {both(EIGENBASIS, 1)}; L-BFGS solves {both('L-BFGS', np.inf)},"
        f" and is the cheapest on {both('L-BFGS', 1)}; plain `irprop+` solves"
        f" {both('irprop+', np.inf)}."
    )


def evaluations(folder: Path = RESULTS) -> str:
    """Median evaluations, nothing tuned; in brackets how many starts were solved."""
    rows = untuned(load(folder))
    rows = rows.drop(EIGENBASIS, level="optimizer")
    problems = results.read(folder, "runs_problems")
    tables = []
    for group in GROUPS:
        cells = median_costs(measured(rows, group), "{:.0f}".format)
        names = problems["problem"][problems["group"] == group]
        cells = cells.reindex(names, columns=(*KINDS, *ORDER[1:4]), fill_value="")
        tables.append(cells.rename(index=lambda name, group=group: f"{group}: {name}"))
    return markdown(pd.concat(tables))


def ablation(folder: Path = RESULTS) -> str:
    """One row per change, one column per problem; in brackets how many runs arrived."""
    rows = results.read(folder, "ablation")
    reached = rows["solved"].str.split(" of ", expand=True)
    cells = rows["evaluations"].map(number)
    rows["cell"] = cells.where(reached[0] == reached[1], "(" + rows["solved"] + ")")
    rows["problem"] += " (" + rows["kind"] + ")"
    return markdown(pivot(rows, "change", "problem", "cell").rename_axis(index=None))


def valley_picture(folder: Path = RESULTS) -> Figure:
    """The loss over evaluations."""
    rows = results.read(folder, "runs_valley")
    picture = plots.figure(6, 3.4)
    axes = picture.subplots()
    for name, line in rows.groupby("optimizer", sort=False):
        axes.plot(line["evaluations"], line["loss"], **plots.style(str(name)))
    axes.set(yscale="log", xlabel="evaluations of loss and gradient", ylabel="loss")
    axes.set_title("Rotated quadratic, 30 dimensions, condition 10,000")
    axes.legend()
    return picture


SHOWN = (headline, profiles, evaluations, ablation)
PICTURES = {"valley": valley_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
