"""The Rprop family of optimizers as Optax gradient transformations.

- Optimizers: `rprop`; `scale_by_rprop`, the same without the final minus sign;
  `minibatch_rprop`, for mini-batches; `in_eigenbasis`, for coupled parameters.
- The sequential sign test inside `minibatch_rprop`: `resolve_signs`.
- Inspection: `diagnostics`, `diagnostics_by_leaf`, `RpropDiagnostics`;
  `get_rprop_state`, which also converts between layouts.
- States: `RpropState`, `PackedRpropState`, `ByteRpropState` with its `Lattice`,
  `EigenbasisState`, `ResolveSignsState` and `PackedResolveSignsState` with their
  `GradientScale`.
- Marks of the variants in states: `RpropMinus`, `IRpropMinus`, `RpropPlus`,
  `IRpropPlus`.
- Types for annotations: `Variant`, `StateLayout`.
"""

from optax_rprop._eigenbasis import in_eigenbasis
from optax_rprop._eigenbasis.state import EigenbasisState
from optax_rprop._inspect import (
    RpropDiagnostics,
    diagnostics,
    diagnostics_by_leaf,
    get_rprop_state,
)
from optax_rprop._layouts import StateLayout
from optax_rprop._layouts.byte import ByteRpropState
from optax_rprop._layouts.lattice import Lattice
from optax_rprop._layouts.packed import PackedRpropState
from optax_rprop._layouts.split import RpropState
from optax_rprop._minibatch import minibatch_rprop
from optax_rprop._rprop import rprop, scale_by_rprop
from optax_rprop._rule import IRpropMinus, IRpropPlus, RpropMinus, RpropPlus, Variant
from optax_rprop._sign_test import resolve_signs
from optax_rprop._sign_test.states import (
    GradientScale,
    PackedResolveSignsState,
    ResolveSignsState,
)

__version__ = "0.5.0"

__all__ = [
    "ByteRpropState",
    "EigenbasisState",
    "GradientScale",
    "IRpropMinus",
    "IRpropPlus",
    "Lattice",
    "PackedResolveSignsState",
    "PackedRpropState",
    "ResolveSignsState",
    "RpropDiagnostics",
    "RpropMinus",
    "RpropPlus",
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
