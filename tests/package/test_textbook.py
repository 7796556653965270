"""The cases that a textbook would try first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import VARIANTS, assert_identical, descend

import optax_rprop

# A byte cannot hold the factor 1.2.
LAYOUTS = ("split", "packed")
each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def rprop_in_numpy(gradient, x, step_size, steps):
    """The rule that sets the gradient to 0 where its sign changes."""
    path, step_sizes, prev = [], np.full_like(x, step_size), np.zeros_like(x)
    for _ in range(steps):
        path.append(x)
        grad = gradient(x)
        agreement = np.sign(grad) * np.sign(prev)
        factors = np.where(agreement > 0, 1.2, np.where(agreement < 0, 0.5, 1.0))
        step_sizes = np.clip(step_sizes * factors, 1e-6, 50.0)
        grad = np.where(agreement < 0, 0.0, grad)
        x, prev = x - np.sign(grad) * step_sizes, grad
    return np.array(path)


@each_layout
def test_parabola_equals_numpy(x64, state_layout):
    """The minimum of x**2 from 5, with initial step 0.1, in 50 steps."""
    optimizer = optax_rprop.rprop(0.1, state_layout=state_layout)
    path, _ = descend(optimizer, jnp.square, jnp.array(5.0), 51)
    expected = rprop_in_numpy(lambda x: 2 * x, np.array(5.0), 0.1, 51)
    np.testing.assert_allclose(path, expected, rtol=0, atol=1e-12)
    assert abs(path[-1]) < 0.01


@each_layout
@each_variant
def test_line_through_noise(variant, state_layout):
    """y = 2 x + 3 with noise, by 200 full-batch steps: w is 2 and b is 3, nearly."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 100).astype(np.float32)
    y = 2 * x + 3 + 0.1 * rng.normal(size=100).astype(np.float32)

    def loss(params):
        return jnp.mean((params["w"] * x + params["b"] - y) ** 2)

    optimizer = optax_rprop.rprop(0.01, variant=variant, state_layout=state_layout)
    start = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    params, _ = descend(optimizer, loss, start, 201)
    w, b = params["w"][-1], params["b"][-1]
    assert w == pytest.approx(2, abs=0.05)
    assert b == pytest.approx(3, abs=0.05)
    slope, intercept = np.polyfit(x, y, 1)
    assert (w, b) == pytest.approx((slope, intercept), abs=1e-4)


@pytest.fixture
def regression():
    """Eight random inputs and targets, and the least squares fit to them."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(20, 3)).astype(np.float32)
    targets = rng.normal(size=(20, 2)).astype(np.float32)
    design = np.column_stack([inputs, np.ones(20, np.float32)])
    solution, *_ = np.linalg.lstsq(design, targets)
    return inputs, targets, solution


@each_layout
@each_variant
def test_linear_layer(variant, state_layout, regression):
    """A `Linear(3, 2)` under the mean square error ends at the least squares fit."""
    pytest.importorskip("flax", minversion="0.12")
    from flax import nnx

    inputs, targets, solution = regression
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(
        model,
        optax_rprop.rprop(variant=variant, state_layout=state_layout),
        wrt=nnx.Param,
    )

    @nnx.jit
    def train(model, optimizer):
        @nnx.scan(in_axes=nnx.Carry, out_axes=(nnx.Carry, 0), length=200)
        def step(carry):
            model, optimizer = carry
            loss, grads = nnx.value_and_grad(
                lambda model: jnp.mean((model(inputs) - targets) ** 2)
            )(model)
            optimizer.update(model, grads, value=loss)
            return carry, loss

        return step((model, optimizer))[1]

    losses = train(model, optimizer)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(model.kernel[...], solution[:3], atol=1e-3)
    np.testing.assert_allclose(model.bias[...], solution[3], atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@each_layout
@each_variant
def test_saving_and_loading_in_mid_run(x64, variant, state_layout, dtype, regression):
    """A run that goes on from a file goes on as if it had never stopped."""
    pytest.importorskip("flax", minversion="0.12")
    import flax.serialization

    inputs, targets, _ = jax.tree.map(lambda x: jnp.asarray(x, dtype), regression)
    optimizer = optax.chain(
        optax.clip(10.0), optax_rprop.rprop(variant=variant, state_layout=state_layout)
    )

    def loss(params):
        return jnp.mean((inputs @ params["w"] + params["b"] - targets) ** 2)

    traces = []

    @jax.jit
    def step(params, state):
        traces.append(None)
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    params = {"w": jnp.zeros((3, 2), dtype), "b": jnp.zeros(2, dtype)}
    run = params, optimizer.init(params)
    target = jax.tree.map(jnp.zeros_like, run)
    for _ in range(10):
        run = step(*run)
    saved = flax.serialization.to_bytes(run)
    restored = flax.serialization.from_bytes(target, saved)
    assert jax.tree.structure(restored) == jax.tree.structure(run)
    assert_identical(restored, run)

    for _ in range(10):
        run, restored = step(*run), step(*restored)
    assert_identical(restored, run)
    types = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
        for tree in (run, restored, target)
    ]
    assert types[0] == types[1] == types[2]
    assert len(traces) == 1
