"""Data sets and networks that are trained on mini-batches.

The data of a problem are split anew for every run: the first axis of all its arrays
counts the runs. Errors are in percent: of rows classified wrongly, or of the variance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from sklearn import datasets

from benchmarks.common import data as sets
from benchmarks.common.data import Data, Split, digits
from benchmarks.common.networks import Params, affine, dense
from benchmarks.common.problems import Problem, network, supervised

# Where our settings were chosen, by validation error; the others were not looked at.
DEVELOPED_ON = ("digits", "friedman1", "shells", "building1", "clusters")
PROBEN1 = ("thyroid1", "soybean1", "building1", "diabetes1", "flare1", "heart1")
HIDDEN = (64, 64)
# He's initialization, for rectified linear units.
GAIN = 2.0
# Validation and test sets hold this many rows at most.
MOST_HELD_OUT = 1000


def splits(data: Data, runs: int, *, most_held_out: int = MOST_HELD_OUT) -> Split:
    """60 : 20 : 20 at random, anew for every run.

    Features are brought to mean 0 and variance 1 by those of the training rows,
    images are left as they are.
    """
    rows = len(data["inputs"])
    held_out = min(most_held_out, rows // 5)
    features = data["inputs"].ndim == 2 and data["inputs"].dtype.kind == "f"
    parts = []
    for run in range(runs):
        part = sets.split(data, (round(0.6 * rows), held_out, held_out), seed=run)
        parts.append(sets.standardize(part, "inputs") if features else part)
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


def patches(images: jax.Array) -> jax.Array:
    """All patches of 3 x 3 pixels, zeros around; shape (..., 9 x channels).

    A convolution as a matrix product over them is several times as fast as XLA's own
    when many networks train at once on a processor.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [
        padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def halved(images: jax.Array) -> jax.Array:
    """The maxima of 2 x 2 pixels."""
    rows, height, width, channels = images.shape
    pairs = images.reshape(rows, height // 2, 2, width // 2, 2, channels)
    return pairs.max(axis=(2, 4))


def convolutional(name: str, data: Data, runs: int) -> Problem:
    """Two 3 x 3 convolutions, of 8 and 16 channels, with a 2 x 2 maximum between."""

    def init(key: jax.Array) -> Params:
        shapes = ((9, 8), (72, 16), (256, 10))
        keys = jax.random.split(key, len(shapes))
        return [dense(k, *s, gain=GAIN) for k, s in zip(keys, shapes, strict=True)]

    def apply(params: Params, images: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(affine(params[0], patches(images[..., None])))
        hidden = jax.nn.relu(affine(params[1], patches(halved(hidden))))
        return affine(params[2], hidden.reshape(len(images), -1))

    return model(name, data, runs, apply, init)


def recurrent(name: str, data: Data, runs: int) -> Problem:
    """A gated recurrent unit of 24 cells, read out after the last symbol."""
    cells, symbols = 24, int(data["inputs"].max()) + 1
    classes = int(data["targets"].max()) + 1

    def init(key: jax.Array) -> Params:
        first, second, last = jax.random.split(key, 3)
        return {
            "inputs": dense(first, symbols, 3 * cells, gain=GAIN),
            "recurrent": dense(second, cells, 3 * cells, gain=GAIN),
            "outputs": dense(last, cells, classes, gain=GAIN),
        }

    def apply(params: Params, sequences: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(sequences, symbols, axis=-1)
        driven = affine(params["inputs"], one_hot)

        def step(state: jax.Array, driven: jax.Array) -> tuple[jax.Array, None]:
            recalled = affine(params["recurrent"], state)
            reset, update, candidate = jnp.split(driven, 3, axis=-1)
            reset_by, update_by, candidate_by = jnp.split(recalled, 3, axis=-1)
            update = jax.nn.sigmoid(update + update_by)
            reset = jax.nn.sigmoid(reset + reset_by)
            candidate = jnp.tanh(candidate + reset * candidate_by)
            return update * state + (1 - update) * candidate, None

        start = jnp.zeros((len(sequences), cells))
        state, _ = jax.lax.scan(step, start, jnp.moveaxis(driven, 1, 0))
        return affine(params["outputs"], state)

    return model(name, data, runs, apply, init)


def model(
    name: str, data: Data, runs: int, apply: Any, init: Any, what: str = "rows"
) -> Problem:
    """Another network."""
    description = f"{len(data['inputs']):,} {what}"
    return supervised(name, description, splits(data, runs), apply, init)


def marked_sum(rows: int, length: int = 12) -> Data:
    """Sequences of 4 symbols and two markers; the sum of the symbols after these.

    The class is the sum modulo 4.
    """
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, 4, (rows, length))
    half = length // 2
    first = rng.integers(0, half - 1, rows)
    second = rng.integers(half, length - 1, rows)
    each = np.arange(rows)
    sequences[each, first] = sequences[each, second] = 4
    total = sequences[each, first + 1] + sequences[each, second + 1]
    return {"inputs": sequences, "targets": total % 4}


def small(runs: int) -> Problem:
    """For a smoke run: a network that compiles fast."""
    return multilayer("digits", digits(64), runs, hidden=(16,))


def standard_column(targets: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and variance 1."""
    return np.asarray(stats.zscore(targets)).reshape(len(targets), -1)


def packaged(runs: int) -> list[Problem]:
    """The problems that need no files: from scikit-learn, or generated."""
    cancer: Any = datasets.load_breast_cancer()
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
    sets = {
        "digits": digits(64),
        "cancer": {"inputs": cancer.data, "targets": cancer.target},
        "friedman1": {
            "inputs": friedman[0],
            "targets": standard_column(friedman[1]),
        },
        "shells": dict(zip(("inputs", "targets"), shells, strict=True)),
        "clusters": dict(zip(("inputs", "targets"), clusters, strict=True)),
    }
    return [
        *(multilayer(name, data, runs) for name, data in sets.items()),
        convolutional("digits, convolutional", digits(8, 8), runs),
        recurrent("marked sum, recurrent", marked_sum(4000), runs),
    ]


def proben1(path: Path, runs: int) -> Problem:
    """A problem of Proben1 from its ``.dt`` file; its own split is not used."""
    parts = sets.with_classes(sets.read_proben1(path))
    data = {
        name: np.concatenate([part[name] for part in parts]) for name in parts.train
    }
    if data["targets"].dtype.kind == "f":
        data["targets"] = standard_column(data["targets"])
    return multilayer(path.stem, data, runs)
