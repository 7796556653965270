"""The optimizers that are compared on whole data sets, and the layouts of the state.

Nothing but the learning rate, or the initial step size, is tuned, for anyone:
all else stands at the defaults of its library (SGD has momentum 0.9, which has no
default, and Lion no weight decay, as the others have none).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax

import optax_rprop

RATES = np.logspace(-6, 1, 15)
"""The settings of all of them: seven decades in steps of the root of ten."""

# A byte needs factors that are powers of one base.
LAYOUTS: dict[Any, dict[str, Any]] = {
    "split": {},
    "packed": {},
    "byte": {"eta_plus": 2**0.5},
}
"""Every layout of the state, with the options of `rprop` that it needs."""


class Optimizer(NamedTuple):
    """An optimizer.

    Attributes:
      name: What tables and pictures call it.
      build: Makes it from a setting: a learning rate or initial step size.
      line_search: Whether it has a line search, and so no setting.
    """

    name: str
    build: Callable[[Any], optax.GradientTransformation]
    line_search: bool = False


def _variant(name: Any) -> Optimizer:
    return Optimizer(name, lambda rate: optax_rprop.rprop(rate, variant=name))


VARIANTS = tuple(map(_variant, ("irprop+", "irprop-", "rprop+", "rprop-")))
ADAM = Optimizer("Adam", optax.adam)
OPTIMIZERS = (
    *VARIANTS,
    Optimizer("optax.rprop", optax.rprop),
    ADAM,
    Optimizer("SGD, momentum 0.9", lambda rate: optax.sgd(rate, momentum=0.9)),
    Optimizer("Lion", lambda rate: optax.lion(rate, weight_decay=0.0)),
    Optimizer("L-BFGS", lambda rate: optax.lbfgs(), line_search=True),
)
TORCH = "torch.optim.Rprop"


def by_layout(variant: Any, **options: Any) -> dict[str, optax.GradientTransformation]:
    """A variant with each layout of the state, named after both."""
    return {
        f"{variant}, {layout}": optax_rprop.rprop(
            variant=variant, state_layout=layout, **needed, **options
        )
        for layout, needed in LAYOUTS.items()
    }
