"""The encoder benchmark, on tiny encoders, against plain NumPy."""

import checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.classics import encoders, report  # noqa: E402


@pytest.mark.parametrize(
    ("outputs", "met"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], True),
        ([[0.61, 0.39], [0.39, 0.61]], True),
        ([[0.59, 0.0], [0.0, 1.0]], False),
        ([[1.0, 0.41], [0.0, 1.0]], False),
        ([[1.0, 0.0], [1.0, 0.0]], False),
        ([[np.nan, 0.0], [0.0, 1.0]], False),
    ],
)
def test_criterion(outputs, met):
    """On in the upper 40 %, off in the lower 40 %, for every output and pattern."""
    assert encoders.meets_criterion(jnp.array(outputs), jnp.eye(2)) == met


def slow_learn(key, size, bound, variant, max_epochs):
    """A size-2-size encoder in NumPy, gradient by hand, Rprop in plain Python."""

    def logistic(x):
        return 1 / (1 + np.exp(-x))

    network = encoders.Network((size, 2, size))
    count = network.zeros.size
    weights = np.array(jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0))
    # Where each bias and matrix lie in the vector of all weights.
    (bias_1, matrix_1), (bias_2, matrix_2) = (
        (np.asarray(layer["bias"], int), np.asarray(layer["weights"], int))
        for layer in network.layers(jnp.arange(float(count)))
    )
    textbook = reference.Rprop(count, variant, min(0.1, bound), max_step_size=bound)
    patterns = np.eye(size)
    epoch = 0
    while True:
        hidden = logistic(patterns @ weights[matrix_1] + weights[bias_1])
        outputs = logistic(hidden @ weights[matrix_2] + weights[bias_2])
        slope_2 = 2 * (outputs - patterns) * outputs * (1 - outputs)
        slope_1 = slope_2 @ weights[matrix_2].T * hidden * (1 - hidden)
        grad = np.zeros(count)
        grad[bias_1], grad[matrix_1] = slope_1.sum(axis=0), patterns.T @ slope_1
        grad[bias_2], grad[matrix_2] = slope_2.sum(axis=0), hidden.T @ slope_2
        learned = all(
            output >= 0.6 if target else output <= 0.4
            for output, target in zip(outputs.flat, patterns.flat, strict=True)
        )
        if learned or epoch == max_epochs:
            return learned, epoch, np.abs(weights).max()
        loss = np.sum((outputs - patterns) ** 2)
        weights = weights + textbook.update(grad.tolist(), loss)
        epoch += 1


@pytest.mark.parametrize("variant", checks.VARIANTS)
def test_runs_equal_plain_numpy(x64, variant):
    """Success, epochs and weights of every start and bound, some of which fail."""
    keys = jax.random.split(jax.random.key(0), 6)
    bounds, max_epochs = (2.0, 0.05), 30
    outcome = encoders.learn_all(
        keys, jnp.array(bounds), max_epochs, sizes=(4, 2, 4), variant=variant
    )
    expected = [
        [slow_learn(key, 4, bound, variant, max_epochs) for key in keys]
        for bound in bounds
    ]
    learned, epochs, largest = np.moveaxis(np.array(expected, float), -1, 0)
    assert 0 < learned.sum() < learned.size
    np.testing.assert_array_equal(outcome.learned, learned)
    np.testing.assert_array_equal(outcome.epochs, epochs)
    np.testing.assert_allclose(outcome.largest_weight, largest, rtol=1e-9)
    np.testing.assert_array_equal(outcome.unmoved, 0)


def test_report_counts_successes_and_failures_apart(tmp_path):
    """Epochs of those that learned, weights and gradients of those that did not."""
    runs = {
        "problem": "4-2-4",
        "optimizer": "irprop-",
        "setting": 50.0,
        "run": range(4),
        "learned": [True, False, True, False],
        "epochs": [10, 99, 20, 99],
        "largest_weight": [1.0, 50.0, 1.0, 70.0],
        "unmoved": [0.0, 0.2, 0.0, 0.4],
    }
    pd.DataFrame(runs).to_csv(tmp_path / "encoders.csv", index=False)
    *_, row = report.encoders(tmp_path).splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == ["4-2-4, bound 50, irprop-", "2 of 4"]
    assert cells[3:] == ["15 (12.5 to 17.5)", "60", "30%"]
    low, high = (int(part.strip("%")) for part in cells[2].split(" to "))
    assert 10 < low < 50 < high < 90
