"""The results as data frames, and how differences are judged."""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import in_order, markdown
from benchmarks.minibatch.train import STEPS

ADAM = "Adam"
# What ships: the sign test of today before Rprop.
OURS = "mini-batch Rprop"
LEVEL = 0.05


def contests(folder: Path) -> Frame:
    """A row a contest, optimizer and run, in the order of problems and batches.

    The rivals are those of the study; ours is that of the comparison without tuning,
    on the same runs. The column ``has_errors`` tells contests in which all settings
    have errors left, so that these have logarithms.
    """
    keys = ["problem", "batch", "measure", "run"]
    wide = results.read(folder, "contests").astype({"batch": str}).set_index(keys)
    ours = results.read(folder, "tuning_free").astype({"batch": str})
    ours = ours[ours["evaluated"] == "iterate"].assign(measure="test_error")
    wide.insert(0, OURS, ours.set_index(keys)[OURS])
    wide = wide.rename_axis(columns="optimizer")
    rows = wide.stack().unstack("measure").reset_index()
    tried = results.read(folder, "contests_settings").astype({"batch": str})
    keys = ["problem", "batch"]
    least = tried.groupby(keys)[["test_error", "validation_error"]].min().min(axis=1)
    rows = rows.join((least > 0).rename("has_errors"), on=keys)
    places = {str(size): i for i, size in enumerate(STEPS)}
    order = {name: i for i, name in enumerate(_problem_names(folder))}
    return rows.sort_values(
        keys, key=lambda column: column.map(places | order), kind="stable"
    )


def _problem_names(folder: Path) -> list[str]:
    return in_order(results.read(folder, "problems"), "problem")


def mean_errors(rows: Frame, column: str = "test_error") -> Frame:
    """Means over the runs: a row a contest, a column an optimizer."""
    means = rows.groupby(["problem", "batch", "optimizer"], sort=False)[column].mean()
    return means.unstack(sort=False)


def errors_table(rows: Frame) -> str:
    """Means and standard errors over runs by contest, the lowest bold.

    Of rows a run, columns an optimizer.
    """
    contests = rows.groupby(["problem", "batch"], sort=False)
    means, spread = contests.mean(), contests.sem()
    texts = means.map("{:.2f}".format) + " (" + spread.map("{:.2f}".format) + ")"
    lowest = means.eq(means.min(axis=1), axis=0)
    table = texts.where(~lowest, "**" + texts + "**")
    table.index = [", ".join(contest) for contest in table.index]
    return markdown(table.rename_axis("problem, batch"))


def verdict(difference: np.ndarray) -> int:
    """1, -1 or 0: by a paired t test at 5 %, worse, better, or undecided."""
    if not np.any(difference):
        return 0
    found: Any = stats.ttest_1samp(difference, 0.0)
    return int(np.sign(difference.mean())) if found.pvalue < LEVEL else 0


def verdicts(rows: Frame) -> Frame:
    """Of mini-batch Rprop against each optimizer (columns) in each contest (rows)."""
    wide = rows.set_index(["problem", "batch", "run", "optimizer"])["test_error"]
    wide = wide.unstack(sort=False)
    against = wide[[OURS]].to_numpy() - wide
    return against.groupby(level=["problem", "batch"], sort=False).agg(
        lambda difference: verdict(difference.to_numpy())
    )
