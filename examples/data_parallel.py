r"""Train on one device, several devices or several hosts: one program, one result.

Every device holds a part of the rows. Loss and gradient are means over all rows,
so XLA inserts the reductions over devices and hosts itself, and ``irprop+``
compares the global loss. Rprop's state has the shapes and the sharding of the
parameters: replicated on every device or, with ``--shard-parameters``, divided.

One process, with all devices of the machine, or with eight simulated on the CPU::

    python examples/data_parallel.py
    python examples/data_parallel.py --cpu-devices 8

Two processes on one machine, in two terminals; use any free port, and
``--process-id 1`` in the second::

    python examples/data_parallel.py --coordinator-address localhost:12321 \
        --num-processes 2 --process-id 0

With GPUs, set ``CUDA_VISIBLE_DEVICES`` to a different one in each terminal;
without, ``--cpu-devices 4`` simulates four devices in each process.

On several machines, pass the same options, with an address of process 0's machine
that the others can reach. Under Slurm, Open MPI, Kubernetes or on Cloud TPU, JAX
finds all three itself, and one command starts every process::

    srun --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 \
        python examples/data_parallel.py --cluster

Is the result that of one device? Devices change the order of sums, hence the last
bits of loss and gradient. Rprop reads only the signs of the gradient, so the
parameters stay identical, *bit for bit*, until a partial derivative is so close
to 0 that rounding determines its sign. From that step on the runs are two equally
valid paths, which need not meet again. So each process also trains alone on one
device, reports how long the paths are identical, and fails if the losses differ
by more than 1 % in any step, or by more than rounding in the first.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from sklearn.datasets import load_digits

import optax_rprop

# The first 1792 = 2**8 * 7 of 1797: rows that 2, 7, 8 or 256 devices share evenly.
ROWS = 1792


class Run(NamedTuple):
    """The history of a run, on the host.

    Attributes:
      losses: Shape (steps,), each before its step.
      params: Shape (steps, parameters), each after its step.
    """

    losses: np.ndarray
    params: np.ndarray


def init_params() -> dict[str, jax.Array]:
    """A network of 64 inputs, 32 tanh units and 10 logits."""
    hidden_key, output_key = jax.random.split(jax.random.key(0))
    return {
        "hidden_kernel": jax.random.normal(hidden_key, (64, 32)) / 8,
        "hidden_bias": jnp.zeros(32),
        "output_kernel": jax.random.normal(output_key, (32, 10)) / 6,
        "output_bias": jnp.zeros(10),
    }


def loss_fn(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy over all rows of all devices, and a small penalty."""
    hidden = jnp.tanh(images @ params["hidden_kernel"] + params["hidden_bias"])
    logits = hidden @ params["output_kernel"] + params["output_bias"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean() + 1e-3 * optax.tree.norm(params, squared=True)


def train(devices: Sequence[Any], *, steps: int, shard_parameters: bool) -> Run:
    """Train on these devices.

    Raises:
      RuntimeError: The state is not sharded like the parameters.
    """
    # "Auto" lets XLA place the reductions; with "Explicit", the default of
    # `make_mesh`, the types of all intermediate arrays would have to specify them.
    mesh = jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )
    whole = NamedSharding(mesh, PartitionSpec())
    parts = NamedSharding(mesh, PartitionSpec("data"))

    def distribute(array: np.ndarray) -> jax.Array:
        # Called only for the rows of this process's devices: if the data do not
        # fit on one host, read just these.
        return jax.make_array_from_callback(array.shape, parts, array.__getitem__)

    digits: Any = load_digits()
    images = distribute((digits.data[:ROWS] / 16).astype(np.float32))
    labels = distribute(digits.target[:ROWS].astype(np.int32))

    optimizer = optax_rprop.rprop(variant="irprop+")
    params_shapes = jax.eval_shape(init_params)
    params_shardings = jax.tree.map(
        lambda leaf: (
            parts if shard_parameters and leaf.shape[0] % len(devices) == 0 else whole
        ),
        params_shapes,
    )
    state_shardings = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params_shapes),
        params_shardings,
        transform_non_params=lambda _: whole,
    )
    # Created by all processes together: an array created outside `jit` would
    # belong to a single process.
    params = jax.jit(init_params, out_shardings=params_shardings)()
    opt_state = jax.jit(optimizer.init, out_shardings=state_shardings)(params)

    def step(params: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, images, labels)
        updates, opt_state = optimizer.update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, loss

    train_step = jax.jit(
        step,
        donate_argnums=(0, 1),
        out_shardings=(params_shardings, state_shardings, whole),
    )
    gather = jax.jit(lambda params: ravel_pytree(params)[0], out_shardings=whole)

    losses, path = [], []
    for _ in range(steps):
        params, opt_state, loss = train_step(params, opt_state, images, labels)
        losses.append(np.asarray(loss))
        path.append(np.asarray(gather(params)))

    for field in ("step_sizes", "prev_grad_signs"):
        for param, leaf in zip(
            jax.tree.leaves(params),
            jax.tree.leaves(optax.tree.get(opt_state, field)),
            strict=True,
        ):
            if leaf.sharding != param.sharding:
                raise RuntimeError(
                    f"{field} must be sharded like its parameter, {param.sharding},"
                    f" got {leaf.sharding}."
                )
    return Run(np.stack(losses), np.stack(path))


