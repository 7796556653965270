"""One loop that runs every optimizer on every problem."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.optimizers import Optimizer
from benchmarks.common.problems import Problem


class Trace(NamedTuple):
    """The course of a run; arrays have one entry per step, from before it."""

    evaluations: Any  # Of loss and gradient, so far; 0 after the last step.
    losses: Any


def descend(
    problem: Problem, optimizer: Optimizer, budget: int
) -> Callable[..., Trace]:
    """A function of setting, start, target loss and data that minimizes.

    It stops at the target or when the budget of gradients is spent. With a line search,
    the budget is checked between steps, so the last one may exceed it.
    """

    def run(setting: jax.Array, params: Any, target: jax.Array, data: Any) -> Trace:
        transformation = optax.with_extra_args_support(optimizer.build(setting))

        def loss(params: Any) -> jax.Array:
            return problem.loss(params, data.train)

        def evaluate(params: Any, state: Any) -> tuple[Any, Any, Any]:
            """The loss, its gradient and the number of evaluations for them."""
            if not optimizer.line_search:
                value, grads = jax.value_and_grad(loss)(params)
                return value, grads, 1
            # The line search hands on what it saw at its last point. It looked
            # there once in each of its own steps, the first point apart.
            value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
            known = jnp.isfinite(optax.tree.get(state, "value"))
            searched = optax.tree.get(state, "info").num_linesearch_steps
            return value, grads, searched + jnp.where(known, 0, 1)

        def continues(carry: Any) -> jax.Array:
            _, _, _, i, stopped, _ = carry
            return ~stopped & (i < budget)

        def step(carry: Any) -> Any:
            params, state, spent, i, _, trace = carry
            value, grads, new = evaluate(params, state)
            spent = (spent + new).astype(jnp.int32)
            seen = Trace(spent, value)
            trace = jax.tree.map(lambda new, old: old.at[i].set(new), seen, trace)
            stopped = (value <= target) | (spent >= budget)

            def update(params: Any, state: Any) -> tuple[Any, Any]:
                updates, state = transformation.update(
                    grads, state, params, value=value, grad=grads, value_fn=loss
                )
                return optax.apply_updates(params, updates), state

            if optimizer.line_search:
                # A search after the last step would be timed, but not counted.
                params, state = jax.lax.cond(
                    stopped, lambda *kept: kept, update, params, state
                )
            else:
                params, state = update(params, state)
            return params, state, spent, i + 1, stopped, trace

        zero = jnp.zeros((), jnp.int32)
        losses = jnp.full(budget, jnp.nan, problem.dtype)
        trace = Trace(jnp.zeros(budget, jnp.int32), losses)
        state = transformation.init(params)
        start = params, state, zero, zero, jnp.asarray(False), trace
        return jax.lax.while_loop(continues, step, start)[-1]

    return run


class Run(NamedTuple):
    """A finished run: its trace, cut to the actual steps, and its duration."""

    trace: Trace
    seconds: float

    def until(self, target: float) -> tuple[float, float]:
        """Evaluations and seconds until the loss reaches the target; NaN if never.

        All evaluations of the run share its time equally.
        """
        reached = np.flatnonzero(self.trace.losses <= target)
        if reached.size == 0:
            return np.nan, np.nan
        evaluations = self.trace.evaluations[reached[0]]
        total = self.trace.evaluations[-1]
        return float(evaluations), float(self.seconds * evaluations / total)
