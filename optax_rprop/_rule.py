"""The four Rprop rules, elementwise: arrays in, arrays out, no pytrees.

All four adapt one step size per coordinate by the signs of successive partial
derivatives, and agree as long as a sign stays. They differ only in the step in
which it changes: `VARIANTS` holds the differences, one row each.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Variant = Literal["rprop-", "rprop+", "irprop-", "irprop+"]


class SignChange(NamedTuple):
    """What a variant does with a coordinate whose gradient changes sign.

    Attributes:
      forgets: True: make no new move and remember the sign 0, so that the next
        step is neutral. False: move by the reduced step size and remember the
        new sign.
      undoes: Whether the coordinate's last update is taken back.
    """

    forgets: bool
    undoes: Literal["never", "always", "if the loss rose"]


VARIANTS: dict[str, SignChange] = {
    "rprop-": SignChange(forgets=False, undoes="never"),
    "irprop-": SignChange(forgets=True, undoes="never"),
    "rprop+": SignChange(forgets=True, undoes="always"),
    "irprop+": SignChange(forgets=True, undoes="if the loss rose"),
}


class LossTrend(NamedTuple):
    """What the loss says about the last step; both of shape (), dtype bool.

    Attributes:
      rose: The loss is greater than the last finite one, or has left the domain.
      left_domain: The loss is NaN or +inf, so no gradient can be trusted.
    """

    rose: jax.Array | bool
    left_domain: jax.Array | bool


ROSE = LossTrend(rose=True, left_domain=False)
"""The trend that a variant assumes which undoes without looking at the loss."""


class Adapted(NamedTuple):
    """The outcome of one step for one leaf.

    Attributes:
      step_sizes: The adapted step sizes.
      signs: The signs to remember. The move is ``-signs * step_sizes``.
      skip: Where no move is to be made instead; None stands for nowhere.
      undo: Where the last update is to be taken back instead, also if it is one of
        `skip`; None stands for nowhere.
    """

    step_sizes: jax.Array
    signs: jax.Array
    skip: jax.Array | None
    undo: jax.Array | None


def compare_loss(
    value: jax.Array, prev_value: jax.Array
) -> tuple[LossTrend, jax.Array]:
    """Compare the loss with the last finite one.

    Args:
      value: The loss at the current parameters, shape ().
      prev_value: The last finite loss, same shape and dtype.

    Returns:
      The trend, and the last finite loss from now on.
    """
    # Compared with the largest finite numbers, not by `isinf`: an infinite
    # constant would trip `jax_debug_infs`.
    bounds = jnp.finfo(value.dtype)
    left_domain = ~(value <= bounds.max)
    trend = LossTrend(rose=left_domain | (value > prev_value), left_domain=left_domain)
    finite = ~left_domain & (value >= bounds.min)
    return trend, jnp.where(finite, value, prev_value)


def _signed(grads: jax.Array, magnitudes: jax.Array) -> jax.Array:
    """Magnitudes times the signs of the gradient; NaN counts as 0."""
    # Selected, not multiplied: products of int8 are slow on CPU.
    return jnp.where(
        grads > 0,
        magnitudes,
        jnp.where(grads < 0, -magnitudes, jnp.zeros_like(magnitudes)),
    )


def adapt(
    grads: jax.Array,
    step_sizes: jax.Array,
    prev_signs: jax.Array,
    *,
    forgets: bool,
    undo_if: LossTrend | None,
    skip_zero_grads: bool,
    eta_minus: jax.typing.ArrayLike,
    eta_plus: jax.typing.ArrayLike,
    min_step_size: jax.typing.ArrayLike,
    max_step_size: jax.typing.ArrayLike,
) -> Adapted:
    """Apply one Rprop step to one leaf.

    Args:
      grads: The gradient, of any shape and any real floating dtype.
      step_sizes: The step sizes, same shape.
      prev_signs: The remembered signs, -1, 0 or 1, same shape, any signed dtype.
      forgets: See `SignChange`.
      undo_if: The loss's trend, on which the last update is taken back; None for
        the variants that never do.
      skip_zero_grads: Keep the remembered sign where the gradient is 0.
      eta_minus: Factor of a step size whose gradient changed sign.
      eta_plus: Factor of a step size whose gradient kept its sign.
      min_step_size: Lower bound of the step sizes.
      max_step_size: Upper bound of the step sizes.

    Returns:
      Step sizes and signs in the dtypes of the old ones, and where another move
      than theirs is to be made.
    """
    signs = _signed(grads, jnp.ones_like(prev_signs))
    # Signs decide, never a product of gradients: where they are small it underflows
    # to 0, and the step sizes silently stop adapting.
    agreement = _signed(grads, prev_signs)
    if undo_if is not None:
        # A step that led to where its gradient is unknown went too far: take it
        # as a change of sign. Where nothing is remembered, 0 stays 0.
        unknown = jnp.isnan(grads) | undo_if.left_domain
        agreement = jnp.where(undo_if.rose & unknown, -jnp.abs(prev_signs), agreement)
    changed = agreement < 0

    lower, upper, shrink, grow = (
        jnp.asarray(number, step_sizes.dtype)
        for number in (min_step_size, max_step_size, eta_minus, eta_plus)
    )
    # One `clip` around a selected factor says the same, but compiles to one more
    # copy of a whole buffer on CPU and takes three times as long.
    step_sizes = jnp.where(
        agreement > 0,
        jnp.clip(step_sizes * grow, lower, upper),
        jnp.where(
            changed,
            jnp.clip(step_sizes * shrink, lower, upper),
            jnp.clip(step_sizes, lower, upper),
        ),
    )
    if forgets:
        signs = jnp.where(changed, jnp.zeros_like(signs), signs)
    undo = None if undo_if is None else changed & undo_if.rose
    skip = None
    if skip_zero_grads:
        skip = grads == 0
        signs = jnp.where(skip & ~changed, prev_signs, signs)
    return Adapted(step_sizes, signs, skip, undo)
