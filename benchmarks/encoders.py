"""Encoders, 10-5-10 and the tight 12-2-12: how large a step Rprop may take.

A network is to reproduce its input, one unit on and all others off, through a hidden
layer that is too small to hold it plainly. It has learned when every output for every
pattern is in the lower 40 % of the range of the logistic function where it is to be
off, and in the upper 40 % where it is to be on (the 40-20-40 criterion).

What is shown is how many of 50 starts learn, and in how many epochs, for each variant
and several upper bounds of the step sizes.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tqdm
from common import markdown_table, parser, write_results
from contenders import PICTURE_STYLE, VARIANTS
from proben1_training import Network
from scipy.stats import binomtest

import optax_rprop

matplotlib.use("Agg")
from matplotlib import pyplot

ENCODERS = ((10, 5, 10), (12, 2, 12))
BOUNDS = (50.0, 5.0, 0.5, 0.05)
INITIAL_STEP = 0.1
MAX_WEIGHT = 1.0
BAND = 0.4


class Outcome(NamedTuple):
    """What became of a run; all fields have shape () before batching.

    Attributes:
      learned: Whether it met the criterion.
      epochs: Updates until then; the most allowed if it never did.
      largest_weight: The largest magnitude of a weight at the end.
      unmoved: The share of the weights whose gradient is exactly 0 at the end.
    """

    learned: jax.Array
    epochs: jax.Array
    largest_weight: jax.Array
    unmoved: jax.Array


def meets_criterion(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Whether every output, from 0 to 1, is in the band of its target."""
    return jnp.all(jnp.abs(outputs - targets) <= BAND)


