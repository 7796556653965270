"""What the study of mini-batches rests on: data, rivals, training loop, scores."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rprop

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.minibatch import (  # noqa: E402
    inside,
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
    curves = train.Curves(test, validation, test)
    assert train.at_best(curves).test_error.item() == 7


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
            step, before = map(float, state[-2:])
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


def test_ablation_starts_from_what_competes():
    """Its default, and the chain with another variant's name, walk as what ships."""
    _, (first, *_) = methods.ablations()
    grads = np.random.default_rng(2).normal(0.3, 1, (60, 20)).astype(np.float32)

    def walk(optimizer):
        setting = {name: jnp.float32(x) for name, x in optimizer.settings[0].items()}
        tx = optimizer.build(setting, 60)

        def step(carry, grad):
            params, state = carry
            updates, state = tx.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        start = jnp.linspace(-1, 1, 20)
        return jax.lax.scan(step, (start, tx.init(start)), grads)[1]

    ours = methods.OPTIMIZERS[0]
    assert ours.name == methods.OURS
    expected = walk(ours)
    assert np.any(np.asarray(expected[-1]) != np.linspace(-1, 1, 20))
    for optimizer in (first, methods.of_variant("irprop-"), methods.OPTIMIZERS[1]):
        np.testing.assert_allclose(walk(optimizer), expected, rtol=1e-5)
    assert np.any(walk(methods.of_variant("rprop-")) != expected)


def test_inside_counts_what_the_test_resolves(problem):
    """Where a sign is resolved, the rule sees it; no count is beyond its limits."""
    tx = optax_rprop.minibatch_rprop()
    params = {"a": jnp.ones(2), "b": jnp.full(1, 2.0)}
    state = tx.init(params)
    grads = {"a": jnp.array([1.0, -1.0]), "b": jnp.zeros(1)}
    for _ in range(2):
        assert not np.any(inside.resolved_signs(state[0]))
        _, state = tx.update(grads, state, params)
    np.testing.assert_array_equal(inside.resolved_signs(state[0]), [1, -1, 0])
    rows = pd.DataFrame(inside.look_inside(problem, 20, 2 * inside.CHECKPOINTS, 2))
    assert len(rows) == 2 * inside.CHECKPOINTS
    assert (rows["resolved_right"] <= rows["resolved"]).all()
    assert rows[["raw_agreement", "resolved_fraction"]].stack().between(0, 1).all()
    assert rows["resolved"].sum() > 0


def test_sign_decisions_are_rare_on_noise_and_right_on_signals(monkeypatch):
    """Noise is decided either way, after long; of a strong signal, nothing is false."""
    monkeypatch.setattr(inside, "SIGN_TESTS", ((1.2, 0.95),))
    rows = pd.DataFrame(inside.sign_decisions(400)).set_index("mean")
    assert rows.loc[0.0, "false"] == pytest.approx(0.5, abs=0.05)
    assert rows.loc[0.0, "wait"] == pytest.approx(27, rel=0.1)
    assert rows.loc[2.0, "false"] < 0.01
    assert rows.loc[2.0, "wait"] < rows.loc[0.0, "wait"] / 4


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
    some = [c for c in tuning_free.COMPETITORS if c.name in ("MoMo", methods.OURS)]
    steps = 2 * train.CHECKPOINTS
    rows = tuning_free.compare(
        problem, 32, steps, optimizers=[*some, tuning_free.TUNED_ADAM]
    )[""]
    assert [row["evaluated"] for row in rows] == ["iterate"] * 2 + ["average"] * 2
    fixed = [
        methods.Optimizer(name, methods.scheduled(optax.adam), [setting])
        for name, setting in tuning_free.RATES.items()
    ]
    alone = tuning_free.compare(problem, 32, steps, optimizers=fixed)[""]
    for row, found in zip(rows, alone, strict=True):
        for name in tuning_free.RATES:
            assert row[name] == pytest.approx(found[name], rel=1e-3)


def test_jackknife_of_a_ratio():
    """The ratio of geometric means, and an error that vanishes if runs agree."""
    keys = [("unseen", p, "32", run) for p in "ab" for run in range(3)]
    index = pd.MultiIndex.from_tuples(keys, names=[*tidy.KEYS, "run"])
    rows = pd.DataFrame({"new": 2.0, "old": [1, 1, 1, 4, 4, 4]}, index)
    assert tuning_free_report.jackknife(rows, "new", "old") == (pytest.approx(1.0), 0)
    rows["new"] = [1.0, 2, 3, 2, 2, 2]
    ratio, error = tuning_free_report.jackknife(rows, "new", "old")
    assert ratio == pytest.approx(1.0)
    # Leaving a run out of the first: means of 2.5, 2 and 1.5.
    logs = 0.5 * np.log([2.5, 2, 1.5])
    assert error == pytest.approx(np.sqrt(2 / 3 * 3 * logs.var()))
