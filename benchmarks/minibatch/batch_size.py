"""Where plain Rprop stops working on mini-batches, predicted and measured.

The script compares predicted and measured agreement of signs on the digits, at several
stages of training; trains at batch sizes from 8 to all rows; and tries the simple
remedies: gentler factors, and a cap.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import ADAM, VARIANTS, Optimizer
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.minibatch import signs as argument

FACTORS = ((0.5, 1.2), (0.7, 1.2), (1 / 1.2, 1.2), (1 / 1.02, 1.02))
"""To shrink and to grow by."""
CAPS = (50.0, 0.1, 0.01, 0.001)
RATES = (1e-4, 1e-3, 1e-2, 1e-1)
REMEDY_BATCH = 32


def trainer(problem: Problem, optimizer: Optimizer, batch: int) -> Callable[..., Any]:
    """A function that trains with all settings from all starts at once.

    It is one of the settings, the starts and the order of the rows in each epoch from
    each start. It returns measures and parameters, whose first axes count settings and
    starts: losses; the error on the test rows, in percent; the step size, 0 for Adam.
    """
    train, validation, test = problem.data
    error: Any = problem.error

    def run(setting: Any, params: Any, orders: jax.Array) -> Any:
        rule = optax.with_extra_args_support(optimizer.build(setting))

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, None]:
            params, state = carry
            rows = {name: array[chosen] for name, array in train.items()}
            value, grads = jax.value_and_grad(problem.loss)(params, rows)
            updates, state = rule.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        start = params, rule.init(params)
        (params, state), _ = jax.lax.scan(step, start, orders.reshape(-1, batch))
        median_step_size = jnp.zeros(())
        if optimizer != ADAM:
            median_step_size = optax_rprop.diagnostics(state).median_step_size
        return {
            "loss": problem.loss(params, train),
            "validation_loss": problem.loss(params, validation),
            "error": error(params, test),
            "median_step_size": median_step_size,
        }, params

    return jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None)))


def starts(problem: Problem, runs: int, epochs: int) -> tuple[Any, jax.Array]:
    """Parameters, and the orders of the rows, shape (runs, epochs, rows)."""
    rows = np.arange(len(problem.data.train["targets"]), dtype=np.int32)
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(rows, (runs, epochs, 1)), axis=-1)
    return problem.starts(jnp.arange(runs)), jnp.asarray(orders)


class Scale(NamedTuple):
    """How much is computed."""

    variants: tuple[Optimizer, ...] = VARIANTS
    rows: int = 1024
    batches: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    runs: int = 3
    epochs: int = 100
    draws: int = 200
    stages: tuple[int, ...] = (0, 10, 30)


QUICK = Scale(VARIANTS[1:2], 64, (16,), 1, 3, 20, (0,))
Rows = Iterator[dict[str, Any]]


def watch_signs(problem: Problem, scale: Scale, epochs: int) -> Rows:
    """Predicted and measured signs after epochs of full-batch training, by batch."""
    default = Optimizer("irprop-", lambda _: optax_rprop.rprop())
    train = trainer(problem, default, scale.rows)
    _, params = train(jnp.zeros(1), *starts(problem, 1, epochs))
    params = jax.tree.map(lambda leaf: leaf[0, 0], params)
    grads = argument.row_gradients(problem, params)
    keys = jax.random.split(jax.random.key(0), scale.draws)
    for batch in tqdm.tqdm(scale.batches, desc=f"signs after {epochs} epochs"):
        predicted = argument.predict_signs(grads, batch)
        measured = argument.measure_signs(grads, batch, keys)
        for source, signs in (("predicted", predicted), ("measured", measured)):
            where = {"epochs": epochs, "batch": batch, "source": source}
            seen = {name: float(share) for name, share in signs._asdict().items()}
            yield where | {"optimizer": "irprop-"} | seen


def mean_row(measured: Any, index: int, **how: Any) -> dict[str, Any]:
    """A row of results: means over the starts."""
    means = {name: float(np.mean(found[index])) for name, found in measured.items()}
    return dict.fromkeys(("setting", "eta_minus", "eta_plus", "cap")) | how | means


def train_by_batch(problem: Problem, scale: Scale) -> Rows:
    """The variants and Adam, each with the rate of the best validation loss."""
    runs = starts(problem, scale.runs, scale.epochs)
    jobs = list(itertools.product((*scale.variants, ADAM), scale.batches))
    for optimizer, batch in tqdm.tqdm(jobs, desc="batch sizes"):
        train = trainer(problem, optimizer, batch)
        measured, _ = train(jnp.asarray(RATES), *runs)
        chosen = int(np.mean(measured["validation_loss"], axis=1).argmin())
        how = {"batch": batch, "setting": RATES[chosen]}
        yield mean_row(measured, chosen, optimizer=optimizer.name, **how)


def try_factors_and_caps(problem: Problem, scale: Scale) -> Rows:
    """For each variant, a row for each (eta_minus, eta_plus, cap)."""
    runs = starts(problem, scale.runs, scale.epochs)
    grid = [(*factors, cap) for factors in FACTORS for cap in CAPS]

    def build(setting: jax.Array, name: Any) -> optax.GradientTransformation:
        shrink, grow, cap = setting
        step_size = jnp.minimum(0.01, cap)
        return optax_rprop.rprop(step_size, shrink, grow, 1e-6, cap, variant=name)

    for name, *_ in tqdm.tqdm(scale.variants, desc="factors and caps"):
        variant = Optimizer(name, functools.partial(build, name=name))
        train = trainer(problem, variant, REMEDY_BATCH)
        measured, _ = train(jnp.asarray(grid), *runs)
        for i, (shrink, grow, cap) in enumerate(grid):
            how = {"optimizer": name, "batch": REMEDY_BATCH, "cap": cap}
            yield mean_row(measured, i, eta_minus=shrink, eta_plus=grow, **how)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not there yet."""
    options = cli.parser(__doc__, "minibatch").parse_args(arguments)
    scale = QUICK if options.quick else Scale()
    problem = digits(scale.rows)
    folder, script = options.output_dir, "batch_size"
    signs = Study(folder, "batch_size_signs", ["epochs"], script=script)
    for epochs in scale.stages:
        if not signs.has(epochs):
            signs.add(watch_signs(problem, scale, epochs))
    study = Study(folder, script, ["question"])
    for question, answer in (
        ("batch size", train_by_batch),
        ("factors and cap", try_factors_and_caps),
    ):
        if not study.has(question):
            rows = answer(problem, scale)
            study.add({"question": question} | row for row in rows)


if __name__ == "__main__":
    main()
