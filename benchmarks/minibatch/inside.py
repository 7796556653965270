"""A look inside while the first sign test trains, and at that test alone."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.problems import Problem
from benchmarks.minibatch.first_test import resolve_signs
from benchmarks.minibatch.methods import sign_test_and_rule
from benchmarks.minibatch.train import batches, initial_params, runs_and_rows

CHECKPOINTS = 32
QUANTILES = (5, 25, 50, 75, 95)
SIGN_TESTS = (
    (1.0, 0.95),
    (1.4, 0.95),
    (1.7, 0.9),
    (1.7, 0.95),
    (1.7, 1.0),
    (2.0, 0.98),
)
MEANS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], np.float32)


class Inside(NamedTuple):
    """What is seen; the first axis counts runs, then checkpoints.

    Attributes:
      resolved_fraction: The fraction of coordinates, of those with a gradient,
        resolved in a step, mean since the checkpoint before.
      raw_agreement: The fraction of coordinates in which the sign of a mini-batch's
        gradient is that of the gradient of the training set.
      resolved: How many signs the test resolved in the last step.
      resolved_right: How many of them are those of the training set's gradient.
      persistence: The fraction of resolved signs that are those remembered, where
        one is.
      step_sizes: The quantiles of the step sizes.
      train_loss: Of the training set.
      validation_error: Of the validation set.
      test_error: Of the test set.
    """

    resolved_fraction: Any
    raw_agreement: Any
    resolved: Any
    resolved_right: Any
    persistence: Any
    step_sizes: Any
    train_loss: Any
    validation_error: Any
    test_error: Any

    def rows(self, steps: int) -> Iterator[dict[str, Any]]:
        """One row a run and checkpoint."""
        runs, checkpoints = self.test_error.shape
        for run in range(runs):
            for i in range(checkpoints):
                row = {"run": run, "step": steps * (i + 1) // checkpoints}
                row |= {name: values[run, i] for name, values in self._asdict().items()}
                sizes = row.pop("step_sizes")
                names = [f"step_size_{percent}" for percent in QUANTILES]
                yield row | dict(zip(names, sizes, strict=True))


def _flat(tree: Any) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def _fraction(hits: jax.Array, among: jax.Array) -> jax.Array:
    return jnp.sum(hits & among) / jnp.maximum(jnp.sum(among), 1)


def look_inside(problem: Problem, size: int, steps: int) -> Inside:
    """Train by test and rule; compare with the true signs."""
    test, rule = sign_test_and_rule()
    runs, rows = runs_and_rows(problem.data)
    error: Any = problem.error
    gradient = jax.grad(problem.loss)

    def one_run(params: Any, data: Any, order: jax.Array) -> Inside:
        def rows_of(numbers: jax.Array) -> Any:
            return jax.tree.map(lambda part: part[numbers], data.train)

        def step(carry: Any, numbers: jax.Array) -> tuple[Any, Any]:
            params, tested, ruled = carry
            grads = gradient(params, rows_of(numbers))
            signs, tested = test.update(grads, tested, params)
            before = _flat(ruled[0].prev_grad_signs)
            updates, ruled = rule.update(signs, ruled, params)
            same = _flat(signs) * before
            seen = (
                _fraction(_flat(signs) != 0, _flat(grads) != 0),
                jnp.sum(same > 0),
                jnp.sum(same != 0),
            )
            return (optax.apply_updates(params, updates), tested, ruled), seen

        def interval(carry: Any, numbers: jax.Array) -> tuple[Any, Inside]:
            carry, (fractions, same, compared) = jax.lax.scan(step, carry, numbers[:-1])
            params, tested, ruled = carry
            grads = gradient(params, rows_of(numbers[-1]))
            signs = _flat(test.update(grads, tested, params)[0])
            true, raw = _flat(gradient(params, data.train)), _flat(grads)
            inside = Inside(
                resolved_fraction=fractions.mean(),
                raw_agreement=_fraction(raw * true > 0, raw != 0),
                resolved=jnp.sum(signs != 0),
                resolved_right=jnp.sum(signs * true > 0),
                persistence=jnp.where(
                    compared.sum() > 0, same.sum() / compared.sum(), 1.0
                ),
                step_sizes=jnp.quantile(
                    _flat(ruled[0].step_sizes), jnp.array(QUANTILES) / 100
                ),
                train_loss=problem.loss(params, data.train),
                validation_error=error(params, data.validation),
                test_error=error(params, data.test),
            )
            return step(carry, numbers[-1])[0], inside

        start = params, test.init(params), rule.init(params)
        return jax.lax.scan(interval, start, order)[1]

    order = np.moveaxis(batches(rows, size, steps, runs), 1, 0)
    order = order.reshape(runs, CHECKPOINTS, -1, size)
    params = initial_params(problem.init, runs)
    result = jax.jit(jax.vmap(one_run))(params, problem.data, order)
    return jax.tree.map(np.asarray, result)


def sign_decisions(steps: int, coordinates: int = 200) -> Iterator[dict[str, float]]:
    """The test on Gaussian gradients of known mean: false decisions and waits."""
    keys = jax.random.split(jax.random.key(0), steps)

    @jax.jit
    def run(threshold: float, decay: float) -> Any:
        test: Any = resolve_signs(threshold, decay)

        def step(state: Any, key: jax.Array) -> tuple[Any, Any]:
            noise = jax.random.normal(key, (len(MEANS), coordinates))
            signs, state = test.update(noise + MEANS[:, None], state)
            return state, (jnp.sum(signs > 0, axis=1), jnp.sum(signs < 0, axis=1))

        start = test.init(jnp.zeros((len(MEANS), coordinates)))
        return jax.lax.scan(step, start, keys)[1]

    for threshold, decay in SIGN_TESTS:
        right, wrong = (np.asarray(n).sum(axis=0) for n in run(threshold, decay))
        for mean, hits, misses in zip(MEANS, right, wrong, strict=True):
            decisions = max(int(hits + misses), 1)
            yield {
                "threshold": threshold,
                "decay": decay,
                "mean": round(float(mean), 3),
                "false": float(misses) / decisions,
                "wait": steps * coordinates / decisions,
            }
