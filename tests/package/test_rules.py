"""Every rule, step by step, against references that share no code with it."""

import inspect

import checks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from checks import LAYOUTS, VARIANTS, rprop

import optax_rprop

GOLDEN_GRADS = (1.0, 1.0, 1.0, -1.0, 1.0, 1.0)
HOLDS = (-0.1, -0.12, -0.144, 0.0, -0.072, -0.0864)
UNDOES = (-0.1, -0.12, -0.144, 0.144, -0.072, -0.0864)
GOLDEN_UPDATES = [
    ("rprop-", "falling", (-0.1, -0.12, -0.144, 0.072, -0.036, -0.0432)),
    ("irprop-", "falling", HOLDS),
    ("rprop+", "falling", UNDOES),
    ("irprop+", "falling", HOLDS),
    ("irprop+", "rising", UNDOES),
]


def trajectory(optimizer, grads, values):
    """Updates, step sizes and signs of each step, as float64 NumPy arrays."""

    def step(state, grad_and_value):
        grad, value = grad_and_value
        updates, state = optimizer.update(grad, state, value=value)
        plain = optax_rprop.get_rprop_state(state)
        return state, (updates, plain.step_sizes, plain.prev_grad_signs)

    grads, values = jnp.asarray(grads), jnp.asarray(values)
    _, steps = jax.lax.scan(step, optimizer.init(grads[0]), (grads, values))
    return tuple(np.asarray(field, np.float64) for field in steps)


def hard_gradients(steps, size, seed, *, nan):
    """Gradients over 60 decades whose signs stay, change and vanish."""
    rng = np.random.default_rng(seed)
    keep = rng.uniform(0.3, 1.0, size=size)
    signs = np.cumprod(np.where(rng.random((steps, size)) < keep, 1, -1), axis=0)
    grads = signs * 10.0 ** rng.uniform(-30, 30, (steps, size))
    grads[rng.random((steps, size)) < 0.05] = 0.0
    if nan:
        grads[rng.random((steps, size)) < 0.05] = np.nan
        grads[rng.random((steps, size)) < 0.02] = np.inf
        grads[rng.random((steps, size)) < 0.02] = -np.inf
    return grads


def hard_losses(steps, seed, *, nan):
    """A loss that falls, rises, repeats itself and is no number at times."""
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=steps), 1)
    if nan:
        bad = rng.choice([np.nan, np.inf, -np.inf], steps)
        values = np.where(rng.random(steps) < 0.15, bad, values)
    return values


@pytest.mark.parametrize("state_layout", LAYOUTS)
@pytest.mark.parametrize(("variant", "loss", "expected"), GOLDEN_UPDATES)
def test_golden_sequence(x64, variant, loss, expected, state_layout):
    """The sequence that can be derived by hand."""
    values = np.arange(6.0) if loss == "rising" else -np.arange(6.0)
    factors = {}
    if state_layout == "byte":
        # With no power of 2, it cannot grow by 1.2: the same numbers grow by 2.
        factors = {"eta_plus": 2.0}
        grown = np.array([0, 1, 2, 2, 2, 3])
        expected = np.array(expected) * (2.0 / 1.2) ** grown
    optimizer = rprop(0.1, variant=variant, state_layout=state_layout, **factors)
    updates, _, _ = trajectory(optimizer, GOLDEN_GRADS, values)
    np.testing.assert_allclose(updates, expected, rtol=1e-12)


