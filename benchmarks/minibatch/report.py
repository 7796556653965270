"""Tables and pictures of the comparison on mini-batches."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common import results
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, number, pivot, report
from benchmarks.minibatch import batch_size_report, pictures
from benchmarks.minibatch import tuning_free_report as tuning_free
from benchmarks.minibatch.problems import DEVELOPED_ON
from benchmarks.minibatch.tidy import (
    ADAM,
    OURS,
    contests,
    errors_table,
    mean_errors,
    verdict,
    verdicts,
)
from benchmarks.minibatch.train import STEPS

RESULTS = Path(__file__).parent / "results"
# How often pure noise is resolved at the default threshold and decay: the table of the
# sign test has its inverse.
NOISE = {"threshold": 1.7, "decay": 0.95, "mean": 0.0}


def groups(rows: Frame) -> dict[str, Frame]:
    """Contests by batch size, and by whether our settings were chosen on them."""
    chosen = rows["problem"].isin(DEVELOPED_ON)
    by_batch = {
        f"batch {size}": rows[rows["batch"] == str(size)] for size in map(str, STEPS)
    }
    parts = by_batch | {
        "chosen on": rows[chosen],
        "held out": rows[~chosen],
        "all": rows,
    }
    return {name: part for name, part in parts.items() if len(part)}


def summary(folder: Path = RESULTS) -> str:
    """Geometric means of errors over those of tuned Adam; our wins and losses."""
    rows = contests(folder)
    rows = rows[rows["has_errors"]]
    table = {}
    for name, part in groups(rows).items():
        means = mean_errors(part)
        ratios = means.div(means[ADAM], axis=0)
        title = f"{name} ({len(means)})"
        table[title] = ratios.apply(stats.gmean).map("{:.2f}".format)
    judged = verdicts(rows)
    held_out = ~judged.index.get_level_values("problem").isin(DEVELOPED_ON)
    for name, part in (("held out", judged[held_out]), ("all", judged)):
        counts = [(part == sign).sum().astype(str) for sign in (-1, 0, 1)]
        cells = counts[0] + " / " + counts[1] + " / " + counts[2]
        title = f"ours better / undecided / worse, {name}"
        table[title] = cells.where(cells.index != OURS, "")
    return markdown(pd.DataFrame(table))


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
    rows = contests(folder)
    rows = rows[rows["has_errors"]]
    adam = mean_errors(rows)[ADAM]
    tried = results.read(folder, "contests_settings")
    tried = tried.assign(
        batch=tried["batch"].astype(str), setting=tried["setting"].fillna("")
    )
    tried = tried.set_index(["problem", "batch"]).loc[adam.index]
    ratios = tried["test_error"] / adam.reindex(tried.index)
    tried = tried.assign(ratio=ratios.to_numpy())
    groups = tried.groupby(["optimizer", "setting"], sort=False)
    means = groups[["validation_error", "ratio"]].agg(stats.gmean)
    best = means["validation_error"].groupby("optimizer", sort=False).idxmin()
    chosen = means.loc[best].reset_index("setting")
    table = chosen.assign(ratio=chosen["ratio"].map("{:.2f}".format))
    columns = {"ratio": "test error / that of tuned Adam"}
    return markdown(table[["setting", "ratio"]].rename(columns=columns))


def errors(column: str = "test_error", folder: Path = RESULTS) -> str:
    """One row a contest: mean and standard error over the runs, the lowest bold."""
    rows = contests(folder).dropna(subset=[column])
    wide = rows.set_index(["problem", "batch", "run", "optimizer"])[column]
    return errors_table(wide.unstack(sort=False))


def grids(folder: Path = RESULTS) -> str:
    """What every optimizer could choose from."""
    tried = results.read(folder, "contests_settings").fillna({"setting": ""})
    first = tried.drop_duplicates(["optimizer", "setting"])
    groups = first.groupby("optimizer", sort=False)["setting"]
    texts = groups.agg(lambda settings: "; ".join(settings).replace(", cosine 0", ""))
    texts = texts.str.replace(", cosine 1", ", cosine")
    table = pd.DataFrame({"number": groups.size().astype(str), "settings": texts})
    return markdown(table)


def ablations(folder: Path = RESULTS) -> str:
    """Change of the test error in points against the default, by problem."""
    rows = results.read(folder, "ablations")
    wide = rows.set_index(["setting", "problem", "run"])["test_error"]
    wide = wide.unstack("run", sort=False)
    default = wide.loc["default"]

    def cell(key: tuple[str, str]) -> str:
        setting, problem = key
        if setting == "default":
            return f"{default.loc[problem].mean():.2f}"
        change = (wide.loc[key] - default.loc[problem]).to_numpy()
        mean = round(change.mean(), 2) + 0.0  # No minus before 0.
        return f"{mean:+.2f}{'*' if verdict(change) else ''}"

    cells = pd.Series({key: cell(key) for key in wide.index})
    return markdown(cells.unstack(sort=False).rename_axis("changed"))


def signs(folder: Path = RESULTS) -> str:
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


def _insides(folder: Path) -> dict[str, Frame]:
    rows = results.read(folder, "inside")
    return {
        f"{problem}, {batch}": part
        for (problem, batch), part in rows.groupby(["problem", "batch"], sort=False)
    }


def inside(folder: Path = RESULTS) -> str:
    """Signs and waits in three parts of the training, over all runs."""
    rows = {}
    for name, part in _insides(folder).items():
        steps = np.array_split(np.sort(part["step"].unique()), 3)
        for label, third in zip(("first", "second", "last"), steps, strict=True):
            pooled = part[part["step"].isin(third)]
            last = pooled[pooled["step"] == third[-1]].mean(numeric_only=True)
            resolved = pooled["resolved"].sum()
            right = 100 * pooled["resolved_right"].sum() / max(resolved, 1)
            wait = 1 / max(pooled["resolved_fraction"].mean(), 1e-9)
            sizes = [number(last[f"step_size_{percent}"], 2) for percent in (5, 50, 95)]
            rows[f"{name}, {label} third"] = {
                "raw signs right (%)": f"{100 * pooled['raw_agreement'].mean():.1f}",
                "resolved signs right (%)": f"{right:.1f} of {resolved}",
                "steps per decision": f"{wait:.0f}",
                "same sign as before (%)": f"{100 * pooled['persistence'].mean():.1f}",
                "step sizes: 5, 50, 95 %": ", ".join(sizes),
                "training loss": number(last["train_loss"]),
                "test error (%)": f"{last['test_error']:.2f}",
            }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def noise_rate(folder: Path) -> float:
    """How often the default test resolves the sign of pure noise, in a step."""
    rows = results.read(folder, "signs")
    wait = rows.loc[(rows[list(NOISE)] == pd.Series(NOISE)).all(axis=1), "wait"]
    # Rounded, as it was when the rules were chosen.
    return 1 / round(wait.item())


def stopping(folder: Path = RESULTS) -> str:
    """Test errors where rules without a validation set would stop, and the place."""
    noise = noise_rate(folder)
    rules: dict[str, Any] = {
        "decisions rarer than noise's": lambda r: r["resolved_fraction"] < noise,
        "ten times rarer": lambda r: r["resolved_fraction"] < noise / 10,
        "60 % same sign": lambda r: r["persistence"] < 0.6,
    }
    rows = {}
    for name, part in _insides(folder).items():
        stops: dict[str, list[Frame]] = {}
        for _, run in part.groupby("run"):
            last = run.iloc[-1]
            best = run.loc[run["validation_error"].idxmin()]
            stops.setdefault("by validation", []).append(best)
            stops.setdefault("at the end", []).append(last)
            # No sign is resolved in the very first steps.
            later = run.iloc[1:]
            for rule, holds in rules.items():
                hits = later[holds(later)]
                stops.setdefault(rule, []).append(hits.iloc[0] if len(hits) else last)
        steps = part["step"].max()
        rows[name] = {rule: _stops(found, steps) for rule, found in stops.items()}
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def _stops(found: list[Frame], steps: int) -> str:
    means = pd.DataFrame(found)[["test_error", "step"]].astype(float).mean()
    return f"{means['test_error']:.2f} at {100 * means['step'] / steps:.0f} %"


def problems(folder: Path = RESULTS) -> str:
    """The data sets and their networks."""
    table = results.read(folder, "problems").set_index("problem")
    return markdown(table.rename(columns={"error_name": "error"}).astype(str))


def steps(folder: Path = RESULTS) -> str:
    """Steps by batch size, runs, and how long the parts took."""
    parts = results.read(folder, "contests_parts")
    counts = parts.assign(batch=parts["batch"].astype(str))
    counts = counts.drop_duplicates("batch").set_index("batch")["steps"]
    listed = ", ".join(f"{counts[b]:,} of {b}" for b in map(str, STEPS) if b in counts)
    runs = results.read(folder, "contests")["run"].nunique()
    return (
        f"Steps by batch size: {listed}; {runs} runs in each of {len(parts)} contests."
    )


def headline(folder: Path = RESULTS) -> str:
    """Against tuned Adam, on average and contest by contest."""
    rows = contests(folder)
    rows = rows[rows["has_errors"]]
    means = mean_errors(rows)
    ratio = stats.gmean(means[OURS] / means[ADAM])
    judged = verdicts(rows)[ADAM]
    better, worse = (judged == -1).sum(), (judged == 1).sum()
    return (
        "With one setting for all, the test error of mini-batch Rprop is"
        f" {ratio:.2f} times that of Adam tuned in each of {len(judged)} contests"
        f" (geometric mean); beyond doubt, it is better in {better} of them and worse"
        f" in {worse}."
    )


SHOWN = (
    headline,
    steps,
    summary,
    one_setting,
    functools.partial(errors, "test_error"),
    functools.partial(errors, "last_test_error"),
    grids,
    ablations,
    precision,
    signs,
    inside,
    stopping,
    problems,
    batch_size_report.headline,
    *(functools.partial(batch_size_report.signs, epochs) for epochs in (0, 10, 30)),
    batch_size_report.errors,
    batch_size_report.details,
    batch_size_report.remedies,
    batch_size_report.accumulation,
    tuning_free.headline,
    tuning_free.summary,
    tuning_free.by_batch,
    tuning_free.sign_tests,
    tuning_free.errors,
    tuning_free.problems,
)
PICTURES = {
    "contests": lambda folder: pictures.contests(contests(folder)),
    "batch_size": batch_size_report.picture,
}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
