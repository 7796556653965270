"""Do Prechelt's Proben1 tables of 1994 reproduce, and with which variant of Rprop?

Tables 3 and 4 (linear networks) and 8 and 10 (multilayer networks with and without
shortcut connections) of the report that came with the data: its number of runs,
initialization, error measure and stopping rule. ``published.json`` holds its figures.

L. Prechelt, Proben1: a set of neural network benchmark problems and benchmarking
rules, Technical Report 21/94, Universität Karlsruhe, 1994.
"""

import concurrent.futures
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from benchmarks.common import cli
from benchmarks.common.data import Split, find_proben1, read_proben1, to_jax
from benchmarks.common.results import Study
from benchmarks.proben1.training import MAX_EPOCHS, Protocol, train_all

PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("published.json").read_text()
)
ARCHITECTURES = "table_7_pivot_architectures"
# The variant of the report comes first.
VARIANTS = ("rprop-", "rprop+", "irprop-", "irprop+")
STATED, INFERRED = "stated", "inferred"
PROTOCOLS = {
    INFERRED: Protocol(max_weight=0.1, min_step=0.05, max_step=0.2, max_loss=2.0),
    STATED: Protocol(max_weight=0.01, min_step=0.005, max_step=0.02, max_loss=5.0),
}
"""The settings: how to train.

The report says that the multilayer networks were trained with the parameters of the
linear ones. They were not; the README explains how we inferred the actual ones.
"""
LINEAR = {STATED: VARIANTS}
MULTILAYER = dict.fromkeys(PROTOCOLS, VARIANTS[:1]) | {INFERRED: VARIANTS}


class Table(NamedTuple):
    """One of the report's tables."""

    key: str  # Its name in ``published.json``.
    runs: int  # Each from different weights.
    settings: Mapping[str, Sequence[str]]  # How to train, and which variants.
    hidden: bool = False  # Whether the networks have hidden layers.
    shortcuts: bool = False  # Whether every layer gets all earlier layers as inputs.

    @property
    def published(self) -> Mapping[str, Mapping[str, Sequence[float]]]:
        """The figures of each data set: mean and standard deviation over the runs."""
        return PUBLISHED[self.key]


_PIVOT, _PLAIN = "table_8_pivot_classification", "table_10_no_shortcut_classification"
TABLES = {
    "Table 3": Table("table_3_linear_classification_10_runs", 10, LINEAR),
    "Table 4": Table("table_4_linear_approximation_10_runs", 10, LINEAR),
    "Table 8": Table(f"{_PIVOT}_60_runs", 60, MULTILAYER, hidden=True, shortcuts=True),
    "Table 10": Table(f"{_PLAIN}_60_runs", 60, MULTILAYER, hidden=True),
}
FIGURES = {
    "train_error": 2,
    "validation_error": 2,
    "test_error": 2,
    "test_misclassified_percent": 2,
    "overfit_gl": 2,
    "total_epochs": 0,
    "relevant_epochs": 0,
}
"""The report's columns, each with its number of printed decimals."""
UNPUBLISHED = ("overfit_gl", "relevant_epochs")
"""Figures that are recorded even if the report lacks them."""


class Job(NamedTuple):
    """A data set's runs with one variant, named like the columns."""

    table: str
    setting: str
    problem: str
    optimizer: str


def list_jobs() -> list[Job]:
    """All jobs to train."""
    return [
        Job(name, setting, problem, variant)
        for name, table in TABLES.items()
        for problem in table.published
        for setting, variants in table.settings.items()
        for variant in variants
    ]


def hidden_sizes(problem: str) -> tuple[int, ...]:
    """The sizes of the hidden layers that the report gives for a data set."""
    architecture = PUBLISHED[ARCHITECTURES][problem]
    assert architecture["output"] == "linear"
    sizes = architecture["hidden_1"], architecture["hidden_2"]
    return tuple(size for size in sizes if size)


def measure(job: Job, data: Split, keys: jax.Array, max_epochs: int) -> list[Any]:
    """Train a job's runs; one row per figure, with the deviation from n - 1."""
    table = TABLES[job.table]
    inputs, targets = data.train["inputs"], data.train["targets"]
    hidden = hidden_sizes(job.problem) if table.hidden else ()
    figures = train_all(
        keys,
        data,
        PROTOCOLS[job.setting],
        max_epochs,
        sizes=(inputs.shape[1], *hidden, targets.shape[1]),
        shortcuts=table.shortcuts,
        variant=job.optimizer,
    )
    rows = []
    for name in FIGURES:
        if name in table.published[job.problem] or name in UNPUBLISHED:
            sample = np.asarray(figures[name], float)
            mean, deviation = float(sample.mean()), float(sample.std(ddof=1))
            found = {"figure": name, "mean": mean, "deviation": deviation}
            rows.append(job._asdict() | {"runs": len(keys)} | found)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all missing jobs, as many at once as there are cores."""
    parser = cli.parser(__doc__, "proben1")
    cli.add_data_dir(parser, required=True)
    options = parser.parse_args(arguments)
    names = sorted({job.problem for job in list_jobs()})
    try:
        data = {
            name: to_jax(read_proben1(path), "float32")
            for name, path in find_proben1(options.data_dir, names).items()
        }
    except ValueError as error:
        parser.error(f"--data-dir: {error}")
    study = Study(options.output_dir, "tables", Job._fields)
    jobs = [job for job in list_jobs() if not study.has(*job)]

    def work(job: Job) -> list[Any]:
        runs = 2 if options.quick else TABLES[job.table].runs
        max_epochs = 20 if options.quick else MAX_EPOCHS
        keys = jax.random.split(jax.random.key(0), runs)
        return measure(job, data[job.problem], keys, max_epochs)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in tqdm.tqdm(pool.map(work, jobs), total=len(jobs), unit="job"):
            study.add(rows)


if __name__ == "__main__":
    main()
