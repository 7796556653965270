"""The tests can fail: each known way to get Rprop wrong is caught by one.

A mutation rewrites the source of the package, in a copy. A text that is not found
exactly once is an error, so that no mutation outlives the line that it breaks.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import checks
import pytest
import test_bad_numbers
import test_properties
import test_rules

import optax_rprop

UNDOING = ("rprop+", "irprop+")
SIGNS = "_signed(grads, jnp.ones_like(codes))"
ADVANCE = "memory = layout.advance(memory, decision, context)"
MOVES = "layout.moves(memory, context, grads.dtype)"
BACKWARD = "(codes == -1) | (codes == 2)"
# What a state needs that keeps the last gradient as it is, and not its sign.
KEEP_GRADIENT = (
    ("_layouts/split", "dtype=jnp.int8", "dtype=memory_dtype(param)"),
    ("_layouts/interface", BACKWARD, "codes < 0"),
)


def check_golden(variant, state_layout):
    """Every row of the golden sequence for this variant."""
    for row in test_rules.GOLDEN_UPDATES:
        if row[0] == variant:
            test_rules.test_golden_sequence(None, *row, state_layout)


def check_reference(variant, state_layout):
    """600 steps against plain Python, finite gradients and losses."""
    test_rules.test_equals_plain_python(None, variant, state_layout, nan=False)


def check_reference_nan(variant, state_layout):
    """The same, with gradients and losses that are no numbers."""
    test_rules.test_equals_plain_python(None, variant, state_layout, nan=True)


def check_first_loss(variant, state_layout):
    """The first loss is NaN."""
    checks.player.cache_clear()
    test_bad_numbers.test_first_loss_undoes_nothing(float("nan"), state_layout)


def check_vanishing(variant, state_layout):
    """A gradient of 1.2e-38 in float32."""
    checks.player.cache_clear()
    test_properties.test_a_vanishing_gradient_acts_like_one(
        variant, "float32", 1.2e-38, state_layout
    )


class Mutation(NamedTuple):
    """A mistake.

    Attributes:
      check: The check that must fail on it.
      edits: Module, text, and what the text is replaced by.
      variants: The variants that it spoils.
      layouts: The layouts in which it is made. All share the rule, but each has an
        arithmetic of its own.
    """

    check: object
    edits: tuple
    variants: tuple = checks.VARIANTS
    layouts: tuple = ("split",)


FLOATS = ("split", "packed")
MUTATIONS = {
    "update one step late": Mutation(
        check_golden,
        (
            ("_transform", ADVANCE, f"old, {ADVANCE}".replace("= ", "= memory, ")),
            ("_transform", MOVES, MOVES.replace("memory", "old")),
        ),
        layouts=checks.LAYOUTS,
    ),
    "step size adapted one step late": Mutation(
        check_golden,
        (
            ("_transform", ADVANCE, f"old, {ADVANCE}".replace("= ", "= memory, ")),
            (
                "_transform",
                MOVES,
                MOVES.replace(
                    "memory",
                    "layout.advance(old, decision._replace(grow=decision.grow & False,"
                    " shrink=decision.shrink & False), context)",
                ),
            ),
        ),
        layouts=checks.LAYOUTS,
    ),
    "raw product of gradients": Mutation(
        check_vanishing,
        (
            ("_rule", SIGNS, "grads.astype(codes.dtype)"),
            ("_rule", "_signed(grads, codes)", "jnp.sign(grads * codes)"),
            *KEEP_GRADIENT,
        ),
        ("rprop-", "irprop-"),
    ),
    "sign change not zeroed": Mutation(
        check_golden,
        (("_rule", "jax.lax.select(changed, zeros, new_codes)", "new_codes"),),
        ("irprop-", "irprop+"),
    ),
    "sign of an update that was taken back remembered": Mutation(
        check_golden,
        (("_rule", "-codes, codes + codes)", "-codes, -codes)"),),
        UNDOING,
    ),
    "sign change zeroed by the wrong variant": Mutation(
        check_golden,
        (("_rule", "if rule.forgets:", "if True:"),),
        ("rprop-",),
    ),
    "undone with the new step size": Mutation(
        check_golden,
        (
            (
                "_layouts/interface",
                "jax.lax.select(decision.take_back, step_sizes, adapted)",
                "adapted",
            ),
        ),
        UNDOING,
        FLOATS,
    ),
    "level undone with the new one": Mutation(
        check_golden,
        (
            (
                "_layouts/byte",
                "jax.lax.select(decision.take_back, level, new_level)",
                "new_level",
            ),
        ),
        UNDOING,
        ("byte",),
    ),
    "undone in the wrong direction": Mutation(
        check_golden,
        (("_layouts/interface", BACKWARD, "codes < 0"),),
        UNDOING,
        ("split", "byte"),
    ),
    "undone in the wrong direction, packed": Mutation(
        check_golden,
        (("_layouts/packed", "signed * -_DOWN", "signed * _DOWN"),),
        UNDOING,
        ("packed",),
    ),
    "never undone": Mutation(
        check_golden,
        (
            ("_rule", "trend.rose & too_far", "trend.rose & False"),
            ("_rule", "take_back = changed | unknown", "take_back = unknown"),
        ),
        UNDOING,
    ),
    "not shortened after it was undone": Mutation(
        check_golden,
        (("_rule", "shrink = changed | taken_back", "shrink = changed"),),
        UNDOING,
    ),
    "undone where the loss stays": Mutation(
        check_reference,
        (("_rule", "value > prev_value", "value >= prev_value"),),
        ("irprop+",),
    ),
    "undone where the loss falls": Mutation(
        check_golden,
        (("_rule", "value > prev_value", "value < prev_value"),),
        ("irprop+",),
    ),
    "loss compared one step late": Mutation(
        check_reference,
        (
            ("_transform", "jnp.full((), jnp.finfo", "jnp.full(2, jnp.finfo"),
            ("_rule", "value > prev_value", "prev_value[0] > prev_value[1]"),
            ("_rule", "prev_value < bounds.max", "prev_value[0] < bounds.max"),
            (
                "_rule",
                "jnp.where(finite, value, prev_value)",
                "jnp.stack([value, prev_value[0]])",
            ),
        ),
        ("irprop+",),
    ),
    "upper bound forgotten": Mutation(
        check_reference,
        (
            (
                "_layouts/interface",
                "jax.lax.clamp(lower, step_sizes * grow, upper)",
                "step_sizes * grow",
            ),
        ),
        layouts=FLOATS,
    ),
    "lower bound forgotten": Mutation(
        check_reference,
        (
            (
                "_layouts/interface",
                "jax.lax.clamp(lower, step_sizes * shrink, upper)",
                "step_sizes * shrink",
            ),
        ),
        layouts=FLOATS,
    ),
    "highest level forgotten": Mutation(
        check_reference,
        (
            (
                "_layouts/byte",
                "jax.lax.clamp(context.lowest, level + change, context.highest)",
                "jnp.maximum(level + change, context.lowest)",
            ),
        ),
        layouts=("byte",),
    ),
    "lowest level forgotten": Mutation(
        check_reference,
        (
            (
                "_layouts/byte",
                "jax.lax.clamp(context.lowest, level + change, context.highest)",
                "jnp.minimum(level + change, context.highest)",
            ),
        ),
        layouts=("byte",),
    ),
    "level off by one": Mutation(
        check_golden,
        (("_layouts/byte", "level - lattice.unit", "level + 1 - lattice.unit"),),
        layouts=("byte",),
    ),
    "step size grows where nothing is remembered": Mutation(
        check_golden, (("_rule", "agreement == 1,", "agreement >= 0,"),)
    ),
    "gradient of 0 taken for positive": Mutation(
        check_reference, (("_rule", "grads > 0,", "grads >= 0,"),)
    ),
    "NaN stored as loss": Mutation(
        check_reference_nan,
        (("_rule", "jnp.where(finite, value, prev_value)", "value"),),
        ("irprop+",),
    ),
    "NaN stored as gradient": Mutation(
        check_reference_nan,
        (("_rule", SIGNS, "jnp.sign(grads).astype(codes.dtype)"), *KEEP_GRADIENT),
        ("rprop-", "irprop-"),
    ),
    "NaN in the gradient only held": Mutation(
        check_reference_nan,
        (("_rule", "unknown = jnp.isnan(grads)", "unknown = jnp.isinf(codes)"),),
        UNDOING,
    ),
    "gradient trusted outside the domain": Mutation(
        check_reference_nan,
        (("_rule", " | trend.left_domain", ""),),
        ("irprop+",),
    ),
    "update that took one back not taken back": Mutation(
        check_reference_nan,
        (("_rule", "select(taken_back, -codes,", "select(taken_back, zeros,"),),
        UNDOING,
    ),
    "domain left before there was one": Mutation(
        check_first_loss,
        (("_rule", "outside & (prev_value < bounds.max)", "outside"),),
        ("irprop+",),
    ),
}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Puts the functions of a mutated copy in the place of the package's own."""

    def load(edits):
        original = Path(optax_rprop.__file__).parent
        copy = shutil.copytree(original, tmp_path / original.name)
        for module, text, replacement in edits:
            path = copy / f"{module}.py"
            source = path.read_text(encoding="utf-8")
            assert source.count(text) == 1, f"{module}: {source.count(text)} x {text}"
            path.write_text(source.replace(text, replacement), encoding="utf-8")
        for name in list(sys.modules):
            if name.partition(".")[0] == original.name:
                monkeypatch.delitem(sys.modules, name)
        monkeypatch.syspath_prepend(tmp_path)
        mutant = importlib.import_module(original.name)
        assert Path(mutant.__file__).parent == copy
        for function in ("rprop", "get_rprop_state"):
            monkeypatch.setattr(optax_rprop, function, getattr(mutant, function))

    yield load
    # It holds what was compiled from the copy.
    checks.player.cache_clear()


@pytest.mark.parametrize(
    ("mistake", "variant", "state_layout"),
    [
        (mistake, variant, state_layout)
        for mistake, mutation in MUTATIONS.items()
        for variant in mutation.variants
        for state_layout in mutation.layouts
    ],
)
def test_mistake_is_caught(x64, load, mistake, variant, state_layout):
    """The check fails on the mutated rule, and not for another reason."""
    mutation = MUTATIONS[mistake]
    load(mutation.edits)
    with pytest.raises(AssertionError, match=r"[Nn]ot equal"):
        mutation.check(variant, state_layout)


@pytest.mark.parametrize("variant", checks.VARIANTS)
@pytest.mark.parametrize(
    ("check", "state_layout"),
    dict.fromkeys(
        (mutation.check, state_layout)
        for mutation in MUTATIONS.values()
        for state_layout in mutation.layouts
    ),
)
def test_copy_passes_unless_broken(x64, load, check, variant, state_layout):
    """What fails above is the mistake, not the copy."""
    load(())
    check(variant, state_layout)
