"""Train hundreds of small networks at once and keep the best.

Small networks depend on their random initial weights. Rprop has no learning rate to
tune, so the time can be spent on more seeds: `jax.vmap` trains all networks together,
in one `jax.lax.scan`. Each keeps the parameters of its best epoch, and the network with
the smallest validation loss is chosen. The data are scikit-learn's 1,797 handwritten
digits. Some of the networks are also trained one by one, to compare times.
"""

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import example_io
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from optax_rprop import rprop

CLASSES = 10
CHOSEN = "best network by validation loss (chosen)"
MEAN = "mean prediction of all"
# Sums in a different order can flip the sign of a derivative near 0.
TOLERANCE = 0.1
Params = dict[str, jax.Array]


class Digits(NamedTuple):
    """Images, shape (rows, 64), from 0 to 1, and labels, shape (rows,)."""

    images: np.ndarray
    labels: np.ndarray


class Splits(NamedTuple):
    """Disjoint parts: 60, 20 and 20 % of the digits."""

    train: Digits
    validation: Digits
    test: Digits


class Training(NamedTuple):
    """One network in training, or several, along a first axis of each array."""

    params: Params
    opt_state: Any
    best_params: Params
    best_loss: jax.Array


def load_splits(seed: int) -> Splits:
    """The digits, with equal proportions of the classes in all parts."""

    def divide(data: Digits, fraction: float) -> tuple[Digits, Digits]:
        images, other_images, labels, other_labels = train_test_split(
            *data, train_size=fraction, stratify=data.labels, random_state=seed
        )
        return (
            Digits(np.asarray(images), np.asarray(labels)),
            Digits(np.asarray(other_images), np.asarray(other_labels)),
        )

    digits: Any = load_digits()
    images = (digits.data / 16).astype(np.float32)
    train, held_out = divide(Digits(images, digits.target), 0.6)
    return Splits(train, *divide(held_out, 0.5))


def initial_params(key: jax.Array, hidden_units: int) -> Params:
    """Random weights of variance 1 / inputs, biases of 0."""
    hidden_key, output_key = jax.random.split(key)
    initialize = jax.nn.initializers.lecun_normal()
    return {
        "hidden_weights": initialize(hidden_key, (64, hidden_units)),
        "hidden_biases": jnp.zeros(hidden_units),
        "output_weights": initialize(output_key, (hidden_units, CLASSES)),
        "output_biases": jnp.zeros(CLASSES),
    }


def logits(params: Params, images: Any) -> jax.Array:
    """One hidden layer of tanh units; shape (rows, 10)."""
    hidden = jnp.tanh(images @ params["hidden_weights"] + params["hidden_biases"])
    return hidden @ params["output_weights"] + params["output_biases"]


def cross_entropy(params: Params, data: Digits) -> jax.Array:
    """Mean over the rows, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(
        logits(params, data.images), data.labels
    ).mean()


class Trained(NamedTuple):
    """The result for one network, or for several, along a first axis.

    Attributes:
      params: Those of the epoch with the smallest validation loss.
      validation_loss: The smallest, shape ().
      validation_losses: Of all epochs, shape (epochs,).
    """

    params: Params
    validation_loss: jax.Array
    validation_losses: jax.Array


def train(
    params: Params,
    splits: Splits,
    *,
    together: bool,
    epochs: int,
    on_epoch: Callable[[], Any],
) -> Trained:
    """Train one network, or several.

    Args:
      params: The initial ones; of several networks, along a first axis.
      splits: The data.
      together: Whether there are several networks.
      epochs: Full-batch steps.
      on_epoch: Called after each epoch.
    """
    optimizer = rprop()

    def start(params: Params) -> Training:
        return Training(params, optimizer.init(params), params, jnp.array(jnp.inf))

    def step(network: Training) -> tuple[Training, jax.Array]:
        params, opt_state, best_params, best_loss = network
        grads = jax.grad(cross_entropy)(params, splits.train)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params: Any = optax.apply_updates(params, updates)
        loss = cross_entropy(params, splits.validation)
        best_params = jax.tree.map(
            lambda new, old: jnp.where(loss < best_loss, new, old), params, best_params
        )
        best_loss = jnp.minimum(loss, best_loss)
        return Training(params, opt_state, best_params, best_loss), loss

    if together:
        start, step = jax.vmap(start), jax.vmap(step)

    def epoch(network: Training, _: None) -> tuple[Training, jax.Array]:
        network, loss = step(network)
        jax.debug.callback(on_epoch)
        return network, loss

    network, losses = jax.lax.scan(epoch, start(params), None, length=epochs)
    return Trained(network.best_params, network.best_loss, losses.T)


class Timed(NamedTuple):
    """The result of a function, and its run time without compilation."""

    result: Any
    seconds: float


def time_call(function: Callable[..., Any], *arguments: Any) -> Timed:
    """Wait for the result of a compiled function."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return Timed(result, time.perf_counter() - begin)


