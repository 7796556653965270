"""Networks and linear models, fitted on the full batch.

Networks are in float32, as usual; everything else is in float64, for which the scripts
enable x64.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from sklearn import datasets

from benchmarks.common import data as sets
from benchmarks.common import networks, problems
from benchmarks.common.data import Data, Split, hold_out, standardize
from benchmarks.common.networks import Params, affine
from benchmarks.common.problems import Problem, network, supervised
from benchmarks.full_batch.functions import function

# --- Networks ----------------------------------------------------------------


def _diabetes(*, scaled: bool) -> Split:
    bunch: Any = datasets.load_diabetes(scaled=scaled)
    data = {"inputs": bunch.data, "targets": bunch.target[:, None]}
    return hold_out(data, 266)


def deep_sigmoid(train: int = 512) -> Problem:
    """Three hidden layers of logistic units, whose gradients nearly vanish."""
    return network(
        "deep sigmoid net",
        f"digits, {train} to train; three hidden layers of logistic units",
        hold_out(sets.digits(64), train),
        (16, 16, 16),
        hidden=jax.nn.sigmoid,
    )


def small_regression() -> Problem:
    """A small network on the diabetes data that come with scikit-learn."""
    return network(
        "regression net",
        "diabetes of scikit-learn, standardized; tanh, mean square",
        standardize(_diabetes(scaled=True), "inputs", "targets"),
        (8,),
    )


def proben1(path: Path, hidden: int = 16) -> Problem:
    """A network on a Proben1 data set, split as the file says."""
    data = sets.with_classes(sets.read_proben1(path))
    loss = "cross-entropy" if problems.is_classes(data) else "mean square"
    return network(
        path.stem,
        f"Proben1, {len(data.train['inputs']):,} to train; tanh, {loss}",
        data,
        (hidden,),
    )


def encoder(inputs: int = 12, hidden: int = 2) -> Problem:
    """A logistic network that outputs which of its inputs is 1."""
    patterns = jnp.eye(inputs)

    def loss(params: Params, patterns: jax.Array) -> jax.Array:
        outputs = jax.nn.sigmoid(networks.forward(params, patterns, jax.nn.sigmoid))
        return networks.mean_square(outputs, patterns)

    return function(
        f"encoder {inputs}-{hidden}-{inputs}",
        "logistic units, mean square",
        lambda key: networks.init(key, (inputs, hidden, inputs)),
        loss,
        dtype="float32",
        patterns=patterns.astype("float32"),
    )


# --- Linear models -----------------------------------------------------------


def _linear(name: str, description: str, data: Split, *, ridge: float) -> Problem:
    """A linear model from near 0, with a ridge that does not depend on units."""
    spread = jnp.asarray(data.train["inputs"].std(axis=0))
    units = problems.outputs(data)

    def init(key: jax.Array) -> Params:
        # About as far off as 0 is for standardized features.
        drawn = 0.1 * jax.random.normal(key, (spread.size, units), "float64")
        return [{"weights": drawn / spread[:, None], "bias": jnp.zeros(units)}]

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return affine(params[0], inputs)

    model = supervised(name, description, data, apply, init, dtype="float64")

    def loss(params: Params, data: Data) -> jax.Array:
        weights = params[0]["weights"] * spread[:, None]
        return model.loss(params, data) + ridge * jnp.sum(weights**2)

    return dataclasses.replace(model, loss=loss)


def logistic(name: str, *, standardized: bool) -> Problem:
    """Softmax regression on ``"cancer"`` or ``"wine"`` of scikit-learn."""
    load = {"cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]
    inputs, targets = load(return_X_y=True)
    data = {"inputs": inputs, "targets": targets}
    parts = hold_out(data, round(0.6 * len(inputs)))
    if standardized:
        parts = standardize(parts, "inputs")
    units = "standardized features" if standardized else "features in their units"
    return _linear(
        f"logistic {name}, {'scaled' if standardized else 'raw'}",
        f"softmax regression, ridge 1e-3, {units}",
        parts,
        ridge=1e-3,
    )


def least_squares() -> Problem:
    """Linear least squares on the diabetes data in their units."""
    return _linear(
        "least squares, raw",
        "linear regression on diabetes of scikit-learn, features in their units",
        _diabetes(scaled=False),
        ridge=0.0,
    )
