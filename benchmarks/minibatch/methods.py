"""The optimizers that the study of mini-batches compares, with their settings.

A setting is a dictionary of numbers, so that all settings of an optimizer train at
once, vectorized. All else stands at the defaults of
its library, but for Lion's weight decay, which is 0 as the others'.
"""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

import optax_rprop

Setting = Mapping[str, float]
Build = Callable[[Mapping[str, Any], int], optax.GradientTransformation]


class Optimizer(NamedTuple):
    """An optimizer with the settings among which the validation set chooses.

    Attributes:
      name: What tables call it.
      build: Makes the optimizer from a setting and the number of steps.
      settings: The settings.
      evaluated: The parameters to evaluate, of state and parameters.
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


def _rate(setting: Any, steps: int) -> optax.Schedule:
    """The learning rate, constant or on its way to 0 along a cosine."""
    lowest = 1 - setting["cosine"]
    return optax.cosine_decay_schedule(setting["rate"], steps, alpha=lowest)


def probabilistic_rprop(
    max_step_size: jax.typing.ArrayLike,
) -> optax.GradientTransformation:
    """Probabilistic RPROP (Zadaianchuk), with soft steps, from its description.

    The variance of the gradient comes from bias-corrected moving averages. With
    the probabilities of a positive sign now and before follows that of a change of
    sign, rho, and the step size's factor, eta_plus ** (1 - 2 rho). The step is
    softened by 2 P - 1, where P is the probability that the mean is positive.

    The state: how many steps were made; moving averages of gradients and of their
    squares, step sizes, and probabilities of a positive sign.
    """
    learning_rate, min_step_size, eta_plus, decay = 0.01, 1e-9, 1.2, 0.99

    def init_fn(params: optax.Params) -> Any:
        fields = (0.0, 0.0, learning_rate, 0.5)
        return 0, *(optax.tree.full_like(params, field) for field in fields)

    def update_fn(updates: optax.Updates, state: Any, params: Any = None) -> Any:
        del params
        count, *fields = state
        correction = 1 - decay ** (count + 1)

        def leaf(grads, mean, mean_square, steps, before):
            mean = decay * mean + (1 - decay) * grads
            mean_square = decay * mean_square + (1 - decay) * grads**2
            variance = mean_square / correction - (mean / correction) ** 2
            deviation = jnp.sqrt(jnp.maximum(variance, 0)) + 1e-8
            positive = norm.cdf(grads / deviation)
            change = positive * (1 - before) + before * (1 - positive)
            steps = jnp.clip(
                steps * eta_plus ** (1 - 2 * change), min_step_size, max_step_size
            )
            confidence = 2 * norm.cdf(mean / correction / deviation) - 1
            return -steps * confidence, mean, mean_square, steps, positive

        fives = jax.tree.map(leaf, updates, *fields)
        moves, *fields = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0,) * 5), fives
        )
        return moves, (count + 1, *fields)

    return optax.GradientTransformation(init_fn, update_fn)


def scheduled(factory: Callable[..., Any], **options: Any) -> Build:
    """An optimizer of Optax with a rate, and a schedule if the setting says so."""
    return lambda setting, steps: factory(_rate(setting, steps), **options)


def _sign_sgd(rate: Any) -> optax.GradientTransformation:
    return optax.chain(optax.ema(0.9), optax.sign_sgd(rate))


def _probabilistic(setting: Any, steps: int) -> optax.GradientTransformation:
    rate = _rate({**setting, "rate": 1.0}, steps)
    return optax.chain(
        probabilistic_rprop(setting["cap"]), optax.scale_by_schedule(rate)
    )


def _accumulated(setting: Any, steps: int) -> optax.GradientTransformation:
    del steps
    every = setting["batches"].astype(jnp.int32)
    tx = optax.MultiSteps(optax_rprop.rprop(), lambda _: every)
    return tx.gradient_transformation()


def fixed(build: Callable[[], optax.GradientTransformation]) -> Build:
    """An optimizer without a setting."""
    return lambda setting, steps: build()


def _decayed(setting: Any, steps: int) -> optax.GradientTransformation:
    del steps
    decay = optax.add_decayed_weights(setting["decay"])
    return optax.chain(decay, optax_rprop.minibatch_rprop())


ADAM = "Adam"
OURS = "mini-batch Rprop"
BOTH = (0, 1)
_ADAM_GRID = grid(rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2], cosine=BOTH)
_ADAMW_GRID = grid(rate=[1e-3, 3e-3, 1e-2], decay=[0.1], cosine=BOTH)
_SGD_GRID = grid(rate=[3e-3, 1e-2, 3e-2, 1e-1, 3e-1], cosine=BOTH)
_SIGN_GRID = grid(rate=[1e-4, 3e-4, 1e-3, 3e-3], cosine=BOTH)
OPTIMIZERS = (
    Optimizer(OURS, fixed(optax_rprop.minibatch_rprop)),
    Optimizer(f"{OURS}, weight decay", _decayed, grid(decay=[0, 1e-4, 1e-3])),
    Optimizer("Rprop", _accumulated, grid(batches=[1])),
    Optimizer("Rprop, accumulated", _accumulated, grid(batches=[4, 16, 64])),
    Optimizer("probabilistic", _probabilistic, grid(cap=[0.01, 0.05], cosine=BOTH)),
    Optimizer("Adam, 0.001", scheduled(optax.adam), grid(rate=[1e-3], cosine=[0])),
    Optimizer(ADAM, scheduled(optax.adam), _ADAM_GRID),
    Optimizer("AdamW", scheduled(optax.adamw, weight_decay=0.1), _ADAMW_GRID),
    Optimizer("Lion", scheduled(optax.lion, weight_decay=0.0), _SIGN_GRID),
    Optimizer("SGD", scheduled(optax.sgd, momentum=0.9), _SGD_GRID),
    Optimizer("signSGD", scheduled(_sign_sgd), _SIGN_GRID),
)


# Every number that is a setting of mini-batch Rprop, at its default.
DEFAULTS: dict[str, Any] = {
    name: parameter.default
    for name, parameter in inspect.signature(
        optax_rprop.minibatch_rprop
    ).parameters.items()
    if isinstance(parameter.default, float)
}
CHANGES = {
    "threshold": [1.0, 1.1, 1.5, 2.0],
    "decay": [0.9, 0.98, 0.99, 1.0],
    "lean": [0.0, 0.05, 0.2, 0.4],
    "learning_rate": [1e-3, 1e-2, 1e-1],
    "max_step_size": [0.03, 0.1, 1.0],
    "eta_plus": [1.05, 1.2, 1.4],
    "eta_minus": [0.5, 0.75, 0.9],
}


def of_variant(name: Any) -> Optimizer:
    """Mini-batch Rprop by another variant than its own, irprop-."""
    test = ("threshold", "decay", "lean")
    rule = {key: value for key, value in DEFAULTS.items() if key not in test}
    return Optimizer(
        f"variant {name}",
        fixed(
            lambda: optax.chain(
                optax_rprop.resolve_signs(*(DEFAULTS[name] for name in test)),
                optax_rprop.rprop(**rule, variant=name, skip_zero_grads=True),
            )
        ),
    )


def ablations() -> tuple[list[str], list[Optimizer]]:
    """The default, each change of one number, and two other variants, with names."""
    changed = {"default": DEFAULTS} | {
        f"{name} {value:g}": {**DEFAULTS, name: value}
        for name, values in CHANGES.items()
        for value in values
    }
    variants = [of_variant(name) for name in ("rprop-", "rprop+")]
    default = Optimizer(
        "default",
        lambda setting, steps: optax_rprop.minibatch_rprop(**setting),
        list(changed.values()),
    )
    return [*changed, *(v.name for v in variants)], [default, *variants]


PRECISIONS = [
    Optimizer(
        dtype or "float32",
        fixed(lambda d=dtype: optax_rprop.minibatch_rprop(statistics_dtype=d)),
    )
    for dtype in (None, "bfloat16")
]
"""The sign test's statistics in 8 and in 4 bytes per parameter."""
