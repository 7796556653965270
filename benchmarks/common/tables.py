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
    """A table: the index to the left, all else to the right."""
    table = frame.to_markdown(
        disable_numparse=True, colalign=["left"] + ["right"] * frame.shape[1]
    )
    assert table is not None
    return table


def number(value: float, digits: int = 3) -> str:
    """Significant digits, and the thousands apart; empty where there is no number."""
    if pd.isna(value):
        return ""
    if abs(value) >= 10**digits and np.isfinite(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def median_and_quartiles(values: Frame) -> str:
    """The median and, in brackets, the quartiles."""
    low, middle, high = map(number, values.quantile([0.25, 0.5, 0.75]))
    return f"{middle} ({low} to {high})"


def in_order(frame: Frame, column: str) -> list:
    """The values of a column as they first come."""
    return list(dict.fromkeys(frame[column]))


def pivot(frame: Frame, rows: str, columns: str, values: str) -> Frame:
    """One value a row and column; both stay in the order in which they first come."""
    wide = frame.pivot(index=rows, columns=columns, values=values)
    wide = wide.loc[in_order(frame, rows), in_order(frame, columns)]
    return wide.rename_axis(columns=None)


def show(text: str) -> None:
    """Print a table or paragraph, for cog, with the blank lines that it needs."""
    print(f"\n{text}\n")


def refresh(readmes: Iterable[Path], *, check: bool = False) -> None:
    """Write all tables of README files anew, or only look whether they are current.

    Raises:
      cogapp.cogapp.CogCheckFailed: With `check`, a table is not what the results say.
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
    """What every report does: draw the pictures, write the tables.

    Args:
      description: The module's docstring.
      results: The folder of the results that are kept. For these, the tables go into
        the README files; for others, to the screen.
      tables: The tables, from a folder of results.
      pictures: The pictures, likewise, by the names of their files.
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
