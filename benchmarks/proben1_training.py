"""How Proben1's report trained its networks: data, error measure, stopping rule.

L. Prechelt, Proben1: a set of neural network benchmark problems and benchmarking
rules, Technical Report 21/94, Universität Karlsruhe, 1994, sections 2 and 3.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

import optax_rprop

STRIP_LENGTH = 5
MIN_PROGRESS = 0.1
MAX_EPOCHS = 3000
PLACES = 10


Rows = tuple[Any, Any]
"""Inputs and targets of some examples, each of shape (examples, coefficients)."""


Activation = Callable[[jax.Array], jax.Array]


class DataSet(NamedTuple):
    """The three parts of a data set."""

    train: Rows
    validation: Rows
    test: Rows


def read_data_set(path: Path) -> DataSet:
    """Read a file in Proben1's format.

    Args:
      path: Seven lines ``key=number``, then one row an example: inputs, targets.

    Returns:
      Training, validation and test examples, in the order of the file.

    Raises:
      ValueError: The file is not in this format.
    """
    lines = path.read_text().splitlines()
    try:
        counts = {key: int(count) for key, count in (x.split("=") for x in lines[:7])}
        rows = np.array([line.split() for line in lines[7:] if line.strip()], float)
        inputs = counts["bool_in"] + counts["real_in"]
        columns = inputs + counts["bool_out"] + counts["real_out"]
        parts = [counts[f"{x}_examples"] for x in ("training", "validation", "test")]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} must be in Proben1's format: {error!r}.") from error
    if rows.shape != (sum(parts), columns):
        raise ValueError(
            f"{path} must have {sum(parts)} rows of {columns} numbers, as its header"
            f" says, got an array of shape {rows.shape}."
        )
    split = np.split(rows, np.cumsum(parts)[:2])
    return DataSet(*((part[:, :inputs], part[:, inputs:]) for part in split))


class Network:
    """A multilayer network whose weights lie in one vector.

    Rprop treats every weight alike, and one array compiles and runs faster than many.

    Args:
      layer_sizes: From inputs to outputs.
      shortcuts: Whether all layers before it feed a layer, or only the last one.
      hidden: The hidden units' activation function.
      output: The output units' activation function.
    """

    def __init__(
        self,
        layer_sizes: Sequence[int],
        *,
        shortcuts: bool,
        hidden: Activation = jax.nn.soft_sign,
        output: Activation = jax.nn.identity,
    ) -> None:
        self._hidden = hidden
        self._output = output
        layers = [
            {
                "bias": jnp.zeros(size),
                "weights": [
                    jnp.zeros((source, size))
                    for source in layer_sizes[0 if shortcuts else depth : depth + 1]
                ],
            }
            for depth, size in enumerate(layer_sizes[1:])
        ]
        self.zeros, self._layers = jax.flatten_util.ravel_pytree(layers)

    def layers(self, weights: jax.Array) -> list[Any]:
        """Each layer's bias, and a matrix for every layer that feeds it."""
        return self._layers(weights)

    def predict(self, weights: jax.Array, inputs: jax.Array) -> jax.Array:
        """The outputs for inputs of shape (examples, inputs)."""
        layers = self.layers(weights)
        activations = [self._hidden] * (len(layers) - 1) + [self._output]
        outputs = [inputs]
        for layer, activation in zip(layers, activations, strict=True):
            sources = outputs[-len(layer["weights"]) :]
            products = map(jnp.matmul, sources, layer["weights"])
            total = functools.reduce(jnp.add, products, layer["bias"])
            outputs.append(activation(total))
        return outputs[-1]

    def error(self, weights: jax.Array, rows: Rows) -> jax.Array:
        """The squared error percentage, for targets from 0 to 1."""
        inputs, targets = rows
        return 100 * jnp.mean((self.predict(weights, inputs) - targets) ** 2)


class Protocol(NamedTuple):
    """What the report's series of runs differ in, apart from the network.

    Attributes:
      max_weight: Initial weights are uniform between minus this and this.
      min_step: The lower end of the uniform initial step sizes.
      max_step: The upper end.
      max_loss: The generalization loss, in percent, above which training stops.
    """

    max_weight: float
    min_step: float
    max_step: float
    max_loss: float


def generalization_loss(error: Any, lowest_error: Any) -> Any:
    """GL: by how many percent a validation error exceeds the lowest so far."""
    return 100 * (error / lowest_error - 1)


def training_progress(errors: Any) -> Any:
    """P: by how many per mille a strip's mean training error exceeds its lowest."""
    return 1000 * (errors.mean() / errors.min() - 1)


