"""Tables and pictures of the comparison on whole data sets."""

import functools
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common import plots, results
from benchmarks.common.optimizers import TUNING_FREE
from benchmarks.common.results import Frame
from benchmarks.common.tables import (
    bold_lowest,
    markdown,
    median_costs,
    number,
    performance_profile,
    pivot,
    report,
    slashed,
)
from benchmarks.full_batch.rivals import EACH, ONE, TOLERANCES

RESULTS = Path(__file__).parent / "results"
TUNINGS = {EACH: "tuned to each problem", ONE: "one setting for all"}


# --- Initial step size -------------------------------------------------------


def median_gradients(folder: Path) -> Frame:
    """By problem, optimizer and setting; infinite unless all starts arrived."""
    rows = results.read(folder, "insensitivity")
    rows = rows.assign(evaluations=rows["evaluations"].fillna(np.inf))
    keys = ["problem", "optimizer", "setting"]
    groups = rows.groupby(keys, sort=False, dropna=False)["evaluations"]
    return groups.median().where(groups.max() < np.inf, np.inf)


def _count(gradients: float) -> str:
    if pd.isna(gradients):
        return ""
    return f"{gradients:,.0f}" if np.isfinite(gradients) else "-"


def insensitivity(folder: Path = RESULTS) -> str:
    """What the settings mean for each optimizer on each problem."""
    medians = median_gradients(folder)
    seconds = results.read(folder, "insensitivity_seconds")
    seconds = seconds.groupby(["problem", "optimizer"])["median_seconds"].min()
    rows = {}
    for key, found in medians.groupby(level=[0, 1], sort=False):
        arrived = found[np.isfinite(found)]
        setting = arrived.idxmin()[-1] if len(arrived) else np.nan
        rows[", ".join(key)] = {
            "settings that reach the target": f"{len(arrived)} of {len(found)}",
            "of these within 2x of the best": (arrived <= 2 * arrived.min()).sum(),
            "best setting": number(setting, 2),
            "gradients there": _count(arrived.min()),
            "at the worst setting": _count(found.max()),
            "ms at the best": number(1e3 * seconds.get(key, np.nan)),
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def targets(folder: Path = RESULTS) -> str:
    """What is to be reached."""
    rows = results.read(folder, "insensitivity_problems").set_index("problem")
    table = rows.assign(
        target=rows["target"].map("{:g}".format), budget=rows["budget"].map(_count)
    )
    return markdown(table.rename(columns={"budget": "gradients allowed"}))


def headline_insensitivity(folder: Path = RESULTS) -> str:
    """How far off a first step may be, on the first problem."""
    medians = median_gradients(folder)
    problem = medians.index[0][0]
    found = medians[problem]["irprop-"]
    near = found.loc[0.99e-6:1.01]
    adam = medians[problem]["Adam"]
    return (
        f"On {problem}, `irprop-` needs {near.min():.0f} to {near.max():.0f} gradients"
        f" from any first step between 1e-6 and 1; Adam at the best of"
        f" {len(adam)} rates needs {adam.min():.0f}."
    )


def insensitivity_picture(folder: Path = RESULTS) -> Figure:
    """Gradients to the target over the setting, a panel a problem.

    Of what has no setting, only L-BFGS is drawn: the others are lines on lines.
    """
    medians = median_gradients(folder).replace(np.inf, np.nan)
    left_out = [optimizer.name for optimizer in TUNING_FREE]
    medians = medians.drop(left_out, level="optimizer", errors="ignore")
    problems = results.read(folder, "insensitivity_problems").set_index("problem")
    picture = plots.figure(2.6 * len(problems) + 0.4, 3.6)
    axes = np.ravel(picture.subplots(1, len(problems), sharex=True))
    for panel, (problem, facts) in zip(axes, problems.iterrows(), strict=True):
        for optimizer, found in medians[problem].groupby(level=0, sort=False):
            style = plots.style(str(optimizer))
            settings, values = found.index.get_level_values(-1), found.to_numpy()
            if optimizer == "torch.optim.Rprop":
                style |= {"linestyle": "", "marker": "o", "mfc": "none"}
            if pd.isna(settings).all():
                panel.axhline(values[0], linewidth=1.2, **style)
            else:
                panel.plot(settings, values, **style)
        panel.set(xscale="log", yscale="log", ylim=(None, 1.6 * facts["budget"]))
        panel.set_title(f"{problem}\nto a loss of {facts['target']:g}")
        panel.set_xlabel("initial step or rate")
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("gradients to the target (median)")
    plots.legend(picture, axes, columns=5)
    return picture


# --- Rivals ------------------------------------------------------------------


def _costs(folder: Path, tuning: str, tolerance: float, cost: str) -> Frame:
    """By problem, optimizer and run; infinite where not solved."""
    rows = results.read(folder, "rivals")
    rows = rows[(rows["tuning"] == tuning) & (rows["tolerance"] == tolerance)]
    return rows.set_index(["problem", "optimizer", "run"])[cost].fillna(np.inf)


def _profile(
    folder: Path, tuning: str, tolerance: float, cost: str, *ratios: Iterable[float]
) -> Frame:
    costs = _costs(folder, tuning, tolerance, cost)
    return performance_profile(costs.unstack(["problem", "run"], sort=False), *ratios)


def profiles(cost: str, folder: Path = RESULTS) -> str:
    """Percent of all starts: cheapest / within twice the cheapest / solved."""
    columns = {
        f"{name}, to {tolerance:g}": slashed(_profile(folder, tuning, tolerance, cost))
        for tolerance, (tuning, name) in itertools.product(TOLERANCES, TUNINGS.items())
    }
    return markdown(pd.DataFrame(columns))


def untuned(folder: Path = RESULTS) -> str:
    """The same with nothing tuned, in evaluations."""
    rows = results.read(folder, "rivals_untuned").set_index(["problem", "run"])
    columns = {}
    for tolerance, part in rows.groupby("tolerance", sort=False):
        costs = part.drop(columns="tolerance").fillna(np.inf).T
        columns[f"to {tolerance:g}"] = slashed(performance_profile(costs))
    return markdown(pd.DataFrame(columns))


def single_settings(folder: Path = RESULTS) -> str:
    """The one setting for all problems."""
    rows = results.read(folder, "rivals")
    rows = rows[rows["tuning"] == ONE].drop_duplicates(["tolerance", "optimizer"])
    table = pivot(rows, "optimizer", "tolerance", "setting")
    table.columns = [f"to {tolerance:g}" for tolerance in table]
    return markdown(table.map(lambda setting: number(setting, 2)))


def costs(tolerance: float, folder: Path = RESULTS) -> str:
    """Median evaluations, or how many starts were solved if not all; the best bold."""
    costs = _costs(folder, EACH, tolerance, "evaluations")
    return markdown(median_costs(costs.unstack(sort=False)))


def held_out(folder: Path = RESULTS) -> str:
    """Test errors with early stopping: mean and standard deviation."""
    rows = results.read(folder, "rivals_held_out")
    groups = rows.groupby(["problem", "optimizer"], sort=False)["error"]
    means, deviations = groups.mean(), groups.std(ddof=0)
    cells = means.map(number) + " ± " + deviations.map(lambda x: number(x, 2))
    table = bold_lowest(cells.unstack(sort=False), means.unstack(sort=False))
    names = results.read(folder, "rivals_problems").set_index("problem")["error_name"]
    return markdown(table.rename(index=lambda name: f"{name}, {names[name]}"))


def problems(folder: Path = RESULTS) -> str:
    """What is minimized."""
    rows = results.read(folder, "rivals_problems").set_index("problem")
    table = rows[["description", "budget"]]
    return markdown(table.rename(columns={"budget": "gradients allowed"}))


def headline_rivals(folder: Path = RESULTS) -> str:
    """How many starts are solved, tuned and not."""
    solved = {
        tuning: _profile(folder, tuning, TOLERANCES[0], "evaluations")
        for tuning in TUNINGS
    }

    def both(optimizer: str) -> str:
        each, one = (solved[tuning].loc[optimizer, np.inf] for tuning in TUNINGS)
        return f"{each:.0f} and {one:.0f} %"

    return (
        "Tuned to each problem, and with one setting for all, `irprop-` solves"
        f" {both('irprop-')} of all starts, Adam {both('Adam')}, L-BFGS"
        f" {both('L-BFGS')}; L-BFGS is the cheapest on"
        f" {solved[EACH].loc['L-BFGS', 1]:.0f} %."
    )


def rivals_picture(folder: Path = RESULTS) -> Figure:
    """Performance profiles: a row a way of tuning, a column a tolerance."""
    ratios = np.geomspace(1, 100, 200)
    picture = plots.figure(8, 6)
    axes = picture.subplots(2, 2, sharex=True, sharey=True)
    panels = itertools.product(TUNINGS.items(), TOLERANCES)
    for panel, ((tuning, name), tolerance) in zip(axes.flat, panels, strict=True):
        found = _profile(folder, tuning, tolerance, "evaluations", ratios)
        for optimizer, row in found.iterrows():
            panel.step(ratios, row, where="post", **plots.style(str(optimizer)))
        panel.set(xscale="log", xlim=(1, ratios[-1]), ylim=(0, 101))
        panel.set_title(f"{name}, tolerance {tolerance:g}")
    for panel in axes[-1]:
        panel.set_xlabel("evaluations, as a multiple of the cheapest's")
    picture.supylabel("solved, % of all starts on all problems")
    plots.legend(picture, axes, columns=5)
    return picture


SHOWN = (
    headline_insensitivity,
    targets,
    insensitivity,
    headline_rivals,
    functools.partial(profiles, "evaluations"),
    functools.partial(profiles, "seconds"),
    untuned,
    single_settings,
    *(functools.partial(costs, tolerance) for tolerance in TOLERANCES),
    held_out,
    problems,
)
PICTURES = {"insensitivity": insensitivity_picture, "rivals": rivals_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
