"""Digits, checkpoints and several devices: small runs, and checks that can fail."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flax", minversion="0.12", reason="needs the current Flax NNX API")
pytest.importorskip("orbax.checkpoint", reason="needs the extras of the examples")
import checkpoint_resume
import data_parallel
import train_minibatch
import train_mlp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
SMALL_MLP = ["--epochs", "25", "--patience", "25", "--hidden-units", "16"]
SMALL_MINIBATCH = ["--epochs", "5", "--hidden-units", "16"]
UNTRAINED = train_minibatch.Record(2.3, 0.1, None)
EXAMPLES = Path(data_parallel.__file__).parent
TIMEOUT = 240


@contextlib.contextmanager
def started(script, *options):
    """A script in a new process, which does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / script), *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(script, *options):
    """Run a script; returns its output if its exit status is 0."""
    with started(script, *options) as process:
        output, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, output + errors
    return output


# ----------------------------------------------------------------------------
# Digits


def test_learns_the_digits(tmp_path, capsys):
    """Reports three parts of the 1,797 rows and draws its picture."""
    options = ["--variant", "irprop+", "--output-dir", str(tmp_path / "new")]
    assert train_mlp.main([*SMALL_MLP, *options, "--min-accuracy", "0.85"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 4 and row[0] != "rows"}
    assert sum(int(table[name][0]) for name in table) == 1797
    assert float(table["test"][2]) >= 0.85
    assert (tmp_path / "new" / "train_mlp.png").stat().st_size > 10_000


def test_fails_below_the_accuracy_asked_for(monkeypatch, tmp_path, capsys):
    """The check of the result can fail, and reports it."""
    monkeypatch.setattr(train_mlp, "fit", lambda model, *_, **__: (model, 0, []))
    monkeypatch.setattr(train_mlp, "plot", lambda *_: None)
    assert train_mlp.main(["--output-dir", str(tmp_path)]) == 1
    assert "below --min-accuracy 0.9" in capsys.readouterr().err


def test_learns_where_plain_rprop_fails(tmp_path, capsys):
    """Reports both, draws its picture, and finds the expected order."""
    options = [*SMALL_MINIBATCH, "--output-dir", str(tmp_path / "new")]
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


def test_a_plain_rprop_that_is_as_good_fails(monkeypatch, tmp_path, capsys):
    """The checks of the result can fail, and report it."""
    monkeypatch.setattr(train_minibatch, "fit", lambda *_, **__: [UNTRAINED])
    monkeypatch.setattr(
        train_minibatch, "plot", lambda *_: train_minibatch.plt.figure()
    )
    assert train_minibatch.main(["--output-dir", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "is below --min-accuracy 0.93." in message
    assert "plain Rprop is unexpectedly as good" in message


# ----------------------------------------------------------------------------
# Checkpoints and devices


def test_killed_run_resumes_bit_for_bit(tmp_path):
    """After SIGKILL, the resumed run ends with the bits of an uninterrupted one."""
    # It would train for hours, so it is always killed before the end.
    every_ten = ("--save-every", 10, "--output-dir")
    endless = (*every_ten, tmp_path / "killed", "--steps", 10**7)
    with started("checkpoint_resume.py", *endless) as process:
        for line in process.stdout:
            saving = re.fullmatch(r"Saving step (\d+)\n", line)
            if saving and int(saving[1]) >= 30:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=TIMEOUT)
        assert process.returncode == -signal.SIGKILL

    steps = int(saving[1]) + 20
    options = (*every_ten, tmp_path / "killed", "--steps", steps)
    output = finish("checkpoint_resume.py", *options)
    newest = int(re.search(r"^Resumed at step (\d+)$", output, re.M)[1])
    # The checkpoint being written may be lost, but not the one before.
    assert 20 <= newest < steps
    assert re.search(r"^Fingerprint [0-9a-f]{64}$", output, re.M)
    # It trained again without interruption to compare.
    assert "Identical, bit for bit, to the uninterrupted run" in output


def test_other_bits_than_the_uninterrupted_run_fail(monkeypatch, capsys):
    """The check of the result can fail, and reports it."""
    monkeypatch.setattr(
        checkpoint_resume,
        "train_with_checkpoints",
        lambda options: checkpoint_resume.Training(),
    )
    assert checkpoint_resume.main(["--steps", "1"]) == 1
    assert "ended with other bits" in capsys.readouterr().err


def test_two_processes_give_the_result_of_one_device(tmp_path):
    """Real processes and collectives, four devices; the script itself compares."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = ("--steps", 20, "--cpu-devices", 2, "--shard-parameters", "--output-dir")
    options += (tmp_path, "--coordinator-address", address, "--num-processes", 2)
    with started("data_parallel.py", *options, "--process-id", 1) as other:
        output = finish("data_parallel.py", *options, "--process-id", 0)
        assert other.wait(TIMEOUT) == 0
    assert "Process 0 of 2: 2 of 4 devices" in output
    # No partial derivative is so close to 0 so early that rounding determines its sign.
    identical = re.search(r"identical, bit for bit, in the first (\d+) ", output)
    assert int(identical[1]) >= 10
    assert (tmp_path / "data_parallel.npz").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (train_mlp, ["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (train_mlp, ["--epochs", "many"], "--epochs: invalid positive value: 'many'"),
        (train_mlp, ["--variant", "adam"], "invalid choice: 'adam'"),
        (train_mlp, ["--learning-rate", "1"], "unrecognized arguments"),
        (train_minibatch, ["--seed", "-1"], "--seed: must not be negative, got -1"),
        (train_minibatch, ["--output-dir", __file__], "cannot create the folder"),
        (checkpoint_resume, ["--steps", "0"], "--steps: must be at least 1"),
        (checkpoint_resume, ["--save-every", "0"], "--save-every: must be at least 1"),
        (checkpoint_resume, ["--output-dir", __file__], "is not a folder"),
        (data_parallel, ["--cpu-devices", "0"], "--cpu-devices: must be at least 1"),
        (data_parallel, ["--process-id", "1"], "belong together"),
        (data_parallel, ["--cluster", "--process-id", "1"], "leave it out"),
        (
            data_parallel,
            ["--coordinator-address=a:1", "--num-processes=2", "--process-id=2"],
            "from 0 to --num-processes - 1",
        ),
    ],
)
def test_refuses_bad_options(script, options, message, capsys):
    """A wrong option ends in a usage message that names it."""
    with pytest.raises(SystemExit) as stopped:
        script.main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
