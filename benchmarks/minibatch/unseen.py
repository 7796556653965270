"""Problems on which nothing of this package was chosen."""

import importlib.resources
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

import benchmarks.minibatch.problems as sets
from benchmarks.common.data import Data, digits
from benchmarks.common.networks import Params, affine, dense
from benchmarks.common.problems import Problem, supervised
from benchmarks.minibatch.problems import GAIN, multilayer, standard_column

PROBEN1 = ("glass1", "hearta1", "horse1")
WIDE = (256, 256)
# By name, where not all make sense or are affordable.
BATCHES = {
    "arm, wide": (32, 512),
    "photographs, convolutional": (8, 32),
    "text, transformer": (8, 32),
}


def arm(rows: int = 8000, joints: int = 6) -> Data:
    """Angles of a planar arm's joints, and how far its hand is from its foot."""
    rng = np.random.default_rng(0)
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (rows, joints))
    headings = angles.cumsum(axis=1)
    hand = np.hypot(np.cos(headings).sum(axis=1), np.sin(headings).sum(axis=1))
    noise = 0.1 * rng.normal(size=rows)
    return {"inputs": angles, "targets": standard_column(hand + noise)}


def photographs(side: int = 12) -> Data:
    """Gray patches of two photographs, turned by quarters: by how many?

    Patches do not overlap, so that those to test on are new.
    """
    images: Any = datasets.load_sample_images().images
    patches = []
    for image in images:
        gray = image.mean(axis=-1)
        windows = np.lib.stride_tricks.sliding_window_view(gray, (side, side))
        patches.append(windows[::side, ::side].reshape(-1, side, side))
    pixels = np.concatenate(patches) / 255 - 0.5
    turns = np.random.default_rng(0).integers(0, 4, len(pixels))
    turned = [np.rot90(*pair) for pair in zip(pixels, turns, strict=True)]
    return {"inputs": np.array(turned, np.float32), "targets": turns}


def text(length: int = 12) -> Data:
    """Letters of scikit-learn's descriptions of data sets, and those that follow."""
    folder = importlib.resources.files("sklearn.datasets") / "descr"
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    texts = [file.read_text() for file in files if file.name.endswith(".rst")]
    words = re.findall("[a-z]+", " ".join(texts).lower())
    symbols = np.frombuffer(" ".join(words).encode(), np.uint8).astype(int)
    symbols = np.where(symbols == ord(" "), 0, symbols - ord("a") + 1)
    windows = symbols[: symbols.size // (length + 1) * (length + 1)]
    windows = windows.reshape(-1, length + 1)
    return {"inputs": windows[:, :-1], "targets": windows[:, 1:]}


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


def model(
    name: str, data: Data, runs: int, apply: Any, init: Any, what: str
) -> Problem:
    """A network that is not `multilayer`."""
    description = f"{len(data['inputs']):,} {what}"
    return supervised(name, description, sets.splits(data, runs), apply, init)


def normalize(layer: Any, inputs: jax.Array) -> jax.Array:
    """Layer normalization over the last axis, with scale and shift."""
    centered = inputs - inputs.mean(axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    return centered * jax.lax.rsqrt(variance + 1e-5) * layer["scale"] + layer["shift"]


def _normalization(size: int) -> Params:
    return {"scale": jnp.ones(size), "shift": jnp.zeros(size)}


def normalized_convolutional(name: str, data: Data, runs: int) -> Problem:
    """Two convolutions of 16 channels, each normalized.

    The first takes 3 x 3 pixels at a time, which do not overlap; the second, too, takes
    3 x 3, at every place.
    """
    channels, places = 16, (data["inputs"].shape[1] // 3) ** 2

    def init(key: jax.Array) -> Params:
        shapes = ((9, channels), (9 * channels, channels), (places * channels, 4))
        keys = jax.random.split(key, len(shapes))
        layers = [dense(k, *s, gain=GAIN) for k, s in zip(keys, shapes, strict=True)]
        return {"layers": layers, "norms": [_normalization(channels) for _ in range(2)]}

    def apply(params: Params, images: jax.Array) -> jax.Array:
        (first, second, last), norms = params["layers"], params["norms"]
        hidden = affine(first, patches(images[..., None])[:, 1::3, 1::3])
        hidden = patches(jax.nn.relu(normalize(norms[0], hidden)))
        hidden = jax.nn.relu(normalize(norms[1], affine(second, hidden)))
        return affine(last, hidden.reshape(len(images), -1))

    what = "patches, by how many quarters they are turned;"
    what += " two convolutions with layer normalization"
    return model(name, data, runs, apply, init, what)


def transformer(name: str, data: Data, runs: int, width: int = 16) -> Problem:
    """One causal block of two heads, with layer normalization before each part."""
    length, heads = data["inputs"].shape[1], 2
    symbols = int(max(part.max() for part in data.values())) + 1

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, 7)
        normal = jax.random.normal
        return {
            "symbols": 0.5 * normal(keys[0], (symbols, width)),
            "places": 0.5 * normal(keys[1], (length, width)),
            "attention": dense(keys[2], width, 3 * width),
            "mixed": dense(keys[3], width, width),
            "hidden": dense(keys[4], width, 2 * width, gain=GAIN),
            "added": dense(keys[5], 2 * width, width),
            "outputs": dense(keys[6], width, symbols),
            "norms": [_normalization(width) for _ in range(3)],
        }

    def apply(params: Params, sequences: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(sequences, symbols)
        stream = one_hot @ params["symbols"] + params["places"]
        first, second, last = params["norms"]
        three = affine(params["attention"], normalize(first, stream))
        split = three.reshape(*three.shape[:-1], 3, heads, -1)
        queries, keys, values = jnp.moveaxis(split, -3, 0)
        scores = jnp.einsum("nqhd,nkhd->nhqk", queries, keys)
        scores *= queries.shape[-1] ** -0.5
        causal = jnp.tril(jnp.ones((length, length), bool))
        shares = jax.nn.softmax(jnp.where(causal, scores, -1e9))
        mixed = jnp.einsum("nhqk,nkhd->nqhd", shares, values)
        stream += affine(params["mixed"], mixed.reshape(stream.shape))
        hidden = jax.nn.relu(affine(params["hidden"], normalize(second, stream)))
        stream += affine(params["added"], hidden)
        return affine(params["outputs"], normalize(last, stream))

    what = f"windows of {length} characters, the next of each;"
    what += " one block with layer normalization"
    return model(name, data, runs, apply, init, what)


def unseen(paths: dict[str, Path], runs: int) -> list[Problem]:
    """All of them; those of Proben1 from their files."""
    rings = datasets.make_hastie_10_2(6000, random_state=0)
    hastie = {"inputs": rings[0], "targets": (rings[1] > 0).astype(int)}
    images = digits(64)["inputs"]
    centered = images - images.mean(axis=0)
    return [
        *(sets.proben1(path, runs) for path in paths.values()),
        multilayer("Hastie, wide", hastie, runs, hidden=(512,)),
        multilayer(
            "digits, autoencoder",
            {"inputs": images, "targets": centered / centered.std()},
            runs,
            hidden=(64, 12, 64),
        ),
        multilayer("arm, wide", arm(), runs, hidden=WIDE),
        normalized_convolutional("photographs, convolutional", photographs(), runs),
        transformer("text, transformer", text(), runs),
    ]
