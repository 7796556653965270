"""Data sets and networks for the study of training on mini-batches."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import read_proben1
from sklearn import datasets

Params = Any
PROBEN1 = ("thyroid1", "soybean1", "building1", "diabetes1", "flare1", "heart1")
HIDDEN = (64, 64)


class Problem(NamedTuple):
    """Data and the network that is trained on them.

    Attributes:
      name: What tables call it.
      inputs: Shape (rows, ...).
      targets: Class numbers, shape (rows,), or, for regression, shape
        (rows, outputs).
      init: Makes the network's parameters from a random key.
      apply: The network: parameters and inputs to logits or predictions.
    """

    name: str
    inputs: np.ndarray
    targets: np.ndarray
    init: Callable[[jax.Array], Params]
    apply: Callable[[Params, jax.Array], jax.Array]

    @property
    def is_classification(self) -> bool:
        """Whether targets are class numbers."""
        return self.targets.ndim == 1

    def loss_and_error(
        self, params: Params, inputs: jax.Array, targets: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean loss, and the error that is reported.

        Cross-entropy in nats and the fraction classified wrongly; or, for
        regression, the mean squared error in units of the target's variance, for both.
        """
        outputs = self.apply(params, inputs)
        if self.is_classification:
            losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
            return losses.mean(), (outputs.argmax(axis=-1) != targets).mean()
        squares = jnp.mean((outputs - targets) ** 2)
        return squares, squares


def _dense(key: jax.Array, *shape: int) -> dict[str, jax.Array]:
    """He's initialisation; the last axis of the shape counts the units."""
    deviation = np.sqrt(2 / np.prod(shape[:-1])).astype(np.float32)
    return {
        "weights": deviation * jax.random.normal(key, shape),
        "bias": jnp.zeros(shape[-1]),
    }


