"""The four Rprop rules, elementwise: signs in, decisions out.

All four adapt one step size per coordinate by the signs of successive partial
derivatives, and agree as long as a sign stays the same. They differ only in the step
in which it changes: `VARIANTS` has one row per variant.

A rule never sees a step size. It decides by signs alone, and a layout applies the
decision to the numbers that it stores.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Variant = Literal["rprop-", "irprop-", "rprop+", "irprop+"]


class RpropMinus(NamedTuple):
    """Marks a state as that of ``rprop-``."""


class RpropPlus(NamedTuple):
    """Marks a state as that of ``rprop+``."""


class IRpropMinus(NamedTuple):
    """Marks a state as that of ``irprop-``."""


class IRpropPlus(NamedTuple):
    """Marks a state as that of ``irprop+``."""


Mark = RpropMinus | RpropPlus | IRpropMinus | IRpropPlus


class Rule(NamedTuple):
    """How a variant treats a coordinate whose gradient changes sign.

    Attributes:
      zeroes_gradient: True: the gradient counts as 0, so the coordinate is not
        updated, and the next step is neutral. False: it is updated by the reduced
        step size, and the new sign is remembered.
      undoes: The last update of the coordinate is undone; with `reads_loss`, only if
        the loss rose.
      reads_loss: The rule needs the loss at every step.
      mark: Marks the states of this variant.
    """

    zeroes_gradient: bool
    undoes: bool
    reads_loss: bool
    mark: Mark


VARIANTS: dict[Variant, Rule] = {
    #          zeroes_gradient, undoes, reads_loss
    "rprop-": Rule(False, False, False, RpropMinus()),
    "irprop-": Rule(True, False, False, IRpropMinus()),
    "rprop+": Rule(True, True, False, RpropPlus()),
    "irprop+": Rule(True, True, True, IRpropPlus()),
}
_VARIANT_OF: dict[type, Variant] = {type(r.mark): name for name, r in VARIANTS.items()}


def variant_of(mark: Mark) -> Variant:
    """The variant whose states have this mark."""
    return _VARIANT_OF[type(mark)]


# A code tells which sign a coordinate remembers and which update it made last, so that
# the update can be undone. With the step size d:
#
# -  1 or -1: this sign is remembered, and the last update was -code * d.
# -  2 or -2: no sign is remembered. The last update undid the one before and was
#    +sign(code) * d. That d was too long. It shrinks in the next step and not
#    before, because this update may itself have to be undone.
# -  0: no sign is remembered, and there was no update.
#
# Only this file and the encodings of the layouts know these numbers.
UNDONE = 2


def remembered(codes: jax.Array) -> jax.Array:
    """The remembered signs: -1, 0 or 1, in the dtype of the codes."""
    return jax.lax.select(was_undone(codes), jnp.zeros_like(codes), codes)


def was_undone(codes: jax.Array) -> jax.Array:
    """Where the last update undid the one before, dtype bool."""
    return jnp.abs(codes) == UNDONE


def last_update(codes: jax.Array, step_sizes: jax.Array, rule: Rule) -> jax.Array:
    """The last update, to be subtracted from the parameters."""
    # Of the codes in order, from -2 to 2: d, -d, 0, d, -d.
    backward = (codes == -1) | (codes == UNDONE) if rule.undoes else codes < 0
    updates = jax.lax.select(backward, -step_sizes, step_sizes)
    return jax.lax.select(codes == 0, jnp.zeros_like(updates), updates)


class LossTrend(NamedTuple):
    """How the loss changed in the last step; dtype bool.

    Attributes:
      rose: The loss is greater than the last finite one, or has become NaN or +inf.
      became_non_finite: The loss is NaN or +inf after a finite one, so that no gradient
        can be trusted.
    """

    rose: jax.Array | bool
    became_non_finite: jax.Array | bool


class Decision(NamedTuple):
    """The decision for each coordinate of one leaf.

    The first of `undo`, `grow` and `shrink` that is True counts.

    Attributes:
      grow: The step size is multiplied by ``eta_plus``.
      shrink: The step size is multiplied by ``eta_minus``.
      undo: The last update is undone by the step size that made it; None if the rule
        never undoes.
      new_codes: The codes after this step.
    """

    grow: jax.Array
    shrink: jax.Array
    undo: jax.Array | None
    new_codes: jax.Array


@jax.jit
def compare_loss(
    value: jax.Array, prev_value: jax.Array
) -> tuple[LossTrend, jax.Array]:
    """Compare the loss with the last finite one.

    Args:
      value: The loss at the current parameters, shape ().
      prev_value: The last finite loss, same shape and dtype; the largest number of
        the dtype means that there is none yet.

    Returns:
      The trend, and the last finite loss from now on.
    """
    # Compared with the largest finite numbers, not by `isinf`: an infinite
    # constant would trip `jax_debug_infs`.
    bounds = jnp.finfo(value.dtype)
    outside = ~(value <= bounds.max)
    became_non_finite = outside & (prev_value < bounds.max)
    rose = jnp.where(outside, became_non_finite, value > prev_value)
    finite = ~outside & (value >= bounds.min)
    trend = LossTrend(rose=rose, became_non_finite=became_non_finite)
    return trend, jnp.where(finite, value, prev_value)


def _signed(grads: jax.Array, magnitudes: jax.Array) -> jax.Array:
    """Magnitudes times the signs of the gradient; NaN counts as 0."""
    # Selected, not multiplied: products of int8 are slow on CPU.
    negative = jax.lax.select(grads < 0, -magnitudes, jnp.zeros_like(magnitudes))
    return jax.lax.select(grads > 0, magnitudes, negative)


def decide(
    grads: jax.Array,
    codes: jax.Array,
    trend: LossTrend | None,
    *,
    rule: Rule,
    skip_zero_grads: bool,
) -> Decision:
    """Apply a rule to one leaf.

    Args:
      grads: The gradient, of any shape and any real floating dtype.
      codes: The codes, same shape, any signed dtype.
      trend: The loss's trend for a rule that reads the loss; None for the others.
      rule: One row of `VARIANTS`.
      skip_zero_grads: Keep the remembered sign where the gradient is 0.

    Returns:
      The decision, with codes in the dtype of the old ones.
    """
    zeros = jnp.zeros_like(codes)
    new_codes = _signed(grads, jnp.ones_like(codes))
    # Signs are compared, not multiplied gradients: a product of small gradients
    # underflows to 0, and the step sizes silently stop adapting.
    agreement = _signed(grads, codes)
    grow, changed = agreement == 1, agreement == -1
    shrink, undone, undo = changed, None, None
    if rule.zeroes_gradient:
        new_codes = jax.lax.select(changed, zeros, new_codes)
    if rule.undoes:
        unknown = jnp.isnan(grads)
        undone = was_undone(codes)
        if trend is None:
            undo = changed | unknown
        else:
            too_far = changed | (unknown & (jnp.abs(codes) == 1))
            undo = (trend.rose & too_far) | trend.became_non_finite
        shrink = changed | undone
        back = jax.lax.select(undone, -codes, codes + codes)
        new_codes = jax.lax.select(undo, back, new_codes)
    if skip_zero_grads:
        skip, kept = grads == 0, codes
        if undone is not None and undo is not None:
            skip = skip & ~undo
            kept = jax.lax.select(undone, zeros, codes)
        new_codes = jax.lax.select(skip, kept, new_codes)
    return Decision(grow, shrink, undo, new_codes)