def train_together(params: Params, splits: Splits, epochs: int) -> Timed:
    """All networks at once."""
    with tqdm(total=epochs, desc="compiling", unit=" epochs") as progress:
        loop = functools.partial(
            train, together=True, epochs=epochs, on_epoch=progress.update
        )
        compiled = jax.jit(loop).lower(params, splits).compile()
        progress.set_description("together")
        timed = time_call(compiled, params, splits)
        jax.effects_barrier()
    return timed


def train_one_by_one(params: Params, splits: Splits, epochs: int, count: int) -> Timed:
    """The first networks one after the other, with the same compiled code.

    The result is the best validation loss of each.
    """
    networks = [jax.tree.map(lambda leaf, i=i: leaf[i], params) for i in range(count)]
    loop = functools.partial(
        train, together=False, epochs=epochs, on_epoch=lambda: None
    )
    compiled = jax.jit(loop).lower(networks[0], splits).compile()
    runs = [
        time_call(compiled, network, splits)
        for network in tqdm(networks, desc="one by one", unit=" networks")
    ]
    losses = np.array([run.result.validation_loss for run in runs])
    return Timed(losses, sum(run.seconds for run in runs))


class Scores(NamedTuple):
    """On the test set, of one network, or arrays with one entry per network."""

    accuracy: Any
    cross_entropy: Any


def score(probabilities: jax.Array, labels: np.ndarray) -> Scores:
    """Scores of predicted probabilities, shape (..., rows, 10)."""
    right = probabilities.argmax(axis=-1) == labels
    of_truth = jnp.take_along_axis(
        probabilities, jnp.broadcast_to(labels, right.shape)[..., None], axis=-1
    )
    # So that a class of probability 0 costs only about 87 nats.
    nats = -jnp.log(jnp.maximum(of_truth, jnp.finfo(jnp.float32).tiny))
    return Scores(np.mean(right, axis=-1), np.mean(nats, axis=(-2, -1)))


def tabulate_test(networks: Trained, test: Digits) -> tuple[dict[str, Scores], Scores]:
    """A row of scores for some networks and means, and the scores of all networks."""
    probabilities = jax.nn.softmax(
        jax.vmap(logits, in_axes=(0, None))(networks.params, test.images)
    )
    every = score(probabilities, test.labels)
    order = np.argsort(networks.validation_loss)
    rows = {
        "worst network": Scores(every.accuracy.min(), every.cross_entropy.max()),
        "median network": Scores(*map(np.median, every)),
        CHOSEN: Scores(*(scores[order[0]] for scores in every)),
        "best network in hindsight": Scores(
            every.accuracy.max(), every.cross_entropy.min()
        ),
    }
    if len(order) > 10:
        best = probabilities[order[:10]].mean(axis=0)
        rows["mean prediction of the best 10"] = score(best, test.labels)
    rows[MEAN] = score(probabilities.mean(axis=0), test.labels)
    return rows, every