def _affine(layer: dict[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return inputs @ layer["weights"] + layer["bias"]


def multilayer(
    name: str, inputs: np.ndarray, targets: np.ndarray, hidden: Sequence[int] = HIDDEN
) -> Problem:
    """A network of hidden layers of rectified linear units."""
    outputs = targets.max() + 1 if targets.ndim == 1 else targets.shape[1]
    sizes = (inputs.shape[1], *hidden, int(outputs))

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [_dense(*layer) for layer in shapes]

    def apply(params: Params, inputs: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            inputs = jax.nn.relu(_affine(layer, inputs))
        return _affine(params[-1], inputs)

    return Problem(name, inputs, targets, init, apply)


def convolutional(name: str, images: np.ndarray, targets: np.ndarray) -> Problem:
    """Two 3 x 3 convolutions, of 8 and 16 channels, with a 2 x 2 maximum between.

    A convolution is written as a matrix product over patches, which is several
    times as fast as XLA's own when many networks train at once on a processor.
    """

    def patches(images: jax.Array) -> jax.Array:
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [
            padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)
        ]
        return jnp.concatenate(shifted, axis=-1)

    def init(key: jax.Array) -> Params:
        first, second, last = jax.random.split(key, 3)
        return [_dense(first, 9, 8), _dense(second, 72, 16), _dense(last, 256, 10)]

    def apply(params: Params, images: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(_affine(params[0], patches(images)))
        rows, height, width, channels = hidden.shape
        pairs = hidden.reshape(rows, height // 2, 2, width // 2, 2, channels)
        hidden = jax.nn.relu(_affine(params[1], patches(pairs.max(axis=(2, 4)))))
        return _affine(params[2], hidden.reshape(rows, -1))

    return Problem(name, images[..., None], targets, init, apply)


def recurrent(name: str, sequences: np.ndarray, targets: np.ndarray) -> Problem:
    """A gated recurrent unit of 24 cells, read out after the last symbol."""
    cells, symbols = 24, int(sequences.max()) + 1

    def init(key: jax.Array) -> Params:
        first, second, last = jax.random.split(key, 3)
        return {
            "inputs": _dense(first, symbols, 3 * cells),
            "recurrent": _dense(second, cells, 3 * cells),
            "outputs": _dense(last, cells, int(targets.max()) + 1),
        }

    def apply(params: Params, sequences: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(sequences, symbols, axis=-1)
        driven = _affine(params["inputs"], one_hot)

        def step(state: jax.Array, driven: jax.Array) -> tuple[jax.Array, None]:
            recalled = _affine(params["recurrent"], state)
            reset, update, candidate = jnp.split(driven, 3, axis=-1)
            reset_by, update_by, candidate_by = jnp.split(recalled, 3, axis=-1)
            update = jax.nn.sigmoid(update + update_by)
            reset = jax.nn.sigmoid(reset + reset_by)
            candidate = jnp.tanh(candidate + reset * candidate_by)
            return update * state + (1 - update) * candidate, None

        start = jnp.zeros((len(sequences), cells))
        state, _ = jax.lax.scan(step, start, jnp.moveaxis(driven, 1, 0))
        return _affine(params["outputs"], state)

    return Problem(name, sequences, targets, init, apply)


def _marked_sum(rows: int, length: int = 12) -> tuple[np.ndarray, np.ndarray]:
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
    return sequences, (sequences[each, first + 1] + sequences[each, second + 1]) % 4


def _column(targets: np.ndarray) -> np.ndarray:
    return ((targets - targets.mean()) / targets.std()).astype(np.float32)[:, None]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn's handwritten digits: images from 0 to 1, and classes."""
    digits: Any = datasets.load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


def small() -> Problem:
    """For a smoke run: a network that compiles fast."""
    images, targets = _digits()
    return multilayer("digits", images.reshape(-1, 64), targets, hidden=(16,))


def packaged() -> list[Problem]:
    """The problems that need no files: from scikit-learn, or generated."""
    images, targets = _digits()
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
    return [
        multilayer("digits", images.reshape(-1, 64), targets),
        multilayer("cancer", cancer.data, cancer.target),
        multilayer("friedman1", friedman[0], _column(friedman[1])),
        multilayer("shells", *shells),
        multilayer("clusters", *clusters),
        convolutional("digits, convolutional", images, targets),
        recurrent("marked sum, recurrent", *_marked_sum(4000)),
    ]


def proben1(path: Path) -> Problem:
    """A problem of Proben1 from its ``.dt`` file; its own split is not used."""
    parts, classes = read_proben1(path)
    inputs, targets = map(np.concatenate, zip(*parts, strict=True))
    if not classes:
        targets = (targets - targets.mean(axis=0)) / targets.std(axis=0)
    return multilayer(path.stem, inputs, targets)


class Split(NamedTuple):
    """Training, validation and test rows; the first axis counts the seeds."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def split(problem: Problem, seeds: int, most_held_out: int = 1000) -> Split:
    """Divide 60 : 20 : 20 at random, anew for every seed.

    Features are brought to mean 0 and variance 1 by those of the training rows,
    images are left as they are. Validation and test sets hold `most_held_out` rows
    at most.
    """
    rows = len(problem.inputs)
    ends = np.cumsum([round(0.6 * rows), *[min(most_held_out, rows // 5)] * 2])
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[], [], []]
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(rows)
        indices = np.split(order[: ends[-1]], ends[:-1])
        inputs = problem.inputs
        if inputs.ndim == 2 and inputs.dtype.kind == "f":
            training = inputs[indices[0]]
            deviation = training.std(axis=0)
            deviation[deviation == 0] = 1
            inputs = ((inputs - training.mean(axis=0)) / deviation).astype(np.float32)
        for part, index in zip(parts, indices, strict=True):
            part.append((inputs[index], problem.targets[index]))
    stacked = [tuple(map(np.stack, zip(*part, strict=True))) for part in parts]
    return Split(*stacked)  # pyright: ignore[reportArgumentType]
