"""The same code and the same numbers on one device, several, and other platforms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import (
    assert_identical,
    descend,
    each_configuration,
    rprop,
)
from compat import shard_map, use_mesh
from jax.sharding import NamedSharding, PartitionSpec
from workloads import (
    feed,
    gradient_stream,
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
# If types contain shardings, XLA decides nothing: the stricter of the two.
KINDS = ("Explicit", "Auto")


@pytest.fixture(params=KINDS)
def mesh(request, cpu_devices):
    """Eight devices in two dimensions; the parameter is the type of the axes."""
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
    """Shard leaves over the mesh by `SPECS`, after stacked axes."""
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
    """Every leaf is sharded like the corresponding parameter."""

    def check(leaf, param):
        assert leaf.sharding.is_equivalent_to(param.sharding, param.ndim)

    jax.tree.map(check, tree, params)


def assert_state_placed_like(state, params):
    """Every leaf of the state that belongs to a parameter is sharded like it."""
    # Optax finds the leaves that belong to parameters.
    for tree in state[0]:
        if jax.tree.structure(tree) == jax.tree.structure(params):
            assert_placed_like(tree, params)


# ----------------------------------------------------------------------------
# A mesh of eight devices


def own_step_sizes(params):
    """Initial step sizes of all shapes that a parameter may have them in."""
    return params | {"columns": np.full((3, 1), 0.1), "vector": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [0.1, own_step_sizes], ids=["", "own"])
@each_configuration
def test_state_and_updates_lie_as_the_parameters(mesh, options, learning_rate):
    """By `init`, eager or compiled with shardings, and by eager `update`."""
    optimizer = rprop(learning_rate, **options)
    params, grads = distributed_step(mesh)
    shardings = state_shardings(optimizer, params, NamedSharding(mesh, PartitionSpec()))
    inits = [optimizer.init, jax.jit(optimizer.init, out_shardings=shardings)]
    if mesh.axis_types[0] == jax.sharding.AxisType.Explicit:
        # If types contain shardings, those of the parameters are enough.
        inits.append(jax.jit(optimizer.init))
    for init in inits:
        state = init(params)
        assert_state_placed_like(state, params)
    # Operation by operation.
    updates, state = optimizer.update(grads, state, params, value=jnp.array(1.0))
    assert_placed_like(updates, params)
    assert_state_placed_like(state, params)


@pytest.mark.slow
@each_configuration
def test_update_needs_no_communication(mesh, options):
    """Each device updates its own shards in place; everything is compiled once."""
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
    # An executable accepts only the shardings that it was compiled for.
    step(new_params, new_state, grads, value)
    # The pattern finds communication where there is some.
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


# ----------------------------------------------------------------------------
# Ensembles: `init` and all steps, for a model on each device or in each row

ENSEMBLES = {
    "irprop+": rprop(variant="irprop+"),
    "packed": rprop(variant="rprop+", state_layout="packed"),
    "byte": rprop(state_layout="byte"),
    "own step sizes": rprop(lambda params: 0.1 * jnp.abs(params), state_layout="byte"),
    "inject": optax.inject_hyperparams(optax_rprop.rprop)(0.1, variant="irprop+"),
    "minibatch": optax_rprop.minibatch_rprop(statistics_dtype="bfloat16"),
    "eigenbasis": optax_rprop.in_eigenbasis(rprop(variant="irprop+"), interval=1),
    "full matrix": optax_rprop.in_eigenbasis(rprop(), full_matrix=True),
}


def loss(params):
    return jnp.sum((params @ jnp.array([1.0, 0.5]) - 1) ** 2)


def on_each_device(optimizer, mesh):
    """`descend` under `shard_map`, where each device holds one model."""
    spec = PartitionSpec("models")

    @functools.partial(shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def run(params):
        return jax.tree.map(
            lambda leaf: leaf[None], descend(optimizer, loss, params[0], STEPS)
        )

    return run


def in_each_row(optimizer, mesh):
    """The same under `vmap`."""
    return jax.vmap(functools.partial(descend, optimizer, loss, steps=STEPS))


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
    """No type changes between steps; tracing is enough to test that."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("Explicit axes of this version of JAX are not complete")
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh((2,), ("models",), (axis_type,), devices=cpu_devices[:2])
    start = jnp.arange(8.0).reshape(2, 2, 2)
    optimizer = optax.with_extra_args_support(ENSEMBLES[name])
    with jax.set_mesh(mesh):
        placed = jax.device_put(start, NamedSharding(mesh, PartitionSpec("models")))
        run = jax.jit(over(optimizer, mesh))
        params, values = jax.eval_shape(run, placed)
        assert (params.shape, values.shape) == ((2, STEPS, 2, 2), (2, STEPS))
        if (name, over) != ("irprop+", in_each_row):
            return
        params, _ = jax.device_get(run(placed))
    # The results are the same together and one by one.
    alone = jax.jit(lambda model: descend(optimizer, loss, model, STEPS)[0])
    expected = np.stack([alone(model) for model in start])
    np.testing.assert_allclose(params, expected, rtol=1e-5, atol=1e-6)
