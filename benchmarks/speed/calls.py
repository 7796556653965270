"""What do compiling a step and an update without `jax.jit` cost?

We time tracing, lowering and compiling one step over many leaves, with all caches
cleared, and an update of a few leaves that is not compiled as a whole.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import by_layout
from benchmarks.common.results import Study
from benchmarks.common.timing import Runner, interleave, repeated
from benchmarks.speed.step import ADAM, DEFAULT, MINIBATCH, Workload, jit_step

EAGER, COMPILATION = "eager update, 8 leaves", "compilation, 300 leaves"


def compile_runner(
    optimizer: optax.GradientTransformation, params: list[jax.Array]
) -> Runner:
    """Traces, lowers and compiles the same step again every time."""
    state, value = optimizer.init(params), jnp.zeros(())

    def compile_anew() -> None:
        jax.clear_caches()
        jit_step(optimizer).lower(params, state, params, value).compile()

    return repeated(compile_anew)


def eager_runner(
    optimizer: optax.GradientTransformation, grads: list[jax.Array]
) -> Runner:
    """Updates without `jax.jit`; the updates are not applied."""
    update = optax.with_extra_args_support(optimizer).update
    params = jax.tree.map(jnp.zeros_like, grads)
    value = jnp.zeros(())
    state = [optimizer.init(params)]

    def update_on() -> None:
        updates, state[0] = update(grads, state[0], params, value=value)
        jax.block_until_ready(updates)

    return repeated(update_on)


CALLS: dict[str, tuple[Callable[..., Runner], int, dict[str, int]]] = {
    EAGER: (eager_runner, 8, {}),
    COMPILATION: (compile_runner, 300, {"rounds": 3, "most_steps": 1}),
}
"""The runner of each, its number of 64 x 64 leaves, and of repetitions."""


def main(arguments: list[str] | None = None) -> None:
    """Run every missing measurement."""
    options = cli.parser(__doc__, "speed").parse_args(arguments)
    quick = options.quick
    study = Study(options.output_dir, "calls", ["problem"])
    compared: dict[str, Any] = {ADAM: optax.adam(0.01)}
    if not quick:
        compared |= by_layout(DEFAULT)
    compared[MINIBATCH] = optax_rprop.minibatch_rprop()
    for name, (build, leaves, how) in CALLS.items():
        if not study.has(name):
            shapes = [(8, 8)] * 5 if quick else [(64, 64)] * leaves
            grads = [jnp.asarray(array) for array in Workload(name, shapes).draw()]
            runners = {name: build(tx, grads) for name, tx in compared.items()}
            rows = interleave(runners, name, quick=quick, **how)
            study.add({"problem": name} | row for row in rows)


if __name__ == "__main__":
    main()
