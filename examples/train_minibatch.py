"""Train a Flax NNX network on mini-batches with Rprop, and see plain Rprop stall.

The data and the network are those of train_mlp.py. Every step uses only a few rows, so
most signs of the gradient are noise. Mini-batch Rprop updates a parameter only once a
test is confident of the sign of its accumulated gradient; plain Rprop trusts every
sign. Both run with their default settings.
"""

import argparse
import sys
from typing import Any, NamedTuple

import example_io
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx
from matplotlib.figure import Figure
from tqdm import tqdm
from train_mlp import MLP, Split, load_splits, loss_and_accuracy

import optax_rprop

OPTIMIZERS = {
    "mini-batch Rprop": optax_rprop.minibatch_rprop,
    "plain Rprop": optax_rprop.rprop,
}


class Record(NamedTuple):
    """The measurements of one epoch."""

    train_loss: Any
    validation_accuracy: Any
    steps: optax_rprop.RpropDiagnostics


@nnx.jit
def train_step(model: MLP, optimizer: nnx.Optimizer, batch: Split) -> None:
    """One step on one mini-batch."""
    grads, _ = nnx.grad(loss_and_accuracy, has_aux=True)(model, batch)
    optimizer.update(model, grads)


@nnx.jit
def observe(
    model: MLP, optimizer: nnx.Optimizer, train: Split, validation: Split
) -> Record:
    """Score the model on all rows."""
    return Record(
        loss_and_accuracy(model, train)[0],
        loss_and_accuracy(model, validation)[1],
        optax_rprop.diagnostics(optimizer.opt_state),
    )


def fit(
    model: MLP,
    optimizer: nnx.Optimizer,
    train: Split,
    validation: Split,
    *,
    batch_size: int,
    epochs: int,
    seed: int,
    description: str,
) -> list[Record]:
    """Train the model in place; returns a record of every epoch."""
    rng = np.random.default_rng(seed)
    rows = len(train.labels)
    records = []
    with tqdm(range(epochs), unit="epoch", desc=description) as progress:
        for _ in progress:
            order = rng.permutation(rows)
            # Rows that do not fill a batch are left out of this epoch.
            for start in range(0, rows - batch_size + 1, batch_size):
                chosen = order[start : start + batch_size]
                batch = Split(train.images[chosen], train.labels[chosen])
                train_step(model, optimizer, batch)
            record = jax.device_get(observe(model, optimizer, train, validation))
            records.append(record)
            progress.set_postfix(
                train=f"{record.train_loss:.4f}",
                validation=f"{record.validation_accuracy:.3f}",
                refresh=False,
            )
    return records


def plot(histories: dict[str, list[Record]], batch_size: int) -> Figure:
    """Loss, accuracy and step sizes over the epochs."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    loss, accuracy, steps = axes
    for number, (name, records) in enumerate(histories.items()):
        history: Record = jax.tree.map(lambda *values: np.array(values), *records)
        epochs = np.arange(1, len(records) + 1)
        color = f"C{number}"
        loss.semilogy(epochs, history.train_loss, color=color, label=name)
        accuracy.plot(epochs, history.validation_accuracy, color=color, label=name)
        steps.semilogy(
            epochs, history.steps.median_step_size, color=color, label=f"{name}, median"
        )
        steps.fill_between(
            epochs,
            history.steps.smallest_step_size,
            history.steps.largest_step_size,
            color=color,
            alpha=0.15,
            label="smallest to largest",
        )
    loss.set_ylabel("training cross-entropy (nats)")
    accuracy.set_ylabel("validation accuracy")
    steps.set_ylabel("step size")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    figure.suptitle(f"Digits, batches of {batch_size}")
    return figure


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = example_io.parser(__doc__)
    parser.add_argument(
        "--batch-size", type=example_io.positive, default=8, help="rows in a step"
    )
    parser.add_argument(
        "--epochs", type=example_io.positive, default=30, help="passes over the rows"
    )
    parser.add_argument(
        "--hidden-units", type=example_io.positive, default=64, help="in the network"
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.93,
        help="fail if the test accuracy of mini-batch Rprop is below",
    )
    return example_io.parse(parser, arguments)


def main(arguments: list[str] | None = None) -> int:
    """Train with both, report, and return the exit status."""
    options = parse_options(arguments)
    train, validation, test = load_splits(options.seed)
    if options.batch_size > len(train.labels):
        print(
            f"--batch-size must be at most the {len(train.labels)} training rows, got"
            f" {options.batch_size}.",
            file=sys.stderr,
        )
        return 2
    histories, losses, accuracies = {}, {}, {}
    for name, build in OPTIMIZERS.items():
        model = MLP(options.hidden_units, rngs=nnx.Rngs(options.seed))
        optimizer = nnx.Optimizer(model, build(), wrt=nnx.Param)
        histories[name] = fit(
            model,
            optimizer,
            train,
            validation,
            batch_size=options.batch_size,
            epochs=options.epochs,
            seed=options.seed,
            description=name,
        )
        losses[name], accuracies[name] = map(float, loss_and_accuracy(model, test))

    print()
    example_io.print_table(
        ["", "training loss", "test loss", "test accuracy"],
        [
            [
                name,
                f"{histories[name][-1].train_loss:.4f}",
                f"{losses[name]:.4f}",
                f"{accuracies[name]:.3f}",
            ]
            for name in OPTIMIZERS
        ],
    )
    figure = plot(histories, options.batch_size)
    example_io.save(figure, options.output_dir / "train_minibatch.png")
    ours, plain = (accuracies[name] for name in OPTIMIZERS)
    problems = []
    if ours < options.min_accuracy:
        problems.append(
            f"test accuracy {ours:.3f} is below --min-accuracy {options.min_accuracy}."
        )
    if ours <= plain:
        problems.append(f"plain Rprop is unexpectedly as good, with {plain:.3f}.")
    return example_io.exit_status(problems)


if __name__ == "__main__":
    sys.exit(main())
