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
from optax_rprop._evidence import PackedResolveSignsState, ResolveSignsState
from optax_rprop._layouts import StateLayout
from optax_rprop._layouts.byte import ByteRpropState
from optax_rprop._layouts.packed import PackedRpropState
from optax_rprop._layouts.split import RpropState
from optax_rprop._minibatch import minibatch_rprop
from optax_rprop._resolve_signs import resolve_signs
from optax_rprop._rule import Variant
from optax_rprop._transform import scale_by_rprop

__version__ = "0.3.2"

__all__ = [
    "ByteRpropState",
    "EigenbasisState",
    "PackedResolveSignsState",
    "PackedRpropState",
    "ResolveSignsState",
    "RpropDiagnostics",
    "RpropState",
    "StateLayout",
    "Variant",
    "diagnostics",
    "diagnostics_by_leaf",
    "get_rprop_state",
    "in_eigenbasis",
    "minibatch_rprop",
    "resolve_signs",
    "rprop",
    "scale_by_rprop",
]
