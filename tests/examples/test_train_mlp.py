"""The main example, in a small setting."""

import pytest

pytest.importorskip("flax", minversion="0.12", reason="needs the current Flax NNX API")
import train_mlp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
SMALL = ["--epochs", "25", "--patience", "25", "--hidden-units", "16"]


def test_learns_the_digits(tmp_path, capsys):
    """Reports three splits of the 1,797 rows and draws its picture."""
    options = ["--variant", "irprop+", "--output-dir", str(tmp_path / "new")]
    assert train_mlp.main([*SMALL, *options, "--min-accuracy", "0.85"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 4 and row[0] != "rows"}
    assert sum(int(table[name][0]) for name in table) == 1797
    assert float(table["test"][2]) >= 0.85
    assert (tmp_path / "new" / "train_mlp.png").stat().st_size > 10_000


def test_keeps_the_best_model_and_stops():
    """After it has stopped, the model kept is that of the best epoch."""
    train, validation, _ = train_mlp.load_splits(seed=0)
    model = train_mlp.MLP(16, rngs=train_mlp.nnx.Rngs(0))
    optimizer = train_mlp.nnx.Optimizer(
        model, train_mlp.optax_rprop.rprop(), wrt=train_mlp.nnx.Param
    )
    best, epoch, records = train_mlp.fit(
        model, optimizer, train, validation, epochs=200, patience=5
    )
    losses = [float(record.validation_loss) for record in records]
    assert epoch == losses.index(min(losses)) + 1
    assert len(records) == epoch + 5
    loss, _ = train_mlp.loss_and_accuracy(best, validation)
    assert float(loss) == pytest.approx(min(losses), rel=1e-5)
    assert float(train_mlp.loss_and_accuracy(model, validation)[0]) > min(losses)


def test_fails_below_the_accuracy_asked_for(monkeypatch, tmp_path, capsys):
    """The check of the result can fail, and reports it."""
    monkeypatch.setattr(train_mlp, "fit", lambda model, *_, **__: (model, 0, []))
    monkeypatch.setattr(train_mlp, "plot", lambda *_: None)
    assert train_mlp.main(["--output-dir", str(tmp_path)]) == 1
    assert "below --min-accuracy 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["--epochs", "many"], "--epochs: invalid positive value: 'many'"),
        (["--variant", "adam"], "invalid choice: 'adam'"),
        (["--output-dir", __file__], "is not a folder"),
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
    ],
)
def test_refuses_bad_options(options, message, capsys):
    """A wrong option ends in a usage message that names it."""
    with pytest.raises(SystemExit) as stopped:
        train_mlp.main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
