"""The Rprop family of optimizers as Optax gradient transformations."""

from optax_rprop._alias import rprop
from optax_rprop._state import PackedRpropState, RpropState
from optax_rprop._transform import scale_by_rprop

__version__ = "0.1.0"

__all__ = ["PackedRpropState", "RpropState", "rprop", "scale_by_rprop"]
