"""The same code, and the same numbers, on one device, on many, and elsewhere."""

import contextlib
import functools
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_processes
from checks import (
    REPRESENTATIVE,
    assert_identical,
    each_configuration,
    each_layout,
    rprop,
)
from compat import shard_map, use_mesh
from jax.sharding import NamedSharding, PartitionSpec
from workloads import (
    EXACT_SETTINGS,
    feed,
    gradient_stream,
    mean_square,
    regression,
    state_shardings,
    value_stream,
)

import optax_rprop

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("cpu_devices")]

COLLECTIVE = re.compile(
    r"all-reduce|all-gather|all-to-all|reduce-scatter|collective|send|recv"
)
SPECS = {
    "matrix": PartitionSpec("data", "model"),
    "columns": PartitionSpec(None, "model"),
    "vector": PartitionSpec("data"),
    "scalar": PartitionSpec(),
}
SHAPES = {"matrix": (8, 4), "columns": (3, 6), "vector": (4,), "scalar": ()}
STEPS = 20
# Where types carry shardings, nothing is left to XLA: the stricter of the two.
KINDS = ("Explicit", "Auto")


@pytest.fixture(params=KINDS)
def mesh(request, cpu_devices):
    """Eight devices in two dimensions; who decides on shardings is the parameter."""
    kind = getattr(jax.sharding.AxisType, request.param)
    mesh = jax.make_mesh(
        (4, 2), ("data", "model"), axis_types=(kind, kind), devices=cpu_devices
    )
    with use_mesh(mesh):
        yield mesh


def streams():
    """Parameters, and gradients and losses of `STEPS` steps."""
    params = {name: jnp.ones(shape) for name, shape in SHAPES.items()}
    grads = {
        name: gradient_stream((STEPS, *shape), seed=len(name))
        for name, shape in SHAPES.items()
    }
    return params, grads, value_stream(STEPS, seed=1)


def distribute(mesh, tree, *stacked):
    """Spread leaves over the mesh as `SPECS` say, after axes that are stacked."""
    shardings = {
        name: NamedSharding(mesh, PartitionSpec(*stacked, *spec))
        for name, spec in SPECS.items()
    }
    return jax.device_put(tree, shardings)


def distributed_step(mesh):
    """Parameters and the gradients of one step, over the mesh."""
    params, grads, _ = streams()
    grads = jax.tree.map(lambda leaf: leaf[0], grads)
    return distribute(mesh, params), distribute(mesh, grads)


def assert_placed_like(tree, params):
    """Every leaf lies as the parameter of the same place in the tree does."""

    def check(leaf, param):
        assert leaf.sharding.is_equivalent_to(param.sharding, param.ndim)

    jax.tree.map(check, tree, params)


def assert_state_placed_like(state, params):
    """Every leaf of the state that belongs to a parameter lies as it does."""
    # As `optax` tells what belongs to the parameters.
    for tree in state[0]:
        if jax.tree.structure(tree) == jax.tree.structure(params):
            assert_placed_like(tree, params)


# ----------------------------------------------------------------------------
# A mesh of eight devices


@pytest.mark.slow
@each_configuration
def test_state_is_sharded_as_the_parameters(mesh, options):
    """From eager `init`, and from a compiled one that is told the shardings."""
    optimizer = rprop(**options)
    params, _ = distributed_step(mesh)
    shardings = state_shardings(optimizer, params, NamedSharding(mesh, PartitionSpec()))
    inits = [optimizer.init, jax.jit(optimizer.init, out_shardings=shardings)]
    if mesh.axis_types[0] == jax.sharding.AxisType.Explicit:
        # Where types carry shardings, the parameters' own are enough.
        inits.append(jax.jit(optimizer.init))
    for init in inits:
        assert_state_placed_like(init(params), params)


@pytest.mark.slow
@each_layout
def test_eager_update_keeps_the_sharding(mesh, state_layout):
    """Operation by operation too; irprop+ has all operations there are."""
    optimizer = rprop(variant="irprop+", state_layout=state_layout)
    params, grads = ({"matrix": tree["matrix"]} for tree in distributed_step(mesh))
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params, value=jnp.array(1.0))
    assert_placed_like(updates, params)
    assert_state_placed_like(state, params)


