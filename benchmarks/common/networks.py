"""The multilayer network of all benchmarks, with its losses and errors."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = Any
Activation = Callable[[Any], Any]


def dense(
    key: jax.Array, *shape: int, gain: float = 1.0, dtype: str = "float32"
) -> dict[str, jax.Array]:
    """Normal weights with variance gain / inputs; the last axis is for the units."""
    inputs = functools.reduce(int.__mul__, shape[:-1])
    deviation = jnp.asarray(gain / inputs, dtype) ** 0.5
    return {
        "weights": deviation * jax.random.normal(key, shape, dtype),
        "bias": jnp.zeros(shape[-1], dtype),
    }


def init(
    key: jax.Array, sizes: Sequence[int], *, gain: float = 1.0, dtype: str = "float32"
) -> Params:
    """Parameters for layers of these sizes, inputs first; see `dense`."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        dense(key, *shape, gain=gain, dtype=dtype)
        for key, *shape in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def zeros(sizes: Sequence[int], *, shortcuts: bool = False) -> Params:
    """Parameters of 0; with shortcuts, all earlier layers are inputs of a layer."""
    return [
        {
            "weights": jnp.zeros((sum(sizes[:n]) if shortcuts else sizes[n - 1], size)),
            "bias": jnp.zeros(size),
        }
        for n, size in enumerate(sizes[1:], 1)
    ]


def affine(layer: Any, inputs: Any) -> Any:
    """The outputs of a linear layer."""
    return inputs @ layer["weights"] + layer["bias"]


def forward(
    params: Params, inputs: Any, hidden: Activation, *, shortcuts: bool = False
) -> Any:
    """The outputs of the last layer, which is linear.

    With shortcuts, every layer gets all earlier layers as inputs, not only the last.
    """
    for layer in params[:-1]:
        outputs = hidden(affine(layer, inputs))
        if shortcuts:
            outputs = jnp.concatenate([inputs, outputs], axis=-1)
        inputs = outputs
    return affine(params[-1], inputs)


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of the softmax, in nats; targets are class numbers."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def error_rate(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Percentage of rows that are classified wrongly."""
    wrong = outputs.argmax(axis=-1).astype(targets.dtype) != targets
    return 100 * jnp.mean(wrong, dtype=outputs.dtype)


def mean_square(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean square error."""
    return jnp.mean((outputs - targets) ** 2)


def percent_of_variance(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean square error in percent of the targets' variance, which must be 1."""
    return 100 * mean_square(outputs, targets)
