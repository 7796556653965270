"""CUTEst and many starts: quick runs, their reports, and the views."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rprop

for name in ("pandas", "optimistix", "diffrax"):
    pytest.importorskip(name, reason="the benchmarks need it")

from benchmarks.common import scipy_methods  # noqa: E402
from benchmarks.common.optimizers import WIDE  # noqa: E402
from benchmarks.cutest import descend, earlier_basis, secants, views  # noqa: E402
from benchmarks.cutest.problems import Problem  # noqa: E402

VALLEY = Problem(
    "valley",
    np.array([-1.2, 1.0, 0.5]),
    lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
)


@pytest.fixture(autouse=True)
def user_settings():
    """Without the strict promotion of the tests, and in float64."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("cutest", ["--optimizers", "optax.lbfgs", "--views", "exact"]),
        ("multistart", []),
    ],
)
def test_quick_runs(topic, options, tmp_path):
    """A smoke run leaves tidy CSV files and its environment; a second adds nothing."""
    pytest.importorskip("sif2jax", reason="the problems are there")
    module = importlib.import_module(f"benchmarks.{topic}.run")
    found = []
    for _ in range(2):
        module.main(["--quick", "--output-dir", str(tmp_path), *options])
        found.append({path: path.read_bytes() for path in tmp_path.glob("*.csv")})
    assert found[0] == found[1] != {}
    assert "run" in json.loads((tmp_path / "environment.json").read_text())


def seen(view, step=0, point=VALLEY.start):
    return views.observed(VALLEY)(point, step, views.numbers(view, point.size))


def test_views_change_what_they_say_and_nothing_else():
    """Noise differs between steps, roughness does not; units are converted back."""
    value, grads = seen(views.View("exact"))
    np.testing.assert_array_equal(value, VALLEY.loss(VALLEY.start))
    noisy = views.View("loss", loss_noise=1e-3)
    first, second = seen(noisy), seen(noisy, 1)
    assert first[0] != second[0] != value
    np.testing.assert_array_equal(first[1], grads)
    rough = views.View("rough", roughness=1e-3)
    np.testing.assert_array_equal(seen(rough)[1], seen(rough, 1)[1])
    assert 0 < np.abs(seen(rough)[1] - grads).max() <= 1e-3 * np.abs(grads).max()
    units = views.View("units", scaled=True)
    scales = views.numbers(units, 3).units
    scaled = seen(units, 0, VALLEY.start / scales)
    np.testing.assert_allclose(scaled[0], value)
    np.testing.assert_allclose(scaled[1], grads * scales)


def test_line_searches_see_the_noisy_gradient():
    """Differentiating the loss gives the observed gradient."""
    view = views.numbers(views.View("gradient", gradient_noise=0.1), 3)
    observe = views.observed(VALLEY)
    loss = descend.as_loss(observe, 3, view)
    found = jax.value_and_grad(loss)(VALLEY.start)
    np.testing.assert_array_equal(found[1], observe(VALLEY.start, 3, view)[1])


@pytest.mark.parametrize("name", ["irprop+", "optax.lbfgs", "SciPy BFGS"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_lowest_loss_never_rises(name, dtype, monkeypatch):
    """It begins with the loss of the start, and has at most as many as the budget."""
    monkeypatch.setattr(descend, "BUDGET", 40)
    runs = descend.Runs(VALLEY)
    lowest = runs.lowest(runs.descent(name), views.View("exact", dtype=dtype))
    assert lowest.shape == (40,)
    np.testing.assert_allclose(lowest[0], VALLEY.loss(VALLEY.start), rtol=1e-6)
    assert (np.diff(lowest) <= 0).all()
    assert lowest[-1] < lowest[0] / 5


@pytest.mark.parametrize("method", scipy_methods.METHODS)
def test_scipy_spends_its_budget(method):
    """It is restarted where it stops: here after a few evaluations, at the minimum."""
    start = np.array([3.0, 4.0], "float32")
    points, losses = scipy_methods.descend(method, lambda x: (x @ x, 2 * x), start, 50)
    assert points.shape == (50, 2)
    assert points.dtype == start.dtype
    np.testing.assert_array_equal(points[0], start)
    np.testing.assert_array_equal(losses, np.sum(points**2, axis=1))
    assert losses.min() < 1e-12


def run(transformation, loss, start, steps):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return (params + updates, state), params

    carry = start, transformation.init(start)
    return jax.lax.scan(step, carry, length=steps)[1]


def test_the_earlier_basis_is_that_of_matrices():
    """A column is rotated as before, so only the units differ in the comparison."""
    column = optax_rprop.in_eigenbasis(optax_rprop.rprop(variant="irprop+", **WIDE))
    old = earlier_basis.earlier_basis(anchored=True)
    found = run(old, VALLEY.loss, VALLEY.start, 60)
    start = VALLEY.start[:, None]
    columns = run(column, lambda x: VALLEY.loss(x[:, 0]), start, 60)
    np.testing.assert_allclose(columns[..., 0], found, rtol=1e-6)


def test_secants_of_a_quadratic_give_the_distance_to_its_minimum():
    """Along eigenvectors, once there are as many pairs as parameters."""
    size = 4
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    values = np.array([1.0, 3.0, 10.0, 40.0])
    hessian = basis * values @ basis.T
    point = rng.normal(size=size)
    found = secants.new_secants(jnp.asarray(point))._replace(params=jnp.asarray(point))
    for _ in range(size):
        move = rng.normal(size=size)
        point = point + move
        found = secants.with_pair(found, jnp.asarray(point), hessian @ move, True)
    np.testing.assert_allclose(found.matrix, hessian, rtol=1e-9, atol=1e-9)
    grads = jnp.asarray(hessian @ point)
    known = jnp.array([1e-9, 1.0, 1.0, 1e9])
    actual = secants.estimated(found, jnp.asarray(basis), grads, known)
    distances = np.abs(basis.T @ point)
    np.testing.assert_allclose(actual[1:3], distances[1:3], rtol=1e-9)
    np.testing.assert_allclose(actual[::3], [1e-8, 1e8], rtol=1e-9)
    # A gradient that changes in another way is not trusted.
    noisy = found._replace(changes=found.changes[::-1])
    np.testing.assert_array_equal(
        secants.estimated(noisy, jnp.asarray(basis), grads, known)[0], known[0]
    )
