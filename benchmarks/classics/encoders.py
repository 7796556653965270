"""Encoders, 10-5-10 and the tight 12-2-12: how large a step Rprop may take.

A network is to reproduce its input, one unit on and all others off, through a hidden
layer that is too small to hold it plainly. It has learned when every output for every
pattern is in the lower 40 % of the range of the logistic function where it is to be
off, and in the upper 40 % where it is to be on (the 40-20-40 criterion).

Counted is how many starts learn, and in how many epochs, for each variant and several
upper bounds of the step sizes.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
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
    """What became of a run."""

    learned: jax.Array  # Whether it met the criterion.
    epochs: jax.Array  # Updates until then; the most allowed if it never did.
    largest_weight: jax.Array  # The largest magnitude at the end.
    unmoved: jax.Array  # The share of the weights whose gradient is 0 at the end.


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
        learned = meets_criterion(outputs, patterns)
        return jnp.sum((outputs - patterns) ** 2), learned

    evaluate = jax.value_and_grad(loss, has_aux=True)

    def update(carry: Any) -> Any:
        weights, opt_state, epochs, ((value, _), grads) = carry
        updates, opt_state = optimizer.update(grads, opt_state, weights, value=value)
        moved: Any = optax.apply_updates(weights, updates)
        return moved, opt_state, epochs + 1, evaluate(moved)

    def goes_on(carry: Any) -> jax.Array:
        _, _, epochs, ((_, learned), _) = carry
        return ~learned & (epochs < max_epochs)

    start = weights, optimizer.init(weights), jnp.zeros((), int), evaluate(weights)
    weights, _, epochs, ((_, learned), grads) = jax.lax.while_loop(
        goes_on, update, start
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
    """Train from all starts, one a key, with all upper bounds of the step sizes.

    Each field of the outcome has the shape (bounds, starts).
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


def main(arguments: list[str] | None = None) -> None:
    """Train all encoders that are not there yet."""
    options = cli.parser(__doc__, "classics").parse_args(arguments)
    starts, max_epochs = (4, 200) if options.quick else (50, 5000)
    variants = VARIANTS[:1] if options.quick else VARIANTS
    keys, bounds = jax.random.split(jax.random.key(0), starts), jnp.array(BOUNDS)
    study = Study(options.output_dir, "encoders", ["problem", "optimizer"])
    jobs = list(itertools.product(ENCODERS, variants))
    for sizes, (variant, *_) in tqdm.tqdm(jobs, unit="job"):
        problem = "-".join(map(str, sizes))
        if not study.has(problem, variant):
            found = learn_all(keys, bounds, max_epochs, sizes=sizes, variant=variant)
            cases = itertools.product([problem], [variant], BOUNDS, range(starts))
            names = ["problem", "optimizer", "setting", "run"]
            fields = {name: np.ravel(field) for name, field in found._asdict().items()}
            study.add(pd.DataFrame(cases, columns=names).assign(**fields))


if __name__ == "__main__":
    main()
