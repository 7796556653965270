"""The way back into the loss's domain: guaranteed for irprop+, and measured.

Random coupled domains, in which a coordinate alone does not know whether it may
move. From a first point inside, irprop+ never evaluates the loss twice in a row
outside, whatever the first step size.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import descend

import optax_rprop

FIRST_STEPS = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PROBLEMS, SIZE, STEPS = 40, 4, 150
SETTINGS = {"eta_plus": 2**0.5, "min_step_size": 1e-5, "max_step_size": 100.0}


def polytope(data, x):
    """A linear loss, and the logarithms of the slacks of 12 random half-spaces."""
    slacks = 0.2 + jnp.abs(data["offsets"]) - data["normals"] @ x
    return data["slope"] @ x - jnp.sum(jnp.log(slacks))


def polytope_without_barrier(data, x):
    """Finite up to the boundary, with square roots that are NaN beyond."""
    slacks = 0.2 + jnp.abs(data["offsets"]) - data["normals"] @ x
    return jnp.sum((x - 0.3 * data["slope"]) ** 2) - 0.1 * jnp.sum(jnp.sqrt(slacks))


def ellipsoid(data, x):
    """The logarithm of one minus a full quadratic form."""
    form = data["normals"].T @ data["normals"]
    return jnp.sum((x - data["slope"]) ** 2) - jnp.log(0.5 - x @ form @ x)


def determinant(data, x):
    """The negative log-determinant of a matrix that is linear in the parameters."""
    matrices = data["matrices"] + jnp.swapaxes(data["matrices"], 1, 2)
    factor = jnp.linalg.cholesky(
        jnp.eye(5, dtype=x.dtype) + jnp.tensordot(x, matrices, 1)
    )
    return data["slope"] @ x + jnp.sum(x**2) - 2 * jnp.sum(jnp.log(jnp.diag(factor)))


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
    pytest.param(ellipsoid, marks=pytest.mark.once),
    pytest.param(determinant, marks=pytest.mark.once),
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
        "matrices": rng.normal(size=(PROBLEMS, SIZE, 5, 5)),
    }
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), numbers)


def run(loss, dtype, **options):
    """The losses of all problems from all first steps; the last axis counts steps."""

    def descend_one(data, learning_rate):
        optimizer = optax_rprop.rprop(learning_rate, **SETTINGS, **options)
        start = jnp.zeros(SIZE, dtype)
        return descend(optimizer, functools.partial(loss, data), start, STEPS)[1]

    over_steps = jax.vmap(descend_one, (None, 0))
    over_problems = jax.jit(jax.vmap(over_steps, (0, None)))
    return np.asarray(over_problems(problems(dtype), jnp.array(FIRST_STEPS, dtype)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.once), "float64"]
)
def test_never_outside_twice_in_a_row(x64, dtype, loss):
    """In 40 problems from six first steps each, and the loss falls."""
    values = run(loss, dtype, variant="irprop+")
    outside = ~np.isfinite(values)
    assert not outside[..., 0].any()
    # The large first steps leave the domain, or this would show nothing.
    assert outside[:, -2:].any(axis=-1).mean() > 0.5
    assert not (outside[..., 1:] & outside[..., :-1]).any()
    assert np.all(np.nanmin(values, axis=-1) < values[..., 0])


@pytest.mark.once
@pytest.mark.parametrize("loss", [determinant, gaussian_process])
def test_rprop_plus_returns_where_all_gradients_are_nan(x64, loss):
    """It looks at no loss; but these make every partial derivative NaN outside."""
    values = run(loss, "float64", variant="rprop+")
    outside = ~np.isfinite(values)
    assert outside[:, -2:].any(axis=-1).mean() > 0.5
    assert not (outside[..., 1:] & outside[..., :-1]).any()


@pytest.mark.once
@pytest.mark.parametrize("loss", [polytope, gaussian_process])
def test_in_an_eigenbasis_too(x64, loss):
    """A step is undone in the basis in which it was made."""

    def wrapped(data, learning_rate):
        optimizer = optax_rprop.in_eigenbasis(
            optax_rprop.rprop(learning_rate, **SETTINGS, variant="irprop+"),
            full_matrix=True,
        )
        start = jnp.zeros(SIZE)
        return descend(optimizer, functools.partial(loss, data), start, STEPS)[1]

    over_problems = jax.jit(jax.vmap(jax.vmap(wrapped, (None, 0)), (0, None)))
    values = over_problems(problems("float64"), jnp.array(FIRST_STEPS[-3:]))
    outside = ~np.isfinite(values)
    assert outside[:, -1].any()
    assert not (outside[..., 1:] & outside[..., :-1]).any()


def outside_of(optimizer, loss, start, steps=200):
    """Points, losses, and where these are not finite."""
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


@pytest.mark.parametrize(
    "behind",
    [
        optax.identity(),
        optax.scale(0.5),
        optax.masked(optax.scale(2.0), True),
        optax.clip(1.0),
    ],
    ids=["nothing", "scale", "mask", "clip"],
)
def test_transformations_that_keep_the_way_back(x64, behind):
    """What is the same odd function of the update at each step may follow.

    Here a partial undo once led outside: a mixture of coordinates that moved and that
    were undone lies outside, too.
    """

    def coupled(x):
        return 4 * (x[0] - 0.3) ** 2 - 0.1 * x[1] - jnp.log(0.64 - (x[0] - x[1]) ** 2)

    optimizer = optax.chain(optax_rprop.rprop(10.0, variant="irprop+"), behind)
    _, _, outside = outside_of(optimizer, coupled, jnp.zeros(2))
    assert outside.sum() > 3
    assert not (outside[1:] & outside[:-1]).any()


def test_at_the_smallest_step_size_it_alternates(x64):
    """A boundary nearer than that is left again and again, and come back from."""
    optimizer = optax_rprop.rprop(0.25, min_step_size=0.25, variant="irprop+")
    params, _, outside = outside_of(
        optimizer, lambda x: jnp.sqrt(x - 0.9), jnp.array(1.0), 40
    )
    np.testing.assert_array_equal(outside, np.arange(40) % 2 == 1)
    assert set(params.tolist()) == {1.0, 0.75}
