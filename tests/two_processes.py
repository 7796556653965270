"""One of several processes that fit `workloads.regression` together, on CPU.

Run by `test_devices.py`, once per process:
``python two_processes.py COORDINATOR PROCESS_ID PROCESSES OUTPUT
CONFIGURATION ...``, each of these as in ``irprop-/packed``.
"""

import functools
import sys

import jax
import numpy as np
import optax
from checks import rprop
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from workloads import EXACT_SETTINGS, mean_square, regression, state_shardings

import optax_rprop

STEPS = 12
LOCAL_DEVICES = 2


def run(optimizer, use_eager_init, params, inputs, targets):
    """Fit the regression on a mesh of all devices of all processes."""
    mesh = Mesh(np.array(jax.devices()), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    shared = NamedSharding(mesh, PartitionSpec())

    def place(array, sharding):
        return jax.make_array_from_callback(
            array.shape, sharding, lambda index: array[index]
        )

    inputs, targets = place(inputs, split), place(targets, split)
    # Each process holds its part of the weights, and so of their state.
    params = {
        "weights": place(params["weights"], split),
        "bias": place(params["bias"], shared),
    }
    shardings = state_shardings(optimizer, params, shared)
    compiled = jax.jit(optimizer.init, out_shardings=shardings)(params)
    eager = optimizer.init(params)
    for state in (compiled, eager):
        step_sizes = optax_rprop.get_rprop_state(state).step_sizes["weights"]
        assert step_sizes.sharding.is_equivalent_to(split, 2)
        assert not step_sizes.is_fully_addressable
    state = eager if use_eager_init else compiled

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, inputs, targets):
        value, grads = jax.value_and_grad(mean_square)(params, inputs, targets)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    for _ in range(STEPS):
        params, state = step(params, state, inputs, targets)
    plain = optax_rprop.get_rprop_state(state)
    return multihost_utils.process_allgather((params, plain), tiled=True)


def main():
    coordinator, process_id, processes, output, *configurations = sys.argv[1:]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", LOCAL_DEVICES)
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.distributed.initialize(coordinator, int(processes), int(process_id))
    assert jax.device_count() == LOCAL_DEVICES * int(processes)
    results = {}
    for configuration in configurations:
        variant, state_layout = configuration.split("/")
        optimizer = rprop(**EXACT_SETTINGS, variant=variant, state_layout=state_layout)
        leaves = jax.tree.leaves(run(optimizer, state_layout == "split", *regression()))
        results |= {f"{configuration}/{i}": leaf for i, leaf in enumerate(leaves)}
    np.savez(output, **results)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()
