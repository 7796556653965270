"""The example on mini-batches, in a small setting."""

import numpy as np
import pytest

pytest.importorskip("flax", minversion="0.12", reason="needs the current Flax NNX API")
import train_minibatch
from flax import nnx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
SMALL = ["--epochs", "5", "--hidden-units", "16"]
UNTRAINED = train_minibatch.Record(2.3, 0.1, None)


def test_learns_where_plain_rprop_fails(tmp_path, capsys):
    """Reports both, draws its picture, and finds the order it expects."""
    options = [*SMALL, "--output-dir", str(tmp_path / "new")]
    assert train_minibatch.main([*options, "--min-accuracy", "0.9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    accuracy = {
        name: float(line.split()[-1])
        for line in lines
        for name in train_minibatch.OPTIMIZERS
        if line.startswith(name)
    }
    assert accuracy["mini-batch Rprop"] >= 0.9 > accuracy["plain Rprop"]
    assert (tmp_path / "new" / "train_minibatch.png").stat().st_size > 10_000


def test_an_epoch_uses_every_row_at_most_once(monkeypatch):
    """Whole batches, without repetition, in an order that the seed sets."""
    train, validation, _ = train_minibatch.load_splits(seed=0)
    seen = []
    monkeypatch.setattr(
        train_minibatch,
        "train_step",
        lambda model, optimizer, batch: seen.append(batch.images),
    )
    monkeypatch.setattr(train_minibatch, "observe", lambda *_: UNTRAINED)
    model = train_minibatch.MLP(4, rngs=nnx.Rngs(0))
    build = train_minibatch.OPTIMIZERS["mini-batch Rprop"]
    optimizer = nnx.Optimizer(model, build(), wrt=nnx.Param)
    train_minibatch.fit(
        model,
        optimizer,
        train,
        validation,
        batch_size=100,
        epochs=1,
        seed=3,
        description="",
    )
    assert [len(images) for images in seen] == [100] * 10
    # No two of the digits are alike.
    assert len(np.unique(np.concatenate(seen), axis=0)) == 1000


def test_fails_below_the_accuracy_asked_for(monkeypatch, tmp_path, capsys):
    """The checks of the result can fail, and report it."""
    monkeypatch.setattr(train_minibatch, "fit", lambda *_, **__: [UNTRAINED])
    monkeypatch.setattr(
        train_minibatch, "plot", lambda *_: train_minibatch.plt.figure()
    )
    assert train_minibatch.main(["--output-dir", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is below --min-accuracy 0.93." in message
    assert "plain Rprop is unexpectedly as good" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["--batch-size", "few"], "--batch-size: invalid positive value: 'few'"),
        (["--seed", "-1"], "--seed: must not be negative, got -1"),
        (["--output-dir", __file__], "cannot create the folder"),
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
    ],
)
def test_refuses_bad_options(options, message, capsys):
    """A wrong option ends in a usage message that names it."""
    with pytest.raises(SystemExit) as stopped:
        train_minibatch.main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_refuses_a_batch_larger_than_the_data(tmp_path, capsys):
    """The number of rows is known only once they are loaded."""
    options = ["--batch-size", "2000", "--output-dir", str(tmp_path)]
    assert train_minibatch.main(options) == 2
    assert "at most the 1078 training rows, got 2000" in capsys.readouterr().err
