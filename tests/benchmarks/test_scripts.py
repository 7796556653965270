"""Every script runs in its quick form, and its report reads what it wrote."""

import importlib
import json
import re
import sys
from operator import attrgetter
from pathlib import Path

import jax
import numpy as np
import pytest

pd = pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common import optimizers, pytorch  # noqa: E402

SCRIPTS = {
    "speed": ("step", "loop"),
    "full_batch": ("insensitivity", "rivals"),
    "eigenbasis": ("run", "studies"),
    "minibatch": ("run", "batch_size", "tuning_free"),
    "classics": ("encoders",),
}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MODULES = sorted(BENCHMARKS.glob("*/*.py"))
# The eigenbasis runs on the problems of whole data sets, in their loop; many starts
# run with the prototype that is measured on CUTEst.
BORROWED = {"eigenbasis": {"full_batch"}, "multistart": {"cutest"}}
# Its ablation replaces functions of the package, one at a time.
PATCHING = {"eigenbasis/studies"}
# All run through the same code, and each takes seconds to compile.
SOME = {"irprop-", "Adam", "L-BFGS"}


def test_all_scripts_are_run():
    """Some in tests of their own: they need data, or packages that import slowly."""
    found = {
        path.relative_to(BENCHMARKS).with_suffix("").as_posix()
        for path in MODULES
        if "cli.parser(" in path.read_text()
    }
    listed = {f"{topic}/{name}" for topic, names in SCRIPTS.items() for name in names}
    others = {"classics/proben1", "cutest/run", "cutest/solver", "multistart/run"}
    assert found == listed | others


@pytest.fixture
def run_script(monkeypatch, precision):
    """A function that runs a script in this process: imports cost as much as runs."""
    free = optimizers.TUNING_FREE[:1]
    some = [o for o in optimizers.OPTIMIZERS if o.name in SOME]
    for name, optimizers_of in {
        "rivals.OPTIMIZERS": some,
        "rivals.TUNING_FREE": free,
        "rivals.AT_DEFAULTS": (*some, *free),
        "insensitivity.CONTENDERS": (*some, *free),
    }.items():
        monkeypatch.setattr(f"benchmarks.full_batch.{name}", optimizers_of)
    # Users have no strict promotion; for all threads, as some scripts work in several.
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    # Nearly all of the time of a quick run is that of XLA.
    jax.config.update("jax_disable_most_optimizations", True)

    def run(topic, name, *arguments):
        module = importlib.import_module(f"benchmarks.{topic}.{name}")
        module.main([*map(str, arguments)])

    yield run
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.mark.parametrize("topic", SCRIPTS)
def test_quick_runs_and_their_report(topic, run_script, tmp_path):
    """A smoke run leaves tidy CSV files and its environment; a second adds nothing.

    All tables and pictures can be made of them.
    """
    for name in SCRIPTS[topic]:
        options = (topic, name, "--quick", "--output-dir", tmp_path)
        run_script(*options)
        assert name in json.loads((tmp_path / "environment.json").read_text())
        before = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
        run_script(*options)
        assert before == {path: path.read_bytes() for path in tmp_path.glob("*.csv")}
    for path in tmp_path.glob("*.csv"):
        rows = pd.read_csv(path)
        assert len(rows)
        assert not np.isinf(rows.select_dtypes("number").to_numpy()).any()
    report = importlib.import_module(f"benchmarks.{topic}.report")
    shown = [*report.SHOWN, *report.PICTURES.values()]
    if topic == "classics":  # Nothing of Proben1 has been run.
        shown = [report.headline_encoders, report.encoders]
    for show in shown:
        assert show(tmp_path)


def test_without_torch(monkeypatch, capsys):
    """Its absence is said; the scripts then leave its rows out."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pytorch.optional_torch() is None
    assert "Without PyTorch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("topic", "name", "arguments", "message"),
    [
        ("speed", "step", ["--sizes", "many"], "such as 1000 or 1e3, got 'many'"),
        ("speed", "step", ["--sizes", "1e3", "0"], "must be at least 1, got 0"),
        ("classics", "proben1", [], "required: --data-dir"),
    ],
)
def test_bad_options_are_refused(topic, name, arguments, message, run_script, capsys):
    """A bad option ends in a message and exit code 2, before anything runs."""
    with pytest.raises(SystemExit) as stopped:
        run_script(topic, name, *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", MODULES, ids=attrgetter("stem"))
def test_imports_point_one_way(path):
    """From a topic to itself and to what all share; of the package, the public part."""
    text = path.read_text()
    topic = path.parent.name
    found = set(re.findall(r"^(?:from|import) benchmarks\.(\w+)", text, re.MULTILINE))
    assert found <= {"common", topic} | BORROWED.get(topic, set())
    if f"{topic}/{path.stem}" in PATCHING:
        text = text.replace("from optax_rprop import _basis, _rotation\n", "")
    assert "optax_rprop._" not in text.replace("optax_rprop.__version__", "")
    assert "from optax_rprop" not in text