def plot(networks: Trained, rows: dict[str, Scores], every: Scores, path: Path) -> None:
    """The validation losses over the epochs, and against the test losses."""
    chosen = int(np.argmin(networks.validation_loss))
    figure, (curves, scatter) = plt.subplots(
        1, 2, figsize=(13, 5), layout="constrained"
    )
    blue, orange, _, dark = example_io.COLOURS[:4]
    losses = np.asarray(networks.validation_losses)
    epochs = np.arange(1, losses.shape[1] + 1)
    curves.plot(epochs, losses.T, color=blue, alpha=0.1, linewidth=0.8)
    curves.plot([], [], color=blue, label=f"{len(losses)} networks")
    curves.plot(epochs, losses[chosen], color=orange, label="the chosen one")
    curves.set(yscale="log", xlabel="epoch", ylabel="validation cross-entropy (nats)")
    curves.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    curves.yaxis.set_major_formatter("{x:g}")
    curves.yaxis.set_minor_formatter(NullFormatter())
    curves.set_title("All networks, trained together")

    best_losses = np.asarray(networks.validation_loss)
    nats = every.cross_entropy
    scatter.plot(best_losses, nats, ".", color=blue, label="a network")
    scatter.plot(
        best_losses[chosen], nats[chosen], "D", color=orange, label="the chosen one"
    )
    scatter.axhline(rows[MEAN].cross_entropy, color=dark, linestyle="--", label=MEAN)
    scatter.set(
        xlabel="best validation cross-entropy (nats)",
        ylabel="test cross-entropy (nats)",
    )
    scatter.set_title("Test loss and validation loss")
    curves.legend()
    scatter.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    for axis in (curves, scatter):
        axis.grid(alpha=0.3)
    example_io.save(figure, path)


def main(arguments: list[str] | None = None) -> int:
    """Train, report, and return the exit status."""
    parser = example_io.parser(__doc__)
    for name, default, help_text in (
        ("--networks", 256, "number of networks trained together"),
        ("--one-by-one", 8, "number of them also trained one by one"),
        ("--hidden-units", 12, "of each network"),
        ("--epochs", 60, "full-batch steps of each network"),
    ):
        parser.add_argument(
            name, type=example_io.positive, default=default, help=help_text
        )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.9,
        help="fail if the test accuracy of the chosen network is below",
    )
    options = example_io.parse(parser, arguments)
    if options.one_by_one > options.networks:
        parser.error(
            "argument --one-by-one: must not exceed --networks"
            f" ({options.networks}), got {options.one_by_one}"
        )

    splits = load_splits(options.seed)
    keys = jax.random.split(jax.random.key(options.seed), options.networks)
    params = jax.vmap(lambda key: initial_params(key, options.hidden_units))(keys)
    networks, together_seconds = train_together(params, splits, options.epochs)
    alone_losses, alone_seconds = train_one_by_one(
        params, splits, options.epochs, options.one_by_one
    )

    rows, every = tabulate_test(networks, splits.test)
    print(f"{len(splits.test.labels)} held-out digits")
    example_io.print_table(
        ["", "accuracy", "cross-entropy (nats)"],
        [
            [name, f"{scores.accuracy:.3f}", f"{scores.cross_entropy:.3f}"]
            for name, scores in rows.items()
        ],
    )
    print("\nTraining time without compilation")
    example_io.print_table(
        ["", "networks", "seconds", "networks per second"],
        [
            [name, str(count), f"{seconds:.2f}", f"{count / seconds:.1f}"]
            for name, count, seconds in (
                ("together", options.networks, together_seconds),
                ("one by one", options.one_by_one, alone_seconds),
            )
        ],
    )
    differences = np.abs(
        alone_losses / networks.validation_loss[: options.one_by_one] - 1
    )
    print(
        "The relative difference of the best validation losses, together and one by"
        f" one, is at most {differences.max():.1e}."
    )
    plot(networks, rows, every, options.output_dir / "ensemble.png")

    problems = []
    accuracy = rows[CHOSEN].accuracy
    if not accuracy >= options.min_accuracy:
        problems.append(
            f"test accuracy {accuracy:.3f} of the chosen network is below"
            f" --min-accuracy {options.min_accuracy}."
        )
    if not differences.max() < TOLERANCE:
        problems.append("networks trained together and one by one do not agree.")
    return example_io.exit_status(problems)


if __name__ == "__main__":
    sys.exit(main())
