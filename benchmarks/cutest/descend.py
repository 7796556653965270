"""How is each optimizer run, and what counts as one evaluation?"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix

import optax_rprop
from benchmarks.common import scipy_methods
from benchmarks.common.optimizers import EIGENBASIS, irprop_plus
from benchmarks.cutest.earlier_basis import earlier_basis
from benchmarks.cutest.problems import Problem
from benchmarks.cutest.views import Numbers, Observe, View, numbers, observed

BUDGET = 2000


TRANSFORMATIONS = {
    "irprop-": optax_rprop.rprop(variant="irprop-"),
    "irprop+": irprop_plus(),
    "rprop-": optax_rprop.rprop(variant="rprop-"),
    "rprop+": optax_rprop.rprop(variant="rprop+"),
    "eigenbasis": EIGENBASIS,
    "not scaled": earlier_basis(anchored=True),
    "basis of 0.3.2": earlier_basis(anchored=False),
    "secants": earlier_basis(anchored=True, estimates=True),
    "Adam": optax.adam(0.1),
    "Prodigy": optax.contrib.prodigy(),
    "COCOB": optax.contrib.cocob(),
}


def scan(
    observe: Observe, start: jax.Array, view: Numbers, which: jax.Array
) -> tuple[Any, Any]:
    """One of the transformations, compiled together; one evaluation per step."""
    found = list(map(optax.with_extra_args_support, TRANSFORMATIONS.values()))

    def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        params, states = carry
        value, grads = observe(params, i, view)

        def update(number: int, states: Any) -> tuple[Any, Any]:
            updates, state = found[number].update(
                grads, states[number], params, value=value
            )
            return updates, (*states[:number], state, *states[number + 1 :])

        branches = [functools.partial(update, number) for number in range(len(found))]
        updates, states = jax.lax.switch(which, branches, states)
        return (optax.apply_updates(params, updates), states), params

    carry = start, tuple(transformation.init(start) for transformation in found)
    steps = jnp.arange(BUDGET)
    return steps + 1, jax.lax.scan(step, carry, steps)[1]


def as_loss(observe: Observe, step: Any, view: Numbers) -> Callable[..., jax.Array]:
    """A function whose value and gradient are the observed ones."""

    def loss(point: jax.Array) -> jax.Array:
        here = jax.lax.stop_gradient(point)
        value, grads = jax.lax.stop_gradient(observe(here, step, view))
        return value + grads @ (point - here)

    return loss


def lbfgs(observe: Observe, start: jax.Array, view: Numbers) -> tuple[Any, Any]:
    """optax.lbfgs; evaluations of its line search count."""
    transformation = optax.lbfgs()

    def step(carry: Any) -> Any:
        params, state, spent, i, (evaluations, points) = carry
        loss = as_loss(observe, i, view)
        # The line search passes on the loss and gradient of its last point.
        known = jnp.isfinite(optax.tree.get(state, "value"))
        value, grads = optax.value_and_grad_from_state(loss)(params, state=state)
        spent += jnp.where(known, 0, 1).astype(spent.dtype)
        trace = evaluations.at[i].set(spent), points.at[i].set(params)
        updates, state = transformation.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        searched = optax.tree.get(state, "info").num_linesearch_steps
        spent += searched.astype(spent.dtype)
        return optax.apply_updates(params, updates), state, spent, i + 1, trace

    trace = jnp.full(BUDGET, BUDGET + 1), jnp.zeros((BUDGET, start.size), start.dtype)
    zero = jnp.zeros((), trace[0].dtype)
    carry = start, transformation.init(start), zero, zero, trace
    return jax.lax.while_loop(
        lambda carry: (carry[2] < BUDGET) & (carry[3] < BUDGET), step, carry
    )[-1]


def bfgs(observe: Observe, start: jax.Array, view: Numbers) -> tuple[Any, Any]:
    """optimistix.BFGS: one evaluation per step, accepted or not; it never stops."""
    solver = optimistix.BFGS(rtol=0.0, atol=0.0)

    def loss(point: jax.Array, step: Any) -> tuple[jax.Array, None]:
        return as_loss(observe, step, view)(point), None

    def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
        point, state = carry
        seen = state.y_eval
        point, state, _ = solver.step(loss, point, i, {}, state, frozenset())
        return (point, state), seen

    scalar = jax.ShapeDtypeStruct((), start.dtype)
    state = solver.init(loss, start, 0, {}, scalar, None, frozenset())
    steps = jnp.arange(BUDGET)
    return steps + 1, jax.lax.scan(step, (start, state), steps)[1]


def with_scipy(
    method: str, observe: Observe, start: Any, view: Numbers
) -> tuple[Any, Any]:
    """SciPy's methods; noise differs between evaluations."""
    steps = itertools.count(1)

    def evaluate(point: jax.Array) -> tuple[Any, Any]:
        return observe(point, np.int32(next(steps)), view)

    points, _ = scipy_methods.descend(method, evaluate, start, BUDGET)
    return np.arange(1, BUDGET + 1), points


OTHERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "optax.lbfgs": lbfgs,
    "optimistix.BFGS": bfgs,
    **{
        f"SciPy {method}": functools.partial(with_scipy, method)
        for method in scipy_methods.METHODS
    },
}
OPTIMIZERS = (*TRANSFORMATIONS, *OTHERS)


class Runs:
    """Runs on one problem; all views of a dtype share one compilation."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._observe = observed(problem)
        self._seen = jax.jit(self._observe)
        self._scan = jax.jit(functools.partial(scan, self._observe))
        self._exact = jax.jit(jax.vmap(problem.loss))

    def descent(self, name: str) -> Callable[..., tuple[Any, Any]]:
        """From start and view: numbers of evaluations, and the points after them."""
        if name in TRANSFORMATIONS:
            which = list(TRANSFORMATIONS).index(name)
            return lambda start, view: self._scan(start, view, which)
        if name.startswith("SciPy"):
            return functools.partial(OTHERS[name], self._seen)
        return jax.jit(functools.partial(OTHERS[name], self._observe))

    def lowest(self, descend: Callable[..., Any], view: View) -> np.ndarray:
        """The lowest exact loss so far, after each evaluation."""
        exact = numbers(view, self.problem.start.size)
        start = self.problem.start
        noise = np.random.default_rng([2, view.seed]).normal(size=start.size)
        start = start + view.displaced * np.maximum(np.abs(start), 1) * noise
        start = (start / exact.units).astype(view.dtype)
        # Without x64, the default, constants of the problem are rounded as well.
        with jax.enable_x64(view.dtype == "float64"):
            evaluations, points = descend(start, jax.device_put(exact))
        evaluations, points = np.asarray(evaluations), np.asarray(points)
        losses = np.asarray(self._exact(exact.units * points))
        known = evaluations <= BUDGET
        found = np.full(BUDGET, np.inf)
        np.fmin.at(found, evaluations[known] - 1, losses[known])
        return np.minimum.accumulate(np.where(np.isnan(found), np.inf, found))
