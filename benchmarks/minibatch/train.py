"""Training on mini-batches: all settings of all optimizers, and all runs, at once."""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.data import Data, Split
from benchmarks.common.problems import Problem
from benchmarks.minibatch import methods
from benchmarks.minibatch.methods import Optimizer

FULL = "full"
STEPS = {8: 3200, 32: 2000, 128: 800, 512: 320, FULL: 320}
"""By batch size, for all optimizers and problems alike."""
CHECKPOINTS = 16
MEASURED_ROWS = 1000


class Curves(NamedTuple):
    """How training went; shape (checkpoints, runs, settings)."""

    validation_loss: Any
    validation_error: Any
    test_error: Any
    train_loss: Any = None


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


def _over_networks(function: Callable[..., Any]) -> Callable[..., Any]:
    """Map over runs, and over the settings that share a run's data."""
    return jax.vmap(jax.vmap(function, (0, None)))


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
        sizes = [len(optimizer.settings) for optimizer in optimizers]
        self._ends = np.cumsum([0, *sizes])
        self.size = int(self._ends[-1])
        self._grids = [
            {
                name: jnp.array([s[name] for s in optimizer.settings], jnp.float32)
                for name in optimizer.settings[0]
            }
            for optimizer in optimizers
        ]

    def _cut(self, tree: Any, number: int) -> Any:
        part = slice(self._ends[number], self._ends[number + 1])
        return jax.tree.map(lambda leaf: leaf[:, part], tree)

    def _map(self, number: int, call: Callable[..., Any], *trees: Any) -> Any:
        """Call one optimizer with each setting, for each run."""
        optimizer = self._optimizers[number]

        def one(setting: Any, *trees: Any) -> Any:
            tx = optimizer.build(setting, self._steps)
            return call(optax.with_extra_args_support(tx), *trees)

        over_settings = jax.vmap(one)
        over_runs = jax.vmap(over_settings, (None, *(0 for _ in trees)))
        return over_runs(self._grids[number], *trees)

    def init(self, params: Any) -> list[Any]:
        """The states."""
        return [
            self._map(n, lambda tx, params: tx.init(params), self._cut(params, n))
            for n in range(len(self._optimizers))
        ]

    def update(self, grads: Any, states: list[Any], params: Any, values: Any) -> Any:
        """New parameters and states; values are the losses, shape (runs, settings)."""

        def call(tx: Any, state: Any, grads: Any, params: Any, value: Any) -> Any:
            return tx.update(grads, state, params, value=value)

        pairs = [
            self._map(n, call, state, *self._cut((grads, params, values), n))
            for n, state in enumerate(states)
        ]
        updates = _join([updates for updates, _ in pairs])
        return optax.apply_updates(params, updates), [state for _, state in pairs]

    def evaluated(self, states: list[Any], params: Any) -> Any:
        """The parameters to evaluate: for most optimizers, those that it trains."""
        return _join(
            [
                self._map(
                    n,
                    lambda _, *trees, evaluated=optimizer.evaluated: evaluated(*trees),
                    state,
                    self._cut(params, n),
                )
                for n, (optimizer, state) in enumerate(
                    zip(self._optimizers, states, strict=True)
                )
            ]
        )


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
      The curves of the iterates and, if `averaged`, those of their average, without
      training losses. In the average, the last steps weigh most: step t does
      ``a += 9 / (t + 8) * (p - a)``.
    """
    runs, rows = runs_and_rows(problem.data)
    ensemble = Ensemble(optimizers, steps)
    assert problem.error is not None
    gradient = _over_networks(jax.value_and_grad(problem.loss))
    measures = problem.loss, problem.error

    def train_all(params: Any, data: Split, order: jax.Array) -> list[Curves]:
        params = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[:, None], ensemble.size, axis=1), params
        )
        measured = {name: part[:, :MEASURED_ROWS] for name, part in data.train.items()}

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
            return jax.lax.map(lambda run: of_run(*run), (params, measured, data))

        def of_run(params: Any, measured: Data, data: Split) -> Curves:
            loss, error = (jax.vmap(measure, (0, None)) for measure in measures)
            return Curves(
                validation_loss=loss(params, data.validation),
                validation_error=error(params, data.validation),
                test_error=error(params, data.test),
                train_loss=None if averaged else loss(params, measured),
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


class Scores(NamedTuple):
    """Results of every setting; shape (runs, settings)."""

    validation_error: np.ndarray
    validation_loss: np.ndarray
    test_error: np.ndarray
    last_test_error: np.ndarray
    last_train_loss: Any

    def row(self, run: int, setting: int) -> dict[str, float]:
        """Of one run and setting."""
        return {k: float(v[run, setting]) for k, v in self._asdict().items()}


def score(curves: Curves) -> Scores:
    """The checkpoint with the least validation error, the first of several."""
    best = curves.validation_error.argmin(axis=0)[None]

    def at_best(curve: np.ndarray) -> np.ndarray:
        return np.take_along_axis(curve, best, axis=0)[0]

    return Scores(
        validation_error=at_best(curves.validation_error),
        validation_loss=at_best(curves.validation_loss),
        test_error=at_best(curves.test_error),
        last_test_error=curves.test_error[-1],
        last_train_loss=None if curves.train_loss is None else curves.train_loss[-1],
    )


def choices(
    optimizers: Sequence[Optimizer], scores: Scores
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


Rows = Iterator[dict[str, Any]]


def contest(
    problem: Problem, optimizers: Sequence[Optimizer], size: int, steps: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train all settings, and choose each optimizer's by the validation sets.

    Returns:
      Test errors, a row a run and measure, a column an optimizer: at the best
      checkpoint, and at the last. And a row, of means, for each setting.
    """
    (curves,) = train(problem, optimizers, size, steps)
    scores = score(curves)
    chosen, tried = {}, []
    for optimizer, columns, best in choices(optimizers, scores):
        chosen[optimizer.name] = best
        for setting, column in zip(optimizer.settings, columns, strict=True):
            tried.append(
                {
                    "optimizer": optimizer.name,
                    "setting": methods.describe(setting),
                    "chosen": column == best,
                    "validation_error": scores.validation_error[:, column].mean(),
                    "test_error": scores.test_error[:, column].mean(),
                }
            )
    rows = [
        {"measure": measure, **row}
        for measure in ("test_error", "last_test_error")
        for row in by_run(getattr(scores, measure), chosen)
    ]
    return rows, tried


def by_run(errors: np.ndarray, columns: Mapping[str, int]) -> Rows:
    """A row a run, a column an optimizer; a thousandth of a percent is enough."""
    for run, row in enumerate(errors):
        found = {name: round(float(row[i]), 3) for name, i in columns.items()}
        yield {"run": run} | found


def ablate(problem: Problem, size: int, steps: int, *, quick: bool) -> Rows:
    """Mini-batch Rprop with one part changed at a time: a row a change and run."""
    names, optimizers = methods.ablations()
    if quick:
        first = optimizers[0]
        names, optimizers = names[:2], [first._replace(settings=first.settings[:2])]
    (curves,) = train(problem, optimizers, size, steps)
    scores = score(curves)
    for column, name in enumerate(names):
        for run in range(len(scores.test_error)):
            found = scores.row(run, column)
            yield {
                "setting": name,
                "run": run,
                "test_error": found["test_error"],
                "last_train_loss": found["last_train_loss"],
            }
