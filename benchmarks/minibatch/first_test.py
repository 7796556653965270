"""The sign test of versions 0.1 and 0.2, on which the older studies were run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class State(NamedTuple):
    """Decayed sums and norms of the gradients since the last resolved sign."""

    sums: optax.Params
    norms: optax.Params


def resolve_signs(
    threshold: jax.typing.ArrayLike = 1.7, decay: jax.typing.ArrayLike = 0.95
) -> optax.GradientTransformation:
    """As `optax_rprop.resolve_signs`, but a resolved sign ends its norm, too.

    So the boundary grows with the root of the wait. Nothing leans anywhere.
    """

    def init_fn(params: optax.Params) -> State:
        return State(optax.tree.zeros_like(params), optax.tree.zeros_like(params))

    def update_fn(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, State]:
        del params

        def leaf(grads, sums, norms):
            sums = decay * sums + grads
            norms = jnp.sqrt((decay * norms) ** 2 + grads**2)
            # Three equal gradients reach the root of three: rounding shall not decide.
            slack = 1 - 16 * jnp.finfo(sums.dtype).eps
            resolved = jnp.abs(sums) >= threshold * slack * norms
            return (
                jnp.where(resolved, sums, 0),
                jnp.where(resolved, 0, sums),
                jnp.where(resolved, 0, norms),
            )

        threes = jax.tree.map(leaf, updates, *state)
        emitted, *fields = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0,) * 3), threes
        )
        return emitted, State(*fields)

    return optax.GradientTransformation(init_fn, update_fn)
