"""The Proben1 benchmark, on small generated data sets, compared with plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common.data import Split  # noqa: E402
from benchmarks.proben1 import report, tables, training  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.once]
PROTOCOL = training.Protocol(max_weight=0.1, min_step=0.05, max_step=0.2, max_loss=5.0)


def slow_outputs(layers, example, shortcuts):
    """One example through the network, unit by unit, in plain Python."""
    outputs, first = [list(example)], 0 if shortcuts else -1
    for depth, layer in enumerate(layers):
        sources = [number for part in outputs[first:] for number in part]
        units = []
        for unit, bias in enumerate(layer["bias"]):
            total = float(bias)
            for number, weights in zip(sources, layer["weights"], strict=True):
                total += number * float(weights[unit])
            is_hidden = depth < len(layers) - 1
            units.append(total / (1 + abs(total)) if is_hidden else total)
        outputs.append(units)
    return outputs[-1]


@pytest.mark.parametrize(
    ("sizes", "shortcuts", "weights"),
    [
        ((9, 2), False, 9 * 2 + 2),
        ((9, 4, 2, 2), False, (9 * 4 + 4) + (4 * 2 + 2) + (2 * 2 + 2)),
        ((9, 4, 2, 2), True, (9 * 4 + 4) + (13 * 2 + 2) + (15 * 2 + 2)),
    ],
)
def test_network_and_error_measure(x64, sizes, shortcuts, weights):
    """The error is 100 / (N P) times the sum of squares; all biases count."""
    network = training.Network(sizes, shortcuts=shortcuts)
    assert network.zeros.shape == (weights,)
    rng = np.random.default_rng(0)
    vector = rng.normal(size=weights)
    inputs = rng.uniform(size=(6, sizes[0]))
    targets = rng.uniform(size=(6, sizes[-1]))

    layers = network.layers(jnp.asarray(vector))
    expected = np.array(
        [slow_outputs(layers, example, shortcuts) for example in inputs]
    )
    outputs = network.predict(jnp.asarray(vector), jnp.asarray(inputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    error = network.error(jnp.asarray(vector), {"inputs": inputs, "targets": targets})
    total = sum((o - t) ** 2 for o, t in zip(expected.flat, targets.flat, strict=True))
    assert float(error) == pytest.approx(100 * total / (sizes[-1] * 6))


def proben1_optimizer(variant):
    """Rprop with the report's settings, as far as `init` needs them."""
    return training.optax_rprop.rprop(min_step_size=0.0, variant=variant)


def slow_run(network, run, data, variant, protocol, max_epochs):
    """One run of a linear network in NumPy and plain Python: its figures and end."""
    weights = np.array(run.weights)
    textbook = reference.Rprop(len(weights), variant, min_step_size=0.0)
    for coordinate, step in zip(
        textbook.coordinates, np.asarray(run.opt_state[0].step_sizes), strict=True
    ):
        coordinate.step_size = float(step)
    # Where bias and matrix lie in the vector of all weights.
    (layer,) = network.layers(jnp.arange(float(len(weights))))
    bias_at = np.asarray(layer["bias"], int)
    matrix_at = np.asarray(layer["weights"], int)

    def predict(weights, inputs):
        return inputs @ weights[matrix_at] + weights[bias_at]

    def error(weights, rows):
        total = 0.0
        outputs, targets = predict(weights, rows["inputs"]), rows["targets"]
        for output, target in zip(outputs, targets, strict=True):
            total += sum((o - t) ** 2 for o, t in zip(output, target, strict=True))
        return 100 * total / targets.size

    train_errors, validation_errors, snapshots = [], [], []
    end = None
    while end is None:
        for _ in range(5):
            inputs, targets = data.train["inputs"], data.train["targets"]
            slope = 200 / targets.size * (predict(weights, inputs) - targets)
            grad = np.zeros(len(weights))
            grad[bias_at] = slope.sum(axis=0)
            grad[matrix_at] = inputs.T @ slope
            train_errors.append(error(weights, data.train))
            weights = weights + textbook.update(grad.tolist(), train_errors[-1])
        validation_errors.append(error(weights, data.validation))
        snapshots.append(weights)
        strip = train_errors[-5:]
        loss = 100 * (validation_errors[-1] / min(validation_errors) - 1)
        progress = 1000 * (sum(strip) / (5 * min(strip)) - 1)
        if loss > protocol.max_loss:
            end = "overfits"
        elif progress < 0.1:
            end = "stalls"
        elif len(train_errors) >= max_epochs:
            end = "is at the last epoch"
    best = int(np.argmin(validation_errors))
    chosen = predict(snapshots[best], data.test["inputs"]).argmax(axis=1)
    figures = {
        "train_error": min(train_errors),
        "validation_error": min(validation_errors),
        "test_error": error(snapshots[best], data.test),
        "test_misclassified_percent": 100
        * np.mean(chosen != data.test["targets"].argmax(axis=1)),
        "overfit_gl": loss,
        "total_epochs": len(train_errors),
        "relevant_epochs": 5 * (best + 1),
    }
    return figures, end


