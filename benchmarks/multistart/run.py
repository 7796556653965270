"""Many starts at once, under `vmap`: time until half of them have arrived.

A first run finds after how many steps half and three quarters of the starts are within
the tolerance. Then this number of steps is timed, with all optimizers interleaved.
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

from benchmarks.common import cli
from benchmarks.common.optimizers import EIGENBASIS, irprop_plus
from benchmarks.common.results import Study
from benchmarks.common.timing import interleave
from benchmarks.multistart.problems import Problem, problems

TOLERANCE = 1e-4
SHARES = {"half": 0.5, "three quarters": 0.75}
STEPS, SEARCHES = 1000, 200  # A step of L-BFGS has several evaluations.
SAMPLE = 20  # Steps that are timed for the cost of one.
EVALUATION, SEARCHING = "evaluation", "optax.lbfgs"

Method = tuple[Callable[..., Any], Callable[..., Any]]
"""From loss and start to a carry; from loss and carry to the next carry and loss."""


def of_optax(transformation: Any, *, line_search: bool = False) -> Method:
    """A gradient transformation."""
    transformation = optax.with_extra_args_support(transformation)

    def init(loss: Any, start: jax.Array) -> Any:
        return start, transformation.init(start)

    def step(loss: Any, carry: Any) -> Any:
        params, state = carry
        if line_search:  # It passes on the loss and gradient of its last point.
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
    """optimistix.BFGS, which never stops: one evaluation per step, accepted or not."""
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
    """Only loss and gradient."""

    def step(loss: Any, point: jax.Array) -> Any:
        value, grads = jax.value_and_grad(loss)(point)
        return point - 1e-12 * jnp.sign(grads), value

    return lambda loss, start: start, step


METHODS = {
    "irprop+": of_optax(irprop_plus()),
    "eigenbasis": of_optax(EIGENBASIS),
    SEARCHING: of_optax(optax.lbfgs(), line_search=True),
    "optimistix.BFGS": bfgs(),
    "Adam": of_optax(optax.adam(0.1)),
}


def runner(problem: Problem, method: Method, most: int) -> Callable[..., Any]:
    """Some steps from one start; returns the losses of all steps.

    Under `vmap`, the number of steps is the same for all starts.
    """
    init, step = (functools.partial(part, problem.loss) for part in method)

    def run(count: Any, start: jax.Array) -> jax.Array:
        def body(i: Any, carry: Any) -> Any:
            carry, losses = carry
            carry, value = step(carry)
            return carry, losses.at[i].set(value)

        carry = init(start), jnp.full(most, jnp.inf)
        return jax.lax.fori_loop(0, count, body, carry)[1]

    return run


def shares(losses: np.ndarray, lowest: float) -> np.ndarray:
    """After each step, the share of starts that have arrived.

    A start has arrived once its loss has covered all but the fraction TOLERANCE of the
    way to the lowest loss that any optimizer found from any start.
    """
    target = lowest + TOLERANCE * (losses[:, :1] - lowest)
    return np.maximum.accumulate(losses <= target, axis=1).mean(axis=0)


def arrivals(
    runs: dict[str, Callable[..., Any]], most: dict[str, int], starts: jax.Array
) -> Iterator[tuple[str, str, int]]:
    """For each optimizer, the steps until each share has arrived; 0 if never.

    Under `vmap` the search of L-BFGS may not end once starts have converged, so it is
    stopped when enough have arrived.
    """
    others = [name for name in METHODS if name != SEARCHING]
    traces = {name: np.asarray(runs[name](most[name], starts)) for name in others}
    lowest = min(map(np.nanmin, traces.values()))
    for count in range(5, most[SEARCHING] + 1, 5):
        found = np.asarray(runs[SEARCHING](count, starts))
        traces[SEARCHING] = found
        if shares(found, min(lowest, np.nanmin(found)))[-1] >= max(SHARES.values()):
            break
    lowest = min(map(np.nanmin, traces.values()))
    for name in METHODS:
        arrived = shares(traces[name], lowest)
        for what, least in SHARES.items():
            count = int((arrived >= least).argmax()) + 1
            yield name, what, count if arrived[-1] >= least else 0


def rows(problem: Problem, *, quick: bool) -> Iterator[dict[str, Any]]:
    """Times on one problem: until the shares have arrived, and of one step."""
    starts = jnp.asarray(problem.starts(8 if quick else 256))
    most = dict.fromkeys(METHODS, 20 if quick else STEPS)
    most |= {SEARCHING: 10 if quick else SEARCHES, EVALUATION: SAMPLE}
    methods = METHODS | {EVALUATION: evaluation()}
    single = {name: runner(problem, methods[name], most[name]) for name in methods}
    alone = {name: jax.jit(run) for name, run in single.items()}
    together = {name: jax.jit(jax.vmap(run, (None, 0))) for name, run in single.items()}
    found = list(arrivals(together, most, starts))

    def job(run: Any, count: int, start: jax.Array) -> Callable[[int], object]:
        return lambda _: jax.block_until_ready(run(count, start))

    jobs, counts = {}, {}
    for name in methods:
        sample = min(SAMPLE, most[name])
        jobs[name, "a step"] = job(together[name], sample, starts)
        jobs[name, "a step alone"] = job(alone[name], sample, starts[0])
        counts[name, "a step"] = counts[name, "a step alone"] = sample
    for name, share, count in found:
        counts[name, share] = count
        if count:
            jobs[name, share] = job(together[name], count, starts)
    times = pd.DataFrame(
        interleave(jobs, problem.name, quick=quick, rounds=5, most_steps=1)
    )
    medians = times.groupby("optimizer")["seconds"].median().to_dict()
    for (name, what), count in counts.items():
        seconds = medians.get((name, what), np.nan)
        yield {
            "problem": problem.name,
            "starts": len(starts),
            "optimizer": name,
            "what": what,
            "steps": count,
            "milliseconds": 1e3 * seconds / (1 if what in SHARES else count),
        }


def main(arguments: list[str] | None = None) -> None:
    """Run every missing problem."""
    parser = cli.parser(__doc__, "multistart")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    study = Study(options.output_dir, "runs", ["problem"], script="run")
    for problem in tqdm.tqdm(problems()[: 1 if options.quick else None]):
        if not study.has(problem.name):
            study.add(rows(problem, quick=options.quick))


if __name__ == "__main__":
    main()
