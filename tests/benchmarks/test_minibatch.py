"""What the studies on mini-batches rest on: data, training loop, choices, verdicts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.minibatch import (  # noqa: E402
    ablations,
    methods,
    problems,
    report,
    tasks,
    train,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
SGD = methods.Optimizer(
    "SGD",
    lambda setting, steps: optax.sgd(setting["rate"]),
    [{"rate": 0.01}, {"rate": 0.03}],
)


@pytest.fixture(scope="module")
def problem():
    """A small regression, split for two runs."""
    inputs = np.random.default_rng(0).normal(3, 2, (200, 4))
    rows = {"inputs": inputs, "targets": inputs[:, :1]}
    return problems.multilayer("small", rows, runs=2, hidden=(16,))


def test_batches_are_epochs_without_repetition():
    """Each epoch uses every row at most once, in a different order."""
    order = train.batches(rows=10, size=3, steps=8, runs=2)
    assert order.shape == (2, 8, 3)
    for run in range(2):
        for epoch in (order[run, :3], order[run, 3:6]):
            assert len(np.unique(epoch)) == 9
    assert not np.array_equal(order[0, :3], order[0, 3:6])
    assert not np.array_equal(order[0], order[1])
    assert np.unique(train.batches(10, 10, 1, 1)).size == 10


def test_vectorized_training_is_plain_training(problem):
    """Each setting and run as in a plain loop, and its average as by its formula."""
    steps, size, run = 2 * train.CHECKPOINTS, 20, 1
    curves, averages = train.train(problem, SGD, size, steps)
    assert curves.test_error.shape == (2, 2, train.CHECKPOINTS)
    order = train.batches(120, size, steps, 2)[run]
    mine = jax.tree.map(lambda leaf: leaf[run], problem.data)

    @jax.jit
    def step(params, average, batch, rate, t):
        grads = jax.grad(problem.loss)(params, batch)
        params = jax.tree.map(lambda p, g: p - rate * g, params, grads)
        share = 9 / (t + 8)
        return params, jax.tree.map(lambda a, p: a + share * (p - a), average, params)

    for i, setting in enumerate(SGD.settings):
        params = average = problem.init(jax.random.key(run))
        for t, rows in enumerate(order, 1):
            batch = {name: part[rows] for name, part in mine.train.items()}
            params, average = step(params, average, batch, setting["rate"], t)
        for found, at in ((curves, params), (averages, average)):
            error = float(problem.error(at, mine.test))
            assert found.test_error[i, run, -1] == pytest.approx(error, rel=1e-3)


def test_score_is_that_of_the_best_validation_checkpoint():
    """Test errors play no part in the choice; of equal checkpoints, the first."""
    validation = np.array([[[3.0, 1.0, 1.0, 2.0]]])
    test = np.array([[[0.0, 7.0, 5.0, 4.0]]])
    curves = train.Curves(test, validation, test)
    assert train.at_best(curves).test_error.item() == 7


def test_setting_is_that_of_the_best_validation_error(problem, monkeypatch):
    """The loss decides between equal ones; test errors play no part."""
    shape = (3, 2, 1)  # Settings, runs, checkpoints.

    def fixed(*numbers):
        return np.broadcast_to(np.reshape(numbers, (3, 1, 1)), shape)

    curves = train.Curves(fixed(0, 9, 8), fixed(6, 5, 5), fixed(0.25, 0.5, 0.75))
    monkeypatch.setattr(tasks, "train", lambda *_: (curves, curves))
    optimizer = SGD._replace(settings=[{"rate": rate} for rate in (1, 2, 3)])
    found = tasks.measure(problem, 20, 16, optimizers=[optimizer])
    assert [row["SGD"] for row in found[""]] == [0.75] * 4
    assert [row["test_error"] for row in found["settings"]] == [0.25, 0.5, 0.75]


def test_verdict_is_a_paired_t_test():
    """Worse, better, or neither."""
    assert report.verdict(np.array([1.0, 1.1, 0.9, 1.0])) == 1
    assert report.verdict(np.array([-1.0, -1.1, -0.9, -1.0])) == -1
    # t = 3.0, below the 3.18 of three degrees of freedom.
    assert report.verdict(np.array([0.0, 1.0, 1.0, 1.0])) == 0


def test_ratio_is_a_geometric_mean_over_tasks():
    """Of the means over runs; unknown if one task is missing."""
    keys = [("unseen", p, "32", run) for p in "ab" for run in range(2)]
    index = pd.MultiIndex.from_tuples(keys, names=[*report.KEYS, "run"])
    columns = {methods.ADAM: [1.0, 3, 1, 1], "new": [4.0, 4, 1, 3], "partly": np.nan}
    rows = pd.DataFrame(columns, index)
    rows.loc["unseen", "partly"] = [1.0, 1, np.nan, np.nan]
    found = report.ratios(rows, rows)
    assert found["new"] == pytest.approx(2)
    assert np.isnan(found["partly"])


def test_grids_are_what_the_builders_read():
    """Every optimizer of the study and of the ablation builds and steps."""
    changes = ablations.ablations()
    assert len({optimizer.name for optimizer in changes}) == len(changes) > 20
    for optimizer in (*methods.OPTIMIZERS, *changes):
        setting = {
            name: jnp.float32(value) for name, value in optimizer.settings[0].items()
        }
        tx = optax.with_extra_args_support(optimizer.build(setting, 10))
        params = jnp.ones(3)
        jax.eval_shape(
            lambda p, tx=tx: tx.update(p, tx.init(p), p, value=jnp.ones(())), params
        )
