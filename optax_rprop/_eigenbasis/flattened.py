"""All parameters as one vector, for a shared basis."""

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optax_rprop._arguments import matching_leaves, real_leaves, shape_of
from optax_rprop._layouts.layout import memory_dtype
from optax_rprop._sharding import gathered, placed_like


def flattened(
    inner: optax.GradientTransformationExtraArgs, max_size: int
) -> optax.GradientTransformationExtraArgs:
    """Runs `inner` on all leaves as one vector; the state is that of `inner`."""

    def flat(leaves: list[Any]) -> jax.Array:
        dtype = np.result_type(np.float32, *map(memory_dtype, leaves))
        vectors = [
            jnp.zeros(leaf.size, dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jnp.ravel(gathered(jnp.asarray(leaf))).astype(dtype)
            for leaf in leaves
        ]
        return jnp.concatenate([jnp.zeros(0, dtype), *vectors])

    def init_fn(params: optax.Params) -> Any:
        leaves = real_leaves(params)
        size = sum(math.prod(shape_of(leaf)) for leaf in leaves)
        if size > max_size:
            raise ValueError(
                f"params must have at most max_size={max_size} coordinates for"
                f" full_matrix=True, got {size}. Raise max_size, at a cost that grows"
                " with its cube, or leave full_matrix out."
            )
        return inner.init(flat(leaves))

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params
        leaves = matching_leaves(updates, [])
        vector, state = inner.update(flat(leaves), state, **extra_args)
        ends = list(itertools.accumulate(leaf.size for leaf in leaves))
        parts = zip(jnp.split(jnp.asarray(vector), ends), leaves, strict=False)
        new = [
            placed_like(part.reshape(leaf.shape), leaf).astype(leaf.dtype)
            for part, leaf in parts
        ]
        return jax.tree.structure(updates).unflatten(new), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
