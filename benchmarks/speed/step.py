"""What does one optimizer step cost, in time and in memory traffic?

A step is `update` and `optax.apply_updates`, jitted, with donated parameters and state.
The timings of all optimizers of one problem are interleaved.
"""

import gc
import importlib
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import LAYOUTS, VARIANTS, by_layout
from benchmarks.common.results import Study
from benchmarks.common.timing import Runner, interleave, repeated

COPY, SGD, ADAM = "copy of the parameters", "optax.sgd", "optax.adam"
DEFAULT, MINIBATCH = "irprop-", "mini-batch Rprop"
DEFAULTS = (DEFAULT,)
TORCH = "torch.optim.Rprop, compiled"
# Parameters and state of all optimizers of a problem are in memory at the same time.
PEAK_BYTES = 130 + 15 * len(LAYOUTS)


class Workload(NamedTuple):
    """The parameters that one step updates."""

    name: str
    shapes: list[tuple[int, ...]]  # Of the parameters, all float32.
    variants: tuple[str, ...] = DEFAULTS  # Each runs in every layout.

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
        f"{MINIBATCH}, packed": optax_rprop.minibatch_rprop(state_layout="packed"),
        f"{MINIBATCH}, bfloat16, byte": optax_rprop.minibatch_rprop(
            eta_minus=2**-0.5,
            eta_plus=2**0.25,
            min_step_size=1e-4,
            statistics_dtype="bfloat16",
            state_layout="byte",
        ),
    }


def jit_step(optimizer: optax.GradientTransformation) -> Any:
    """One step of parameters, state, gradients and loss, to be compiled."""
    update = optax.with_extra_args_support(optimizer).update

    def step(params: Any, state: Any, grads: Any, value: Any) -> tuple[Any, Any]:
        updates, state = update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def step_runner(
    optimizer: optax.GradientTransformation, grads: list[jax.Array]
) -> tuple[Runner, dict[str, float]]:
    """Steps from the initial state, and the costs of one apart from time."""
    params = jax.tree.map(jnp.zeros_like, grads)
    state = optimizer.init(params)
    value = jnp.zeros(())
    step = jit_step(optimizer)
    compiled = step.lower(params, state, grads, value).compile()
    costs = compiled_costs(compiled, state, sum(grad.size for grad in grads))
    carry = [params, state]
    del params, state  # Donated: only `carry` keeps them alive.

    def step_on() -> Any:
        carry[:] = step(*carry, grads, value)
        return carry

    return repeated(step_on), costs


def compiled_costs(compiled: Any, state: Any, size: int) -> dict[str, float]:
    """Bytes per parameter, and the numbers of operations, of a compiled step."""
    text = compiled.as_text()
    analysis = compiled.cost_analysis() or {}  # Some backends have none.
    bytes_of_state = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    return {
        "bytes_accessed": analysis.get("bytes accessed", math.nan) / size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes / size,
        "state_bytes": bytes_of_state / size,
        "fusions": text.count(" fusion("),
        "copies": text.count(" copy("),
    }


def copy_runner(grads: list[jax.Array]) -> Runner:
    """A copy from buffers into existing buffers."""
    copy = jax.jit(
        lambda sources, targets: jax.tree.map(jnp.copy, sources),
        donate_argnums=1,
        keep_unused=True,
    )
    targets = [jax.tree.map(jnp.zeros_like, grads)]

    def copy_on() -> Any:
        targets[0] = copy(grads, targets[0])
        return targets

    return repeated(copy_on)


def optional_torch() -> Any:
    """PyTorch, or None, with a notice."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        print(f"Without PyTorch, which cannot be imported: {error}.")
        return None
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        print("Without PyTorch, which does not see the GPU.")
        return None
    return torch


def torch_runner(
    torch: Any, arrays: list[np.ndarray], *, compiled: bool
) -> tuple[Runner, dict[str, float]]:
    """PyTorch's Rprop, on the kind of device that JAX uses."""
    on_gpu = jax.default_backend() == "gpu"
    torch.compiler.reset()
    params = []
    for array in arrays:
        grad = torch.tensor(array, device="cuda" if on_gpu else "cpu")
        params.append(torch.nn.Parameter(torch.zeros_like(grad)))
        params[-1].grad = grad
    optimizer = torch.optim.Rprop(params, foreach=True)
    step = torch.compile(optimizer.step, dynamic=False) if compiled else optimizer.step
    run = repeated(step, lambda _: torch.cuda.synchronize() if on_gpu else None)
    run(1)
    leaves = jax.tree.leaves(list(optimizer.state.values()))
    state_bytes = sum(leaf.nbytes for leaf in leaves if torch.is_tensor(leaf))
    return run, {"state_bytes": state_bytes / sum(map(np.size, arrays))}


def step_runners(
    workload: Workload, torch: Any, *, compiled: bool
) -> dict[str, tuple[Runner, dict[str, float]]]:
    """Every optimizer on a workload, with its costs."""
    arrays = workload.draw()
    grads = [jnp.asarray(array) for array in arrays]
    found: dict[str, tuple[Runner, dict[str, float]]] = {COPY: (copy_runner(grads), {})}
    for name, optimizer in optimizers(workload).items():
        found[name] = step_runner(optimizer, grads)
    if torch is not None:
        found[TORCH] = torch_runner(torch, arrays, compiled=compiled)
    return found


def available_bytes() -> int:
    """The memory available for the arrays of one workload."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main(arguments: list[str] | None = None) -> None:
    """Measure every missing workload."""
    options = cli.parser(__doc__, "speed").parse_args(arguments)
    quick = options.quick
    torch = optional_torch()
    study = Study(options.output_dir, "step", ["problem"])
    all_variants = tuple(variant.name for variant in VARIANTS)
    # The size at which only memory bandwidth matters.
    detailed = 10**7 if jax.default_backend() == "cpu" else 10**8
    sizes = [10**n for n in range(3, 4 if quick else 9)]
    workloads = [
        Workload(f"{size:,}", [(size,)], all_variants if size == detailed else DEFAULTS)
        for size in sizes
    ]
    if not quick:
        workloads.append(Workload("200 leaves of 64 x 64", [(64, 64)] * 200))
    for workload in workloads:
        if study.has(workload.name):
            continue
        if workload.size * PEAK_BYTES > available_bytes():
            print(f"Without {workload.name} parameters: not enough memory.")
            continue
        found = step_runners(workload, torch, compiled=not quick)
        facts = [
            {"problem": workload.name, "optimizer": name} | costs
            for name, (_, costs) in found.items()
        ]
        study.add(facts, "costs")
        where = {"problem": workload.name, "parameters": workload.size}
        where["leaves"] = len(workload.shapes)
        runners = {name: run for name, (run, _) in found.items()}
        rows = interleave(runners, workload.name, quick=quick)
        study.add(where | row for row in rows)
        del found, runners, rows
        gc.collect()


if __name__ == "__main__":
    main()
