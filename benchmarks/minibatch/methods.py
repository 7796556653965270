"""The optimizers that train on mini-batches, each with its settings.

A setting is a dictionary of numbers, so that all settings of an optimizer train at
once, vectorized. Everything else stays at the defaults of its library, except for the
weight decay of Lion, which is 0 as for the others.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from optax import contrib

import optax_rprop
from benchmarks.common.optimizers import TUNING_FREE

Setting = Mapping[str, float]
Build = Callable[[Mapping[str, Any], int], optax.GradientTransformation]


class Optimizer(NamedTuple):
    """An optimizer with the settings from which the validation set chooses.

    Attributes:
      name: Its name in tables.
      build: Makes the optimizer from a setting and the number of steps.
      settings: The settings.
      evaluated: The parameters to evaluate, from state and parameters.
    """

    name: str
    build: Build
    settings: Sequence[Setting] = ({},)
    evaluated: Callable[[Any, Any], Any] = lambda state, params: params


def grid(**options: Sequence[float]) -> list[dict[str, float]]:
    """All combinations."""
    return [
        dict(zip(options, values, strict=True))
        for values in itertools.product(*options.values())
    ]


def describe(setting: Setting) -> str:
    """A setting in words."""
    return ", ".join(f"{name} {value:g}" for name, value in setting.items())


def scheduled(factory: Callable[..., Any], **options: Any) -> Build:
    """An optimizer with a rate, constant or decaying to 0 along a cosine."""

    def build(setting: Any, steps: int) -> Any:
        lowest = 1 - setting["cosine"]
        rate = optax.cosine_decay_schedule(setting["rate"], steps, alpha=lowest)
        return factory(rate, **options)

    return build


def fixed(build: Callable[[], optax.GradientTransformation]) -> Build:
    """An optimizer without a setting."""
    return lambda setting, steps: build()


def _sign_sgd(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.ema(0.9), optax.sign_sgd(rate))


def _accumulated(setting: Any, steps: int) -> optax.GradientTransformation:
    del steps
    every = setting["batches"].astype(jnp.int32)
    tx = optax.MultiSteps(optax_rprop.rprop(), lambda _: every)
    return tx.gradient_transformation()


ADAM = "Adam, tuned"
OURS = "mini-batch Rprop"
PLAIN = "Rprop"
BOTH = (0, 1)
_ADAM_GRID = grid(rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2], cosine=BOTH)
_ADAMW_GRID = grid(rate=[1e-3, 3e-3, 1e-2], decay=[0.1], cosine=BOTH)
_SGD_GRID = grid(rate=[3e-3, 1e-2, 3e-2, 1e-1, 3e-1], cosine=BOTH)
_SIGN_GRID = grid(rate=[1e-4, 3e-4, 1e-3, 3e-3], cosine=BOTH)
UNTUNED = (
    Optimizer(OURS, fixed(optax_rprop.minibatch_rprop)),
    Optimizer(PLAIN, _accumulated, grid(batches=[1])),
    *(
        Optimizer(name, fixed(functools.partial(build, None)))
        for name, build, *_ in TUNING_FREE
    ),
    Optimizer(
        "schedule-free AdamW",
        fixed(contrib.schedule_free_adamw),
        evaluated=contrib.schedule_free_eval_params,
    ),
    Optimizer("Muon, 0.02", fixed(lambda: contrib.muon(0.02))),
    *(
        Optimizer(f"Adam, {rate}", scheduled(optax.adam), grid(rate=[rate], cosine=[0]))
        for rate in (0.001, 0.003, 0.01)
    ),
    # It has to be told the number of steps.
    Optimizer(
        "Adam, 0.01, cosine", scheduled(optax.adam), grid(rate=[0.01], cosine=[1])
    ),
)
TUNED = (
    Optimizer(ADAM, scheduled(optax.adam), _ADAM_GRID),
    Optimizer("AdamW, tuned", scheduled(optax.adamw, weight_decay=0.1), _ADAMW_GRID),
    Optimizer("Lion, tuned", scheduled(optax.lion, weight_decay=0.0), _SIGN_GRID),
    Optimizer("SGD, tuned", scheduled(optax.sgd, momentum=0.9), _SGD_GRID),
    Optimizer("signSGD, tuned", scheduled(_sign_sgd), _SIGN_GRID),
    Optimizer("Rprop, accumulated", _accumulated, grid(batches=[4, 16, 64])),
)
OPTIMIZERS = (*UNTUNED, *TUNED)

_BY_NAME = {optimizer.name: optimizer for optimizer in OPTIMIZERS}


def _prodigy(setting: Any, steps: int) -> optax.GradientTransformation:
    del setting
    return contrib.prodigy(optax.cosine_decay_schedule(1.0, steps))


LARGER = (
    _BY_NAME[OURS],
    _BY_NAME[ADAM],
    Optimizer("AdamW, 0.001", fixed(lambda: optax.adamw(0.001))),
    _BY_NAME["Adam, 0.003"],
    Optimizer(
        "Adam, 0.003, cosine", scheduled(optax.adam), grid(rate=[0.003], cosine=[1])
    ),
    _BY_NAME["MoMo-Adam"],
    Optimizer("Prodigy, cosine", _prodigy),
    _BY_NAME["COCOB"],
    _BY_NAME["schedule-free AdamW"],
    _BY_NAME["Muon, 0.02"],
)
"""Those that train larger models."""
