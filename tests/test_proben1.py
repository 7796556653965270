"""The Proben1 benchmark, on small data sets made here, against plain NumPy."""

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

for package in ("matplotlib", "sklearn", "tqdm"):
    pytest.importorskip(package, reason="the benchmarks need it")
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
proben1 = importlib.import_module("proben1")
training = importlib.import_module("proben1_training")

PROTOCOL = training.Protocol(max_weight=0.1, min_step=0.05, max_step=0.2, max_loss=5.0)
HEADER = """bool_in=2
real_in=1
bool_out=2
real_out=0
training_examples=2
validation_examples=1
test_examples=1
"""
ROWS = """0 1 0.25 1 0
1 0 0.5 0 1
1 1 0.75 1 0
0 0 1 0 1
"""


def noisy_data(rows, inputs, outputs, seed):
    """Classes that depend on the inputs only in part, so that networks overfit."""
    rng = np.random.default_rng(seed)

    def part(count):
        x = rng.uniform(size=(count, inputs))
        scores = x @ np.eye(inputs, outputs) + 0.4 * rng.normal(size=(count, outputs))
        return x, np.eye(outputs)[scores.argmax(axis=1)]

    return training.DataSet(*map(part, rows))


def write_data_set(path, data):
    """A file in Proben1's format."""
    inputs, outputs = (part.shape[1] for part in data.train)
    counts = [0, inputs, outputs, 0, *(len(part[0]) for part in data)]
    keys = [line.split("=")[0] for line in HEADER.splitlines()]
    lines = [f"{key}={count}" for key, count in zip(keys, counts, strict=True)]
    for x, t in data:
        lines += [" ".join(map(str, row)) for row in np.hstack([x, t])]
    path.write_text("\n".join(lines) + "\n")


def test_reads_the_format(tmp_path):
    """Columns are inputs, then targets; rows are train, validation, then test."""
    path = tmp_path / "tiny1.dt"
    path.write_text(HEADER + ROWS)
    train, validation, test = training.read_data_set(path)
    np.testing.assert_array_equal(train[0], [[0, 1, 0.25], [1, 0, 0.5]])
    np.testing.assert_array_equal(train[1], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(validation[0], [[1, 1, 0.75]])
    np.testing.assert_array_equal(test[1], [[0, 1]])


def test_reads_back_what_was_written(tmp_path):
    """Every number of every part survives the file."""
    data = noisy_data((7, 5, 3), inputs=4, outputs=3, seed=0)
    write_data_set(tmp_path / "some1.dt", data)
    for part, expected in zip(
        training.read_data_set(tmp_path / "some1.dt"), data, strict=True
    ):
        np.testing.assert_array_equal(part[0], expected[0])
        np.testing.assert_array_equal(part[1], expected[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be in Proben1's format"),
        (ROWS, "must be in Proben1's format"),
        (HEADER.replace("real_in", "reel_in") + ROWS, "KeyError"),
        (HEADER + ROWS.replace("0.25", "x"), "could not convert"),
        (HEADER + ROWS.replace(" 0.25", ""), "must be in Proben1's format"),
        (HEADER + ROWS + "0 0 1 0 1\n", r"4 rows of 5 numbers.*\(5, 5\)"),
        (HEADER.replace("bool_in=2", "bool_in=3") + ROWS, r"of 6 numbers.*\(4, 5\)"),
    ],
)
def test_refuses_other_formats(tmp_path, text, message):
    """What is not a Proben1 file ends in an error that names it."""
    path = tmp_path / "bad1.dt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        training.read_data_set(path)
    assert str(path) in str(caught.value)


def slow_outputs(layers, example):
    """One example through the network, unit by unit, in plain Python."""
    outputs = [list(example)]
    for depth, layer in enumerate(layers):
        sources = outputs[-len(layer["weights"]) :]
        units = []
        for unit, bias in enumerate(layer["bias"]):
            total = float(bias)
            for source, weights in zip(sources, layer["weights"], strict=True):
                for i, number in enumerate(source):
                    total += number * float(weights[i][unit])
            is_hidden = depth < len(layers) - 1
            units.append(total / (1 + abs(total)) if is_hidden else total)
        outputs.append(units)
    return outputs[-1]


@pytest.mark.parametrize(
    ("layer_sizes", "shortcuts", "weights"),
    [
        ((9, 2), False, 9 * 2 + 2),
        ((9, 4, 2, 2), False, (9 * 4 + 4) + (4 * 2 + 2) + (2 * 2 + 2)),
        ((9, 4, 2, 2), True, (9 * 4 + 4) + (13 * 2 + 2) + (15 * 2 + 2)),
    ],
)
def test_network_and_error_measure(x64, layer_sizes, shortcuts, weights):
    """The error is 100 / (N P) times the sum of squares; all biases count."""
    network = training.Network(layer_sizes, shortcuts=shortcuts)
    assert network.zeros.shape == (weights,)
    rng = np.random.default_rng(0)
    vector = rng.normal(size=weights)
    inputs = rng.uniform(size=(6, layer_sizes[0]))
    targets = rng.uniform(size=(6, layer_sizes[-1]))

    layers = network.layers(jnp.asarray(vector))
    expected = np.array([slow_outputs(layers, example) for example in inputs])
    outputs = network.predict(jnp.asarray(vector), jnp.asarray(inputs))
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)
    error = network.error(jnp.asarray(vector), (inputs, targets))
    total = sum((o - t) ** 2 for o, t in zip(expected.flat, targets.flat, strict=True))
    assert float(error) == pytest.approx(100 * total / (layer_sizes[-1] * 6))


