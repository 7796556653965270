"""Helpers for leaves that are sharded or belong to many models."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer


def gathered(leaf: jax.Array) -> jax.Array:
    """The whole leaf on every device."""
    # Versions of JAX that cannot reshard have no complete Explicit mode either.
    if not hasattr(jax.sharding, "reshard"):
        return leaf
    mesh = jax.typeof(leaf).sharding.mesh
    if not mesh.explicit_axes:
        return leaf
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(leaf, everywhere)


def placed_like(leaf: jax.Array, other: jax.Array) -> jax.Array:
    """A gathered leaf with the sharding of another."""
    if gathered(other) is other:
        return leaf
    return jax.sharding.reshard(leaf, jax.typeof(other).sharding)


def zero_of(leaves: Iterable[Any]) -> jax.Array:
    """A 0 that varies over devices and models wherever one of the leaves does.

    A constant does not. Inside ``jax.shard_map`` and ``jax.vmap``, the carry of a loop
    changes its type if it starts as a constant and then depends on the leaves. Adding
    this 0 to the constant gives it the right type from the start.
    """
    zero = jnp.zeros(())
    for leaf in leaves:
        if isinstance(leaf, Tracer):
            zero += jnp.sum(jnp.zeros_like(leaf, dtype=zero.dtype))
    return zero
