"""The basis of the comparisons on the full batch: counts, costs, problems."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common import optimizers, tables  # noqa: E402
from benchmarks.full_batch import (  # noqa: E402
    baselines,
    descend,
    functions,
    models,
)
from benchmarks.full_batch.comparison import Comparison  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.once]


def counting(problem):
    """The same problem, and a list to which each computed loss is appended."""
    seen = []

    def loss(params, data):
        value = problem.loss(params, data)
        jax.debug.callback(lambda value: seen.append(float(value)), value)
        return value

    return dataclasses.replace(problem, loss=loss), seen


@pytest.mark.parametrize("name", ["irprop+", "Adam", "L-BFGS"])
def test_evaluations_are_counted_as_they_happen(x64, name):
    """A trace counts the calls of the loss."""
    (optimizer,) = (o for o in optimizers.OPTIMIZERS if o.name == name)
    problem, seen = counting(functions.rosenbrock(4))
    # Optax's own optimizers promote dtypes where x64 is enabled.
    with jax.numpy_dtype_promotion("standard"):
        comparison = Comparison(problem, (), 60)
        comparison.add(optimizer)
        jax.effects_barrier()
        seen.clear()
        trace = comparison.run(name, 0.01, 0).trace
    jax.effects_barrier()
    assert len(seen) == trace.evaluations[-1] >= 60
    assert seen[0] == trace.losses[0]
    np.testing.assert_array_equal(np.isin(trace.losses, seen), True)
    if optimizer.line_search:
        assert np.diff(trace.evaluations).max() > 1
    else:
        np.testing.assert_array_equal(trace.evaluations, 1 + np.arange(60))
        np.testing.assert_array_equal(trace.losses, seen)


@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS, ids=lambda o: o.name)
def test_every_optimizer_descends(x64, optimizer):
    """Traced only; one of each kind runs above."""
    problem = functions.rosenbrock(4)
    run = descend.descend(problem, optimizer, budget=5)
    with jax.numpy_dtype_promotion("standard"):
        trace = jax.eval_shape(
            run, jnp.array(0.01), problem.start(0), 0.0, problem.data
        )
    assert trace.losses.shape == trace.evaluations.shape == (5,)


def test_runs_stop_at_the_target(x64):
    """The first step at the target ends the run, and `until` finds it."""
    problem = functions.quadratic(rotated=False, size=3, condition=10.0)
    compared = optimizers.VARIANTS[:1]
    whole = Comparison(problem, compared, 200).run("irprop+", 0.1, 1)
    target = float(whole.trace.losses[20])
    first = int(np.flatnonzero(whole.trace.losses <= target)[0])
    part = Comparison(problem, compared, 200, target=target).run("irprop+", 0.1, 1)
    np.testing.assert_array_equal(part.trace.losses, whole.trace.losses[: first + 1])
    evaluations, seconds = whole.until(target)
    assert evaluations == first + 1
    assert seconds == pytest.approx(whole.seconds * (first + 1) / 200)
    assert np.isnan(whole.until(-1.0)).all()


def test_solved_is_what_comes_near_the_lowest_loss(x64):
    """The better of two runs from a start defines the target for both."""
    problem = functions.quadratic(rotated=False, size=2)
    found = Comparison(problem, (), 4)
    losses = {0.1: [10.0, 5.0, 1.0, 0.0], 1.0: [10.0, 4.0, 2.0, 2.0]}
    for setting, trace in losses.items():
        trace = descend.Trace(np.array([1, 2, 4, 5]), np.array(trace))
        found.keep("some", setting, 0, descend.Run(trace, 10.0))
    assert found.cost("some", 0.1, 0, 0.1) == (4, 8.0)
    assert np.isnan(found.cost("some", 1.0, 0, 0.1)).all()
    assert found.cost("some", 1.0, 0, 0.4) == (2, 4.0)
    np.testing.assert_array_equal(found.scores("some", [0.1, 1.0], 0, 0.1), [1, 0])
    np.testing.assert_array_equal(found.scores("some", [0.1, 1.0], 0, 0.2), [1, 1])


def test_performance_profile_by_hand():
    """Three starts: one won by each of two, one solved by nobody; one ran once."""
    costs = pd.DataFrame([[10, 30, np.inf], [40, 10, np.inf], [20, np.nan, np.nan]])
    found = tables.performance_profile(costs, (1, 3, 4, np.inf))
    expected = [[1, 2, 2, 2], [1, 1, 2, 2], [0, 3, 3, 3]]
    np.testing.assert_allclose(found, 100 / 3 * np.array(expected))


def test_every_problem_has_a_scalar_loss_in_its_dtype(x64):
    """Parameters and loss, without a silent promotion."""
    collected = [models.encoder(), *(p for p, _ in baselines.problems(None))]
    assert len({problem.name for problem in collected}) == len(collected) >= 15
    for problem in collected:
        params = jax.eval_shape(problem.init, jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {problem.dtype}
        value = jax.eval_shape(problem.loss, params, problem.data.train)
        assert (value.shape, value.dtype) == ((), problem.dtype)
