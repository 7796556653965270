"""Rprop as a gradient transformation, and ready for `optax.apply_updates`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optax_rprop._arguments import (
    check_state,
    matching_leaves,
    real_leaves,
    scalar_loss,
)
from optax_rprop._hyperparams import (
    check_arrays,
    check_option,
    read_hyperparams,
    translates_pytorch,
)
from optax_rprop._layouts import LAYOUTS, StateLayout
from optax_rprop._layouts.layout import Fields, Layout, fields_of, trees_of
from optax_rprop._rule import (
    VARIANTS,
    LossTrend,
    Rule,
    Variant,
    compare_loss,
    decide,
    was_undone,
)
from optax_rprop._sharding import zero_of


# Compiled by itself, so that leaves of one shape share one trace, and an update that
# is not compiled as a whole is one call a leaf.
@functools.partial(jax.jit, static_argnames=("rule", "skip_zero_grads"))
def _update_leaf(
    grads: jax.Array,
    fields: Fields,
    layout: Layout,
    trend: LossTrend | None,
    *,
    rule: Rule,
    skip_zero_grads: bool,
) -> tuple[jax.Array, Fields]:
    codes = layout.codes(fields)
    decision = decide(grads, codes, trend, rule=rule, skip_zero_grads=skip_zero_grads)
    fields = layout.advance(fields, decision)
    # Read from the new fields as stored. Computed from the decision, XLA would apply
    # the rule again to the old fields, which it then has to copy before the new ones
    # overwrite them.
    updates = layout.updates(fields, grads.dtype)
    if skip_zero_grads:
        # The remembered sign stays, but it is not acted on again.
        held = grads == 0
        if rule.undoes:
            held &= ~was_undone(layout.codes(fields))
        updates = jax.lax.select(held, jnp.zeros_like(updates), updates)
    return updates, fields


@translates_pytorch
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
    if not isinstance(skip_zero_grads, bool):
        raise TypeError(
            f"skip_zero_grads must be True or False, got {skip_zero_grads!r}."
        )
    hyperparams = read_hyperparams(
        learning_rate, eta_minus, eta_plus, min_step_size, max_step_size
    )
    rule, layout = VARIANTS[variant], LAYOUTS[state_layout]
    numbers = layout.fitted(hyperparams, rule)

    def init_fn(params: optax.Params) -> Any:
        check_arrays(hyperparams)
        leaves = real_leaves(params)
        new = layout.bound(numbers, rule)
        fields = [new.init(leaf) for leaf in leaves]
        prev_value = None
        if rule.reads_loss:
            dtype = jnp.result_type(float)
            # The largest number stands for "none yet": an infinity or a NaN would
            # trip JAX's debugging flags.
            none_yet = jnp.full((), jnp.finfo(dtype).max, dtype)
            prev_value = none_yet + zero_of(leaves).astype(dtype)
        return layout.state_type(
            **trees_of(layout, fields, jax.tree.structure(params)),
            **new.shared_fields(),
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
        check_state(state, layout.state_type, state_layout, rule)
        trees = [getattr(state, name) for name in layout.tree_names]
        grads = matching_leaves(updates, trees)
        trend, prev_value = None, state.prev_value
        if rule.reads_loss:
            loss = scalar_loss(value).astype(prev_value.dtype)
            trend, prev_value = compare_loss(loss, prev_value)

        resumed = layout.bound(numbers, rule, state)
        update_leaf = functools.partial(
            _update_leaf, rule=rule, skip_zero_grads=skip_zero_grads
        )
        results = [
            update_leaf(grad, fields, resumed, trend)
            for grad, fields in zip(grads, fields_of(layout, state), strict=True)
        ]
        treedef = jax.tree.structure(updates)
        new_trees = trees_of(layout, [fields for _, fields in results], treedef)
        new_state = state._replace(**new_trees, prev_value=prev_value)
        return treedef.unflatten([update for update, _ in results]), new_state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@translates_pytorch
def rprop(
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
    r"""Rprop, resilient backpropagation: steps by the signs of gradients alone.

    Every coordinate has a step size of its own. It grows while the sign of the
    partial derivative stays and shrinks when it changes; the size of the
    gradient plays no part. That suits full-batch, deterministic gradients and
    coordinates of very different scales. On mini-batches the signs are noise
    where the gradient is small, and Rprop fails: take `minibatch_rprop`.

    Per coordinate, let :math:`g` be the partial derivative,
    :math:`p \in \{-1, 0, 1\}` the remembered sign, :math:`d` the step size and
    :math:`s = \mathrm{sign}(g) \, p`. Each step first adapts the step size,

    .. math::

      d \leftarrow \mathrm{clip}(d_\mathrm{min}, d_\mathrm{max},
        \begin{cases} \eta^+ d & s > 0 \\ d & s = 0 \\ \eta^- d & s < 0
        \end{cases})

    and then, unless :math:`s < 0`, moves by :math:`-\mathrm{sign}(g) \, d` and
    remembers :math:`\mathrm{sign}(g)`. The variants differ in what they do when
    the sign has changed, :math:`s < 0`:

    =========== ================================================== ============
    variant     update                                             remembered
    =========== ================================================== ============
    ``rprop-``  :math:`-\mathrm{sign}(g) \, d`, the reduced step   sign(g)
    ``irprop-`` 0                                                  0
    ``rprop+``  the last update undone                             0
    ``irprop+`` the last update undone if the loss rose, else 0    0
    =========== ================================================== ============

    After a remembered 0 the step size is kept and the coordinate moves. So the
    first step moves every coordinate by exactly `learning_rate`.

    **Units.** The bounds are in units of the parameters. With the defaults, a
    parameter of magnitude 1e-8 cannot be resolved, and one of 1e5 takes thousands of
    steps, silently. Where units are unknown, take ``min_step_size=1e-12,
    max_step_size=1e12``.

    Args:
      learning_rate: Initial step size, in units of the parameters. It is read
        once, by ``init``: it is not a rate that multiplies the updates, and a
        schedule for it has no meaning. A poor value costs some steps in which
        the step sizes grow or shrink to what fits.
      eta_minus: Factor of a step size whose gradient changed sign, in (0, 1).
      eta_plus: Factor of a step size whose gradient kept its sign, above 1.
      min_step_size: Lower bound of the step sizes, in units of the parameters.
      max_step_size: Upper bound of the step sizes, in units of the parameters.
        May be scheduled by ``optax.inject_hyperparams``.
      variant: The rule: ``"irprop-"`` (the default, and what PyTorch computes),
        ``"rprop-"``, ``"rprop+"``, or ``"irprop+"``, which needs the loss at
        every step: ``update(grads, state, params, value=loss)``.
      skip_zero_grads: False (the default, and the published rules): a gradient of
        0 is remembered, so that the next step is neutral. True: a coordinate
        whose gradient is 0 is passed over and keeps its memory, as fits gradients
        that are 0 for want of information (dropout, rare features).
      state_layout: How the state is stored.

        - ``"split"``: step sizes and signs in trees of their own, 5 bytes per float32
          parameter.
        - ``"packed"``: both in one float per parameter, 4 bytes, with the same
          trajectories bit for bit. `learning_rate` and bounds must lie within 2**-42
          and 2**42.
        - ``"byte"``: both in 1 byte per parameter. Every step size is `learning_rate`
          times a power of one base, so both factors must be powers of it, as
          ``eta_plus=2**(1/3)`` is of ``eta_minus=0.5``; given as Python numbers. There
          are 85 such levels, 51 for the variants that undo, and the bounds must not
          be farther apart. Step sizes end at the outermost levels within them;
          otherwise the trajectories are those of ``"split"``, up to rounding.

        What a layout cannot hold is refused; bounds that are JAX arrays, traced ones
        too, are clipped to what it can.

    Returns:
      The optimizer: `scale_by_rprop` followed by ``optax.scale(-1.0)``. The
      updates have the dtypes of the gradients. All extra arguments of ``update``
      but ``value`` are ignored.

    Raises:
      TypeError: A hyper-parameter is not a number. By ``init`` and ``update``: a
        parameter or gradient is not of real floating dtype, `value` is not, or
        the state is of another optimizer.
      ValueError: A hyper-parameter is out of range, or `variant` or
        `state_layout` unknown. By ``update``: `value` is missing or not a scalar, the
        state is of another variant, or the gradient has another structure or shape
        than the parameters. Hyper-parameters that are JAX arrays, traced ones
        among them, are not checked for range.

    Example:
      A loss with its minimum at 0.3. The moves are 0.1, 0.12, 0.144; then the
      sign has changed, so it holds and halves the step size; then 0.072 back:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_rprop
      >>> optimizer = optax_rprop.rprop(learning_rate=0.1)
      >>> params = {"w": jnp.array(0.6)}
      >>> state = optimizer.init(params)
      >>> for _ in range(5):
      ...     grads = jax.grad(lambda p: (p["w"] - 0.3) ** 2)(params)
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     print(f"{params['w']:.3f}")
      0.500
      0.380
      0.236
      0.236
      0.308

    Notes:
      **NaN.** A NaN in the gradient carries no sign: the coordinate holds, keeps its
      step size and remembers 0. The variants that undo go back instead: ``rprop+``
      takes a NaN as a change of sign, and ``irprop+`` does so if the loss rose. An
      infinite partial derivative has a sign like any other. The state stays finite
      whatever comes.

      **Back into the domain.** After a loss that is NaN or +inf, ``irprop+`` takes
      back the last update of every coordinate, whatever it was. So the next point
      that is evaluated is the last one whose loss was finite, and never are two
      losses in a row not finite. Every step size that led outside is reduced, so that
      each point is left for the outside finitely often: with d the largest step size
      and h the distance to the boundary, both in the maximum norm, at most
      :math:`\lceil \log(d / h) / \log(1 / \eta^-) \rceil + 1` times. That is
      guaranteed for a deterministic loss whose first value is finite, with
      ``skip_zero_grads=False``, if the parameters move by the updates: constant
      scales, masks and clips behind Rprop keep the guarantee, momentum, weight decay
      and projections do not. ``rprop+`` does the same where every partial derivative
      is NaN outside. There are three limits. Going back is exact up to rounding, so
      the point inside must be farther from the boundary than that: in float32 about
      1e-7 of parameter and update. A boundary nearer than `min_step_size` is left at
      every second step, and the last parameters may lie outside: keep the last whose
      loss was finite. And without a barrier, where the gradient points outward, the
      run can bump against the boundary short of the optimum.

      After an update that was taken back, the state shows the step size that made it;
      it is reduced in the next step.

      **Rounding.** A move smaller than half the spacing of numbers around a parameter
      is lost in the addition: a float32 parameter of magnitude 32 or more cannot move
      by 1e-6, and a bfloat16 parameter :math:`w` only by more than :math:`|w| / 256`.

    References:
      rprop+: Riedmiller and Braun, A direct adaptive method for faster
      backpropagation learning: the RPROP algorithm, ICNN 1993,
      https://doi.org/10.1109/ICNN.1993.298623

      rprop-: Riedmiller, Advanced supervised learning in multi-layer perceptrons,
      Computer Standards & Interfaces 16, 1994,
      https://doi.org/10.1016/0920-5489(94)90017-5

      irprop-, irprop+: Igel and Hüsken, Empirical evaluation of the improved
      Rprop learning algorithms, Neurocomputing 50, 2003,
      https://doi.org/10.1016/S0925-2312(01)00700-7
    """
    return optax.chain(
        scale_by_rprop(
            learning_rate,
            eta_minus,
            eta_plus,
            min_step_size,
            max_step_size,
            variant=variant,
            skip_zero_grads=skip_zero_grads,
            state_layout=state_layout,
        ),
        optax.scale(-1.0),
    )


# Doctests of decorated functions are found by this name alone.
__test__ = {"scale_by_rprop": scale_by_rprop, "rprop": rprop}
