"""What the study of mini-batches rests on: data, rivals, training loop, scores."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("matplotlib", reason="the study draws its results")
pytest.importorskip("sklearn", reason="the data come with scikit-learn")
pytest.importorskip("tqdm", reason="the study shows its progress")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import minibatch  # noqa: E402
import minibatch_methods  # noqa: E402
import minibatch_problems  # noqa: E402

import optax_rprop  # noqa: E402

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def problem():
    """A small regression whose rows can be told apart."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(3, 2, (200, 4))
    return minibatch_problems.multilayer("small", inputs, inputs[:, :1].astype("f"))


def test_splits_are_disjoint_and_standardized(problem):
    """60 : 20 : 20, another one for every seed, scaled by the training rows."""
    data = minibatch_problems.split(problem, seeds=2, most_held_out=30)
    assert [part[0].shape[1] for part in data] == [120, 30, 30]
    # The target is an input, so that it names the row.
    for seed in range(2):
        rows = np.concatenate([part[1][seed, :, 0] for part in data])
        assert len(np.unique(rows)) == 180
    assert not np.array_equal(data.test[1][0], data.test[1][1])
    np.testing.assert_allclose(data.train[0].mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(data.train[0].std(axis=1), 1, atol=1e-5)


def test_batches_are_epochs_without_repetition():
    """Each epoch shows every row at most once, in an order of its own."""
    order = minibatch.batches(rows=10, size=3, steps=8, seeds=2)
    assert order.shape == (8, 2, 3)
    for seed in range(2):
        for epoch in (order[:3, seed], order[3:6, seed]):
            assert len(np.unique(epoch)) == 9
    assert not np.array_equal(order[:3, 0], order[3:6, 0])
    assert not np.array_equal(order[:, 0], order[:, 1])
    assert np.unique(minibatch.batches(10, 10, 1, 1)).size == 10


def test_vectorized_training_is_plain_training(problem):
    """Several methods, settings and seeds at once: each as in a plain loop."""
    data = minibatch_problems.split(problem, seeds=2)
    methods = [
        minibatch_methods.Method(
            "SGD",
            lambda setting, steps: optax.sgd(setting["rate"]),
            [{"rate": 0.01}, {"rate": 0.03}],
        ),
        minibatch_methods.Method("Adam", lambda _, steps: optax.adam(0.02), [{}]),
    ]
    steps, size = minibatch.CHECKPOINTS, 20
    curves = minibatch.train(problem, data, methods, size, steps)
    assert curves.test_error.shape == (minibatch.CHECKPOINTS, 2, 3)
    order = minibatch.batches(120, size, steps, 2)
    gradient = jax.grad(
        lambda params, *batch: problem.loss_and_error(params, *batch)[0]
    )
    for column, tx in enumerate((optax.sgd(0.01), optax.sgd(0.03), optax.adam(0.02))):
        seed = 1
        params = problem.init(jax.random.key(seed))
        state = tx.init(params)

        @jax.jit
        def train_step(params, state, *batch, tx=tx):
            updates, state = tx.update(gradient(params, *batch), state, params)
            return optax.apply_updates(params, updates), state

        for step in range(steps):
            batch = (part[seed][order[step, seed]] for part in data.train)
            params, state = train_step(params, state, *batch)
        _, error = problem.loss_and_error(params, *(part[seed] for part in data.test))
        last = curves.test_error[-1, seed, column]
        assert last == pytest.approx(float(error), rel=1e-3)


def test_score_is_that_of_the_best_validation_checkpoint():
    """Test errors play no part in the choice; of equal checkpoints, the first."""
    validation = np.array([[[3.0]], [[1.0]], [[1.0]], [[2.0]]])
    test = np.array([[[0.0]], [[7.0]], [[5.0]], [[4.0]]])
    scores = minibatch.score(minibatch.Curves(test, test, validation, test))
    assert scores.test_error.item() == 7
    assert scores.last_test_error.item() == 4


def test_verdict_is_a_paired_t_test():
    """Worse, better, or undecided."""
    assert minibatch.verdict(np.array([1.0, 1.1, 0.9, 1.0])) == 1
    assert minibatch.verdict(np.array([-1.0, -1.1, -0.9, -1.0])) == -1
    # t = 3.0, below the 3.18 of three degrees of freedom.
    assert minibatch.verdict(np.array([0.0, 1.0, 1.0, 1.0])) == 0


def test_probabilistic_rprop_follows_its_description():
    """One coordinate against plain arithmetic, with the soft step."""
    grads = np.random.default_rng(1).normal(0.5, 1, 40)
    tx = minibatch_methods.probabilistic_rprop(0.05)
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
    """Every method of the study and of the ablation builds and steps."""
    _, ablations = minibatch_methods.ablations()
    for method in (*minibatch_methods.METHODS, *ablations):
        setting = {name: jnp.float32(value) for name, value in method.grid[0].items()}
        tx = method.build(setting, 10)
        params = jnp.ones(3)
        jax.eval_shape(tx.update, params, tx.init(params), params)
    names, _ = minibatch_methods.ablations()
    assert len(set(names)) == len(names) == sum(len(m.grid) for m in ablations)


def test_ablation_starts_from_our_method():
    """Its default walks as what competes does, and as the docstring's advice."""
    _, (first, *_) = minibatch_methods.ablations()
    grads = np.random.default_rng(2).normal(0.3, 1, (60, 20)).astype(np.float32)

    def play(tx):
        def step(state, grad):
            updates, state = tx.update(grad, state, jnp.zeros(20))
            return state, updates

        return jax.lax.scan(step, tx.init(jnp.zeros(20)), grads)[1]

    rule = optax_rprop.rprop(0.05, eta_minus=0.75, skip_zero_grads=True)
    expected = play(optax.chain(optax_rprop.resolve_signs(), rule))
    assert np.any(np.asarray(expected) != 0)
    np.testing.assert_array_equal(play(first.build(first.grid[0], 60)), expected)
    competes = minibatch_methods.METHODS[0]
    np.testing.assert_array_equal(play(competes.build({}, 60)), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "1"], "--seeds: must be at least 2, got 1"),
        (["--data-dir", "nowhere"], "--data-dir: no thyroid1.dt in nowhere"),
    ],
)
def test_refuses_bad_options(options, message, capsys):
    """A wrong option ends in a usage message that names it."""
    with pytest.raises(SystemExit) as stopped:
        minibatch.parse_options(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
