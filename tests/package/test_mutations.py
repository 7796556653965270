"""The tests can fail: each known way to get Rprop wrong is caught by one.

A mutation rewrites a copy of the package. Each text must occur exactly once, so that no
mutation outlives the line that it breaks.
"""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import test_layouts
import test_rule
import test_sign_test

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


# The same for the sign test, compared with plain Python, and for the step sizes.
SIGN_TEST = {
    "no correction for the longer memory": {
        "jnp.sqrt(scale.sum_weight / scale.norm_weight)": "jnp.ones_like(size)"
    },
    "correction without a root": {
        "jnp.sqrt(scale.sum_weight / scale.norm_weight)": (
            "scale.sum_weight / scale.norm_weight"
        )
    },
    "R decays like S": {"norms = norm_decay * jnp": "norms = decay * jnp"},
    "S decays like R": {"decay * sums + known": "norm_decay * sums + known"},
    "size not remembered": {"_SIZE_DECAY = 0.8": "_SIZE_DECAY = 0.0"},
    "size remembered for longer": {"_SIZE_DECAY = 0.8": "_SIZE_DECAY = 0.9"},
    "size not of all leaves": {"mean_size(grads)": "mean_size(grads[:1])"},
    "non-finite size counts": {"jnp.isfinite(size), new, kept": "True, new, kept"},
    "sum of sizes in place of a mean": {"size / jnp.maximum(weight, 1)": "size"},
    "R not kept": {
        "jax.lax.select(resolved, -norms, norms)": (
            "jax.lax.select(resolved, zeros - tiny, norms)"
        )
    },
}
WIDTH = {
    "depth of a kernel ignored": {"math.prod(shape) / max": "max(shape) / max"},
    "matrices like kernels": {"if len(shape) == 2 else": "if False else"},
    "kernels of Equinox ignored": {"else max(shape[0], shape[-1])": "else shape[-1]"},
    "inputs of the shorter side": {"min(shape) if": "max(shape) if"},
    "narrow arrays start with longer steps": {
        "max(_WIDEST_UNSCALED, _inputs": "max(1, _inputs"
    },
}


def check_sign_test():
    """Two leaves, with gaps, of which the second decides the size."""
    grads, params = (
        test_sign_test.bad_gradients()[:150],
        test_sign_test.moving_params(150),
    )
    grads[:, 20:] *= np.array([1, 1e3])[np.arange(150) // 10 % 2, None]
    leaves = slice(20), slice(20, None)
    trees = [[array[:, leaf] for leaf in leaves] for array in (grads, params)]
    updates, _ = test_sign_test.play(optax_rprop.resolve_signs(), *trees)
    largest = np.finfo(float).max
    expected = test_sign_test.textbook(grads, params, largest=largest, leaves=leaves)
    np.testing.assert_allclose(np.concatenate(updates, axis=1), expected, rtol=1e-9)


def check_width():
    for shape in test_sign_test.INPUTS:
        test_sign_test.test_initial_step_sizes_by_width(shape)


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
        for name in optax_rprop.__all__:
            monkeypatch.setattr(optax_rprop, name, getattr(mutant, name))

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


@pytest.mark.parametrize(
    ("check", "edits"),
    [
        pytest.param(check, edits, id=mistake)
        for check, found in ((check_sign_test, SIGN_TEST), (check_width, WIDTH))
        for mistake, edits in found.items()
    ],
)
def test_mistake_in_the_sign_test_is_caught(load, x64, check, edits):
    """The same."""
    load(edits)
    with pytest.raises(AssertionError, match=r"[Nn]ot equal|shapes"):
        check()


@pytest.mark.parametrize("check", [check_sign_test, check_width])
def test_copy_of_the_sign_test_passes_unless_broken(load, x64, check):
    """Likewise."""
    load({})
    check()


@pytest.mark.parametrize("test", CAUGHT_BY)
def test_copy_passes_unless_broken(load, test):
    """The mistake makes the tests above fail, not the copying."""
    load({})
    check(test, "irprop+")
