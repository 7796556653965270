"""Tables and the picture of the studies on mini-batches.

In most frames, a row is a run of a task, and a column the test errors of an optimizer.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.common import plots, results
from benchmarks.common.results import Frame
from benchmarks.common.tables import bold_lowest, markdown, report
from benchmarks.minibatch.methods import ADAM, OURS, PLAIN
from benchmarks.minibatch.tasks import (
    AVERAGE,
    CHOSEN,
    EVALUATED,
    GROUPS,
    HELD_OUT,
    ITERATE,
)
from benchmarks.minibatch.train import STEPS

RESULTS = Path(__file__).parent / "results"
LEVEL = 0.05
KEYS = ["group", "problem", "batch"]
# Those that are drawn, each with its marker.
DRAWN = {OURS: "o", "Adam, 0.001": "s", "SGD, tuned": "", PLAIN: "^"}
# Untuned baselines that the headline on larger models names.
NAMED = ("MoMo-Adam", "Prodigy, cosine", "AdamW, 0.001")
# Those whose errors are listed task by task.
LISTED = (OURS, PLAIN, "MoMo-Adam", "COCOB", "Prodigy", "Adam, 0.001", ADAM)


def read(folder: Path, evaluated: str = ITERATE, study: str = "tasks") -> Frame:
    """Test errors by group, problem, batch and run."""
    rows = results.read(folder, study).astype({"batch": str})
    groups = results.read(folder, f"{study}_problems")[["problem", "group"]]
    rows = rows[rows["evaluated"] == evaluated].merge(groups, sort=False)
    return rows.drop(columns="evaluated").set_index([*KEYS, "run"])


def within(rows: Frame, level: str, *values: str) -> Frame:
    """The rows of groups, problems or batch sizes."""
    return rows[rows.index.get_level_values(level).isin(values)]


def means(rows: Frame) -> Frame:
    """Over the runs: a row a task."""
    return rows.groupby(KEYS, sort=False).mean()


def ratios(rows: Frame, adam: Frame) -> Frame:
    """The geometric mean over tasks of errors over those of tuned Adam.

    NaN for optimizers that did not run on all of them.
    """
    wide = means(rows).div(means(adam)[ADAM], axis=0)
    return np.exp(np.log(wide).mean(skipna=False))


def verdict(difference: np.ndarray) -> int:
    """1, -1 or 0: worse, better, or neither, by a paired t test at the level."""
    if not np.any(difference):
        return 0
    found: Any = stats.ttest_1samp(difference, 0.0)
    return int(np.sign(difference.mean())) if found.pvalue < LEVEL else 0


def judged(rows: Frame, other: str) -> str:
    """The number of tasks on which ours is significantly better / neither / worse."""
    differences = (rows[OURS] - rows[other]).dropna().groupby(KEYS, sort=False)
    found = [verdict(difference.to_numpy()) for _, difference in differences]
    return " / ".join(str(found.count(sign)) for sign in (-1, 0, 1))


def single_settings(folder: Path) -> Frame:
    """By optimizer: the ratio with the one setting of the least validation error.

    Both are geometric means over the tasks on which settings were recorded.
    """
    tried = results.read(folder, "tasks_settings").fillna({"setting": ""})
    tried = tried.astype({"batch": str}).set_index(["problem", "batch"])
    adam = means(read(folder))[ADAM].droplevel("group")
    tried["ratio"] = tried["test_error"] / tried.join(adam)[ADAM]
    each = tried.groupby(["optimizer", "setting"], sort=False)
    found = each[["validation_error", "ratio"]].agg(stats.gmean)
    found["tried"] = found.groupby("optimizer")["ratio"].transform("size")
    best = found["validation_error"].groupby("optimizer", sort=False).idxmin()
    return found.loc[best].reset_index("setting")


def summary(folder: Path = RESULTS) -> str:
    """Errors over those of tuned Adam by group, and how often ours is better."""
    rows, averages = (read(folder, evaluated) for evaluated in EVALUATED)
    single = single_settings(folder).reindex(rows.columns)
    table: dict[str, Any] = {}
    for group in GROUPS:
        part = within(rows, "group", group)
        if len(part):
            table[f"{group} ({len(means(part))})"] = ratios(part, part)
    others = set(GROUPS) - {CHOSEN}
    new, new_averages = (within(part, "group", *others) for part in (rows, averages))
    if len(new):
        table["held out and unseen, average"] = ratios(new_averages, new)
    table["one setting for all"] = single["ratio"].where(single["tried"] > 1)
    frame = pd.DataFrame(table).map("{:.2f}".format).replace("nan", "")
    frame.insert(0, "settings", single["tried"].fillna(1).map("{:.0f}".format))
    frame[f"{OURS} better / neither / worse"] = [
        "" if name == OURS else judged(new, name) for name in rows
    ]
    return markdown(frame.rename_axis("optimizer"))


def plain(folder: Path = RESULTS) -> str:
    """The errors of plain Rprop, by batch size."""
    rows = read(folder)
    rows = rows[rows[PLAIN].notna()]
    found = []
    for size in map(str, STEPS):
        part = within(rows, "batch", size)
        if len(part):
            name = "full batch" if size == "full" else f"batches of {size}"
            found.append(f"{ratios(part, part)[PLAIN]:.2f} in {name}")
    return (
        "The test error of plain Rprop is this multiple of that of tuned Adam:"
        f" {', '.join(found)}."
    )


def errors(folder: Path = RESULTS) -> str:
    """A row a task: mean and standard error over the runs, the lowest bold."""
    rows = read(folder)
    tasks = rows[[name for name in LISTED if name in rows]].groupby(KEYS, sort=False)
    means, spread = tasks.mean(), tasks.sem()
    texts = means.map("{:.2f}".format) + " (" + spread.map("{:.2f}".format) + ")"
    table = bold_lowest(texts.where(means.notna(), ""), means)
    table.index = [f"{problem}, {batch}" for _, problem, batch in table.index]
    return markdown(table.rename_axis("problem, batch"))


def of_models(folder: Path) -> tuple[Frame, Frame]:
    """Of larger models, errors over those of tuned Adam: of iterates, of averages.

    Posteriors are a group of their own: their errors differ by orders of magnitude.
    """
    iterates, averages = (means(read(folder, kind, "models")) for kind in EVALUATED)
    wide = [table.div(iterates[ADAM], axis=0) for table in (iterates, averages)]
    posterior = iterates.index.get_level_values("problem").str.contains("effects")
    kinds = np.where(posterior, "posteriors", "networks")
    first, second = (table.set_index(kinds, append=True) for table in wide)
    return first, second


def summary_models(folder: Path = RESULTS) -> str:
    """Geometric means over the tasks, and the worst held-out network."""
    table: dict[str, Any] = {}
    ratios = dict(zip(EVALUATED, of_models(folder), strict=True))
    columns = (CHOSEN, "networks"), (HELD_OUT, "networks"), (HELD_OUT, "posteriors")
    for group, kind in columns:
        for evaluated, wide in ratios.items():
            part = within(wide, "group", group).xs(kind, level=-1)
            name = f"{kind}, {group} ({len(part)}), {evaluated}"
            table[name] = np.exp(np.log(part).mean())
    table["worst held-out network, average"] = (
        within(ratios[AVERAGE], "group", HELD_OUT).xs("networks", level=-1).max()
    )
    frame = pd.DataFrame(table).map("{:.2f}".format).replace("nan", "")
    return markdown(frame.rename_axis("optimizer"))


def errors_models(folder: Path = RESULTS) -> str:
    """The error after the last step, a row a task, the lowest bold."""
    iterates, averages = (means(read(folder, kind, "models")) for kind in EVALUATED)
    iterates.insert(1, f"{OURS}, average", averages[OURS])
    facts = results.read(folder, "models_problems").set_index("problem")
    numbers = iterates.map("{:.3g}".format)
    table = bold_lowest(numbers, iterates)
    table.index = [
        f"{problem} ({facts['error_name'][problem]}; {group})"
        for group, problem, _ in table.index
    ]
    return markdown(table.rename_axis("task"))


def headline_models(folder: Path = RESULTS) -> str:
    """Against tuned Adam and those that are not tuned."""
    ratios = [within(wide, "group", HELD_OUT) for wide in of_models(folder)]

    def both(kind: str, name: str = OURS) -> str:
        parts = (part.xs(kind, level=-1)[name] for part in ratios)
        return " and ".join(f"{np.exp(np.log(part).mean()):.2f}" for part in parts)

    kinds = ratios[0].index.get_level_values(-1).value_counts()
    if len(kinds) < 2:
        return "Not all held-out tasks have run."
    listed = ", ".join(f"{name} {both('networks', name)}" for name in NAMED)
    return (
        f"On {kinds['networks']} held-out tasks with larger and other networks, the"
        " error of mini-batch Rprop, untuned, after a fixed number of steps is, at the"
        f" last iterate and at the average of all, {both('networks')} times that of"
        f" tuned Adam (geometric means; {listed}); on {kinds['posteriors']} posteriors,"
        f" {both('posteriors')} times."
    )


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
            cells[name] = f"{mean:+.2f}{'*' if verdict(change) else ''}"
        table[problem] = cells
    return markdown(pd.DataFrame(table).rename_axis("changed"))


def precision(folder: Path = RESULTS) -> str:
    """How far test errors with statistics in bfloat16 are from those in float32."""
    rows = results.read(folder, "precision").set_index(["problem", "batch"])
    tasks = (rows["bfloat16"] - rows["float32"]).groupby(level=[0, 1])
    change = tasks.mean()
    return (
        f"With statistics in bfloat16, the test errors of {len(change)} tasks change by"
        f" {change.min():+.2f} to {change.max():+.2f} points, on average by"
        f" {change.mean():+.2f}; the largest change is"
        f" {(change / tasks.sem()).abs().max():.1f} of its standard errors."
    )


def headline(folder: Path = RESULTS) -> str:
    """Against tuned Adam, on average and task by task."""
    rows = within(read(folder), "group", *(set(GROUPS) - {CHOSEN}))
    better, _, worse = judged(rows, ADAM).split(" / ")
    logs = np.log(means(rows)[OURS] / means(rows)[ADAM])
    lead = logs.groupby("problem").mean().idxmin()
    rest = rows.drop(lead, level="problem")
    without = f"{ratios(rest, rest)[OURS]:.2f} without {lead}" if len(rest) else ""
    return (
        f"On {len(means(rows))} tasks with small networks that were not used to choose"
        " anything, the test error of mini-batch Rprop, untuned, is"
        f" {ratios(rows, rows)[OURS]:.2f} times that of Adam with rate and schedule"
        f" tuned to each task (geometric mean; {without}). It is"
        f" significantly better on {better} of them and worse on {worse}"
        f" (paired t test, p < {LEVEL:g}, uncorrected)."
    )


def picture(folder: Path = RESULTS) -> Figure:
    """Test error over that of tuned Adam, over batch size, one panel a problem."""
    rows = read(folder)
    names = rows.index.unique("problem")
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    figure = plots.figure(2 * columns, 1.8 * lines + 0.6)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for panel in axes.flat[len(names) :]:
        panel.axis("off")
    places = {str(size): i for i, size in enumerate(STEPS)}
    for panel, name in zip(axes.flat, names, strict=False):
        here = within(rows, "problem", name)
        panel.axhline(1, color="black", linewidth=1, label=ADAM)
        for optimizer, marker in DRAWN.items():
            if optimizer not in here or here[optimizer].isna().any():
                continue
            # Of the paired difference: how hard a run is, is the same for all.
            by_batch = here.groupby("batch", sort=False)
            tuned = by_batch[ADAM].mean()
            paired = (here[optimizer] - here[ADAM]).groupby("batch", sort=False)
            panel.errorbar(
                [places[batch] for batch in tuned.index],
                by_batch[optimizer].mean() / tuned,
                paired.sem() / tuned if marker else None,
                marker=marker or None,
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
    plots.legend(figure, axes[0, 0], columns=5)
    return figure


SHOWN = (
    headline,
    summary,
    plain,
    errors,
    headline_models,
    summary_models,
    errors_models,
    ablations,
    precision,
)
PICTURES = {"tasks": picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
