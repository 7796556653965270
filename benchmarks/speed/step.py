"""Time and memory traffic of one optimizer step, next to its peers.

A step is `update` and `optax.apply_updates`, jitted, with parameters and state
donated. Timed as well are the compilation of a step over many leaves, and an update
without `jax.jit`. All optimizers of one problem are timed interleaved.
"""

import argparse
import gc
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rprop
from benchmarks.common import cli, pytorch
from benchmarks.common.optimizers import LAYOUTS, VARIANTS, by_layout
from benchmarks.common.results import Study
from benchmarks.common.timing import Runner, interleave

COPY, SGD, ADAM = "copy of the parameters", "optax.sgd", "optax.adam"
DEFAULT = "irprop-"
DEFAULTS = (DEFAULT,)
# The size at which all variants run.
DETAILED = 10**7
EAGER, COMPILATION = "eager update, 8 leaves", "compilation, 300 leaves"
# All optimizers of a problem hold their parameters and state at the same time.
PEAK_BYTES = 120 + 15 * len(LAYOUTS)
COMPILATIONS = 3


class Workload(NamedTuple):
    """What one step updates.

    Attributes:
      name: The problem's name.
      shapes: The shapes of the parameters, all float32.
      variants: The variants that take part, each in every layout.
    """

    name: str
    shapes: list[tuple[int, ...]]
    variants: tuple[str, ...] = DEFAULTS

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.shapes))

    def draw(self) -> list[np.ndarray]:
        """Gradients."""
        rng = np.random.default_rng(0)
        return [rng.standard_normal(shape, np.float32) for shape in self.shapes]


def optimizers(workload: Workload) -> Mapping[str, optax.GradientTransformation]:
    """Every optimizer that runs in JAX, by name."""
    ours = [by_layout(variant) for variant in workload.variants]
    return {
        SGD: optax.sgd(0.01),
        ADAM: optax.adam(0.01),
        "optax.rprop": optax.rprop(0.01),
        **{name: optimizer for layouts in ours for name, optimizer in layouts.items()},
        f"{DEFAULT}, split, on resolved signs": optax.chain(
            optax_rprop.resolve_signs(lean=0), optax_rprop.rprop(skip_zero_grads=True)
        ),
    }


def jit_step(optimizer: optax.GradientTransformation) -> Any:
    """One step of parameters, state, gradients and loss, to be compiled anew."""
    update = optax.with_extra_args_support(optimizer).update

    def step(params: Any, state: Any, grads: Any, value: Any) -> tuple[Any, Any]:
        updates, state = update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def step_runner(
    optimizer: optax.GradientTransformation, grads: list[jax.Array]
) -> tuple[Runner, dict[str, float]]:
    """Steps from the initial state, and what is known about one without a clock."""
    params = jax.tree.map(jnp.zeros_like, grads)
    state = optimizer.init(params)
    value = jnp.zeros(())
    step = jit_step(optimizer)
    compiled = step.lower(params, state, grads, value).compile()
    costs = compiled_costs(compiled, state, sum(grad.size for grad in grads))
    carry = [params, state]
    del params, state  # Donated: `carry` alone keeps them alive.

    def run(steps: int) -> None:
        for _ in range(steps):
            carry[:] = step(carry[0], carry[1], grads, value)
        jax.block_until_ready(carry)

    return run, costs


def compiled_costs(compiled: Any, state: Any, size: int) -> dict[str, float]:
    """Bytes per parameter, and the numbers of operations, of a compiled step."""
    text = compiled.as_text()
    analysis = compiled.cost_analysis() or {}  # Not every backend has one.
    bytes_of_state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "bytes_accessed": analysis.get("bytes accessed", math.nan) / size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes / size,
        "state_bytes": bytes_of_state / size,
        "fusions": text.count(" fusion("),
        "copies": text.count(" copy("),
    }


def copy_runner(grads: list[jax.Array]) -> Runner:
    """A copy from buffers into buffers, none of which is allocated anew."""
    copy = jax.jit(
        lambda sources, targets: jax.tree.map(jnp.copy, sources),
        donate_argnums=1,
        keep_unused=True,
    )
    targets = [jax.tree.map(jnp.zeros_like, grads)]

    def run(steps: int) -> None:
        for _ in range(steps):
            targets[0] = copy(grads, targets[0])
        jax.block_until_ready(targets)

    return run


def torch_runners(
    torch: Any, arrays: list[np.ndarray], *, compiled: bool
) -> dict[str, tuple[Runner, dict[str, float]]]:
    """Every implementation of `torch.optim.Rprop`, on the kind of device of JAX."""
    torch.compiler.reset()
    grads = pytorch.tensors(torch, arrays)
    implementations: dict[str, dict[str, bool]] = {
        "single tensor": {"foreach": False},
        "foreach": {"foreach": True},
    }
    if pytorch.device(torch).type == "cuda":
        implementations["capturable"] = {"foreach": True, "capturable": True}
    if compiled:
        implementations["compiled"] = {"foreach": True}

    def runner(implementation: str) -> tuple[Runner, dict[str, float]]:
        params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer = torch.optim.Rprop(params, **implementations[implementation])
        step = optimizer.step
        if implementation == "compiled":
            step = torch.compile(step, dynamic=False)

        def run(steps: int) -> None:
            for _ in range(steps):
                step()
            pytorch.synchronize(torch)

        run(1)
        fields = [
            field for state in optimizer.state.values() for field in state.values()
        ]
        state_bytes = sum(field.nbytes for field in fields if torch.is_tensor(field))
        return run, {"state_bytes": state_bytes / sum(map(np.size, arrays))}

    return {f"torch.optim.Rprop, {name}": runner(name) for name in implementations}


