"""The Rprop family of optimizers as Optax gradient transformations."""

from optax_rprop._alias import rprop
from optax_rprop._basis import EigenbasisState
from optax_rprop._diagnostics import (
    RpropDiagnostics,
    diagnostics,
    diagnostics_by_leaf,
    get_rprop_state,
)
from optax_rprop._eigenbasis import in_eigenbasis
from optax_rprop._sign_test import ResolveSignsState, resolve_signs
from optax_rprop._state import PackedRpropState, RpropState
from optax_rprop._transform import scale_by_rprop

__version__ = "0.1.0"

__all__ = [
    "EigenbasisState",
    "PackedRpropState",
    "ResolveSignsState",
    "RpropDiagnostics",
    "RpropState",
    "diagnostics",
    "diagnostics_by_leaf",
    "get_rprop_state",
    "in_eigenbasis",
    "resolve_signs",
    "rprop",
    "scale_by_rprop",
]
