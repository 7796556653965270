"""Names that differ between the oldest and the newest JAX that is supported."""

import jax

try:
    shard_map = jax.shard_map
except AttributeError:
    from jax.experimental.shard_map import shard_map

# A context manager that makes a mesh the current one.
use_mesh = jax.set_mesh if hasattr(jax, "set_mesh") else jax.sharding.use_mesh

__all__ = ["shard_map", "use_mesh"]
