"""The optimizer for mini-batches, ready for `optax.apply_updates`."""

import jax
import optax

from optax_rprop._hyperparams import translates_pytorch
from optax_rprop._layouts import StateLayout
from optax_rprop._rprop import rprop
from optax_rprop._sign_test import LeanMask, resolve_signs


@translates_pytorch
def minibatch_rprop(
    learning_rate: jax.typing.ArrayLike = 0.05,
    eta_minus: jax.typing.ArrayLike = 0.85,
    eta_plus: jax.typing.ArrayLike = 1.1,
    min_step_size: jax.typing.ArrayLike = 1e-6,
    max_step_size: jax.typing.ArrayLike = 50.0,
    *,
    threshold: jax.typing.ArrayLike = 1.2,
    decay: jax.typing.ArrayLike = 0.95,
    lean: jax.typing.ArrayLike = 0.1,
    lean_mask: LeanMask | None = None,
    statistics_dtype: jax.typing.DTypeLike | None = None,
    state_layout: StateLayout = "split",
) -> optax.GradientTransformationExtraArgs:
    """Rprop for mini-batches: a step where the sign of a gradient is known.

    On mini-batches the sign of most partial derivatives is noise, and `rprop` alone
    fails. Here each coordinate first waits until a sequential test, `resolve_signs`,
    has resolved the sign of what it has seen; then Rprop does one step. Its factors
    are nearer to 1 than those of `rprop`, for some resolved signs are false. How it
    fares against tuned and untuned rivals is in ``benchmarks/minibatch``.

    The recipe: leave the settings as they are, pass the parameters to ``update``, and
    evaluate an average of the parameters, for the last ones carry the noise of the
    last steps. With ``step`` counted from 0, an average that needs neither a schedule
    nor the length of the run is::

      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      average = optax.incremental_update(params, average, 9 / (step + 9))

    Where gradients are deterministic, as on the full data, take `rprop`.

    Args:
      learning_rate: Initial step size, in units of the parameters. It is read once,
        by ``init``, as in `rprop`.
      eta_minus: Factor of a step size whose resolved sign changed, in (0, 1).
      eta_plus: Factor of a step size whose resolved sign stayed, above 1.
      min_step_size: Lower bound of the step sizes, in units of the parameters.
      max_step_size: Upper bound of the step sizes, in units of the parameters. May be
        scheduled by ``optax.inject_hyperparams``.
      threshold: How large the decayed sum of gradients must be to have a sign, as a
        multiple of the root of the decayed sum of their squares. Positive. A lower one
        means more steps, and more false ones.
      decay: Factor of what the test saw before, at every step, in (0, 1].
      lean: By how much the threshold is lower for a step towards 0, and higher for a
        step away from it, per root mean square of its array that the parameter lies
        from 0. Not negative. It acts as a weight decay in units of the noise. 0 turns
        it off, and then ``update`` needs no parameters.
      lean_mask: Which parameters `lean` applies to: a pytree of bools with the
        structure of the parameters, or a prefix of it, or a callable that returns one,
        as ``weight_decay_mask`` elsewhere in Optax. Leave out scales of normalization
        layers and temperatures. None: all.
      statistics_dtype: None: the test keeps 8 bytes per float32 parameter.
        ``"bfloat16"``: 4 bytes. Rprop's own state is not concerned.
      state_layout: How Rprop's state is stored, see `rprop`: ``"split"``, 5 bytes per
        float32 parameter; ``"packed"``, 4 bytes; or ``"byte"``, 1 byte, which refuses
        the default factors and bounds and takes, for instance,
        ``eta_minus=2**-0.5, eta_plus=2**0.25, min_step_size=1e-4``.

    Returns:
      The optimizer: `resolve_signs` followed by `rprop` with `skip_zero_grads`. The
      updates have the dtypes of the gradients, and are 0 where no sign was resolved.

    Raises:
      TypeError: A hyper-parameter is not a number. By ``init`` and ``update``: a
        parameter or gradient is not of real floating dtype, or the state is of another
        optimizer.
      ValueError: A hyper-parameter is out of range, a sign could never be resolved, see
        `resolve_signs`, or the layout cannot hold the factors. By ``update``: the
        parameters are missing and `lean` is not 0, or the gradient has another
        structure or shape than the parameters. Hyper-parameters that are JAX arrays are
        not checked for range.

    Example:
      A hundred parameters with their minimum at 0.3, and noise of twice the size of the
      signal that there is at the start:

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
    return optax.chain(
        resolve_signs(
            threshold,
            decay=decay,
            lean=lean,
            lean_mask=lean_mask,
            statistics_dtype=statistics_dtype,
        ),
        rprop(
            learning_rate,
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
