"""The four Rprop rules, elementwise: signs in, decisions out.

All four adapt one step size per coordinate by the signs of successive partial
derivatives, and agree as long as a sign stays. They differ only in the step in
which it changes: `VARIANTS` holds the differences, one row each.

A rule sees no step size. It decides by signs alone, and a layout carries the
decision out on what it stores.
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
    """What a variant does with a coordinate whose gradient changes sign.

    Attributes:
      forgets: True: do not move, and remember the sign 0, so that the next step
        is neutral. False: move by the reduced step size and remember the new sign.
      takes_back: Whether the coordinate's last update is taken back.
      mark: Marks the states of this variant.
    """

    forgets: bool
    takes_back: Literal["never", "always", "if the loss rose"]
    mark: Mark


VARIANTS: dict[Variant, Rule] = {
    "rprop-": Rule(forgets=False, takes_back="never", mark=RpropMinus()),
    "irprop-": Rule(forgets=True, takes_back="never", mark=IRpropMinus()),
    "rprop+": Rule(forgets=True, takes_back="always", mark=RpropPlus()),
    "irprop+": Rule(forgets=True, takes_back="if the loss rose", mark=IRpropPlus()),
}


class LossTrend(NamedTuple):
    """What the loss says about the last step; dtype bool.

    Attributes:
      rose: The loss is greater than the last finite one, or has left the domain.
      left_domain: The loss is NaN or +inf after a finite one, so that no gradient
        can be trusted.
    """

    rose: jax.Array | bool
    left_domain: jax.Array | bool


class Decision(NamedTuple):
    """What is to be done with each coordinate of one leaf.

    The first of `take_back`, `grow` and `shrink` that holds counts. None stands for
    nowhere.

    Attributes:
      grow: The step size is multiplied by ``eta_plus``.
      shrink: The step size is multiplied by ``eta_minus``.
      take_back: The last update is taken back by the step size that made it.
      codes: What is to be remembered, and with it the update, as `decide` has it.
    """

    grow: jax.Array
    shrink: jax.Array
    take_back: jax.Array | None
    codes: jax.Array


@jax.jit
def compare_loss(
    value: jax.Array, prev_value: jax.Array
) -> tuple[LossTrend, jax.Array]:
    """Compare the loss with the last finite one.

    Args:
      value: The loss at the current parameters, shape ().
      prev_value: The last finite loss, same shape and dtype; the largest number of
        the dtype stands for none.

    Returns:
      The trend, and the last finite loss from now on.
    """
    # Compared with the largest finite numbers, not by `isinf`: an infinite
    # constant would trip `jax_debug_infs`.
    bounds = jnp.finfo(value.dtype)
    outside = ~(value <= bounds.max)
    left_domain = outside & (prev_value < bounds.max)
    rose = jnp.where(outside, left_domain, value > prev_value)
    finite = ~outside & (value >= bounds.min)
    trend = LossTrend(rose=rose, left_domain=left_domain)
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

    A code tells what a coordinate remembers and what its last update was, so that it
    can be taken back. With the step size d:

    - 1 or -1: this sign is remembered, and the last update was -code * d.
    - 2 or -2: nothing is remembered. The last update took the one before it back
      and was +sign(code) * d. That d proved too long: it is to shrink in the next
      step, and not before, since it may have to be taken back itself.
    - 0: nothing is remembered, and there was no update.

    Args:
      grads: The gradient, of any shape and any real floating dtype.
      codes: The codes, same shape, any signed dtype.
      trend: The loss's trend, for a rule that asks for it; None for the others.
      rule: One row of `VARIANTS`.
      skip_zero_grads: Keep what is remembered where the gradient is 0.

    Returns:
      The decision, with codes in the dtype of the old ones.
    """
    zeros = jnp.zeros_like(codes)
    new_codes = _signed(grads, jnp.ones_like(codes))
    # Signs decide, never a product of gradients: where they are small it underflows
    # to 0, and the step sizes silently stop adapting.
    agreement = _signed(grads, codes)
    grow, changed = agreement == 1, agreement == -1
    shrink = changed
    taken_back = take_back = None
    if rule.forgets:
        new_codes = jax.lax.select(changed, zeros, new_codes)
    if rule.takes_back != "never":
        unknown = jnp.isnan(grads)
        magnitudes = jnp.abs(codes)
        taken_back = magnitudes == 2
        if trend is None:
            take_back = changed | unknown
        else:
            too_far = changed | (unknown & (magnitudes == 1))
            take_back = (trend.rose & too_far) | trend.left_domain
        shrink = changed | taken_back
        back = jax.lax.select(taken_back, -codes, codes + codes)
        new_codes = jax.lax.select(take_back, back, new_codes)
    if skip_zero_grads:
        skip = grads == 0
        kept = codes
        if taken_back is not None and take_back is not None:
            skip = skip & ~take_back
            kept = jax.lax.select(taken_back, zeros, codes)
        new_codes = jax.lax.select(skip, kept, new_codes)
    return Decision(grow, shrink, take_back, new_codes)
