"""Train with checkpoints: kill the run at any moment and resume it, bit for bit.

Parameters, optimizer state and step count are one pytree, saved together by
Orbax's `CheckpointManager`. It writes in the background and renames a checkpoint
once it is complete, so a run killed while writing still has the previous one.
Kill this script with ``kill -9`` and start it again with the same command. At the
end it trains a second time in memory, without interruption, and fails unless
every bit of parameters and optimizer state is the same.

The variant is ``irprop+``, whose state also holds the previous loss. A run that
restored the parameters alone would start again from the initial step sizes.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from sklearn.datasets import load_digits
from tqdm import tqdm

import optax_rprop


class MLP(nnx.Module):
    """64 pixels, one hidden layer of 32 tanh units, 10 logits."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(64, 32, rngs=rngs)
        self.output = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, images: Any) -> jax.Array:
        """Logits, shape (rows, 10)."""
        return self.output(nnx.tanh(self.hidden(images)))


class Training(nnx.Module):
    """Everything that a checkpoint must contain; the optimizer counts the steps."""

    def __init__(self) -> None:
        self.model = MLP(nnx.Rngs(0))
        transformation = optax_rprop.rprop(variant="irprop+")
        self.optimizer = nnx.Optimizer(self.model, transformation, wrt=nnx.Param)

    @property
    def step(self) -> int:
        """The number of steps so far."""
        return int(self.optimizer.step[...])


@nnx.jit
def train_step(training: Training, images: jax.Array, labels: jax.Array) -> jax.Array:
    """One full-batch step; returns the loss before it."""

    def loss_fn(model: MLP) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        # Without a penalty the loss would reach 0, and updates would stop.
        penalty = optax.tree.norm(nnx.state(model, nnx.Param), squared=True)
        return losses.mean() + 1e-3 * penalty

    loss, grads = nnx.value_and_grad(loss_fn)(training.model)
    training.optimizer.update(training.model, grads, value=loss)
    return loss


def train(
    training: Training, steps: int, after_step: Callable[[int], None] | None = None
) -> float:
    """Train until this total number of steps; returns the last loss."""
    digits: Any = load_digits()
    images = jnp.asarray(digits.data / 16, dtype=jnp.float32)
    labels = jnp.asarray(digits.target)
    loss = float("nan")
    steps_to_make = range(training.step + 1, steps + 1)
    with tqdm(steps_to_make, initial=training.step, total=steps, unit="step") as bar:
        for step in bar:
            loss = float(train_step(training, images, labels))
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            if after_step is not None:
                after_step(step)
    return loss


def fingerprint(training: Training) -> str:
    """A digest of every bit of parameters, optimizer state and step count."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.state(training))
    for path, leaf in leaves:
        array = np.asarray(leaf)
        name = jax.tree_util.keystr(path)
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def train_with_checkpoints(options: argparse.Namespace) -> Training:
    """Start, or resume from the newest complete checkpoint."""
    training = Training()
    folder = (options.output_dir / "checkpoint_resume").resolve()
    manager_options = ocp.CheckpointManagerOptions(
        save_interval_steps=options.save_every, max_to_keep=2
    )
    with ocp.CheckpointManager(folder, options=manager_options) as manager:
        newest = manager.latest_step()
        if newest is None:
            print(f"Starting; checkpoints in {folder}", flush=True)
        elif newest > options.steps:
            sys.exit(
                f"The checkpoint in {folder} is at step {newest}, beyond --steps"
                f" {options.steps}. Ask for more steps, or for another --output-dir."
            )
        else:
            # Restored into a state of the right types, shapes and shardings.
            template = ocp.args.StandardRestore(nnx.state(training))
            nnx.update(training, manager.restore(newest, args=template))
            print(f"Resumed at step {newest}", flush=True)

        def save(step: int) -> None:
            contents = ocp.args.StandardSave(nnx.state(training))
            if manager.save(step, args=contents, force=step == options.steps):
                tqdm.write(f"Saving step {step}")
                sys.stdout.flush()

        train(training, options.steps, after_step=save)
    return training


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="total number of steps, over all starts"
    )
    parser.add_argument(
        "--save-every", type=int, default=20, help="steps between checkpoints"
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder of the checkpoints; use an empty one to start again",
    )
    options = parser.parse_args(arguments)
    for name in ("steps", "save_every"):
        if getattr(options, name) < 1:
            option = "--" + name.replace("_", "-")
            parser.error(f"argument {option}: must be at least 1")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        parser.error(f"argument --output-dir: {options.output_dir} is not a folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Train, train again without interruption, compare; returns the exit status."""
    options = parse_options(arguments)
    resumed = fingerprint(train_with_checkpoints(options))
    print("Training again in memory, without interruption, to compare")
    uninterrupted = Training()
    loss = train(uninterrupted, options.steps)
    print(f"Loss {loss:.6g} after {options.steps} steps")
    print(f"Fingerprint {resumed}")
    if resumed != fingerprint(uninterrupted):
        print("The uninterrupted run ended with other bits.", file=sys.stderr)
        return 1
    print("Identical, bit for bit, to the uninterrupted run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
