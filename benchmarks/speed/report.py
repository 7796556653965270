"""Tables and the picture of the cost of a step."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.common import plots, results
from benchmarks.common.optimizers import LAYOUTS
from benchmarks.common.results import Frame
from benchmarks.common.tables import markdown, median_and_quartiles, number, report
from benchmarks.speed.step import ADAM, COPY, SGD

RESULTS = Path(__file__).parent / "results"
H100 = RESULTS / "h100"
MACHINES = {"two CPU cores": RESULTS, "H100": H100}


def _machines(folder: Path) -> dict[str, Path]:
    """The folders of both machines for the recorded results, else the given one."""
    return MACHINES if folder == RESULTS else {"this machine": folder}


def times_adam(times: Frame) -> Frame:
    """By problem and optimizer: the median of the ratios within each round."""
    wide = times.pivot(index=["problem", "run"], columns="optimizer", values="seconds")
    return wide.div(wide[ADAM], axis=0).groupby("problem").median().stack()


def _facts(folder: Path) -> Frame:
    """The facts about the problem that most optimizers ran on, in their order."""
    facts = results.read(folder, "step_costs")
    counts = facts["problem"].value_counts(sort=False)
    return facts[facts["problem"] == counts.idxmax()].set_index("optimizer")


def costs(folder: Path = RESULTS) -> str:
    """Time, traffic and memory of a step at one size."""
    facts = _facts(folder)
    problem = facts["problem"].iloc[0]
    times = results.read(folder, "step")
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
    """The fewest bytes per parameter that a step can read and write.

    It reads parameter and gradient, writes the parameter, and reads and writes the
    state; a copy reads and writes.
    """
    floor = 12 + 2 * facts["state_bytes"].round()
    return floor.where(facts.index != COPY, 8)


def calls(folder: Path = RESULTS) -> str:
    """Times of compilation, and of updates without jit."""
    columns = {}
    for machine, place in _machines(folder).items():
        times = results.read(place, "calls")
        ratios = times_adam(times).map("{:.2f}".format)
        times["ms"] = 1e3 * times["seconds"]
        medians = times.groupby(["problem", "optimizer"])["ms"].median().map(number)
        for problem, cells in (medians + " (" + ratios + ")").groupby(level=0):
            columns[f"{problem}, {machine}"] = cells.droplevel(0)
    return markdown(pd.DataFrame(columns).rename_axis("ms (x adam)"))


def rotation(folder: Path = RESULTS) -> str:
    """Time and memory of an update of a matrix."""
    columns = {}
    for machine, place in _machines(folder).items():
        rows = results.read(place, "rotation").set_index("optimizer")
        for size, part in rows.groupby("size", sort=False):
            columns["bytes per parameter"] = part["bytes per parameter"].map(number)
            columns[f"{size}, {machine}"] = part["milliseconds"].map(number)
    return markdown(pd.DataFrame(columns).rename_axis("ms"))


def headline(folder: Path = RESULTS) -> str:
    """The ratios that matter most."""
    problem = _facts(folder)["problem"].iloc[0]
    found = times_adam(results.read(folder, "step"))[problem]
    ours = [
        f"{found[f'irprop-, {layout}']:.2f} (`{layout}`)" for layout in sorted(LAYOUTS)
    ]
    return (
        f"At {problem} parameters, a step of `irprop-` takes {' or '.join(ours)} times"
        f" as long as one of `optax.adam`; one of `optax.rprop` takes"
        f" {found['optax.rprop']:.2f} times as long."
    )


def picture(folder: Path = RESULTS) -> Figure:
    """Step time over size, one panel per machine."""
    machines = _machines(folder)
    picture = plots.figure(4.5 * len(machines), 4.5)
    axes = picture.subplots(1, len(machines), squeeze=False, sharey=True)
    for panel, (machine, place) in zip(axes.flat, machines.items(), strict=True):
        times = results.read(place, "step")
        times = times[times["leaves"] == 1]
        groups = times.groupby(["optimizer", "parameters"])["seconds"]
        medians = groups.median().unstack("parameters").dropna()
        for name in _facts(place).index:
            if name in medians.index:
                style = plots.style(name)
                panel.plot(medians.loc[name], marker="o", markersize=3, **style)
        panel.set(xscale="log", yscale="log", title=machine)
        panel.set_xlabel("parameters, one float32 leaf")
    axes[0, 0].set_ylabel("seconds per step (median)")
    plots.legend(picture, axes, columns=4)
    return picture


SHOWN = (headline, costs, calls, rotation)
PICTURES = {"step": picture}

if __name__ == "__main__":
    report(__doc__, RESULTS, SHOWN, PICTURES)
