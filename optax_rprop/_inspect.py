"""Inspects the state of Rprop inside any optimizer's state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from optax_rprop._layouts import Found, find_states
from optax_rprop._layouts.layout import Memory, as_step_size
from optax_rprop._layouts.split import RpropState
from optax_rprop._rule import remembered
from optax_rprop._sharding import gathered


class RpropDiagnostics(NamedTuple):
    """Summary of a state of Rprop; fields have shape () and floating dtype.

    Attributes:
      smallest_step_size: The smallest step size, in units of the parameters.
      median_step_size: The median step size.
      largest_step_size: The largest step size.
      fraction_at_min: The fraction of coordinates, from 0 to 1, whose step size
        is at its lower bound; None if the bound was not given.
      fraction_at_max: The fraction whose step size is at its upper bound; None if the
        bound was not given.
      fraction_forgotten: The fraction whose remembered sign is 0.
    """

    smallest_step_size: jax.Array
    median_step_size: jax.Array
    largest_step_size: jax.Array
    fraction_at_min: jax.Array | None
    fraction_at_max: jax.Array | None
    fraction_forgotten: jax.Array


def _find(opt_state: optax.OptState) -> Found:
    found = find_states(opt_state)
    if not found:
        raise ValueError(
            "opt_state must hold a state of Rprop, got none in"
            f" {jax.tree.structure(opt_state)}."
        )
    if len(found) > 1:
        paths = ", ".join("opt_state" + each.path for each in found)
        raise ValueError(
            f"opt_state must hold one state of Rprop, got {len(found)}: {paths}. Pass"
            " one of them."
        )
    return found[0]


def get_rprop_state(opt_state: optax.OptState) -> RpropState:
    """Find the state of Rprop in an optimizer's state, and convert it to ``"split"``.

    The result is the exact state as ``state_layout="split"`` stores it, whatever the
    layout was: a run can continue from it in that layout, bit for bit if the layout was
    ``"split"`` or ``"packed"``. Works inside ``jax.jit`` and for every wrapper
    whose state is a pytree: chains, ``optax.inject_hyperparams``, ``optax.MultiSteps``,
    Flax NNX and so on.

    Inside `in_eigenbasis` the coordinates are rotated, and with ``full_matrix`` they
    are one vector and not in units of the parameters.

    Args:
      opt_state: Any pytree in which exactly one state of Rprop is nested.

    Returns:
      The state with step sizes and remembered signs in separate trees. Its arrays are
      those of `opt_state` if the layout is ``"split"``.

    Raises:
      ValueError: There is no state of Rprop in it, or there are several.

    Example:
      Continue a run in another layout:

      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> packed = optax_rprop.rprop(learning_rate=0.25, state_layout="packed")
      >>> state = packed.init({"w": jnp.zeros(2)})
      >>> _, state = packed.update({"w": jnp.array([7.0, -7.0])}, state)
      >>> plain = optax_rprop.get_rprop_state(state)
      >>> print(plain.step_sizes["w"], plain.prev_grad_signs["w"])
      [0.25 0.25] [ 1 -1]
      >>> split = optax_rprop.rprop(learning_rate=0.25)
      >>> _, *others = split.init({"w": jnp.zeros(2)})
      >>> updates, _ = split.update({"w": jnp.array([7.0, 7.0])}, (plain, *others))
      >>> print(updates["w"])
      [-0.3 -0. ]
    """
    found = _find(opt_state)
    memory = found.memory()
    treedef = jax.tree.structure(found.tree)
    return RpropState(
        step_sizes=treedef.unflatten([step_sizes for step_sizes, _ in memory]),
        prev_grad_signs=treedef.unflatten(
            [codes.astype(jnp.int8) for _, codes in memory]
        ),
        prev_value=found.state.prev_value,
        variant=found.state.variant,
    )


def _summarize(
    memory: list[Memory],
    min_step_size: jax.typing.ArrayLike | None,
    max_step_size: jax.typing.ArrayLike | None,
    spacing: float,
) -> RpropDiagnostics:
    dtype = jnp.result_type(float)
    step_sizes = [leaf for leaf, _ in memory]

    def gather(leaves: list[jax.Array]) -> jax.Array:
        # Arrays of different shardings cannot be concatenated.
        whole = map(gathered, leaves)
        return jnp.concatenate([jnp.ravel(leaf).astype(dtype) for leaf in whole])

    def fraction(test: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return jnp.mean(gather(list(map(test, step_sizes))))

    # A bound is compared as Rprop reads it: 1e-6 in float32 is not 1e-6 in float64, and
    # 0 is the smallest normal number. In a byte, the outermost level counts as at its
    # bound, which may lie beyond it.
    reach = max(1.0, 0.9999 * spacing)
    fraction_at_min = fraction_at_max = None
    if min_step_size is not None:
        fraction_at_min = fraction(
            lambda leaf: leaf <= as_step_size(min_step_size, leaf.dtype) * reach
        )
    if max_step_size is not None:
        fraction_at_max = fraction(
            lambda leaf: leaf >= as_step_size(max_step_size, leaf.dtype) / reach
        )
    all_step_sizes = gather(step_sizes)
    return RpropDiagnostics(
        smallest_step_size=jnp.min(all_step_sizes),
        median_step_size=jnp.median(all_step_sizes),
        largest_step_size=jnp.max(all_step_sizes),
        fraction_at_min=fraction_at_min,
        fraction_at_max=fraction_at_max,
        fraction_forgotten=jnp.mean(
            gather([remembered(codes) == 0 for _, codes in memory])
        ),
    )


def diagnostics(
    opt_state: optax.OptState,
    *,
    min_step_size: jax.typing.ArrayLike | None = None,
    max_step_size: jax.typing.ArrayLike | None = None,
) -> RpropDiagnostics:
    """Summarize the state of Rprop in up to six numbers.

    How to read them:

    - The median and the largest fall steadily: the run is converging. Once
      most coordinates are at the lower bound, there is no further progress.
    - Many coordinates at the upper bound: either the bound limits progress, or the loss
      has no finite minimum and the parameters diverge.
    - Some stay at the lower bound and some at the upper: the bounds do not fit the
      units of the parameters. Use ``min_step_size=1e-12, max_step_size=1e12``.
    - ``fraction_forgotten`` is the fraction of coordinates whose last gradient changed
      sign or was 0; with ``skip_zero_grads=True``, zeros do not count. Near a minimum
      it is 0.2 to 0.5. If it is above about 0.2 from the start while the loss hardly
      falls, the signs are noise: use larger batches, or `minibatch_rprop`. ``rprop-``
      remembers the new sign, so there it counts only gradients of 0 or NaN.

    Inside `in_eigenbasis`, coordinates are those of the basis, as for
    `get_rprop_state`.

    Args:
      opt_state: As for `get_rprop_state`.
      min_step_size: The lower bound that the optimizer was given. The state does not
        contain it; without it, `fraction_at_min` is None.
      max_step_size: The same for the upper bound and `fraction_at_max`.

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
    found = _find(opt_state)
    memory = found.memory()
    if not any(step_sizes.size for step_sizes, _ in memory):
        raise ValueError("opt_state must hold at least one step size, got none.")
    spacing = found.layout.spacing(found.state)
    return _summarize(memory, min_step_size, max_step_size, spacing)


def diagnostics_by_leaf(
    opt_state: optax.OptState,
    *,
    min_step_size: jax.typing.ArrayLike | None = None,
    max_step_size: jax.typing.ArrayLike | None = None,
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
    found = _find(opt_state)
    spacing = found.layout.spacing(found.state)
    named, _ = jax.tree_util.tree_flatten_with_path(found.tree)
    return {
        jax.tree_util.keystr(path): _summarize(
            [leaf], min_step_size, max_step_size, spacing
        )
        for (path, _), leaf in zip(named, found.memory(), strict=True)
        if leaf[0].size
    }