def compile_runner(
    optimizer: optax.GradientTransformation, params: list[jax.Array]
) -> Runner:
    """Traces, lowers and compiles the same step, each time anew."""
    state, value = optimizer.init(params), jnp.zeros(())

    def run(times: int) -> None:
        for _ in range(times):
            jax.clear_caches()
            jit_step(optimizer).lower(params, state, params, value).compile()

    return run


def eager_runner(
    optimizer: optax.GradientTransformation, grads: list[jax.Array]
) -> Runner:
    """Updates without `jax.jit`; the updates are not applied."""
    update = optax.with_extra_args_support(optimizer).update
    params = jax.tree.map(jnp.zeros_like, grads)
    value = jnp.zeros(())
    state = [optimizer.init(params)]

    def run(steps: int) -> None:
        for _ in range(steps):
            updates, state[0] = update(grads, state[0], params, value=value)
            jax.block_until_ready(updates)

    return run


def measure_steps(
    study: Study, workload: Workload, torch: Any, options: argparse.Namespace
) -> None:
    """Time all optimizers on one workload."""
    arrays = workload.draw()
    grads = [jnp.asarray(array) for array in arrays]
    found: dict[str, tuple[Runner, dict[str, float]]] = {COPY: (copy_runner(grads), {})}
    for name, optimizer in optimizers(workload).items():
        found[name] = step_runner(optimizer, grads)
    if torch is not None:
        found |= torch_runners(torch, arrays, compiled=not options.quick)
    rows = list(
        interleave(
            {name: run for name, (run, _) in found.items()},
            rounds=options.rounds,
            seconds=options.seconds,
            title=workload.name,
        )
    )
    unknown = dict.fromkeys(["bytes_accessed", "temporary_bytes", "state_bytes"])
    unknown |= dict.fromkeys(["fusions", "copies"])
    where = {"problem": workload.name}
    costs = [
        where | {"optimizer": name} | unknown | costs
        for name, (_, costs) in found.items()
    ]
    study.add(costs, "costs")
    study.add(times(workload, rows))


def measure_calls(
    study: Study, workload: Workload, build: Any, options: argparse.Namespace
) -> None:
    """Time what happens outside a compiled step: a runner for each optimizer."""
    grads = [jnp.asarray(array) for array in workload.draw()]
    compared = {ADAM: optax.adam(0.01), **by_layout(DEFAULT)}
    compiles = build is compile_runner
    rows = interleave(
        {name: build(optimizer, grads) for name, optimizer in compared.items()},
        rounds=min(options.rounds, COMPILATIONS) if compiles else options.rounds,
        seconds=options.seconds,
        title=workload.name,
        most_steps=1 if compiles else 1000,
    )
    study.add(times(workload, list(rows)))


def times(workload: Workload, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a workload, with its name and size."""
    where = {
        "problem": workload.name,
        "parameters": workload.size,
        "leaves": len(workload.shapes),
    }
    return [where | row for row in rows]


def available_bytes() -> int:
    """The memory that the arrays of one workload may take."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with defaults that depend on ``--quick``."""
    parser = cli.parser(__doc__, "speed")
    parser.add_argument(
        "--sizes",
        type=cli.at_least(1),
        nargs="+",
        metavar="PARAMETERS",
        help="sizes of the one-leaf workloads; by default 1e3 to 1e8, quick 1e3",
    )
    parser.add_argument("--rounds", type=cli.at_least(2), help="by default 12, quick 2")
    parser.add_argument(
        "--seconds", type=float, help="of one measurement; by default 0.05, quick 0.001"
    )
    options = parser.parse_args(arguments)
    quick = options.quick
    options.sizes = sorted(
        options.sizes or (10**n for n in ((3,) if quick else range(3, 9)))
    )
    options.rounds = options.rounds or (2 if quick else 12)
    options.seconds = options.seconds or (0.001 if quick else 0.05)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure every workload that is not there yet."""
    options = parse_options(arguments)
    torch = pytorch.optional_torch()
    study = Study(options.output_dir, "step", ["problem"])
    all_variants = tuple(variant.name for variant in VARIANTS)
    workloads = [
        Workload(f"{size:,}", [(size,)], all_variants if size == DETAILED else DEFAULTS)
        for size in options.sizes
    ]
    leaves, width = (5, 8) if options.quick else (200, 64)
    shape = (width, width)
    workloads.append(
        Workload(f"{leaves} leaves of {width} x {width}", [shape] * leaves)
    )
    for workload in workloads:
        if study.has(workload.name):
            continue
        if workload.size * PEAK_BYTES > available_bytes():
            print(f"Without {workload.name} parameters: not enough memory.")
            continue
        measure_steps(study, workload, torch, options)
        gc.collect()
    for build, name, leaves in (
        (eager_runner, EAGER, 8),
        (compile_runner, COMPILATION, 300),
    ):
        leaves = min(leaves, 5) if options.quick else leaves
        if not study.has(name):
            measure_calls(study, Workload(name, [shape] * leaves), build, options)


if __name__ == "__main__":
    main()