@pytest.mark.parametrize(
    ("variant", "max_epochs"),
    [("rprop-", 100), ("irprop+", 70)],
)
def test_runs_equal_plain_numpy(x64, variant, max_epochs, noisy_classes):
    """Every figure of every run of two of the variants, however it ends."""
    parts = noisy_classes((40, 16, 20), inputs=3, outputs=2, seed=1)
    data = Split(*({"inputs": x, "targets": t} for x, t in parts))
    keys = jax.random.split(jax.random.key(1), 7)
    actual = training.train_all(
        keys,
        data,
        PROTOCOL,
        max_epochs,
        sizes=(3, 2),
        shortcuts=False,
        variant=variant,
    )
    network = training.Network((3, 2), shortcuts=False)
    ends = set()
    for i, key in enumerate(keys):
        run = training.start(key, network, proben1_optimizer(variant), PROTOCOL)
        expected, end = slow_run(network, run, data, variant, PROTOCOL, max_epochs)
        ends.add(end)
        for figure, number in expected.items():
            np.testing.assert_allclose(
                actual[figure][i], number, rtol=1e-9, atol=1e-9, err_msg=figure
            )
    assert ends == {"overfits", "stalls", "is at the last epoch"}


def test_comparison_counts_in_deviations_and_errors(monkeypatch):
    """Numbers that can be checked by hand: 3 apart, spreads of 3 and 4, five runs."""
    table = tables.TABLES["Table 3"]
    published = {"one1": {"train_error": [7.0, 3.0], "test_error": [0.65, 0.0]}}
    monkeypatch.setitem(tables.PUBLISHED, table.key, published)
    rows = pd.DataFrame(
        {
            "table": "Table 3",
            "problem": "one1",
            "figure": ["train_error", "test_error", "overfit_gl"],
            "runs": [5, 10, 5],
            "mean": [10.0, 0.66, 1.0],
            "deviation": [4.0, 0.0, 1.0],
        }
    )
    found = report.compare(rows)
    # Figures that were not published are not compared.
    assert list(found["figure"]) == ["train_error", "test_error"]
    assert found["apart_sd"][0] == pytest.approx(3 / 12.5**0.5, rel=1e-5)
    assert found["apart_se"][0] == pytest.approx(3 / 5**0.5, rel=1e-5)
    # The difference of 0.01 is within the rounding of the published figure.
    assert found["apart_sd"][1] == pytest.approx(12**0.5)


@pytest.fixture
def data_dir(tmp_path, monkeypatch, write_proben1, noisy_classes):
    """Two small data sets with published figures; one is in all tables."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate(("one1", "two1"), 4):
        write_proben1(folder / f"{name}.dt", noisy_classes((12, 6, 6), 3, 2, seed))
    some = ("train_error", "test_error", "test_misclassified_percent", "total_epochs")
    contents = (
        (["one1", "two1"], tables.FIGURES),
        (["two1"], ("train_error", "total_epochs")),
        (["one1"], some),
        (["one1"], some),
    )
    published = {
        table.key: {key: {f: [10.0, 2.0] for f in figures} for key in names}
        for table, (names, figures) in zip(
            tables.TABLES.values(), contents, strict=True
        )
    }
    architecture = {"hidden_1": 3, "hidden_2": 2, "output": "linear"}
    published[tables.ARCHITECTURES] = {"one1": architecture}
    for key, figures in published.items():
        monkeypatch.setitem(tables.PUBLISHED, key, figures)
    # One of the variants: each takes seconds to compile.
    for name, table in tables.TABLES.items():
        settings = {setting: ["rprop-"] for setting in table.settings}
        monkeypatch.setitem(tables.TABLES, name, table._replace(settings=settings))
    return folder


def test_whole_quick_run(data_dir, tmp_path):
    """Every table, setting and data set is trained and compared; none twice."""
    output_dir = tmp_path / "new" / "output"
    options = ["--quick", "--data-dir", str(data_dir), "--output-dir", str(output_dir)]
    tables.main(options)
    written = (output_dir / "tables.csv").read_text()
    rows = pd.read_csv(output_dir / "tables.csv")
    found = set(rows[list(tables.Job._fields)].itertuples(index=False, name=None))
    jobs = tables.list_jobs()
    assert found == set(map(tuple, jobs))
    assert len(jobs) == 2 + 1 + 2 * 2
    assert not rows.duplicated([*tables.Job._fields, "figure"]).any()
    epochs = rows.loc[rows["figure"] == "total_epochs", "mean"]
    assert epochs.between(5, 20).all()
    tables.main(options)
    assert (output_dir / "tables.csv").read_text() == written

    assert "| Table 8, one1 | 10.00 ± 2.00 |" in " ".join(
        report.errors(output_dir).split()
    )
    assert "| Table 10, inferred, rprop- " in report.agreement(output_dir)
