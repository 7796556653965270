"""Time and memory traffic of one optimizer step, next to its peers.

A step is `update` and `optax.apply_updates`, jitted, with parameters and state
donated. All peers of one workload are timed interleaved. Writes step_time.json,
step_time.md and step_time.png.
"""

import argparse
import gc
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import timing

import optax_rprop

mpl.use("Agg")
import matplotlib.pyplot as plt

VARIANTS = ("irprop-", "rprop-", "rprop+", "irprop+")
COPY, SGD, ADAM = "copy of the parameters", "optax.sgd", "optax.adam"
SIGN_TEST = "irprop-, split, on resolved signs"
# Read parameter and gradient, write the parameter; read and write the state.
FLOOR_BYTES = {COPY: 8, SGD: 12, ADAM: 28, SIGN_TEST: 38, "split": 22, "packed": 20}
TWO_FLOATS_OF_STATE = 28
# The peers of a workload hold their parameters and state at the same time.
PEAK_BYTES = 150


class Workload(NamedTuple):
    """What one step updates.

    Attributes:
      name: The heading of its table.
      shapes: The shapes of the parameters, all float32.
      all_variants: Whether all four variants take part, or the default alone.
    """

    name: str
    shapes: list[tuple[int, ...]]
    all_variants: bool = False

    @property
    def size(self) -> int:
        """The number of parameters."""
        return sum(map(math.prod, self.shapes))


class Peer(NamedTuple):
    """One optimizer, ready to step.

    Attributes:
      run: Makes steps.
      facts: What is known about a step without a clock.
    """

    run: timing.Runner
    facts: dict[str, float]


def floor_bytes(name: str) -> int:
    """The least bytes per parameter that a step can read and write."""
    layout = name.rsplit(", ", 1)[-1]
    return FLOOR_BYTES.get(name, FLOOR_BYTES.get(layout, TWO_FLOATS_OF_STATE))


def jax_optimizers(*, all_variants: bool) -> Mapping[str, optax.GradientTransformation]:
    """Every optimizer that runs in JAX, by name."""
    variants = VARIANTS if all_variants else VARIANTS[:1]
    return {
        SGD: optax.sgd(0.01),
        ADAM: optax.adam(0.01),
        "optax.rprop": optax.rprop(0.01),
        **{
            f"{variant}, {layout}": optax_rprop.rprop(
                variant=variant, state_layout=layout
            )
            for layout in ("split", "packed")
            for variant in variants
        },
        SIGN_TEST: optax.chain(
            optax_rprop.resolve_signs(), optax_rprop.rprop(skip_zero_grads=True)
        ),
    }


def jax_peer(optimizer: optax.GradientTransformation, grads: list[jax.Array]) -> Peer:
    """An optimizer of JAX at its initial state."""
    update = optax.with_extra_args_support(optimizer).update

    def step(params: Any, state: Any, grads: Any, value: Any) -> tuple[Any, Any]:
        updates, state = update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    value = jnp.zeros(())
    params = jax.tree.map(jnp.zeros_like, grads)
    state = optimizer.init(params)
    size = sum(grad.size for grad in grads)
    compiled = jitted.lower(params, state, grads, value).compile()
    text: Any = compiled.as_text()
    memory: Any = compiled.memory_analysis()
    facts = {
        "temporary_bytes": memory.temp_size_in_bytes / size,
        "state_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / size,
        "fusions": text.count(" fusion("),
        "copies": text.count(" copy("),
    }
    analysis: Any = compiled.cost_analysis()
    if analysis:  # Not every backend has one.
        facts["bytes_accessed"] = analysis["bytes accessed"] / size
    carry = [params, state]
    del params, state  # Donated: `carry` alone keeps them alive.

    def run(steps: int) -> None:
        for _ in range(steps):
            carry[:] = jitted(carry[0], carry[1], grads, value)
        jax.block_until_ready(carry)

    return Peer(run, facts)


def copy_peer(grads: list[jax.Array]) -> Peer:
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

    return Peer(run, {})


