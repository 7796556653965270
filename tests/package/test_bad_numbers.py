"""NaN and infinity: one bad evaluation poisons neither the run nor the state."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from checks import (
    LAYOUTS,
    SIZE,
    STEPS,
    VARIANTS,
    assert_identical,
    descend,
    player,
    property_test,
    rprop,
)
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

import optax_rprop

NAN, INF = float("nan"), float("inf")
LARGEST = float(np.finfo(np.float32).max)

# A first gradient of 1 moves by -0.25, of -1 by 0.25, and of 0 not at all. Then:
# update, step size and remembered sign.
HOLDS = (0.0, 0.25, 0)
# The step size that is taken back shrinks in the next step.
UNDOES = {1.0: (0.25, 0.25, 0), -1.0: (-0.25, 0.25, 0), 0.0: HOLDS}
GROWS = {1.0: (-0.5, 0.5, 1), -1.0: (0.5, 0.5, -1)}
MOVES = {1.0: (-0.25, 0.25, 1), -1.0: (0.25, 0.25, -1)}
CHANGES = {
    "rprop-": {1.0: (0.0625, 0.0625, -1), -1.0: (-0.0625, 0.0625, 1)},
    "irprop-": {1.0: (0.0, 0.0625, 0), -1.0: (0.0, 0.0625, 0)},
    "rprop+": UNDOES,
}

FALLS, RISES = (1.0, 0.5), (1.0, 2.0)
FIRST = (1.0, -1.0, 0.0)

each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def second_step(variant, state_layout, gradients, values, **options):
    """What the second of two steps does: update, step size, sign."""
    run = player(variant=variant, state_layout=state_layout, **options)
    steps = run(jnp.array(gradients), jnp.array(values))
    return tuple(float(field[1]) for field in steps)


@each_layout
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    ("variant", "values", "undoes"),
    [
        ("rprop-", FALLS, False),
        ("rprop-", RISES, False),
        ("irprop-", FALLS, False),
        ("irprop-", RISES, False),
        ("rprop+", FALLS, True),
        ("rprop+", RISES, True),
        ("irprop+", FALLS, False),
        ("irprop+", (1.0, 1.0), False),
        ("irprop+", (1.0, -INF), False),
        ("irprop+", RISES, True),
        ("irprop+", (1.0, NAN), True),
        ("irprop+", (1.0, INF), True),
    ],
)
def test_gradient_is_nan(variant, values, undoes, first, state_layout):
    """It has no sign: hold; or undo, where the variant does so after a change.

    irprop+ does so if the loss rose. With nothing to undo, all hold.
    """
    expected = UNDOES[first] if undoes else HOLDS
    assert second_step(variant, state_layout, (first, NAN), values) == expected


@each_layout
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("values", [FALLS, RISES])
@pytest.mark.parametrize("gradient", [INF, -INF])
@each_variant
def test_gradient_is_infinite(variant, gradient, values, first, state_layout):
    """Infinite gradients have a sign, and act like 1 and -1."""
    sign = float(np.sign(gradient))
    if first == 0:
        expected = MOVES[sign]
    elif first == sign:
        expected = GROWS[first]
    else:
        twin = variant
        if variant == "irprop+":
            twin = "rprop+" if values == RISES else "irprop-"
        expected = CHANGES[twin][first]
    assert second_step(variant, state_layout, (first, gradient), values) == expected


@each_layout
@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("gradient", [3.0, -3.0, 0.0, NAN, INF, -INF])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
def test_loss_is_nan_or_infinite(skip, value, gradient, first, state_layout):
    """irprop+ undoes every coordinate that moved, whatever its gradient says.

    That goes for a gradient of 0 too, skipped or not.
    """
    actual = second_step(
        "irprop+",
        state_layout,
        (first, gradient),
        (1.0, value),
        skip_zero_grads=skip,
    )
    assert actual == UNDOES[first]


@each_layout
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+"])
def test_other_variants_do_not_look_at_the_loss(variant, value, state_layout):
    """A loss that is no number changes nothing for them."""
    grads = np.random.default_rng(0).normal(size=(STEPS, SIZE)).astype(np.float32)
    run = player(variant=variant, state_layout=state_layout)
    bad = np.full(STEPS, value, np.float32)
    assert_identical(run(grads, bad), run(grads, np.zeros_like(bad)))


@each_layout
@pytest.mark.parametrize("first_value", [NAN, INF, -INF, LARGEST, -LARGEST])
def test_first_loss_undoes_nothing(first_value, state_layout):
    """There is no move yet to undo, and no loss to have risen from."""
    run = player(variant="irprop+", state_layout=state_layout)
    grads = jnp.array([[1.0, -1.0, 0.0, NAN]])
    updates, step_sizes, signs = run(grads, jnp.array([first_value]))
    np.testing.assert_array_equal(updates[0], [-0.25, 0.25, 0, 0])
    np.testing.assert_array_equal(step_sizes[0], [0.25] * 4)
    np.testing.assert_array_equal(signs[0], [1, -1, 0, 0])


@each_layout
@pytest.mark.parametrize(("value", "undoes"), [(1.5, False), (2.0, False), (2.5, True)])
def test_losses_are_compared_with_the_last_finite_one(value, undoes, state_layout):
    """A loss of 2, two without bound below, then the one that decides."""
    run = player(variant="irprop+", state_layout=state_layout)
    steps = run(jnp.array([1.0, 1.0, 1.0, -1.0]), jnp.array([2.0, -INF, -INF, value]))
    assert steps.updates[3] == (1.0 if undoes else 0)
    assert steps.signs[3] == 0


@each_layout
def test_largest_losses_are_finite(state_layout):
    """The largest number is no infinity, the most negative one is a loss to keep."""
    actual = second_step("irprop+", state_layout, (1.0, 1.0), (1.0, LARGEST))
    assert actual == GROWS[1.0]
    run = player(variant="irprop+", state_layout=state_layout)
    steps = run(jnp.array([1.0, 1.0, -1.0]), jnp.array([1.0, -LARGEST, 0.0]))
    assert steps.updates[2] == 0.5


@each_layout
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_only_finite_losses_are_kept(bad, state_layout):
    """The last finite loss remains the one to compare with."""
    optimizer = rprop(0.25, variant="irprop+", state_layout=state_layout)
    state = optimizer.init(jnp.zeros(()))
    for value in (3.0, bad, bad):
        _, state = optimizer.update(jnp.ones(()), state, value=value)
        assert optax_rprop.get_rprop_state(state).prev_value == 3.0


@functools.cache
def final_state(variant, state_layout, dtype):
    """The state after some steps, and all moves, compiled once."""
    optimizer = rprop(variant=variant, state_layout=state_layout)

    @jax.jit
    def run(grads, values):
        def step(state, grad_and_value):
            grad, value = grad_and_value
            updates, state = optimizer.update(grad, state, value=value)
            return state, (updates, state)

        grads = grads.astype(dtype)
        return jax.lax.scan(step, optimizer.init(grads[0]), (grads, values))[1]

    return run


@each_layout
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@each_variant
@property_test
@hypothesis.given(
    grads=arrays.arrays(
        np.float32, (STEPS, SIZE), elements=strategies.floats(width=32)
    ),
    values=arrays.arrays(np.float32, (STEPS,), elements=strategies.floats(width=32)),
)
def test_state_and_moves_stay_finite(variant, dtype, state_layout, grads, values):
    """Whatever comes: NaN, infinities, subnormal and huge numbers."""
    steps = final_state(variant, state_layout, dtype)(grads, values)
    for leaf in jax.tree.leaves(steps):
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize("state_layout", ["split", "packed"])
@pytest.mark.parametrize(
    # In float64 arithmetic, how often it leaves the domain is a fact, not a guess.
    ("learning_rate", "departures"),
    [(1.0, 1), (10.0, 4), (49.0, 6), (100.0, 7)],
)
def test_walks_back_into_the_domain_of_a_logarithm(
    x64, learning_rate, departures, state_layout
):
    """irprop+ steps out of it, and still ends in the minimum."""
    optimizer = rprop(
        learning_rate,
        max_step_size=100.0,
        variant="irprop+",
        state_layout=state_layout,
    )
    start = jnp.array([3.0, 5.0, 0.2])
    params, values = descend(optimizer, lambda x: jnp.sum(x - jnp.log(x)), start, 201)
    assert np.isnan(values).sum() == departures
    np.testing.assert_allclose(params[-1], np.ones(3), atol=1e-6)


def test_others_do_not_come_back_from_outside_a_logarithm():
    """Why that needs the loss: at -2 the gradient of x - log x is finite."""
    for variant in ("rprop-", "irprop-", "rprop+"):
        optimizer = rprop(10.0, variant=variant)
        _, values = descend(optimizer, lambda x: x - jnp.log(x), jnp.array(5.0), 200)
        assert np.isnan(values[1:]).all()


@pytest.fixture
def negative_log_likelihood(x64):
    """Of a Gaussian process with parameters that are free to become negative."""
    x = np.linspace(0, 1, 30)
    y = np.sin(6 * x) + 0.1 * np.random.default_rng(0).normal(size=30)

    def loss(params):
        distances = (x[:, None] - x) / params["length"]
        kernel = params["variance"] * jnp.exp(-0.5 * distances**2)
        factor = jnp.linalg.cholesky(kernel + params["noise"] * jnp.eye(30))
        whitened = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        return 0.5 * whitened @ whitened + jnp.sum(jnp.log(jnp.diag(factor)))

    return loss


@each_layout
@pytest.mark.parametrize("variant", ["rprop+", "irprop+"])
def test_walks_back_from_where_cholesky_fails(
    negative_log_likelihood, variant, state_layout
):
    """A Gaussian process whose noise would become negative is fitted all the same.

    Loss and gradient are NaN there, so that rprop+ recovers too. The optimum is
    SciPy's, found in the logarithms of the parameters, where nothing can fail.
    """
    names = ("variance", "length", "noise")
    start = {name: jnp.array(1.0) for name in names}

    @jax.jit
    def run(learning_rate):
        optimizer = rprop(learning_rate, variant=variant, state_layout=state_layout)
        return descend(optimizer, negative_log_likelihood, start, 300)

    @jax.jit
    @jax.value_and_grad
    def in_logarithms(logarithms):
        return negative_log_likelihood(
            dict(zip(names, jnp.exp(logarithms), strict=True))
        )

    optimum = scipy.optimize.minimize(in_logarithms, np.zeros(3), jac=True)
    for learning_rate in (0.01, 1.0, 10.0):
        params, values = run(learning_rate)
        assert np.isnan(values).sum() >= 3
        assert values[-1] == pytest.approx(optimum.fun, rel=1e-6)
        for name, logarithm in zip(names, optimum.x, strict=True):
            assert params[name][-1] == pytest.approx(np.exp(logarithm), rel=1e-3)
