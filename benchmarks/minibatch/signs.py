"""The sign argument: below which batch size the step sizes of plain Rprop shrink.

A coordinate whose gradient has mean mu and standard deviation sigma over the examples
shows the sign of its mean on a batch of B with probability

    q = Phi(sqrt(B) |mu| / sigma),

and its step size grows in the long run only if q is above a threshold that follows
from the two factors.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.stats import norm

import optax_rprop
from benchmarks.common.problems import Problem

ETA_MINUS, ETA_PLUS = 0.5, 1.2


def threshold(eta_minus: float, eta_plus: float, variant: str) -> float:
    """The probability of the right sign above which step sizes grow.

    Let the signs be drawn independently, right with probability q, and let
    x = q (1 - q). Then the mean log growth per step is

        (1 - 2 x) log(eta_plus) + 2 x log(eta_minus)

    for rprop-, which compares each sign with the one before. The others forget a sign
    that has changed, which makes a Markov chain of three states (right, wrong,
    forgotten), of which a fraction x / (1 - x) is forgotten, with the mean log growth

        ((1 - 3 x) log(eta_plus) + x log(eta_minus)) / (1 - x).

    Returns:
      The q in [1/2, 1) where it is 0; 1/2 if the step sizes grow even on noise.
    """
    ratio = -math.log(eta_minus) / math.log(eta_plus)
    x = 1 / (2 * (1 + ratio)) if variant == "rprop-" else 1 / (ratio + 3)
    return 0.5 * (1 + math.sqrt(max(0.0, 1 - 4 * x)))


def right_sign(
    means: np.ndarray, deviations: np.ndarray, batch: int, rows: int
) -> np.ndarray:
    """The probability that a batch shows the sign of the mean gradient.

    Batches are drawn without replacement, as in training, so that the variance of
    their mean is sigma^2 / B (N - B) / (N - 1): no doubt remains with all rows.
    """
    spread = deviations * math.sqrt((rows - batch) / (rows - 1) / batch)
    ratio = np.full_like(means, np.inf)
    np.divide(np.abs(means), spread, out=ratio, where=spread > 0)
    return norm.cdf(ratio)


class Signs(NamedTuple):
    """Of batches of one size, at fixed parameters.

    Attributes:
      right: The fraction of signs that are those of the gradient on all rows.
      agree: The fraction of signs that agree with those of another batch.
      grow: The fraction of coordinates whose step size grows.
    """

    right: Any
    agree: Any
    grow: Any


def predict_signs(grads: jax.Array, batch: int, variant: str = "irprop-") -> Signs:
    """By the sign argument, from the gradients of single rows, shape (rows, size)."""
    moments = np.asarray(grads.mean(axis=0)), np.asarray(grads.std(axis=0))
    q = right_sign(*moments, batch, len(grads))
    return Signs(
        right=float(q.mean()),
        agree=float(np.mean(q**2 + (1 - q) ** 2)),
        grow=float(np.mean(q > threshold(ETA_MINUS, ETA_PLUS, variant))),
    )


def agreeing(signs: jax.Array, others: jax.Array) -> jax.Array:
    """The fraction that agrees, of those that are 0 in neither."""
    products = signs * others
    return jnp.sum(products > 0) / jnp.maximum(1, jnp.sum(products != 0))


@functools.partial(jax.jit, static_argnames="variant")
def measure_signs(
    grads: jax.Array, batch: jax.Array, keys: jax.Array, variant: Any = "irprop-"
) -> Signs:
    """By drawing batches, and by feeding their gradients to the optimizer.

    Args:
      grads: The gradients of single rows, shape (rows, size).
      batch: The number of rows in a batch.
      keys: One for each batch to draw.
      variant: Of Rprop.
    """
    order = jax.vmap(lambda key: jax.random.permutation(key, len(grads)))(keys)
    batches = (order < batch).astype(grads.dtype) @ grads
    signs = jnp.sign(batches)
    factors = ETA_MINUS, ETA_PLUS
    rule: Any = optax_rprop.scale_by_rprop(1.0, *factors, 0.0, 10.0, variant=variant)

    def step(carry: Any, batch_grads: jax.Array) -> Any:
        state, logs = carry
        # A constant loss: irprop+ sees no rise.
        _, state = rule.update(batch_grads, state, value=jnp.zeros(()))
        # Summed up and set back, lest a step size meets a bound or underflows.
        logs = logs + jnp.log(state.step_sizes)
        return (state._replace(step_sizes=jnp.ones_like(logs)), logs), None

    start = rule.init(batches[0]), jnp.zeros_like(batches[0])
    (_, logs), _ = jax.lax.scan(step, start, batches)
    return Signs(
        right=agreeing(signs, jnp.sign(grads.mean(axis=0))),
        agree=agreeing(signs[1:], signs[:-1]),
        grow=jnp.mean(logs > 0),
    )


def row_gradients(problem: Problem, params: Any) -> jax.Array:
    """The gradient on every row, shape (rows, size).

    Coordinates that are 0 for every row, those of pixels that are always dark, are
    left out.
    """

    def gradient(row: Any) -> jax.Array:
        one = jax.tree.map(lambda leaf: leaf[None], row)
        return ravel_pytree(jax.grad(problem.loss)(params, one))[0]

    grads = jax.jit(jax.vmap(gradient))(problem.data.train)
    return grads[:, jnp.any(grads != 0, axis=0)]
