"""Shared by several test modules: settings, and ways to run an optimizer."""

import functools
import typing
from typing import NamedTuple

import hypothesis
import jax
import numpy as np
import optax
import pytest

import optax_rprop

VARIANTS = typing.get_args(optax_rprop.Variant)
LAYOUTS = typing.get_args(optax_rprop.StateLayout)
UNDOING = ("rprop+", "irprop+")
FLOATS = ("float16", "bfloat16", "float32", "float64")
# Bounds that a dozen steps reach, different from the defaults, so that a missing one is
# noticed. All are powers of two, so that nothing is rounded.
SETTINGS = {
    "learning_rate": 0.25,
    "eta_minus": 0.25,
    "eta_plus": 2.0,
    "min_step_size": 0.03125,
    "max_step_size": 1.0,
}

# The same examples at every run, and nothing written to disk.
property_test = hypothesis.settings(
    derandomize=True, database=None, deadline=None, max_examples=25
)


def for_layout(options):
    """Options, by default with factors that the layout supports."""
    if options.get("state_layout") == "byte":
        return {"eta_plus": 2.0} | options
    return options


def rprop(*args, **options):
    """`optax_rprop.rprop` with factors that the layout supports."""
    return optax_rprop.rprop(*args, **for_layout(options))


def injected(*args, hyperparam_dtype=None, **options):
    """The same with arrays as hyper-parameters, as far as the layout allows."""
    byte = options.get("state_layout") == "byte"
    factory = optax.inject_hyperparams(
        optax_rprop.rprop,
        static_args=("eta_minus", "eta_plus") if byte else (),
        hyperparam_dtype=hyperparam_dtype,
    )
    return factory(*args, **for_layout(options))


# Each layout and each variant but one. `test_layouts.py` shows that all layouts support
# all variants alike.
REPRESENTATIVE = [
    {"variant": "irprop-", "state_layout": "split"},
    {"variant": "rprop+", "state_layout": "packed"},
    {"variant": "irprop+", "state_layout": "byte"},
]
each_configuration = pytest.mark.parametrize(
    "options", REPRESENTATIVE, ids=lambda options: "-".join(options.values())
)
each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


class Steps(NamedTuple):
    """The course of a run: the first axis of every array is that of the steps."""

    updates: jax.Array
    step_sizes: jax.Array
    codes: jax.Array


def play(optimizer, grads, values):
    """Feed a tree of gradients, stacked by steps, and as many losses."""

    def step(state, grad_and_value):
        grad, value = grad_and_value
        updates, state = optimizer.update(grad, state, value=value)
        plain = optax_rprop.get_rprop_state(state)
        return state, Steps(updates, plain.step_sizes, plain.prev_grad_signs)

    start = optimizer.init(jax.tree.map(lambda leaf: leaf[0], grads))
    return jax.lax.scan(step, start, (grads, values))[1]


@functools.cache
def player(**options):
    """`play` with `SETTINGS` and these, compiled once for all that use it."""
    return jax.jit(functools.partial(play, rprop(**SETTINGS | options)))


def descend(optimizer, loss, start, steps):
    """Minimize; returns the parameters and the loss before each step, stacked."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (params, value)

    carry = start, optimizer.init(start)
    return jax.lax.scan(step, carry, length=steps)[1]


def assert_identical(actual, expected):
    """Two trees are equal bit for bit, except for the sign of 0."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def program(optimizer, params):
    """The programs of `init` and `update` in JAX's language, with all constants."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params, grads):
        state = optimizer.init(params)
        return optimizer.update(grads, state, params, value=1.0)

    closed = jax.make_jaxpr(step)(params, params)
    return str(closed), [np.asarray(const).tolist() for const in closed.consts]
