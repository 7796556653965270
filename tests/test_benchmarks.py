"""Every benchmark script runs in its quick form and writes what it promises."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the scripts draw their results")
pytest.importorskip("tqdm", reason="the scripts show their progress")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TESTED_ELSEWHERE = {"proben1"}
"""Scripts that need files of data: their own test modules write such files."""
SCRIPTS = sorted(
    script
    for script in BENCHMARKS.glob("*.py")
    if '__name__ == "__main__"' in script.read_text()
    and script.stem not in TESTED_ELSEWHERE
)


def run(script, *arguments, environment=None):
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def numbers(tree):
    """All numbers in what was read from a JSON file."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for branch in tree for number in numbers(branch)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_quick_run_writes_finite_results(script, tmp_path):
    """A smoke run exits with 0 and leaves JSON and Markdown with their context."""
    name = script.stem
    done = run(script, "--quick", "--output-dir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr

    results = json.loads((tmp_path / f"{name}.json").read_text())
    environment = results.pop("environment")
    assert environment["versions"]["jax"] in (tmp_path / f"{name}.md").read_text()
    assert "--quick" in environment["command"]
    found = numbers(results)
    assert found
    assert all(map(math.isfinite, found))
    assert "\n|---" in (tmp_path / f"{name}.md").read_text()
    pictures = list(tmp_path.glob("*.png"))
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step_time", "training_loop"])
def test_without_torch(name, tmp_path):
    """Without PyTorch, the script says so and measures all others."""
    (tmp_path / "torch.py").write_text('raise ImportError("torch is hidden")')
    done = run(
        BENCHMARKS / f"{name}.py",
        "--quick",
        "--output-dir",
        str(tmp_path),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "Without PyTorch" in done.stdout
    report = (tmp_path / f"{name}.md").read_text()
    assert "| torch.optim.Rprop" not in report
    assert "irprop-, packed" in report


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("step_time", ["--rounds", "1"], "rounds at least 2"),
        ("step_time", ["--sizes", "many"], "such as 1e6, got 'many'"),
        ("training_loop", ["--rounds", "1"], "--rounds must be at least 2"),
    ],
)
def test_bad_options_are_refused(name, arguments, message):
    """A bad option ends in a message and exit code 2, before anything runs."""
    done = run(BENCHMARKS / f"{name}.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
