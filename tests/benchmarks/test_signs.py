"""The sign argument, against the optimizer itself and against drawn batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rprop

pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common import optimizers
from benchmarks.minibatch import signs

VARIANTS = [variant.name for variant in optimizers.VARIANTS]
THRESHOLDS = [("rprop-", 0.882), ("irprop-", 0.821), ("rprop+", 0.821)]


@functools.partial(jax.jit, static_argnums=(0, 2))
def simulated_growth(variant, q, factors, steps=500, size=2000):
    """The mean log growth per step of step sizes fed with signs right with q."""
    optimizer = optax_rprop.scale_by_rprop(1.0, *factors, 0.0, 9.0, variant=variant)

    def step(carry, key):
        state, logs = carry
        grads = jnp.where(jax.random.bernoulli(key, q, (size,)), 1.0, -1.0)
        _, state = optimizer.update(grads, state, value=jnp.zeros(()))
        # Summed up and set back at every step, so that no bound is ever met.
        logs = logs + jnp.log(state.step_sizes)
        return (state._replace(step_sizes=jnp.ones(size)), logs), None

    start = (optimizer.init(jnp.zeros(size)), jnp.zeros(size))
    keys = jax.random.split(jax.random.key(0), steps)
    (_, logs), _ = jax.lax.scan(step, start, keys)
    return logs.mean() / steps


@pytest.mark.parametrize(("variant", "expected"), THRESHOLDS)
def test_thresholds_of_the_default_factors(variant, expected):
    """The two numbers that the documentation states."""
    assert round(signs.threshold(0.5, 1.2, variant), 3) == expected


@pytest.mark.parametrize("factors", [(0.5, 1.2), (0.7, 1.3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_sizes_grow_above_the_threshold(variant, factors):
    """By the optimizer itself: at the threshold, they stay, on independent signs."""
    critical = signs.threshold(*factors, variant)
    # A million signs: the standard error is below 0.0005.
    growth = functools.partial(simulated_growth, variant, factors=factors)
    assert float(growth(critical)) == pytest.approx(0, abs=0.002)
    assert float(growth(critical - 0.05)) < -0.002
    assert float(growth(critical + 0.05)) > 0.002


def test_step_sizes_grow_on_noise_with_balanced_factors():
    """With eta_minus at 1 / eta_plus or above, no sign need be right."""
    for variant in VARIANTS:
        assert signs.threshold(1 / 1.2, 1.2, variant) == 0.5
        assert signs.threshold(0.9, 1.2, variant) == 0.5
        assert float(simulated_growth(variant, 0.5, (0.9, 1.2))) > 0


def test_predicted_signs_are_measured():
    """On normally distributed gradients the prediction holds, at every batch size."""
    rows, size = 256, 400
    rng = np.random.default_rng(0)
    means = np.linspace(-0.5, 0.5, size)
    grads = jnp.asarray(rng.normal(means, 1.0, (rows, size)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 300)
    for batch in (8, 64, 256):
        for variant in VARIANTS:
            predicted = signs.predict_signs(grads, batch, variant)
            measured = signs.measure_signs(grads, jnp.asarray(batch), keys, variant)
            assert float(measured.right) == pytest.approx(predicted.right, abs=0.01)
            assert float(measured.agree) == pytest.approx(predicted.agree, abs=0.01)
            # Near the threshold, 300 steps do not decide.
            assert float(measured.grow) == pytest.approx(predicted.grow, abs=0.05)
