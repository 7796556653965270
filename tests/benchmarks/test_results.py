"""CSV files that grow part by part, and the tables and README files made from them."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

cogapp = pytest.importorskip("cogapp.cogapp", reason="the benchmarks need it")

from benchmarks.common import results, tables  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.once]
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
kept_results = pytest.mark.skipif(
    not (BENCHMARKS / "speed" / "results").exists(),
    reason="the benchmarks need it: a source distribution has no results",
)
TOPICS = ("speed", "full_batch", "eigenbasis", "minibatch", "proben1")


def test_parts_are_added_and_skipped(tmp_path):
    """A second study sees the parts of the first, and adds rows with its columns."""
    study = results.Study(tmp_path, "some", ["problem", "batch"])
    assert not study.has("digits", 8)
    study.add([{"problem": "digits", "batch": 8, "error": 1 / 3}])
    study.add([{"problem": "digits", "cost": 2}], "costs")
    later = results.Study(tmp_path, "some", ["problem", "batch"])
    assert later.has("digits", 8)
    assert not later.has("digits", 32)
    later.add([{"error": np.nan, "batch": "full", "problem": "a, b"}])
    rows = results.read(tmp_path, "some")
    assert list(rows["problem"]) == ["digits", "a, b"]
    assert rows["error"][0] == pytest.approx(1 / 3, rel=1e-6)
    assert np.isnan(rows["error"][1])
    assert results.read(tmp_path, "some_costs")["cost"].item() == 2


def test_other_columns_are_refused(tmp_path):
    """Results of an older script are not mixed with new ones."""
    study = results.Study(tmp_path, "some", ["problem"])
    study.add([{"problem": "digits", "error": 1}])
    with pytest.raises(ValueError, match="move it away and run again"):
        study.add([{"problem": "cancer", "mistake": 1}])


def test_environment_is_recorded(tmp_path):
    """Once per run, however many parts it adds, and summarized in a sentence."""
    study = results.Study(tmp_path, "some", ["problem"])
    for problem in ("digits", "cancer"):
        study.add([{"problem": problem}])
    (run,) = json.loads((tmp_path / "environment.json").read_text())["some"]
    assert run["versions"]["jax"] in results.context(tmp_path, "some")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.4, "1,234"), (0.00123456, "0.00123"), (0.0, "0"), (np.nan, "")],
)
def test_numbers_for_the_reader(value, text):
    """Significant digits, no exponents for large numbers, empty if there is none."""
    assert tables.number(value) == text


@kept_results
def test_tables_are_current(capsys):
    """Every table and figure of the README files matches the results."""
    readmes = [
        BENCHMARKS.parent / "README.md",
        *BENCHMARKS.glob("*.md"),
        *BENCHMARKS.glob("*/*.md"),
    ]
    assert len(readmes) >= 2 + len(TOPICS)
    for readme in readmes:
        assert "[[[cog" in readme.read_text()
    tables.refresh(readmes, check=True)


@kept_results
def test_a_changed_figure_is_noticed(tmp_path, capsys):
    """The check fails if a number is edited."""
    text = (BENCHMARKS / "README.md").read_text()
    copy = tmp_path / "README.md"
    copy.write_text(text.replace("gradients", "9 gradients", 1))
    with pytest.raises(cogapp.CogCheckFailed):
        tables.refresh([copy], check=True)


@kept_results
@pytest.mark.parametrize("topic", TOPICS)
def test_reports_draw_all_pictures(topic):
    """Pictures are drawn from the recorded results, and the README shows them."""
    report = importlib.import_module(f"benchmarks.{topic}.report")
    texts = "".join(path.read_text() for path in (BENCHMARKS / topic).glob("*.md"))
    for name, draw in report.PICTURES.items():
        assert draw(report.RESULTS).axes
        assert f"](results/{name}.png)" in texts
    kept = {path.stem for path in report.RESULTS.glob("*.png")}
    assert kept == set(report.PICTURES)


@kept_results
def test_results_are_small():
    """A clone stays small."""
    files = [path for path in BENCHMARKS.glob("*/results/**/*") if path.is_file()]
    assert len(files) > 20
    assert sum(path.stat().st_size for path in files) < 1_500_000
