"""Where plain Rprop stops working on mini-batches, predicted and measured.

The script compares predicted and measured agreement of signs on the digits, at several
stages of training; trains at batch sizes from 8 to all rows; and tries the simple
remedies: gentler factors, a cap, accumulation.
"""

import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jax.flatten_util import ravel_pytree

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.optimizers import ADAM, VARIANTS, Optimizer
from benchmarks.common.problems import Problem, digits
from benchmarks.common.results import Study
from benchmarks.minibatch import signs as argument

FACTORS = ((0.5, 1.2), (0.7, 1.2), (1 / 1.2, 1.2), (1 / 1.02, 1.02))
"""To shrink and to grow by."""


class Trained(NamedTuple):
    """The end of training.

    Attributes:
      loss: On all training rows.
      validation_loss: On the validation rows.
      error: On the test rows, in percent.
      agree: The fraction of signs that agreed with those of the batch before, in the
        last epoch.
      median_step_size: Of Rprop; 0 for others.
      params: The parameters.
    """

    loss: Any
    validation_loss: Any
    error: Any
    agree: Any
    median_step_size: Any
    params: Any


def trainer(
    problem: Problem, optimizer: Optimizer, *, batch: int, accumulate: int = 1
) -> Callable[..., Trained]:
    """A function that trains with all settings from all starts at once.

    Args:
      problem: What to train.
      optimizer: The optimizer.
      batch: Rows per gradient.
      accumulate: Gradients, averaged, per step of the optimizer.

    Returns:
      A function of the settings, the starts and the order of the rows in each epoch
      from each start. The fields of its result have the shape (settings, starts).
    """
    train, validation, test = problem.data
    error: Any = problem.error

    def run(setting: Any, params: Any, orders: jax.Array) -> Trained:
        inner = optax.with_extra_args_support(optimizer.build(setting))
        rule = optax.MultiSteps(inner, accumulate) if accumulate > 1 else inner

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            params, state, prev_signs, losses = carry
            rows = {name: array[chosen] for name, array in train.items()}
            value, grads = jax.value_and_grad(problem.loss)(params, rows)
            # irprop+ is to see the loss on all the rows that one step accumulates.
            losses = jnp.concatenate([losses[1:], value[None]])
            updates, state = rule.update(grads, state, params, value=losses.mean())
            params = optax.apply_updates(params, updates)
            signs = jnp.sign(ravel_pytree(grads)[0])
            return (params, state, signs, losses), argument.agreeing(signs, prev_signs)

        def epoch(carry: Any, order: jax.Array) -> tuple[Any, jax.Array]:
            carry, agree = jax.lax.scan(step, carry, order.reshape(-1, batch))
            return carry, agree.mean()

        signs = jnp.zeros_like(ravel_pytree(params)[0])
        carry = params, rule.init(params), signs, jnp.zeros(accumulate)
        (params, state, *_), agree = jax.lax.scan(epoch, carry, orders)
        median_step_size = jnp.zeros(())
        if optimizer != ADAM:
            median_step_size = optax_rprop.diagnostics(state).median_step_size
        return Trained(
            loss=problem.loss(params, train),
            validation_loss=problem.loss(params, validation),
            error=error(params, test),
            agree=agree[-1:].mean(),
            median_step_size=median_step_size,
            params=params,
        )

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
    rates: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1)
    factors: tuple[tuple[float, float], ...] = FACTORS
    caps: tuple[float, ...] = (50.0, 0.1, 0.01, 0.001)
    remedy_batch: int = 32
    accumulate: tuple[int, ...] = (4, 32)


QUICK = Scale(
    variants=VARIANTS[1:2],
    rows=64,
    batches=(16,),
    runs=1,
    epochs=3,
    draws=20,
    stages=(0,),
    rates=(1e-2,),
    factors=FACTORS[:1],
    caps=(50.0, 0.01),
    remedy_batch=16,
    accumulate=(2,),
)
Rows = list[dict[str, Any]]