def compare(path: Run, alone: Run) -> str | None:
    """Report how two runs differ; returns the fault, or None."""
    steps = len(path.losses)
    differs = (path.params != alone.params).any(axis=1)
    identical = int(differs.argmax()) if differs.any() else steps
    loss_differences = np.abs(path.losses - alone.losses) / np.abs(alone.losses)
    print(
        f"Loss {path.losses[-1]:.6g} after {steps} steps; alone {alone.losses[-1]:.6g}"
    )
    print(f"Largest relative difference of the losses: {loss_differences.max():.2g}")
    print(
        f"Parameters identical, bit for bit, in the first {identical} steps of {steps}"
    )
    if differs.any():
        difference = np.abs(path.params[-1] - alone.params[-1]).max()
        print(f"Largest difference of parameters at the end: {difference:.2g}")
    if not loss_differences[0] < 1e-5:
        return f"The first losses differ by {loss_differences[0]:.2g}, relatively."
    if not loss_differences.max() < 0.01:
        return "The losses differ by more than 1 % from those on one device."
    return None


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=300, help="number of steps")
    parser.add_argument(
        "--shard-parameters",
        action="store_true",
        help="divide parameters and state among the devices",
    )
    parser.add_argument(
        "--cpu-devices",
        type=int,
        metavar="NUMBER",
        help="use the CPU, split into this many devices in each process",
    )
    parser.add_argument(
        "--coordinator-address",
        metavar="HOST:PORT",
        help="where process 0 listens; the same for all processes",
    )
    parser.add_argument("--num-processes", type=int, help="total number of processes")
    parser.add_argument("--process-id", type=int, help="number of this process, from 0")
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="let JAX find the other processes (Slurm, Open MPI, Cloud TPU ...)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder of data_parallel.npz, written by process 0",
    )
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error("argument --steps: must be at least 1")
    if options.cpu_devices is not None and options.cpu_devices < 1:
        parser.error("argument --cpu-devices: must be at least 1")
    by_hand = (options.coordinator_address, options.num_processes, options.process_id)
    if any(given is not None for given in by_hand):
        if options.cluster:
            parser.error("--cluster detects what the other options set; leave it out")
        if any(given is None for given in by_hand):
            parser.error(
                "--coordinator-address, --num-processes and --process-id belong"
                " together"
            )
        if not 0 <= options.process_id < options.num_processes:
            parser.error("argument --process-id: must be from 0 to --num-processes - 1")
    if options.output_dir.exists() and not options.output_dir.is_dir():
        parser.error(f"argument --output-dir: {options.output_dir} is not a folder")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Train on all devices and on one, and compare; returns the exit status."""
    options = parse_options(arguments)
    # All of this must precede the first use of devices.
    if options.cpu_devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", options.cpu_devices)
    # GPUs and TPUs may multiply float32 with fewer bits: more than rounding.
    jax.config.update("jax_default_matmul_precision", "float32")
    if options.cluster:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            sys.exit(f"JAX found no cluster: {error} Give --coordinator-address.")
    elif options.coordinator_address is not None:
        jax.distributed.initialize(
            options.coordinator_address, options.num_processes, options.process_id
        )

    devices = jax.devices()
    if ROWS % len(devices):
        print(
            f"{len(devices)} devices cannot share {ROWS} rows evenly.", file=sys.stderr
        )
        return 1
    print(
        f"Process {jax.process_index()} of {jax.process_count()}:"
        f" {len(jax.local_devices())} of {len(devices)} devices"
    )
    path = train(
        devices, steps=options.steps, shard_parameters=options.shard_parameters
    )
    alone = train(jax.local_devices()[:1], steps=options.steps, shard_parameters=False)
    failure = compare(path, alone)
    if jax.process_index() == 0:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        results = options.output_dir / "data_parallel.npz"
        np.savez(results, **path._asdict())
        print(f"Losses and parameters of all steps: {results}")
    if failure is not None:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
