"""The states of `resolve_signs`."""

from typing import NamedTuple

import optax


class ResolveSignsState(NamedTuple):
    """State of `resolve_signs`.

    Both fields are pytrees of the parameters' structure, shapes and shardings,
    float64 for float64 parameters and float32 for all others, and never hold NaN
    or infinities.

    Attributes:
      grad_sums: The decayed sum of each coordinate's gradients since its sign was
        last resolved, S. Where it was just resolved, what was emitted, which counts
        as 0 from then on.
      grad_norms: The root of the decayed sum of the squares of all gradients, R;
        stored as -R where the sign was just resolved.
    """

    grad_sums: optax.Params
    grad_norms: optax.Params


class PackedResolveSignsState(NamedTuple):
    """State of `resolve_signs` with ``statistics_dtype="bfloat16"``.

    Attributes:
      statistics: Pytree of the parameters' structure, shapes and shardings, dtype
        uint32: the bits of S as bfloat16, then those of R, or of -R where the sign
        was just resolved.
    """

    statistics: optax.Params
