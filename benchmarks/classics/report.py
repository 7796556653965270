"""Tables and pictures of the experiments from the literature."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import binomtest

from benchmarks.classics.encoders import BOUNDS
from benchmarks.classics.proben1 import FIGURES, PROTOCOLS, TABLES
from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import (
    markdown,
    median_and_quartiles,
    number,
    pivot,
    report,
)

RESULTS = Path(__file__).parent / "results"
MARKERS = {"rprop-": "o", "rprop+": "s", "irprop-": "^", "irprop+": "v"}


# --- Proben1 -----------------------------------------------------------------


def compare(rows: Frame) -> Frame:
    """Set measured means beside the published ones, where there are any.

    They differ by ``apart_sd`` standard deviations of a run, and by ``apart_se``
    standard errors of the difference; both allow for the rounding of what is published.
    """
    published = [
        TABLES[table].published[problem].get(figure, (np.nan, np.nan))
        for table, problem, figure in rows[["table", "problem", "figure"]].to_numpy()
    ]
    rows = rows.assign(
        published_mean=[mean for mean, _ in published],
        published_deviation=[deviation for _, deviation in published],
    ).dropna(subset="published_mean")
    gap = rows["mean"] - rows["published_mean"]
    variance = rows["published_deviation"] ** 2 + rows["deviation"] ** 2
    rounding = 10.0 ** (-2 * rows["figure"].map(FIGURES)) / 12
    return rows.assign(
        apart_sd=gap / (variance / 2 + rounding) ** 0.5,
        apart_se=gap / (variance / rows["runs"] + rounding) ** 0.5,
    )


def _compared(folder: Path) -> Frame:
    return compare(results.read(folder, "proben1"))


def _reproduced(folder: Path) -> Frame:
    """With the settings that reproduce the tables, which come first."""
    rows = _compared(folder)
    first = {name: next(iter(table.settings)) for name, table in TABLES.items()}
    return rows[rows["setting"] == rows["table"].map(first)]


def agreement(folder: Path = RESULTS) -> str:
    """How near measured and published figures are."""
    rows = {}
    groups = _compared(folder).groupby(["table", "setting", "optimizer"], sort=False)
    for key, found in groups:
        deviations, errors = found["apart_sd"].abs(), found["apart_se"].abs()
        rows[", ".join(key)] = {
            "figures": len(found),
            "within 1 sd": f"{(deviations <= 1).mean():.0%}",
            "median, sd": f"{deviations.median():.2f}",
            "largest, sd": f"{deviations.max():.1f}",
            "within 2 se": f"{(errors <= 2).mean():.0%}",
            "root mean square, se": f"{(errors**2).mean() ** 0.5:.1f}",
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return markdown(table.rename_axis("table, setting, variant"))


def figures(table: str, setting: str, folder: Path = RESULTS) -> str:
    """Every published figure of a table beside those of all variants."""
    rows = _compared(folder)
    rows = rows[(rows["table"] == table) & (rows["setting"] == setting)]
    names = rows["problem"] + ", " + rows["figure"].str.replace("_", " ")

    def cell(row: Frame, mean: str, deviation: str) -> str:
        digits = FIGURES[row["figure"]]
        return f"{row[mean]:.{digits}f} ± {row[deviation]:.{digits}f}"

    measured = rows.apply(cell, axis=1, args=("mean", "deviation"))
    published = rows.apply(cell, axis=1, args=("published_mean", "published_deviation"))
    apart = rows["apart_sd"].map(" ({:+.1f})".format)
    rows = rows.assign(name=names, cell=measured + apart, published=published)
    wide = pivot(rows, "name", "optimizer", "cell")
    first = rows.drop_duplicates("name").set_index("name")["published"]
    wide.insert(0, "published", first)
    return markdown(wide.rename_axis("data set, figure"))


def protocols(folder: Path = RESULTS) -> str:
    """How the networks are trained; the results have no part in it."""
    del folder
    table = pd.DataFrame(PROTOCOLS.values(), list(PROTOCOLS))
    return markdown(table.map("{:g}".format).rename_axis("setting"))


def headline_proben1(folder: Path = RESULTS) -> str:
    """How near the rule is that comes nearest, and the others."""
    rows = _reproduced(folder)
    groups = (rows["apart_se"] ** 2).groupby(rows["optimizer"])
    apart = groups.mean().pow(0.5).sort_values()
    near, *others = (f"{value:.1f} for `{name}`" for name, value in apart.items())
    return (
        "Measured and published means differ by this many standard errors (root mean"
        f" square over all figures; 1 is chance): {near}, {', '.join(others)}."
    )


def proben1_picture(folder: Path = RESULTS) -> Figure:
    """Epochs until the stop, measured over published."""
    rows = _reproduced(folder)
    rows = rows[rows["figure"] == "total_epochs"]
    rows = rows.assign(label=rows["problem"] + ", " + rows["table"].str.lower())
    labels = list(rows["label"].unique())
    picture = plots.figure(6, 0.8 + 0.19 * len(labels))
    axes = picture.subplots()
    for variant, marker in MARKERS.items():
        found = rows[rows["optimizer"] == variant].set_index("label")
        ratios = found["mean"] / found["published_mean"]
        places = [labels.index(label) for label in ratios.index]
        color = plots.style(variant)["color"]
        filled = {"mfc": None if variant.endswith("-") else "none", "color": color}
        axes.plot(ratios, places, marker, label=variant, **filled)
    published = rows.drop_duplicates("label").set_index("label").loc[labels]
    band = (published["published_deviation"] / published["published_mean"]).to_numpy()
    places = np.arange(len(labels))
    axes.barh(
        places, 2 * band, left=1 - band, color="0.9", label="published ± sd", zorder=0
    )
    axes.axvline(1, color="0.4", linewidth=1)
    axes.set_yticks(places, labels)
    axes.invert_yaxis()
    axes.set_xlabel("epochs until the stop, measured mean / published mean")
    plots.legend(picture, axes, columns=5)
    return picture


# --- Encoders ----------------------------------------------------------------


def encoders(folder: Path = RESULTS) -> str:
    """Starts that learned, epochs of those that did, ends of those that did not."""
    runs = results.read(folder, "encoders")
    rows = {}
    keys = ["problem", "setting", "optimizer"]
    for (problem, bound, variant), found in runs.groupby(keys, sort=False):
        learned, failed = found[found["learned"]], found[~found["learned"]]
        count = len(learned)
        interval = binomtest(count, len(found)).proportion_ci(method="wilson")
        epochs = median_and_quartiles(learned["epochs"], 4)
        gradient_0 = f"{failed['unmoved'].mean():.0%}" if len(failed) else ""
        rows[f"{problem}, bound {bound:g}, {variant}"] = {
            "learned": f"{count} of {len(found)}",
            "rate, 95 %": f"{interval.low:.0%} to {interval.high:.0%}",
            "epochs (quartiles)": epochs if count else "",
            "largest weight, failed": number(failed["largest_weight"].median()),
            "gradient 0, failed": gradient_0,
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def headline_encoders(folder: Path = RESULTS) -> str:
    """How many starts learn the narrow encoder, with the usual and a lower bound."""
    runs = results.read(folder, "encoders")
    narrow = runs[runs["problem"] == runs["problem"].iloc[-1]]
    ours = narrow[narrow["optimizer"] == "irprop+"]
    counts = ours.groupby("setting")["learned"].sum()
    usual, lower = BOUNDS[0], BOUNDS[2]
    return (
        f"With `irprop+`, {counts[usual]} of {len(ours) // len(counts)} starts learn"
        f" the {narrow['problem'].iloc[0]} encoder with `max_step_size={usual:g}`, and"
        f" {counts[lower]} with {lower:g}."
    )


SHOWN = (
    headline_proben1,
    agreement,
    protocols,
    *(
        functools.partial(figures, name, setting)
        for name, table in TABLES.items()
        for setting in table.settings
    ),
    headline_encoders,
    encoders,
)
PICTURES = {"proben1": proben1_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