def test_initialization(x64):
    """Weights and step sizes fill their ranges, a number of its own per weight."""
    protocol = training.Protocol(0.1, 0.05, 0.2, 2.0)
    network = training.Network((40, 50), shortcuts=False)
    optimizer = proben1_optimizer("irprop+")
    run = training.start(jax.random.key(0), network, optimizer, protocol)
    step_sizes = np.asarray(run.opt_state[0].step_sizes)
    weights = np.asarray(run.weights)
    for numbers, lower, upper in ((weights, -0.1, 0.1), (step_sizes, 0.05, 0.2)):
        assert len(np.unique(numbers)) == network.zeros.size
        assert lower <= numbers.min() < lower + 0.01 * (upper - lower)
        assert upper - 0.01 * (upper - lower) < numbers.max() <= upper
        assert numbers.mean() == pytest.approx((lower + upper) / 2, abs=0.01)
    assert abs(np.corrcoef(weights, step_sizes)[0, 1]) < 0.1


def proben1_optimizer(variant):
    """Rprop as the report sets it, as far as `init` is concerned."""
    return training.optax_rprop.rprop(min_step_size=0.0, variant=variant)


def slow_run(network, run, data, variant, protocol, max_epochs):
    """One run of a linear network in NumPy and plain Python; its figures and end."""
    weights = np.array(run.weights)
    textbook = reference.Rprop(len(weights), variant, min_step_size=0.0)
    for coordinate, step in zip(
        textbook.coordinates, np.asarray(run.opt_state[0].step_sizes), strict=True
    ):
        coordinate.step_size = float(step)
    # Where bias and matrix lie in the vector of all weights.
    (layer,) = network.layers(jnp.arange(float(len(weights))))
    bias_at = np.asarray(layer["bias"], int)
    matrix_at = np.asarray(layer["weights"][0], int)

    def predict(weights, inputs):
        return inputs @ weights[matrix_at] + weights[bias_at]

    def error(weights, rows):
        total = 0.0
        for output, target in zip(predict(weights, rows[0]), rows[1], strict=True):
            total += sum((o - t) ** 2 for o, t in zip(output, target, strict=True))
        return 100 * total / rows[1].size

    train_errors, validation_errors, snapshots = [], [], []
    end = None
    while end is None:
        for _ in range(5):
            inputs, targets = data.train
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
    chosen = predict(snapshots[best], data.test[0]).argmax(axis=1)
    figures = {
        "train_error": min(train_errors),
        "validation_error": min(validation_errors),
        "test_error": error(snapshots[best], data.test),
        "test_misclassified_percent": 100
        * np.mean(chosen != data.test[1].argmax(axis=1)),
        "overfit_gl": loss,
        "total_epochs": len(train_errors),
        "relevant_epochs": 5 * (best + 1),
    }
    return figures, end


