"""What several test modules share: ways to run an optimizer, and hard input."""

import functools
import typing
from typing import NamedTuple

import hypothesis
import jax
import numpy as np
import optax
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

import optax_rprop

VARIANTS = typing.get_args(optax_rprop.Variant)
LAYOUTS = typing.get_args(optax_rprop.StateLayout)
# Bounds that a dozen steps reach, and not the defaults, so that a forgotten one
# shows. All are powers of two, so that every layout holds them exactly.
SETTINGS = {
    "learning_rate": 0.25,
    "eta_minus": 0.25,
    "eta_plus": 2.0,
    "min_step_size": 0.03125,
    "max_step_size": 1.0,
}
STEPS, SIZE = 12, 4

# The same examples at every run, and nothing written to disk.
property_test = hypothesis.settings(
    derandomize=True, database=None, deadline=None, max_examples=25
)


def for_layout(options):
    """Options with factors that the layout can hold, if they name none."""
    if options.get("state_layout") == "byte":
        return {"eta_plus": 2.0} | options
    return options


def rprop(*args, **options):
    """`optax_rprop.rprop` with factors that the layout can hold."""
    return optax_rprop.rprop(*args, **for_layout(options))


def injected(*args, hyperparam_dtype=None, **options):
    """The same with hyper-parameters that are arrays, as far as the layout allows."""
    byte = options.get("state_layout") == "byte"
    factory = optax.inject_hyperparams(
        optax_rprop.rprop,
        static_args=("eta_minus", "eta_plus") if byte else (),
        hyperparam_dtype=hyperparam_dtype,
    )
    return factory(*args, **for_layout(options))


CONFIGURATIONS = [
    {"variant": variant, "state_layout": state_layout}
    for variant in VARIANTS
    for state_layout in LAYOUTS
]
# Each variant but one and each layout. The others run in CI.
REPRESENTATIVE = [
    {"variant": "irprop-", "state_layout": "split"},
    {"variant": "rprop+", "state_layout": "packed"},
    {"variant": "irprop+", "state_layout": "byte"},
]


def name_of(options):
    """The name of a configuration in a test's."""
    return "-".join(options.values())


def configuration(options, *more):
    """A parameter set of a configuration and what else varies, with name and mark."""
    marks = [] if options in REPRESENTATIVE else pytest.mark.once
    return pytest.param(
        options, *more, id="-".join([name_of(options), *more]), marks=marks
    )


each_configuration = pytest.mark.parametrize(
    "options", [configuration(options) for options in CONFIGURATIONS]
)


class Steps(NamedTuple):
    """What happened in each step: the first axis of every array counts them."""

    updates: jax.Array
    step_sizes: jax.Array
    signs: jax.Array


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
    """`play` with `SETTINGS` and these, compiled once for all examples of a law."""
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
    """Two trees are equal bit for bit, but for the sign of 0."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def floats(low, high):
    """Numbers of either sign, between two magnitudes, or 0."""
    magnitudes = strategies.floats(low, high, width=32)
    return strategies.one_of(
        magnitudes, magnitudes.map(lambda number: -number), strategies.just(0.0)
    )


# XLA takes subnormal numbers for 0 on CPU, whoever compares them.
bad_floats = strategies.floats(width=32, allow_subnormal=False)


def gradients(elements, size=SIZE):
    """Stacked gradients, float32."""
    return arrays.arrays(np.float32, (STEPS, size), elements=elements)


def losses(elements):
    """As many losses as there are steps, float32."""
    return arrays.arrays(np.float32, (STEPS,), elements=elements)


# Small integers, so that a loss also stays, and comes back to an earlier one.
few_losses = strategies.integers(-4, 4).map(float)
any_gradients = gradients(strategies.one_of(floats(2**-30, 2**30), bad_floats))
any_losses = losses(strategies.one_of(few_losses, bad_floats))
finite_gradients = gradients(floats(2**-30, 2**30))
finite_losses = losses(few_losses)
