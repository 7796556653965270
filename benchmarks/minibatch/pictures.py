"""Pictures of the comparison on mini-batches."""

from matplotlib import ticker
from matplotlib.figure import Figure

from benchmarks.common import plots
from benchmarks.common.results import Frame
from benchmarks.common.tables import in_order
from benchmarks.minibatch.methods import FIRST
from benchmarks.minibatch.tidy import ADAM, OURS
from benchmarks.minibatch.train import STEPS

# Those that are drawn, each with its marker.
SHOWN = {
    OURS: "o",
    FIRST: "",
    "Adam, 0.001": "s",
    "SGD": "",
    "Rprop": "^",
    "Rprop, accumulated": "",
}


def contests(rows: Frame) -> Figure:
    """Test error over that of tuned Adam, over batch size, one panel a problem."""
    rows = rows[rows["has_errors"]]
    names = in_order(rows, "problem")
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = plots.figure(2.5 * columns, 2 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    places = {str(size): i for i, size in enumerate(STEPS)}
    for panel, name in zip(axes.flat, names, strict=False):
        here = rows[rows["problem"] == name].set_index(["optimizer", "batch", "run"])
        errors = here["test_error"]
        adam = errors[ADAM]
        panel.axhline(1, color="black", linewidth=1, label="Adam, tuned")
        for optimizer, marker in SHOWN.items():
            if optimizer not in in_order(here.reset_index(), "optimizer"):
                continue
            # Of the paired difference: how hard a run is, is the same for all.
            by_batch = errors[optimizer].groupby("batch", sort=False)
            tuned = adam.groupby("batch", sort=False).mean()
            paired = (errors[optimizer] - adam).groupby("batch", sort=False)
            panel.errorbar(
                [places[batch] for batch in tuned.index],
                by_batch.mean() / tuned,
                paired.sem() / tuned if marker else None,
                marker=marker or ("." if len(tuned) == 1 else None),
                markersize=4,
                capsize=2,
                **plots.style(optimizer),
            )
        panel.set(title=name, yscale="log", xticks=list(places.values()))
        panel.set_xticklabels(list(places))
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        panel.yaxis.set_minor_formatter(ticker.NullFormatter())
    for panel in axes[-1]:
        panel.set_xlabel("batch size")
    figure.supylabel("test error / that of tuned Adam")
    plots.legend(figure, axes[0, 0], columns=4)
    return figure
