"""A look inside: reads the state of Rprop out of any optimizer's state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optax_rprop._layouts import LAYOUT_OF
from optax_rprop._layouts.interface import Layout, leaves_of
from optax_rprop._layouts.split import RpropState
from optax_rprop._rotation import gathered


class RpropDiagnostics(NamedTuple):
    """Summary of a state of Rprop; all fields have shape () and floating dtype.

    Attributes:
      smallest_step_size: The smallest step size, in units of the parameters.
      median_step_size: The median step size.
      largest_step_size: The largest step size.
      fraction_at_min: The fraction of coordinates, from 0 to 1, whose step size
        is at its lower bound.
      fraction_at_max: The fraction whose step size is at its upper bound.
      fraction_forgotten: The fraction whose remembered sign is 0.
    """

    smallest_step_size: jax.Array
    median_step_size: jax.Array
    largest_step_size: jax.Array
    fraction_at_min: jax.Array
    fraction_at_max: jax.Array
    fraction_forgotten: jax.Array


def _is_rprop_state(node: Any) -> bool:
    return type(node) in LAYOUT_OF


def _find(opt_state: Any) -> tuple[Any, Layout]:
    nodes, _ = jax.tree_util.tree_flatten_with_path(opt_state, is_leaf=_is_rprop_state)
    found = [(path, node) for path, node in nodes if _is_rprop_state(node)]
    if not found:
        raise ValueError(
            "opt_state must hold a state of Rprop, got none in"
            f" {jax.tree.structure(opt_state)}."
        )
    if len(found) > 1:
        paths = ", ".join("opt_state" + jax.tree_util.keystr(path) for path, _ in found)
        raise ValueError(
            f"opt_state must hold one state of Rprop, got {len(found)}: {paths}. Pass"
            " one of them."
        )
    ((_, state),) = found
    return state, LAYOUT_OF[type(state)]


def get_rprop_state(opt_state: Any) -> RpropState:
    """Find the state of Rprop in an optimizer's state, whatever its layout.

    Works inside ``jax.jit`` and for every wrapper whose state is a pytree: chains,
    ``optax.inject_hyperparams``, ``optax.MultiSteps``, Flax NNX and so on.

    Args:
      opt_state: Any pytree in which exactly one state of Rprop is nested.

    Returns:
      The state with step sizes and remembered signs in trees of their own.

    Raises:
      ValueError: There is no state of Rprop in it, or there are several.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> optimizer = optax_rprop.rprop(learning_rate=0.25, state_layout="packed")
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> _, state = optimizer.update({"w": jnp.array([7.0, -7.0])}, state)
      >>> plain = optax_rprop.get_rprop_state(state)
      >>> print(plain.step_sizes["w"], plain.prev_grad_signs["w"])
      [0.25 0.25] [ 1 -1]
    """
    state, layout = _find(opt_state)
    treedef = jax.tree.structure(getattr(state, layout.parameter_fields[0]))
    read = [layout.read(memory, state) for memory in leaves_of(layout, state)]
    return RpropState(
        step_sizes=treedef.unflatten([step_sizes for step_sizes, _ in read]),
        prev_grad_signs=treedef.unflatten([_remembered(codes) for _, codes in read]),
        prev_value=state.prev_value,
        variant=state.variant,
    )


def _remembered(codes: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(codes) == 2, 0, codes).astype(jnp.int8)


def _spacing(opt_state: Any) -> jax.typing.ArrayLike:
    state, layout = _find(opt_state)
    return layout.spacing(state)


def _summarize(
    step_sizes: list[jax.Array],
    signs: list[jax.Array],
    min_step_size: jax.typing.ArrayLike,
    max_step_size: jax.typing.ArrayLike,
    spacing: jax.typing.ArrayLike,
) -> RpropDiagnostics:
    dtype = jnp.result_type(float)

    def gather(leaves: list[jax.Array]) -> jax.Array:
        # Arrays of different shardings cannot be concatenated.
        whole = map(gathered, leaves)
        return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in whole])

    # A bound is compared as it is stored: 1e-6 in float32 is not 1e-6 in float64. No
    # step size is nearer to it than the last one within, but for rounding.
    def reach(leaf: jax.Array) -> jax.Array:
        return jnp.maximum(1.0, 0.9999 * jnp.asarray(spacing)).astype(leaf.dtype)

    at_min = [
        leaf <= jnp.asarray(min_step_size, leaf.dtype) * reach(leaf)
        for leaf in step_sizes
    ]
    at_max = [
        leaf >= jnp.asarray(max_step_size, leaf.dtype) / reach(leaf)
        for leaf in step_sizes
    ]
    all_step_sizes = gather(step_sizes)
    return RpropDiagnostics(
        smallest_step_size=jnp.min(all_step_sizes),
        median_step_size=jnp.median(all_step_sizes),
        largest_step_size=jnp.max(all_step_sizes),
        fraction_at_min=jnp.mean(gather(at_min)),
        fraction_at_max=jnp.mean(gather(at_max)),
        fraction_forgotten=jnp.mean(gather([leaf == 0 for leaf in signs])),
    )


def diagnostics(
    opt_state: Any,
    *,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
) -> RpropDiagnostics:
    """Summarize the state of Rprop in six numbers.

    How to read them:

    - The median falls steadily, and with it the largest: the parameters close in
      on a minimum. Once most coordinates are at the lower bound, no more comes.
    - Many coordinates at the upper bound: it limits the pace, or the loss
      flattens out towards infinity and the parameters run after it.
    - Some at the lower bound and some at the upper, for long: the bounds do not fit
      the units of the parameters. Take ``min_step_size=1e-12,
      max_step_size=1e12``.
    - ``fraction_forgotten`` is the fraction of coordinates that just changed sign
      (or whose gradient is 0). Near a minimum it lies around a third. If it is
      that high from the start while the loss hardly falls, the signs are noise:
      take larger batches. ``rprop-`` remembers the new sign, so there it counts
      only gradients of 0 or NaN.

    Args:
      opt_state: As for `get_rprop_state`.
      min_step_size: The lower bound that the optimizer was given; the state does
        not hold it.
      max_step_size: The upper bound, likewise.

    Returns:
      The summary over all coordinates.

    Raises:
      ValueError: As for `get_rprop_state`, or there is no coordinate.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> optimizer = optax_rprop.rprop(learning_rate=0.25)
      >>> state = optimizer.init({"w": jnp.zeros(2)})
      >>> _, state = optimizer.update({"w": jnp.array([7.0, 0.0])}, state)
      >>> summary = optax_rprop.diagnostics(state)
      >>> print(summary.median_step_size, summary.fraction_forgotten)
      0.25 0.5
    """
    state = get_rprop_state(opt_state)
    step_sizes = jax.tree.leaves(state.step_sizes)
    if not any(leaf.size for leaf in step_sizes):
        raise ValueError("opt_state must hold at least one step size, got none.")
    signs = jax.tree.leaves(state.prev_grad_signs)
    return _summarize(
        step_sizes, signs, min_step_size, max_step_size, _spacing(opt_state)
    )


def diagnostics_by_leaf(
    opt_state: Any,
    *,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
) -> dict[str, RpropDiagnostics]:
    """Summarize the state of Rprop leaf by leaf, for instance for a heat map.

    Args:
      opt_state: As for `get_rprop_state`.
      min_step_size: As for `diagnostics`.
      max_step_size: As for `diagnostics`.

    Returns:
      For each parameter that is not of size 0, keyed by its path as
      ``jax.tree_util.keystr`` writes it, the summary over its coordinates.

    Raises:
      ValueError: As for `get_rprop_state`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> optimizer = optax_rprop.rprop(learning_rate=0.25)
      >>> state = optimizer.init({"w": jnp.zeros(2), "b": jnp.zeros(())})
      >>> for path, summary in optax_rprop.diagnostics_by_leaf(state).items():
      ...     print(path, summary.median_step_size)
      ['b'] 0.25
      ['w'] 0.25
    """
    state = get_rprop_state(opt_state)
    spacing = _spacing(opt_state)
    named, _ = jax.tree_util.tree_flatten_with_path(state.step_sizes)
    signs = jax.tree.leaves(state.prev_grad_signs)
    return {
        jax.tree_util.keystr(path): _summarize(
            [step_sizes], [leaf_signs], min_step_size, max_step_size, spacing
        )
        for (path, step_sizes), leaf_signs in zip(named, signs, strict=True)
        if step_sizes.size
    }
