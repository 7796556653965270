"""Tables and the picture of Prechelt's tables, measured again."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, pivot, report
from benchmarks.proben1.tables import FIGURES, TABLES

RESULTS = Path(__file__).parent / "results"
MARKERS = {"rprop-": "o", "rprop+": "s", "irprop-": "^", "irprop+": "v"}


def compare(rows: Frame) -> Frame:
    """Join measured means with the published ones, where there are any.

    They differ by ``apart_sd`` standard deviations of a run, and by ``apart_se``
    standard errors of the difference; both allow for the rounding of published figures.
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
    return compare(results.read(folder, "tables"))


def _reproduced(folder: Path) -> Frame:
    """The rows with the settings that reproduce the tables, which come first."""
    rows = _compared(folder)
    first = {name: next(iter(table.settings)) for name, table in TABLES.items()}
    return rows[rows["setting"] == rows["table"].map(first)]


def agreement(folder: Path = RESULTS) -> str:
    """The agreement of measured and published figures."""
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


def errors(folder: Path = RESULTS) -> str:
    """Published test errors, and those of all variants."""
    rows = _reproduced(folder)
    rows = rows[rows["figure"] == "test_error"]

    def cell(row: Frame, mean: str, deviation: str) -> str:
        return f"{row[mean]:.2f} ± {row[deviation]:.2f}"

    measured = rows.apply(cell, axis=1, args=("mean", "deviation"))
    published = rows.apply(cell, axis=1, args=("published_mean", "published_deviation"))
    names = rows["table"] + ", " + rows["problem"]
    rows = rows.assign(name=names, cell=measured, published=published)
    wide = pivot(rows, "name", "optimizer", "cell")
    first = rows.drop_duplicates("name").set_index("name")["published"]
    wide.insert(0, "published", first)
    return markdown(wide.rename_axis("table, data set"))


def headline(folder: Path = RESULTS) -> str:
    """The differences of all variants, the closest one first."""
    rows = _reproduced(folder)
    groups = (rows["apart_se"] ** 2).groupby(rows["optimizer"])
    apart = groups.mean().pow(0.5).sort_values()
    near, *others = (f"{value:.1f} for `{name}`" for name, value in apart.items())
    return (
        "Measured and published means differ by this many standard errors (root mean"
        f" square over all figures; 1 is chance): {near}, {', '.join(others)}."
    )


def picture(folder: Path = RESULTS) -> Figure:
    """Epochs until the stop, measured over published."""
    rows = _reproduced(folder)
    rows = rows[rows["figure"] == "total_epochs"]
    rows = rows.assign(label=rows["problem"] + ", " + rows["table"].str.lower())
    labels = list(rows["label"].unique())
    drawn = plots.figure(6, 0.8 + 0.19 * len(labels))
    axes = drawn.subplots()
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
    plots.legend(drawn, axes, columns=5)
    return drawn


SHOWN = (headline, agreement, errors)
PICTURES = {"tables": picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
