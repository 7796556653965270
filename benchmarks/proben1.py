"""Prechelt's Proben1 tables of 1994 once more, with all four variants of Rprop.

Tables 3 and 4 (linear networks) and 8 and 10 (multilayer networks with and without
shortcut connections) of the report that came with the data, for every data set given:
its number of runs, initialization, error measure and stopping rule. Published and
measured figures stand side by side, with the standard deviations between them.

L. Prechelt, Proben1: a set of neural network benchmark problems and benchmarking
rules, Technical Report 21/94, Universität Karlsruhe, 1994.
"""

import argparse
import concurrent.futures
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tqdm
from common import markdown_table, parser, write_results
from contenders import PICTURE_STYLE
from proben1_training import (
    MAX_EPOCHS,
    MIN_PROGRESS,
    DataSet,
    Protocol,
    read_data_set,
    train_all,
)

matplotlib.use("Agg")
from matplotlib import pyplot

MARKERS = {"rprop-": "o", "rprop+": "s", "irprop-": "^", "irprop+": "v"}
"""The variants, each with its marker in the picture."""
VARIANTS = tuple(MARKERS)

ARCHITECTURES = "table_7_pivot_architectures"
SOURCE = "https://github.com/jeffheaton/proben1"


STATED = Protocol(max_weight=0.01, min_step=0.005, max_step=0.02, max_loss=5.0)
LINEAR = {"stated": (STATED, VARIANTS)}
MULTILAYER = {
    # The first one reproduces the tables; the others show what each change is worth.
    "inferred": (Protocol(0.1, 0.05, 0.2, 2.0), VARIANTS),
    "stated, GL > 2": (STATED._replace(max_loss=2.0), VARIANTS[:1]),
    "stated": (STATED, VARIANTS[:1]),
}
"""By name, how to train, and the variants to do it with.

The report says that the multilayer networks were trained with the parameters of the
linear ones. They were not: the README tells how the others were inferred.
"""


class Table(NamedTuple):
    """One of the report's tables.

    Attributes:
      key: Its name in ``published.json``.
      title: What is trained.
      runs: The number of runs, each from weights of its own.
      hidden: Whether the networks have hidden layers.
      shortcuts: Whether all layers before it feed a layer, or only the last one.
      protocols: How to train, and which variants, by name.
    """

    key: str
    title: str
    runs: int
    hidden: bool
    shortcuts: bool
    protocols: Mapping[str, tuple[Protocol, Sequence[str]]]


TABLES = (
    Table(
        "table_3_linear_classification_10_runs",
        "Table 3: linear networks, classification",
        runs=10,
        hidden=False,
        shortcuts=False,
        protocols=LINEAR,
    ),
    Table(
        "table_4_linear_approximation_10_runs",
        "Table 4: linear networks, approximation",
        runs=10,
        hidden=False,
        shortcuts=False,
        protocols=LINEAR,
    ),
    Table(
        "table_8_pivot_classification_60_runs",
        "Table 8: multilayer networks with all shortcuts, classification",
        runs=60,
        hidden=True,
        shortcuts=True,
        protocols=MULTILAYER,
    ),
    Table(
        "table_10_no_shortcut_classification_60_runs",
        "Table 10: multilayer networks without shortcuts, classification",
        runs=60,
        hidden=True,
        shortcuts=False,
        protocols=MULTILAYER,
    ),
)

FIGURES = {
    "train_error": 2,
    "validation_error": 2,
    "test_error": 2,
    "test_misclassified_percent": 2,
    "overfit_gl": 2,
    "total_epochs": 0,
    "relevant_epochs": 0,
}
"""The report's columns, each with the decimals to which it is printed."""


def load(data_dir: Path) -> tuple[dict[str, Any], dict[str, DataSet]]:
    """Read the published figures and all data sets that they are about.

    Raises:
      FileNotFoundError: Files are missing; says which, and where they are to be had.
    """
    path = data_dir / "published.json"
    published = json.loads(path.read_text()) if path.is_file() else {}
    names = {name for table in TABLES for name in published.get(table.key, {})}
    files = [path, *(data_dir / f"{name}.dt" for name in sorted(names))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{data_dir} lacks {', '.join(missing)}. The data sets NAME.dt are public:"
            f" {SOURCE} has them, a folder a problem. published.json holds the"
            " report's figures, {table: {data set: {figure: [mean, standard"
            ' deviation]}}}; the entry "published" of results/proben1.json is it.'
        )
    return published, {name: read_data_set(data_dir / f"{name}.dt") for name in names}


class Job(NamedTuple):
    """A data set's runs with one variant, and what was published of them."""

    table: Table
    protocol: str
    name: str
    variant: str
    layer_sizes: tuple[int, ...]
    published: Mapping[str, Sequence[float]]


