"""The optimizer for mini-batches, ready for `optax.apply_updates`."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from optax_rprop._arguments import shape_of
from optax_rprop._hyperparams import translates_pytorch
from optax_rprop._initial import InitialStepSizes
from optax_rprop._layouts import StateLayout
from optax_rprop._rprop import rprop
from optax_rprop._sign_test import LeanMask, resolve_signs

_STEP_SIZE, _WIDEST_UNSCALED = 0.05, 64


def _inputs(shape: tuple[int, ...]) -> float:
    """How many numbers a unit sums, at most."""
    if len(shape) < 2:
        return 1
    units = min(shape) if len(shape) == 2 else max(shape[0], shape[-1])
    return math.prod(shape) / max(units, 1)


@translates_pytorch
def minibatch_rprop(
    learning_rate: InitialStepSizes | None = None,
    eta_minus: jax.typing.ArrayLike = 0.85,
    eta_plus: jax.typing.ArrayLike = 1.1,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
    *,
    threshold: jax.typing.ArrayLike = 1.2,
    decay: jax.typing.ArrayLike = 0.95,
    norm_decay: jax.typing.ArrayLike = 0.995,
    lean: jax.typing.ArrayLike = 0.1,
    lean_mask: LeanMask | None = None,
    statistics_dtype: Literal["bfloat16"] | None = None,
    state_layout: StateLayout = "split",
) -> optax.GradientTransformationExtraArgs:
    r"""Rprop for mini-batches: update a coordinate only once its sign is known.

    With mini-batches the signs of most partial derivatives are noise, and `rprop` alone
    fails. Here each coordinate waits until a sequential test, `resolve_signs`, is
    confident of the sign of its accumulated gradient; then Rprop takes one step. The
    factors are closer to 1 than in `rprop`, because some of those signs are wrong. The
    variant is always ``irprop-``; the others were no better. By default the test leans
    towards zero in all parameters, in scales of normalization layers, too; exclude
    those by `lean_mask`. ``benchmarks/minibatch`` compares it with tuned and untuned
    baselines.

    Why `rprop` fails: let successive signs be right with probability q, independently,
    and :math:`x = q (1 - q)`. In the long run, a step size of ``irprop-`` grows if
    :math:`(1 - 3 x) \log \eta^+ + x \log \eta^- > 0`, which requires q > 0.821 with its
    default factors. In a mini-batch, most signs are right less often, and step
    sizes shrink.

    Recommended use: keep the defaults, pass the parameters to ``update``, and evaluate
    a running average of the parameters, which removes the noise of the last steps. With
    ``step`` starting at 0, this average needs neither a schedule nor the length of the
    run::

      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      average = optax.incremental_update(params, average, 9 / (step + 9))

    For deterministic gradients, as on the full batch, use `rprop`.

    Args:
      learning_rate: Initial step size, in units of the parameters. Read once, by
        ``init``. A number, or one for each parameter by a pytree or a callable, as in
        `rprop`. None: 0.05, but 0.05 * 64 / n in arrays in which a unit has n > 64
        inputs, because an update of d changes the sum over n inputs by up to d n.
        Libraries disagree on which side the inputs are, so n is taken to be
        ``max(shape)`` for a matrix, ``size / max(shape[0], shape[-1])`` for an array of
        more axes, and 1 otherwise. This misreads stacked layers, as n is then a
        multiple of the inputs, and embeddings, as n is the size of the vocabulary:
        they start with tiny steps, unless given others by a pytree, or by a callable of
        ``params``. Within the bounds.
      eta_minus: Factor by which a step size shrinks when its resolved sign changes, in
        (0, 1).
      eta_plus: Factor by which a step size grows while its resolved sign stays, above
        1.
      min_step_size: Lower bound of the step sizes, in units of the parameters.
      max_step_size: Upper bound of the step sizes, in units of the parameters. May be
        scheduled by ``optax.inject_hyperparams``.
      threshold: How many standard deviations from 0 the sum of gradients must be, were
        they independent with mean 0. Positive. Lower values give more updates, and more
        wrong ones.
      decay: Factor by which past evidence is discounted at every step, in (0, 1].
      norm_decay: The same for the typical size of gradients, with which the evidence is
        compared.
      lean: How much the threshold is lowered for steps towards zero, and raised for
        steps away from it, per unit of distance from zero, in root mean squares of the
        array. Not negative. It acts as a weight decay in units of the noise. A Python 0
        turns it off, and then ``update`` needs no parameters; with
        ``optax.inject_hyperparams``, name ``lean`` in its ``static_args``.
      lean_mask: Which parameters `lean` applies to: a pytree of bools with the
        structure of the parameters, or a prefix of it, or a callable that returns one,
        as ``weight_decay_mask`` elsewhere in Optax. Exclude scales of normalization
        layers and temperatures. None: all. With ``optax.inject_hyperparams``, name a
        callable in its ``static_args``.
      statistics_dtype: None: the test keeps 8 bytes per float32 parameter.
        ``"bfloat16"``: 4 bytes. This does not affect Rprop's own state.
      state_layout: How Rprop's state is stored, see `rprop`: ``"split"``, 5 bytes per
        float32 parameter; ``"packed"``, 4 bytes; or ``"byte"``, 1 byte, which does not
        support the default factors and bounds; use, for example,
        ``eta_minus=2**-0.5, eta_plus=2**0.25, min_step_size=1e-4``.

    Returns:
      The optimizer: `resolve_signs` followed by `rprop` with `skip_zero_grads`. The
      updates have the dtypes of the gradients, and are 0 where no sign was resolved.

    Raises:
      TypeError, ValueError: See `resolve_signs` and `rprop`.

    Example:
      A hundred parameters with their minimum at 0.3, and noise of twice the size of the
      initial signal:

      >>> import jax
      >>> import jax.numpy as jnp
      >>> import optax
      >>> import optax_rprop
      >>> optimizer = optax_rprop.minibatch_rprop()
      >>> params = average = jnp.zeros(100)
      >>> state = optimizer.init(params)
      >>> @jax.jit
      ... def train_step(step, carry):
      ...     params, average, state = carry
      ...     noise = jax.random.normal(jax.random.key(step), params.shape)
      ...     grads = params - 0.3 + 0.6 * noise
      ...     updates, state = optimizer.update(grads, state, params)
      ...     params = optax.apply_updates(params, updates)
      ...     average = optax.incremental_update(params, average, 9 / (step + 9))
      ...     return params, average, state
      >>> carry = params, average, state
      >>> params, average, state = jax.lax.fori_loop(0, 1000, train_step, carry)
      >>> print(f"mean {average.mean():.1f}, deviation {average.std():.1f}")
      mean 0.3, deviation 0.0
      >>> bool(average.std() < params.std())
      True
    """

    def default_step_size(param: Any) -> jax.Array:
        inputs = max(_WIDEST_UNSCALED, _inputs(shape_of(param)))
        step_size = _STEP_SIZE * _WIDEST_UNSCALED / inputs
        return jnp.clip(step_size, min_step_size, max_step_size)

    def default_step_sizes(params: optax.Params) -> Any:
        return jax.tree.map(default_step_size, params)

    return optax.chain(
        resolve_signs(
            threshold,
            decay=decay,
            norm_decay=norm_decay,
            lean=lean,
            lean_mask=lean_mask,
            statistics_dtype=statistics_dtype,
        ),
        rprop(
            default_step_sizes if learning_rate is None else learning_rate,
            eta_minus,
            eta_plus,
            min_step_size,
            max_step_size,
            skip_zero_grads=True,
            state_layout=state_layout,
        ),
    )


# Doctests of decorated functions are found by this name alone.
__test__ = {"minibatch_rprop": minibatch_rprop}
