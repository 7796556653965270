"""Problems on which no setting was chosen: curve fits, differential equations, nets."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import networks
from benchmarks.common.data import find_proben1
from benchmarks.common.networks import Params
from benchmarks.common.problems import Problem
from benchmarks.full_batch import models
from benchmarks.full_batch.functions import function, near

_NIST = Path(__file__).parent / "nist"

# The models of the data sets, as NIST prints them.
_MODELS: dict[str, Callable[[Any, Any], Any]] = {
    "Misra1a": lambda b, x: b[0] * (1 - jnp.exp(-b[1] * x)),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "Chwirut2": lambda b, x: jnp.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Eckerle4": lambda b, x: b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    "Kirby2": lambda b, x: (
        (b[0] + b[1] * x + b[2] * x**2) / (1 + b[3] * x + b[4] * x**2)
    ),
    "Thurber": lambda b, x: (
        (b[0] + b[1] * x + b[2] * x**2 + b[3] * x**3)
        / (1 + b[4] * x + b[5] * x**2 + b[6] * x**3)
    ),
}


def nist(name: str) -> Problem:
    """A nonlinear least-squares problem of NIST, from its second start, perturbed.

    Data: https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml
    """
    path = _NIST / f"{name}.dat"
    start = re.findall(r"^ *b\d+ = +\S+ +(\S+)", path.read_text(), re.MULTILINE)
    y, x = np.loadtxt(path, skiprows=60, unpack=True)
    model = _MODELS[name]
    return function(
        f"NIST {name}",
        f"{len(start)} parameters in their units, {len(y)} rows, mean square",
        near(np.array(start, float), relative=True),
        lambda params, x, y: networks.mean_square(model(params, x), y),
        x=x,
        y=y,
    )


def physics_informed() -> Problem:
    """A network that solves u'' = -pi² sin(pi x), u = 0 at both ends."""

    def loss(params: Params, x: jax.Array) -> jax.Array:
        def u(x: jax.Array) -> jax.Array:
            return networks.forward(params, x[None, None], jnp.tanh)[0, 0]

        curvature = jax.vmap(jax.grad(jax.grad(u)))(x)
        residuals = curvature + jnp.pi**2 * jnp.sin(jnp.pi * x)
        return jnp.mean(residuals**2) + 10 * (u(x[0]) ** 2 + u(x[-1]) ** 2)

    return function(
        "PINN",
        "Poisson's equation in one dimension; net 1-10-10-1, 32 points",
        lambda key: networks.init(key, (1, 10, 10, 1), dtype="float64"),
        loss,
        x=jnp.linspace(-1.0, 1.0, 32),
    )


def transformer(width: int = 16, length: int = 8, tokens: int = 8) -> Problem:
    """One attention block on the full batch: each output sums all inputs so far."""
    inputs = np.random.default_rng(0).integers(tokens, size=(128, length))
    targets = np.cumsum(inputs, axis=1) % 2
    mask = jnp.tril(jnp.ones((length, length), bool))
    shapes = {
        "embedding": (tokens, width),
        "positions": (length, width),
        "query": (width, width),
        "key": (width, width),
        "values": (width, width),
        "in": (width, 4 * width),
        "out": (4 * width, width),
        "head": (width, 2),
    }

    def init(key: jax.Array) -> Params:
        keys = jax.random.split(key, len(shapes))
        return {
            name: jax.random.normal(key, shape, "float32") / np.float32(shape[0] ** 0.5)
            for (name, shape), key in zip(shapes.items(), keys, strict=True)
        }

    def loss(params: Params, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        x = params["embedding"][inputs] + params["positions"]
        scores = (x @ params["query"]) @ jnp.swapaxes(x @ params["key"], 1, 2)
        scores = jnp.where(mask, scores / width**0.5, jnp.finfo(x.dtype).min)
        x = x + jax.nn.softmax(scores) @ (x @ params["values"])
        x = x + jax.nn.gelu(x @ params["in"]) @ params["out"]
        return networks.cross_entropy(x @ params["head"], targets)

    return function(
        "transformer",
        f"one block of width {width}, parity of running sums, 128 sequences",
        init,
        loss,
        dtype="float32",
        inputs=inputs,
        targets=targets.astype("int32"),
    )


def unseen(data_dir: Path | None) -> list[tuple[Problem, int]]:
    """The problems, each with its budget of gradients."""
    found = [(nist(name), 1000) for name in _MODELS]
    found += [(physics_informed(), 300), (transformer(), 300)]
    paths = find_proben1(data_dir, ("cancer1", "card1", "diabetes1", "horse1"))
    return [*found, *((models.proben1(path), 300) for path in paths.values())]