def hidden_sizes(published: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """The sizes of the hidden layers that the report gives for a data set.

    Raises:
      ValueError: The output units are not linear.
    """
    architecture = published[ARCHITECTURES][name]
    if architecture["output"] != "linear":
        raise ValueError(
            f"Output units must be linear, got {architecture['output']!r} for {name}."
        )
    sizes = architecture["hidden_1"], architecture["hidden_2"]
    return tuple(size for size in sizes if size)


def list_jobs(
    published: Mapping[str, Any], data_sets: Mapping[str, DataSet]
) -> list[Job]:
    """Everything to be trained."""
    jobs = []
    for table in TABLES:
        for name, figures in published.get(table.key, {}).items():
            inputs, targets = data_sets[name].train
            hidden = hidden_sizes(published, name) if table.hidden else ()
            sizes = inputs.shape[1], *hidden, targets.shape[1]
            jobs += [
                Job(table, protocol, name, variant, sizes, figures)
                for protocol, (_, variants) in table.protocols.items()
                for variant in variants
            ]
    return jobs


def describe(sample: np.ndarray) -> dict[str, float]:
    """Mean and standard deviation over runs, the latter from n - 1 as in the report."""
    return {
        "measured_mean": float(np.mean(sample)),
        "measured_sd": float(np.std(sample, ddof=1)),
    }


def compare(
    published: Sequence[float], sample: np.ndarray, decimals: int
) -> dict[str, float]:
    """Set a sample of runs beside a published mean and standard deviation.

    Args:
      published: Mean and standard deviation, over as many runs as the sample has.
      sample: One number a run.
      decimals: To how many the published figures are rounded.

    Returns:
      Both means and standard deviations, and the difference of the means in
      standard deviations of a run and in standard errors of the difference; both
      allow for the rounding of the published mean.
    """
    mean, deviation = published
    measured = describe(sample)
    gap = measured["measured_mean"] - mean
    variance = deviation**2 + measured["measured_sd"] ** 2
    rounding = 10.0 ** (-2 * decimals) / 12
    return {
        "published_mean": mean,
        "published_sd": deviation,
        **measured,
        "apart_sd": gap / (variance / 2 + rounding) ** 0.5,
        "apart_se": gap / (variance / len(sample) + rounding) ** 0.5,
    }


def measure(
    job: Job, data: DataSet, keys: jax.Array, max_epochs: int
) -> dict[str, Any]:
    """Train a job's runs; its figures, compared where there is something published."""
    table = job.table
    figures = train_all(
        keys,
        data,
        table.protocols[job.protocol][0],
        max_epochs,
        layer_sizes=job.layer_sizes,
        shortcuts=table.shortcuts,
        variant=job.variant,
    )
    compared = {}
    for name, decimals in FIGURES.items():
        sample = np.asarray(figures[name], float)
        if name in job.published:
            compared[name] = compare(job.published[name], sample, decimals)
        elif name in ("overfit_gl", "relevant_epochs"):
            compared[name] = describe(sample)
    return compared


Results = Sequence[dict[str, Any]]
"""One entry a job; its figures as `compare` returns them."""


def select(results: Results, **wanted: str) -> Results:
    """The results whose entries are as wanted."""
    return [
        result
        for result in results
        if all(result[key] == value for key, value in wanted.items())
    ]


def summary_row(results: Results) -> list[Any]:
    """How near measured and published figures are, over all of some results."""
    figures = [figure for result in results for figure in result["figures"].values()]
    gaps = np.array(
        [[f["apart_sd"], f["apart_se"]] for f in figures if "apart_sd" in f]
    )
    deviations, errors = np.abs(gaps).T
    return [
        len(gaps),
        f"{np.mean(deviations <= 1):.0%}",
        f"{np.median(deviations):.2f}",
        f"{np.max(deviations):.1f}",
        f"{np.mean(errors <= 2):.0%}",
        f"{np.mean(errors**2) ** 0.5:.1f}",
    ]


def plus_minus(mean: float, deviation: float, decimals: int) -> str:
    """A mean and a standard deviation for the reader."""
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def figure_rows(results: Results, variants: Sequence[str]) -> list[list[str]]:
    """One row a data set and figure: published, then every variant."""
    rows = []
    for name in dict.fromkeys(result["data_set"] for result in results):
        chosen = [
            select(results, data_set=name, variant=variant)[0]["figures"]
            for variant in variants
        ]
        for figure, decimals in FIGURES.items():
            if "published_mean" not in chosen[0].get(figure, {}):
                continue
            compared = [figures[figure] for figures in chosen]
            mean, deviation = (compared[0][f"published_{x}"] for x in ("mean", "sd"))
            rows.append(
                [
                    f"{name}, {figure.replace('_', ' ')}",
                    plus_minus(mean, deviation, decimals),
                    *(
                        plus_minus(c["measured_mean"], c["measured_sd"], decimals)
                        + f" ({c['apart_sd']:+.1f})"
                        for c in compared
                    ),
                ]
            )
    return rows


def write_report(results: Results) -> str:
    """The Markdown report."""
    rows, details = [], []
    for table in TABLES:
        for name, (protocol, variants) in table.protocols.items():
            chosen = select(results, table=table.title, protocol=name)
            if not chosen:
                continue
            rows += [
                [
                    table.title.split(":")[0],
                    name,
                    variant,
                    *summary_row(select(chosen, variant=variant)),
                ]
                for variant in variants
            ]
            details += [
                f"## {table.title}; protocol: {name}",
                f"Initial weights up to ±{protocol.max_weight}, initial step sizes"
                f" from {protocol.min_step} to {protocol.max_step}; stop at GL >"
                f" {protocol.max_loss:g}, P5 < {MIN_PROGRESS} or {MAX_EPOCHS} epochs.",
                markdown_table(
                    ["data set, figure", "published", *variants],
                    figure_rows(chosen, variants),
                ),
            ]
    header = ["table", "protocol", "variant", "figures", "within 1 sd", "median, sd"]
    header += ["largest, sd", "within 2 se", "root mean square, se"]
    return "\n\n".join(
        [
            "# Proben1: published and measured",
            "Mean ± standard deviation over the runs. In parentheses: measured minus"
            " published mean, in standard deviations (sd) of a single run, the root"
            " mean square of the published and the measured one. The summary also"
            " counts in standard errors (se) of the difference of the means. Both"
            " allow for the rounding of the published mean.",
            markdown_table(header, rows),
            *details,
        ]
    )


def draw(results: Results, path: Path) -> None:
    """Draw the epochs until the stop, measured over published."""
    tables = {
        table.title: select(
            results, table=table.title, protocol=next(iter(table.protocols))
        )
        for table in TABLES
    }
    shown = [result for chosen in tables.values() for result in chosen]
    labels = [
        f"{result['data_set']}, {result['table'].split(':')[0].lower()}"
        for result in select(shown, variant=VARIANTS[0])
    ]
    total_epochs = {
        variant: [
            result["figures"]["total_epochs"]
            for result in select(shown, variant=variant)
        ]
        for variant in VARIANTS
    }
    rows = np.arange(len(labels))
    with pyplot.rc_context(PICTURE_STYLE):
        picture, axes = pyplot.subplots(
            figsize=(7, 1 + 0.23 * len(labels)), layout="constrained"
        )
        for variant, marker in MARKERS.items():
            ratios = [
                epochs["measured_mean"] / epochs["published_mean"]
                for epochs in total_epochs[variant]
            ]
            axes.plot(ratios, rows, marker, label=variant, alpha=0.8)
        published = total_epochs[VARIANTS[0]]
        band = np.array([x["published_sd"] / x["published_mean"] for x in published])
        axes.barh(
            rows, 2 * band, left=1 - band, color="0.9", label="published ± sd", zorder=0
        )
        axes.axvline(1, color="0.4", linewidth=1)
        axes.set_yticks(rows, labels)
        axes.invert_yaxis()
        axes.set_xlabel("epochs until the stop, measured mean / published mean")
        picture.legend(loc="outside upper center", ncols=5)
        picture.savefig(path)
        pyplot.close(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train everything, then write the comparison."""
    options = parser(__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument(
        "--data-dir",
        type=Path,
        required=True,
        help="folder with the NAME.dt files of Proben1 and published.json",
    )
    options.add_argument("--seed", type=int, default=0, help="of all random numbers")
    chosen = options.parse_args(arguments)
    try:
        published, data_sets = load(chosen.data_dir)
    except (FileNotFoundError, ValueError) as error:
        options.error(f"--data-dir: {error}")
    run_everything(chosen, published, data_sets)


def run_everything(
    options: argparse.Namespace,
    published: dict[str, Any],
    data_sets: dict[str, DataSet],
) -> None:
    """Train all jobs, as many at once as there are cores, and write the results."""
    jobs = list_jobs(published, data_sets)
    max_epochs = 20 if options.quick else MAX_EPOCHS
    arrays = {name: jax.tree.map(jnp.asarray, data_sets[name]) for name in data_sets}
    root = jax.random.key(options.seed)

    def work(job: Job) -> dict[str, Any]:
        runs = 2 if options.quick else job.table.runs
        keys = jax.random.split(root, runs)
        return {
            "table": job.table.title,
            "protocol": job.protocol,
            "data_set": job.name,
            "variant": job.variant,
            "runs": runs,
            "layer_sizes": job.layer_sizes,
            "figures": measure(job, arrays[job.name], keys, max_epochs),
        }

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(tqdm.tqdm(pool.map(work, jobs), total=len(jobs), unit="job"))
    report = write_report(results)
    write_results(
        options.output_dir,
        "proben1",
        {"seed": options.seed, "published": published, "results": results},
        report,
    )
    draw(results, options.output_dir / "proben1.png")


if __name__ == "__main__":
    main()
