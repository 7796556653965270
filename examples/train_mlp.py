"""Train a Flax NNX multilayer perceptron on handwritten digits with Rprop.

The data are scikit-learn's 1,797 digits of 8 x 8 pixels, split into 60 % for
training, 20 % for validation and 20 % for test. Every step uses the full
training set, because Rprop needs gradients without noise. It does not slow down
as the gradient vanishes and soon fits the training set perfectly, so training
stops when the validation loss has not improved for a while, and the best
parameters are kept.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib
import numpy as np
import optax
from flax import nnx
from flax.training.early_stopping import EarlyStopping
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import optax_rprop

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLASSES = 10


class Split(NamedTuple):
    """Images, shape (rows, 64), from 0 to 1, and labels, shape (rows,)."""

    images: np.ndarray
    labels: np.ndarray


class Record(NamedTuple):
    """The measurements of one epoch."""

    train_loss: jax.Array
    validation_loss: jax.Array
    validation_accuracy: jax.Array
    steps: optax_rprop.RpropDiagnostics


class MLP(nnx.Module):
    """64 inputs, one hidden layer of tanh units, 10 logits."""

    def __init__(self, hidden_units: int, *, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, hidden_units, rngs=rngs)
        self.output = nnx.Linear(hidden_units, CLASSES, rngs=rngs)

    def __call__(self, images: Any) -> jax.Array:
        """Logits, shape (rows, 10)."""
        return self.output(nnx.tanh(self.hidden(images)))


def divide(data: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Divide at random, with equal proportions of the classes in both parts."""
    parts = train_test_split(
        *data, train_size=fraction, stratify=data.labels, random_state=seed
    )
    images, other_images, labels, other_labels = map(np.asarray, parts)
    return Split(images, labels), Split(other_images, other_labels)


def load_splits(seed: int) -> tuple[Split, Split, Split]:
    """The digits as training, validation and test sets."""
    digits: Any = load_digits()
    data = Split((digits.data / 16).astype(np.float32), digits.target)
    train, held_out = divide(data, 0.6, seed)
    return train, *divide(held_out, 0.5, seed)


def loss_and_accuracy(model: MLP, data: Split) -> tuple[jax.Array, jax.Array]:
    """Mean cross-entropy in nats, and the fraction of rows classified correctly."""
    logits = model(data.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, data.labels)
    return losses.mean(), (logits.argmax(axis=-1) == data.labels).mean()


@nnx.jit
def train_epoch(
    model: MLP, optimizer: nnx.Optimizer, train: Split, validation: Split
) -> Record:
    """One full-batch step, with the scores of the model before and after it."""
    gradient = nnx.value_and_grad(loss_and_accuracy, has_aux=True)
    (train_loss, _), grads = gradient(model, train)
    # Only "irprop+" uses the loss; the other variants ignore it.
    optimizer.update(model, grads, value=train_loss)
    validation_loss, validation_accuracy = loss_and_accuracy(model, validation)
    return Record(
        train_loss,
        validation_loss,
        validation_accuracy,
        optax_rprop.diagnostics(optimizer.opt_state),
    )


def fit(
    model: MLP,
    optimizer: nnx.Optimizer,
    train: Split,
    validation: Split,
    *,
    epochs: int,
    patience: int,
) -> tuple[MLP, int, list[Record]]:
    """Train until the validation loss stops improving.

    Returns:
      The model of the best epoch, that epoch, and a record of every epoch.
    """
    best_model, best_epoch = model, 0
    # Flax counts epochs after the first one without an improvement.
    stopping = EarlyStopping(patience=patience - 1)
    records = []
    with tqdm(total=epochs, unit="epoch", desc="training") as progress:
        for epoch in range(1, epochs + 1):
            record = jax.device_get(train_epoch(model, optimizer, train, validation))
            records.append(record)
            stopping = stopping.update(float(record.validation_loss))
            if stopping.has_improved:
                best_model, best_epoch = nnx.clone(model), epoch
            progress.update()
            progress.set_postfix(
                train=f"{record.train_loss:.4f}",
                validation=f"{record.validation_loss:.4f}",
                refresh=False,
            )
            if stopping.should_stop:
                break
    return best_model, best_epoch, records


def plot(records: list[Record], best_epoch: int, variant: str, path: Path) -> None:
    """Losses, accuracy, step sizes and sign changes over the epochs."""
    history: Record = jax.tree.map(lambda *values: np.array(values), *records)
    epochs = np.arange(1, len(records) + 1)
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), sharex=True, layout="tight")
    (loss, accuracy), (steps, neutral) = axes

    loss.semilogy(epochs, history.train_loss, label="training")
    loss.semilogy(epochs, history.validation_loss, label="validation")
    loss.set_ylabel("cross-entropy (nats)")
    accuracy.plot(epochs, history.validation_accuracy, "C1", label="validation")
    accuracy.set_ylabel("accuracy")
    steps.fill_between(
        epochs,
        history.steps.smallest_step_size,
        history.steps.largest_step_size,
        alpha=0.25,
        label="smallest to largest",
    )
    steps.semilogy(epochs, history.steps.median_step_size, label="median")
    steps.set_ylabel("step size")
    neutral.plot(epochs, history.steps.fraction_forgotten, label="remembered sign 0")
    neutral.set_ylabel("fraction of parameters")
    neutral.set_ylim(0, 1)
    for axis in axes.flat:
        axis.axvline(best_epoch, color="0.4", linestyle=":", label="best epoch")
        axis.grid(alpha=0.3)
        axis.legend()
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    figure.suptitle(f"Digits with {variant}, full batch")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def positive(text: str) -> int:
    """An option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--variant",
        default="irprop-",
        choices=["rprop-", "rprop+", "irprop-", "irprop+"],
        help="the variant of Rprop",
    )
    parser.add_argument(
        "--epochs", type=positive, default=300, help="maximum number of epochs"
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=30,
        help="stop after this many epochs without a better validation loss",
    )
    parser.add_argument(
        "--hidden-units", type=positive, default=64, help="width of the hidden layer"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the split and the initial weights"
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        default=0.9,
        help="fail if the test accuracy is below",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("output"), help="folder of the picture"
    )
    options = parser.parse_args(arguments)
    if options.output_dir.exists() and not options.output_dir.is_dir():
        parser.error(f"argument --output-dir: {options.output_dir} is not a folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Train, report, and return the exit status."""
    options = parse_options(arguments)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    train, validation, test = load_splits(options.seed)
    model = MLP(options.hidden_units, rngs=nnx.Rngs(options.seed))
    optimizer = nnx.Optimizer(
        model, optax.chain(optax_rprop.rprop(variant=options.variant)), wrt=nnx.Param
    )
    best_model, best_epoch, records = fit(
        model,
        optimizer,
        train,
        validation,
        epochs=options.epochs,
        patience=options.patience,
    )

    print(f"\n{options.variant}, best epoch {best_epoch} of {len(records)}")
    print(f"{'':12}{'rows':>6}{'loss':>9}{'accuracy':>10}")
    splits = {"training": train, "validation": validation, "test": test}
    accuracy = 0.0
    for name, data in splits.items():
        loss, accuracy = loss_and_accuracy(best_model, data)
        print(f"{name:12}{len(data.labels):6}{loss:9.4f}{accuracy:10.3f}")
    picture = options.output_dir / "train_mlp.png"
    plot(records, best_epoch, options.variant, picture)
    print(f"Picture: {picture}")
    if accuracy < options.min_accuracy:
        print(
            f"Test accuracy {accuracy:.3f} is below --min-accuracy"
            f" {options.min_accuracy}.",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
