"""The tests can fail: each known way to get Rprop wrong is caught by one.

A mutation rewrites a copy of the package. Each text must occur exactly once, so that no
mutation outlives the line that it breaks.
"""

import importlib
import shutil
import sys
from pathlib import Path

import pytest
import test_layouts
import test_rule

import optax_rprop

pytestmark = pytest.mark.once


UNDO = "jax.lax.select(decision.undo, step_sizes, adapted)"
BACKWARD = "(codes == -1) | (codes == UNDONE)"
SIGNS = "_signed(grads, jnp.ones_like(codes))"
RISES = "value > prev_value"
KEPT = "jnp.where(finite, value, prev_value)"
ADVANCE = "fields = layout.advance(fields, decision)"
UPDATES = "layout.updates(fields, grads.dtype)"
LEVELS = "jax.lax.clamp(self.lowest, level + change, self.highest)"

# Which test catches which mistake, with a variant that has it.
CAUGHT_BY = {
    # One step from every state, compared with the textbook.
    "test_rule": {
        "update one step late": (
            "irprop-",
            {
                ADVANCE: "old, fields = fields, layout.advance(fields, decision)",
                UPDATES: UPDATES.replace("fields", "old"),
            },
        ),
        "step size adapted one step late": (
            "irprop-",
            {
                ADVANCE: "old, fields = fields, layout.advance(fields, decision)",
                UPDATES: UPDATES.replace("fields", "(old[0], fields[1])"),
            },
        ),
        "gradient remembered instead of its sign": (
            "rprop-",
            {
                SIGNS: "grads.astype(codes.dtype)",
                "_signed(grads, codes)": "jnp.sign(grads.astype(codes.dtype) * codes)",
            },
        ),
        "sign change not zeroed": (
            "irprop-",
            {"jax.lax.select(changed, zeros, new_codes)": "new_codes"},
        ),
        "sign change zeroed by the wrong variant": (
            "rprop-",
            {"if rule.zeroes_gradient:": "if True:"},
        ),
        "sign of an update that was undone remembered": (
            "rprop+",
            {"-codes, codes + codes)": "-codes, -codes)"},
        ),
        "undone with the new step size": ("rprop+", {UNDO: "adapted"}),
        "undone in the wrong direction": ("rprop+", {BACKWARD: "(codes < 0)"}),
        "never undone": ("rprop+", {"undo = changed | unknown": "undo = unknown"}),
        "never undone, though the loss rose": (
            "irprop+",
            {"trend.rose & too_far": "trend.rose & False"},
        ),
        "not shortened after it was undone": (
            "rprop+",
            {"shrink = changed | undone": "shrink = changed"},
        ),
        "undone if the loss is unchanged": ("irprop+", {RISES: "value >= prev_value"}),
        "undone if the loss falls": ("irprop+", {RISES: "value < prev_value"}),
        "loss compared one step late": (
            "irprop+",
            {
                "jnp.full((), jnp.finfo": "jnp.full(2, jnp.finfo",
                RISES: "prev_value[0] > prev_value[1]",
                "prev_value < bounds.max": "prev_value[0] < bounds.max",
                KEPT: "jnp.stack([value, prev_value[0]])",
            },
        ),
        "upper bound ignored": (
            "irprop-",
            {"jax.lax.clamp(lower, step_sizes * grow, upper)": "step_sizes * grow"},
        ),
        "lower bound ignored": (
            "irprop-",
            {"jax.lax.clamp(lower, others, upper)": "others"},
        ),
        "step size grows without a remembered sign": (
            "irprop-",
            {"agreement == 1,": "agreement >= 0,"},
        ),
        "gradient of 0 counted as positive": ("irprop-", {"grads > 0,": "grads >= 0,"}),
        "NaN stored as loss": ("irprop+", {KEPT: "value"}),
        "infinite loss stored": (
            "irprop+",
            {"~outside & (value >= bounds.min)": "~outside"},
        ),
        "NaN counted as positive": ("irprop-", {"grads > 0,": "~(grads <= 0),"}),
        "NaN in the gradient only skipped": (
            "rprop+",
            {"unknown = jnp.isnan(grads)": "unknown = jnp.isinf(grads) & False"},
        ),
        "gradient trusted at a non-finite loss": (
            "irprop+",
            {" | trend.became_non_finite": ""},
        ),
        "undo not undone": (
            "irprop+",
            {"select(undone, -codes,": "select(undone, zeros,"},
        ),
        "non-finite loss undone before any finite one": (
            "irprop+",
            {"outside & (prev_value < bounds.max)": "outside"},
        ),
    },
    # One step from every state, compared with "split".
    "packed": {
        "undone in the wrong direction": (
            "rprop+",
            {"signed * -_DOWN": "signed * _DOWN"},
        ),
    },
    "byte": {
        "undone with the new level": (
            "rprop+",
            {"jax.lax.select(decision.undo, level, new_level)": "new_level"},
        ),
        "highest level ignored": (
            "irprop-",
            {LEVELS: "jnp.maximum(level + change, self.lowest)"},
        ),
        "lowest level ignored": (
            "irprop-",
            {LEVELS: "jnp.minimum(level + change, self.highest)"},
        ),
        "level off by one": ("irprop-", {"(level - lattice.": "(level + 1 - lattice."}),
    },
}


def check(test, variant):
    """The test of that name, with the fewest inputs that catch a mistake."""
    if test == "test_rule":
        test_rule.check_one_step(variant, False, ("float32",))
    else:
        test_layouts.check_one_step(test, variant, False, ("float32",))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Replaces the functions of the package by those of a mutated copy."""

    def load(edits):
        original = Path(optax_rprop.__file__).parent
        copy = shutil.copytree(original, tmp_path / original.name)
        sources = {
            path: path.read_text(encoding="utf-8") for path in copy.rglob("*.py")
        }
        for text, replacement in edits.items():
            places = [path for path, source in sources.items() if text in source]
            assert len(places) == 1, f"{text} is in {places}"
            (path,) = places
            assert sources[path].count(text) == 1, f"more than once: {text}"
            sources[path] = sources[path].replace(text, replacement)
            path.write_text(sources[path], encoding="utf-8")
        for name in list(sys.modules):
            if name.partition(".")[0] == original.name:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        mutant = importlib.import_module(original.name)
        assert Path(mutant.__file__).parent == copy
        for function in ("scale_by_rprop", "get_rprop_state"):
            monkeypatch.setattr(optax_rprop, function, getattr(mutant, function))

    return load


@pytest.mark.parametrize(
    ("test", "mistake"),
    [(test, mistake) for test, found in CAUGHT_BY.items() for mistake in found],
)
def test_mistake_is_caught(load, test, mistake):
    """The test fails on the mutated rule, and not for another reason."""
    variant, edits = CAUGHT_BY[test][mistake]
    load(edits)
    with pytest.raises(AssertionError, match=r"[Nn]ot equal"):
        check(test, variant)


@pytest.mark.parametrize("test", CAUGHT_BY)
def test_copy_passes_unless_broken(load, test):
    """The mistake makes the tests above fail, not the copying."""
    load({})
    check(test, "irprop+")
