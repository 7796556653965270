"""Recovery from a non-finite loss: guaranteed for irprop+, and what breaks it.

The domains are random and coupled, so a single coordinate cannot tell whether an update
leaves them. From a first point inside, irprop+ never evaluates the loss twice in a row
outside, for any initial step size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import VARIANTS, descend

import optax_rprop

FIRST_STEPS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PROBLEMS, SIZE, STEPS = 40, 4, 150
SETTINGS = {"eta_plus": 2**0.5, "min_step_size": 1e-5, "max_step_size": 100.0}


def polytope(data, x):
    """A linear loss, and the logarithms of the slacks of 12 random half-spaces."""
    slacks = 0.2 + jnp.abs(data["offsets"]) - data["normals"] @ x
    return data["slope"] @ x - jnp.sum(jnp.log(slacks))


def polytope_without_barrier(data, x):
    """Finite up to the boundary, with square roots that are NaN outside."""
    slacks = 0.2 + jnp.abs(data["offsets"]) - data["normals"] @ x
    return jnp.sum((x - 0.3 * data["slope"]) ** 2) - 0.1 * jnp.sum(jnp.sqrt(slacks))


def gaussian_process(data, x):
    """The likelihood in raw parameters, which can become negative or singular."""
    amplitude, length, noise, level = 1 + x
    inputs = jnp.linspace(0.0, 1.0, 12, dtype=x.dtype)
    kernel = amplitude * jnp.exp(-0.5 * ((inputs[:, None] - inputs) / length) ** 2)
    factor = jnp.linalg.cholesky(kernel + noise * jnp.eye(12, dtype=x.dtype))
    residuals = data["offsets"] - level
    whitened = jax.scipy.linalg.solve_triangular(factor, residuals, lower=True)
    return 0.5 * whitened @ whitened + jnp.sum(jnp.log(jnp.diag(factor)))


LOSSES = [
    polytope,
    polytope_without_barrier,
    pytest.param(gaussian_process, marks=pytest.mark.once),
]


@functools.cache
def problems(dtype):
    """The random numbers of `PROBLEMS` problems, stacked."""
    rng = np.random.default_rng(0)
    numbers = {
        "normals": rng.normal(size=(PROBLEMS, 12, SIZE)),
        "offsets": rng.normal(size=(PROBLEMS, 12)),
        "slope": rng.normal(size=(PROBLEMS, SIZE)),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numbers)


def run(loss, dtype, **options):
    """The losses of all problems and initial step sizes; steps on the last axis."""

    def descend_one(data, learning_rate):
        optimizer = optax_rprop.rprop(learning_rate, **SETTINGS, **options)
        start = jnp.zeros(SIZE, dtype)
        return descend(optimizer, functools.partial(loss, data), start, STEPS)[1]

    over_steps = jax.vmap(descend_one, (None, 0))
    over_problems = jax.jit(jax.vmap(over_steps, (0, None)))
    return np.asarray(over_problems(problems(dtype), jnp.array(FIRST_STEPS, dtype)))


def twice_in_a_row(outside):
    """Whether any two successive points are both outside."""
    return np.any(outside[..., 1:] & outside[..., :-1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.once), "float64"]
)
def test_never_outside_twice_in_a_row(x64, dtype, loss):
    """In 40 problems with six initial step sizes each; and the loss falls."""
    values = run(loss, dtype, variant="irprop+")
    outside = ~np.isfinite(values)
    assert not outside[..., 0].any()
    # Large initial steps leave the domain, otherwise this would show nothing.
    assert outside[:, -2:].any(axis=-1).mean() > 0.5
    assert not twice_in_a_row(outside)
    assert np.all(np.nanmin(values, axis=-1) < values[..., 0])


@pytest.mark.once
def test_in_an_eigenbasis_too(x64):
    """A step is undone in the basis in which it was made."""

    def wrapped(data, learning_rate):
        optimizer = optax_rprop.in_eigenbasis(
            optax_rprop.rprop(learning_rate, **SETTINGS, variant="irprop+"),
            full_matrix=True,
        )
        start = jnp.zeros(SIZE)
        return descend(optimizer, functools.partial(polytope, data), start, STEPS)[1]

    over_problems = jax.jit(jax.vmap(jax.vmap(wrapped, (None, 0)), (0, None)))
    values = over_problems(problems("float64"), jnp.array(FIRST_STEPS[-3:]))
    outside = ~np.isfinite(values)
    assert outside[:, -1].any()
    assert not twice_in_a_row(outside)


def outside_of(optimizer, loss, start, steps=200):
    """Points, losses, and where these are non-finite."""
    params, values = jax.jit(lambda x: descend(optimizer, loss, x, steps))(start)
    return np.asarray(params), values, ~np.isfinite(values)


def test_the_next_point_is_the_last_one_inside(x64):
    """Bit for bit, where no rounding interferes: steps and points of powers of two."""

    def loss(x):
        return jnp.sum((x - 0.25) ** 2) - jnp.log(0.5 - jnp.abs(x[0] - x[1]))

    optimizer = optax_rprop.rprop(8.0, eta_plus=2.0, variant="irprop+")
    start = jnp.array([0.125, 0.0])
    params, values, outside = outside_of(optimizer, loss, start, 60)
    outside = np.flatnonzero(outside)
    assert len(outside) > 3
    np.testing.assert_array_equal(params[outside + 1], params[outside - 1])
    np.testing.assert_array_equal(values[outside + 1], values[outside - 1])


# ----------------------------------------------------------------------------
# With other transformations

# The last breaks the guarantee: it cuts the undo more than the update.
BEHIND = {
    "scale": optax.scale(0.5),
    "mask": optax.masked(optax.scale(2.0), True),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(0.7),
    "clip_by_block_rms": optax.clip_by_block_rms(0.4),
    "adaptive_grad_clip": optax.adaptive_grad_clip(0.5),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BEHIND)
def test_transformations_after_rprop(name):
    """Fixed odd functions of the update keep the guarantee."""
    optimizer = optax.chain(optax_rprop.rprop(2.0, variant="irprop+"), BEHIND[name])

    def outside(seed):
        rows = jax.random.normal(jax.random.key(seed), (8, 3))

        def barrier(x):
            return jnp.sum(-jnp.log(1.0 - rows @ x)) + jnp.sum(x)

        return ~jnp.isfinite(descend(optimizer, barrier, jnp.zeros(3), 80)[1])

    outside = jax.jit(jax.vmap(outside))(jnp.arange(300))
    assert outside.sum() > 300
    assert twice_in_a_row(outside) == (name == "adaptive_grad_clip")


def irprop_plus():
    """Its first update, from 8, leads outside."""
    return optax_rprop.rprop(5.0, variant="irprop+")


def cleaned(inner):
    """NaN in a gradient becomes 0 before `inner` sees it."""

    def update(grads, state, params=None, **extra):
        return inner.update(jax.tree.map(jnp.nan_to_num, grads), state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def logarithm(x):
    """Its least value is at 1; outside, for x < 0, only the value is NaN."""
    return x - jnp.log(x)


def root(x):
    """The same function, but outside the derivative is NaN as well."""
    return x - 2 * jnp.log(jnp.sqrt(x))


ALONE = {
    **{variant: optax_rprop.rprop(5.0, variant=variant) for variant in VARIANTS},
    "cleaned": cleaned(optax.MultiSteps(irprop_plus(), 1)),
    "accumulated": optax.MultiSteps(irprop_plus(), 1),
    "apply_if_finite": optax.apply_if_finite(irprop_plus(), 1000),
    "skip_not_finite": optax.MultiSteps(
        irprop_plus(), 1, should_skip_update_fn=optax.skip_not_finite
    ),
    "zero_nans": optax.chain(
        optax.zero_nans(), optax_rprop.rprop(5.0, variant="rprop+")
    ),
}
# By default, only those of a recipe, and one that a user might try.
SLOW = set(ALONE) - {"irprop+", "cleaned", "apply_if_finite"}


@pytest.mark.parametrize(
    ("name", "loss", "recovers"),
    [
        pytest.param(*row, marks=pytest.mark.slow if row[0] in SLOW else [])
        for row in [
            ("irprop+", logarithm, True),
            ("irprop+", root, True),
            ("rprop+", root, True),
            ("cleaned", root, True),
            *((variant, logarithm, False) for variant in VARIANTS[:3]),
            *((name, root, False) for name in list(ALONE)[5:]),
        ]
    ],
)
def test_which_optimizers_recover(standard_promotion, name, loss, recovers):
    """Those that see the failure, unless a wrapper hides it or keeps a NaN."""
    params, _, outside = outside_of(ALONE[name], loss, jnp.array(8.0), 100)
    assert outside.any()
    assert twice_in_a_row(outside) == (not recovers and name != "accumulated")
    assert (abs(params[-1] - 1) < 1e-4) == recovers


@pytest.mark.slow
def test_a_simplex_needs_the_gradient_in_its_plane(standard_promotion):
    """With equal signs, all updates are equal, and the projection cancels them."""
    optimizer = optax_rprop.rprop(max_step_size=1.0)

    @jax.jit
    def fit(grads):
        def step(_, carry):
            x, state = carry
            updates, state = optimizer.update(grads, state, x)
            x = optax.apply_updates(x, updates)
            return optax.projections.projection_simplex(x), state

        start = jnp.ones(3) / 3
        return jax.lax.fori_loop(0, 60, step, (start, optimizer.init(start)))[0]

    cost = jnp.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(fit(cost), 1 / 3, atol=1e-6)
    np.testing.assert_allclose(fit(cost - cost.mean()), [1, 0, 0], atol=1e-6)


@pytest.mark.slow
def test_the_optimum_has_no_derivative_by_the_data():
    """It is 0, because only signs are used; the docstring has the alternative."""

    def optimum(target):
        optimizer = optax_rprop.rprop(0.1)
        params, _ = descend(optimizer, lambda x: (x - target) ** 2, jnp.array(0.0), 60)
        return params[-1]

    value, slope = jax.jit(jax.value_and_grad(optimum))(jnp.array(2.0))
    np.testing.assert_allclose(value, 2.0, atol=0.01)
    assert slope == 0.0
