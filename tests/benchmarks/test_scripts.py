"""Every script runs with ``--quick`` and writes the files of its report."""

import importlib
import json
import re
from operator import attrgetter
from pathlib import Path

import jax
import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common import optimizers  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.once]
SCRIPTS = {
    "speed": ("step", "calls", "rotation"),
    "full_batch": ("insensitivity", "baselines"),
    "eigenbasis": ("run", "ablation"),
    "minibatch": ("tasks", "models", "ablations"),
}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = sorted(BENCHMARKS.glob("*/*.py"))
# The eigenbasis runs on the problems of the full batch, in their loop.
BORROWED = {"eigenbasis": {"full_batch"}}


def test_all_scripts_are_run():
    """Some have separate tests: they need data, or packages that import slowly."""
    found = {
        path.relative_to(BENCHMARKS).with_suffix("").as_posix()
        for path in MODULES
        if "cli.parser(" in path.read_text()
    }
    listed = {f"{topic}/{name}" for topic, names in SCRIPTS.items() for name in names}
    others = {"proben1/tables", "cutest/run", "cutest/solver", "multistart/run"}
    assert found == listed | others


@pytest.fixture
def run_script(monkeypatch, precision):
    """A function that runs a script in this process: imports cost as much as runs."""
    # All use the same code, and each needs seconds to compile.
    one = [o for o in optimizers.OPTIMIZERS if o.name == "irprop-"]
    for name in ("OPTIMIZERS", "AT_DEFAULTS"):
        monkeypatch.setattr(f"benchmarks.full_batch.baselines.{name}", one)
    monkeypatch.setattr("benchmarks.full_batch.baselines.TUNING_FREE", ())
    monkeypatch.setattr("benchmarks.full_batch.insensitivity.COMPARED", one)
    # Users have no strict promotion. In all threads, because some scripts use several.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    # XLA accounts for nearly all of the time of a quick run.
    jax.config.update("jax_disable_most_optimizations", True)

    def run(topic, name, *arguments):
        module = importlib.import_module(f"benchmarks.{topic}.{name}")
        module.main([*map(str, arguments)])

    yield run
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.parametrize("topic", SCRIPTS)
def test_quick_runs_write_what_reports_read(topic, run_script, tmp_path):
    """A smoke run writes files like the recorded ones; a second run adds nothing."""
    for name in SCRIPTS[topic]:
        options = (topic, name, "--quick", "--output-dir", tmp_path)
        run_script(*options)
        assert name in json.loads((tmp_path / "environment.json").read_text())
        before = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
        run_script(*options)
        assert before == {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    kept = BENCHMARKS / topic / "results"
    written = {path.name for path in tmp_path.glob("*.csv")}
    if kept.exists():  # A source distribution has no results.
        assert written == {path.name for path in kept.glob("*.csv")}
    for name in written:
        rows = pd.read_csv(tmp_path / name)
        assert len(rows)
        assert not np.isinf(rows.select_dtypes("number").to_numpy()).any()
        if kept.exists():
            assert set(rows) <= set(pd.read_csv(kept / name, nrows=0))


@pytest.mark.parametrize("path", MODULES, ids=attrgetter("stem"))
def test_imports_point_one_way(path):
    """Topics import from themselves, ``common`` and the package's public names."""
    text = path.read_text()
    topic = path.parent.name
    found = set(re.findall(r"^(?:from|import) benchmarks\.(\w+)", text, re.MULTILINE))
    assert found <= {"common", topic} | BORROWED.get(topic, set())
    assert "optax_rprop._" not in text.replace("optax_rprop.__version__", "")
    assert "from optax_rprop" not in text
