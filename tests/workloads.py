"""Inputs for the tests of contract and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optax_rprop


def gradient_stream(shape, seed, dtype=np.float32):
    """Gradients, stacked by steps, with signs that repeat, change and are 0."""
    rng = np.random.default_rng(seed)
    signs = np.cumprod(np.where(rng.random(shape) < 0.7, 1, -1), axis=0)
    signs[rng.random(shape) < 0.1] = 0
    return jnp.asarray(signs * 10.0 ** rng.uniform(-4, 4, shape), dtype)


def value_stream(steps, seed, dtype=np.float32):
    """Losses, stacked by steps, that fall, rise and repeat themselves."""
    return jnp.asarray(np.random.default_rng(seed).integers(-3, 4, steps), dtype)


def feed(optimizer, params, grads, values):
    """Update `params` once per gradient and loss.

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
    """Shardings for `init` under jit: those of the parameters, `other` for the rest."""
    return optax.tree.map_params(
        optimizer,
        lambda _, param: param.sharding,
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda _: other,
    )
