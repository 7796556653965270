"""What each part of the rule does, what a step costs, mini-batches, and a picture.

The ablation replaces one function of the package at a time.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import LBFGS, Optimizer
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.eigenbasis.run import (
    FULL_MATRIX,
    PLAIN,
    in_eigenbasis,
    irprop_plus,
)
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.descend import Runner
from optax_rprop import _basis, _rotation

# --- Ablation ----------------------------------------------------------------


def _of_gradients(moments: Any, grads: Any, prev_grads: Any, *rest: Any) -> Any:
    """As Shampoo and SOAP do: moments of gradients, not of their differences."""
    return _rotation.decayed_moments(moments, grads, jnp.zeros_like(prev_grads), *rest)


def _float32(moments: Any) -> Any:
    """Bases of single precision."""
    kinds = [None if m is None else m.dtype for m in moments]
    low = tuple(None if m is None else m.astype("float32") for m in moments)
    return tuple(
        None if basis is None else basis.astype(kind)
        for basis, kind in zip(_rotation.turned(low), kinds, strict=True)
    )


def _signs_forgotten(*arguments: Any) -> Any:
    """All but that an update was taken back, which is no sign."""
    step_sizes, codes = _rotation.carry_over(*arguments)
    return step_sizes, jnp.where(jnp.abs(codes) == 1, jnp.zeros_like(codes), codes)


def _step_sizes_kept(step_sizes: Any, *rest: Any) -> Any:
    return step_sizes, _rotation.carry_over(step_sizes, *rest)[1]


CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as shipped": ({}, {}),
    **{f"decay {decay:g}": ({"decay": decay}, {}) for decay in (0.7, 0.95, 1.0)},
    **{f"interval {n}": ({"interval": n}, {}) for n in (1, 2, 10, 20)},
    "gradients, not differences": ({}, {"decayed_moments": _of_gradients}),
    "signs forgotten at a turn": ({}, {"carry_over": _signs_forgotten}),
    "step sizes kept at a turn": ({}, {"carry_over": _step_sizes_kept}),
    "bases in float32": ({}, {"turned": _float32}),
}


def ablation_problems(*, quick: bool) -> list[tuple[str, Problem]]:
    """Each with the kind of basis."""
    if quick:
        return [("full matrix", functions.beale())]
    return [
        *(
            ("full matrix", problem)
            for problem in (
                functions.quadratic(rotated=True),
                functions.peaks(),
                models.logistic("wine", standardized=False),
                functions.rosenbrock(),
            )
        ),
        ("Kronecker", models.deep_sigmoid()),
        ("Kronecker", digits(512)),
    ]


def ablation(study: Study, *, quick: bool) -> None:
    """Median evaluations to the tolerance 1e-4, of two starts and two first steps."""
    for kind, problem in ablation_problems(quick=quick):
        if not study.has(kind, problem.name):
            where = {"kind": kind, "problem": problem.name}
            study.add([where | row for row in ablated(kind, problem, quick=quick)])


def ablated(kind: str, problem: Problem, *, quick: bool) -> Iterator[dict[str, Any]]:
    """A row a change."""
    traces: dict[str, list[Any]] = {}
    for name, (options, patches) in list(CHANGES.items())[:: 9 if quick else 1]:
        factory = functools.partial(
            in_eigenbasis, full_matrix=kind == "full matrix", **options
        )
        with mock.patch.dict(vars(_basis), patches):
            optimizer = Optimizer(name, factory)
            runner = Runner(problem, optimizer, 30 if quick else 300, watch=False)
        traces[name] = [
            (run, runner(rate, run).trace) for rate in (1e-3, 0.1) for run in (0, 1)
        ]
    lowest = {
        run: min(
            np.nanmin(trace.losses)
            for runs in traces.values()
            for at, trace in runs
            if at == run
        )
        for run in (0, 1)
    }
    for name, runs in traces.items():
        costs = [
            np.flatnonzero(
                trace.losses <= lowest[run] + 1e-4 * (trace.losses[0] - lowest[run])
            )
            for run, trace in runs
        ]
        reached = [int(cost[0]) + 1 for cost in costs if cost.size]
        yield {
            "change": name,
            "evaluations": statistics.median(reached) if reached else np.nan,
            "solved": f"{len(reached)} of {len(runs)}",
        }


# --- Cost --------------------------------------------------------------------


def cost(study: Study, *, quick: bool) -> None:
    """Milliseconds of an update of one square matrix in float32, and of a turn."""
    for size in (8,) if quick else (64, 512, 2048):
        if not study.has(f"{size} x {size}"):
            study.add({"size": f"{size} x {size}"} | row for row in costs(size))


def costs(size: int) -> Iterator[dict[str, Any]]:
    """A row an optimizer."""
    rotated = functools.partial(
        optax_rprop.in_eigenbasis, irprop_plus(0.01), max_size=size
    )
    entrants = {
        "irprop+": irprop_plus(0.01),
        "in_eigenbasis, between turns": rotated(interval=10**6),
        "in_eigenbasis, a turn": rotated(interval=1),
        "Adam": optax.adam(1e-3),
        "L-BFGS, without line search": optax.scale_by_lbfgs(),
        "Muon": optax.contrib.muon(1e-3),
    }
    for name, optimizer in entrants.items():
        optimizer = optax.with_extra_args_support(optimizer)
        keys = jax.random.split(jax.random.key(0), 4)
        grads = [jax.random.normal(key, (size, size)) for key in keys]
        state = optimizer.init(grads[0])
        update = jax.jit(
            lambda grads, state, params, tx=optimizer: tx.update(
                grads, state, params, value=1.0
            )
        )
        # A first gradient and a first difference, with which all bases turn.
        for grad in grads[:2]:
            _, state = update(grad, state, grads[0])
        times = []
        for i in range(2 if size > 1000 and "turn" in name else 10):
            begun = time.perf_counter()
            state = jax.block_until_ready(update(grads[2 + i % 2], state, grads[0]))[1]
            times.append(time.perf_counter() - begun)
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        yield {
            "optimizer": name,
            "milliseconds": float(f"{1e3 * min(times):.3g}"),
            "bytes per parameter": round(held / size**2, 1),
        }


# --- Mini-batches ------------------------------------------------------------


def minibatch(study: Study, *, quick: bool) -> None:
    """Digits in batches, with the sign test before Rprop, in both bases."""
    for batch in (128,) if quick else (32, 128):
        if not study.has(batch):
            trained = trained_on(batch, *((1, 2) if quick else (20, 5)))
            study.add({"batch": batch} | row for row in trained)


def trained_on(batch: int, epochs: int, runs: int) -> Iterator[dict[str, Any]]:
    """A row an optimizer."""
    problem = digits(1024)
    data = problem.data
    # In a rotated basis, no parameters are known to lean on.
    tested = optax_rprop.minibatch_rprop(lean=0)
    entrants = {
        "plain": tested,
        **{
            f"in_eigenbasis, interval {n}": optax_rprop.in_eigenbasis(
                tested, 0.99, interval=n
            )
            for n in (5, 50)
        },
        "Adam 0.001": optax.adam(1e-3),
    }
    for name, optimizer in entrants.items():

        @jax.jit
        def train(run: Any, tx: Any = optimizer) -> Any:
            def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
                params, state = carry
                rows = jax.random.choice(key, 1024, (batch,), replace=False)
                some = jax.tree.map(lambda leaf: leaf[rows], data.train)
                grads = jax.grad(problem.loss)(params, some)
                updates, state = tx.update(grads, state, params)
                return (optax.apply_updates(params, updates), state), None

            params = problem.init(jax.random.key(run))
            keys = jax.random.split(jax.random.key(run + 100), epochs * 1024 // batch)
            (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
            assert problem.error is not None
            return problem.loss(params, data.train), problem.error(params, data.test)

        found = np.array([train(run) for run in range(runs)], np.float64)
        yield {
            "optimizer": name,
            "training loss": round(found[:, 0].mean(), 4),
            "test error, %": round(found[:, 1].mean(), 2),
            "its deviation": round(found[:, 1].std(), 2),
        }


# --- The picture -------------------------------------------------------------


def valley(study: Study, *, quick: bool) -> None:
    """The loss over evaluations on the rotated quadratic, from the first start."""
    problem = functions.quadratic(rotated=True)
    for optimizer in (PLAIN, LBFGS, Optimizer("irprop+ in_eigenbasis", FULL_MATRIX)):
        if study.has(optimizer.name):
            continue
        runner = Runner(problem, optimizer, 20 if quick else 300, watch=False)
        trace = runner(0.01, 0).trace
        study.add(
            {
                "optimizer": optimizer.name,
                "evaluations": int(evaluations),
                "loss": float(f"{loss:.4g}"),
            }
            for evaluations, loss in zip(trace.evaluations, trace.losses, strict=True)
        )


# What each does, the columns that tell its parts apart, and whether in float64.
STUDIES: dict[str, tuple[Callable[..., None], Sequence[str], bool]] = {
    "ablation": (ablation, ["kind", "problem"], True),
    "cost": (cost, ["size"], False),
    "minibatch": (minibatch, ["batch"], False),
    "valley": (valley, ["optimizer"], True),
}


def main(arguments: list[str] | None = None) -> None:
    """Do the studies that are not there yet."""
    parser = cli.parser(__doc__, "eigenbasis")
    parser.add_argument(
        "--only", nargs="+", choices=STUDIES, default=[*STUDIES], help="some of them"
    )
    options = parser.parse_args(arguments)
    for name in tqdm.tqdm(options.only, unit="study"):
        run, key, double = STUDIES[name]
        jax.config.update("jax_enable_x64", double)
        study = Study(options.output_dir, name, key, script="studies")
        run(study, quick=options.quick)


if __name__ == "__main__":
    main()