def torch_peers(
    torch: Any, arrays: list[np.ndarray], *, compiled: bool
) -> dict[str, Peer]:
    """Every implementation of `torch.optim.Rprop`, on the kind of device of JAX."""
    on_gpu = jax.default_backend() == "gpu"
    device = torch.device("cuda" if on_gpu else "cpu")
    grads = [torch.tensor(array, device=device) for array in arrays]
    implementations: dict[str, dict[str, bool]] = {
        "single tensor": {"foreach": False},
        "foreach": {"foreach": True},
    }
    if on_gpu:
        implementations["capturable"] = {"foreach": True, "capturable": True}
    if compiled:
        implementations["compiled"] = {"foreach": True}

    def peer(implementation: str) -> Peer:
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
            if on_gpu:
                torch.cuda.synchronize()

        run(1)
        fields = [
            field for state in optimizer.state.values() for field in state.values()
        ]
        state_bytes = sum(field.nbytes for field in fields if torch.is_tensor(field))
        return Peer(run, {"state_bytes": state_bytes / sum(map(np.size, arrays))})

    return {f"torch.optim.Rprop, {name}": peer(name) for name in implementations}


def measure(
    workload: Workload, torch: Any, options: argparse.Namespace
) -> dict[str, Any]:
    """Time all peers on one workload."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in workload.shapes]
    grads = [jnp.asarray(array) for array in arrays]
    peers = {COPY: copy_peer(grads)}
    for name, optimizer in jax_optimizers(all_variants=workload.all_variants).items():
        peers[name] = jax_peer(optimizer, grads)
    if torch is not None:
        torch.compiler.reset()
        peers |= torch_peers(torch, arrays, compiled=not options.quick)
    samples = timing.interleave(
        {name: peer.run for name, peer in peers.items()},
        rounds=options.rounds,
        seconds=options.seconds,
        title=workload.name,
    )
    measured = {
        name: {
            "seconds": samples[name],
            "times_adam": timing.ratio(samples[name], samples[ADAM]),
            "floor_bytes": floor_bytes(name),
            **peer.facts,
        }
        for name, peer in peers.items()
    }
    bandwidth = max(
        workload.size * floor_bytes(name) / statistics.median(samples[name])
        for name in (COPY, SGD)
    )
    for peer in measured.values():
        moved = workload.size * peer["floor_bytes"]
        peer["share"] = moved / statistics.median(peer["seconds"]) / bandwidth
    return {
        "workload": workload.name,
        "size": workload.size,
        "leaves": len(workload.shapes),
        "bytes_per_second": bandwidth,
        "peers": measured,
    }


def table(result: dict[str, Any]) -> str:
    """All that is known about one workload."""
    columns = {
        "times_adam": ("x adam", ".2f"),
        "floor_bytes": ("floor B", ".0f"),
        "share": ("of bandwidth", ".0%"),
        "bytes_accessed": ("XLA B", ".0f"),
        "temporary_bytes": ("temporary B", ".0f"),
        "state_bytes": ("state B", ".0f"),
        "fusions": ("fusions", "d"),
        "copies": ("copies", "d"),
    }
    rows = [
        [
            name,
            timing.spread(peer["seconds"], unit=1e-3),
            *(
                format(peer[key], pattern) if key in peer else ""
                for key, (_, pattern) in columns.items()
            ),
        ]
        for name, peer in result["peers"].items()
    ]
    headings = [heading for heading, _ in columns.values()]
    return common.markdown_table(["", "ms (quartiles)", *headings], rows)


def overview(results: list[dict[str, Any]]) -> str:
    """The step times of all workloads."""
    names = max((result["peers"] for result in results), key=len)
    rows = [
        [
            name,
            *(
                timing.spread(result["peers"][name]["seconds"], unit=1e-3)
                if name in result["peers"]
                else ""
                for result in results
            ),
        ]
        for name in names
    ]
    return common.markdown_table(
        ["ms (quartiles)", *(result["workload"] for result in results)], rows
    )


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """Step time over size, and the time that memory alone takes."""
    sizes = [result["size"] for result in results]
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for name in results[0]["peers"]:
        shown = [result for result in results if name in result["peers"]]
        quartiles = np.array(
            [np.quantile(r["peers"][name]["seconds"], [0.25, 0.5, 0.75]) for r in shown]
        )
        at = [result["size"] for result in shown]
        (line,) = axes.plot(at, quartiles[:, 1], "o-", label=name, markersize=4)
        axes.fill_between(
            at, quartiles[:, 0], quartiles[:, 2], color=line.get_color(), alpha=0.2
        )
    floor = FLOOR_BYTES["packed"]
    axes.plot(
        sizes,
        [size * floor / results[-1]["bytes_per_second"] for size in sizes],
        "k--",
        label=f"memory floor, {floor} bytes per parameter",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="parameters, one float32 leaf",
        ylabel="seconds per step",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def available_bytes() -> int:
    """The memory that the arrays of one workload may take."""
    stats = jax.devices()[0].memory_stats()
    if stats is not None and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def parameter_count(text: str) -> int:
    """A number of parameters, also as 1e6."""
    try:
        return int(float(text))
    except (OverflowError, ValueError):
        message = f"expected a number of parameters such as 1e6, got {text!r}."
        raise argparse.ArgumentTypeError(message) from None


def parse_options() -> argparse.Namespace:
    """The options, with defaults that depend on ``--quick``."""
    parser = common.parser(__doc__)
    parser.add_argument(
        "--sizes",
        type=parameter_count,
        nargs="+",
        metavar="PARAMETERS",
        help="sizes of the one-leaf workloads; by default 1e3 to 1e8, quick 1e3 1e4",
    )
    parser.add_argument(
        "--detailed-size",
        type=parameter_count,
        metavar="PARAMETERS",
        help="the size at which all variants run; by default 1e7 or the largest",
    )
    parser.add_argument("--rounds", type=int, help="by default 15, quick 3")
    parser.add_argument(
        "--seconds", type=float, help="of one measurement; by default 0.05, quick 0.001"
    )
    options = parser.parse_args()
    quick = options.quick
    options.sizes = sorted(
        options.sizes or (10**n for n in ((3, 4) if quick else range(3, 9)))
    )
    if options.detailed_size is None:
        options.detailed_size = min(10**7, options.sizes[-1])
    options.rounds = options.rounds or (3 if quick else 15)
    options.seconds = options.seconds or (0.001 if quick else 0.05)
    if options.sizes[0] < 1 or options.rounds < 2:
        parser.error("sizes must be at least 1 and rounds at least 2.")
    return options


def main() -> None:
    """Measure every workload and write what was seen."""
    options = parse_options()
    torch = timing.optional_torch()
    if torch and jax.default_backend() == "gpu" and not torch.cuda.is_available():
        print("Without PyTorch, which does not see the GPU.")
        torch = None
    workloads = [
        Workload(f"{size:,}", [(size,)], size == options.detailed_size)
        for size in options.sizes
    ]
    leaves, width = (5, 8) if options.quick else (200, 64)
    many = Workload(f"{leaves} leaves of {width} x {width}", [(width, width)] * leaves)
    results = []
    for workload in [*workloads, many]:
        if workload.size * PEAK_BYTES > available_bytes():
            print(f"Without {workload.name} parameters: not enough memory.")
            continue
        results.append(measure(workload, torch, options))
        gc.collect()
    if len(results) < 2:
        raise SystemExit("No size fits into memory: choose smaller --sizes.")

    *one_leaf, many_leaves = results
    detailed = [
        result
        for result in one_leaf
        if result["size"] == options.detailed_size or result is one_leaf[-1]
    ]
    report = ["## One step", overview(results)]
    for result in [*detailed, many_leaves]:
        report += [f"### {result['workload']} parameters", table(result)]
    common.write_results(
        options.output_dir,
        "step_time",
        {"results": results, "torch_threads": torch and torch.get_num_threads()},
        "\n\n".join(report),
    )
    plot(one_leaf, options.output_dir / "step_time.png")


if __name__ == "__main__":
    main()
