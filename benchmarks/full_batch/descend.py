"""One loop that runs every optimizer on every problem."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common.optimizers import Optimizer
from benchmarks.common.problems import Problem


class Trace(NamedTuple):
    """What a run saw before each of its steps; arrays have one entry a step.

    Attributes:
      evaluations: How often the loss and its gradient were computed up to here.
      losses: The training loss.
      validation_losses: The loss on the validation data; NaN without them.
      errors: The error on the test data; NaN without them.
      steps: How many entries the run has filled, shape ().
    """

    evaluations: Any
    losses: Any
    validation_losses: Any
    errors: Any
    steps: Any


def _empty_trace(budget: int, dtype: str) -> Trace:
    unknown = jnp.full(budget, jnp.nan, dtype)
    return Trace(
        evaluations=jnp.zeros(budget, jnp.int32),
        losses=unknown,
        validation_losses=unknown,
        errors=unknown,
        steps=jnp.zeros((), jnp.int32),
    )


def descend(
    problem: Problem, optimizer: Optimizer, budget: int, *, watch: bool = False
) -> Callable[..., Trace]:
    """A function that minimizes: of setting, start, target loss and the data.

    It stops at the target or when the budget is spent. With a line search, the
    budget is checked between its steps, so that the last one may overdraw it.

    Args:
      problem: What to minimize.
      optimizer: The optimizer.
      budget: The number of evaluations of the loss and its gradient.
      watch: Whether to look at validation and test data before each step.
    """

    def run(setting: jax.Array, params: Any, target: jax.Array, data: Any) -> Trace:
        transformation = optax.with_extra_args_support(optimizer.build(setting))

        def loss(params: Any) -> jax.Array:
            return problem.loss(params, data.train)

        def evaluate(params: Any, state: Any) -> tuple[Any, Any, Any]:
            """The loss, its gradient and the number of evaluations it took."""
            if not optimizer.line_search:
                value, grads = jax.value_and_grad(loss)(params)
                return value, grads, 1
            # The line search hands on what it saw at its last point. It looked
            # there once in each of its own steps, the first point apart.
            value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
            known = jnp.isfinite(optax.tree.get(state, "value"))
            searched = optax.tree.get(state, "info").num_linesearch_steps
            return value, grads, searched + jnp.where(known, 0, 1)

        def goes_on(carry: Any) -> jax.Array:
            _, _, _, stopped, trace = carry
            return ~stopped & (trace.steps < budget)

        def step(carry: Any) -> Any:
            params, state, spent, _, trace = carry
            value, grads, new = evaluate(params, state)
            spent = (spent + new).astype(jnp.int32)
            seen = {"evaluations": spent, "losses": value}
            if watch and problem.error is not None:
                seen["validation_losses"] = problem.loss(params, data.validation)
                seen["errors"] = problem.error(params, data.test)
            i = trace.steps
            filled = {name: getattr(trace, name).at[i].set(seen[name]) for name in seen}
            trace = trace._replace(**filled, steps=i + 1)
            stopped = (value <= target) | (spent >= budget)

            def update(params: Any, state: Any) -> tuple[Any, Any]:
                updates, state = transformation.update(
                    grads, state, params, value=value, grad=grads, value_fn=loss
                )
                return optax.apply_updates(params, updates), state

            if optimizer.line_search:
                # A search after the last step would cost time that nobody counts.
                params, state = jax.lax.cond(
                    stopped, lambda *kept: kept, update, params, state
                )
            else:
                params, state = update(params, state)
            return params, state, spent, stopped, trace

        trace = _empty_trace(budget, problem.dtype)
        spent = jnp.zeros((), jnp.int32)
        start = params, transformation.init(params), spent, jnp.asarray(False), trace
        return jax.lax.while_loop(goes_on, step, start)[-1]

    return run


class Run(NamedTuple):
    """A finished run: its trace, cut to the steps it made, and its duration."""

    trace: Trace
    seconds: float

    def until(self, target: float) -> tuple[float, float]:
        """Evaluations and seconds until the loss is at the target, or infinities.

        The time is shared out evenly over all evaluations of the run.
        """
        reached = np.flatnonzero(self.trace.losses <= target)
        if reached.size == 0:
            return np.inf, np.inf
        evaluations = self.trace.evaluations[reached[0]]
        total = self.trace.evaluations[-1]
        return float(evaluations), float(self.seconds * evaluations / total)


class Runner:
    """An optimizer on a problem, compiled once for all settings and runs."""

    def __init__(
        self, problem: Problem, optimizer: Optimizer, budget: int, *, watch: bool
    ) -> None:
        self._problem = problem
        arguments = self._arguments(setting=0.01, run=0, target=0.0)
        function = jax.jit(descend(problem, optimizer, budget, watch=watch))
        self._compiled = function.lower(*arguments).compile()
        self(0.01, run=0, target=np.inf)  # The first call is slower than the rest.

    def _arguments(self, setting: float, run: int, target: float) -> Sequence[Any]:
        dtype = self._problem.dtype
        return (
            jnp.asarray(setting, dtype),
            self._problem.start(run),
            jnp.asarray(target, dtype),
            self._problem.data,
        )

    def __call__(self, setting: float, run: int, target: float = -np.inf) -> Run:
        """Run to the target, or until the budget is spent."""
        arguments = jax.block_until_ready(self._arguments(setting, run, target))
        start = time.perf_counter()
        trace = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - start
        trace = jax.tree.map(np.asarray, trace)
        steps = int(trace.steps)
        cut = {name: getattr(trace, name)[:steps] for name in Trace._fields[:-1]}
        return Run(Trace(**cut, steps=steps), seconds)


def compile_all(
    problem: Problem,
    optimizers: Sequence[Optimizer],
    budget: int,
    *,
    watch: bool = False,
) -> dict[str, Runner]:
    """Every optimizer on a problem, by name; compiled side by side."""
    problem.start(0)

    def compiled(optimizer: Optimizer) -> Runner:
        return Runner(problem, optimizer, budget, watch=watch)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        names = [optimizer.name for optimizer in optimizers]
        return dict(zip(names, pool.map(compiled, optimizers), strict=True))
