"""Data sets and networks that are trained on mini-batches.

The data of a problem are split anew for every run: the first axis of all its arrays
counts the runs. Errors are in percent: of rows classified wrongly, or of the variance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats
from sklearn import datasets

from benchmarks.common import data as sets
from benchmarks.common.data import Data, Split, digits
from benchmarks.common.problems import Problem, network

# Our settings were chosen on these, by validation error, and not on the others.
DEVELOPED_ON = ("digits", "friedman1", "shells", "building1", "clusters")
UNSEEN_PROBEN1 = ("hearta1",)
PROBEN1 = ("thyroid1", "building1", "diabetes1", "flare1", "heart1")
# By name, where not all batch sizes are affordable.
BATCHES = {"arm, wide": (32, 512)}
HIDDEN = (64, 64)
# He's initialization, for rectified linear units.
GAIN = 2.0
# Validation and test sets have at most this many rows.
MOST_HELD_OUT = 1000


def splits(data: Data, runs: int) -> Split:
    """60 : 20 : 20 at random, anew for every run.

    Features are brought to mean 0 and variance 1 by those of the training rows.
    """
    rows = len(data["inputs"])
    held_out = min(MOST_HELD_OUT, rows // 5)
    parts = []
    for run in range(runs):
        part = sets.split(data, (round(0.6 * rows), held_out, held_out), seed=run)
        parts.append(sets.standardize(part, "inputs"))
    return sets.stack(parts)


def multilayer(
    name: str, data: Data, runs: int, hidden: Sequence[int] = HIDDEN
) -> Problem:
    """A network of hidden layers of rectified linear units."""
    return network(
        name,
        f"{len(data['inputs']):,} rows",
        splits(data, runs),
        hidden,
        hidden=jax.nn.relu,
        gain=GAIN,
        of_variance=True,
    )


def standard_column(targets: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1."""
    return np.asarray(stats.zscore(targets)).reshape(len(targets), -1)


def small(runs: int) -> Problem:
    """For a smoke run: a network that compiles fast."""
    return multilayer("digits", digits(64), runs, hidden=(16,))


def packaged(runs: int) -> list[Problem]:
    """The problems that need no files: from scikit-learn, or generated."""
    friedman: Any = datasets.make_friedman1(2000, noise=1.0, random_state=0)
    shells: Any = datasets.make_gaussian_quantiles(
        n_samples=10_000, n_features=6, n_classes=4, random_state=0
    )
    clusters: Any = datasets.make_classification(
        n_samples=60_000,
        n_features=20,
        n_informative=10,
        n_classes=5,
        n_clusters_per_class=4,
        flip_y=0.02,
        random_state=0,
    )
    found = {
        "digits": digits(64),
        "friedman1": {
            "inputs": friedman[0],
            "targets": standard_column(friedman[1]),
        },
        "shells": dict(zip(("inputs", "targets"), shells, strict=True)),
        "clusters": dict(zip(("inputs", "targets"), clusters, strict=True)),
    }
    return [multilayer(name, data, runs) for name, data in found.items()]


def proben1(path: Path, runs: int) -> Problem:
    """A problem of Proben1 from its ``.dt`` file; its own split is not used."""
    parts = sets.with_classes(sets.read_proben1(path))
    data = {
        name: np.concatenate([part[name] for part in parts]) for name in parts.train
    }
    if data["targets"].dtype.kind == "f":
        data["targets"] = standard_column(data["targets"])
    return multilayer(path.stem, data, runs)


def arm(rows: int = 8000, joints: int = 6) -> Data:
    """Angles of a planar arm's joints, and how far its hand is from its foot."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (rows, joints))
    headings = angles.cumsum(axis=1)
    hand = np.hypot(np.cos(headings).sum(axis=1), np.sin(headings).sum(axis=1))
    noise = 0.1 * rng.normal(size=rows)
    return {"inputs": angles, "targets": standard_column(hand + noise)}


def unseen(paths: dict[str, Path], runs: int) -> list[Problem]:
    """Problems on which nothing was chosen; those of Proben1 from their files."""
    rings = datasets.make_hastie_10_2(6000, random_state=0)
    hastie = {"inputs": rings[0], "targets": (rings[1] > 0).astype(int)}
    images = digits(64)["inputs"]
    centered = images - images.mean(axis=0)
    return [
        *(proben1(path, runs) for path in paths.values()),
        multilayer("Hastie, wide", hastie, runs, hidden=(512,)),
        multilayer(
            "digits, autoencoder",
            {"inputs": images, "targets": centered / centered.std()},
            runs,
            hidden=(64, 12, 64),
        ),
        multilayer("arm, wide", arm(), runs, hidden=(256, 256)),
    ]
