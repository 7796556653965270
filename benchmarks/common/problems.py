"""Problems: a loss with its data."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import data as sets
from benchmarks.common import networks
from benchmarks.common.data import Data, Split
from benchmarks.common.networks import Activation, Params

Loss = Callable[[Params, Data], jax.Array]
NO_DATA = Split({})


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to minimize."""

    name: str
    description: str
    dtype: str  # Of the parameters.
    init: Callable[
        [jax.Array], Params
    ]  # From a random key, which depends on the run's number.
    loss: Loss
    data: Split = NO_DATA
    error: Loss | None = None  # On the test set, in units of `error_name`.
    error_name: str = ""

    @functools.cached_property
    def starts(self) -> Callable[[jax.Array], Params]:
        """`init` for a vector of runs, along the first axis of each array."""
        return jax.jit(
            lambda runs: jax.vmap(lambda run: self.init(jax.random.key(run)))(runs)
        )

    def start(self, run: int) -> Params:
        """The start of one run."""
        return jax.tree.map(lambda leaf: leaf[0], self.starts(jnp.array([run])))


def supervised(
    name: str,
    description: str,
    data: Split,
    apply: Callable[[Params, Any], Any],
    init: Callable[[jax.Array], Params],
    *,
    dtype: str = "float32",
    of_variance: bool = False,
) -> Problem:
    """A model for classes (cross-entropy) or numbers (mean square).

    It computes logits or predictions from parameters and inputs; integer targets are
    class numbers. Errors of numbers are mean squares or, with `of_variance`, in percent
    of the variance of the targets, which must be 1.
    """
    compare = measure = networks.mean_square
    error_name = "mean square"
    if is_classes(data):
        compare, measure = networks.cross_entropy, networks.error_rate
        error_name = "% wrong"
    elif of_variance:
        measure, error_name = networks.percent_of_variance, "% of variance"

    def of_outputs(compare: Callable[[Any, Any], jax.Array]) -> Loss:
        return lambda params, data: compare(
            apply(params, data["inputs"]), data["targets"]
        )

    loss, error = of_outputs(compare), of_outputs(measure)
    data = sets.to_jax(data, dtype)
    return Problem(name, description, dtype, init, loss, data, error, error_name)


def is_classes(data: Split) -> bool:
    """Whether the targets are class numbers."""
    return data.train["targets"].dtype.kind == "i"


def outputs(data: Split) -> int:
    """The number of outputs of a model for these targets."""
    targets = data.train["targets"]
    return int(targets.max()) + 1 if is_classes(data) else targets.shape[-1]


def network(
    name: str,
    description: str,
    data: Split,
    hidden_sizes: Sequence[int],
    *,
    hidden: Activation = jnp.tanh,
    gain: float = 1.0,
    of_variance: bool = False,
) -> Problem:
    """A multilayer network in float32; see `supervised` and `networks.dense`."""
    sizes = (data.train["inputs"].shape[-1], *hidden_sizes, outputs(data))
    return supervised(
        name,
        f"{description}; net {'-'.join(map(str, sizes))}",
        data,
        lambda params, inputs: networks.forward(params, inputs, hidden),
        lambda key: networks.init(key, sizes, gain=gain),
        of_variance=of_variance,
    )


def digits(train: int = 1024) -> Problem:
    """The network 64-64-10 on the digits."""
    return network(
        "digits",
        f"digits of scikit-learn, {train:,} to train; tanh, cross-entropy",
        sets.hold_out(sets.digits(64), train),
        (64,),
    )
