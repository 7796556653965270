"""What each part of the rule does, what a step costs, mini-batches, and a picture.

The ablation replaces one function of the package at a time.
"""

import functools
import itertools
import time
from collections.abc import Callable, Iterator
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
from benchmarks.common.results import Study, exists
from benchmarks.eigenbasis.run import FULL_MATRIX, PLAIN, in_eigenbasis, irprop_plus
from benchmarks.full_batch import functions, models
from benchmarks.full_batch.bout import Bout
from optax_rprop import _basis, _rotation

Rows = Iterator[dict[str, Any]]

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


def ablation(*, quick: bool) -> Rows:
    """Median evaluations to the tolerance 1e-4, of two starts and two first steps."""
    small, networks = [functions.beale()], []
    if not quick:
        wine = models.logistic("wine", standardized=False)
        small = [functions.quadratic(rotated=True), functions.peaks(), wine]
        small.append(functions.rosenbrock())
        networks = [models.deep_sigmoid(), digits(512)]
    problems = [("full matrix", problem) for problem in small]
    problems += [("Kronecker", problem) for problem in networks]
    starts = list(itertools.product((1e-3, 0.1), (0, 1)))
    changes = list(CHANGES.items())[:: 9 if quick else 1]
    for kind, problem in problems:
        bout = Bout(problem, (), 30 if quick else 300)
        for name, (options, patches) in changes:
            options = {"full_matrix": kind == "full matrix", **options}
            with mock.patch.dict(vars(_basis), patches):
                bout.enter(Optimizer(name, functools.partial(in_eigenbasis, **options)))
            for start in starts:
                bout.run(name, *start)
        for name, _ in changes:
            costs = np.array([bout.cost(name, *start, 1e-4)[0] for start in starts])
            reached = costs[np.isfinite(costs)]
            yield {
                "kind": kind,
                "problem": problem.name,
                "change": name,
                "evaluations": np.median(reached) if reached.size else np.nan,
                "solved": f"{reached.size} of {len(starts)}",
            }


# --- Cost --------------------------------------------------------------------


def cost(*, quick: bool) -> Rows:
    """Milliseconds of an update of one square matrix in float32, and of a turn."""
    for size in (8,) if quick else (64, 512, 2048):
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
            repeats = 2 if size > 1000 and "turn" in name else 10
            seconds, held = update_cost(optimizer, size, repeats)
            yield {
                "size": f"{size} x {size}",
                "optimizer": name,
                "milliseconds": 1e3 * seconds,
                "bytes per parameter": held / size**2,
            }


def update_cost(
    optimizer: optax.GradientTransformation, size: int, repeats: int
) -> tuple[float, int]:
    """The least seconds of an update of a square matrix, and the bytes of the state."""
    optimizer = optax.with_extra_args_support(optimizer)
    keys = jax.random.split(jax.random.key(0), 4)
    grads = [jax.random.normal(key, (size, size)) for key in keys]
    state = optimizer.init(grads[0])
    update = jax.jit(functools.partial(optimizer.update, value=1.0))
    # A first gradient and a first difference, with which all bases turn.
    for grad in grads[:2]:
        _, state = update(grad, state, grads[0])
    times = []
    for i in range(repeats):
        begun = time.perf_counter()
        state = jax.block_until_ready(update(grads[2 + i % 2], state, grads[0]))[1]
        times.append(time.perf_counter() - begun)
    return min(times), sum(leaf.nbytes for leaf in jax.tree.leaves(state))


# --- Mini-batches ------------------------------------------------------------


def minibatch(*, quick: bool) -> Rows:
    """Digits in batches, with the sign test before Rprop, in both bases."""
    problem = digits(1024)
    epochs, runs = (1, 2) if quick else (20, 5)
    # In a rotated basis, no parameters are known to lean on.
    tested = optax_rprop.minibatch_rprop(lean=0)
    rotated = functools.partial(optax_rprop.in_eigenbasis, tested, 0.99)
    entrants = {
        "plain": tested,
        "in_eigenbasis, interval 5": rotated(interval=5),
        "in_eigenbasis, interval 50": rotated(interval=50),
        "Adam 0.001": optax.adam(1e-3),
    }
    sizes = (128,) if quick else (32, 128)
    for batch, (name, optimizer) in itertools.product(sizes, entrants.items()):
        train = trainer(problem, optimizer, batch, epochs)
        found = np.array([train(run) for run in range(runs)], np.float64)
        yield {
            "batch": batch,
            "optimizer": name,
            "training loss": found[:, 0].mean(),
            "test error, %": found[:, 1].mean(),
            "its deviation": found[:, 1].std(),
        }


def trainer(
    problem: Problem, tx: optax.GradientTransformation, batch: int, epochs: int
) -> Callable[..., Any]:
    """Of a run's number: the training loss and the error on the test rows."""
    data, error = problem.data, problem.error
    assert error is not None

    @jax.jit
    def train(run: Any) -> Any:
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
        return problem.loss(params, data.train), error(params, data.test)

    return train


# --- The picture -------------------------------------------------------------


def valley(*, quick: bool) -> Rows:
    """The loss over evaluations on the rotated quadratic, from the first start."""
    entrants = PLAIN, LBFGS, Optimizer("irprop+ in_eigenbasis", FULL_MATRIX)
    problem = functions.quadratic(rotated=True)
    bout = Bout(problem, entrants, 20 if quick else 300)
    for name, *_ in entrants:
        trace = bout.run(name, 0.01, 0).trace
        for evaluations, loss in zip(trace.evaluations, trace.losses, strict=True):
            yield {"optimizer": name, "evaluations": evaluations, "loss": loss}


# What each does, and whether in float64.
STUDIES = {
    "ablation": (ablation, True),
    "cost": (cost, False),
    "minibatch": (minibatch, False),
    "valley": (valley, True),
}


def main(arguments: list[str] | None = None) -> None:
    """Do the studies that are not there yet."""
    parser = cli.parser(__doc__, "eigenbasis")
    parser.add_argument(
        "--studies",
        nargs="+",
        choices=STUDIES,
        default=list(STUDIES),
        help="those to do",
    )
    options = parser.parse_args(arguments)
    for name in tqdm.tqdm(options.studies, unit="study"):
        rows, double = STUDIES[name]
        jax.config.update("jax_enable_x64", double)
        if not exists(options.output_dir, name):
            study = Study(options.output_dir, name, (), script="studies")
            study.add(rows(quick=options.quick))


if __name__ == "__main__":
    main()
