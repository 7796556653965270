"""Markdown tables from data frames, their place in README files, and reports."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from cogapp import Cog
from matplotlib.figure import Figure

from benchmarks.common import plots
from benchmarks.common.results import Frame

Table = Callable[[Path], str]
Picture = Callable[[Path], Figure]


def markdown(frame: Frame) -> str:
    """A table: the index aligned to the left, all other columns to the right."""
    align = ["left"] + ["right"] * frame.shape[1]
    return str(frame.to_markdown(disable_numparse=True, colalign=align))


def number(value: float, digits: int = 3) -> str:
    """Significant digits with thousands separators; empty if there is no number."""
    if pd.isna(value):
        return ""
    if abs(value) >= 10**digits and np.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def median_and_quartiles(values: Frame, digits: int = 3) -> str:
    """The median and, in brackets, the quartiles."""
    quartiles = values.quantile([0.25, 0.5, 0.75])
    low, middle, high = (number(value, digits) for value in quartiles)
    return f"{middle} ({low} to {high})"


def bold_lowest(cells: Frame, numbers: Frame) -> Frame:
    """The lowest number of each row in bold type, if any is finite."""
    lowest = numbers.min(axis=1)
    best = numbers.eq(lowest, axis=0) & np.isfinite(numbers)
    return cells.where(~best, "**" + cells + "**")


def performance_profile(
    costs: Frame, ratios: Iterable[float] = (1, 2, np.inf)
) -> Frame:
    """The percentage of starts solved within multiples of the cheapest's cost.

    See Dolan and Moré (2002, https://doi.org/10.1007/s101070100263).

    Args:
      costs: One row per optimizer, one column per start; infinite where not solved, NaN
        where it did not run. Starts that no optimizer solves count as unsolved.
      ratios: The multiples; by default, cheapest, within twice the cheapest, and
        solved.

    Returns:
      One row per optimizer, one column per ratio, in percent of the starts from which
      it ran.
    """
    ran = costs.notna().sum(axis=1)
    counts = {
        ratio: ((costs <= ratio * costs.min()) & (costs < np.inf)).sum(axis=1)
        for ratio in ratios
    }
    return 100 * pd.DataFrame(counts).div(ran, axis=0)


def slashed(percentages: Frame) -> Frame:
    """The percentages of each row in one cell; empty if there are none."""
    cells = percentages.apply(lambda row: " / ".join(f"{x:.0f}" for x in row), axis=1)
    return cells.where(percentages.notna().all(axis=1), "")


def median_costs(costs: Frame, text: Callable[[float], str] = number) -> Frame:
    """Medians in columns by optimizer, or how many starts are solved if not all are.

    Costs have one row per problem and optimizer, one column per start. The lowest
    median is bold.
    """
    solved, starts = (costs < np.inf).sum(axis=1), costs.notna().sum(axis=1)
    medians = costs.median(axis=1).where(solved == starts, np.inf)
    partly = "(" + solved.astype(str) + " of " + starts.astype(str) + ")"
    cells = medians.map(text).where(solved == starts, partly)
    # `unstack(sort=False)` fails where an optimizer did not run.
    order = {"index": costs.index.unique(0), "columns": costs.index.unique(1)}
    cells, medians = (part.unstack().reindex(**order) for part in (cells, medians))
    return bold_lowest(cells.fillna(""), medians)


def pivot(frame: Frame, rows: str, columns: str, values: str) -> Frame:
    """One value per row and column, both in the order of their first appearance."""
    wide = frame.pivot(index=rows, columns=columns, values=values)
    wide = wide.loc[frame[rows].unique(), frame[columns].unique()]
    return wide.rename_axis(columns=None)


def show(text: str) -> None:
    """Print a table or paragraph for cog, with the blank lines that Markdown needs."""
    print(f"\n{text}\n")


def refresh(readmes: Iterable[Path], *, check: bool = False) -> None:
    """Rewrite the tables of README files, or only check that they are current.

    Raises:
      cogapp.cogapp.CogCheckFailed: With `check`, a table does not match the results.
    """
    advice = "--check-fail-msg=run python -m benchmarks.TOPIC.report"
    mode = ["--check", "--diff", advice] if check else ["-r"]
    Cog().callable_main(["cog", "-P", *mode, *map(str, readmes)])


def report(
    description: str | None,
    results: Path,
    tables: Iterable[Table],
    pictures: Mapping[str, Picture],
) -> None:
    """Draw the pictures and write the tables.

    Tables of the recorded results go into the README files, others to the screen.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--results-dir", type=Path, default=results, help="of a run of your own"
    )
    folder = parser.parse_args().results_dir
    for name, draw in pictures.items():
        plots.save(draw(folder), folder / f"{name}.png")
        print(f"Written: {folder / name}.png")
    if folder == results:
        topic = results.parent
        refresh([*topic.glob("*.md"), *topic.parent.glob("*.md")])
        return
    for table in tables:
        show(table(folder))
