"""Tables and the picture of Rprop in a learned eigenbasis."""

from collections.abc import Iterable
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
OTHER_TOLERANCES = ("0.01", "1e-06")
EIGENBASIS = "eigenbasis"
KINDS = ("full matrix", "Kronecker")
BASELINES = ("SciPy BFGS", "SciPy L-BFGS-B", "optax.lbfgs", "irprop+", "Adam")
GROUPS = ("development", "unseen")


def costs(folder: Path, group: str, tolerance: str = TOLERANCE) -> Frame:
    """Evaluations: one row per problem and optimizer, one column per start.

    They are infinite where a run did not reach the tolerance.
    """
    rows = results.read(folder, "runs").merge(results.read(folder, "runs_problems"))
    wide = rows[rows["group"] == group].pivot(
        index=["problem", "optimizer"], columns="run", values=f"to_{tolerance}"
    )
    return wide.fillna(np.inf)


def compared(folder: Path, group: str, tolerance: str = TOLERANCE) -> Frame:
    """Evaluations: one row per optimizer, one column per start from which all ran.

    The eigenbasis is the full matrix where that was run, and Kronecker's otherwise.
    """
    wide = costs(folder, group, tolerance).unstack("problem")
    wide.loc[EIGENBASIS] = wide.loc[KINDS[0]].fillna(wide.loc[KINDS[1]])
    return wide.loc[[EIGENBASIS, *BASELINES]].dropna(axis=1)


def profiles(folder: Path = RESULTS) -> str:
    """Cheapest / within twice the cheapest / solved, and solved to others, in %."""
    columns = {}
    for group in GROUPS:
        found = performance_profile(compared(folder, group))
        columns[f"{group}, to 1e-4"] = slashed(found)
    for group in GROUPS:
        others = {
            tolerance: performance_profile(compared(folder, group, tolerance))[np.inf]
            for tolerance in OTHER_TOLERANCES
        }
        columns[f"{group}, solved to 1e-2 / 1e-6"] = slashed(pd.DataFrame(others))
    return markdown(pd.DataFrame(columns).rename_axis("optimizer"))


def headline(folder: Path = RESULTS) -> str:
    """How many starts each optimizer solves, and on how many the best are cheapest."""
    groups = [compared(folder, group) for group in GROUPS]
    known, new = (group.shape[1] for group in groups)
    found = [performance_profile(group) for group in groups]
    titles = {EIGENBASIS: "`irprop+` in its eigenbasis", "irprop+": "plain `irprop+`"}

    def percentages(names: Iterable[str], ratio: float) -> str:
        return "; ".join(
            f"{titles.get(name, name)} "
            + " / ".join(f"{part.loc[name, ratio]:.0f}" for part in found)
            for name in names
        )

    return (
        f"Percentage of {known} starts on problems that the eigenbasis was developed on"
        f" / of {new} on others, solved to a tolerance of 1e-4 with nothing tuned:"
        f" {percentages((EIGENBASIS, *BASELINES), np.inf)}. Cheapest:"
        f" {percentages((EIGENBASIS, BASELINES[0]), 1)}."
    )


def against_bfgs(folder: Path = RESULTS) -> str:
    """The eigenbasis and SciPy's BFGS where both, or only one, solve a start."""
    facts = []
    for group in GROUPS:
        both = compared(folder, group).loc[[EIGENBASIS, BASELINES[0]]].to_numpy()
        solved = np.isfinite(both)
        ours, theirs = both[:, solved.all(axis=0)]
        alone = np.sum(solved & ~solved[::-1], axis=1)
        facts.append((np.median(ours / theirs), *alone))
    ratios, ours, theirs = zip(*facts, strict=True)
    return (
        f"Where both solve a start, the eigenbasis needs {ratios[0]:.2f} /"
        f" {ratios[1]:.2f} times as many evaluations as SciPy's BFGS (median). Only"
        f" the eigenbasis solves {ours[0]} / {ours[1]} starts, and only SciPy's BFGS"
        f" {theirs[0]} / {theirs[1]}."
    )


def evaluations(folder: Path = RESULTS) -> str:
    """Median evaluations; in brackets how many starts were solved, if not all."""
    problems = results.read(folder, "runs_problems")
    tables = []
    for group in GROUPS:
        cells = median_costs(costs(folder, group), "{:.0f}".format)
        names = problems["problem"][problems["group"] == group]
        cells = cells.reindex(names, columns=[*KINDS, *BASELINES], fill_value="")
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
    rows["optimizer"] = rows["optimizer"].replace(KINDS[0], EIGENBASIS)
    for name, line in rows.groupby("optimizer", sort=False):
        axes.plot(line["evaluations"], line["loss"], **plots.style(str(name)))
    axes.set(yscale="log", xlabel="evaluations of loss and gradient", ylabel="loss")
    axes.set(ylim=(1e-20, 1e6))  # BFGS reaches 0.
    axes.set_title("Rotated quadratic, 30 dimensions, condition 10,000")
    axes.legend()
    return picture


SHOWN = (headline, profiles, against_bfgs, evaluations, ablation)
PICTURES = {"valley": valley_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