def learn(
    weights: jax.Array,
    network: Network,
    optimizer: optax.GradientTransformationExtraArgs,
    patterns: jax.Array,
    max_epochs: Any,
) -> Outcome:
    """Train one network on patterns that are inputs and targets in one."""

    def loss(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs = network.predict(weights, patterns)
        return jnp.sum((outputs - patterns) ** 2), outputs

    def evaluate(weights: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (value, outputs), grads = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, grads, meets_criterion(outputs, patterns)

    def update(carry: Any) -> Any:
        weights, opt_state, epochs, (value, grads, _) = carry
        updates, opt_state = optimizer.update(grads, opt_state, weights, value=value)
        moved: Any = optax.apply_updates(weights, updates)
        return moved, opt_state, epochs + 1, evaluate(moved)

    def goes_on(carry: Any) -> jax.Array:
        _, _, epochs, (_, _, learned) = carry
        return ~learned & (epochs < max_epochs)

    weights, _, epochs, (_, grads, learned) = jax.lax.while_loop(
        goes_on,
        update,
        (weights, optimizer.init(weights), jnp.zeros((), int), evaluate(weights)),
    )
    return Outcome(
        learned=learned,
        epochs=epochs,
        largest_weight=jnp.abs(weights).max(),
        unmoved=jnp.mean(grads == 0, dtype=grads.dtype),
    )


@functools.partial(jax.jit, static_argnames=("layer_sizes", "variant"))
def learn_all(
    keys: jax.Array,
    bounds: jax.Array,
    max_epochs: int,
    *,
    layer_sizes: tuple[int, ...],
    variant: Any,
) -> Outcome:
    """Train from all starts with all bounds in one program.

    Args:
      keys: One a start.
      bounds: Upper bounds of the step sizes.
      max_epochs: Where training ends without success.
      layer_sizes: From inputs to outputs.
      variant: The rule.

    Returns:
      The outcomes, each field of shape (bounds, starts).
    """
    network = Network(
        layer_sizes,
        shortcuts=False,
        hidden=jax.nn.sigmoid,
        output=jax.nn.sigmoid,
    )
    patterns = jnp.eye(layer_sizes[0])

    def learn_one(key: jax.Array, bound: jax.Array) -> Outcome:
        weights = jax.random.uniform(
            key, network.zeros.shape, minval=-MAX_WEIGHT, maxval=MAX_WEIGHT
        )
        step = jnp.minimum(INITIAL_STEP, bound)
        optimizer = optax_rprop.rprop(step, max_step_size=bound, variant=variant)
        return learn(weights, network, optimizer, patterns, max_epochs)

    over_starts = jax.vmap(learn_one, in_axes=(0, None))
    return jax.vmap(over_starts, in_axes=(None, 0))(keys, bounds)


def summarize(outcome: Outcome) -> dict[str, Any]:
    """What the runs of one encoder, variant and bound amount to."""
    learned = np.asarray(outcome.learned)
    count, starts = int(learned.sum()), len(learned)
    interval = binomtest(count, starts).proportion_ci(method="wilson")
    summary: dict[str, Any] = {
        "starts": starts,
        "learned": count,
        "rate_low": float(interval.low),
        "rate_high": float(interval.high),
        "epochs": np.asarray(outcome.epochs)[learned].tolist(),
    }
    if count:
        quartiles = np.percentile(summary["epochs"], [25, 50, 75])
        summary["epochs_quartiles"] = quartiles.tolist()
    if count < starts:
        failed = ~learned
        summary["failed_largest_weight"] = float(
            np.median(np.asarray(outcome.largest_weight)[failed])
        )
        summary["failed_unmoved"] = float(np.mean(np.asarray(outcome.unmoved)[failed]))
    return summary


def write_report(results: Sequence[dict[str, Any]], max_epochs: int) -> str:
    """The Markdown report."""
    parts = [
        "# Encoders: how large a step may be",
        f"Starts that met the 40-20-40 criterion within {max_epochs:,} epochs, with the"
        " 95 % confidence interval of the rate (Wilson); epochs of those that did:"
        " median and quartiles; of those that did not: median of the largest weight,"
        " and mean share of weights whose gradient is exactly 0 at the end. Weights"
        f" start in ±{MAX_WEIGHT}, step sizes at {INITIAL_STEP} or the bound, if that"
        " is lower.",
    ]
    for encoder in dict.fromkeys(result["encoder"] for result in results):
        rows = []
        for result in results:
            if result["encoder"] != encoder:
                continue
            low, high = result["rate_low"], result["rate_high"]
            row = [
                f"{result['variant']}, bound {result['max_step_size']:g}",
                f"{result['learned']} of {result['starts']}",
                f"{low:.0%} to {high:.0%}",
                "",
                "",
                "",
            ]
            if "epochs_quartiles" in result:
                lower, median, upper = result["epochs_quartiles"]
                row[3] = f"{median:.0f} ({lower:.0f}, {upper:.0f})"
            if "failed_unmoved" in result:
                row[4] = f"{result['failed_largest_weight']:,.0f}"
                row[5] = f"{result['failed_unmoved']:.0%}"
            rows.append(row)
        header = ["variant, bound", "learned", "rate", "epochs"]
        header += ["largest weight, failed", "gradient 0, failed"]
        parts += [f"## {encoder}", markdown_table(header, rows)]
    return "\n\n".join(parts)


def draw(results: Sequence[dict[str, Any]], max_epochs: int, path: Path) -> None:
    """Draw the share of starts that have learned by each epoch."""
    encoders = list(dict.fromkeys(result["encoder"] for result in results))
    bounds = list(dict.fromkeys(result["max_step_size"] for result in results))
    looks = {variant.name: variant for variant in VARIANTS}
    with pyplot.rc_context(PICTURE_STYLE):
        picture, axes = pyplot.subplots(
            len(encoders),
            len(bounds),
            figsize=(2.4 * len(bounds), 2.2 * len(encoders) + 0.5),
            sharex="row",
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for result in results:
            panel = axes[
                encoders.index(result["encoder"]), bounds.index(result["max_step_size"])
            ]
            epochs = np.sort(result["epochs"])
            look = looks[result["variant"]]
            panel.step(
                [1, *epochs, max_epochs],
                np.append(np.arange(len(epochs) + 1), len(epochs)) / result["starts"],
                where="post",
                color=look.color,
                linestyle=look.linestyle,
                label=look.name,
            )
            panel.set(
                title=f"{result['encoder']}, bound {result['max_step_size']:g}",
                xscale="log",
                ylim=(0, 1.02),
            )
        for panel in axes[-1]:
            panel.set_xlabel("epochs")
        for panel in axes[:, 0]:
            panel.set_ylabel("learned")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside upper center", ncols=len(labels))
        picture.savefig(path)
        pyplot.close(picture)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train all encoders, then write tables and picture."""
    options = parser(__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--seed", type=int, default=0, help="of all random numbers")
    chosen = options.parse_args(arguments)
    starts, max_epochs = (4, 200) if chosen.quick else (50, 5000)
    variants = VARIANTS[:1] if chosen.quick else VARIANTS
    keys = jax.random.split(jax.random.key(chosen.seed), starts)

    results = []
    jobs = [(encoder, variant) for encoder in ENCODERS for variant in variants]
    for layer_sizes, variant in tqdm.tqdm(jobs, unit="job"):
        outcomes = learn_all(
            keys,
            jnp.array(BOUNDS),
            max_epochs,
            layer_sizes=layer_sizes,
            variant=variant.name,
        )
        for i, bound in enumerate(BOUNDS):
            results.append(
                {
                    "encoder": "-".join(map(str, layer_sizes)),
                    "variant": variant.name,
                    "max_step_size": bound,
                    **summarize(Outcome(*(field[i] for field in outcomes))),
                }
            )
    settings = {
        "seed": chosen.seed,
        "max_epochs": max_epochs,
        "initial_step_size": INITIAL_STEP,
        "max_weight": MAX_WEIGHT,
    }
    write_results(
        chosen.output_dir,
        "encoders",
        {**settings, "results": results},
        write_report(results, max_epochs),
    )
    draw(results, max_epochs, chosen.output_dir / "encoders.png")


if __name__ == "__main__":
    main()