@pytest.mark.parametrize("nan", [False, True], ids=["finite", "nan"])
@pytest.mark.parametrize("state_layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_plain_python(x64, variant, state_layout, nan):
    """Updates, step sizes and signs of 600 steps on 40 coordinates, in float64."""
    steps, size = 600, 40
    grads = hard_gradients(steps, size, seed=1, nan=nan)
    values = hard_losses(steps, seed=2, nan=nan)
    # Bounds narrow enough to be hit, factors that are not the defaults.
    settings = {
        "learning_rate": 0.3,
        "eta_minus": 0.45,
        "eta_plus": 1.3,
        "min_step_size": 0.01,
        "max_step_size": 7.0,
    }
    if state_layout == "byte":
        # Powers of one base, and bounds that are levels.
        settings |= {
            "eta_minus": 0.5,
            "eta_plus": 2 ** (1 / 3),
            "min_step_size": 0.3 * 2.0**-5,
            "max_step_size": 0.3 * 2.0**5,
        }
    optimizer = optax_rprop.rprop(
        **settings, variant=variant, state_layout=state_layout
    )
    actual = trajectory(optimizer, grads, values)

    textbook = reference.Rprop(size, variant, **settings)
    expected = ([], [], [])
    for grad, value in zip(grads, values, strict=True):
        expected[0].append(textbook.update(grad.tolist(), value))
        expected[1].append(textbook.step_sizes)
        expected[2].append(textbook.prev_grad_signs)

    bounds = {settings["min_step_size"], settings["max_step_size"]}
    assert bounds <= set(np.ravel(expected[1]))
    for actual_field, expected_field in zip(actual, expected, strict=True):
        np.testing.assert_allclose(actual_field, expected_field, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        *(
            pytest.param(dtype, marks=pytest.mark.once)
            for dtype in ("float16", "bfloat16", "float64")
        ),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("layouts", "settings"),
    [
        pytest.param(("split", "packed"), {}, marks=pytest.mark.once),
        (LAYOUTS, {**checks.SETTINGS, "min_step_size": 2.0**-20, "max_step_size": 8.0}),
    ],
    ids=["defaults", "powers of two"],
)
def test_layouts_agree_bit_for_bit(x64, layouts, settings, variant, dtype):
    """The same updates and the same plain state, wherever they are kept."""
    grads = jnp.asarray(hard_gradients(300, 50, seed=3, nan=True)).astype(dtype)
    values = hard_losses(300, seed=4, nan=True)
    split, *others = (
        trajectory(
            optax_rprop.rprop(**settings, variant=variant, state_layout=layout),
            grads,
            values,
        )
        for layout in layouts
    )
    for other in others:
        for split_field, other_field in zip(split, other, strict=True):
            np.testing.assert_array_equal(split_field, other_field)


@pytest.mark.parametrize("state_layout", ["split", "packed"])
def test_default_equals_torch(x64, state_layout):
    """The default computes what `torch.optim.Rprop` computes, step by step."""
    torch = pytest.importorskip("torch", reason="compares with the live PyTorch")
    # Not below 1e-100, so that PyTorch's product of gradients does not underflow.
    grads = hard_gradients(500, 30, seed=5, nan=False)
    start = np.random.default_rng(6).normal(size=30)

    theirs = torch.nn.Parameter(torch.tensor(start))
    torch_optimizer = torch.optim.Rprop([theirs])
    optimizer = optax_rprop.rprop(state_layout=state_layout)
    update = jax.jit(optimizer.update)
    ours = jnp.asarray(start)
    state = optimizer.init(ours)
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        torch_optimizer.step()
        updates, state = update(jnp.asarray(grad), state, ours)
        ours = optax.apply_updates(ours, updates)
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)


@pytest.mark.parametrize("state_layout", LAYOUTS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_skipping_zero_gradients(x64, variant, state_layout):
    """A coordinate walks as if the steps with a gradient of 0 had not been."""
    optimizer = rprop(variant=variant, skip_zero_grads=True, state_layout=state_layout)
    grads = np.random.default_rng(9).choice([-1.0, 0.0, 1.0], 300, p=[0.3, 0.3, 0.4])
    # The loss is no coordinate's own: it must not tell the two runs apart.
    values = np.zeros(300)
    updates, _, signs = trajectory(optimizer, grads, values)
    moving = grads != 0
    expected, _, _ = trajectory(optimizer, grads[moving], values[moving])
    np.testing.assert_array_equal(updates[moving], expected)
    assert not updates[~moving].any()
    held = np.flatnonzero(~moving[1:]) + 1
    np.testing.assert_array_equal(signs[held], signs[held - 1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scale_by_rprop_points_along_the_gradient(variant):
    """`rprop` is `scale_by_rprop` with the opposite sign, and the same settings."""
    settings = {
        "learning_rate": 0.3,
        "eta_minus": 0.4,
        "eta_plus": 1.5,
        "min_step_size": 0.1,
        "max_step_size": 0.6,
    }
    grads = hard_gradients(100, 10, seed=7, nan=False).astype(np.float32)
    values = hard_losses(100, seed=8, nan=False).astype(np.float32)
    along, against = (
        trajectory(factory(**settings, variant=variant), grads, values)
        for factory in (optax_rprop.scale_by_rprop, optax_rprop.rprop)
    )
    np.testing.assert_array_equal(along[0], -against[0])
    np.testing.assert_array_equal(along[1], against[1])


def test_positional_arguments_are_those_of_optax():
    """A drop-in replacement: same names, same order, other defaults."""
    names = list(inspect.signature(optax.rprop).parameters)
    for factory in (optax_rprop.rprop, optax_rprop.scale_by_rprop):
        parameters = inspect.signature(factory).parameters
        assert list(parameters)[: len(names)] == names
        assert all(
            parameters[name].kind is not inspect.Parameter.KEYWORD_ONLY
            for name in names
        )
