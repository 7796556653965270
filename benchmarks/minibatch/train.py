"""Training on mini-batches: all settings of all optimizers, and all runs, at once."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import Split
from benchmarks.common.problems import Problem
from benchmarks.minibatch import methods
from benchmarks.minibatch.methods import Optimizer

FULL = "full"
STEPS = {8: 3200, 32: 2000, 128: 800, 512: 320, FULL: 320}
"""By batch size, for all optimizers and problems alike."""
CHECKPOINTS = 16
Rows = Iterable[dict[str, Any]]


class Curves(NamedTuple):
    """How training went; shape (checkpoints, runs, settings)."""

    validation_loss: Any
    validation_error: Any
    test_error: Any


def batches(rows: int, size: int, steps: int, runs: int) -> np.ndarray:
    """Row numbers of every batch, shape (steps, runs, size), in shuffled epochs."""
    epoch = rows // size
    orders = []
    for run in range(runs):
        rng = np.random.default_rng((run, 1))
        epochs = [rng.permutation(rows) for _ in range(math.ceil(steps / epoch))]
        whole = [order[: epoch * size].reshape(epoch, size) for order in epochs]
        orders.append(np.concatenate(whole)[:steps])
    return np.stack(orders, axis=1).astype(np.int32)


def runs_and_rows(data: Split) -> tuple[int, int]:
    """How many runs there are data for, and how many rows to train on."""
    return data.train["inputs"].shape[:2]


@functools.cache
def initial_params(init: Callable[[jax.Array], Any], runs: int) -> Any:
    """Of the first runs; kept, as random numbers take longest to compile."""
    return jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(jnp.arange(runs)))


class Ensemble:
    """Several optimizers, each with all its settings, on the parameters of all runs.

    The first axes of parameters, gradients and updates count runs, then settings.
    """

    def __init__(self, optimizers: Sequence[Optimizer], steps: int) -> None:
        self._optimizers, self._steps = optimizers, steps
        self._ends = np.cumsum([0, *(len(each.settings) for each in optimizers)])
        self.size = int(self._ends[-1])

    def _map(self, call: Callable[..., Any], states: Any, *trees: Any) -> list[Any]:
        """Call each optimizer with each setting, for each run, on its part of trees."""

        def one(optimizer: Optimizer, setting: Any, state: Any, trees: Any) -> Any:
            tx = optax.with_extra_args_support(optimizer.build(setting, self._steps))
            return call(optimizer, tx, state, *trees)

        found = []
        for n, optimizer in enumerate(self._optimizers):
            grid = {
                name: jnp.array([s[name] for s in optimizer.settings], jnp.float32)
                for name in optimizer.settings[0]
            }
            part = slice(self._ends[n], self._ends[n + 1])
            mine = jax.tree.map(lambda leaf, part=part: leaf[:, part], trees)
            over_settings = jax.vmap(functools.partial(one, optimizer))
            over_runs = jax.vmap(over_settings, (None, 0, 0))
            found.append(over_runs(grid, states and states[n], mine))
        return found

    def init(self, params: Any) -> list[Any]:
        """The states."""
        return self._map(lambda _, tx, state, params: tx.init(params), None, params)

    def update(self, grads: Any, states: list[Any], params: Any, values: Any) -> Any:
        """New parameters and states; values are the losses, shape (runs, settings)."""

        def call(_: Any, tx: Any, state: Any, *trees: Any) -> Any:
            grads, params, value = trees
            return tx.update(grads, state, params, value=value)

        pairs = self._map(call, states, grads, params, values)
        updates = _join([updates for updates, _ in pairs])
        return optax.apply_updates(params, updates), [state for _, state in pairs]

    def evaluated(self, states: list[Any], params: Any) -> Any:
        """The parameters to evaluate: for most optimizers, those that it trains."""

        def call(optimizer: Optimizer, _: Any, state: Any, params: Any) -> Any:
            return optimizer.evaluated(state, params)

        return _join(self._map(call, states, params))


def _join(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *trees)


def train(
    problem: Problem,
    optimizers: Sequence[Optimizer],
    size: int,
    steps: int,
    *,
    averaged: bool = False,
) -> list[Curves]:
    """Train every setting of every optimizer on the data of every run at once.

    Returns:
      The curves of the iterates and, if `averaged`, those of their average. In it,
      the last steps weigh most: step t does ``a += 9 / (t + 8) * (p - a)``.
    """
    runs, rows = runs_and_rows(problem.data)
    ensemble = Ensemble(optimizers, steps)
    assert problem.error is not None
    # Over runs, and over the settings that share a run's data.
    gradient = jax.vmap(jax.vmap(jax.value_and_grad(problem.loss), (0, None)))
    measures = problem.loss, problem.error

    def train_all(params: Any, data: Split, order: jax.Array) -> list[Curves]:
        params = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[:, None], ensemble.size, axis=1), params
        )

        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, states, count, *averages = carry
            batch = jax.tree.map(
                lambda part: jax.vmap(lambda part, i: part[i])(part, rows), data.train
            )
            values, grads = gradient(params, batch)
            params, states = ensemble.update(grads, states, params, values)
            if averages:
                now = ensemble.evaluated(states, params)
                share = 9 / (count + 9)
                averages = [optax.incremental_update(now, averages[0], share)]
            return (params, states, count + 1, *averages), None

        def curves(params: Any) -> Curves:
            # Run by run, as all at once take too much memory.
            return jax.lax.map(lambda run: of_run(*run), (params, data))

        def of_run(params: Any, data: Split) -> Curves:
            loss, error = (jax.vmap(measure, (0, None)) for measure in measures)
            return Curves(
                validation_loss=loss(params, data.validation),
                validation_error=error(params, data.validation),
                test_error=error(params, data.test),
            )

        def interval(carry: Any, rows: jax.Array) -> tuple[Any, list[Curves]]:
            carry, _ = jax.lax.scan(step, carry, rows)
            params, states, _, *averages = carry
            now = ensemble.evaluated(states, params)
            return carry, [curves(evaluated) for evaluated in (now, *averages)]

        start = params, ensemble.init(params), 0, *([params] if averaged else [])
        return jax.lax.scan(interval, start, order)[1]

    order = batches(rows, size, steps, runs)
    order = order.reshape(CHECKPOINTS, -1, *order.shape[1:])
    params = initial_params(problem.init, runs)
    found = jax.jit(train_all)(params, problem.data, order)
    # A network that diverged is as bad as can be, not unknown.
    worst = np.float32(1e6)
    return jax.tree.map(lambda curve: np.where(np.isfinite(curve), curve, worst), found)


def at_best(curves: Curves) -> Curves:
    """At the checkpoint with the least validation error, the first of several.

    Shape (runs, settings).
    """
    best = curves.validation_error.argmin(axis=0)[None]
    return jax.tree.map(lambda c: np.take_along_axis(c, best, axis=0)[0], curves)


def choices(
    optimizers: Sequence[Optimizer], scores: Curves
) -> Iterator[tuple[Optimizer, range, int]]:
    """Each optimizer, its columns, and that of the setting that validation chooses."""
    first = 0
    for optimizer in optimizers:
        columns = range(first, first + len(optimizer.settings))
        first = columns.stop
        # The loss decides between settings of the same error.
        chosen = min(
            columns,
            key=lambda i: (
                scores.validation_error[:, i].mean(),
                scores.validation_loss[:, i].mean(),
            ),
        )
        yield optimizer, columns, chosen


def contest(
    problem: Problem, size: int, steps: int, *, optimizers: Sequence[Optimizer]
) -> dict[str, Rows]:
    """Train all settings, and choose each optimizer's by the validation sets.

    Returns:
      Of the table of settings, a row, of means, for each. And test errors, a row a run,
      a column an optimizer.
    """
    (curves,) = train(problem, optimizers, size, steps)
    scores = at_best(curves)
    chosen, tried = {}, []
    for optimizer, columns, best in choices(optimizers, scores):
        chosen[optimizer.name] = best
        for setting, column in zip(optimizer.settings, columns, strict=True):
            tried.append(
                {
                    "optimizer": optimizer.name,
                    "setting": methods.describe(setting),
                    "validation_error": scores.validation_error[:, column].mean(),
                    "test_error": scores.test_error[:, column].mean(),
                }
            )
    return {"settings": tried, "": by_run(scores.test_error, chosen)}


def side_by_side(
    problem: Problem,
    size: int,
    steps: int,
    *,
    optimizers: Sequence[Optimizer],
    names: Sequence[str],
) -> dict[str, Rows]:
    """Test errors of all settings: a row a run, a column a setting."""
    (curves,) = train(problem, optimizers, size, steps)
    columns = {name: i for i, name in enumerate(names)}
    return {"": by_run(at_best(curves).test_error, columns)}


def by_run(errors: np.ndarray, columns: Mapping[str, int]) -> Rows:
    """A row a run, a column an optimizer; a thousandth of a percent is enough."""
    for run, row in enumerate(errors):
        found = {name: round(float(row[i]), 3) for name, i in columns.items()}
        yield {"run": run} | found
