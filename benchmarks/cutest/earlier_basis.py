"""The eigenbasis of version 0.3.2, for comparison: not in units of the step sizes.

For the full matrix of one vector. `anchored`: directions about which nothing is known
stay as they are, as today; rounding does not choose them. `estimates`: basis updates
estimate step sizes, see `secants`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_rprop
from benchmarks.common.optimizers import WIDE
from benchmarks.cutest.secants import estimated, new_secants, with_pair

ANCHOR = 1e-12  # Relative to the largest moment.
DECAY, INTERVAL = 0.9, 5


class State(NamedTuple):
    """The state for one vector; gradients are not rotated."""

    inner: Any
    prev_grads: jax.Array
    moments: jax.Array
    basis: jax.Array
    calls: jax.Array
    secants: Any  # `Secants`, or None.


def earlier_basis(
    *, anchored: bool, estimates: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`irprop+` in an eigenbasis."""
    rprop = optax_rprop.scale_by_rprop(variant="irprop+", **WIDE)

    def init_fn(params: Any) -> State:
        size = params.size
        return State(
            inner=rprop.init(params),
            prev_grads=jnp.zeros_like(params),
            moments=jnp.zeros((size, size), params.dtype),
            basis=jnp.eye(size, dtype=params.dtype),
            calls=jnp.zeros((), jnp.int32),
            secants=new_secants(params) if estimates else None,
        )

    def with_new_basis(state: State, grads: jax.Array) -> State:
        step_sizes, codes = state.inner.step_sizes, state.inner.prev_grad_signs
        matrix, old = state.moments, state.basis
        if anchored:
            order = jnp.arange(1, old.shape[0] + 1, dtype=old.dtype) / old.shape[0]
            matrix += ANCHOR * jnp.max(jnp.abs(matrix)) * (old * order) @ old.T
        basis = jnp.linalg.eigh(matrix)[1]
        weights = (basis.T @ old) ** 2
        squares = (step_sizes / step_sizes.max()) ** 2
        means = weights @ squares
        known, undone = (
            2 * weights @ jnp.where(jnp.abs(codes) == code, squares, 0) > means
            for code in (1, 2)
        )
        signs = jnp.sign(basis.T @ state.prev_grads).astype(codes.dtype)
        codes = jnp.where(undone, 2, jnp.where(known, signs, 0)).astype(codes.dtype)
        carried = step_sizes.max() * jnp.sqrt(means)
        carried = jnp.clip(carried, step_sizes.min(), step_sizes.max())
        if state.secants is not None:
            carried = estimated(state.secants, basis, grads, carried)
        inner = state.inner._replace(
            step_sizes=carried,
            prev_grad_signs=codes,
        )
        return state._replace(inner=inner, basis=basis)

    def update_fn(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, State]:
        grads, secants = updates, state.secants
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grads))
        # Before the first finite gradient, the remembered one is 0.
        compared = finite & jnp.any(state.prev_grads != 0)
        learns = compared & jnp.any(grads != state.prev_grads)
        if secants is not None:
            new = with_pair(secants, params, grads - state.prev_grads, learns)
            secants = jax.tree.map(lambda *pair: jnp.where(finite, *pair), new, secants)
        change = jnp.where(learns, grads / 2 - state.prev_grads / 2, 0)
        largest = jnp.max(jnp.abs(change))
        change /= jnp.where(largest > 0, largest, 1)
        norm = jnp.linalg.norm(change)
        change /= jnp.where(norm > 0, norm, 1)
        factor = jnp.where(norm > 0, DECAY, 1).astype(norm.dtype)
        state = state._replace(
            moments=factor * state.moments + jnp.outer(change, change),
            secants=secants,
        )

        def due(state: State) -> State:
            kept = jax.tree.map(
                lambda new, old: jnp.where(learns, new, old),
                with_new_basis(state, grads),
                state,
            )
            return kept._replace(calls=state.calls)

        state = jax.lax.cond(
            state.calls % INTERVAL == 1, due, lambda state: state, state
        )
        rotated, inner = rprop.update(state.basis.T @ grads, state.inner, value=value)
        return -state.basis @ jnp.asarray(rotated), state._replace(
            inner=inner,
            prev_grads=jnp.where(finite, grads, state.prev_grads),
            calls=state.calls + 1,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
