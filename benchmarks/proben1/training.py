"""How Proben1's report trained its networks: error measure and stopping rule.

L. Prechelt, Proben1: a set of neural network benchmark problems and benchmarking
rules, Technical Report 21/94, Universität Karlsruhe, 1994, sections 2 and 3.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import optax_rprop
from benchmarks.common import networks
from benchmarks.common.data import Data, Split

STRIP_LENGTH = 5
MIN_PROGRESS = 0.1
MAX_EPOCHS = 3000


class Network:
    """A multilayer network with all weights in one vector.

    Rprop treats every weight alike, and one array compiles and runs faster than many.
    `sizes` are those of the layers, from inputs to outputs; for shortcuts, see
    `networks`.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        shortcuts: bool = False,
    ) -> None:
        self._forward = functools.partial(
            networks.forward, hidden=jax.nn.soft_sign, shortcuts=shortcuts
        )
        zeros = networks.zeros(sizes, shortcuts=shortcuts)
        self.zeros, self.layers = ravel_pytree(zeros)

    def predict(self, weights: jax.Array, inputs: jax.Array) -> jax.Array:
        """The outputs for inputs of shape (examples, inputs)."""
        return self._forward(self.layers(weights), inputs)

    def error(self, weights: jax.Array, data: Data) -> jax.Array:
        """The squared error percentage, for targets from 0 to 1."""
        outputs = self.predict(weights, data["inputs"])
        return 100 * networks.mean_square(outputs, data["targets"])


class Protocol(NamedTuple):
    """The settings of the report's series of runs, apart from the network."""

    max_weight: float  # Initial weights are uniform between minus this and this.
    min_step: float  # Initial step sizes are uniform between this and the next.
    max_step: float
    max_loss: float  # The generalization loss, in percent, above which training stops.


class Run(NamedTuple):
    """The state of one run after a strip."""

    weights: jax.Array
    opt_state: Any
    best_weights: jax.Array  # At the lowest validation error.
    train_error: jax.Array  # The lowest of any epoch.
    validation_error: jax.Array  # The lowest of any strip's end.
    # GL: the percentage by which the last validation error exceeds the lowest.
    generalization_loss: jax.Array
    # P: by how many per mille the strip's mean training error exceeds its lowest.
    progress: jax.Array
    total_epochs: jax.Array
    relevant_epochs: jax.Array  # Up to the lowest validation error.


def start(
    key: jax.Array,
    network: Network,
    optimizer: optax.GradientTransformation,
    protocol: Protocol,
) -> Run:
    """A run before its first strip, with random weights and step sizes."""
    weights_key, steps_key = jax.random.split(key)
    shape, dtype = network.zeros.shape, network.zeros.dtype
    weights = jax.random.uniform(
        weights_key, shape, dtype, -protocol.max_weight, protocol.max_weight
    )
    step_sizes = jax.random.uniform(
        steps_key, shape, dtype, protocol.min_step, protocol.max_step
    )
    worst = jnp.asarray(jnp.finfo(dtype).max, dtype)
    return Run(
        weights=weights,
        opt_state=optax.tree.set(optimizer.init(weights), step_sizes=step_sizes),
        best_weights=weights,
        train_error=worst,
        validation_error=worst,
        generalization_loss=jnp.zeros_like(worst),
        progress=worst,
        total_epochs=jnp.zeros((), int),
        relevant_epochs=jnp.zeros((), int),
    )


def train_strip(
    run: Run,
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    data: Split,
) -> Run:
    """Train a run for one strip of epochs, then compute the validation error."""
    error_and_grad = jax.value_and_grad(network.error)

    def epoch(carry: tuple[jax.Array, Any], _: None) -> tuple[Any, jax.Array]:
        weights, opt_state = carry
        # The error of an epoch is that before its update, as measured in the pass
        # that computes the gradient.
        error, grads = error_and_grad(weights, data.train)
        updates, opt_state = optimizer.update(grads, opt_state, weights, value=error)
        return (optax.apply_updates(weights, updates), opt_state), error

    (weights, opt_state), errors = jax.lax.scan(
        epoch, (run.weights, run.opt_state), length=STRIP_LENGTH
    )
    error = network.error(weights, data.validation)
    improved = error < run.validation_error
    lowest = jnp.minimum(error, run.validation_error)
    total_epochs = run.total_epochs + STRIP_LENGTH
    return Run(
        weights=weights,
        opt_state=opt_state,
        best_weights=jnp.where(improved, weights, run.best_weights),
        train_error=jnp.minimum(errors.min(), run.train_error),
        validation_error=lowest,
        generalization_loss=100 * (error / lowest - 1),
        progress=1000 * (errors.mean() / errors.min() - 1),
        total_epochs=total_epochs,
        relevant_epochs=jnp.where(improved, total_epochs, run.relevant_epochs),
    )


def summarize(run: Run, network: Network, test: Data) -> dict[str, jax.Array]:
    """The report's figures of a finished run."""
    outputs = network.predict(run.best_weights, test["inputs"])
    classes = test["targets"].argmax(axis=-1)
    return {
        "train_error": run.train_error,
        "validation_error": run.validation_error,
        "test_error": network.error(run.best_weights, test),
        "test_misclassified_percent": networks.error_rate(outputs, classes),
        "overfit_gl": run.generalization_loss,
        "total_epochs": run.total_epochs,
        "relevant_epochs": run.relevant_epochs,
    }


@functools.partial(jax.jit, static_argnames=("sizes", "shortcuts", "variant"))
def train_all(
    keys: jax.Array,
    data: Split,
    protocol: Protocol,
    max_epochs: int,
    *,
    sizes: tuple[int, ...],
    shortcuts: bool,
    variant: Any,
) -> dict[str, jax.Array]:
    """The report's figures of all runs of one data set and variant, one per key."""
    # All other numbers are the defaults, which are those of the report.
    optimizer = optax_rprop.rprop(min_step_size=0.0, variant=variant)
    network = Network(sizes, shortcuts=shortcuts)

    def continues(run: Run) -> jax.Array:
        overfits = run.generalization_loss > protocol.max_loss
        stalls = run.progress < MIN_PROGRESS
        return ~(overfits | stalls | (run.total_epochs >= max_epochs))

    def train(key: jax.Array) -> dict[str, jax.Array]:
        run = jax.lax.while_loop(
            continues,
            lambda run: train_strip(run, network, optimizer, data),
            start(key, network, optimizer, protocol),
        )
        return summarize(run, network, data.test)

    # One after the other, because runs differ much in length.
    return jax.lax.map(train, keys)
