"""`diagnostics`: what is not known is not answered, and what is pending is neutral."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, rprop

import optax_rprop
from optax_rprop import diagnostics, diagnostics_by_leaf

each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
BOUNDS = {"min_step_size": 0.25, "max_step_size": 1.0}


def summaries(state, **bounds):
    """Of the whole and of its one leaf."""
    (by_leaf,) = diagnostics_by_leaf(state, **bounds).values()
    return diagnostics(state, **bounds), by_leaf


def at_both_bounds(state_layout):
    """A state in which a third of the step sizes is at either bound."""
    optimizer = rprop(
        0.5, **BOUNDS, eta_plus=2.0, variant="rprop-", state_layout=state_layout
    )
    state = optimizer.init(jnp.zeros(3))
    for sign in (1.0, -1.0):
        _, state = optimizer.update(jnp.array([1.0, sign, 0.0]), state)
    return state


@each_layout
@pytest.mark.parametrize("given", [(), ("min",), ("max",), ("min", "max")])
def test_a_bound_that_is_not_given_has_no_answer(state_layout, given):
    """The state does not hold it: None, and not a fraction at another bound."""
    state = at_both_bounds(state_layout)
    bounds = {f"{name}_step_size": BOUNDS[f"{name}_step_size"] for name in given}
    for summary in summaries(state, **bounds):
        for name in ("min", "max"):
            fraction = getattr(summary, f"fraction_at_{name}")
            if name in given:
                np.testing.assert_allclose(fraction, 1 / 3, rtol=1e-6)
            else:
                assert fraction is None
        assert summary.largest_step_size == 1.0
        assert summary.smallest_step_size == 0.25


def test_no_default_stands_for_a_bound():
    """An optimizer at a bound of its own is not said to be away from it."""
    optimizer = rprop(0.5, max_step_size=0.5)
    state = optimizer.init(jnp.zeros(3))
    for _ in range(2):
        _, state = optimizer.update(jnp.ones(3), state)
    for summary in summaries(state):
        assert summary.fraction_at_max is None
    for summary in summaries(state, max_step_size=0.5):
        assert summary.fraction_at_max == 1.0
        assert summary.fraction_at_min is None


def test_without_bounds_under_jit_and_scan():
    """None is no array, and so no part of what is compiled."""
    state = at_both_bounds("split")
    summary = jax.jit(diagnostics)(state)
    assert summary.fraction_at_min is None
    many = jax.lax.scan(lambda carry, _: (carry, diagnostics(state)), 0, length=2)[1]
    assert many.fraction_at_max is None
    assert many.median_step_size.shape == (2,)
    assert len(jax.tree.leaves(summary)) == 4


def test_a_bound_may_be_any_number():
    """NumPy's integers and arrays of JAX as the rest, and 0 is a bound, too."""
    state = at_both_bounds("split")
    for number in (1, np.int64(1), np.float64(1), jnp.float32(1), np.array(1.0)):
        assert diagnostics(state, max_step_size=number).fraction_at_max > 0
    assert diagnostics(state, max_step_size=np.int64(2**40)).fraction_at_max == 0.0
    assert diagnostics(state, min_step_size=0).fraction_at_min == 0.0


@each_layout
@pytest.mark.parametrize("variant", ["rprop+", "irprop+"])
def test_an_undone_update_counts_as_forgotten(variant, state_layout):
    """Nothing is remembered of its sign, though the state shows what is pending."""
    optimizer = rprop(0.25, eta_plus=2.0, variant=variant, state_layout=state_layout)
    state = optimizer.init(jnp.zeros(4))
    for signs, value in (([1.0, -1.0, 1.0, 0.0], 1.0), ([-1.0, 1.0, 1.0, 1.0], 2.0)):
        _, state = optimizer.update(jnp.array(signs), state, value=value)
    codes = optax_rprop.get_rprop_state(state).prev_grad_signs
    assert codes.tolist() == [2, -2, 1, 1]
    for summary in summaries(state):
        assert summary.fraction_forgotten == 0.5


def test_summary_of_any_optimizer_without_bounds():
    """Inside wrappers likewise."""
    optimizer = optax.chain(
        optax.clip(1.0), optax.inject_hyperparams(optax_rprop.rprop)(0.25)
    )
    summary = diagnostics(optimizer.init(jnp.zeros(2)))
    assert summary.fraction_at_min is summary.fraction_at_max is None
    assert summary.median_step_size == 0.25
