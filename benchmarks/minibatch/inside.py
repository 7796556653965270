"""A look inside while mini-batch Rprop trains, and at its sign test alone."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

import optax_rprop
from benchmarks.common.problems import Problem
from benchmarks.minibatch.train import Rows, batches, initial_params, runs_and_rows

CHECKPOINTS = 32
SIGN_TESTS = (
    (1.0, 0.95),
    (1.1, 0.95),
    (1.2, 0.9),
    (1.2, 0.95),
    (1.2, 0.98),
    (1.5, 0.95),
    (2.0, 0.95),
)
MEANS = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0], np.float32)


def resolved_signs(state: optax_rprop.ResolveSignsState) -> jax.Array:
    """The signs that the last step resolved, 0 elsewhere."""
    (norms, _), (sums, _) = map(ravel_pytree, (state.grad_norms, state.grad_sums))
    return jnp.where(norms < 0, jnp.sign(sums), 0)


def look_inside(problem: Problem, size: int, steps: int, runs: int) -> Rows:
    """Train, and compare with the true signs: a row a run and checkpoint.

    Of these columns: since the checkpoint before, a step resolved the signs of
    `resolved_fraction` of the coordinates that have a gradient. At the checkpoint, the
    sign of a mini-batch's gradient is that of the gradient of the training set in
    `raw_agreement` of them; `resolved` are resolved, and `resolved_right` of these are
    those of the training set.
    """
    optimizer: Any = optax_rprop.minibatch_rprop()
    rows = runs_and_rows(problem.data)[1]
    data = jax.tree.map(lambda leaf: leaf[:runs], problem.data.train)
    gradient = jax.grad(problem.loss)

    def one_run(params: Any, data: Any, order: jax.Array) -> Any:
        def batch_gradient(params: Any, numbers: jax.Array) -> Any:
            return gradient(params, jax.tree.map(lambda part: part[numbers], data))

        def step(carry: Any, numbers: jax.Array) -> tuple[Any, jax.Array]:
            params, state = carry
            grads = batch_gradient(params, numbers)
            updates, state = optimizer.update(grads, state, params)
            resolved = jnp.sum(resolved_signs(state[0]) != 0)
            fraction = resolved / jnp.maximum(jnp.sum(ravel_pytree(grads)[0] != 0), 1)
            return (optax.apply_updates(params, updates), state), fraction

        def interval(carry: Any, numbers: jax.Array) -> tuple[Any, Any]:
            carry, fractions = jax.lax.scan(step, carry, numbers[:-1])
            true = ravel_pytree(gradient(carry[0], data))[0]
            raw = ravel_pytree(batch_gradient(carry[0], numbers[-1]))[0]
            carry, _ = step(carry, numbers[-1])
            signs = resolved_signs(carry[1][0])
            return carry, {
                "resolved_fraction": fractions.mean(),
                "raw_agreement": jnp.sum(raw * true > 0)
                / jnp.maximum(jnp.sum(raw != 0), 1),
                "resolved": jnp.sum(signs != 0),
                "resolved_right": jnp.sum(signs * true > 0),
            }

        return jax.lax.scan(interval, (params, optimizer.init(params)), order)[1]

    order = np.moveaxis(batches(rows, size, steps, runs), 1, 0)
    order = order.reshape(runs, CHECKPOINTS, -1, size)
    params = initial_params(problem.init, runs)
    found = jax.device_get(jax.jit(jax.vmap(one_run))(params, data, order))
    for run in range(runs):
        for i in range(CHECKPOINTS):
            row = {"run": run, "step": steps * (i + 1) // CHECKPOINTS}
            yield row | {name: values[run, i] for name, values in found.items()}


def sign_decisions(steps: int, coordinates: int = 200) -> Iterator[dict[str, float]]:
    """The test on Gaussian gradients of known mean: false decisions and waits."""
    keys = jax.random.split(jax.random.key(0), steps)

    @jax.jit
    def run(threshold: float, decay: float) -> Any:
        # Without the lean, as there are no parameters.
        test: Any = optax_rprop.resolve_signs(threshold, decay, lean=0)

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
