"""Two changes of `in_eigenbasis` that are not in the package: its units, its ties.

`scaled`: the basis is learned in units of the current step sizes, so that other units
of the parameters do not matter. `anchored`: directions about which nothing is known
stay where they are, and rounding does not choose them. Full matrix, one vector.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import optax_rprop

BOUNDS: dict[str, Any] = {"min_step_size": 1e-12, "max_step_size": 1e12}


class State(NamedTuple):
    """Of one vector; gradients in no basis, moments in present units."""

    inner: Any
    prev_grads: jax.Array
    moments: jax.Array
    basis: jax.Array
    units: jax.Array  # Powers of 2: a unit step in the basis, in parameters.
    calls: jax.Array


def prototype(
    *,
    scaled: bool = True,
    anchored: bool = True,
    decay: float = 0.9,
    interval: int = 5,
) -> optax.GradientTransformationExtraArgs:
    """`irprop+` in an eigenbasis; without the two changes, that of the package.

    Turns come with every `interval`-th call, whatever the gradients: under `vmap`
    around a whole run, ``cond`` then solves no eigenproblem between turns.
    """
    rprop = optax_rprop.scale_by_rprop(variant="irprop+", **BOUNDS)

    def init_fn(params: Any) -> State:
        size = params.size
        return State(
            inner=rprop.init(params),
            prev_grads=jnp.zeros_like(params),
            moments=jnp.zeros((size, size), params.dtype),
            basis=jnp.eye(size, dtype=params.dtype),
            units=jnp.ones_like(params),
            calls=jnp.zeros((), jnp.int32),
        )

    def turned(state: State) -> State:
        step_sizes, codes = state.inner.step_sizes, state.inner.prev_grad_signs
        units, moments, old = state.units, state.moments, state.basis
        if scaled:
            # The root mean square of what each coordinate moves, as a power of 2, and
            # 1 for the largest.
            moves = units * jnp.sqrt((old**2) @ (step_sizes / step_sizes.max()) ** 2)
            powers = jnp.round(jnp.log2(moves))
            lowest_power = jnp.log2(jnp.finfo(moves.dtype).tiny) // 4
            units = jnp.exp2(jnp.maximum(powers - powers.max(), lowest_power))
        change = units / state.units
        moments = change[:, None] * moments * change
        # Older differences keep their weight.
        moments *= jnp.trace(state.moments) / jnp.trace(moments)
        matrix = moments
        if anchored:
            order = jnp.arange(1, old.shape[0] + 1, dtype=old.dtype) / old.shape[0]
            # Above the rounding of eigenvectors, below what is learned: 2e-12, or 6e-6.
            anchor = jnp.finfo(old.dtype).eps ** 0.75 * jnp.max(jnp.abs(moments))
            matrix += anchor * (old * order) @ old.T
        basis = jnp.linalg.eigh(matrix)[1]
        weights = (basis.T @ (old / change[:, None])) ** 2
        squares = (step_sizes / step_sizes.max()) ** 2
        means = weights @ squares
        known, undone = (
            2 * weights @ jnp.where(jnp.abs(codes) == code, squares, 0) > means
            for code in (1, 2)
        )
        lowest, highest = (
            BOUNDS.values() if scaled else (step_sizes.min(), step_sizes.max())
        )
        signs = jnp.sign(basis.T @ (units * state.prev_grads)).astype(codes.dtype)
        codes = jnp.where(undone, 2, jnp.where(known, signs, 0)).astype(codes.dtype)
        carried = jnp.clip(step_sizes.max() * jnp.sqrt(means), lowest, highest)
        inner = state.inner._replace(step_sizes=carried, prev_grad_signs=codes)
        return state._replace(inner=inner, moments=moments, basis=basis, units=units)

    def update_fn(
        updates: Any, state: Any, params: Any = None, *, value: Any = None, **_: Any
    ) -> tuple[Any, State]:
        grads = updates
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(grads))
        # Before the first finite gradient, the one remembered is 0.
        compared = finite & jnp.any(state.prev_grads != 0)
        learns = compared & jnp.any(grads != state.prev_grads)
        change = jnp.where(learns, state.units * (grads / 2 - state.prev_grads / 2), 0)
        largest = jnp.max(jnp.abs(change))
        change /= jnp.where(largest > 0, largest, 1)
        norm = jnp.linalg.norm(change)
        change /= jnp.where(norm > 0, norm, 1)
        factor = jnp.where(norm > 0, decay, 1).astype(norm.dtype)
        state = state._replace(
            moments=factor * state.moments + jnp.outer(change, change)
        )

        def due(state: State) -> State:
            kept = jax.tree.map(
                lambda new, old: jnp.where(learns, new, old), turned(state), state
            )
            # Chosen by data, the number of calls would differ from lane to lane.
            return kept._replace(calls=state.calls)

        state = jax.lax.cond(
            state.calls % interval == 1 % interval, due, lambda state: state, state
        )
        moves, inner = rprop.update(
            state.basis.T @ (state.units * grads), state.inner, value=value
        )
        return -state.units * (state.basis @ moves), state._replace(
            inner=inner,
            prev_grads=jnp.where(finite, grads, state.prev_grads),
            calls=state.calls + 1,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
