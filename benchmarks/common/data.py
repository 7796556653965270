"""Data sets: the split, the scaling and the reader of Proben1's files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

Data = Mapping[str, Any]
"""``inputs`` and ``targets``; integer targets are class numbers."""

PROBEN1_SOURCE = "https://github.com/jeffheaton/proben1"
_PARTS = ("training_examples", "validation_examples", "test_examples")


class Split(NamedTuple):
    """Rows for training, early stopping and testing; None if there are none."""

    train: Data
    validation: Any = None
    test: Any = None


def split(data: Data, counts: Sequence[int], seed: int = 0) -> Split:
    """Shuffle all rows, then put as many as `counts` says into each part."""
    order = np.random.default_rng(seed).permutation(len(data["inputs"]))
    ends = np.cumsum(counts)
    parts = np.split(order[: ends[-1]], ends[:-1])
    return Split(*({name: data[name][rows] for name in data} for rows in parts))


def hold_out(data: Data, train: int) -> Split:
    """`train` rows for training, half of the rest for each other part."""
    rows = len(data["inputs"])
    validation = (rows + train) // 2 - train
    return split(data, (train, validation, rows - train - validation))


def standardize(parts: Split, *names: str) -> Split:
    """Bring columns to mean 0 and variance 1 on the training rows."""
    for name in names:
        rows = parts.train[name]
        mean, deviation = rows.mean(axis=0), rows.std(axis=0)
        # A constant column is only centred.
        deviation[deviation == 0] = 1
        parts = Split(*({**p, name: (p[name] - mean) / deviation} for p in parts))
    return parts


def stack(splits: Sequence[Split]) -> Split:
    """Several splits of one data set, along the first axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *splits)


def to_jax(parts: Split, dtype: str) -> Split:
    """JAX arrays; class numbers are int32."""

    def convert(array: np.ndarray) -> jax.Array:
        return jnp.asarray(array, "int32" if array.dtype.kind == "i" else dtype)

    return jax.tree.map(convert, parts)


def digits(*shape: int) -> Data:
    """The 1,797 digits of scikit-learn: pixels from 0 to 1 in this shape; classes."""
    bunch: Any = datasets.load_digits()
    images = (bunch.images / 16).astype(np.float32)
    return {"inputs": images.reshape(-1, *shape), "targets": bunch.target}


def read_proben1(path: Path) -> Split:
    """Read a file in Proben1's format, with its own split, in float64.

    Args:
      path: Seven lines ``key=number``, then one row per example: inputs, targets.

    Raises:
      ValueError: The file does not have this format.
    """
    lines = path.read_text().splitlines()
    try:
        counts = {key: int(count) for key, count in (x.split("=") for x in lines[:7])}
        rows = np.array([line.split() for line in lines[7:] if line.strip()], float)
        inputs = counts["bool_in"] + counts["real_in"]
        columns = inputs + counts["bool_out"] + counts["real_out"]
        parts = [counts[part] for part in _PARTS]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} must be in Proben1's format: {error!r}.") from error
    if rows.shape != (sum(parts), columns):
        raise ValueError(
            f"{path} must have {sum(parts)} rows of {columns} numbers, as its header"
            f" says, got an array of shape {rows.shape}."
        )
    return Split(
        *(
            {"inputs": part[:, :inputs], "targets": part[:, inputs:]}
            for part in np.split(rows, np.cumsum(parts)[:2])
        )
    )


def with_classes(parts: Split) -> Split:
    """One-hot targets become class numbers; others are unchanged."""
    targets = np.concatenate([part["targets"] for part in parts])
    if not (np.sort(targets) == np.eye(targets.shape[1])[-1]).all():
        return parts
    return Split(*({**p, "targets": p["targets"].argmax(axis=1)} for p in parts))


def find_proben1(data_dir: Path | None, names: Sequence[str]) -> dict[str, Path]:
    """The files of data sets of Proben1; none, with a notice, if there is no folder.

    Raises:
      SystemExit: The folder lacks files, which the message names.
    """
    if data_dir is None:
        print(
            f"Without {', '.join(names)} of Proben1, as there is no --data-dir:"
            f" {PROBEN1_SOURCE} has these data sets, NAME.dt."
        )
        return {}
    paths = {name: data_dir / f"{name}.dt" for name in names}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise SystemExit(
            f"--data-dir {data_dir} lacks {', '.join(missing)} of Proben1:"
            f" {PROBEN1_SOURCE} has them, one folder per problem."
        )
    return paths
