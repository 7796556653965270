"""What the evidence rests on: the sign argument, the counts, the scores, the data."""

import argparse
import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optax_rprop

pytest.importorskip("matplotlib", reason="the scripts draw their results")
pytest.importorskip("sklearn", reason="the problems come with scikit-learn")
pytest.importorskip("tqdm", reason="the scripts show their progress")
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import batch_size  # noqa: E402
import contenders  # noqa: E402
import insensitivity  # noqa: E402
import problems  # noqa: E402
import rivals  # noqa: E402

VARIANTS = [contender.name for contender in contenders.VARIANTS]
THRESHOLDS = [("rprop-", 0.882), ("irprop-", 0.821), ("rprop+", 0.821)]


@functools.partial(jax.jit, static_argnums=(0, 2))
def simulated_growth(variant, q, factors, steps=500, size=2000):
    """The mean log growth per step of step sizes fed with signs right with q."""
    optimizer = optax_rprop.scale_by_rprop(1.0, *factors, 0.0, 9.0, variant=variant)

    def step(carry, key):
        state, logs = carry
        grads = jnp.where(jax.random.bernoulli(key, q, (size,)), 1.0, -1.0)
        _, state = optimizer.update(grads, state, value=jnp.zeros(()))
        # Summed up and set back at every step, so that no bound is ever met.
        logs = logs + jnp.log(state.step_sizes)
        return (state._replace(step_sizes=jnp.ones(size)), logs), None

    start = (optimizer.init(jnp.zeros(size)), jnp.zeros(size))
    keys = jax.random.split(jax.random.key(0), steps)
    (_, logs), _ = jax.lax.scan(step, start, keys)
    return logs.mean() / steps


@pytest.mark.parametrize(("variant", "expected"), THRESHOLDS)
def test_thresholds_of_the_default_factors(variant, expected):
    """The two numbers that the documentation states."""
    assert round(batch_size.threshold(0.5, 1.2, variant), 3) == expected


