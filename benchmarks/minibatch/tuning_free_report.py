"""Tables of the comparison of optimizers that need no tuning."""

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown
from benchmarks.minibatch import tidy
from benchmarks.minibatch.methods import ADAM, OURS
from benchmarks.minibatch.tidy import CHOSEN, GROUPS, UNSEEN, count, ratios, within
from benchmarks.minibatch.train import STEPS
from benchmarks.minibatch.tuning_free import EVALUATED, NO_LEAN

RESULTS = Path(__file__).parent / "results"
ITERATE, AVERAGE = EVALUATED
# That of version 0.2.0: recorded, and no longer run.
FIRST = "first sign test"
SHOWN = (OURS, FIRST, "Prodigy", "MoMo-Adam", "COCOB", "schedule-free AdamW", ADAM)


def errors_of(folder: Path) -> dict[str, Frame]:
    """Test errors of iterates and of averages.

    Tuned Adam is always that of the iterates. Contests in which some optimizer has no
    error left have no logarithm, and are left out.
    """
    known = tidy.read(folder, "tuning_free")
    known = known.join(tidy.contests(folder)[ADAM])
    rows = pd.concat([known, tidy.read(folder, "unseen")])
    parts = {
        evaluated: rows[rows["evaluated"] == evaluated].drop(columns="evaluated")
        for evaluated in EVALUATED
    }
    parts[AVERAGE] = parts[AVERAGE].assign(**{ADAM: parts[ITERATE][ADAM]})
    means = tidy.means(parts[ITERATE])
    kept = means[(means > 0).all(axis=1)].index
    return {
        name: part[part.index.droplevel("run").isin(kept)]
        for name, part in parts.items()
    }


def _not_chosen_on(rows: Frame) -> Frame:
    return rows[rows.index.get_level_values("group") != CHOSEN]


def summary(folder: Path = RESULTS) -> str:
    """Errors over those of tuned Adam by group, and our wins and losses."""
    parts = errors_of(folder)
    table = {}
    for group in GROUPS:
        rows, averages = (within(part, "group", group) for part in parts.values())
        if len(rows):
            table[f"{group} ({count(rows)})"] = ratios(rows, rows)
            table[f"{group}, average"] = ratios(averages, rows)
    frame = pd.DataFrame(table).map("{:.2f}".format)
    title = f"{OURS} better / undecided / worse, held out and unseen"
    frame[title] = tidy.ours_judged(_not_chosen_on(parts[ITERATE]))
    return markdown(frame)


def by_batch(folder: Path = RESULTS) -> str:
    """Errors over those of tuned Adam by batch size, where nothing was chosen."""
    table = tidy.ratios_by_batch(_not_chosen_on(errors_of(folder)[ITERATE]))
    return markdown(pd.DataFrame(table).map("{:.2f}".format))


def jackknife(rows: Frame, first: str, second: str) -> tuple[float, float]:
    """The geometric mean ratio of mean errors, and its jackknife error over runs."""
    runs = rows.index.get_level_values("run")

    def log_ratio(part: Frame) -> float:
        means = tidy.means(part)
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
    if FIRST not in parts[ITERATE]:
        return "The first sign test is recorded, and no longer run."
    rows = {}
    for evaluated, part in parts.items():
        groups = {group: within(part, "group", group) for group in GROUPS}
        new = groups[UNSEEN]
        for size in map(str, STEPS):
            groups[f"{UNSEEN}, batch {size}"] = within(new, "batch", size)
        if evaluated == ITERATE:
            names = new.index.get_level_values("problem")
            each = {name: new[names == name] for name in names.unique()}
            groups |= {f"{UNSEEN}, {name}": these for name, these in each.items()}
            most = min(each, key=lambda name: jackknife(each[name], OURS, FIRST)[0])
            groups[f"{UNSEEN}, without {most}"] = new[names != most]
        rows |= {
            f"{name} ({count(these)}), {evaluated}": {
                "today's over the first": _ratio(these, OURS, FIRST),
                "without the lean": _ratio(these, NO_LEAN, FIRST),
                "better / undecided / worse": tidy.judged(these, OURS, FIRST),
            }
            for name, these in groups.items()
            if len(these)
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def errors(folder: Path = RESULTS) -> str:
    """Test errors on the unseen problems, the lowest bold."""
    rows = within(errors_of(folder)[ITERATE], "group", UNSEEN)
    names = [name for name in SHOWN if name in rows]
    return tidy.errors_table(rows[names].rename(columns={ADAM: "Adam, tuned"}))


def problems(folder: Path = RESULTS) -> str:
    """The unseen problems and their networks."""
    return tidy.problems_table(folder, "unseen_problems")


def headline(folder: Path = RESULTS) -> str:
    """The least mean error of all, where nothing was chosen."""
    rows = _not_chosen_on(errors_of(folder)[ITERATE])
    # The schedule wants the length of the run.
    tuned = [name for name in rows if "cosine" in name]
    left = rows.drop(columns=[FIRST, NO_LEAN, *tuned], errors="ignore")
    free = ratios(left, rows).drop(ADAM).sort_values()
    listed = "; ".join(f"{name}: {ratio:.2f}" for name, ratio in free.items())
    return (
        f"In {count(rows)} contests on which nothing was chosen, with one setting for"
        " all and no schedule, the test error is this multiple of that of tuned Adam."
        f" {listed}."
    )