@pytest.mark.parametrize(
    ("variant", "max_epochs"),
    [("rprop-", 100), ("rprop+", 110), ("irprop-", 75), ("irprop+", 70)],
)
def test_runs_equal_plain_numpy(x64, variant, max_epochs):
    """Every figure of every run, whichever way it ends, in whatever place it trains."""
    data = noisy_data((40, 16, 20), inputs=3, outputs=2, seed=1)
    keys = jax.random.split(jax.random.key(1), 7)
    actual = training.train_all(
        keys,
        data,
        PROTOCOL,
        max_epochs,
        layer_sizes=(3, 2),
        shortcuts=False,
        variant=variant,
        places=3,
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


def test_comparison_counts_in_deviations_and_errors():
    """Numbers that can be checked by hand: 3 apart, spreads of 3 and 4, five runs."""
    sample = np.array([0.0, 3.0, 3.0, 3.0, 6.0]) * (4 / 4.5**0.5)
    mean = sample.mean()
    found = proben1.compare([mean - 3, 3.0], sample, decimals=2)
    assert found["measured_sd"] == pytest.approx(4)
    assert found["apart_sd"] == pytest.approx(3 / 12.5**0.5, rel=1e-5)
    assert found["apart_se"] == pytest.approx(3 / 5**0.5, rel=1e-5)
    same = proben1.compare([0.65, 0.0], np.full(10, 0.66), decimals=2)
    assert same["apart_sd"] == pytest.approx(12**0.5)


def published_of(names, table, figures):
    """What a reader would have typed in from the report."""
    numbers = {figure: [10.0, 2.0] for figure in figures}
    return {table: dict.fromkeys(names, numbers)}


@pytest.fixture
def data_dir(tmp_path):
    """Two small data sets, one of them in all tables, with figures to compare."""
    folder = tmp_path / "data"
    folder.mkdir()
    write_data_set(folder / "one1.dt", noisy_data((12, 6, 6), 3, 2, seed=4))
    write_data_set(folder / "two1.dt", noisy_data((12, 6, 6), 3, 2, seed=5))
    linear, approximation, pivot, adjacent = (table.key for table in proben1.TABLES)
    some = ("train_error", "test_error", "test_misclassified_percent", "total_epochs")
    architecture = {"hidden_1": 3, "hidden_2": 2, "output": "linear"}
    published = {
        **published_of(["one1", "two1"], linear, proben1.FIGURES),
        **published_of(["two1"], approximation, ("train_error", "total_epochs")),
        **published_of(["one1"], pivot, some),
        **published_of(["one1"], adjacent, some),
        proben1.ARCHITECTURES: {"one1": architecture},
    }
    (folder / "published.json").write_text(json.dumps(published))
    return folder


@pytest.mark.slow
def test_whole_quick_run(data_dir, tmp_path, monkeypatch, capsys):
    """Every table, protocol and data set is trained, compared and drawn."""
    # Two of the variants: each takes seconds to compile.
    some = {name: proben1.MARKERS[name] for name in ("rprop-", "irprop+")}
    monkeypatch.setattr(proben1, "MARKERS", some)
    tables = [
        table._replace(
            protocols={
                name: (protocol, [v for v in variants if v in some])
                for name, (protocol, variants) in table.protocols.items()
            }
        )
        for table in proben1.TABLES
    ]
    monkeypatch.setattr(proben1, "TABLES", tables)
    output_dir = tmp_path / "new" / "output"
    proben1.main(
        ["--quick", "--data-dir", str(data_dir), "--output-dir", str(output_dir)]
    )
    written = json.loads((output_dir / "proben1.json").read_text())
    results = written["results"]
    assert written["published"] == json.loads((data_dir / "published.json").read_text())
    jobs = {(r["table"], r["protocol"], r["data_set"], r["variant"]) for r in results}
    expected = {
        (table.title, protocol, name, variant)
        for table in proben1.TABLES
        for protocol, (_, variants) in table.protocols.items()
        for variant in variants
        for name in written["published"][table.key]
    }
    assert jobs == expected
    assert len(results) == len(expected)
    assert {tuple(r["layer_sizes"]) for r in results} == {(3, 2), (3, 3, 2, 2)}
    for result in results:
        epochs = result["figures"]["total_epochs"]
        assert 5 <= epochs["measured_mean"] <= 20
        assert epochs["published_mean"] == 10
        assert 0 < result["figures"]["train_error"]["measured_mean"] < 100

    report = capsys.readouterr().out
    assert report.count("| one1, total epochs | 10 ± 2 | ") == 1 + 2 * 3
    assert report.count("| two1, train error | 10.00 ± 2.00 | ") == 2
    assert "| Table 10 | inferred | irprop+ | 4 | " in report
    assert (output_dir / "proben1.png").stat().st_size > 10_000


def test_says_what_is_missing(tmp_path, capsys):
    """Without published.json, the message says what it is and where the data are."""
    with pytest.raises(SystemExit) as caught:
        proben1.main(["--data-dir", str(tmp_path)])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert f"{tmp_path} lacks published.json. The data sets NAME.dt are" in message
    assert "github.com/jeffheaton/proben1" in message


def test_names_the_missing_data_sets(data_dir, capsys):
    """Every missing file is named, and no other."""
    (data_dir / "two1.dt").unlink()
    with pytest.raises(SystemExit) as caught:
        proben1.main(["--data-dir", str(data_dir)])
    assert caught.value.code == 2
    assert "lacks two1.dt. " in capsys.readouterr().err


def test_refuses_broken_files(data_dir, capsys):
    """A data set in another format is refused before anything is trained."""
    (data_dir / "one1.dt").write_text("no data")
    with pytest.raises(SystemExit) as caught:
        proben1.main(["--data-dir", str(data_dir)])
    assert caught.value.code == 2
    assert "one1.dt must be in Proben1's format" in capsys.readouterr().err


def test_refuses_output_units_that_are_not_linear():
    """The report has some networks with sigmoid outputs, which are not covered."""
    architecture = {"hidden_1": 3, "hidden_2": 0, "output": "linear"}
    published = {proben1.ARCHITECTURES: {"one1": architecture}}
    assert proben1.hidden_sizes(published, "one1") == (3,)
    architecture["output"] = "sigmoid"
    with pytest.raises(ValueError, match="must be linear, got 'sigmoid' for one1"):
        proben1.hidden_sizes(published, "one1")
