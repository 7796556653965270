"""What the study of mini-batches rests on: data, rivals, training loop, scores."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.minibatch import (  # noqa: E402
    methods,
    problems,
    tidy,
    train,
    tuning_free,
    tuning_free_report,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def problem():
    """A small regression, split for two runs."""
    inputs = np.random.default_rng(0).normal(3, 2, (200, 4))
    rows = {"inputs": inputs, "targets": inputs[:, :1]}
    return problems.multilayer("small", rows, runs=2, hidden=(16,))


def test_every_run_has_a_split_of_its_own(problem):
    """60 : 20 : 20, each scaled by its own training rows, classes and images apart."""
    assert [part["inputs"].shape for part in problem.data] == [
        (2, 120, 4),
        (2, 40, 4),
        (2, 40, 4),
    ]
    inputs = np.asarray(problem.data.train["inputs"])
    np.testing.assert_allclose(inputs.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=1), 1, atol=1e-5)
    targets = problem.data.test["targets"]
    assert not np.array_equal(targets[0], targets[1])
    images = {"inputs": np.ones((10, 2, 2)), "targets": np.arange(10)}
    parts = problems.splits(images, runs=1, most_held_out=1)
    assert [len(part["targets"][0]) for part in parts] == [6, 1, 1]
    np.testing.assert_array_equal(parts.train["inputs"], 1)


def test_batches_are_epochs_without_repetition():
    """Each epoch shows every row at most once, in an order of its own."""
    order = train.batches(rows=10, size=3, steps=8, runs=2)
    assert order.shape == (8, 2, 3)
    for seed in range(2):
        for epoch in (order[:3, seed], order[3:6, seed]):
            assert len(np.unique(epoch)) == 9
    assert not np.array_equal(order[:3, 0], order[3:6, 0])
    assert not np.array_equal(order[:, 0], order[:, 1])
    assert np.unique(train.batches(10, 10, 1, 1)).size == 10


def test_vectorized_training_is_plain_training(problem):
    """Several optimizers, settings and runs at once: each as in a plain loop."""
    optimizers = [
        methods.Optimizer(
            "SGD",
            lambda setting, steps: optax.sgd(setting["rate"]),
            [{"rate": 0.01}, {"rate": 0.03}],
        ),
        methods.Optimizer("Adam", lambda _, steps: optax.adam(0.02), [{}]),
    ]
    steps, size, run = train.CHECKPOINTS, 20, 1
    (curves,) = train.train(problem, optimizers, size, steps)
    assert curves.test_error.shape == (train.CHECKPOINTS, 2, 3)
    order = train.batches(120, size, steps, 2)
    mine = jax.tree.map(lambda leaf: leaf[run], problem.data)
    for column, tx in enumerate((optax.sgd(0.01), optax.sgd(0.03), optax.adam(0.02))):
        params = problem.init(jax.random.key(run))
        state = tx.init(params)

        @jax.jit
        def train_step(params, state, batch, tx=tx):
            grads = jax.grad(problem.loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        for step in range(steps):
            batch = {name: part[order[step, run]] for name, part in mine.train.items()}
            params, state = train_step(params, state, batch)
        last = curves.test_error[-1, run, column]
        assert last == pytest.approx(float(problem.error(params, mine.test)), rel=1e-3)


def test_score_is_that_of_the_best_validation_checkpoint():
    """Test errors play no part in the choice; of equal checkpoints, the first."""
    validation = np.array([[[3.0]], [[1.0]], [[1.0]], [[2.0]]])
    test = np.array([[[0.0]], [[7.0]], [[5.0]], [[4.0]]])
    scores = train.score(train.Curves(test, validation, test, test))
    assert scores.test_error.item() == 7
    assert scores.last_test_error.item() == 4


def test_verdict_is_a_paired_t_test():
    """Worse, better, or undecided."""
    assert tidy.verdict(np.array([1.0, 1.1, 0.9, 1.0])) == 1
    assert tidy.verdict(np.array([-1.0, -1.1, -0.9, -1.0])) == -1
    # t = 3.0, below the 3.18 of three degrees of freedom.
    assert tidy.verdict(np.array([0.0, 1.0, 1.0, 1.0])) == 0


def test_probabilistic_rprop_follows_its_description():
    """One coordinate against plain arithmetic, with the soft step."""
    grads = np.random.default_rng(1).normal(0.5, 1, 40)
    tx = methods.probabilistic_rprop(0.05)
    state = tx.init(jnp.zeros(()))
    update = jax.jit(tx.update)

    def cdf(z):
        return 0.5 * (1 + math.erf(z / math.sqrt(2)))

    mean = square = 0.0
    before, step = 0.5, 0.01
    for number, grad in enumerate(grads, 1):
        updates, state = update(jnp.asarray(grad, "float32"), state)
        mean, square = 0.99 * mean + 0.01 * grad, 0.99 * square + 0.01 * grad**2
        correction = 1 - 0.99**number
        variance = max(square / correction - (mean / correction) ** 2, 0)
        if number < 3:
            # From one or two gradients, the variance is rounding.
            before, step = float(state.positive), float(state.step_sizes)
            continue
        positive = cdf(grad / math.sqrt(variance))
        change = positive * (1 - before) + before * (1 - positive)
        step = min(max(step * 1.2 ** (1 - 2 * change), 1e-9), 0.05)
        before = positive
        expected = -step * (2 * cdf(mean / correction / math.sqrt(variance)) - 1)
        assert float(updates) == pytest.approx(expected, rel=2e-3)


def test_grids_are_what_the_builders_read():
    """Every optimizer of the study and of the ablation builds and steps."""
    _, ablations = methods.ablations()
    for optimizer in (*methods.OPTIMIZERS, *ablations):
        setting = {
            name: jnp.float32(value) for name, value in optimizer.settings[0].items()
        }
        tx = optimizer.build(setting, 10)
        params = jnp.ones(3)
        jax.eval_shape(tx.update, params, tx.init(params), params)
    names, _ = methods.ablations()
    assert len(set(names)) == len(names) == sum(len(o.settings) for o in ablations)


def test_ablation_starts_from_the_first_test():
    """Its default walks as what competes does; and both by the published rule."""
    _, (first, *_) = methods.ablations()
    grads = np.random.default_rng(2).normal(0.3, 1, (60, 20)).astype(np.float32)

    def play(tx):
        def step(state, grad):
            updates, state = tx.update(grad, state, jnp.zeros(20))
            return state, updates

        return jax.lax.scan(step, tx.init(jnp.zeros(20)), grads)[1]

    expected = play(methods.OPTIMIZERS[0].build({}, 60))
    np.testing.assert_array_equal(play(first.build(first.settings[0], 60)), expected)
    sums, norms = np.zeros(20), np.zeros(20)
    emitted = play(methods.sign_test_and_rule()[0])
    for grad, found in zip(grads, emitted, strict=True):
        sums = 0.95 * sums + grad
        norms = np.sqrt((0.95 * norms) ** 2 + grad**2)
        resolved = np.abs(sums) >= 1.7 * norms
        np.testing.assert_allclose(found, np.where(resolved, sums, 0), rtol=1e-4)
        sums, norms = np.where(resolved, 0, sums), np.where(resolved, 0, norms)
    assert np.any(np.asarray(expected) != 0)


def test_averages_weigh_the_last_steps_most(problem):
    """The average is that of its formula, evaluated as the iterates are."""
    adam = methods.Optimizer("Adam", lambda _, steps: optax.adam(0.02))
    size, steps = 20, 2 * train.CHECKPOINTS
    curves, averages = train.train(problem, [adam], size, steps, averaged=True)
    order = train.batches(120, size, steps, 2)
    mine = jax.tree.map(lambda leaf: leaf[0], problem.data)
    params = problem.init(jax.random.key(0))
    tx = optax.adam(0.02)
    state, average = tx.init(params), params
    gradient = jax.jit(jax.grad(problem.loss))
    for t, rows in enumerate(order[:, 0], 1):
        batch = {name: part[rows] for name, part in mine.train.items()}
        updates, state = tx.update(gradient(params, batch), state)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda a, p, t=t: a + 9 / (t + 8) * (p - a), average, params
        )
    for found, at in ((curves, params), (averages, average)):
        error = float(problem.error(at, mine.test))
        assert found.test_error[-1, 0, 0] == pytest.approx(error, rel=1e-3)


def test_fixed_rates_are_rates_of_the_grid(problem):
    """What stands under a rate was trained at it; MoMo receives its losses."""
    some = [c for c in tuning_free.COMPETITORS if c.name in ("MoMo", tidy.OURS)]
    rows = tuning_free.run_part(
        problem, 32, [*some, tuning_free.TUNED_ADAM], quick=True
    )
    assert [row["evaluated"] for row in rows] == ["iterate"] * 2 + ["average"] * 2
    fixed = [
        methods.Optimizer(name, methods.scheduled(optax.adam), [setting])
        for name, setting in tuning_free.RATES.items()
    ]
    alone = tuning_free.run_part(problem, 32, fixed, quick=True)
    for row, found in zip(rows, alone, strict=True):
        for name in tuning_free.RATES:
            assert row[name] == pytest.approx(found[name], rel=1e-3)


def test_jackknife_of_a_ratio():
    """The ratio of geometric means, and an error that vanishes if runs agree."""
    keys = [("unseen", p, "32", run) for p in "ab" for run in range(3)]
    index = pd.MultiIndex.from_tuples(keys, names=[*tuning_free_report.KEYS, "run"])
    rows = pd.DataFrame({"new": 2.0, "old": [1, 1, 1, 4, 4, 4]}, index)
    assert tuning_free_report.jackknife(rows, "new", "old") == (pytest.approx(1.0), 0)
    rows["new"] = [1.0, 2, 3, 2, 2, 2]
    ratio, error = tuning_free_report.jackknife(rows, "new", "old")
    assert ratio == pytest.approx(1.0)
    # Leaving a run out of the first: means of 2.5, 2 and 1.5.
    logs = 0.5 * np.log([2.5, 2, 1.5])
    assert error == pytest.approx(np.sqrt(2 / 3 * 3 * logs.var()))
