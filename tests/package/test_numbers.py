"""NaN and infinity in many steps; what each does in one is in `test_rule.py`."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from checks import descend, property_test
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from optax_rprop import rprop

STEPS, SIZE = 12, 4


@functools.cache
def everything_of(dtype):
    """Runs `STEPS` steps; returns all updates and states, compiled once."""
    optimizer = rprop(variant="irprop+")

    @jax.jit
    def run(grads, values):
        def step(state, grad_and_value):
            grad, value = grad_and_value
            updates, state = optimizer.update(grad, state, value=value)
            return state, (updates, state)

        grads = grads.astype(dtype)
        return jax.lax.scan(step, optimizer.init(grads[0]), (grads, values))[1]

    return run


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@property_test
@hypothesis.given(
    grads=arrays.arrays(
        np.float32, (STEPS, SIZE), elements=strategies.floats(width=32)
    ),
    values=arrays.arrays(np.float32, (STEPS,), elements=strategies.floats(width=32)),
)
def test_state_and_updates_stay_finite(dtype, grads, values):
    """Whatever comes: NaN, infinities, subnormal and huge numbers."""
    for leaf in jax.tree.leaves(everything_of(dtype)(grads, values)):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


def test_returns_to_the_domain_of_a_logarithm(x64):
    """irprop+ steps out of it, and still ends in the minimum."""

    @jax.jit
    @jax.vmap
    def run(learning_rate):
        optimizer = rprop(learning_rate, max_step_size=100.0, variant="irprop+")
        start = jnp.array([3.0, 5.0, 0.2])
        return descend(optimizer, lambda x: jnp.sum(x - jnp.log(x)), start, 201)

    params, values = run(jnp.array([1.0, 10.0, 49.0, 100.0]))
    # In float64 arithmetic, how often it leaves the domain is a fact, not a guess.
    np.testing.assert_array_equal(np.isnan(values).sum(axis=1), [1, 4, 6, 7])
    np.testing.assert_allclose(params[:, -1], np.ones((4, 3)), atol=1e-6)


@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+"])
def test_others_do_not_return(variant):
    """Why that needs the loss: at -2 the gradient of x - log x is finite."""
    optimizer = rprop(10.0, variant=variant)
    run = jax.jit(lambda x: descend(optimizer, lambda x: x - jnp.log(x), x, 200))
    _, values = run(jnp.array(5.0))
    assert np.isnan(values[1:]).all()


@pytest.mark.parametrize(
    "variant", ["irprop+", pytest.param("rprop+", marks=pytest.mark.once)]
)
def test_returns_from_where_cholesky_fails(x64, variant):
    """A Gaussian process whose noise would become negative is fitted all the same.

    Loss and gradient are NaN there, so that rprop+ recovers too. The optimum is
    SciPy's, found in the logarithms of the parameters, where nothing can fail.
    """
    x = np.linspace(0, 1, 30)
    y = np.sin(6 * x) + 0.1 * np.random.default_rng(0).normal(size=30)

    def negative_log_likelihood(params):
        variance, length, noise = params
        kernel = variance * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
        factor = jnp.linalg.cholesky(kernel + noise * jnp.eye(30))
        whitened = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return 0.5 * whitened @ whitened + jnp.sum(jnp.log(jnp.diag(factor)))

    @jax.jit
    @jax.vmap
    def run(learning_rate):
        optimizer = rprop(learning_rate, variant=variant)
        return descend(optimizer, negative_log_likelihood, jnp.ones(3), 300)

    optimum = scipy.optimize.minimize(
        jax.jit(
            jax.value_and_grad(lambda logs: negative_log_likelihood(jnp.exp(logs)))
        ),
        np.zeros(3),
        jac=True,
    )
    params, values = run(jnp.array([0.01, 1.0, 10.0]))
    assert np.all(np.isnan(values).sum(axis=1) >= 3)
    np.testing.assert_allclose(values[:, -1], optimum.fun, rtol=1e-6)
    expected = np.broadcast_to(np.exp(optimum.x), (3, 3))
    np.testing.assert_allclose(params[:, -1], expected, rtol=1e-3)