class Run(NamedTuple):
    """The state of one run after a strip; all but the first three have shape ().

    Attributes:
      weights: All weights, shape (weights,).
      opt_state: The optimizer's state.
      best_weights: The weights at the lowest validation error.
      train_error: The lowest training error of any epoch.
      validation_error: The lowest validation error of any strip's end.
      generalization_loss: At the end of the strip.
      progress: Of the strip.
      total_epochs: Epochs trained.
      relevant_epochs: Epochs up to the lowest validation error.
    """

    weights: jax.Array
    opt_state: Any
    best_weights: jax.Array
    train_error: jax.Array
    validation_error: jax.Array
    generalization_loss: jax.Array
    progress: jax.Array
    total_epochs: jax.Array
    relevant_epochs: jax.Array


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
    data: DataSet,
) -> Run:
    """Train a run for one strip of epochs, then look at the validation error."""
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
        generalization_loss=generalization_loss(error, lowest),
        progress=training_progress(errors),
        total_epochs=total_epochs,
        relevant_epochs=jnp.where(improved, total_epochs, run.relevant_epochs),
    )


def has_stopped(run: Run, max_loss: Any, max_epochs: Any) -> jax.Array:
    """Whether the report's rule ends a run."""
    overfits = run.generalization_loss > max_loss
    stalls = run.progress < MIN_PROGRESS
    return overfits | stalls | (run.total_epochs >= max_epochs)


def summarize(run: Run, network: Network, test: Rows) -> dict[str, jax.Array]:
    """The report's figures of a run that has stopped."""
    inputs, targets = test
    chosen = network.predict(run.best_weights, inputs).argmax(axis=-1)
    wrong = chosen != targets.argmax(axis=-1)
    return {
        "train_error": run.train_error,
        "validation_error": run.validation_error,
        "test_error": network.error(run.best_weights, test),
        "test_misclassified_percent": 100 * wrong.mean(dtype=inputs.dtype),
        "overfit_gl": run.generalization_loss,
        "total_epochs": run.total_epochs,
        "relevant_epochs": run.relevant_epochs,
    }


@functools.partial(
    jax.jit, static_argnames=("layer_sizes", "shortcuts", "variant", "places")
)
def train_all(
    keys: jax.Array,
    data: DataSet,
    protocol: Protocol,
    max_epochs: int,
    *,
    layer_sizes: tuple[int, ...],
    shortcuts: bool,
    variant: Any,
    places: int = PLACES,
) -> dict[str, jax.Array]:
    """All runs of one data set and variant in one program.

    Args:
      keys: One a run.
      data: The data set, as JAX arrays.
      protocol: Initialization and stopping rule.
      max_epochs: Where training stops at the latest.
      layer_sizes: From inputs to outputs.
      shortcuts: Whether all layers before it feed a layer, or only the last one.
      variant: The rule.
      places: How many runs train together; one that stops hands its place on.

    Returns:
      The report's figures, each of shape (runs,).
    """
    optimizer = optax_rprop.rprop(
        eta_minus=0.5,
        eta_plus=1.2,
        min_step_size=0.0,
        max_step_size=50.0,
        variant=variant,
    )
    network = Network(layer_sizes, shortcuts=shortcuts)

    def train(run: Run) -> Run:
        return train_strip(run, network, optimizer, data)

    def stops(run: Run) -> jax.Array:
        return has_stopped(run, protocol.max_loss, max_epochs)

    def strip(carry: tuple[Run, jax.Array, jax.Array]) -> tuple[Run, Any, Any]:
        runs, placed, waiting = carry
        trained = jax.vmap(train)(jax.tree.map(lambda leaf: leaf[placed], runs))
        # A place behind the last run computes what is then dropped.
        runs = jax.tree.map(
            lambda leaf, new: leaf.at[placed].set(new, mode="drop"), runs, trained
        )
        stopped = jax.vmap(stops)(trained)
        placed = jnp.where(stopped, waiting + jnp.cumsum(stopped) - 1, placed)
        return runs, placed, waiting + stopped.sum()

    runs = jax.vmap(lambda key: start(key, network, optimizer, protocol))(keys)
    placed = jnp.arange(min(places, len(keys)))
    runs, _, _ = jax.lax.while_loop(
        lambda carry: (carry[1] < len(keys)).any(),
        strip,
        (runs, placed, jnp.asarray(placed.size)),
    )
    return jax.vmap(lambda run: summarize(run, network, data.test))(runs)
