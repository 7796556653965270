"""Tables of times until starts have arrived, and of what a step costs."""

from pathlib import Path

import numpy as np

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import bold_lowest, markdown, number, report
from benchmarks.multistart.run import EVALUATION, METHODS

RESULTS = Path(__file__).parent / "results"


def wide(folder: Path, what: str) -> Frame:
    """Milliseconds, a row a problem, a column an optimizer; NaN where none arrived."""
    rows = results.read(folder, "runs").query("what == @what")
    times = rows.pivot(index="problem", columns="optimizer", values="milliseconds")
    return times.loc[rows["problem"].unique()].rename_axis(columns=None)


def headline(folder: Path = RESULTS) -> str:
    """The time of the two Rprops in that of line searches."""
    half = wide(folder, "half")
    rprop = half[["irprop+", "eigenbasis"]].min(axis=1)

    def ratios(name: str) -> str:
        found = ", ".join(map(number, (half[name] / rprop).dropna().sort_values()))
        return f"{name} {found or 'none'}"

    solved = rprop.notna().sum()
    baselines = ("optax.lbfgs", "optimistix.BFGS", "Adam")
    return (
        f"Of {len(half)} problems with 256 starts under `vmap`, half of the starts"
        f" arrive within 1e-4 on {solved} with `irprop+`, plain or in its eigenbasis."
        " The time of baselines, in multiples of the faster of the two, where both"
        f" arrive: {'; '.join(map(ratios, baselines))}."
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
