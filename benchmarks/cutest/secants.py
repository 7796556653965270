"""Step sizes from an approximate Hessian, a candidate for the eigenbasis.

At a basis update, the step size along a direction t with the derivative g becomes
|g| / |t' B t|, within a factor of the one carried over, where the last changes of the
gradient along t agree with the symmetric rank-one matrix B (Nocedal and Wright,
Numerical Optimization, 2006, section 6.2, https://doi.org/10.1007/978-0-387-40065-5).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

JUDGED, LARGEST_ERROR = 5, 0.6
FACTOR, FIRST_FACTOR = 10.0, 1e4
LEAST_PRODUCT = 1e-8


class Secants(NamedTuple):
    """The matrix, the last point, and the last changes, newest first."""

    params: jax.Array
    matrix: jax.Array
    moves: jax.Array  # Rows are 0 until there are as many.
    changes: jax.Array


def new_secants(params: jax.Array) -> Secants:
    """Before the first gradient."""
    rows = jnp.zeros((JUDGED, params.size), params.dtype)
    square = jnp.zeros((params.size, params.size), params.dtype)
    return Secants(jnp.zeros_like(params), square, rows, rows)


def with_pair(
    secants: Secants, params: jax.Array, change: jax.Array, compared: jax.Array
) -> Secants:
    """After one more finite gradient; `compared` if there was one before."""
    move = params - secants.params
    length = jnp.linalg.norm(move)
    compared &= length > 0
    length = jnp.where(compared, length, 1)
    is_first = jnp.all(secants.matrix == 0)
    first = jnp.linalg.norm(change) / length * jnp.eye(move.size, dtype=move.dtype)
    matrix = jnp.where(is_first & compared, first, secants.matrix)
    residual = change - matrix @ move
    product = residual @ move
    least = LEAST_PRODUCT * jnp.linalg.norm(residual) * length
    learned = compared & (jnp.abs(product) > least)
    residual = jnp.where(learned, residual, 0)
    matrix += jnp.outer(residual, residual / jnp.where(learned, product, 1))

    def pushed(rows: jax.Array, row: jax.Array) -> jax.Array:
        return jnp.where(compared, jnp.concatenate([row[None], rows[:-1]]), rows)

    moves, changes = pushed(secants.moves, move), pushed(secants.changes, change)
    return Secants(params, matrix, moves, changes)


def estimated(
    secants: Secants, basis: jax.Array, grads: jax.Array, step_sizes: jax.Array
) -> Any:
    """Step sizes along the columns of a new basis."""
    seen = secants.changes @ basis
    expected = secants.moves @ secants.matrix @ basis

    def size(rows: jax.Array) -> jax.Array:
        return jnp.linalg.norm(rows, axis=0)

    error = LARGEST_ERROR * jnp.hypot(size(seen), size(expected))
    curvatures = jnp.abs(jnp.sum(basis * (secants.matrix @ basis), axis=0))
    wanted = jnp.abs(grads @ basis) / curvatures
    trusted = (size(seen - expected) < error) & (wanted > 0) & jnp.isfinite(wanted)
    factor = jnp.where(jnp.any(secants.moves[1] != 0), FACTOR, FIRST_FACTOR)
    wanted = jnp.clip(wanted, step_sizes / factor, step_sizes * factor)
    return jnp.where(trusted, wanted, step_sizes).astype(step_sizes.dtype)
