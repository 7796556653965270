"""What keeps the way back into the loss's domain, and what is known to break it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import VARIANTS, descend, rprop

PLUS = functools.partial(rprop, variant="irprop+")
DATA = jnp.array([0.5, 1.0, 1.5, 2.0])


def logarithm(x):
    """Its least value is at 1; outside, for x < 0, only the value is NaN."""
    return x - jnp.log(x)


def root(x):
    """The same function, but outside the derivative is NaN as well."""
    return x - 2 * jnp.log(jnp.sqrt(x))


@functools.cache
def run(optimizer, loss, steps=60):
    """Parameters and losses from a start whose first update leads outside."""
    optimizer = OPTIMIZERS[optimizer]()
    return jax.jit(functools.partial(descend, optimizer, loss, steps=steps))(
        jnp.array(8.0)
    )


def skipping(inner):
    """Gradients of one batch; those that are not finite are skipped."""
    return optax.MultiSteps(
        inner, every_k_schedule=1, should_skip_update_fn=optax.skip_not_finite
    )


def cleaned(inner):
    """NaN in a gradient becomes 0 before the wrapper sees it."""
    return optax.GradientTransformationExtraArgs(
        inner.init,
        lambda grads, state, params=None, **extra: inner.update(
            jax.tree.map(jnp.nan_to_num, grads), state, params, **extra
        ),
    )


OPTIMIZERS = {
    "alone": lambda: PLUS(5.0),
    "MultiSteps": lambda: optax.MultiSteps(PLUS(5.0), 1).gradient_transformation(),
    "MultiSteps, nan_to_num": lambda: cleaned(optax.MultiSteps(PLUS(5.0), 1)),
    "apply_if_finite": lambda: optax.apply_if_finite(PLUS(5.0), 1000),
    "skip_not_finite": lambda: skipping(PLUS(5.0)).gradient_transformation(),
    "zero_nans": lambda: optax.chain(optax.zero_nans(), rprop(5.0, variant="rprop+")),
    "rprop+": lambda: rprop(5.0, variant="rprop+"),
    "irprop-": lambda: rprop(5.0),
}


@pytest.fixture(autouse=True)
def standard(standard_promotion):
    """Some wrappers of Optax mix dtypes themselves."""


@pytest.mark.parametrize(
    "loss", [pytest.param(logarithm, marks=pytest.mark.slow), root]
)
@pytest.mark.parametrize("name", ["alone", "MultiSteps, nan_to_num"])
def test_back_inside_and_to_the_least_value(name, loss):
    """Alone, and with accumulated gradients that are cleaned before."""
    params, values = run(name, loss, 100)
    outside = ~np.isfinite(np.asarray(values))
    assert outside.any()
    assert not (outside[1:] & outside[:-1]).any()
    np.testing.assert_allclose(params[-1], 1.0, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "apply_if_finite",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("skip_not_finite", "MultiSteps", "zero_nans")
        ),
    ],
)
def test_wrappers_that_hide_the_outside_break_the_way_back(name):
    """They keep parameters and state as they are, or never forget a NaN."""
    params, values = run(name, root)
    # As documented: the run stays where it was after its first updates.
    assert len(set(np.asarray(params[-40:]).tolist())) == 1
    assert abs(params[-1] - 1) > 0.5
    assert name == "MultiSteps" or np.isnan(values[-40:]).all()


@pytest.mark.slow
def test_accumulated_over_parts_of_the_data():
    """The loss of all parts, and gradients that are cleaned: the optimum is found."""

    def loss_fn(x, y):
        return jnp.mean(x * y - 2 * jnp.log(jnp.sqrt(x)))

    optimizer = optax.MultiSteps(PLUS(5.0), len(DATA))

    def step(carry, y):
        x, state, total = carry
        loss, grads = jax.value_and_grad(loss_fn)(x, y)
        total += loss
        updates, state = optimizer.update(
            jnp.nan_to_num(grads), state, x, value=total / len(DATA)
        )
        return (optax.apply_updates(x, updates), state, total), None

    @jax.jit
    def epoch(x, state):
        (x, state, _), _ = jax.lax.scan(step, (x, state, 0.0), DATA)
        return x, state

    x = jnp.array(8.0)
    state = optimizer.init(x)
    for _ in range(100):
        x, state = epoch(x, state)
    np.testing.assert_allclose(x, 1 / DATA.mean(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [logarithm, root])
def test_cleaning_gradients_costs_irprop_plus_nothing(loss):
    """It reads the loss, so a gradient outside is not needed: the same run."""
    for expected, actual in zip(
        run("alone", loss, 100), run("MultiSteps, nan_to_num", loss, 100), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_a_simplex_wants_the_gradient_in_its_plane():
    """Equal signs move all coordinates alike, which the projection undoes."""
    cost = jnp.array([1.0, 2.0, 3.0])

    @jax.jit
    def fit(grads):
        optimizer = rprop(max_step_size=1.0)

        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(grads, state, x)
            x = optax.apply_updates(x, updates)
            return optax.projections.projection_simplex(x), state

        start = jnp.ones(3) / 3
        return jax.lax.fori_loop(0, 60, step, (start, optimizer.init(start)))[0]

    np.testing.assert_allclose(fit(cost), 1 / 3, atol=1e-6)
    np.testing.assert_allclose(fit(cost - cost.mean()), [1, 0, 0], atol=1e-6)


@functools.cache
def runs_behind(clip):
    """Of 300 random barriers, whether two losses in a row were not finite."""
    behind = {
        "clip_by_global_norm": optax.clip_by_global_norm(0.7),
        "clip_by_block_rms": optax.clip_by_block_rms(0.4),
        "clip": optax.clip(0.5),
        "adaptive_grad_clip": optax.adaptive_grad_clip(0.5),
    }[clip]

    def twice_outside(seed):
        rows = jax.random.normal(jax.random.key(seed), (8, 3))

        def barrier(x):
            return jnp.sum(-jnp.log(1.0 - rows @ x)) + jnp.sum(x)

        optimizer = optax.chain(PLUS(2.0), behind)
        _, values = descend(optimizer, barrier, jnp.zeros(3), 80)
        outside = ~jnp.isfinite(values)
        return jnp.any(outside[1:] & outside[:-1])

    return np.asarray(jax.jit(jax.vmap(twice_outside))(jnp.arange(300)))


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["clip_by_global_norm", "clip_by_block_rms", "clip"])
def test_clips_of_the_update_alone_keep_the_way_back(clip):
    """Never twice outside in a row: the undone update is clipped likewise."""
    assert not runs_behind(clip).any()


@pytest.mark.slow
def test_a_clip_relative_to_the_parameters_breaks_it():
    """It cuts the way back more than it cut the way out."""
    assert runs_behind("adaptive_grad_clip").any()


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[:3]],
)
def test_the_optimum_has_no_derivative_by_the_data(variant):
    """It is 0, for only signs are read: see the docstring for what to use instead."""

    def optimum(target):
        optimizer = rprop(0.1, variant=variant)
        params, _ = descend(optimizer, lambda x: (x - target) ** 2, jnp.array(0.0), 60)
        return params[-1]

    value, slope = jax.jit(jax.value_and_grad(optimum))(jnp.array(2.0))
    np.testing.assert_allclose(value, 2.0, atol=0.01)
    assert slope == 0.0
