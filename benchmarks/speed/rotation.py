"""What does an update in the eigenbasis cost?

We time an update of one square matrix in float32, between two basis updates and with
one, and compare with other optimizers that work on whole matrices.
"""

import functools
import time
from collections.abc import Iterator
from typing import Any

import jax
import optax
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.results import Study

EVERY, BETWEEN = "in_eigenbasis, basis update", "in_eigenbasis, between"


def cost(optimizer: Any, size: int, repeats: int) -> tuple[float, int]:
    """The least time of an update of a square matrix, and the bytes of the state."""
    optimizer = optax.with_extra_args_support(optimizer)
    keys = jax.random.split(jax.random.key(0), 4)
    grads = [jax.random.normal(key, (size, size)) for key in keys]
    state = optimizer.init(grads[0])
    update = jax.jit(functools.partial(optimizer.update, value=1.0))
    # The second gradient gives a first difference, which updates all bases.
    for grad in grads[:2]:
        _, state = update(grad, state, grads[0])
    times = []
    for i in range(repeats):
        begun = time.perf_counter()
        state = jax.block_until_ready(update(grads[2 + i % 2], state, grads[0]))[1]
        times.append(time.perf_counter() - begun)
    return min(times), sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def rows(size: int) -> Iterator[dict[str, Any]]:
    """One row per optimizer, for matrices of one size."""
    plain = optax_rprop.rprop(variant="irprop+")
    rotated = functools.partial(optax_rprop.in_eigenbasis, plain, max_size=size)
    for name, optimizer in {
        "irprop+": plain,
        BETWEEN: rotated(interval=10**6),
        EVERY: rotated(interval=1),
        "Adam": optax.adam(1e-3),
        "L-BFGS, without line search": optax.scale_by_lbfgs(),
        "Muon": optax.contrib.muon(1e-3),
    }.items():
        repeats = 2 if size > 1000 and "eigenbasis" in name else 10
        seconds, held = cost(optimizer, size, repeats)
        yield {
            "size": f"{size} x {size}",
            "optimizer": name,
            "milliseconds": 1e3 * seconds,
            "bytes per parameter": held / size**2,
        }


def main(arguments: list[str] | None = None) -> None:
    """Measure every missing size."""
    options = cli.parser(__doc__, "speed").parse_args(arguments)
    study = Study(options.output_dir, "rotation", ["size"])
    for size in tqdm.tqdm((8,) if options.quick else (64, 512, 2048), unit="size"):
        if not study.has(f"{size} x {size}"):
            study.add(rows(size))


if __name__ == "__main__":
    main()
