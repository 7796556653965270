"""Tables and pictures of what a step and a training loop cost."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.optimizers import LAYOUTS
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, median_and_quartiles, number, report
from benchmarks.speed import loop
from benchmarks.speed.step import ADAM, COMPILATION, COPY, EAGER, SGD

RESULTS = Path(__file__).parent / "results"
H100 = RESULTS / "h100"
CALLS = (EAGER, COMPILATION)


def _steps(folder: Path) -> Frame:
    steps = results.read(folder, "step")
    return steps[~steps["problem"].isin(CALLS)]


def times_adam(times: Frame) -> Frame:
    """By problem and optimizer: the median of the ratios within each round."""
    wide = times.pivot(index=["problem", "run"], columns="optimizer", values="seconds")
    return wide.div(wide[ADAM], axis=0).groupby("problem").median().stack()


def _size_order(times: Frame) -> list[str]:
    """Problems of one leaf by their size, then those of many."""
    sizes = times.drop_duplicates("problem").sort_values(["leaves", "parameters"])
    return list(sizes["problem"])


def _facts(folder: Path) -> Frame:
    """What is known of the problem that most optimizers ran on, in their order."""
    facts = results.read(folder, "step_costs")
    counts = facts["problem"].value_counts(sort=False)
    return facts[facts["problem"] == counts.idxmax()].set_index("optimizer")


def steps(folder: Path = RESULTS) -> str:
    """Median milliseconds of all optimizers on all problems."""
    times = _steps(folder)
    wide = 1e3 * times.pivot_table("seconds", "optimizer", "problem", "median")
    wide = wide.loc[_facts(folder).index, _size_order(times)]
    return markdown(wide.map(number).rename_axis(index="ms"))


def costs(folder: Path = RESULTS) -> str:
    """All that is known about one size."""
    facts = _facts(folder)
    problem = facts["problem"].iloc[0]
    times = _steps(folder)
    times = times[times["problem"] == problem]
    medians = times.groupby("optimizer")["seconds"].median()
    moved = times["parameters"].iloc[0] * floor_bytes(facts) / medians
    shares = moved / moved[[COPY, SGD]].max()
    milliseconds = 1e3 * times.set_index("optimizer")["seconds"]
    table = pd.DataFrame(
        {
            "ms (quartiles)": milliseconds.groupby(level=0).apply(median_and_quartiles),
            "x adam": times_adam(times)[problem].map("{:.2f}".format),
            "floor B": floor_bytes(facts).map(number),
            "of bandwidth": shares.map("{:.0%}".format),
            "XLA B": facts["bytes_accessed"].round().map(number),
            "temporary B": facts["temporary_bytes"].round().map(number),
            "state B": facts["state_bytes"].round().map(number),
            "fusions": facts["fusions"].map(number),
            "copies": facts["copies"].map(number),
        }
    )
    return markdown(table.loc[facts.index].rename_axis(f"{problem} parameters"))


def floor_bytes(facts: Frame) -> Frame:
    """The least bytes per parameter that a step can read and write.

    It reads parameter and gradient, writes the parameter, and reads and writes the
    state; a copy reads and writes.
    """
    floor = 12 + 2 * facts["state_bytes"].round()
    return floor.where(facts.index != COPY, 8)


def calls(folder: Path = RESULTS) -> str:
    """What happens outside a compiled step: compilation, and updates without jit."""
    times = results.read(folder, "step")
    times = times[times["problem"].isin(CALLS)]
    times["ms"] = 1e3 * times["seconds"]
    groups = times.groupby(["problem", "optimizer"])["ms"]
    cells = {
        "ms (quartiles)": groups.apply(median_and_quartiles),
        "x adam": times_adam(times).map("{:.2f}".format),
    }
    wide: Frame = pd.DataFrame(cells).unstack("problem")
    wide.columns = [f"{problem}: {what}" for what, problem in wide.columns]
    return markdown(wide.sort_index(axis=1))


def loops(folder: Path = RESULTS) -> str:
    """Time of an epoch, one row a way to train."""
    times = results.read(folder, "loop")
    losses = results.read(folder, "loop_losses").set_index(["setting", "optimizer"])
    epochs = losses["epochs"].iloc[0]
    wide = times.pivot(index="run", columns=["setting", "optimizer"], values="seconds")
    wide = wide[losses.index]
    default = wide[loop.SCAN, loop.DEFAULT]
    rows = {}
    for setting, optimizer in wide:
        seconds = wide[setting, optimizer]
        sgd = ""
        if (setting, loop.SGD) in wide:
            sgd = f"{(seconds / wide[setting, loop.SGD]).median():.2f}"
        rows[f"{setting}, {optimizer}"] = {
            "us per network and epoch (quartiles)": median_and_quartiles(1e6 * seconds),
            "x sgd in this loop": sgd,
            f"x {loop.SCAN}, {loop.DEFAULT}": f"{(seconds / default).median():.2f}",
            f"loss after {epochs} epochs": number(losses["loss"][setting, optimizer]),
        }
    return markdown(pd.DataFrame.from_dict(rows, orient="index"))


def headline_step(folder: Path = RESULTS) -> str:
    """The ratios that matter most."""
    problem = _facts(folder)["problem"].iloc[0]
    found = times_adam(_steps(folder))[problem]
    ours = [
        f"{found[f'irprop-, {layout}']:.2f} (`{layout}`)" for layout in sorted(LAYOUTS)
    ]
    return (
        f"At {problem} parameters, a step of `irprop-` takes {' or '.join(ours)} of the"
        f" time of one of `optax.adam`; `optax.rprop` takes {found['optax.rprop']:.2f}."
    )


def headline_loop(folder: Path = RESULTS) -> str:
    """Epochs in one loop of JAX, against PyTorch."""
    times = results.read(folder, "loop")
    medians = 1e6 * times.groupby(["setting", "optimizer"])["seconds"].median()
    ours, sgd = (medians[loop.SCAN, name] for name in (loop.DEFAULT, loop.SGD))
    theirs = medians.get(("eager", "torch.optim.Rprop"))
    text = (
        f"An epoch of a small network takes {ours:.0f} microseconds in `lax.scan` with"
        f" `irprop-`, {sgd:.0f} with `optax.sgd`"
    )
    return text + ("." if theirs is None else f", and {theirs:.0f} in eager PyTorch.")


def step_picture(folder: Path = RESULTS) -> Figure:
    """Step time over size, and the time that memory alone takes."""
    times = _steps(folder)
    times = times[times["leaves"] == 1]
    picture = plots.figure(7, 4.5)
    axes = picture.subplots()
    groups = times.groupby(["optimizer", "parameters"])["seconds"]
    quartiles = groups.quantile([0.25, 0.5, 0.75]).unstack()
    everywhere = times["parameters"].nunique()
    for name in _facts(folder).index:
        found = quartiles.loc[name]
        if len(found) < everywhere:
            continue
        style = plots.style(name)
        axes.plot(found.index, found[0.5], marker="o", markersize=3, **style)
        axes.fill_between(
            found.index, found[0.25], found[0.75], color=style["color"], alpha=0.2
        )
    axes.set(xscale="log", yscale="log", ylabel="seconds per step")
    axes.set_xlabel("parameters, one float32 leaf")
    axes.legend(fontsize="small")
    return picture


SHOWN = (steps, costs, calls, loops, headline_step, headline_loop)
PICTURES = {"step": step_picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
