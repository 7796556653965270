"""The split, the scaling and the reader of Proben1's files."""

import numpy as np
import pytest

pytest.importorskip("pandas", reason="the benchmarks need it")

from benchmarks.common import data as sets

pytestmark = [pytest.mark.slow, pytest.mark.once]

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


def test_reads_the_format(tmp_path):
    """Columns are inputs, then targets; rows are train, validation, then test."""
    path = tmp_path / "tiny1.dt"
    path.write_text(HEADER + ROWS)
    train, validation, test = sets.read_proben1(path)
    np.testing.assert_array_equal(train["inputs"], [[0, 1, 0.25], [1, 0, 0.5]])
    np.testing.assert_array_equal(train["targets"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(validation["inputs"], [[1, 1, 0.75]])
    np.testing.assert_array_equal(test["targets"], [[0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be in Proben1's format"),
        (HEADER.replace("real_in", "reel_in") + ROWS, "KeyError"),
        (HEADER + ROWS.replace("0.25", "x"), "could not convert"),
        (HEADER + ROWS.replace(" 0.25", ""), "must be in Proben1's format"),
        (HEADER + ROWS + "0 0 1 0 1\n", r"4 rows of 5 numbers.*\(5, 5\)"),
        (HEADER.replace("bool_in=2", "bool_in=3") + ROWS, r"of 6 numbers.*\(4, 5\)"),
    ],
)
def test_refuses_other_formats(tmp_path, text, message):
    """Any other file raises an error that names it."""
    path = tmp_path / "bad1.dt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        sets.read_proben1(path)
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path, capsys):
    """The message says what is missing, and where to find it."""
    with pytest.raises(SystemExit, match=r"lacks thyroid1\.dt of Proben1") as caught:
        sets.find_proben1(tmp_path, ["thyroid1"])
    assert sets.PROBEN1_SOURCE in str(caught.value)
    assert sets.find_proben1(None, ["thyroid1"]) == {}
    assert "no --data-dir" in capsys.readouterr().out


def test_splits_are_disjoint_and_standardized():
    """As many rows as requested, drawn by the seed, scaled by the training rows."""
    inputs = np.random.default_rng(0).normal(3, 2, (200, 4))
    inputs[:, 3] = 7
    # The target is one of the inputs, so that it identifies the row.
    rows = {"inputs": inputs, "targets": inputs[:, :1]}
    found = [sets.split(rows, (120, 30, 30), seed) for seed in (0, 1)]
    for parts in found:
        names = np.concatenate([part["targets"] for part in parts])
        assert len(np.unique(names)) == 180
        scaled = sets.standardize(parts, "inputs")
        np.testing.assert_allclose(scaled.train["inputs"].mean(axis=0), 0, atol=1e-9)
        deviations = scaled.train["inputs"].std(axis=0)
        np.testing.assert_allclose(deviations, [1, 1, 1, 0], atol=1e-9)
        np.testing.assert_array_equal(scaled.test["targets"], parts.test["targets"])
    stacked = sets.stack(found)
    assert stacked.test["inputs"].shape == (2, 30, 4)
    assert not np.array_equal(*stacked.test["inputs"])
    held_out = sets.hold_out({"inputs": inputs[:11]}, 4)
    assert [len(part["inputs"]) for part in held_out] == [4, 3, 4]
