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
    per_parameter,
    read_hyperparams,
    translates_pytorch,
)
from optax_rprop._initial import InitialStepSizes, initial_step_sizes
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
# is not compiled as a whole needs one call per leaf.
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
        # The remembered sign stays, but it causes no further update.
        held = grads == 0
        if rule.undoes:
            held &= ~was_undone(layout.codes(fields))
        updates = jax.lax.select(held, jnp.zeros_like(updates), updates)
    return updates, fields


@translates_pytorch
def scale_by_rprop(
    learning_rate: InitialStepSizes = 0.01,
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

    As with Optax's other ``scale_by_*``, updates point along the gradient. See
    `optax_rprop.rprop`, which is this followed by ``optax.scale(-1.0)``, for variants,
    arguments and errors.

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
    own_step_sizes = per_parameter(learning_rate)
    rule, layout = VARIANTS[variant], LAYOUTS[state_layout]
    numbers = layout.fitted(hyperparams, rule)

    def init_fn(params: optax.Params) -> Any:
        check_arrays(**hyperparams._asdict())
        leaves = real_leaves(params)
        step_sizes = [numbers.learning_rate] * len(leaves)
        # Optax's `map_params` asks with a stand-in for parameters that has no leaves.
        if own_step_sizes and leaves:
            tree = own_step_sizes(params=params)
            step_sizes = initial_step_sizes(tree, params, numbers)
        new = layout.bound(numbers, rule)
        fields = list(map(new.init, leaves, step_sizes))
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
    learning_rate: InitialStepSizes = 0.01,
    eta_minus: jax.typing.ArrayLike = 0.5,
    eta_plus: jax.typing.ArrayLike = 1.2,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
    *,
    variant: Variant = "irprop-",
    skip_zero_grads: bool = False,
    state_layout: StateLayout = "split",
) -> optax.GradientTransformationExtraArgs:
    r"""Rprop (resilient backpropagation): step sizes adapted by gradient signs alone.

    Every coordinate has its own step size. It grows while the sign of the partial
    derivative stays the same and shrinks when it changes; the magnitude of the gradient
    is never used. This suits full-batch, deterministic gradients and coordinates of
    very different scales. With mini-batches the signs of small derivatives are noise,
    and Rprop fails; use `minibatch_rprop` instead.

    Per coordinate, let :math:`g` be the partial derivative,
    :math:`p \in \{-1, 0, 1\}` the remembered sign, :math:`d` the step size and
    :math:`s = \mathrm{sign}(g) \, p`. Each step first adapts the step size,

    .. math::

      d \leftarrow \mathrm{clip}(
        \begin{cases} \eta^+ d & s > 0 \\ d & s = 0 \\ \eta^- d & s < 0
        \end{cases}, d_\mathrm{min}, d_\mathrm{max})

    and then, unless :math:`s < 0`, updates the coordinate by
    :math:`-\mathrm{sign}(g) \, d` and remembers :math:`\mathrm{sign}(g)`. The variants
    differ in how they treat a changed sign, :math:`s < 0`:

    =========== ================================================== ============
    variant     update                                             remembered
    =========== ================================================== ============
    ``rprop-``  :math:`-\mathrm{sign}(g) \, d`, the reduced step   sign(g)
    ``irprop-`` 0                                                  0
    ``rprop+``  undoes the last update                             0
    ``irprop+`` undoes the last update if the loss rose, else 0    0
    =========== ================================================== ============

    If the remembered sign is 0, the step size stays as it is. So the first step updates
    every coordinate whose gradient is not 0 by exactly its initial step size. An update
    that is undone leaves :math:`d` as it is; :math:`d` shrinks in the next step. Step
    sizes are float64 for float64 parameters and float32 for all others.

    Args:
      learning_rate: Initial step size, in units of the parameters. Read once, by
        ``init``. It does not multiply the updates: a schedule is refused, and one by
        ``optax.inject_hyperparams`` has no effect. A poor value only costs the few
        steps in which the step sizes adapt, unless the curvature is extreme.

        - A number: that of all parameters.
        - A pytree of numbers and arrays with the structure of the parameters, or a
          prefix of it: each in the units of its parameter, and of a shape that
          broadcasts to the parameter's. An array is a tree, too.
        - A callable that returns one of these. ``init`` calls it by keyword, as
          ``learning_rate(params=params)``, so its argument must be named ``params``;
          a schedule has no such argument.

        Initial step sizes must lie between `min_step_size` and `max_step_size`.
        ``init`` clips those whose values are not known, because they are traced. With
        ``optax.inject_hyperparams``, a callable must be named in its
        ``static_args``; otherwise Optax calls it with a count, as a schedule.
      eta_minus: Factor by which a step size shrinks when its gradient changes sign, in
        (0, 1).
      eta_plus: Factor by which a step size grows while its gradient keeps its sign,
        above 1.
      min_step_size: Lower bound of the step sizes, in units of the parameters. A bound
        below the smallest normal number of the step sizes' dtype, such as 0, counts as
        that number: a step size of 0 would never grow again.
      max_step_size: Upper bound of the step sizes, in units of the parameters. Finite
        in float32. May be scheduled by ``optax.inject_hyperparams``.
      variant: ``"irprop-"`` (the default, which PyTorch computes too), ``"rprop-"``,
        ``"rprop+"``, or ``"irprop+"``, which needs the loss at every step:
        ``update(grads, state, params, value=loss)``.
      skip_zero_grads: False (the default, as published): a zero gradient counts as a
        sign of 0, so the next step leaves the step size unchanged. True: a coordinate
        with a zero gradient is skipped and keeps its remembered sign; use this if zeros
        mean "no information" (dropout, rare features).
      state_layout: How the state is stored.

        - ``"split"``: step sizes and signs in separate trees, 5 bytes per float32
          parameter.
        - ``"packed"``: both in one float per parameter, 4 bytes, with bit-for-bit the
          same trajectories. `learning_rate` and bounds must lie between 2**-42 and
          2**42.
        - ``"byte"``: both in 1 byte per parameter. Every step size is `learning_rate`
          times an integer power of a common base, so both factors must be powers of
          that base (for example ``eta_minus=0.5, eta_plus=2**(1/3)``) and must be
          Python numbers. A byte can store 85 such levels (51 for ``rprop+`` and
          ``irprop+``), and the bounds may not span more. Step sizes stop at the
          outermost levels within the bounds; apart from that, trajectories equal those
          of ``"split"`` up to rounding. If `learning_rate` is a tree or a callable,
          0.01, or the bound nearest to it, takes its place, and ``init`` rounds every
          initial step size to the nearest level within the bounds: by half a level at
          most, or, next to a bound, by one.

        Values that a layout cannot represent raise an error. Bounds given as JAX
        arrays, including tracers, and bounds that a resumed state cannot hold, if it is
        traced, are clipped to the representable range instead.

    Returns:
      The optimizer: `scale_by_rprop` followed by ``optax.scale(-1.0)``. The updates
      have the dtypes of the gradients. ``update`` ignores all extra arguments except
      ``value``.

    Raises:
      TypeError: A hyper-parameter is not a number, or `learning_rate` is a schedule.
        By ``init``: a leaf of `learning_rate` is not a number. By ``init`` and
        ``update``: a parameter, a gradient or `value` is not a real floating-point
        array, or the state belongs to another optimizer.
      ValueError: A hyper-parameter is out of range, or `variant` or `state_layout`
        unknown. By ``init``: a hyper-parameter that is a JAX array is not finite or not
        positive; a leaf of `learning_rate` is out of range; or its structure or a shape
        does not fit the parameters. By ``update``: `value` is missing or not a scalar,
        the state belongs to another variant or to another base of ``"byte"``, or the
        gradient's structure or shapes differ from the parameters'. Other JAX arrays are
        not checked further, and tracers not at all.

    Example:
      A loss with its minimum at 0.3. The first three updates are 0.1, 0.12 and 0.144.
      Then the sign changes: one update is skipped and the step size halved, and the
      next goes back by 0.072:

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

      Parameters in different physical units. Each starts with a step size in its own
      units, and the bounds have room for both:

      >>> params = {"pressure": jnp.array(1e5), "position": jnp.array([1e-6, 5e-6])}
      >>> optimizer = optax_rprop.rprop(
      ...     {"pressure": 100.0, "position": 1e-8},
      ...     min_step_size=1e-12,
      ...     max_step_size=1e12,
      ... )
      >>> state = optimizer.init(params)
      >>> print(optax_rprop.get_rprop_state(state).step_sizes["position"])
      [1.e-08 1.e-08]

      In proportion to the parameters, as Riedmiller (1994) advises for the weights of
      networks, but not 0 where they are 0:

      >>> def tenth(params):
      ...     return jax.tree.map(lambda w: jnp.maximum(0.1 * jnp.abs(w), 1e-3), params)
      >>> optimizer = optax_rprop.rprop(tenth)
      >>> state = optimizer.init(jnp.array([2.0, -0.5, 0.0]))
      >>> print(optax_rprop.get_rprop_state(state).step_sizes)
      [0.2   0.05  0.001]

    Notes:
      **Units.** The bounds are in units of the parameters. With the defaults, a
      parameter of order 1e-8 cannot be resolved and one of order 1e5 takes thousands of
      steps, without any warning. If you do not know the units, use
      ``min_step_size=1e-12, max_step_size=1e12``.

      **NaN.** A NaN has no sign: the coordinate is not updated, keeps its step size and
      remembers 0. ``rprop+`` instead treats a NaN as a sign change and undoes the last
      update, and ``irprop+`` does so if the loss rose. An infinite partial derivative
      has a sign like any other. The state stays finite whatever comes.

      **Recovery from a loss of NaN or +inf.** After one, ``irprop+`` undoes the last
      update of every coordinate; -inf is not detected. The next point evaluated is
      therefore the last one with a finite loss, and two such losses never occur in a
      row. Every step size that led outside the domain is reduced, so the run leaves the
      domain from any given point only finitely often: with d the largest step size and
      h the distance to the boundary, both in the maximum norm, at most
      :math:`\lceil \log(d / h) / \log(1 / \eta^-) \rceil + 1` times. ``rprop+`` does
      the same where every partial derivative is NaN outside.

      The guarantee holds for a deterministic loss whose first value is finite, with
      ``skip_zero_grads=False``, if the parameters change by the updates. It survives
      constant scaling and masking after Rprop, and clipping by ``optax.clip``,
      ``clip_by_global_norm`` and ``clip_by_block_rms``, but not
      ``optax.adaptive_grad_clip``, momentum, weight decay or projections. Wrappers that
      skip bad steps break it, because they restore the state together with the
      parameters and evaluate the same point forever: ``optax.apply_if_finite``,
      ``optax.skip_not_finite`` and NumPyro's ``stable_update``. So do
      ``optax.MultiSteps``, whose sum keeps a NaN, transformations before Rprop that
      hide a NaN, such as ``optax.zero_nans``, and solvers that raise an error: pass
      ``throw=False`` to Diffrax.

      It has three limits. Undoing is exact up to rounding, so the point inside must be
      farther from the boundary than that: in float32 about 1e-7 of parameter and
      update. If the boundary is closer than `min_step_size`, every second step leaves
      the domain, and the final parameters may lie outside; keep the last ones with a
      finite loss. And without a barrier, where the gradient points outward, the run can
      stop at the boundary short of the optimum.

      **Derivatives.** A sign does not change with the data, so the derivative of the
      result with respect to the data, computed through the steps, is 0. Use the
      implicit function theorem, for example ``optimistix.ImplicitAdjoint``.

      **Rounding.** An update smaller than half the floating-point spacing around a
      parameter is lost: a float32 parameter of magnitude above 32 cannot change by
      1e-6. Of a bfloat16 parameter :math:`w`, updates below :math:`|w| / 512` are
      always lost, and those above :math:`|w| / 256` never.

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