@pytest.mark.slow
@each_configuration
def test_update_needs_no_communication(mesh, options):
    """Each device adapts what it holds, where it holds it, and compiles that once."""
    optimizer = rprop(**options)
    params, grads = distributed_step(mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    shardings = state_shardings(optimizer, params, everywhere)
    state = jax.device_put(optimizer.init(params), shardings)
    value = jax.device_put(jnp.array(1.0), everywhere)

    def step(params, state, grads, value):
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step).lower(params, state, grads, value).compile()
    assert not COLLECTIVE.search(step.as_text())
    new_params, new_state = step(params, state, grads, value)
    assert_placed_like(new_params, params)
    assert_state_placed_like(new_state, params)
    # An executable takes only what it was compiled for, so this would raise.
    step(new_params, new_state, grads, value)
    # The pattern sees what it looks for.
    total = jax.jit(jnp.sum).lower(params["vector"]).compile()
    assert COLLECTIVE.search(total.as_text())


@functools.cache
def on_one_device(variant, state_layout):
    optimizer = rprop(0.5, variant=variant, state_layout=state_layout)
    return jax.device_get(jax.jit(functools.partial(feed, optimizer))(*streams()))


@pytest.mark.slow
@each_configuration
def test_sharded_trajectory_equals_the_unsharded(mesh, options):
    """Parameters, state and every update, exactly."""
    optimizer = rprop(0.5, **options)
    params, grads, values = streams()
    params, grads = distribute(mesh, params), distribute(mesh, grads, None)
    run = jax.jit(functools.partial(feed, optimizer))
    assert_identical(run(params, grads, values), on_one_device(**options))


@functools.cache
def fitted_on_one_device(variant, state_layout, steps):
    """`workloads.regression` fitted in the plain way."""
    optimizer = rprop(**EXACT_SETTINGS, variant=variant, state_layout=state_layout)
    params, inputs, targets = regression()

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(mean_square)(params, inputs, targets)
            updates, state = optimizer.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=steps)

    (params, state), values = jax.device_get(run(params))
    # Rises too, or irprop+ would have nothing to do.
    assert values[-1] < values[0]
    assert np.any(np.diff(values) > 0)
    return params, optax_rprop.get_rprop_state(state)


@pytest.fixture
def fitted(options):
    """What is fitted on one device; asked for before `mesh`, it knows of no mesh."""
    return fitted_on_one_device(**options, steps=12)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["Explicit"], indirect=True)
@each_configuration
def test_averaged_gradients_under_shard_map(fitted, mesh, options):
    """Each device sees its part of the data; loss and gradients are averaged."""
    optimizer = rprop(**EXACT_SETTINGS, **options)
    params, inputs, targets = regression()
    batch = PartitionSpec(("data", "model"))
    everywhere = PartitionSpec()

    @functools.partial(
        shard_map,
        mesh=mesh,
        in_specs=(everywhere, everywhere, batch, batch),
        out_specs=everywhere,
    )
    def step(params, state, inputs, targets):
        # Varying parameters make the gradient a local one, to be averaged by hand.
        local = jax.tree.map(lambda leaf: leaf + 0 * inputs[0, 0], params)
        value, grads = jax.value_and_grad(mean_square)(local, inputs, targets)
        value, grads = jax.lax.pmean((value, grads), ("data", "model"))
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = jax.device_put(params, NamedSharding(mesh, everywhere))
    inputs, targets = jax.device_put((inputs, targets), NamedSharding(mesh, batch))
    state = jax.device_put(optimizer.init(params), NamedSharding(mesh, everywhere))

    @jax.jit
    def run(params, state, inputs, targets):
        return jax.lax.fori_loop(
            0, 12, lambda _, carry: step(*carry, inputs, targets), (params, state)
        )

    params, state = run(params, state, inputs, targets)
    actual = params, optax_rprop.get_rprop_state(state)
    assert_identical(actual, fitted)


# ----------------------------------------------------------------------------
# Several processes, many models


