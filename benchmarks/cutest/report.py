"""Tables and pictures: problems solved over noise, and performance profiles."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, performance_profile, report, slashed
from benchmarks.cutest.descend import OPTIMIZERS

RESULTS = Path(__file__).parent / "results"
TOLERANCE = 1e-5
RATIOS = (1, 2, 5, 10, np.inf)
VIEWS = {
    "exact": "exact",
    "other starts": "start",
    "float32": "float32",
    "noise 1e-6": "noise 1e-06",
    "noise 1e-3": "noise 0.001",
    "noise 1e-1": "noise 0.1",
    "rough 1e-3": "rough 0.001",
    "loss 1e-3": "loss 0.001",
    "gradient 1e-3": "gradient 0.001",
    "other units": "units",
}
SHOWN_BY_VIEW = (
    "irprop-",
    "irprop+",
    "eigenbasis",
    "basis of 0.3.2",
    "optax.lbfgs",
    "SciPy BFGS",
    "SciPy L-BFGS-B",
    "optimistix.BFGS",
    "Adam",
    "Prodigy",
)
SIZES, SIZE_NAMES = (0, 10, 50, 200), ("up to 10", "11 to 50", "51 to 200")
LEVELS = {"exact": 1e-8, "noise 1e-06": 1e-6, "noise 0.001": 1e-3, "noise 0.1": 1e-1}
DRAWN = ("eigenbasis", "irprop+", "optax.lbfgs", "SciPy BFGS", "SciPy L-BFGS-B", "Adam")


@functools.cache
def load(folder: Path) -> Frame:
    """All rows, including those of the solver's tolerance."""
    rows = [results.read(folder, "runs")]
    if results.exists(folder, "solver"):
        solver = results.read(folder, "solver")
        solver["view"] = "solver " + solver["solver"].map("{:g}".format)
        rows.append(solver.drop(columns="solver").assign(problem="predator and prey"))
    return pd.concat(rows)


def costs(folder: Path, view: str, tolerance: float = TOLERANCE) -> Frame:
    """Evaluations: one row per optimizer, one column per problem and seed."""
    rows = load(folder).query("view == @view and tolerance == @tolerance")
    wide = rows.set_index(["problem", "seed"])[list(OPTIMIZERS)].T
    return wide.replace(0, np.inf).dropna(how="all")


def solved(folder: Path, view: str, tolerance: float = TOLERANCE) -> Frame:
    """The percentage of runs that solved the problem, by optimizer."""
    return performance_profile(costs(folder, view, tolerance))[np.inf]


def count(folder: Path, view: str) -> int:
    """The number of problems with this view."""
    return load(folder).query("view == @view")["problem"].nunique()


def headline(folder: Path = RESULTS) -> str:
    """The percentages solved exactly, in float32 and under noise."""
    exact, rounded, noisy = (
        solved(folder, view) for view in ("exact", "float32", "noise 0.001")
    )

    def all_three(name: str) -> str:
        percents = (view.get(name, np.nan) for view in (exact, rounded, noisy))
        return " / ".join(f"{percent:.0f}" for percent in percents)

    baselines = [name for name in DRAWN[2:] if name in exact]
    return (
        f"Percentage of {count(folder, 'exact')} CUTEst problems solved to a tolerance"
        " of 1e-5 exactly / in float32 / with noise of 1e-3 in loss and gradient:"
        f" `irprop+` in its eigenbasis {all_three('eigenbasis')}; plain `irprop+`"
        f" {all_three('irprop+')}; "
        + "; ".join(f"{name} {all_three(name)}" for name in baselines)
        + "."
    )


def profile(folder: Path = RESULTS) -> str:
    """Solved within multiples of the cheapest, and to other tolerances, exactly."""
    table = performance_profile(costs(folder, "exact"), RATIOS).map("{:.0f}".format)
    table.columns = [*(f"within {ratio} times" for ratio in RATIOS[:-1]), "solved"]
    for tolerance in (1e-1, 1e-3, 1e-7):
        found = solved(folder, "exact", tolerance)
        table[f"to {tolerance:.0e}"] = found.map("{:.0f}".format)
    return markdown(table)


def unsolved(folder: Path = RESULTS) -> str:
    """How many problems are not solved exactly, and by whom."""
    reached = np.isfinite(costs(folder, "exact"))
    missed = ~reached.loc["eigenbasis"]
    never = ~reached.any()
    return (
        f"Of {missed.size} problems, the eigenbasis does not solve {missed.sum()} to"
        f" 1e-5 exactly. No optimizer solves {never.sum()} of them, because the lowest"
        " loss was found in another view. No optimizer solves more than"
        f" {100 * reached.mean(axis=1).max():.0f} %."
    )


