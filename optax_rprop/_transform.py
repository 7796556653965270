"""The gradient transformation: maps the rule over a pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_rprop._rule import ROSE, VARIANTS, LossTrend, Variant, adapt, compare_loss
from optax_rprop._state import LAYOUTS, Fields, StateLayout, memory_dtype
from optax_rprop._validation import (
    check_hyperparams,
    check_params,
    check_updates,
    check_value,
    within_packed_range,
)


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
      state_layout: ``"split"`` or ``"packed"``.

    Returns:
      The gradient transformation. Its state is an `RpropState`, or a
      `PackedRpropState` with ``state_layout="packed"``.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax_rprop
      >>> tx = optax_rprop.scale_by_rprop(learning_rate=0.5)
      >>> params = jnp.array([1.0, 2.0, 3.0])
      >>> updates, state = tx.update(jnp.array([3.0, -1e-30, 0.0]), tx.init(params))
      >>> print(updates)
      [ 0.5 -0.5  0. ]
    """
    check_hyperparams(
        learning_rate=learning_rate,
        eta_minus=eta_minus,
        eta_plus=eta_plus,
        min_step_size=min_step_size,
        max_step_size=max_step_size,
        variant=variant,
        skip_zero_grads=skip_zero_grads,
        state_layout=state_layout,
    )
    if state_layout == "packed":
        learning_rate, min_step_size, max_step_size = map(
            within_packed_range, (learning_rate, min_step_size, max_step_size)
        )
    forgets, undoes = VARIANTS[variant]
    layout = LAYOUTS[state_layout]

    def init_leaf(param: Any) -> Fields:
        # `full_like` and `zeros_like` keep the parameter's sharding.
        return layout.encode(
            jnp.full_like(param, learning_rate, dtype=memory_dtype(param)),
            jnp.zeros_like(param, dtype=jnp.int8),
        )

    def build_state(
        fields: list[Fields], treedef: Any, prev_value: jax.Array | None
    ) -> Any:
        # By number, not by `zip`: a tree without leaves has its fields too.
        trees = {
            name: treedef.unflatten([leaf[i] for leaf in fields])
            for i, name in enumerate(layout.state_type._fields[:-1])
        }
        return layout.state_type(**trees, prev_value=prev_value)

    def init_fn(params: optax.Params) -> Any:
        fields = [init_leaf(param) for param in check_params(params)]
        prev_value = None
        if undoes == "if the loss rose":
            dtype = jnp.result_type(float)
            # The largest number stands for "none yet": an infinity or a NaN would
            # trip JAX's debugging flags.
            prev_value = jnp.full((), jnp.finfo(dtype).max, dtype)
        return build_state(fields, jax.tree.structure(params), prev_value)

    def update_leaf(
        grads: jax.Array, memory: Fields, undo_if: LossTrend | None
    ) -> tuple[jax.Array, Fields]:
        prev_step_sizes, prev_signs = layout.decode(memory)
        adapted = adapt(
            grads,
            prev_step_sizes,
            prev_signs,
            forgets=forgets,
            undo_if=undo_if,
            skip_zero_grads=skip_zero_grads,
            eta_minus=eta_minus,
            eta_plus=eta_plus,
            min_step_size=min_step_size,
            max_step_size=max_step_size,
        )
        new_memory = layout.encode(adapted.step_sizes, adapted.signs)
        # The move is read from the new state as stored. Taken from `adapted`, XLA
        # would compute the rule again from the old state, which it then has to
        # copy before the new one overwrites it.
        moves = layout.moves(new_memory)
        if adapted.skip is not None:
            moves = jnp.where(adapted.skip, jnp.zeros_like(moves), moves)
        if adapted.undo is not None:
            moves = jnp.where(adapted.undo, -layout.moves(memory), moves)
        return moves.astype(grads.dtype), new_memory

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        value: jax.typing.ArrayLike | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, Any]:
        del params, extra_args
        if not isinstance(state, layout.state_type):
            raise TypeError(
                f"state must be a {layout.state_type.__name__}, as `init` returns it"
                f" with state_layout={state_layout!r}, got {type(state).__name__}. A"
                " checkpoint is restored into the state that `init` returns."
            )
        *trees, prev_value = state
        grads = check_updates(updates, trees)
        undo_if = ROSE if undoes == "always" else None
        if undoes == "if the loss rose":
            if prev_value is None:
                raise ValueError(
                    f"state holds no loss to compare with, which variant {variant!r}"
                    " needs: it comes from another variant. Start from `init`."
                )
            value = check_value(value).astype(prev_value.dtype)
            undo_if, prev_value = compare_loss(value, prev_value)

        memories = zip(*map(jax.tree.leaves, trees), strict=True)
        moves, fields = [], []
        for grad, memory in zip(grads, memories, strict=True):
            move, new_memory = update_leaf(grad, memory, undo_if)
            moves.append(move)
            fields.append(new_memory)
        treedef = jax.tree.structure(updates)
        return treedef.unflatten(moves), build_state(fields, treedef, prev_value)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
