"""Tables and pictures of the comparisons on the full batch."""

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.common import plots, results
from benchmarks.common.optimizers import OPTIMIZERS, TUNING_FREE
from benchmarks.common.results import Frame
from benchmarks.common.tables import (
    markdown,
    median_costs,
    number,
    performance_profile,
    report,
    slashed,
)
from benchmarks.full_batch.baselines import BOUNDED, DEFAULT, EACH, ONE, TOLERANCES

RESULTS = Path(__file__).parent / "results"
TUNINGS = {DEFAULT: "nothing tuned", EACH: "tuned to each", ONE: "one setting for all"}


# --- Initial step size -------------------------------------------------------


def median_gradients(folder: Path) -> Frame:
    """By problem, optimizer and setting; infinite unless all starts arrived."""
    rows = results.read(folder, "insensitivity")
    rows = rows.assign(evaluations=rows["evaluations"].fillna(np.inf))
    keys = ["problem", "optimizer", "setting"]
    groups = rows.groupby(keys, sort=False, dropna=False)["evaluations"]
    return groups.median().where(groups.max() < np.inf, np.inf)


def insensitivity(folder: Path = RESULTS) -> str:
    """Gradients at the best setting; in brackets, how many settings arrive."""
    groups = median_gradients(folder).groupby(level=[0, 1], sort=False)
    arrived = groups.agg(lambda found: np.isfinite(found).sum()).astype(int)
    counts = arrived.astype(str) + " of " + groups.size().astype(str)
    cells = groups.min().map("{:,.0f}".format) + " (" + counts + ")"
    cells = cells.where(arrived > 0, "-").unstack("problem", sort=False)
    facts = results.read(folder, "insensitivity_problems").set_index("problem")
    targets = facts["target"].map("{:g}".format)
    return markdown(cells.rename(columns=lambda name: f"{name}, to {targets[name]}"))


def headline_insensitivity(folder: Path = RESULTS) -> str:
    """How much the initial step size matters on the first problem."""
    medians = median_gradients(folder)
    problem = medians.index[0][0]
    found = medians[problem]["irprop-"]
    near = found.loc[0.99e-6:1.01]
    adam = medians[problem]["Adam"]
    return (
        f"On {problem}, `irprop-` needs {near.min():.0f} to {near.max():.0f} gradients"
        f" from every initial step size between 1e-6 and 1; Adam needs {adam.min():.0f}"
        f" at the best of {len(adam)} learning rates."
    )