def by_view(folder: Path = RESULTS) -> str:
    """Solved to 1e-3 / 1e-5, in percent; in brackets, how many problems or starts."""
    solvers = [view for view in load(folder)["view"].unique() if "solver" in view]
    rows = {}
    for title, view in (VIEWS | dict(zip(solvers, solvers, strict=True))).items():
        found = costs(folder, view)
        of = count(folder, view) if view in VIEWS.values() else found.shape[1]
        both = {to: solved(folder, view, to) for to in (1e-3, TOLERANCE)}
        rows[f"{title} ({of})"] = slashed(pd.DataFrame(both))
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return markdown(frame.reindex(columns=SHOWN_BY_VIEW).fillna(""))


def margins(folder: Path = RESULTS) -> str:
    """How much more the eigenbasis solves than two methods that are told losses."""
    sentences = []
    for title, view in VIEWS.items():
        reached = 100.0 * np.isfinite(costs(folder, view))
        reached = reached.T.groupby("problem").mean().T
        found = []
        for name in ("SciPy BFGS", "optax.lbfgs"):
            if name in reached.index:
                more = reached.loc["eigenbasis"] - reached.loc[name]
                found.append(f"{round(more.mean()):+d} ± {2 * more.sem():.0f}")
        if len(found) == 2:
            sentences.append(f"{title} {found[0]} / {found[1]}")
    return (
        "Points by which the eigenbasis solves more to 1e-5 than SciPy's BFGS /"
        " optax.lbfgs, with two standard errors over the problems: "
        + "; ".join(sentences)
        + "."
    )


def gains(new: str, old: str, folder: Path = RESULTS) -> str:
    """Solved by one optimizer compared with another, and what it needs."""
    sentences = []
    for title, view in VIEWS.items():
        changes = []
        for tolerance in (1e-3, TOLERANCE):
            found = solved(folder, view, tolerance)
            changes.append(found[new] - found[old])
        pair = costs(folder, view).loc[[old, new]]
        pair = pair.loc[:, np.isfinite(pair).all()]
        ratio = (pair.iloc[1] / pair.iloc[0]).median()
        points = " / ".join(f"{change:+.1f}" for change in changes)
        sentences.append(f"{title} {points}, x{ratio:.2f}")
    return (
        f"Percentage points gained over `{old}` at 1e-3 / 1e-5, and the median ratio of"
        f" evaluations: {'; '.join(sentences)}."
    )


def decision(folder: Path = RESULTS) -> str:
    """Today's basis compared with the earlier one by the rule."""
    return gains("eigenbasis", "basis of 0.3.2", folder)


def by_size(folder: Path = RESULTS) -> str:
    """What the units alone change exactly, by the number of variables."""
    sizes = results.read(folder, "runs_problems").set_index("problem")["size"]
    pair = costs(folder, "exact").loc[["not scaled", "eigenbasis"]].droplevel("seed", 1)
    pair = pair.loc[:, np.isfinite(pair).all()]
    ratios = pair.iloc[1] / pair.iloc[0]
    grouped = ratios.groupby(pd.cut(sizes[ratios.index], SIZES, labels=SIZE_NAMES))
    medians = "; ".join(f"{name} x{x:.2f}" for name, x in grouped.median().items())
    return f"Median ratio of evaluations, by the number of variables: {medians}."


def of_secants(folder: Path = RESULTS) -> str:
    """Estimated step sizes, compared in the same basis by the rule."""
    return gains("secants", "not scaled", folder)


def noise(folder: Path = RESULTS) -> Figure:
    """The percentage solved to two tolerances over the noise level."""
    picture = plots.figure(7, 3)
    axes = picture.subplots(1, 2, sharey=True)
    for panel, tolerance in zip(axes, (1e-3, TOLERANCE), strict=True):
        found = {view: solved(folder, view, tolerance) for view in LEVELS}
        for name in DRAWN:
            percents = [found[view].get(name, np.nan) for view in LEVELS]
            style = plots.style(name)
            panel.plot(list(LEVELS.values()), percents, marker="o", **style)
        panel.set(xscale="log", xlabel="noise", title=f"to {tolerance:.0e}")
        panel.set_xticks(list(LEVELS.values()), ["0", "1e-6", "1e-3", "1e-1"])
    axes[0].set(ylabel="% solved", ylim=(0, 100))
    plots.legend(picture, axes, 3)
    return picture


def profiles(folder: Path = RESULTS) -> Figure:
    """Performance profiles: the percentage solved over multiples of the cheapest."""
    ratios = np.geomspace(1, 100, 100)
    picture = plots.figure(6, 3.4)
    axes = picture.subplots()
    shares = performance_profile(costs(folder, "exact"), ratios)
    for name in DRAWN:
        if name in shares.index:
            axes.step(ratios, shares.loc[name], where="post", **plots.style(name))
    axes.set(xscale="log", xlabel="evaluations, in multiples of the cheapest")
    axes.set(ylabel="% solved to 1e-5", ylim=(0, 100))
    plots.legend(picture, [axes], 3)
    return picture


SHOWN = (headline, profile, unsolved, by_view, margins, decision, by_size, of_secants)
PICTURES = {"noise": noise, "profiles": profiles}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
