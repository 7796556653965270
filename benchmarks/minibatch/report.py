"""Tables and the picture of the comparison on mini-batches."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.common import plots, results
from benchmarks.common.tables import markdown, number, pivot, report
from benchmarks.minibatch import batch_size_report, signs, tidy
from benchmarks.minibatch import tuning_free_report as tuning_free
from benchmarks.minibatch.methods import ADAM, DEFAULTS, OURS
from benchmarks.minibatch.train import STEPS

RESULTS = Path(__file__).parent / "results"
# Those that are drawn, each with its marker.
DRAWN = {
    OURS: "o",
    "Adam, 0.001": "s",
    "SGD": "",
    "Rprop": "^",
    "Rprop, accumulated": "",
}


def summary(folder: Path = RESULTS) -> str:
    """Geometric means of errors over those of tuned Adam; our wins and losses."""
    rows = tidy.with_errors(folder)
    held_out = tidy.within(rows, "group", tidy.HELD_OUT)
    table = tidy.ratios_by_batch(rows)
    chosen = tidy.within(rows, "group", tidy.CHOSEN)
    for name, part in (("chosen on", chosen), ("held out", held_out), ("all", rows)):
        if len(part):
            table[f"{name} ({tidy.count(part)})"] = tidy.ratios(part, part)
    frame = pd.DataFrame(table).map("{:.2f}".format)
    for name, part in (("held out", held_out), ("all", rows)):
        title = f"{OURS} better / undecided / worse, {name}"
        frame[title] = tidy.ours_judged(part)
    return markdown(frame.rename_axis("optimizer"))


def precision(folder: Path = RESULTS) -> str:
    """Test errors with statistics of either dtype; means of differences in pairs."""
    rows = results.read(folder, "precision")
    table = {}
    for (problem, size), part in rows.groupby(["problem", "batch"], sort=False):
        change = part["bfloat16"] - part["float32"]
        table[f"{problem}, {size}"] = {
            "float32": f"{part['float32'].mean():.2f}",
            "bfloat16": f"{part['bfloat16'].mean():.2f}",
            "difference": f"{change.mean():+.2f}",
            "its standard error": f"{change.sem():.2f}",
        }
    return markdown(pd.DataFrame(table).T)


def one_setting(folder: Path = RESULTS) -> str:
    """The setting of each optimizer that suits all contests best, and what it costs.

    It is the one of the least geometric mean of the validation errors.
    """
    adam = tidy.means(tidy.with_errors(folder))[ADAM].reset_index("group")
    tried = tidy.settings(folder).join(adam, how="inner")
    tried["ratio"] = tried["test_error"] / tried[ADAM]
    each = tried.groupby(["optimizer", "setting"], sort=False)
    means = each[["validation_error", "ratio"]].agg(stats.gmean)
    by_group = tried.groupby(["optimizer", "setting", "group"], sort=False)["ratio"]
    ratios = by_group.agg(stats.gmean).unstack(sort=False).assign(all=means["ratio"])
    optimizers = means["validation_error"].groupby("optimizer", sort=False)
    table = ratios.loc[optimizers.idxmin()].map("{:.2f}".format).reset_index("setting")
    table.insert(0, "tried", optimizers.size().astype(str))
    return markdown(table.rename(columns={"setting": "setting for all"}))


def errors(folder: Path = RESULTS) -> str:
    """One row a contest: mean and standard error over the runs, the lowest bold."""
    return tidy.errors_table(tidy.contests(folder))


def ablations(folder: Path = RESULTS) -> str:
    """Change of the test error in points against the default, by problem."""
    rows = results.read(folder, "ablations").drop(columns=["batch", "run"])
    table = {}
    for problem, errors in rows.groupby("problem", sort=False):
        default = errors.pop("default")
        cells = {"default": f"{default.mean():.2f}"}
        for name, found in errors.drop(columns="problem").items():
            change = (found - default).to_numpy()
            mean = round(change.mean(), 2) + 0.0  # No minus before 0.
            cells[name] = f"{mean:+.2f}{'*' if tidy.verdict(change) else ''}"
        table[problem] = cells
    return markdown(pd.DataFrame(table).rename_axis("changed"))


def sign_tests(folder: Path = RESULTS) -> str:
    """False decisions in percent / mean waits, by the mean of the gradient."""
    rows = results.read(folder, "signs")
    tests = (
        rows["threshold"].map("{:g}".format) + ", " + rows["decay"].map("{:g}".format)
    )
    false = (100 * rows["false"]).map("{:.1f} %".format)
    cells = false + " / " + rows["wait"].map(number)
    named = rows.assign(cell=cells, test=tests)
    wide = pivot(named, "test", "mean", "cell")
    wide.columns = [f"{mean:g}" for mean in wide]
    return markdown(wide.rename_axis("threshold, decay"))


def false_at_most(folder: Path = RESULTS) -> str:
    """How many decisions may be false if step sizes are to grow."""
    del folder  # It is a formula.
    factors = DEFAULTS["eta_minus"], DEFAULTS["eta_plus"]
    most = 1 - signs.threshold(*factors, "irprop-")
    return f"Step sizes can grow where fewer than {100 * most:.1f} % are false."


def inside(folder: Path = RESULTS) -> str:
    """Signs and waits in the three thirds of the training, over all runs."""
    rows = results.read(folder, "inside")
    keys = ["problem", "batch"]
    end = rows.groupby(keys)["step"].transform("max")
    thirds = rows.assign(third=np.ceil(3 * rows["step"] / end))
    thirds = thirds.groupby([*keys, "third"], sort=False)
    means, sums = thirds.mean(), thirds.sum()
    right = sums["resolved_right"] / sums["resolved"].clip(lower=1)
    wait = 1 / means["resolved_fraction"].clip(lower=1e-9)
    cells = {
        "raw signs right, %": (100 * means["raw_agreement"]).map("{:.1f}".format),
        "resolved signs right, %": (100 * right).map("{:.1f}".format),
        "of how many": sums["resolved"].map("{:,}".format),
        "steps per decision": wait.map("{:,.0f}".format),
    }
    table = pd.DataFrame(cells).groupby(level=keys, sort=False).agg(" / ".join)
    table.index = [f"{problem}, {batch}" for problem, batch in table.index]
    return markdown(table.rename_axis("problem, batch"))


def problems(folder: Path = RESULTS) -> str:
    """The data sets and their networks."""
    return tidy.problems_table(folder, "problems")


def steps(folder: Path = RESULTS) -> str:
    """Steps by batch size, runs and contests."""
    rows = tidy.contests(folder)
    sizes = set(rows.index.get_level_values("batch"))
    listed = ", ".join(f"{n:,} of {b}" for b, n in STEPS.items() if str(b) in sizes)
    runs = rows.index.get_level_values("run").nunique()
    contests = tidy.count(rows)
    return f"Steps by batch size: {listed}; {runs} runs in each of {contests} contests."


def headline(folder: Path = RESULTS) -> str:
    """Against tuned Adam, on average and contest by contest."""
    rows = tidy.with_errors(folder)
    ratio = tidy.ratios(rows, rows)[OURS]
    better, _, worse = tidy.judged(rows, OURS, ADAM).split(" / ")
    return (
        "With one setting for all, the test error of mini-batch Rprop is"
        f" {ratio:.2f} times that of Adam tuned in each of {tidy.count(rows)} contests"
        f" (geometric mean); beyond doubt, it is better in {better} of them and worse"
        f" in {worse}."
    )


def picture(folder: Path = RESULTS) -> Figure:
    """Test error over that of tuned Adam, over batch size, one panel a problem."""
    rows = tidy.with_errors(folder)
    names = rows.index.unique("problem")
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = plots.figure(2.5 * columns, 2 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    places = {str(size): i for i, size in enumerate(STEPS)}
    for panel, name in zip(axes.flat, names, strict=False):
        here = tidy.within(rows, "problem", name)
        panel.axhline(1, color="black", linewidth=1, label="Adam, tuned")
        for optimizer, marker in DRAWN.items():
            if optimizer not in here:
                continue
            # Of the paired difference: how hard a run is, is the same for all.
            by_batch = here.groupby("batch", sort=False)
            tuned = by_batch[ADAM].mean()
            paired = (here[optimizer] - here[ADAM]).groupby("batch", sort=False)
            panel.errorbar(
                [places[batch] for batch in tuned.index],
                by_batch[optimizer].mean() / tuned,
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


SHOWN = (
    headline,
    steps,
    summary,
    one_setting,
    errors,
    ablations,
    precision,
    sign_tests,
    false_at_most,
    inside,
    problems,
    batch_size_report.headline,
    batch_size_report.errors,
    batch_size_report.step_sizes,
    batch_size_report.remedies,
    tuning_free.headline,
    tuning_free.summary,
    tuning_free.by_batch,
    tuning_free.sign_tests,
    tuning_free.errors,
    tuning_free.problems,
)
PICTURES = {"contests": picture, "batch_size": batch_size_report.picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
