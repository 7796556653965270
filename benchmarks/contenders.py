"""The optimizers that are compared, and one loop that runs all of them.

Nothing but the learning rate, or the initial step size, is tuned, for anyone:
all else stands at the defaults of its library (SGD has momentum 0.9, which has no
default, and Lion no weight decay, as the others have none).
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import Problem

import optax_rprop

Factory = Callable[[Any], optax.GradientTransformation]

RATES = np.logspace(-6, 1, 15)
"""The tuning grid, the same for all: seven decades in steps of the root of ten."""

PICTURE_STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 9,
    "savefig.dpi": 150,
}


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer with the looks of its line.

    Attributes:
      name: What tables and pictures call it.
      factory: Makes the optimizer from a learning rate or initial step size.
      color: Of its line; from the palette of Okabe and Ito.
      linestyle: Of its line.
      line_search: Whether it has a line search, and so no rate.
    """

    name: str
    factory: Factory
    color: str
    linestyle: Any = "-"
    line_search: bool = False


def _variant(name: Any, color: str, linestyle: Any = "-") -> Contender:
    def factory(rate: Any) -> optax.GradientTransformation:
        return optax_rprop.rprop(rate, variant=name)

    return Contender(name, factory, color, linestyle)


VARIANTS = (
    _variant("irprop+", "#0072B2"),
    _variant("irprop-", "#56B4E9"),
    _variant("rprop+", "#0072B2", (0, (4, 1.5))),
    _variant("rprop-", "#56B4E9", (0, (4, 1.5))),
)
RIVALS = (
    Contender("optax.rprop", optax.rprop, "#009E73", (0, (1, 1))),
    Contender("Adam", optax.adam, "#D55E00"),
    Contender(
        "SGD, momentum 0.9", lambda rate: optax.sgd(rate, momentum=0.9), "#E69F00"
    ),
    Contender("Lion", lambda rate: optax.lion(rate, weight_decay=0.0), "#CC79A7", "-."),
    Contender("L-BFGS", lambda rate: optax.lbfgs(), "#000000", line_search=True),
)
CONTENDERS = VARIANTS + RIVALS


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


def descend(
    problem: Problem, contender: Contender, budget: int, *, watch: bool = False
) -> Callable[..., Trace]:
    """A function that minimizes: of rate, start, target loss and the data.

    It stops at the target or when the budget is spent. With a line search, the
    budget is checked between its steps, so that the last one may overdraw it.

    Args:
      problem: What to minimize.
      contender: The optimizer.
      budget: The number of evaluations of the loss and its gradient.
      watch: Whether to look at validation and test data before each step.
    """

    def run(
        rate: jax.Array, params: Any, target: jax.Array, data: dict[str, Any]
    ) -> Trace:
        optimizer = optax.with_extra_args_support(contender.factory(rate))

        def loss(params: Any) -> jax.Array:
            return problem.loss(params, data["train"])

        def evaluate(params: Any, state: Any) -> tuple[Any, Any, Any]:
            """The loss, its gradient and the number of evaluations it took."""
            if not contender.line_search:
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
            i = trace.steps
            seen = {"evaluations": spent, "losses": value}
            if watch and problem.error is not None:
                seen["validation_losses"] = problem.loss(params, data["validation"])
                seen["errors"] = problem.error(params, data["test"])
            filled = {name: getattr(trace, name).at[i].set(seen[name]) for name in seen}
            trace = trace._replace(**filled, steps=i + 1)
            stopped = (value <= target) | (spent >= budget)

            def update(params: Any, state: Any) -> tuple[Any, Any]:
                updates, state = optimizer.update(
                    grads, state, params, value=value, grad=grads, value_fn=loss
                )
                return optax.apply_updates(params, updates), state

            if contender.line_search:
                # A search after the last step would cost time that nobody counts.
                params, state = jax.lax.cond(
                    stopped, lambda *kept: kept, update, params, state
                )
            else:
                params, state = update(params, state)
            return params, state, spent, stopped, trace

        unknown = jnp.full(budget, jnp.nan, problem.dtype)
        none = jnp.zeros((), jnp.int32)
        trace = Trace(
            evaluations=jnp.zeros(budget, jnp.int32),
            losses=unknown,
            validation_losses=unknown,
            errors=unknown,
            steps=none,
        )
        start = params, optimizer.init(params), none, jnp.asarray(False), trace
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
    """A contender on a problem, compiled once for all rates and seeds."""

    def __init__(
        self,
        problem: Problem,
        contender: Contender,
        budget: int,
        *,
        watch: bool = False,
    ):
        self._problem = problem
        self._data = {"train": problem.train}
        if watch and problem.error is not None:
            self._data |= {"validation": problem.validation, "test": problem.test}
        arguments = self._arguments(rate=0.01, seed=0, target=0.0)
        function = jax.jit(descend(problem, contender, budget, watch=watch))
        self._compiled = function.lower(*arguments).compile()
        self(0.01, seed=0, target=np.inf)  # The first call is slower than the rest.

    def _arguments(self, rate: float, seed: int, target: float) -> Sequence[Any]:
        dtype = self._problem.dtype
        return (
            jnp.asarray(rate, dtype),
            self._problem.start(seed),
            jnp.asarray(target, dtype),
            self._data,
        )

    def __call__(self, rate: float, seed: int, target: float = -np.inf) -> Run:
        """Run to the target, or until the budget is spent."""
        arguments = jax.block_until_ready(self._arguments(rate, seed, target))
        start = time.perf_counter()
        trace = jax.block_until_ready(self._compiled(*arguments))
        seconds = time.perf_counter() - start
        trace = jax.tree.map(np.asarray, trace)
        steps = int(trace.steps)
        cut = {name: getattr(trace, name)[:steps] for name in Trace._fields[:-1]}
        return Run(Trace(**cut, steps=steps), seconds)


def compile_all(
    problem: Problem, budget: int, *, watch: bool = False
) -> dict[str, Runner]:
    """Every contender on a problem, by name; compiled side by side."""
    problem.start(0)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runners = pool.map(
            lambda contender: Runner(problem, contender, budget, watch=watch),
            CONTENDERS,
        )
        names = [contender.name for contender in CONTENDERS]
        return dict(zip(names, runners, strict=True))
