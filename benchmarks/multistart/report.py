"""Tables of times until starts have arrived, and of the cost of a step."""

from pathlib import Path

import numpy as np

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import bold_lowest, markdown, number, report
from benchmarks.multistart.run import EVALUATION, METHODS

RESULTS = Path(__file__).parent / "results"


def wide(folder: Path, what: str) -> Frame:
    """Milliseconds by problem and optimizer; NaN if none arrived."""
    rows = results.read(folder, "runs").query("what == @what")
    times = rows.pivot(index="problem", columns="optimizer", values="milliseconds")
    return times.loc[rows["problem"].unique()].rename_axis(columns=None)


def headline(folder: Path = RESULTS) -> str:
    """The times of baselines, divided by that of the faster of the two Rprops."""
    half = wide(folder, "half")
    rprop = half[["irprop+", "eigenbasis"]].min(axis=1)

    def ratios(name: str) -> str:
        found = (half[name] / rprop).fillna(np.inf).sort_values()
        return f"{name} {', '.join(number(ratio, 2) for ratio in found)}"

    return (
        "Time until half of the starts have arrived within 1e-4, divided by that of"
        " `irprop+`, plain or in its eigenbasis, whichever is faster, on each of"
        f" {len(half)} problems: {ratios('optax.lbfgs')}; {ratios('optimistix.BFGS')};"
        f" {ratios('Adam')} (inf: they do not arrive)."
    )


def arrivals(folder: Path = RESULTS) -> str:
    """Milliseconds until half (three quarters) of the starts have arrived."""
    half, more = (
        wide(folder, what)[list(METHODS)] for what in ("half", "three quarters")
    )
    cells = half.map(number) + " (" + more.map(number).replace("", "-") + ")"
    cells = cells.where(half.notna(), "-")
    return markdown(bold_lowest(cells, half.fillna(np.inf)))


def steps(folder: Path = RESULTS) -> str:
    """A vmapped step in vmapped evaluations (and in steps of one start alone)."""
    together, alone = wide(folder, "a step"), wide(folder, "a step alone")
    evaluations = together.div(together[EVALUATION], axis=0).map(number)
    cells = evaluations + " (" + (together / alone).map(number) + ")"
    return markdown(cells[list(METHODS)])


SHOWN = (headline, arrivals, steps)
PICTURES = {}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