@pytest.mark.parametrize("factors", [(0.5, 1.2), (0.7, 1.3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_log_growth_is_what_independent_signs_give(variant, factors):
    """The formula against the optimizer itself, below, at and above the threshold."""
    critical = batch_size.threshold(*factors, variant)
    for q in (0.5, critical, 0.97):
        expected = float(batch_size.log_growth(np.array(q), *factors, variant))
        # A million signs: the standard error is below 0.0005.
        assert float(simulated_growth(variant, q, factors)) == pytest.approx(
            expected, abs=0.002
        )
    assert batch_size.log_growth(
        np.array(critical), *factors, variant
    ) == pytest.approx(0.0, abs=1e-12)


def test_step_sizes_grow_on_noise_with_balanced_factors():
    """With eta_minus at 1 / eta_plus or above, no sign need be right."""
    for variant in VARIANTS:
        assert batch_size.threshold(1 / 1.2, 1.2, variant) == 0.5
        assert batch_size.log_growth(np.array(0.6), 0.9, 1.2, variant) > 0


def test_predicted_signs_are_measured():
    """On normally distributed gradients the prediction holds, at every batch size."""
    rows, size = 256, 400
    rng = np.random.default_rng(0)
    means = np.linspace(-0.5, 0.5, size)
    grads = jnp.asarray(rng.normal(means, 1.0, (rows, size)), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 300)
    for batch in (8, 64, 256):
        predicted = batch_size.predict_signs(grads, batch)
        measured = batch_size.measure_signs(grads, jnp.asarray(batch), keys)
        assert float(measured.right) == pytest.approx(predicted.right, abs=0.01)
        assert float(measured.agree) == pytest.approx(predicted.agree, abs=0.01)
        for variant in VARIANTS:
            assert float(measured.log_growth[variant]) == pytest.approx(
                predicted.log_growth[variant], abs=0.01
            )
            # Near the threshold, 300 steps do not decide.
            assert float(measured.grow[variant]) == pytest.approx(
                predicted.grow[variant], abs=0.05
            )


def counting(problem):
    """The same problem, and a list that grows by each loss that is computed."""
    seen = []

    def loss(params, data):
        value = problem.loss(params, data)
        jax.debug.callback(lambda value: seen.append(float(value)), value)
        return value

    return dataclasses.replace(problem, loss=loss), seen


@pytest.mark.parametrize("name", ["irprop+", "Adam", "L-BFGS"])
def test_evaluations_are_counted_as_they_happen(x64, name):
    """What a trace says is the number of calls that the loss received."""
    (contender,) = (c for c in contenders.CONTENDERS if c.name == name)
    problem, seen = counting(problems.rosenbrock(4))
    # Optax's own optimizers promote dtypes where x64 is enabled.
    with jax.numpy_dtype_promotion("standard"):
        runner = contenders.Runner(problem, contender, budget=60)
    jax.effects_barrier()
    seen.clear()
    trace = runner(rate=0.01, seed=0).trace
    jax.effects_barrier()
    assert len(seen) == trace.evaluations[-1] >= 60
    assert seen[0] == trace.losses[0]
    np.testing.assert_array_equal(np.isin(trace.losses, seen), True)
    if contender.line_search:
        assert np.diff(trace.evaluations).max() > 1
    else:
        np.testing.assert_array_equal(trace.evaluations, 1 + np.arange(60))
        np.testing.assert_array_equal(trace.losses, seen)


@pytest.mark.parametrize("contender", contenders.CONTENDERS, ids=lambda c: c.name)
def test_every_contender_descends(x64, contender):
    """Traced only: those that differ in kind run above."""
    problem = problems.rosenbrock(4)
    run = contenders.descend(problem, contender, budget=5)
    with jax.numpy_dtype_promotion("standard"):
        trace = jax.eval_shape(
            run, jnp.array(0.01), problem.start(0), 0.0, {"train": problem.train}
        )
    assert trace.losses.shape == trace.evaluations.shape == (5,)


def test_runs_stop_at_the_target(x64):
    """The first step at the target ends the run, and `until` finds it."""
    runner = contenders.Runner(
        problems.quadratic(rotated=False, size=3, condition=10.0),
        contenders.VARIANTS[0],
        budget=200,
    )
    whole = runner(rate=0.1, seed=1)
    target = float(whole.trace.losses[20])
    first = int(np.flatnonzero(whole.trace.losses <= target)[0])
    part = runner(rate=0.1, seed=1, target=target)
    np.testing.assert_array_equal(part.trace.losses, whole.trace.losses[: first + 1])
    evaluations, seconds = whole.until(target)
    assert evaluations == first + 1
    assert seconds == pytest.approx(whole.seconds * (first + 1) / 200)
    assert whole.until(-1.0) == (np.inf, np.inf)


def test_performance_profile_by_hand():
    """Three starts: one won by each contender, one solved by nobody."""
    costs = np.array([[10.0, 30.0, np.inf], [40.0, 10.0, np.inf]])
    fractions = rivals.performance_profile(costs, np.array([1.0, 3.0, 4.0, np.inf]))
    expected = np.array([[1, 2, 2, 2], [1, 1, 2, 2]]) / 3
    np.testing.assert_allclose(fractions, expected)


def test_labels_keep_their_order_and_distance():
    """Labels beside the lines neither overlap nor leave the picture."""
    heights = np.array([100.0, 100.0, 97.0, 0.0, 3.0])
    placed = rivals.spread_out(heights, gap=5.0)
    ordered = placed[np.argsort(heights, kind="stable")]
    assert np.diff(ordered).min() >= 5.0
    assert placed.max() <= 100.0


def test_every_problem_has_a_scalar_loss_in_its_dtype(x64):
    """Parameters, loss and held-out error, without a silent promotion."""
    options = argparse.Namespace(quick=False, data_dir=None, data_sets=["none"])
    collected = [problem for problem, _ in rivals.collection(options)]
    assert len({problem.name for problem in collected}) == len(collected) >= 15
    for problem in collected:
        params = jax.eval_shape(problem.init, jax.random.key(0))
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {problem.dtype}
        functions = [(problem.loss, problem.train)]
        if problem.error is not None:
            functions += [
                (problem.loss, problem.validation),
                (problem.error, problem.test),
            ]
        for function, data in functions:
            value = jax.eval_shape(function, params, data)
            assert (value.shape, value.dtype) == ((), problem.dtype)


@pytest.mark.parametrize("kind", ["classes", "numbers", "quadratic"])
def test_torch_computes_the_same_loss(x64, kind, proben1):
    """PyTorch's Rprop is timed on the same function."""
    torch = pytest.importorskip("torch", reason="compares with the live PyTorch")
    problem = {
        "classes": lambda: problems.digits(64),
        "numbers": lambda: problems.proben1(proben1(classes=False)),
        "quadratic": lambda: problems.quadratic(rotated=True),
    }[kind]()
    task = insensitivity.Task(problem, target=-1.0, budget=1)
    ours = float(problem.loss(problem.start(3), problem.train))
    exactly = insensitivity.torch_measure(torch, task._replace(target=1.0001 * ours))
    assert exactly(0.1, 3)[0] == 1
    below = insensitivity.torch_measure(torch, task._replace(target=0.9999 * ours))
    assert below(0.1, 3)[0] == np.inf


@pytest.fixture
def proben1(tmp_path):
    """Writes a small data set in Proben1's format and returns its path."""

    def write(*, classes):
        rng = np.random.default_rng(0)
        inputs = rng.random((40, 3)).round(6)
        targets = (
            np.eye(2, dtype=int)[(inputs.sum(axis=1) > 1.5).astype(int)]
            if classes
            else (inputs @ [[0.2], [0.5], [0.3]]).round(6)
        )
        header = {
            "bool_in": 0,
            "real_in": 3,
            "bool_out": 2 if classes else 0,
            "real_out": 0 if classes else 1,
            "training_examples": 20,
            "validation_examples": 10,
            "test_examples": 10,
        }
        lines = [f"{key}={number}" for key, number in header.items()]
        lines += [
            " ".join(map(str, (*x, *t)))
            for x, t in zip(inputs.tolist(), targets.tolist(), strict=True)
        ]
        path = tmp_path / "building1.dt"
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def test_proben1_files_are_read(proben1):
    """Parts in their order; classes become numbers, targets stay as they are."""
    parts, classes = problems.read_proben1(proben1(classes=True))
    assert classes
    assert [inputs.shape for inputs, _ in parts] == [(20, 3), (10, 3), (10, 3)]
    for inputs, targets in parts:
        np.testing.assert_array_equal(targets, inputs.sum(axis=1) > 1.5)
    parts, classes = problems.read_proben1(proben1(classes=False))
    assert not classes
    for inputs, targets in parts:
        np.testing.assert_allclose(targets, inputs @ [[0.2], [0.5], [0.3]], atol=1e-6)


def test_a_missing_proben1_file_is_named(tmp_path, capsys):
    """What is missing, and where it is to be had."""
    with pytest.raises(SystemExit, match=r"must hold thyroid1\.dt of Proben1"):
        problems.find_proben1(tmp_path, "thyroid1")
    assert problems.find_proben1(None, "thyroid1") is None
    assert "no --data-dir" in capsys.readouterr().out


def test_insensitivity_takes_a_data_set(proben1):
    """A Proben1 set joins the problems, and takes the digits' place in a quick run."""
    options = argparse.Namespace(
        quick=False,
        data_dir=proben1(classes=False).parent,
        data_set="building1",
        data_set_target=0.002,
    )
    names = [task.problem.name for task in insensitivity.tasks(options)]
    assert names == [
        "digits",
        "building1",
        "quadratic, axis-parallel",
        "quadratic, rotated",
    ]
    options.quick = True
    (task,) = insensitivity.tasks(options)
    assert (task.problem.name, task.target) == ("building1", 0.002)