@pytest.mark.slow
def test_two_processes_reach_the_result_of_one(tmp_path):
    """Real processes, real collectives, parameters spread over both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    names = ["/".join(options.values()) for options in REPRESENTATIVE]
    script = Path(two_processes.__file__)
    outputs = [tmp_path / f"{process_id}.npz" for process_id in range(2)]
    logs = [output.with_suffix(".log") for output in outputs]
    processes = []
    try:
        for process_id, (output, log) in enumerate(zip(outputs, logs, strict=True)):
            command = [sys.executable, script, coordinator, str(process_id), "2"]
            with log.open("w") as stream:
                processes.append(
                    subprocess.Popen(
                        [*command, output, *names],
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                    )
                )
        # If one fails, the other waits for it: the log says who and why.
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in processes:
                process.wait(timeout=150)
    finally:
        for process in processes:
            process.kill()
    assert [process.wait() for process in processes] == [0, 0], "".join(
        log.read_text() for log in logs
    )

    for output in outputs:
        results = np.load(output)
        for name, options in zip(names, REPRESENTATIVE, strict=True):
            expected = fitted_on_one_device(**options, steps=two_processes.STEPS)
            leaves = jax.tree.leaves(expected)
            actual = [results[f"{name}/{i}"] for i in range(len(leaves))]
            assert_identical(actual, leaves)


@pytest.mark.slow
@each_configuration
def test_a_thousand_models_at_once(options):
    """Under vmap each model, with settings of its own, does as it does alone."""
    models, steps = 1000, 8
    grads = gradient_stream((models, steps, 3), seed=5)
    values = jnp.stack([value_stream(steps, seed) for seed in range(10)])
    values = jnp.tile(values, (models // 10, 1))
    learning_rates = jnp.geomspace(1e-3, 1.0, models)
    params = jnp.ones((models, 3))

    def run(learning_rate, *stream):
        return feed(rprop(learning_rate, **options), *stream)

    arguments = learning_rates, params, grads, values
    together = jax.jit(jax.vmap(run))(*arguments)
    # `lax.map` runs the unbatched program, once for each model.
    alone = jax.jit(lambda arguments: jax.lax.map(lambda a: run(*a), arguments))
    assert_identical(together, alone(arguments))
    # The state of all models is read as that of each.
    state = jax.vmap(rprop(**options).init)(params)
    plain = optax_rprop.get_rprop_state(state)
    assert plain.step_sizes.shape == plain.prev_grad_signs.shape == (models, 3)


# ----------------------------------------------------------------------------
# Ensembles: `init` and all steps, for a model on each device or in each row

ENSEMBLES = {
    "irprop+": rprop(variant="irprop+"),
    "packed": rprop(variant="rprop+", state_layout="packed"),
    "byte": rprop(state_layout="byte"),
    "inject": optax.inject_hyperparams(optax_rprop.rprop)(0.1, variant="irprop+"),
    "minibatch": optax_rprop.minibatch_rprop(statistics_dtype="bfloat16"),
    "eigenbasis": optax_rprop.in_eigenbasis(rprop(variant="irprop+"), interval=1),
    "full matrix": optax_rprop.in_eigenbasis(rprop(), full_matrix=True),
}


def train(optimizer, params):
    """One model; returns its parameters and losses."""

    def loss(params):
        return jnp.sum((params @ jnp.array([1.0, 0.5]) - 1) ** 2)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    start = params, optimizer.init(params)
    (params, _), values = jax.lax.scan(step, start, length=STEPS)
    return params, values


def on_each_device(optimizer, mesh):
    """`train` under `shard_map`, where each device holds one model."""
    spec = PartitionSpec("models")

    @functools.partial(shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def run(params):
        return jax.tree.map(lambda leaf: leaf[None], train(optimizer, params[0]))

    return run


def in_each_row(optimizer, mesh):
    """`train` under `vmap`."""
    return jax.vmap(functools.partial(train, optimizer))


@pytest.mark.parametrize(
    ("over", "kind"),
    [(on_each_device, "Auto"), (on_each_device, "Explicit"), (in_each_row, "Explicit")],
    ids=["shard_map-Auto", "shard_map-Explicit", "vmap-Explicit"],
)
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("irprop+", "eigenbasis")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in ENSEMBLES
    ],
)
def test_ensembles_over_devices(cpu_devices, name, over, kind):
    """No type differs from step to step: traced, which is what types need."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("Explicit axes of this version of JAX are not complete")
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((2,), ("models",), (axis_type,), devices=cpu_devices[:2])
    start = jnp.arange(8.0).reshape(2, 2, 2)
    optimizer = optax.with_extra_args_support(ENSEMBLES[name])
    with jax.set_mesh(mesh):
        placed = jax.device_put(start, NamedSharding(mesh, PartitionSpec("models")))
        run = jax.jit(over(optimizer, mesh))
        if name != "irprop+" or kind == "Auto":
            params, values = jax.eval_shape(run, placed)
            assert (params.shape, values.shape) == (start.shape, (2, STEPS))
            return
        actual = run(placed)
    # Together they do what they do one by one.
    alone = [jax.jit(functools.partial(train, optimizer))(model) for model in start]
    for model, expected in enumerate(alone):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            jax.tree.map(lambda leaf, i=model: leaf[i], jax.device_get(actual)),
            expected,
        )
