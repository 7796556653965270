"""The optimizer for mini-batches: the chain it is, and what users do with it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optax_rprop import (
    diagnostics,
    get_rprop_state,
    minibatch_rprop,
    resolve_signs,
    rprop,
)

OTHERS = {
    "learning_rate": 0.25,
    "eta_minus": 0.4,
    "eta_plus": 1.5,
    "min_step_size": 0.05,
    "max_step_size": 0.4,
    "threshold": 1.5,
    "decay": 0.8,
    "lean": 0.3,
}


def run(optimizer, steps=150):
    """Parameters, updates and the last state of a noisy parabola, in one scan."""

    def step(carry, key):
        params, state = carry
        noise = 0.5 * jax.random.normal(key, params.shape)
        grads = jnp.where(noise > 1, 0, params - 1 + noise)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates)

    params = jnp.linspace(-2, 3, 12)
    keys = jax.random.split(jax.random.key(0), steps)
    start = params, optimizer.init(params)
    (_, state), (params, updates) = jax.jit(lambda: jax.lax.scan(step, start, keys))()
    return params, updates, state


def assert_same(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_defaults():
    """The numbers of the docstring, written out."""
    expected = optax.chain(
        resolve_signs(1.2, 0.95, 0.1),
        rprop(0.05, 0.85, 1.1, 1e-6, 50.0, skip_zero_grads=True),
    )
    params, updates, state = run(minibatch_rprop())
    assert_same((params, updates, state), run(expected))
    resolved = np.mean(np.asarray(updates) != 0)
    assert 0.03 < resolved < 0.3


@pytest.mark.parametrize("state_layout", ["split", "packed"])
@pytest.mark.parametrize("statistics_dtype", [None, "bfloat16"])
def test_hands_over_every_argument(state_layout, statistics_dtype):
    """Each to the part that it belongs to."""
    stored = {"statistics_dtype": statistics_dtype}, {"state_layout": state_layout}
    numbers = list(OTHERS.values())
    expected = optax.chain(
        resolve_signs(*numbers[5:], **stored[0]),
        rprop(*numbers[:5], skip_zero_grads=True, **stored[1]),
    )
    actual = minibatch_rprop(**OTHERS, **stored[0], **stored[1])
    assert_same(run(actual), run(expected))


@pytest.mark.parametrize("name", OTHERS)
def test_every_argument_matters(name):
    """In the run above, so that one handed over wrongly would show."""
    rest = {key: value for key, value in OTHERS.items() if key != name}
    expected, actual = (
        run(minibatch_rprop(**options))[0] for options in (OTHERS, rest)
    )
    assert not np.array_equal(actual, expected)


def test_positional_arguments_are_those_of_rprop():
    """So that one may stand for the other."""
    ours, theirs = (
        [
            parameter.name
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        for factory in (minibatch_rprop, rprop)
    )
    assert ours == theirs


def test_hyperparameters_may_be_injected():
    """As numbers, all of them, and as a schedule."""
    injected = optax.inject_hyperparams(minibatch_rprop)(**OTHERS)
    params, updates, state = run(injected)
    assert set(state.hyperparams) == set(OTHERS)
    assert_same((params, updates), run(minibatch_rprop(**OTHERS))[:2])
    scheduled = optax.inject_hyperparams(minibatch_rprop)(
        max_step_size=optax.linear_schedule(0.05, 0.01, 100)
    )
    _, updates, state = run(scheduled)
    assert np.max(np.abs(updates[0:20])) > 0.03
    assert np.max(np.abs(updates[110:])) < 0.0101


def test_looked_into():
    """Rprop's state is found, whatever is around it."""
    for optimizer in (
        minibatch_rprop(state_layout="packed"),
        optax.inject_hyperparams(minibatch_rprop)(),
    ):
        state = run(optimizer)[2]
        assert get_rprop_state(state).step_sizes.shape == (12,)
        assert 1e-4 < diagnostics(state).median_step_size < 1


def test_layout_of_a_byte():
    """It says what it cannot hold, and holds what the docstring names."""
    with pytest.raises(ValueError, match="powers of one base"):
        minibatch_rprop(state_layout="byte")
    # Up to rounding, the same steps.
    options = {"eta_minus": 2**-0.5, "eta_plus": 2**0.25, "min_step_size": 1e-4}
    params, _, state = run(minibatch_rprop(**options, state_layout="byte"))
    np.testing.assert_allclose(params, run(minibatch_rprop(**options))[0], atol=1e-4)
    assert get_rprop_state(state).step_sizes.shape == (12,)


def test_recipe_without_parameters():
    """The error says what to call, and `lean=0` needs none."""
    grads = jnp.ones(3)
    optimizer = minibatch_rprop()
    with pytest.raises(ValueError, match=r"update\(grads, state, params\)"):
        optimizer.update(grads, optimizer.init(grads))
    optimizer = minibatch_rprop(lean=0)
    optimizer.update(grads, optimizer.init(grads))
