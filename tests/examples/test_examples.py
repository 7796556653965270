"""Checkpoints and several devices: scripts run as their users run them."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

pytest.importorskip("flax", minversion="0.12", reason="needs the current Flax NNX API")
pytest.importorskip("orbax.checkpoint", reason="needs the extras of the examples")
import checkpoint_resume
import data_parallel
from flax import nnx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
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


def test_killed_run_resumes_bit_for_bit(tmp_path):
    """SIGKILL loses nothing: two starts end with the bits of one uninterrupted run."""
    # It would train for hours, so it is killed before its end.
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
    # It has trained again, without interruption, to compare.
    assert "Identical, bit for bit, to the uninterrupted run" in output


def test_fingerprint_sees_every_leaf():
    """One flipped bit in any array of the state is a difference."""
    training = checkpoint_resume.Training()
    reference = checkpoint_resume.fingerprint(training)
    leaves, treedef = jax.tree.flatten(nnx.state(training))
    assert len(leaves) == 4 * 3 + 2  # Parameters, step sizes, signs; loss, count.
    for index, leaf in enumerate(leaves):
        flipped = np.array(leaf)
        flipped.reshape(-1).view(np.uint8)[0] ^= 1
        changed = [*leaves[:index], jax.numpy.asarray(flipped), *leaves[index + 1 :]]
        nnx.update(training, treedef.unflatten(changed))
        assert checkpoint_resume.fingerprint(training) != reference
    nnx.update(training, treedef.unflatten(leaves))
    assert checkpoint_resume.fingerprint(training) == reference


def test_restores_every_leaf(monkeypatch, tmp_path, capsys):
    """Starting again after the last step restores all bits, without training."""

    def start(steps):
        options = ["--steps", str(steps), "--output-dir", str(tmp_path)]
        return checkpoint_resume.train_with_checkpoints(
            checkpoint_resume.parse_options(options)
        )

    trained = checkpoint_resume.fingerprint(start(3))
    assert "Resumed" not in capsys.readouterr().out
    # If it trained again, it would end with the same bits.
    monkeypatch.setattr(checkpoint_resume, "train", lambda *_, **__: None)
    assert checkpoint_resume.fingerprint(start(3)) == trained
    assert "Resumed at step 3\n" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="at step 3, beyond --steps 2"):
        start(2)


def test_other_bits_than_the_uninterrupted_run_fail(monkeypatch, capsys):
    """The check of the result can fail, and reports it."""
    monkeypatch.setattr(
        checkpoint_resume,
        "train_with_checkpoints",
        lambda options: checkpoint_resume.Training(),
    )
    assert checkpoint_resume.main(["--steps", "1"]) == 1
    assert "ended with other bits" in capsys.readouterr().err


def test_several_devices_give_the_result_of_one(tmp_path):
    """The script compares them itself; tests/package has several processes."""
    options = ("--steps", 20, "--output-dir", tmp_path, "--cpu-devices", 4)
    output = finish("data_parallel.py", *options, "--shard-parameters")
    assert "Process 0 of 1: 4 of 4 devices" in output
    # No partial derivative comes so near to 0 so early that rounding sets its sign.
    identical = re.search(r"identical, bit for bit, in the first (\d+) ", output)
    assert int(identical[1]) >= 10
    assert (tmp_path / "data_parallel.npz").stat().st_size > 10_000


def test_comparison_of_runs_can_fail(capsys):
    """A wrong first loss, a wrong later one, and another path are all reported."""
    losses = np.array([2.0, 1.0, 0.5])
    alone = data_parallel.Run(losses, np.zeros((3, 4)))
    assert data_parallel.compare(alone, alone) is None
    assert "in the first 3 steps of 3" in capsys.readouterr().out

    params = np.zeros((3, 4))
    params[2, 1] = 0.25
    assert data_parallel.compare(alone._replace(params=params), alone) is None
    report = capsys.readouterr().out
    assert "in the first 2 steps of 3" in report
    assert "at the end: 0.25" in report

    for factors, message in [
        ([1.0001, 1.0, 1.0], "first losses differ by 0.0001"),
        ([1.0, 1.0, 1.02], "more than 1 %"),
        ([1.0, np.nan, 1.0], "more than 1 %"),
    ]:
        wrong = alone._replace(losses=losses * factors)
        assert message in data_parallel.compare(wrong, alone)


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        (checkpoint_resume, ["--steps", "0"], "--steps: must be at least 1"),
        (checkpoint_resume, ["--save-every", "0"], "--save-every: must be at least 1"),
        (checkpoint_resume, ["--output-dir", __file__], "is not a folder"),
        (data_parallel, ["--steps", "0"], "--steps: must be at least 1"),
        (data_parallel, ["--cpu-devices", "0"], "--cpu-devices: must be at least 1"),
        (data_parallel, ["--output-dir", __file__], "is not a folder"),
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
