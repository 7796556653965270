"""The results as data frames, how differences are judged, and the tables of both.

In most frames, a row is a run of a contest, and a column the test errors of an
optimizer.
"""

from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import bold_lowest, markdown
from benchmarks.minibatch.methods import ADAM, OURS
from benchmarks.minibatch.problems import DEVELOPED_ON
from benchmarks.minibatch.train import STEPS

LEVEL = 0.05
KEYS = ["group", "problem", "batch"]
# Where our setting was chosen, the study's others, and those that are new.
CHOSEN, HELD_OUT, UNSEEN = GROUPS = ("chosen on", "held out", "unseen")


def read(folder: Path, name: str) -> Frame:
    """A file of test errors by contest, with the group of its problems."""
    rows = results.read(folder, name).astype({"batch": str})
    chosen = rows["problem"].isin(DEVELOPED_ON)
    group = UNSEEN if name == "unseen" else np.where(chosen, CHOSEN, HELD_OUT)
    return rows.assign(group=group).set_index([*KEYS, "run"])


def contests(folder: Path) -> Frame:
    """Those of the study, in the order of problems and batches."""
    rows = read(folder, "contests")
    places = {str(size): i for i, size in enumerate(STEPS)}
    names = results.read(folder, "problems")["problem"]
    order = {name: i for i, name in enumerate(names)}
    return rows.sort_values(
        ["problem", "batch"],
        key=lambda level: level.map(places | order),
        kind="stable",
    )


def settings(folder: Path) -> Frame:
    """A row a contest and setting tried, of means over the runs."""
    rows = results.read(folder, "contests_settings").fillna({"setting": ""})
    return rows.astype({"batch": str}).set_index(["problem", "batch"])


def with_errors(folder: Path) -> Frame:
    """Contests in which all settings have errors left, which then have logarithms."""
    rows = contests(folder)
    tried = settings(folder)[["test_error", "validation_error"]].min(axis=1)
    least = tried.groupby(level=[0, 1]).min()
    return rows[(least > 0).reindex(rows.index.droplevel(["group", "run"])).to_numpy()]


def within(rows: Frame, level: str, value: str) -> Frame:
    """The rows of a group, problem or batch size."""
    return rows[rows.index.get_level_values(level) == value]


def means(rows: Frame) -> Frame:
    """Over the runs: a row a contest."""
    return rows.groupby(KEYS, sort=False).mean()


def count(rows: Frame) -> int:
    """How many contests there are."""
    return len(means(rows))


def ratios(rows: Frame, adam: Frame) -> Frame:
    """The geometric mean over contests of errors over those of tuned Adam."""
    return means(rows).div(means(adam)[ADAM], axis=0).apply(stats.gmean)


def ratios_by_batch(rows: Frame) -> dict[str, Frame]:
    """The same by batch size, under titles that say of how many contests."""
    parts = {size: within(rows, "batch", size) for size in map(str, STEPS)}
    return {
        f"batch {size} ({count(part)})": ratios(part, part)
        for size, part in parts.items()
        if len(part)
    }


def verdict(difference: np.ndarray) -> int:
    """1, -1 or 0: by a paired t test at 5 %, worse, better, or undecided."""
    if not np.any(difference):
        return 0
    found: Any = stats.ttest_1samp(difference, 0.0)
    return int(np.sign(difference.mean())) if found.pvalue < LEVEL else 0


def judged(rows: Frame, first: str, second: str) -> str:
    """In how many contests the first is better / undecided / worse."""
    differences = (rows[first] - rows[second]).groupby(KEYS, sort=False)
    found = [verdict(difference.to_numpy()) for _, difference in differences]
    return " / ".join(str(found.count(sign)) for sign in (-1, 0, 1))


def ours_judged(rows: Frame) -> list[str]:
    """Mini-batch Rprop against each optimizer, in their order."""
    return ["" if name == OURS else judged(rows, OURS, name) for name in rows]


def errors_table(rows: Frame) -> str:
    """Means and standard errors over runs by contest, the lowest bold."""
    contests = rows.groupby(["problem", "batch"], sort=False)
    means, spread = contests.mean(), contests.sem()
    texts = means.map("{:.2f}".format) + " (" + spread.map("{:.2f}".format) + ")"
    table = bold_lowest(texts, means)
    table.index = [", ".join(contest) for contest in table.index]
    return markdown(table.rename_axis("problem, batch"))


def problems_table(folder: Path, name: str) -> str:
    """Data sets and their networks."""
    table = results.read(folder, name).set_index("problem")
    return markdown(table.rename(columns={"error_name": "error"}).astype(str))
