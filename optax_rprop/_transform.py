"""The gradient transformation: maps the rule over a pytree."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_rprop._check_arguments import (
    check_params,
    check_state,
    check_updates,
    check_value,
)
from optax_rprop._check_hyperparams import check_hyperparams, check_option
from optax_rprop._layouts import LAYOUTS, StateLayout
from optax_rprop._layouts.interface import (
    Fields,
    HyperParams,
    Layout,
    leaves_of,
    trees_of,
)
from optax_rprop._rule import (
    VARIANTS,
    LossTrend,
    Rule,
    Variant,
    compare_loss,
    decide,
)


# Compiled by itself, so that leaves of one shape share one trace, and an update that
# is not compiled as a whole is one call a leaf.
@functools.partial(jax.jit, static_argnames=("rule", "layout", "skip_zero_grads"))
def _update_leaf(
    grads: jax.Array,
    memory: Fields,
    context: Any,
    trend: LossTrend | None,
    *,
    rule: Rule,
    layout: Layout,
    skip_zero_grads: bool,
) -> tuple[jax.Array, Fields]:
    codes = layout.codes(memory, context)
    decision = decide(grads, codes, trend, rule=rule, skip_zero_grads=skip_zero_grads)
    memory = layout.advance(memory, decision, context)
    # Read from the new memory as stored. Taken from the decision, XLA would compute
    # the rule again from the old memory, which it then has to copy before the new one
    # overwrites it.
    moves = layout.moves(memory, context, grads.dtype)
    if skip_zero_grads:
        # What is remembered stays, but it is not acted on again.
        held = grads == 0
        if rule.takes_back != "never":
            held &= jnp.abs(layout.codes(memory, context)) < 2
        moves = jax.lax.select(held, jnp.zeros_like(moves), moves)
    return moves, memory


def scale_by_rprop(
    learning_rate: jax.typing.ArrayLike = 0.01,
    eta_minus: jax.typing.ArrayLike = 0.5,
    eta_plus: jax.typing.ArrayLike = 1.2,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
    *,
    variant: Variant = "irprop-",
    skip_zero_grads: bool = False,
    state_layout: StateLayout = "split",
) -> optax.GradientTransformationExtraArgs:
    """Replace each partial derivative by its sign times an adapted step size.

    As with all of Optax's ``scale_by_*``, what comes out points along the
    gradient, to be subtracted: `optax_rprop.rprop` is this followed by
    ``optax.scale(-1.0)``, and describes rules, arguments and errors.

    Args:
      learning_rate: Initial step size.
      eta_minus: Factor of a step size whose gradient changed sign.
      eta_plus: Factor of a step size whose gradient kept its sign.
      min_step_size: Lower bound of the step sizes.
      max_step_size: Upper bound of the step sizes.
      variant: ``"rprop-"``, ``"rprop+"``, ``"irprop-"`` or ``"irprop+"``.
      skip_zero_grads: Whether a gradient of 0 leaves the remembered sign as it is.
      state_layout: ``"split"``, ``"packed"`` or ``"byte"``.

    Returns:
      The gradient transformation. Its state is an `RpropState`, `PackedRpropState` or
      `ByteRpropState`.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> tx = optax_rprop.scale_by_rprop(learning_rate=0.5)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> updates, state = tx.update(jnp.array([3.0, -1e-30, 0.0]), tx.init(params))
      >>> print(updates)
      [ 0.5 -0.5  0. ]
    """
    check_option("variant", variant, VARIANTS)
    check_option("state_layout", state_layout, LAYOUTS)
    hyperparams = HyperParams(
        learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    )
    check_hyperparams(**hyperparams._asdict(), skip_zero_grads=skip_zero_grads)
    rule = VARIANTS[variant]
    watches_loss = rule.takes_back == "if the loss rose"
    layout = LAYOUTS[state_layout]
    numbers = layout.prepare(hyperparams, rule.mark)

    def init_fn(params: optax.Params) -> Any:
        shared = layout.shared_fields(numbers)
        leaves = [layout.init(param, numbers, shared) for param in check_params(params)]
        prev_value = None
        if watches_loss:
            dtype = jnp.result_type(float)
            # The largest number stands for "none yet": an infinity or a NaN would
            # trip JAX's debugging flags.
            prev_value = jnp.full((), jnp.finfo(dtype).max, dtype)
        return layout.state_type(
            **trees_of(layout, leaves, jax.tree.structure(params)),
            **shared,
            prev_value=prev_value,
            variant=rule.mark,
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        check_state(state, layout.state_type, state_layout, variant)
        trees = [getattr(state, name) for name in layout.parameter_fields]
        grads = check_updates(updates, trees)
        trend, prev_value = None, state.prev_value
        if watches_loss:
            value = check_value(value).astype(prev_value.dtype)
            trend, prev_value = compare_loss(value, prev_value)

        context = layout.bind(state, numbers)
        memories = leaves_of(layout, state)
        update_leaf = functools.partial(
            _update_leaf, rule=rule, layout=layout, skip_zero_grads=skip_zero_grads
        )
        moves, leaves = [], []
        for grad, memory in zip(grads, memories, strict=True):
            move, new_memory = update_leaf(grad, memory, context, trend)
            moves.append(move)
            leaves.append(new_memory)
        treedef = jax.tree.structure(updates)
        trees = trees_of(layout, leaves, treedef)
        new_state = state._replace(**trees, prev_value=prev_value)
        return treedef.unflatten(moves), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
