"""Tables and the picture of the study of batch sizes."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, number, pivot
from benchmarks.minibatch.signs import ETA_MINUS, ETA_PLUS, threshold

RESULTS = Path(__file__).parent / "results"
TRAINED, REMEDIES = "batch size", "factors and cap"


def _answers(question: str, folder: Path) -> Frame:
    rows = results.read(folder, "batch_size")
    return rows[rows["question"] == question]


def errors(folder: Path = RESULTS) -> str:
    """Test error in percent (training loss), one column an optimizer."""
    rows = _answers(TRAINED, folder)
    return markdown(pivot(rows.assign(cell=_cells(rows)), "batch", "optimizer", "cell"))


def _cells(rows: Frame) -> Frame:
    losses = rows["loss"].map(lambda loss: number(loss, 2))
    return rows["error"].map("{:.1f}".format) + " (" + losses + ")"


def step_sizes(folder: Path = RESULTS) -> str:
    """Where those of Rprop end."""
    rows = _answers(TRAINED, folder).query("optimizer != 'Adam'")
    rows = rows[rows["batch"] < rows["batch"].max()]["median_step_size"]
    return (
        "In batches of less than all rows, the median step size ends at"
        f" {number(rows.min(), 2)} to {number(rows.max(), 2)}."
    )


def remedies(folder: Path = RESULTS) -> str:
    """Test error (training loss) with other factors and caps, for each variant."""
    rows = _answers(REMEDIES, folder)
    cells = rows.assign(cell=_cells(rows))
    keys = ["optimizer", "eta_minus", "eta_plus"]
    wide = cells.set_index([*keys, "cap"])["cell"].unstack(sort=False)
    wide.columns = [f"cap {cap:g}" for cap in wide]
    thresholds = [
        f"{threshold(shrink, grow, name):.3f}" for name, shrink, grow in wide.index
    ]
    wide.insert(0, "threshold", thresholds)
    wide.index = [
        f"{name}: {shrink:.3g}, {grow:.3g}" for name, shrink, grow in wide.index
    ]
    return markdown(wide.rename_axis("factors"))


def headline(folder: Path = RESULTS) -> str:
    """The thresholds, and what becomes of small batches."""
    limits = [threshold(ETA_MINUS, ETA_PLUS, name) for name in ("irprop-", "rprop-")]
    rows = _answers(TRAINED, folder).set_index(["optimizer", "batch"])["error"]
    ours, adam = rows["irprop-"], rows["Adam"]
    return (
        f"Step sizes grow only where signs are right with a probability above"
        f" {limits[0]:.3f} (`rprop-`: {limits[1]:.3f}). On digits in batches of"
        f" {ours.index[0]}, `irprop-` gets {ours.iloc[0]:.1f} % wrong and Adam"
        f" {adam.iloc[0]:.1f} %; in batches of {ours.index[-1]:,},"
        f" {ours.iloc[-1]:.1f} and {adam.iloc[-1]:.1f} %."
    )


def picture(folder: Path = RESULTS) -> Figure:
    """Agreement and growth above, what becomes of training below."""
    colors = ("#E69F00", "#009E73", "#CC79A7")
    rows = results.read(folder, "batch_size_signs")
    rows = rows[rows["optimizer"] == "irprop-"]
    figure = plots.figure(8, 6)
    axes = figure.subplots(2, 2, sharex=True)
    titles = {"agree": "signs of two batches agree, %", "grow": "step sizes grow, %"}
    for panel, (column, title) in zip(axes[0], titles.items(), strict=True):
        for (epochs, found), color in zip(rows.groupby("epochs"), colors, strict=False):
            wide = 100 * found.pivot(index="batch", columns="source", values=column)
            panel.plot(wide["predicted"], color=color, label=f"after {epochs} epochs")
            panel.plot(wide["measured"], "o", color=color, mfc="none")
        panel.set_ylabel(title)
    axes[0, 0].set_title("lines: predicted; circles: measured")
    axes[0, 0].legend()
    ends = {"loss": "training loss at the end", "error": "test error at the end, %"}
    trained = _answers(TRAINED, folder)
    for panel, (column, title) in zip(axes[1], ends.items(), strict=True):
        for name, found in trained.groupby("optimizer", sort=False):
            style = plots.style(str(name))
            panel.plot(found["batch"], found[column], marker="o", ms=3, **style)
        panel.set(yscale="log", ylabel=title, xlabel="batch size")
    axes[1, 1].yaxis.set_minor_formatter(ScalarFormatter())
    axes[1, 1].yaxis.set_major_formatter(ScalarFormatter())
    axes[1, 0].legend()
    axes[1, 0].set_xscale("log", base=2)
    axes[1, 0].xaxis.set_major_formatter(ScalarFormatter())
    return figure
