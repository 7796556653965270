"""The optimizers that are compared on the full batch, and the layouts of the state.

Only the learning rate or the initial step size is tuned. Everything else has the
default of its library, except for SGD's momentum of 0.9,
which has no default, and Lion's weight decay, which is 0 as for the others.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from optax import contrib

import optax_rprop

RATES = np.logspace(-6, 1, 15).tolist()
"""The settings of all of them: seven decades in steps of the square root of ten."""

# Always this object: as a key, a NaN is only found by identity.
NO_SETTING = np.nan

WIDE: dict[str, Any] = {"min_step_size": 1e-12, "max_step_size": 1e12}
"""The bounds of the step sizes that the documentation recommends in an eigenbasis."""


def irprop_plus(rate: Any = 0.01, **options: Any) -> optax.GradientTransformation:
    """The variant that represents plain Rprop and runs in the eigenbasis."""
    return optax_rprop.rprop(rate, variant="irprop+", **options)


EIGENBASIS = optax_rprop.in_eigenbasis(irprop_plus(**WIDE), full_matrix=True)
"""The same in a basis for all parameters."""

# A byte needs factors that are powers of one base.
LAYOUTS: dict[Any, dict[str, Any]] = {
    "split": {},
    "packed": {},
    "byte": {"eta_plus": 2**0.5},
}
"""Every layout of the state, with the options of `rprop` that it needs."""


class Optimizer(NamedTuple):
    """An optimizer."""

    name: str
    build: Callable[[Any], optax.GradientTransformation]
    """Makes it from a setting, a learning rate or initial step size."""
    default: float = NO_SETTING
    """The default setting of its library."""
    tuned: bool = True
    """Whether there is a setting to tune."""
    line_search: bool = False

    def settings(self, grid: Sequence[float]) -> Sequence[float]:
        """The settings of a grid to try."""
        return grid if self.tuned else [NO_SETTING]


def _variant(name: Any) -> Optimizer:
    return Optimizer(name, lambda rate: optax_rprop.rprop(rate, variant=name), 0.01)


VARIANTS = tuple(map(_variant, ("irprop+", "irprop-", "rprop+", "rprop-")))
ADAM = Optimizer("Adam", optax.adam, 0.001)
LBFGS = Optimizer("L-BFGS", lambda _: optax.lbfgs(), tuned=False, line_search=True)
OPTIMIZERS = (
    *VARIANTS,
    Optimizer("optax.rprop", optax.rprop),
    ADAM,
    Optimizer("SGD, momentum 0.9", lambda rate: optax.sgd(rate, momentum=0.9)),
    Optimizer("Lion", lambda rate: optax.lion(rate, weight_decay=0.0)),
    LBFGS,
)

# Designed to need no tuning, at the defaults of their library. The rate of mechanized
# Adam is that of its documentation, 1.
_TUNING_FREE: dict[str, Callable[[], optax.GradientTransformation]] = {
    "Prodigy": contrib.prodigy,
    "D-Adapt AdamW": contrib.dadapt_adamw,
    "mechanized Adam": lambda: contrib.mechanize(optax.adam(1.0)),
    "MoMo": contrib.momo,
    "MoMo-Adam": contrib.momo_adam,
    "COCOB": contrib.cocob,
    "DoG": contrib.dog,
    "DoWG": contrib.dowg,
}
TUNING_FREE = tuple(
    Optimizer(name, lambda _, build=build: build(), tuned=False)
    for name, build in _TUNING_FREE.items()
)


def by_layout(variant: Any, **options: Any) -> dict[str, optax.GradientTransformation]:
    """A variant with each layout of the state, named after both."""
    return {
        f"{variant}, {layout}": optax_rprop.rprop(
            variant=variant, state_layout=layout, **needed, **options
        )
        for layout, needed in LAYOUTS.items()
    }
