"""Every benchmark script runs in its quick form and writes what it promises."""

import importlib
import json
import math
import runpy
import sys
from pathlib import Path

import jax
import pytest

pytest.importorskip("matplotlib", reason="the scripts draw their results")
pytest.importorskip("tqdm", reason="the scripts show their progress")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TESTED_ELSEWHERE = {"proben1"}
"""Scripts that need files of data: their own test modules write such files."""
SCRIPTS = sorted(
    script.stem
    for script in BENCHMARKS.glob("*.py")
    if '__name__ == "__main__"' in script.read_text()
    and script.stem not in TESTED_ELSEWHERE
)


def numbers(tree):
    """All numbers in what was read from a JSON file."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        return [number for branch in tree for number in numbers(branch)]
    return [tree] if isinstance(tree, int | float) else []


@pytest.fixture
def run_script(monkeypatch, precision):
    """A function that runs a script in this process: imports cost as much as runs."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    contenders = importlib.import_module("contenders")
    # All run through the same code, and each takes seconds to compile.
    some = [c for c in contenders.CONTENDERS if c.name in {"irprop+", "Adam", "L-BFGS"}]
    monkeypatch.setattr(contenders, "CONTENDERS", some)
    # Users have no strict promotion; for all threads, as some scripts work in several.
    jax.config.update("jax_numpy_dtype_promotion", "standard")

    def run(name, *arguments):
        script = str(BENCHMARKS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(script, run_name="__main__")

    yield run
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_quick_run_writes_finite_results(name, run_script, tmp_path):
    """A smoke run leaves JSON and Markdown with their context."""
    run_script(name, "--quick", "--output-dir", tmp_path)
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


def test_without_torch(monkeypatch, capsys):
    """Its absence is said; the scripts then leave its rows out."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert importlib.import_module("timing").optional_torch() is None
    assert "Without PyTorch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("step_time", ["--rounds", "1"], "rounds at least 2"),
        ("step_time", ["--sizes", "many"], "such as 1e6, got 'many'"),
        ("training_loop", ["--rounds", "1"], "--rounds must be at least 2"),
        ("insensitivity", ["--seeds", "0"], "--seeds must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused(name, arguments, message, run_script, capsys):
    """A bad option ends in a message and exit code 2, before anything runs."""
    with pytest.raises(SystemExit) as stopped:
        run_script(name, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
