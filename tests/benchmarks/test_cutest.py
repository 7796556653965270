"""CUTEst and many starts: quick runs, their reports, and what optimizers see."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rprop

for name in ("pandas", "optimistix", "diffrax"):
    pytest.importorskip(name, reason="the benchmarks need it")

from benchmarks.cutest import descend, prototype, views  # noqa: E402
from benchmarks.cutest.problems import Problem  # noqa: E402

VALLEY = Problem(
    "valley",
    np.array([-1.2, 1.0, 0.5]),
    lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
)


@pytest.fixture(autouse=True)
def user_settings():
    """Users have no strict promotion; evaluations are of float64."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    with jax.enable_x64(True):
        yield
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("topic", "scripts"), [("cutest", ("run", "solver")), ("multistart", ("run",))]
)
def test_quick_runs_and_their_report(topic, scripts, tmp_path):
    """A smoke run leaves tidy CSV files and its environment; a second adds nothing."""
    pytest.importorskip("sif2jax", reason="the problems are there")
    for name in scripts:
        module = importlib.import_module(f"benchmarks.{topic}.{name}")
        for _ in range(2):
            module.main(["--quick", "--output-dir", str(tmp_path)])
            now = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
        assert name in json.loads((tmp_path / "environment.json").read_text())
        module.main(["--quick", "--output-dir", str(tmp_path)])
        assert now == {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    report = importlib.import_module(f"benchmarks.{topic}.report")
    for show in [*report.SHOWN, *report.PICTURES.values()]:
        assert show(tmp_path)


def seen(view, step=0, point=VALLEY.start):
    return views.observed(VALLEY)(point, step, views.numbers(view, point.size))


def test_views_change_what_they_say_and_nothing_else():
    """Fresh noise differs from step to step, roughness does not; units are undone."""
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
    """A loss that is differentiated has the gradient that is seen."""
    view = views.numbers(views.View("gradient", gradient_noise=0.1), 3)
    observe = views.observed(VALLEY)
    loss = descend.as_loss(observe, 3, view)
    found = jax.value_and_grad(loss)(VALLEY.start)
    np.testing.assert_array_equal(found[1], observe(VALLEY.start, 3, view)[1])


@pytest.mark.parametrize("name", ["irprop+", "optax.lbfgs", "SciPy BFGS"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_lowest_loss_never_rises(name, dtype, monkeypatch):
    """It begins with that of the start, and is counted within the budget."""
    monkeypatch.setattr(descend, "BUDGET", 40)
    runs = descend.Runs(VALLEY)
    lowest = runs.lowest(runs.descent(name), views.View("exact", dtype=dtype))
    assert lowest.shape == (40,)
    np.testing.assert_allclose(lowest[0], VALLEY.loss(VALLEY.start), rtol=1e-6)
    assert (np.diff(lowest) <= 0).all()
    assert lowest[-1] < lowest[0] / 5


def run(transformation, loss, start, steps):
    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = transformation.update(grads, state, params, value=value)
        return (params + updates, state), params

    carry = start, transformation.init(start)
    return jax.lax.scan(step, carry, length=steps)[1]


def test_the_prototype_without_its_changes_is_the_package():
    """So what is measured of the changes is due to them."""
    plain = optax_rprop.in_eigenbasis(
        optax_rprop.rprop(variant="irprop+", **prototype.BOUNDS), full_matrix=True
    )
    old = prototype.prototype(scaled=False, anchored=False)
    # Afterwards, they part where rounding chooses a direction.
    found = [run(each, VALLEY.loss, VALLEY.start, 30) for each in (plain, old)]
    np.testing.assert_allclose(*found, rtol=1e-6)


def test_the_scaled_basis_does_not_see_units():
    """Its path is the same, up to rounding, if its first units are the same."""
    scales = jnp.array([1.0, 2.0**-6, 2.0**9])
    transformation = prototype.prototype()
    update = jax.jit(transformation.update)
    paths = []
    for units in (jnp.ones(3), scales):
        params = VALLEY.start / units
        state = transformation.init(params)._replace(units=1 / units)
        loss = functools.partial(lambda units, z: VALLEY.loss(units * z), units)
        for _ in range(30):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = update(grads, state, params, value=value)
            params = params + updates
        paths.append(units * params)
    # The anchor divides the rounding of a direction.
    np.testing.assert_allclose(*paths, rtol=1e-3)


def test_turns_are_together_under_vmap():
    """Around a whole run, ``cond`` stays; with the package's turns it is a select."""
    plain = optax_rprop.in_eigenbasis(
        optax_rprop.rprop(variant="irprop+"), full_matrix=True
    )
    starts = jnp.stack([VALLEY.start, VALLEY.start + 1])
    found = []
    for transformation in (plain, prototype.prototype()):
        fit = functools.partial(run, transformation, VALLEY.loss, steps=3)
        found.append("cond[" in str(jax.make_jaxpr(jax.vmap(fit))(starts)))
    assert found == [False, True]
