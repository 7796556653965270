"""What each part of the rule does, what a step costs, and mini-batches.

``python studies.py ablation``, ``cost``, ``minibatch`` or ``valley`` writes the file of
that name.
The ablation replaces one function of the package at a time.
"""

import csv
import functools
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from run import HERE, in_eigenbasis, irprop_plus

import optax_rprop
from optax_rprop import _basis, _rotation

import problems as catalog  # isort: skip
from contenders import Contender, Runner  # isort: skip


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
    step_sizes, signs = _rotation.carry_over(*arguments)
    return step_sizes, jnp.zeros_like(signs)


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


def ablation() -> Iterator[dict[str, Any]]:
    """Median evaluations to the tolerance 1e-4, of two starts and two first steps."""
    jax.config.update("jax_enable_x64", True)
    chosen = {
        "full matrix": [
            catalog.quadratic(rotated=True),
            catalog.peaks(),
            catalog.logistic("wine", standardized=False),
            catalog.rosenbrock(),
        ],
        "Kronecker": [catalog.deep_sigmoid(), catalog.digits(512)],
    }
    for kind, problems in chosen.items():
        for problem in problems:
            traces: dict[str, list[Any]] = {}
            for name, (options, patches) in CHANGES.items():
                factory = functools.partial(
                    in_eigenbasis, full_matrix=kind == "full matrix", **options
                )
                with mock.patch.dict(vars(_basis), patches):
                    runner = Runner(problem, Contender(name, factory, ""), 300)
                traces[name] = [
                    (seed, runner(rate, seed).trace)
                    for rate in (1e-3, 0.1)
                    for seed in (0, 1)
                ]
            lowest = {
                seed: min(
                    np.nanmin(trace.losses)
                    for runs in traces.values()
                    for at, trace in runs
                    if at == seed
                )
                for seed in (0, 1)
            }
            for name, runs in traces.items():
                costs = [
                    np.flatnonzero(
                        trace.losses
                        <= lowest[seed] + 1e-4 * (trace.losses[0] - lowest[seed])
                    )
                    for seed, trace in runs
                ]
                reached = [int(cost[0]) + 1 for cost in costs if cost.size]
                yield {
                    "kind": kind,
                    "problem": problem.name,
                    "change": name,
                    "evaluations": statistics.median(reached) if reached else "",
                    "solved": f"{len(reached)} of {len(runs)}",
                }


# --- Cost --------------------------------------------------------------------


def cost() -> Iterator[dict[str, Any]]:
    """Milliseconds of an update of one square matrix in float32, and of a turn."""
    for size in (64, 512, 2048):
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
                state = jax.block_until_ready(
                    update(grads[2 + i % 2], state, grads[0])
                )[1]
                times.append(time.perf_counter() - begun)
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            yield {
                "size": f"{size} x {size}",
                "optimizer": name,
                "milliseconds": f"{1e3 * min(times):.3g}",
                "bytes per parameter": f"{held / size**2:.1f}",
            }


# --- Mini-batches ------------------------------------------------------------


def minibatch() -> Iterator[dict[str, Any]]:
    """Digits in batches, with the sign test before Rprop, in both bases."""
    problem = catalog.digits(1024)
    tested = optax.chain(
        optax_rprop.resolve_signs(),
        optax_rprop.rprop(0.05, eta_minus=0.75, skip_zero_grads=True),
    )
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
    for batch in (32, 128):
        for name, optimizer in entrants.items():

            @jax.jit
            def train(seed: Any, tx: Any = optimizer, batch: int = batch) -> Any:
                def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
                    params, state = carry
                    rows = jax.random.choice(key, 1024, (batch,), replace=False)
                    data = jax.tree.map(lambda leaf: leaf[rows], problem.train)
                    grads = jax.grad(problem.loss)(params, data)
                    updates, state = tx.update(grads, state, params)
                    return (optax.apply_updates(params, updates), state), None

                params = problem.init(jax.random.key(seed))
                keys = jax.random.split(jax.random.key(seed + 100), 20 * 1024 // batch)
                (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
                assert problem.error is not None
                assert problem.test is not None
                loss = problem.loss(params, problem.train)
                return loss, problem.error(params, problem.test)

            results = np.array([train(seed) for seed in range(5)])
            yield {
                "batch": batch,
                "optimizer": name,
                "training loss": f"{results[:, 0].mean():.4f}",
                "test error, %": f"{results[:, 1].mean():.2f}",
                "its deviation": f"{results[:, 1].std():.2f}",
            }


# --- The picture -------------------------------------------------------------


def valley() -> Iterator[dict[str, Any]]:
    """The loss over evaluations on the rotated quadratic, from the first start."""
    jax.config.update("jax_enable_x64", True)
    problem = catalog.quadratic(rotated=True)
    full = functools.partial(in_eigenbasis, full_matrix=True)
    for contender in (
        Contender("irprop+", irprop_plus, ""),
        Contender("L-BFGS", lambda rate: optax.lbfgs(), "", line_search=True),
        Contender("irprop+ in_eigenbasis", full, ""),
    ):
        trace, _ = Runner(problem, contender, 300)(0.01, 0)
        for evaluations, loss in zip(trace.evaluations, trace.losses, strict=True):
            yield {
                "optimizer": contender.name,
                "evaluations": evaluations,
                "loss": f"{loss:.4g}",
            }


def main() -> None:
    """Write the file of the study that is named."""
    studies = {study.__name__: study for study in (ablation, cost, minibatch, valley)}
    (name,) = sys.argv[1:]
    with (HERE / "results" / f"{name}.csv").open("w", newline="") as file:
        writer: Any = None
        for row in studies[name]():
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            print(*row.values(), sep=", ", flush=True)


if __name__ == "__main__":
    main()
