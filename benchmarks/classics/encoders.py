"""Encoders, 10-5-10 and the tight 12-2-12: how large a step Rprop may take.

A network is to reproduce its input, one unit on and all others off, through a hidden
layer that is too small to hold it plainly. It has learned when every output for every
pattern is in the lower 40 % of the range of the logistic function where it is to be
off, and in the upper 40 % where it is to be on (the 40-20-40 criterion).

Counted is how many starts learn, and in how many epochs, for each variant and several
upper bounds of the step sizes.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import optax_rprop
from benchmarks.classics.training import Network
from benchmarks.common import cli
from benchmarks.common.optimizers import VARIANTS
from benchmarks.common.results import Study

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


@functools.partial(jax.jit, static_argnames=("sizes", "variant"))
def learn_all(
    keys: jax.Array,
    bounds: jax.Array,
    max_epochs: int,
    *,
    sizes: tuple[int, ...],
    variant: Any,
) -> Outcome:
    """Train from all starts with all bounds in one program.

    Args:
      keys: One a start.
      bounds: Upper bounds of the step sizes.
      max_epochs: Where training ends without success.
      sizes: Of the layers, from inputs to outputs.
      variant: The rule.

    Returns:
      The outcomes, each field of shape (bounds, starts).
    """
    network = Network(sizes, hidden=jax.nn.sigmoid, output=jax.nn.sigmoid)
    patterns = jnp.eye(sizes[0])

    def learn_one(key: jax.Array, bound: jax.Array) -> Outcome:
        weights = jax.random.uniform(
            key, network.zeros.shape, minval=-MAX_WEIGHT, maxval=MAX_WEIGHT
        )
        step = jnp.minimum(INITIAL_STEP, bound)
        optimizer = optax_rprop.rprop(step, max_step_size=bound, variant=variant)
        return learn(weights, network, optimizer, patterns, max_epochs)

    over_starts = jax.vmap(learn_one, in_axes=(0, None))
    return jax.vmap(over_starts, in_axes=(None, 0))(keys, bounds)


def rows(outcomes: Outcome) -> Iterator[dict[str, Any]]:
    """One row a bound and start."""
    for i, bound in enumerate(BOUNDS):
        for run in range(outcomes.learned.shape[1]):
            found = {k: np.asarray(v)[i, run] for k, v in outcomes._asdict().items()}
            yield {"setting": bound, "run": run} | found


def main(arguments: list[str] | None = None) -> None:
    """Train all encoders that are not there yet."""
    parser = cli.parser(__doc__, "classics")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    options = parser.parse_args(arguments)
    starts, max_epochs = (4, 200) if options.quick else (50, 5000)
    variants = VARIANTS[:1] if options.quick else VARIANTS
    keys = jax.random.split(jax.random.key(options.seed), starts)
    study = Study(options.output_dir, "encoders", ["problem", "optimizer"])
    jobs = [(sizes, variant.name) for sizes in ENCODERS for variant in variants]
    for sizes, variant in tqdm.tqdm(jobs, unit="job"):
        who = {"problem": "-".join(map(str, sizes)), "optimizer": variant}
        if not study.has(*who.values()):
            outcomes = learn_all(
                keys, jnp.array(BOUNDS), max_epochs, sizes=sizes, variant=variant
            )
            study.add(who | row for row in rows(outcomes))


if __name__ == "__main__":
    main()
