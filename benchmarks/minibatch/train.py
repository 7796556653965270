"""Training on mini-batches: all settings of an optimizer, and all runs, at once."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import Split
from benchmarks.common.problems import Problem
from benchmarks.minibatch.methods import Optimizer

FULL = "full"
STEPS = {8: 3200, 32: 2000, 128: 800, 512: 320, FULL: 320}
"""By batch size, for all optimizers and problems alike."""
CHECKPOINTS = 16
Rows = Iterable[dict[str, Any]]


class Curves(NamedTuple):
    """How training went; shape (settings, runs, checkpoints)."""

    validation_loss: Any
    validation_error: Any
    test_error: Any


def batches(rows: int, size: int, steps: int, runs: int) -> np.ndarray:
    """Row numbers of every batch, shape (runs, steps, size), in shuffled epochs."""
    epoch = rows // size
    orders = []
    for run in range(runs):
        rng = np.random.default_rng((run, 1))
        epochs = [rng.permutation(rows) for _ in range(math.ceil(steps / epoch))]
        whole = [order[: epoch * size].reshape(epoch, size) for order in epochs]
        orders.append(np.concatenate(whole)[:steps])
    return np.stack(orders).astype(np.int32)


def runs_and_rows(data: Split) -> tuple[int, int]:
    """The number of runs there are data for, and of rows to train on."""
    return data.train["inputs"].shape[:2]


@functools.cache
def initial_params(init: Callable[[jax.Array], Any], runs: int) -> Any:
    """Of the first runs; kept, as random numbers take longest to compile."""
    return jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(jnp.arange(runs)))


def train(
    problem: Problem, optimizer: Optimizer, size: int, steps: int
) -> tuple[Curves, Curves]:
    """Train with every setting on the data of every run at once.

    Returns:
      The curves of the iterates and those of their average. In it, the last steps
      weigh most: step t does ``a += 9 / (t + 8) * (p - a)``.
    """
    loss, error = problem.loss, problem.error
    assert error is not None

    def one_run(setting: Any, params: Any, data: Split, order: jax.Array) -> Any:
        tx = optax.with_extra_args_support(optimizer.build(setting, steps))

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, state, average, count = carry
            batch = jax.tree.map(lambda part: part[rows], data.train)
            value, grads = jax.value_and_grad(loss)(params, batch)
            updates, state = tx.update(grads, state, params, value=value)
            params = optax.apply_updates(params, updates)
            now = optimizer.evaluated(state, params)
            average = optax.incremental_update(now, average, 9 / (count + 9))
            return (params, state, average, count + 1), None

        def measure(params: Any) -> Curves:
            return Curves(
                validation_loss=loss(params, data.validation),
                validation_error=error(params, data.validation),
                test_error=error(params, data.test),
            )

        def interval(carry: Any, rows: jax.Array) -> tuple[Any, tuple[Curves, Curves]]:
            carry, _ = jax.lax.scan(step, carry, rows)
            params, state, average, _ = carry
            now = optimizer.evaluated(state, params)
            return carry, (measure(now), measure(average))

        start = params, tx.init(params), params, 0
        return jax.lax.scan(interval, start, order)[1]

    runs, rows = runs_and_rows(problem.data)
    order = batches(rows, size, steps, runs).reshape(runs, CHECKPOINTS, -1, size)
    grid = {
        name: jnp.array([setting[name] for setting in optimizer.settings], "float32")
        for name in optimizer.settings[0]
    }
    over_runs = jax.vmap(one_run, (None, 0, 0, 0))
    train_all = jax.vmap(
        over_runs, (0, None, None, None), axis_size=len(optimizer.settings)
    )
    params = initial_params(problem.init, runs)
    found = jax.jit(train_all)(grid, params, problem.data, order)
    # A network that diverged is as bad as possible, not unknown.
    worst = np.float32(1e6)
    return jax.tree.map(lambda curve: np.where(np.isfinite(curve), curve, worst), found)


def at_best(curves: Curves) -> Curves:
    """At the checkpoint with the least validation error, the first of several.

    Shape (settings, runs).
    """
    best = curves.validation_error.argmin(axis=-1)[..., None]
    return jax.tree.map(
        lambda curve: np.take_along_axis(curve, best, axis=-1)[..., 0], curves
    )


def at_end(curves: Curves) -> Curves:
    """After the last step; shape (settings, runs)."""
    return jax.tree.map(lambda curve: curve[..., -1], curves)


def by_run(errors: Mapping[str, np.ndarray]) -> Rows:
    """A row a run, a column an optimizer; a thousandth of a percent is enough."""
    for run, row in enumerate(zip(*errors.values(), strict=True)):
        rounded = (round(float(error), 3) for error in row)
        yield {"run": run} | dict(zip(errors, rounded, strict=True))
