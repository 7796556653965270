"""Tables of the comparison of optimizers that need no tuning."""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown
from benchmarks.minibatch.methods import FIRST
from benchmarks.minibatch.problems import DEVELOPED_ON
from benchmarks.minibatch.tidy import ADAM, OURS, contests, errors_table, verdict
from benchmarks.minibatch.train import STEPS
from benchmarks.minibatch.tuning_free import EVALUATED, NO_LEAN

RESULTS = Path(__file__).parent / "results"
KEYS = ["group", "problem", "batch"]
ITERATE, AVERAGE = EVALUATED
# Where our setting was chosen, the study's others, and those that are new.
CHOSEN, HELD_OUT, UNSEEN = GROUPS = ("chosen on", "held out", "unseen")
SHOWN = (OURS, FIRST, "Prodigy", "MoMo-Adam", "COCOB", "schedule-free AdamW")


def errors_of(folder: Path) -> dict[str, Frame]:
    """Test errors of iterates and of averages: a row a run, a column an optimizer.

    Tuned Adam is always that of the iterates. Contests in which some optimizer has no
    error left have no logarithm, and are left out.
    """
    known = results.read(folder, "tuning_free").astype({"batch": str})
    adam = contests(folder).query("optimizer == @ADAM")
    adam = adam.set_index(["problem", "batch", "run"])["test_error"].rename(ADAM)
    chosen = known["problem"].isin(DEVELOPED_ON)
    known = known.assign(group=np.where(chosen, CHOSEN, HELD_OUT))
    known = known.join(adam, on=["problem", "batch", "run"])
    new = results.read(folder, "unseen").astype({"batch": str}).assign(group=UNSEEN)
    rows = pd.concat([known, new], ignore_index=True)
    rows = rows.set_index([*KEYS, "run"])
    parts = {
        evaluated: rows[rows["evaluated"] == evaluated].drop(columns="evaluated")
        for evaluated in EVALUATED
    }
    parts[AVERAGE] = parts[AVERAGE].assign(**{ADAM: parts[ITERATE][ADAM]})
    means = _means(parts[ITERATE])
    kept = means[(means > 0).all(axis=1)].index
    return {
        name: part[part.index.droplevel("run").isin(kept)]
        for name, part in parts.items()
    }


def _means(rows: Frame) -> Frame:
    return rows.groupby(KEYS, sort=False).mean()


def _ratios(rows: Frame, adam: Frame) -> Frame:
    """The geometric mean over contests of errors over those of tuned Adam."""
    return _means(rows).div(_means(adam)[ADAM], axis=0).apply(stats.gmean)


def _within(rows: Frame, level: str, value: str) -> Frame:
    return rows[rows.index.get_level_values(level) == value]


def _not_chosen_on(rows: Frame) -> Frame:
    return rows[rows.index.get_level_values("group") != CHOSEN]


def _count(rows: Frame) -> int:
    return len(_means(rows))


def _judged(rows: Frame, first: str, second: str) -> str:
    """In how many contests the first is better / undecided / worse."""
    differences = (rows[first] - rows[second]).groupby(KEYS, sort=False)
    found = [verdict(difference.to_numpy()) for _, difference in differences]
    return " / ".join(str(found.count(sign)) for sign in (-1, 0, 1))


def summary(folder: Path = RESULTS) -> str:
    """Errors over those of tuned Adam by group, and our wins and losses."""
    parts = errors_of(folder)
    table = {}
    for group in GROUPS:
        rows, averages = (_within(part, "group", group) for part in parts.values())
        if len(rows):
            table[f"{group} ({_count(rows)})"] = _ratios(rows, rows)
            table[f"{group}, average"] = _ratios(averages, rows)
    frame = pd.DataFrame(table).map("{:.2f}".format)
    new = _not_chosen_on(parts[ITERATE])
    frame["ours better / undecided / worse, held out and unseen"] = [
        "" if name == OURS else _judged(new, OURS, name) for name in frame.index
    ]
    return markdown(frame)


def by_batch(folder: Path = RESULTS) -> str:
    """Errors over those of tuned Adam by batch size, where nothing was chosen."""
    rows = _not_chosen_on(errors_of(folder)[ITERATE])
    table = {}
    for size in map(str, STEPS):
        part = _within(rows, "batch", size)
        if len(part):
            table[f"batch {size} ({_count(part)})"] = _ratios(part, part)
    return markdown(pd.DataFrame(table).map("{:.2f}".format))


def jackknife(rows: Frame, first: str, second: str) -> tuple[float, float]:
    """The geometric mean ratio of mean errors, and its jackknife error over runs."""
    runs = rows.index.get_level_values("run")

    def log_ratio(part: Frame) -> float:
        means = _means(part)
        return float(np.log(means[first] / means[second]).mean())

    left_out = np.array([log_ratio(rows[runs != run]) for run in runs.unique()])
    n = len(left_out)
    error = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    ratio = np.exp(log_ratio(rows))
    return float(ratio), float(ratio * error)


def _ratio(rows: Frame, first: str, second: str) -> str:
    return "{:.3f} ({:.3f})".format(*jackknife(rows, first, second))


def sign_tests(folder: Path = RESULTS) -> str:
    """Errors of today's test over those of the first, by group, size and problem."""
    parts = errors_of(folder)
    rows = {}
    for evaluated, part in parts.items():
        groups = {group: _within(part, "group", group) for group in GROUPS}
        new = groups[UNSEEN]
        for size in map(str, STEPS):
            groups[f"{UNSEEN}, batch {size}"] = _within(new, "batch", size)
        if evaluated == ITERATE:
            names = new.index.get_level_values("problem")
            each = {name: new[names == name] for name in names.unique()}
            groups |= {f"{UNSEEN}, {name}": these for name, these in each.items()}
            most = min(each, key=lambda name: jackknife(each[name], OURS, FIRST)[0])
            groups[f"{UNSEEN}, without {most}"] = new[names != most]
        rows |= {
            f"{name} ({_count(these)}), {evaluated}": {
                "today's over the first": _ratio(these, OURS, FIRST),
                "without the lean": _ratio(these, NO_LEAN, FIRST),
                "better / undecided / worse": _judged(these, OURS, FIRST),
            }
            for name, these in groups.items()
            if len(these)
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def errors(folder: Path = RESULTS) -> str:
    """Test errors on the unseen problems, the lowest bold."""
    rows = _within(errors_of(folder)[ITERATE], "group", UNSEEN)
    names = [name for name in (*SHOWN, ADAM) if name in rows]
    return errors_table(rows[names].rename(columns={ADAM: "Adam, tuned"}))


def problems(folder: Path = RESULTS) -> str:
    """The unseen problems and their networks."""
    table = results.read(folder, "unseen_problems").set_index("problem")
    return markdown(table.rename(columns={"error_name": "error"}).astype(str))


def headline(folder: Path = RESULTS) -> str:
    """The least mean error of all, where nothing was chosen."""
    rows = _not_chosen_on(errors_of(folder)[ITERATE])
    ratios = _ratios(rows, rows)
    # The schedule wants the length of the run.
    free = ratios[[name for name in ratios.index if "cosine" not in name]]
    free = free.drop([ADAM, FIRST, NO_LEAN]).sort_values()
    listed = "; ".join(f"{name}: {ratio:.2f}" for name, ratio in free.items())
    return (
        f"In {_count(rows)} contests on which nothing was chosen, with one setting for"
        " all and no schedule, the test error is this multiple of that of tuned Adam."
        f" {listed}."
    )
