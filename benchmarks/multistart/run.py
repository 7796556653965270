"""Many starts at once, under vmap: time until half of them have arrived.

All steps run once, to see after how many half and three quarters of the starts are
within the tolerance. Then as many steps are timed, all optimizers by turns.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimistix
import pandas as pd
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.results import Study
from benchmarks.common.timing import interleave
from benchmarks.multistart.problems import Problem, problems

STARTS = 256
TOLERANCE = 1e-4
SHARES = {"half": 0.5, "three quarters": 0.75}
STEPS, SEARCHES = 1000, 200  # A step of L-BFGS has several evaluations.
SAMPLE = 20  # Steps timed to know the cost of one.

Method = tuple[Callable[..., Any], Callable[..., Any]]
"""From loss and start to a carry; from loss and carry to the next and a loss."""


def of_optax(transformation: Any, *, line_search: bool = False) -> Method:
    """A gradient transformation."""
    transformation = optax.with_extra_args_support(transformation)

    def init(loss: Any, start: jax.Array) -> Any:
        return start, transformation.init(start)

    def step(loss: Any, carry: Any) -> Any:
        params, state = carry
        if line_search:  # It hands on what it saw at its last point.
            look = optax.value_and_grad_from_state(loss)
            value, grads = look(params, state=state)
        else:
            value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(
            grads, state, params, value=value, grad=grads, value_fn=loss
        )
        return (optax.apply_updates(params, updates), state), value

    return init, step


def bfgs() -> Method:
    """optimistix.BFGS, which never stops: one evaluation a step, accepted or not."""
    solver = optimistix.BFGS(rtol=0.0, atol=0.0)

    def with_aux(loss: Any) -> Any:
        return lambda x, _: (loss(x), None)

    def init(loss: Any, start: jax.Array) -> Any:
        scalar, none = jax.ShapeDtypeStruct((), start.dtype), frozenset()
        state = solver.init(with_aux(loss), start, None, {}, scalar, None, none)
        return start, state

    def step(loss: Any, carry: Any) -> Any:
        point, state = carry
        value = loss(state.y_eval)
        rest = None, {}, state, frozenset()
        point, state, _ = solver.step(with_aux(loss), point, *rest)
        return (point, state), value

    return init, step


def evaluation() -> Method:
    """Loss and gradient alone."""

    def step(loss: Any, point: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(point)
        return point - 1e-12 * jnp.sign(grads), value

    return lambda loss, start: start, step


def irprop_plus(**bounds: float) -> optax.GradientTransformation:
    """The variant that is rotated."""
    return optax_rprop.rprop(variant="irprop+", **bounds)


EIGENBASIS = optax_rprop.in_eigenbasis(
    irprop_plus(min_step_size=1e-12, max_step_size=1e12), full_matrix=True
)
METHODS = {
    "irprop+": of_optax(irprop_plus()),
    "eigenbasis": of_optax(EIGENBASIS),
    "optax.lbfgs": of_optax(optax.lbfgs(), line_search=True),
    "optimistix.BFGS": bfgs(),
    "Adam": of_optax(optax.adam(0.1)),
}


def runner(problem: Problem, method: Method, most: int) -> Callable[..., Any]:
    """Some steps from all starts; returns the losses on the way, a row a step."""
    init, step = (functools.partial(part, problem.loss) for part in method)

    def run(count: Any, starts: jax.Array) -> jax.Array:
        one = starts.ndim == 1
        advance = step if one else jax.vmap(step)

        def body(i: Any, carry: Any) -> Any:
            carry, losses = carry
            carry, values = advance(carry)
            return carry, losses.at[i].set(values)

        losses = jnp.full((most, *starts.shape[:-1]), jnp.inf)
        carry = init(starts) if one else jax.vmap(init)(starts)
        return jax.lax.fori_loop(0, count, body, (carry, losses))[1]

    return jax.jit(run)


def arrivals(traces: dict[str, np.ndarray]) -> Iterator[tuple[str, str, int]]:
    """Of each optimizer: after how many steps which share has arrived; 0 if never.

    A start has arrived once its loss has fallen to within the tolerance of the lowest
    that anyone found from any start, in parts of the way.
    """
    lowest = min(np.nanmin(losses) for losses in traces.values())
    for name, losses in traces.items():
        target = lowest + TOLERANCE * (losses[0] - lowest)
        shares = np.maximum.accumulate(losses <= target).mean(axis=1)
        for share, least in SHARES.items():
            yield (
                name,
                share,
                int(np.argmax(shares >= least)) + 1 if shares[-1] >= least else 0,
            )


def rows(problem: Problem, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Times of one problem: until shares have arrived, and of a step."""
    starts = jnp.asarray(problem.starts(8 if quick else STARTS))
    most = dict.fromkeys(METHODS, 20 if quick else STEPS)
    most["optax.lbfgs"] = 10 if quick else SEARCHES
    runs = {
        name: runner(problem, method, most[name]) for name, method in METHODS.items()
    }
    traces = {name: np.asarray(run(most[name], starts)) for name, run in runs.items()}
    found = list(arrivals(traces))
    runs["evaluation"] = runner(problem, evaluation(), SAMPLE)

    def timed(name: str, count: int, starts: jax.Array) -> Callable[[int], object]:
        return lambda _: jax.block_until_ready(runs[name](count, starts))

    jobs = {(name, "a step"): timed(name, SAMPLE // 2, starts) for name in runs}
    jobs |= {(name, "alone"): timed(name, SAMPLE // 2, starts[0]) for name in runs}
    jobs |= {
        (name, share): timed(name, count, starts)
        for name, share, count in found
        if count
    }
    counts = {(name, share): count for name, share, count in found}
    times = pd.DataFrame(
        interleave(jobs, problem.name, quick=quick, rounds=5, most_steps=1)
    )
    for (name, what), seconds in times.groupby("optimizer")["seconds"]:
        count = counts.get((name, what), 0)
        per = 1 if count else SAMPLE // 2
        yield {
            "problem": problem.name,
            "optimizer": name,
            "what": what,
            "steps": count,
            "milliseconds": 1e3 * seconds.median() / per,
        }
    yield from (
        {
            "problem": problem.name,
            "optimizer": name,
            "what": share,
            "steps": 0,
            "milliseconds": None,
        }
        for name, share, count in found
        if not count
    )


def main(arguments: list[str] | None = None) -> None:
    """Run every problem that is not there yet."""
    parser = cli.parser(__doc__, "multistart")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    for problem in tqdm.tqdm(problems()[: 1 if options.quick else None]):
        if not study.has(problem.name):
            study.add(rows(problem, quick=options.quick))


if __name__ == "__main__":
    main()
