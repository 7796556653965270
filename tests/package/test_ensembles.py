"""Ensembles: each device, or each row of an array, trains a model from `init` on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS, rprop
from compat import shard_map
from jax.sharding import NamedSharding, PartitionSpec

import optax_rprop
from optax_rprop import in_eigenbasis, minibatch_rprop, resolve_signs

pytestmark = pytest.mark.usefixtures("cpu_devices")

MODELS = 2
STEPS = 20


def injected(**options):
    """With hyper-parameters in the state."""
    return optax.inject_hyperparams(optax_rprop.rprop)(0.1, **options)


OPTIMIZERS = {
    **{f"{variant}": functools.partial(rprop, variant=variant) for variant in VARIANTS},
    **{
        f"{variant}, {state_layout}": functools.partial(
            rprop, variant=variant, state_layout=state_layout
        )
        for variant in ("irprop-", "irprop+")
        for state_layout in LAYOUTS[1:]
    },
    "inject": functools.partial(injected, variant="irprop+"),
    "minibatch": minibatch_rprop,
    "minibatch, bfloat16": functools.partial(
        minibatch_rprop, statistics_dtype="bfloat16"
    ),
    "resolve_signs": resolve_signs,
    "eigenbasis": lambda: in_eigenbasis(rprop(variant="irprop+")),
    "eigenbasis, packed": lambda: in_eigenbasis(
        rprop(variant="rprop+", state_layout="packed"), interval=1
    ),
    "full matrix": lambda: in_eigenbasis(rprop(), full_matrix=True),
    "chain": lambda: optax.chain(
        optax.add_decayed_weights(1e-4), rprop(variant="irprop+")
    ),
    "masked": lambda: optax.masked(rprop(variant="irprop+"), True),
}
COMPILED = {name: OPTIMIZERS[name] for name in ("irprop+", "minibatch", "eigenbasis")}

ALWAYS = ("rprop-", "irprop+", "minibatch", "eigenbasis, packed", "full matrix")
each_optimizer = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow)
        for name in OPTIMIZERS
    ],
)


def loss(params):
    """Coupled, and with its minimum at 1 and -1."""
    matrix = params["matrix"]
    return jnp.sum((matrix @ jnp.array([1.0, 0.5]) - 1) ** 2) + jnp.sum(
        (matrix[0] + params["vector"]) ** 2 + (params["vector"] + 1) ** 2
    )


def train(optimizer, params):
    """One model; `init` and all steps."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    start = params, optimizer.init(params)
    (params, _), values = jax.lax.scan(step, start, length=STEPS)
    return params, values


def starts():
    """Parameters of all models, stacked."""
    return {
        "matrix": jnp.arange(4.0 * MODELS).reshape(MODELS, 2, 2),
        "vector": -jnp.arange(2.0 * MODELS).reshape(MODELS, 2),
    }


def mesh_of(devices, kind="Auto"):
    """One axis, with a device for each model."""
    if not hasattr(jax, "set_mesh"):
        pytest.skip("Explicit axes of this version of JAX are not complete")
    axis_type = getattr(jax.sharding.AxisType, kind)
    return jax.make_mesh(
        (MODELS,), ("models",), axis_types=(axis_type,), devices=devices[:MODELS]
    )


def over_devices(optimizer, mesh, **options):
    """The ensemble under `shard_map`: each device holds one model."""
    spec = PartitionSpec("models")

    @functools.partial(shard_map, mesh=mesh, in_specs=spec, out_specs=spec, **options)
    def run(params):
        alone = jax.tree.map(lambda leaf: leaf[0], params)
        ended = train(optimizer, alone)
        return jax.tree.map(lambda leaf: leaf[None], ended)

    return run


def placed(mesh):
    """Parameters, each model on its device."""
    return jax.device_put(starts(), NamedSharding(mesh, PartitionSpec("models")))


def alone(optimizer):
    """Each model for itself."""
    run = jax.jit(functools.partial(train, optimizer))
    columns = jax.tree.map(list, starts())
    models = [
        {name: column[i] for name, column in columns.items()} for i in range(MODELS)
    ]
    return jax.tree.map(lambda *rows: np.stack(rows), *map(run, models))


@pytest.mark.parametrize(
    "kind", ["Auto", pytest.param("Explicit", marks=pytest.mark.slow)]
)
@each_optimizer
def test_each_device_trains_its_own(cpu_devices, name, kind):
    """`init` and `scan` inside `shard_map`: no type differs from step to step."""
    mesh = mesh_of(cpu_devices, kind)
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())
    with jax.set_mesh(mesh):
        run = over_devices(optimizer, mesh)
        params, values = jax.eval_shape(run, placed(mesh))
    assert params["matrix"].shape == (MODELS, 2, 2)
    assert values.shape == (MODELS, STEPS)


@each_optimizer
def test_each_row_is_a_model_on_an_explicit_axis(cpu_devices, name):
    """`init` and `scan` under `vmap`, with a sharding that is part of the type."""
    mesh = mesh_of(cpu_devices, "Explicit")
    optimizer = optax.with_extra_args_support(OPTIMIZERS[name]())
    with jax.set_mesh(mesh):
        run = jax.jit(jax.vmap(functools.partial(train, optimizer)))
        traced = run.trace(placed(mesh))
        params, values = traced.out_info
    assert params["matrix"].shape == (MODELS, 2, 2)
    assert params["matrix"].sharding.spec[0] == "models"
    assert values.shape == (MODELS, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["shard_map", "unchecked shard_map", "vmap"])
@pytest.mark.parametrize("name", COMPILED)
def test_as_each_model_alone(cpu_devices, name, how):
    """Together they do what they do one by one."""
    optimizer = optax.with_extra_args_support(COMPILED[name]())
    if how == "vmap":
        mesh = mesh_of(cpu_devices, "Explicit")
        with jax.set_mesh(mesh):
            actual = jax.jit(jax.vmap(functools.partial(train, optimizer)))(
                placed(mesh)
            )
    else:
        mesh = mesh_of(cpu_devices)
        options = {} if how == "shard_map" else {"check_vma": False}
        actual = jax.jit(over_devices(optimizer, mesh, **options))(placed(mesh))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
        actual,
        alone(optimizer),
    )
