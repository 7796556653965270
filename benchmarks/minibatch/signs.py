"""The sign argument: below which batch size the step sizes of plain Rprop shrink.

A coordinate whose gradient has mean mu and standard deviation sigma over the examples
shows the sign of its mean on a batch of B with probability

    q = Phi(sqrt(B) |mu| / sigma),

and its step size grows in the long run only if q is above a threshold that follows
from the two factors.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.stats import norm

import optax_rprop
from benchmarks.common.optimizers import VARIANTS
from benchmarks.common.problems import Problem

ETA_MINUS, ETA_PLUS = 0.5, 1.2


def forgets(variant: str) -> bool:
    """Whether a changed sign is forgotten, so that the next step is neutral."""
    return variant != "rprop-"


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
    x = 1 / (ratio + 3) if forgets(variant) else 1 / (2 * (1 + ratio))
    return 0.5 * (1 + math.sqrt(max(0.0, 1 - 4 * x)))


def log_growth(
    q: np.ndarray, eta_minus: float, eta_plus: float, variant: str
) -> np.ndarray:
    """The mean log growth per step, by the formulas in `threshold`."""
    x = q * (1 - q)
    grow, shrink = math.log(eta_plus), math.log(eta_minus)
    if forgets(variant):
        return ((1 - 3 * x) * grow + x * shrink) / (1 - x)
    return (1 - 2 * x) * grow + 2 * x * shrink


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
      grow: For each variant, the fraction of coordinates whose step size grows.
      log_growth: For each variant, the mean log growth of the step sizes per step.
    """

    right: Any
    agree: Any
    grow: dict[str, Any]
    log_growth: dict[str, Any]


def predict_signs(grads: jax.Array, batch: int) -> Signs:
    """By the sign argument, from the gradients of single rows, shape (rows, size)."""
    moments = np.asarray(grads.mean(axis=0)), np.asarray(grads.std(axis=0))
    q = right_sign(*moments, batch, len(grads))
    names = [variant.name for variant in VARIANTS]
    factors = ETA_MINUS, ETA_PLUS
    return Signs(
        right=float(q.mean()),
        agree=float(np.mean(q**2 + (1 - q) ** 2)),
        grow={name: float(np.mean(q > threshold(*factors, name))) for name in names},
        log_growth={
            name: float(log_growth(q, *factors, name).mean()) for name in names
        },
    )


def agreeing(signs: jax.Array, others: jax.Array) -> jax.Array:
    """The fraction that agrees, of those that are 0 in neither."""
    products = signs * others
    return jnp.sum(products > 0) / jnp.maximum(1, jnp.sum(products != 0))


@jax.jit
def measure_signs(grads: jax.Array, batch: jax.Array, keys: jax.Array) -> Signs:
    """By drawing batches, and by feeding their gradients to the optimizers.

    Args:
      grads: The gradients of single rows, shape (rows, size).
      batch: The number of rows in a batch.
      keys: One for each batch to draw.
    """
    order = jax.vmap(lambda key: jax.random.permutation(key, len(grads)))(keys)
    batches = (order < batch).astype(grads.dtype) @ grads
    signs = jnp.sign(batches)
    grow, growth = {}, {}
    for variant in VARIANTS:
        name: Any = variant.name
        optimizer = optax_rprop.scale_by_rprop(
            1.0, ETA_MINUS, ETA_PLUS, 0.0, 10.0, variant=name
        )

        def step(carry: Any, batch_grads: jax.Array, optimizer: Any = optimizer) -> Any:
            state, logs = carry
            # A constant loss: irprop+ sees no rise.
            _, state = optimizer.update(batch_grads, state, value=jnp.zeros(()))
            # Summed up and set back, lest a step size meets a bound or underflows.
            logs = logs + jnp.log(state.step_sizes)
            return (state._replace(step_sizes=jnp.ones_like(logs)), logs), None

        start = optimizer.init(batches[0]), jnp.zeros_like(batches[0])
        (_, logs), _ = jax.lax.scan(step, start, batches)
        grow[name] = jnp.mean(logs > 0)
        growth[name] = logs.mean() / (len(keys) - 1)
    return Signs(
        right=agreeing(signs, jnp.sign(grads.mean(axis=0))),
        agree=agreeing(signs[1:], signs[:-1]),
        grow=grow,
        log_growth=growth,
    )


def row_gradients(problem: Problem) -> Callable[[Any], jax.Array]:
    """A function of the parameters: the gradient on every row, shape (rows, size).

    Coordinates that are 0 for every row, those of pixels that are always dark, are
    left out.
    """

    def gradient(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        row = {"inputs": inputs[None], "targets": targets[None]}
        return ravel_pytree(jax.grad(problem.loss)(params, row))[0]

    gradients = jax.jit(jax.vmap(gradient, (None, 0, 0)))

    data = problem.data.train

    def compute(params: Any) -> jax.Array:
        grads = gradients(params, data["inputs"], data["targets"])
        return grads[:, jnp.any(grads != 0, axis=0)]

    return compute