def watch_signs(problem: Problem, scale: Scale, epochs: int) -> Rows:
    """Predicted and measured signs after epochs of full-batch training, by batch."""
    default = Optimizer("irprop-", lambda _: optax_rprop.rprop())
    train = trainer(problem, default, batch=scale.rows)
    params = train(jnp.zeros(1), *starts(problem, 1, epochs)).params
    grads = argument.row_gradients(problem)(
        jax.tree.map(lambda leaf: leaf[0, 0], params)
    )
    keys = jax.random.split(jax.random.key(0), scale.draws)
    rows = []
    for batch in tqdm.tqdm(scale.batches, desc=f"signs after {epochs} epochs"):
        measured: argument.Signs = jax.tree.map(
            float, argument.measure_signs(grads, batch, keys)
        )
        predicted = argument.predict_signs(grads, batch)
        for source, signs in (("predicted", predicted), ("measured", measured)):
            for name, grow in signs.grow.items():
                rows.append(
                    {
                        "epochs": epochs,
                        "batch": batch,
                        "source": source,
                        "optimizer": name,
                        "right": signs.right,
                        "agree": signs.agree,
                        "grow": grow,
                        "log_growth": signs.log_growth[name],
                    }
                )
    return rows


def mean_row(trained: Trained, index: int, **how: Any) -> dict[str, Any]:
    """A row of results: means over the starts."""
    means = {
        name: float(np.mean(getattr(trained, name)[index]))
        for name in Trained._fields[:-1]
    }
    unknown = dict.fromkeys(
        ("setting", "eta_minus", "eta_plus", "cap", "accumulated", "predicted_agree")
    )
    return unknown | how | means


def in_parallel(function: Callable[..., Rows], jobs: Sequence[Any], title: str) -> Rows:
    """All rows; nothing is timed here, so that all cores may work."""
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda job: function(*job), jobs)
        parts: Iterable[Rows] = tqdm.tqdm(results, total=len(jobs), desc=title)
        return [row for rows in parts for row in rows]


def train_by_batch(problem: Problem, scale: Scale) -> Rows:
    """The variants and Adam, each with the rate of the best validation loss."""
    gradients = argument.row_gradients(problem)
    runs = starts(problem, scale.runs, scale.epochs)

    def best(optimizer: Optimizer, batch: int) -> Rows:
        trained = trainer(problem, optimizer, batch=batch)(
            jnp.asarray(scale.rates), *runs
        )
        chosen = int(np.mean(trained.validation_loss, axis=1).argmin())
        params = jax.tree.map(lambda leaf: leaf[chosen, 0], trained.params)
        row = mean_row(
            trained,
            chosen,
            optimizer=optimizer.name,
            batch=batch,
            setting=scale.rates[chosen],
            predicted_agree=argument.predict_signs(gradients(params), batch).agree,
        )
        return [row]

    jobs = list(itertools.product((*scale.variants, ADAM), scale.batches))
    return in_parallel(best, jobs, "batch sizes")


def try_factors_and_caps(problem: Problem, scale: Scale) -> Rows:
    """For each variant, a row for each (eta_minus, eta_plus, cap)."""
    runs = starts(problem, scale.runs, scale.epochs)
    grid = [(*factors, cap) for factors in scale.factors for cap in scale.caps]

    def rows(variant: Optimizer) -> Rows:
        name: Any = variant.name

        def build(setting: jax.Array) -> optax.GradientTransformation:
            shrink, grow, cap = setting
            step_size = jnp.minimum(0.01, cap)
            return optax_rprop.rprop(step_size, shrink, grow, 1e-6, cap, variant=name)

        batch = scale.remedy_batch
        train = trainer(problem, Optimizer(name, build), batch=batch)
        trained = train(jnp.asarray(grid), *runs)
        return [
            mean_row(
                trained,
                i,
                optimizer=name,
                batch=batch,
                eta_minus=shrink,
                eta_plus=grow,
                cap=cap,
            )
            for i, (shrink, grow, cap) in enumerate(grid)
        ]

    return in_parallel(rows, [(variant,) for variant in scale.variants], "factors")


def try_accumulation(problem: Problem, scale: Scale) -> Rows:
    """By variant and the number of gradients that are averaged for a step."""
    runs = starts(problem, scale.runs, scale.epochs)
    batch = scale.remedy_batch

    def rows(variant: Optimizer, length: int) -> Rows:
        train = trainer(problem, variant, batch=batch, accumulate=length)
        trained = train(jnp.full(1, 0.01), *runs)
        how = {"setting": 0.01, "accumulated": length}
        return [mean_row(trained, 0, optimizer=variant.name, batch=batch, **how)]

    jobs = list(itertools.product(scale.variants, scale.accumulate))
    return in_parallel(rows, jobs, "accumulation")


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
        ("accumulation", try_accumulation),
    ):
        rows = [] if study.has(question) else answer(problem, scale)
        if rows:
            study.add({"question": question} | row for row in rows)


if __name__ == "__main__":
    main()
