"""What the tests of contract and devices feed to an optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rprop

# Exact in float32 however often they multiply a step size here: see `regression`.
EXACT_SETTINGS = {
    "learning_rate": 0.5,
    "eta_minus": 0.5,
    "eta_plus": 2.0,
    "min_step_size": 0.125,
    "max_step_size": 2.0,
}


def gradient_stream(shape, seed, dtype=np.float32):
    """Gradients, stacked by steps, whose signs stay, change and vanish."""
    rng = np.random.default_rng(seed)
    signs = np.cumprod(np.where(rng.random(shape) < 0.7, 1, -1), axis=0)
    signs[rng.random(shape) < 0.1] = 0
    return jnp.asarray(signs * 10.0 ** rng.uniform(-4, 4, shape), dtype)


def value_stream(steps, seed, dtype=np.float32):
    """Losses, stacked by steps, that fall, rise and repeat themselves."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, steps), dtype)


def feed(optimizer, params, grads, values):
    """Update `params` once per gradient and loss; returns what came out.

    Returns:
      The parameters, the state of Rprop at the end, and the updates stacked.
    """

    def step(carry, grads_and_value):
        params, state = carry
        grads, value = grads_and_value
        updates, state = optimizer.update(grads, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), updates

    start = params, optimizer.init(params)
    (params, state), updates = jax.lax.scan(step, start, (grads, values))
    return params, optax_rprop.get_rprop_state(state), updates


def state_shardings(optimizer, params, other):
    """Shardings for `init` under jit: as the parameters', and `other` for the rest."""
    return optax.tree.map_params(
        optimizer,
        lambda _, param: param.sharding,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: other,
    )


def regression():
    """Parameters, inputs and targets of a linear regression without rounding.

    Inputs and targets are small integers, and with `EXACT_SETTINGS` the
    parameters stay small multiples of 1/8, so that float32 holds every sum of
    squares exactly. No result depends on the order in which devices add.
    """
    rng = np.random.default_rng(0)
    inputs = rng.integers(-2, 3, (16, 4)).astype(np.float32)
    targets = rng.integers(-4, 5, (16, 2)).astype(np.float32)
    params = {"weights": np.zeros((4, 2), np.float32), "bias": np.zeros(2, np.float32)}
    return params, inputs, targets


def mean_square(params, inputs, targets):
    """The loss of `regression`."""
    residuals = inputs @ params["weights"] + params["bias"] - targets
    return jnp.mean(jnp.sum(residuals**2, axis=1))
