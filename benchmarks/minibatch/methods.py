"""The optimizers that the study of mini-batches compares, with their settings.

A setting is a dictionary of numbers, so that all settings of an optimizer train at
once, vectorized. All else stands at the defaults of
its library, but for Lion's weight decay, which is 0 as the others'.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

import optax_rprop
from benchmarks.minibatch.first_test import resolve_signs

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
    cosine = optax.cosine_decay_schedule(1.0, steps)
    return lambda count: (
        setting["rate"] * jnp.where(setting["cosine"] > 0, cosine(count), 1.0)
    )


class ProbabilisticRpropState(NamedTuple):
    """Moving averages, step sizes, probabilities of a positive sign, step number."""

    means: optax.Params
    mean_squares: optax.Params
    step_sizes: optax.Params
    positive: optax.Params
    steps: jax.Array


def probabilistic_rprop(
    max_step_size: jax.typing.ArrayLike,
    learning_rate: float = 0.01,
    min_step_size: float = 1e-9,
    eta_plus: float = 1.2,
    decay: float = 0.99,
) -> optax.GradientTransformation:
    """Probabilistic RPROP (Zadaianchuk), with soft steps, from its description.

    The variance of the gradient comes from bias-corrected moving averages. With
    the probabilities of a positive sign now and before follows that of a change of
    sign, rho, and the step size's factor, eta_plus ** (1 - 2 rho). The step is
    softened by 2 P - 1, where P is the probability that the mean is positive.
    """

    def init_fn(params: optax.Params) -> ProbabilisticRpropState:
        zeros = optax.tree.zeros_like(params)
        return ProbabilisticRpropState(
            means=zeros,
            mean_squares=zeros,
            step_sizes=optax.tree.full_like(params, learning_rate),
            positive=optax.tree.full_like(params, 0.5),
            steps=jnp.zeros((), jnp.int32),
        )

    def update_fn(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, ProbabilisticRpropState]:
        del params
        count = state.steps + 1
        correction = 1 - decay**count

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

        fives = jax.tree.map(leaf, updates, *state[:4])
        moves, *fields = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0,) * 5), fives
        )
        return moves, ProbabilisticRpropState(*fields, steps=count)

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


# The settings of the first sign test, the same on every problem.
DEFAULTS = {
    "threshold": 1.7,
    "decay": 0.95,
    "learning_rate": 0.05,
    "eta_minus": 0.75,
    "eta_plus": 1.2,
    "max_step_size": 50.0,
}


def sign_test_and_rule(
    variant: Any = "irprop-", **changes: Any
) -> tuple[optax.GradientTransformation, optax.GradientTransformationExtraArgs]:
    """The first sign test and its rule, with their settings or others."""
    options = {**DEFAULTS, **changes}
    test = resolve_signs(options.pop("threshold"), options.pop("decay"))
    return test, optax_rprop.rprop(**options, variant=variant, skip_zero_grads=True)


def _first(setting: Any, steps: int) -> optax.GradientTransformation:
    del setting, steps
    return optax.chain(*sign_test_and_rule())


def _decayed(setting: Any, steps: int) -> optax.GradientTransformation:
    del steps
    decay = optax.add_decayed_weights(setting["decay"])
    return optax.chain(decay, *sign_test_and_rule())


FIRST = "first sign test"
FIRST_DECAYED = "first sign test, weight decay"
BOTH = (0, 1)
_ADAM_GRID = grid(rate=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2], cosine=BOTH)
_ADAMW_GRID = grid(rate=[1e-3, 3e-3, 1e-2], decay=[0.1], cosine=BOTH)
_SGD_GRID = grid(rate=[3e-3, 1e-2, 3e-2, 1e-1, 3e-1], cosine=BOTH)
_SIGN_GRID = grid(rate=[1e-4, 3e-4, 1e-3, 3e-3], cosine=BOTH)
OPTIMIZERS = (
    Optimizer(FIRST, _first),
    Optimizer(FIRST_DECAYED, _decayed, grid(decay=[0, 1e-4, 1e-3])),
    Optimizer("Rprop", _accumulated, grid(batches=[1])),
    Optimizer("Rprop, accumulated", _accumulated, grid(batches=[4, 16, 64])),
    Optimizer("probabilistic", _probabilistic, grid(cap=[0.01, 0.05], cosine=BOTH)),
    Optimizer("Adam, 0.001", scheduled(optax.adam), grid(rate=[1e-3], cosine=[0])),
    Optimizer("Adam", scheduled(optax.adam), _ADAM_GRID),
    Optimizer("AdamW", scheduled(optax.adamw, weight_decay=0.1), _ADAMW_GRID),
    Optimizer("Lion", scheduled(optax.lion, weight_decay=0.0), _SIGN_GRID),
    Optimizer("SGD", scheduled(optax.sgd, momentum=0.9), _SGD_GRID),
    Optimizer("signSGD", scheduled(_sign_sgd), _SIGN_GRID),
)


# Weight decay as part of the gradient, inside the sign, and as a shrinkage of the
# weights at every step, outside.
NO_WEIGHT_DECAY = {"decay_inside": 0.0, "decay_outside": 0.0}


def _ablation(variant: Any) -> Callable[..., optax.GradientTransformation]:
    """The first sign test and its rule, with parts of them changed."""

    def build(setting: Any, steps: int) -> optax.GradientTransformation:
        del steps
        changes = {**setting}
        inside, outside = (changes.pop(name) for name in NO_WEIGHT_DECAY)
        return optax.chain(
            optax.add_decayed_weights(inside),
            *sign_test_and_rule(variant, **changes),
            optax.add_decayed_weights(-outside),
        )

    return build


CHANGES = {
    "threshold": [1.0, 1.4, 2.0, 2.5],
    "decay": [0.9, 0.98, 0.99, 1.0],
    "learning_rate": [1e-3, 1e-2, 1e-1],
    "max_step_size": [0.03, 0.1, 1.0],
    "decay_inside": [1e-4, 1e-3],
    "decay_outside": [1e-5, 1e-4],
    "eta_plus": [1.1, 1.4],
    "eta_minus": [0.5, 0.65, 0.85],
}


def ablations() -> tuple[list[str], list[Optimizer]]:
    """The default, each change of one number, and two other variants, with names."""
    numbers = {"default": {}} | {
        f"{name} {value:g}": {name: value}
        for name, values in CHANGES.items()
        for value in values
    }
    default = {**DEFAULTS, **NO_WEIGHT_DECAY}
    cases = [{**default, **change} for change in numbers.values()]
    variants = ("rprop-", "rprop+")
    optimizers = [Optimizer("irprop-", _ablation("irprop-"), cases)]
    optimizers += [Optimizer(name, _ablation(name), [default]) for name in variants]
    return [*numbers, *(f"variant {name}" for name in variants)], optimizers