def insensitivity_picture(folder: Path = RESULTS) -> Figure:
    """Gradients to the target over the setting, one panel per problem.

    Of the optimizers without a setting, only L-BFGS is drawn.
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
            if pd.isna(settings).all():
                panel.axhline(values[0], linewidth=1.2, **style)
            else:
                panel.plot(settings, values, **style)
        panel.set(xscale="log", yscale="log", ylim=(None, 1.6 * facts["budget"]))
        panel.set_title(f"{problem}\nto a loss of {facts['target']:g}")
        panel.set_xlabel("initial step size or learning rate")
        panel.yaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("gradients to the target (median)")
    plots.legend(picture, axes, columns=5)
    return picture


# --- Baselines ---------------------------------------------------------------


def _costs(folder: Path, tuning: str, tolerance: float, cost: str) -> Frame:
    """By problem, optimizer and run; infinite where not solved."""
    rows = results.read(folder, "baselines")
    rows = rows[(rows["tuning"] == tuning) & (rows["tolerance"] == tolerance)]
    return rows.set_index(["problem", "optimizer", "run"])[cost].fillna(np.inf)


def _profile(
    folder: Path,
    tuning: str,
    tolerance: float,
    *ratios: Iterable[float],
    cost: str = "evaluations",
) -> Frame:
    costs = _costs(folder, tuning, tolerance, cost).unstack(["problem", "run"])
    return performance_profile(costs.drop(BOUNDED.name, errors="ignore"), *ratios)


def profiles(folder: Path = RESULTS) -> str:
    """Percent of all starts: cheapest / within twice the cheapest / solved."""
    columns = {
        f"{name}, to {tolerance:g}": slashed(_profile(folder, tuning, tolerance))
        for (tuning, name), tolerance in itertools.product(TUNINGS.items(), TOLERANCES)
        if tuning == DEFAULT or tolerance == TOLERANCES[0]
    }
    seconds = _profile(folder, EACH, TOLERANCES[0], cost="seconds")
    columns[f"tuned to each, to {TOLERANCES[0]:g}, in seconds"] = slashed(seconds)
    table = pd.DataFrame(columns).fillna("")
    order = [optimizer.name for optimizer in (*OPTIMIZERS, *TUNING_FREE)]
    return markdown(table.loc[[name for name in order if name in table.index]])


def costs(folder: Path = RESULTS) -> str:
    """Median evaluations with the setting tuned to each problem, one row per problem.

    If not all starts are solved, how many are, in brackets; the best is bold.
    """
    tables = []
    for tolerance in TOLERANCES:
        costs = _costs(folder, EACH, tolerance, "evaluations").unstack(sort=False)
        tables.append(median_costs(costs))
    facts = results.read(folder, "baselines_problems").set_index("problem")
    facts = facts["description"] + "; " + facts["budget"].map(number) + " gradients"
    table = tables[0] + " / " + tables[1]
    shown = ["irprop+", "irprop-", "Adam", "L-BFGS"]
    table = table[[name for name in shown if name in table]]
    table.insert(0, "description; budget", facts)
    return markdown(table)


def _solved(folder: Path, problem: str, name: str) -> str:
    costs = _costs(folder, DEFAULT, TOLERANCES[0], "evaluations").unstack("run")
    found = costs.loc[(problem, name)]
    return f"{(found < np.inf).sum()} of {len(found)}"


def saturation(folder: Path = RESULTS) -> str:
    """The effect of the upper bound of the step sizes on saturating units."""
    rows = results.read(folder, "baselines")
    (name,) = (p for p in rows["problem"].unique() if p.startswith("encoder"))
    return (
        f"On the {name}, with nothing tuned, `irprop-` solves"
        f" {_solved(folder, name, 'irprop-')} starts with its default bound of 50, and"
        f" {_solved(folder, name, BOUNDED.name)} with `max_step_size=0.5`."
    )


def headline_baselines(folder: Path = RESULTS) -> str:
    """How many starts are solved, tuned and not."""
    tolerance = TOLERANCES[0]
    solved = {tuning: _profile(folder, tuning, tolerance) for tuning in TUNINGS}

    def three(optimizer: str) -> str:
        found = [solved[tuning].loc[optimizer, np.inf] for tuning in TUNINGS]
        return "{:.0f}, {:.0f} and {:.0f} %".format(*found)

    starts = _costs(folder, DEFAULT, tolerance, "evaluations").unstack(1).shape[0]
    return (
        f"To a tolerance of {tolerance:g}: with nothing tuned, tuned to each problem,"
        f" and with one setting tuned over all, `irprop-` solves {three('irprop-')} of"
        f" {starts} starts, Adam {three('Adam')}, L-BFGS {three('L-BFGS')}; tuned to"
        f" each, L-BFGS is the cheapest on {solved[EACH].loc['L-BFGS', 1]:.0f} %."
    )


def baselines_picture(folder: Path = RESULTS) -> Figure:
    """Performance profiles: one panel per way of tuning."""
    ratios = np.geomspace(1, 100, 200)
    picture = plots.figure(9, 3.6)
    axes = picture.subplots(1, len(TUNINGS), sharex=True, sharey=True)
    for panel, (tuning, name) in zip(axes, TUNINGS.items(), strict=True):
        found = _profile(folder, tuning, TOLERANCES[0], ratios)
        for optimizer, row in found.iterrows():
            style = plots.style(str(optimizer))
            if optimizer in {free.name for free in TUNING_FREE}:
                style["label"] = "designed to need no tuning"
            panel.step(ratios, row, where="post", **style)
        panel.set(xscale="log", xlim=(1, ratios[-1]), ylim=(0, 101), title=name)
        panel.set_xlabel("evaluations / the cheapest's")
    axes[0].set_ylabel("solved, % of all starts")
    plots.legend(picture, axes, columns=6)
    return picture


SHOWN = (
    headline_insensitivity,
    insensitivity,
    headline_baselines,
    profiles,
    saturation,
    costs,
)
PICTURES = {"insensitivity": insensitivity_picture, "baselines": baselines_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
