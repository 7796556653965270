"""Where plain Rprop stops working on mini-batches, predicted and measured.

A coordinate whose gradient has mean mu and standard deviation sigma over the examples
shows the sign of its mean on a batch of B with probability

    q = Phi(sqrt(B) |mu| / sigma),

and its step size grows in the long run only if q is above a threshold that follows
from the two factors. The script (1) compares predicted and measured agreement of signs
on the digits, at several stages of training; (2) trains at batch sizes from 8 to all
rows; (3) tries the simple remedies: accumulation, gentler factors, a cap.
"""

import concurrent.futures
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tqdm
from common import markdown_table, parser, write_results
from contenders import CONTENDERS, PICTURE_STYLE, VARIANTS, Contender
from jax.flatten_util import ravel_pytree
from problems import Problem, digits

import optax_rprop

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.ticker import ScalarFormatter

ADAM = next(contender for contender in CONTENDERS if contender.name == "Adam")
ETA_MINUS, ETA_PLUS = 0.5, 1.2


# --- The sign argument -------------------------------------------------------


def forgets(variant: str) -> bool:
    """Whether a changed sign is forgotten, so that the next step is neutral."""
    return variant != "rprop-"


def threshold(eta_minus: float, eta_plus: float, variant: str) -> float:
    """The probability of the right sign above which step sizes grow.

    Let the signs be drawn independently, right with probability q, and let
    x = q (1 - q). Then the mean log growth per step is

        (1 - 2 x) log(eta_plus) + 2 x log(eta_minus)

    for rprop-, which compares each sign with the one before. The others forget a sign
    that has changed, which makes a Markov chain of three states (right, wrong,
    forgotten), of which a fraction x / (1 - x) is forgotten, with the mean log growth

        ((1 - 3 x) log(eta_plus) + x log(eta_minus)) / (1 - x).

    Returns:
      The q in [1/2, 1) where it is 0; 1/2 if the step sizes grow even on noise.
    """
    ratio = -math.log(eta_minus) / math.log(eta_plus)
    x = 1 / (ratio + 3) if forgets(variant) else 1 / (2 * (1 + ratio))
    return 0.5 * (1 + math.sqrt(max(0.0, 1 - 4 * x)))


def log_growth(
    q: np.ndarray, eta_minus: float, eta_plus: float, variant: str
) -> np.ndarray:
    """The mean log growth per step, by the formulas in `threshold`."""
    x = q * (1 - q)
    grow, shrink = math.log(eta_plus), math.log(eta_minus)
    if forgets(variant):
        return ((1 - 3 * x) * grow + x * shrink) / (1 - x)
    return (1 - 2 * x) * grow + 2 * x * shrink


def right_sign(
    means: np.ndarray, deviations: np.ndarray, batch: int, rows: int
) -> np.ndarray:
    """The probability that a batch shows the sign of the mean gradient.

    Batches are drawn without replacement, as in training, so that the variance of
    their mean is sigma^2 / B (N - B) / (N - 1): no doubt remains with all rows.
    """
    spread = deviations * math.sqrt((rows - batch) / (rows - 1) / batch)
    ratio = np.full_like(means, np.inf)
    np.divide(np.abs(means), spread, out=ratio, where=spread > 0)
    return np.asarray(jax.scipy.stats.norm.cdf(ratio))


class Signs(NamedTuple):
    """Of batches of one size, at fixed parameters.

    Attributes:
      right: The fraction of signs that are those of the gradient on all rows.
      agree: The fraction of signs that agree with those of another batch.
      grow: For each variant, the fraction of coordinates whose step size grows.
      log_growth: For each variant, the mean log growth of the step sizes per step.
    """

    right: Any
    agree: Any
    grow: dict[str, Any]
    log_growth: dict[str, Any]


def predict_signs(grads: jax.Array, batch: int) -> Signs:
    """By the sign argument, from the gradients of single rows, shape (rows, size)."""
    moments = np.asarray(grads.mean(axis=0)), np.asarray(grads.std(axis=0))
    q = right_sign(*moments, batch, len(grads))
    names = [variant.name for variant in VARIANTS]
    factors = ETA_MINUS, ETA_PLUS
    return Signs(
        right=float(q.mean()),
        agree=float(np.mean(q**2 + (1 - q) ** 2)),
        grow={name: float(np.mean(q > threshold(*factors, name))) for name in names},
        log_growth={
            name: float(log_growth(q, *factors, name).mean()) for name in names
        },
    )


def agreeing(signs: jax.Array, others: jax.Array) -> jax.Array:
    """The fraction that agrees, of those that are 0 in neither."""
    products = signs * others
    return jnp.sum(products > 0) / jnp.maximum(1, jnp.sum(products != 0))


@jax.jit
def measure_signs(grads: jax.Array, batch: jax.Array, keys: jax.Array) -> Signs:
    """By drawing batches, and by feeding their gradients to the optimizers.

    Args:
      grads: The gradients of single rows, shape (rows, size).
      batch: The number of rows in a batch.
      keys: One for each batch to draw.
    """
    order = jax.vmap(lambda key: jax.random.permutation(key, len(grads)))(keys)
    batches = (order < batch).astype(grads.dtype) @ grads
    signs = jnp.sign(batches)
    grow, growth = {}, {}
    for variant in VARIANTS:
        name: Any = variant.name
        optimizer = optax_rprop.scale_by_rprop(
            1.0, ETA_MINUS, ETA_PLUS, 0.0, 10.0, variant=name
        )

        def step(carry: Any, batch_grads: jax.Array, optimizer: Any = optimizer) -> Any:
            state, logs = carry
            # A constant loss: irprop+ sees no rise.
            _, state = optimizer.update(batch_grads, state, value=jnp.zeros(()))
            # Summed up and set back, lest a step size meets a bound or underflows.
            logs = logs + jnp.log(state.step_sizes)
            return (state._replace(step_sizes=jnp.ones_like(logs)), logs), None

        start = optimizer.init(batches[0]), jnp.zeros_like(batches[0])
        (_, logs), _ = jax.lax.scan(step, start, batches)
        grow[name] = jnp.mean(logs > 0)
        growth[name] = logs.mean() / (len(keys) - 1)
    return Signs(
        right=agreeing(signs, jnp.sign(grads.mean(axis=0))),
        agree=agreeing(signs[1:], signs[:-1]),
        grow=grow,
        log_growth=growth,
    )


def row_gradients(problem: Problem) -> Callable[[Any], jax.Array]:
    """A function of the parameters: the gradient on every row, shape (rows, size).

    Coordinates that are 0 for every row, those of pixels that are always dark, are
    left out.
    """

    def gradient(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        row = {"inputs": inputs[None], "targets": targets[None]}
        return ravel_pytree(jax.grad(problem.loss)(params, row))[0]

    gradients = jax.jit(jax.vmap(gradient, (None, 0, 0)))

    def compute(params: Any) -> jax.Array:
        grads = gradients(params, problem.train["inputs"], problem.train["targets"])
        return grads[:, jnp.any(grads != 0, axis=0)]

    return compute


# --- Training ----------------------------------------------------------------


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


Factory = Callable[[Any], optax.GradientTransformation]
"""Makes an optimizer from a setting."""


def trainer(
    problem: Problem, factory: Factory, *, batch: int, accumulate: int = 1
) -> Callable[..., Trained]:
    """A function that trains with all settings from all starts at once.

    Args:
      problem: What to train.
      factory: The optimizer from one setting.
      batch: Rows per gradient.
      accumulate: Gradients, averaged, per step of the optimizer.

    Returns:
      A function of the settings, the starts and the order of the rows in each epoch
      from each start. The fields of its result have the shape (settings, starts).
    """

    def run(setting: Any, params: Any, orders: jax.Array) -> Trained:
        inner = optax.with_extra_args_support(factory(setting))
        optimizer = optax.MultiSteps(inner, accumulate) if accumulate > 1 else inner

        def step(carry: Any, chosen: jax.Array) -> tuple[Any, jax.Array]:
            params, state, prev_signs, losses = carry
            data = {name: array[chosen] for name, array in problem.train.items()}
            value, grads = jax.value_and_grad(problem.loss)(params, data)
            # irprop+ is to see the loss on all the rows that one step accumulates.
            losses = jnp.concatenate([losses[1:], value[None]])
            updates, state = optimizer.update(grads, state, params, value=losses.mean())
            params = optax.apply_updates(params, updates)
            signs = jnp.sign(ravel_pytree(grads)[0])
            return (params, state, signs, losses), agreeing(signs, prev_signs)

        def epoch(carry: Any, order: jax.Array) -> tuple[Any, jax.Array]:
            carry, agree = jax.lax.scan(step, carry, order.reshape(-1, batch))
            return carry, agree.mean()

        signs = jnp.zeros_like(ravel_pytree(params)[0])
        carry = params, optimizer.init(params), signs, jnp.zeros(accumulate)
        (params, state, *_), agree = jax.lax.scan(epoch, carry, orders)
        try:
            median_step_size = optax_rprop.diagnostics(state).median_step_size
        except ValueError:  # It is no Rprop.
            median_step_size = jnp.zeros(())
        assert problem.validation is not None
        assert problem.test is not None
        assert problem.error is not None
        return Trained(
            loss=problem.loss(params, problem.train),
            validation_loss=problem.loss(params, problem.validation),
            error=problem.error(params, problem.test),
            agree=agree[-1:].mean(),
            median_step_size=median_step_size,
            params=params,
        )

    return jax.jit(jax.vmap(jax.vmap(run, (None, 0, 0)), (0, None, None)))


def starts(problem: Problem, seeds: int, epochs: int) -> tuple[Any, jax.Array]:
    """Parameters, and the orders of the rows, shape (seeds, epochs, rows)."""
    rows = np.arange(len(problem.train["targets"]), dtype=np.int32)
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(rows, (seeds, epochs, 1)), axis=-1)
    return problem.starts(jnp.arange(seeds)), jnp.asarray(orders)


# --- The three parts ---------------------------------------------------------


class Scale(NamedTuple):
    """How much is computed."""

    variants: tuple[Contender, ...]
    rows: int
    batches: tuple[int, ...]
    seeds: int
    epochs: int
    draws: int
    stages: tuple[int, ...]
    rates: tuple[float, ...]
    factors: tuple[tuple[float, float], ...]
    caps: tuple[float, ...]
    remedy_batch: int
    accumulate: tuple[int, ...]


FULL = Scale(
    variants=VARIANTS,
    rows=1024,
    batches=(8, 16, 32, 64, 128, 256, 512, 1024),
    seeds=3,
    epochs=100,
    draws=200,
    stages=(0, 10, 30),
    rates=(1e-4, 1e-3, 1e-2, 1e-1),
    factors=((0.5, 1.2), (0.7, 1.2), (1 / 1.2, 1.2), (1 / 1.02, 1.02)),
    caps=(50.0, 0.1, 0.01, 0.001),
    remedy_batch=32,
    accumulate=(4, 32),
)
QUICK = Scale(
    variants=VARIANTS[:1],
    rows=64,
    batches=(16,),
    seeds=1,
    epochs=3,
    draws=20,
    stages=(2,),
    rates=(1e-2,),
    factors=((0.5, 1.2),),
    caps=(50.0, 0.01),
    remedy_batch=16,
    accumulate=(),
)


def watch_signs(
    problem: Problem, scale: Scale, progress: tqdm.tqdm
) -> dict[int, dict[int, tuple[Signs, Signs]]]:
    """Predicted and measured signs, by epochs of full-batch training, by batch."""
    train = trainer(problem, lambda _: optax_rprop.rprop(), batch=scale.rows)
    draw_keys = jax.random.split(jax.random.key(0), scale.draws)
    gradients = row_gradients(problem)
    found: dict[int, dict[int, tuple[Signs, Signs]]] = {}
    for epochs in scale.stages:
        params = train(jnp.zeros(1), *starts(problem, 1, epochs)).params
        grads = gradients(jax.tree.map(lambda leaf: leaf[0, 0], params))
        found[epochs] = {}
        for batch in scale.batches:
            measured = jax.tree.map(float, measure_signs(grads, batch, draw_keys))
            found[epochs][batch] = predict_signs(grads, batch), measured
            progress.update()
    return found


class Row(NamedTuple):
    """A line of a table: means over the starts; the fields are those of `Trained`."""

    setting: Any
    loss: float
    validation_loss: float
    error: float
    agree: float
    median_step_size: float
    predicted_agree: float | None = None


def mean_rows(trained: Trained, settings: Sequence[Any]) -> list[Row]:
    """One row a setting."""
    means = {
        name: np.mean(getattr(trained, name), axis=1).tolist()
        for name in Trained._fields[:-1]
    }
    return [
        Row(setting=setting, **{name: column[i] for name, column in means.items()})
        for i, setting in enumerate(settings)
    ]


def in_parallel(
    function: Callable[[Any], Any], jobs: Sequence[Any], progress: tqdm.tqdm
) -> dict[Any, Any]:
    """The results by job; nothing is timed here, so that all cores may work."""

    def run(job: Any) -> Any:
        result = function(job)
        progress.update()
        return result

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(jobs, pool.map(run, jobs), strict=True))


def train_by_batch(
    problem: Problem, scale: Scale, progress: tqdm.tqdm
) -> dict[str, dict[int, Row]]:
    """The variants and Adam, each with the rate of the best validation loss."""
    gradients = row_gradients(problem)
    runs = starts(problem, scale.seeds, scale.epochs)
    entrants = {contender.name: contender for contender in (*scale.variants, ADAM)}

    def best_row(job: tuple[str, int]) -> Row:
        name, batch = job
        train = trainer(problem, entrants[name].factory, batch=batch)
        trained = train(jnp.asarray(scale.rates), *runs)
        rows = mean_rows(trained, scale.rates)
        best = min(range(len(rows)), key=lambda i: rows[i].validation_loss)
        params = jax.tree.map(lambda leaf: leaf[best, 0], trained.params)
        predicted = predict_signs(gradients(params), batch)
        return rows[best]._replace(predicted_agree=predicted.agree)

    jobs = list(itertools.product(entrants, scale.batches))
    found = in_parallel(best_row, jobs, progress)
    return {
        name: {batch: found[name, batch] for batch in scale.batches}
        for name in entrants
    }


def try_factors_and_caps(
    problem: Problem, scale: Scale, progress: tqdm.tqdm
) -> dict[str, list[Row]]:
    """For each variant, a row for each (eta_minus, eta_plus, cap)."""
    runs = starts(problem, scale.seeds, scale.epochs)
    grid = [(*factors, cap) for factors in scale.factors for cap in scale.caps]

    def rows(name: Any) -> list[Row]:
        def factory(setting: jax.Array) -> optax.GradientTransformation:
            shrink, grow, cap = setting
            step_size = jnp.minimum(0.01, cap)
            return optax_rprop.rprop(step_size, shrink, grow, 1e-6, cap, variant=name)

        train = trainer(problem, factory, batch=scale.remedy_batch)
        return mean_rows(train(jnp.asarray(grid), *runs), grid)

    return in_parallel(rows, [variant.name for variant in scale.variants], progress)


def try_accumulation(
    problem: Problem, scale: Scale, progress: tqdm.tqdm
) -> dict[tuple[str, int], Row]:
    """By variant and the number of gradients that are averaged for a step."""
    runs = starts(problem, scale.seeds, scale.epochs)
    factories = {variant.name: variant.factory for variant in scale.variants}

    def row(job: tuple[str, int]) -> Row:
        name, length = job
        batch = scale.remedy_batch
        train = trainer(problem, factories[name], batch=batch, accumulate=length)
        (only,) = mean_rows(train(jnp.full(1, 0.01), *runs), [length])
        return only

    jobs = list(itertools.product(factories, scale.accumulate))
    return in_parallel(row, jobs, progress)


# --- The report --------------------------------------------------------------


def percent(fraction: float) -> str:
    """A fraction in percent."""
    return f"{100 * fraction:.1f}"


def signs_table(by_batch: Mapping[int, tuple[Signs, Signs]]) -> str:
    """Predicted and measured, in percent."""
    rows = []
    for batch, (predicted, measured) in by_batch.items():
        pairs = [
            (predicted.right, measured.right),
            (predicted.agree, measured.agree),
            *(
                (predicted.grow[name], measured.grow[name])
                for name in ("rprop-", "irprop-")
            ),
        ]
        rows.append([batch, *(f"{percent(p)} / {percent(m)}" for p, m in pairs)])
    header = [
        "batch",
        "sign is right",
        "signs of two batches agree",
        "step size grows, rprop-",
        "step size grows, the other three",
    ]
    return markdown_table(header, rows)


def training_table(
    found: Mapping[str, Mapping[int, Row]], cell: Callable[[Row], str]
) -> str:
    """One row a batch size, one column an optimizer."""
    batches = list(next(iter(found.values())))
    rows = [
        [batch, *(cell(column[batch]) for column in found.values())]
        for batch in batches
    ]
    return markdown_table(["batch", *found], rows)


def remedy_table(rows: Sequence[Row], scale: Scale, variant: str) -> str:
    """Test error and training loss; factors down, caps across."""
    cells = iter(f"{row.error:.1f} ({row.loss:.2g})" for row in rows)
    lines = [
        [
            f"{shrink:.3g}, {grow:.3g}",
            f"{threshold(shrink, grow, variant):.3f}",
            *itertools.islice(cells, len(scale.caps)),
        ]
        for shrink, grow in scale.factors
    ]
    header = ["factors", "threshold", *(f"cap {cap:g}" for cap in scale.caps)]
    return markdown_table(header, lines)


def picture(
    signs: Mapping[int, Mapping[int, tuple[Signs, Signs]]],
    trained: Mapping[str, Mapping[int, Row]],
    path: Path,
) -> None:
    """Signs and growth above, what becomes of training below."""
    colors = ("#E69F00", "#009E73", "#CC79A7")
    with pyplot.rc_context(PICTURE_STYLE):
        figure, axes = pyplot.subplots(
            2, 2, figsize=(10.5, 8), sharex=True, layout="constrained"
        )
        quantities = [
            ("signs of two batches agree, %", lambda found: found.agree),
            ("step sizes that grow, % (irprop-)", lambda found: found.grow["irprop-"]),
        ]
        for axis, (title, quantity) in zip(axes[0], quantities, strict=True):
            for (epochs, by_batch), color in zip(signs.items(), colors, strict=False):
                batches = list(by_batch)
                predicted, measured = (
                    [100 * quantity(by_batch[batch][i]) for batch in batches]
                    for i in (0, 1)
                )
                label = "at the start" if epochs == 0 else f"after {epochs} epochs"
                axis.plot(batches, predicted, color=color, label=label)
                axis.plot(batches, measured, "o", color=color, mfc="none")
            axis.set_ylabel(title)
        axes[0, 0].set_title("Lines: predicted. Circles: measured at fixed parameters.")
        axes[0, 1].set_title("Full-batch training leads to the three points.")
        ends: list[tuple[str, Callable[[Row], float]]] = [
            ("training loss at the end", lambda row: row.loss),
            ("test error at the end, %", lambda row: row.error),
        ]
        styles = {contender.name: contender for contender in CONTENDERS}
        for axis, (title, quantity) in zip(axes[1], ends, strict=True):
            for name, by_batch in trained.items():
                axis.plot(
                    list(by_batch),
                    [quantity(row) for row in by_batch.values()],
                    "o",
                    ms=3,
                    color=styles[name].color,
                    ls=styles[name].linestyle,
                    label=name,
                )
            axis.set(yscale="log", ylabel=title, xlabel="batch size")
        axes[1, 1].yaxis.set_minor_formatter(ScalarFormatter())
        axes[1, 1].yaxis.set_major_formatter(ScalarFormatter())
        axes[0, 0].legend()
        axes[1, 0].legend()
        axes[1, 0].set_xscale("log", base=2)
        axes[1, 0].xaxis.set_major_formatter(ScalarFormatter())
        figure.savefig(path)
        pyplot.close(figure)


def main() -> None:
    """Measure, tabulate, draw."""
    arguments = parser(__doc__).parse_args()
    scale = QUICK if arguments.quick else FULL
    problem = digits(scale.rows)
    steps = len(scale.batches) * (len(scale.stages) + len(scale.variants) + 1)
    steps += len(scale.variants) * (1 + len(scale.accumulate))
    with tqdm.tqdm(total=steps, desc="batch size") as progress:
        signs = watch_signs(problem, scale, progress)
        trained = train_by_batch(problem, scale, progress)
        gentle = try_factors_and_caps(problem, scale, progress)
        accumulated = try_accumulation(problem, scale, progress)

    thresholds = {
        name: threshold(ETA_MINUS, ETA_PLUS, name) for name in ("rprop-", "irprop-")
    }
    report = [
        "# Batch size",
        f"{problem.description}; {scale.epochs} epochs at every batch size, means of"
        f" {scale.seeds} starts.",
        "## Signs at fixed parameters, predicted / measured, in percent",
        f"Of {scale.draws} batches. Predicted thresholds of the probability of the"
        f" right sign, with factors {ETA_MINUS} and {ETA_PLUS}:"
        f" {thresholds['rprop-']:.3f} for rprop-, {thresholds['irprop-']:.3f} for the"
        " other three. Batch gradients of exactly 0 are not counted among the signs.",
    ]
    for epochs, by_batch in signs.items():
        report += [f"### After {epochs} epochs on all rows", signs_table(by_batch)]
    rates = ", ".join(f"{rate:g}" for rate in scale.rates)
    report += [
        "## Training at each batch size",
        f"Learning rate or initial step size, the same choice for all: {rates}; the one"
        " with the lowest validation loss at the end. Nothing else is tuned.",
        "Test error in percent (training loss):",
        training_table(trained, lambda row: f"{row.error:.1f} ({row.loss:.2g})"),
        "Chosen rate:",
        training_table(trained, lambda row: f"{row.setting:g}"),
        "Signs that agree with the batch before in the last epoch, in percent,"
        " predicted from the last parameters / measured:",
        training_table(
            trained,
            lambda row: f"{percent(row.predicted_agree or 0)} / {percent(row.agree)}",
        ),
        "Median step size at the end:",
        training_table(
            {name: found for name, found in trained.items() if name != ADAM.name},
            lambda row: f"{row.median_step_size:.2g}",
        ),
        f"## Remedies at batch size {scale.remedy_batch}",
        "Test error in percent (training loss), by factors and largest step size; the"
        " initial step size is 0.01, or the cap if that is less.",
    ]
    for name, rows in gentle.items():
        report += [f"### {name}", remedy_table(rows, scale, name)]
    report += [
        "### Accumulation by `optax.MultiSteps`",
        f"Batches of {scale.remedy_batch}, averaged over as many as the first column"
        " says; initial step size 0.01. Test error in percent (training loss):",
        markdown_table(
            ["accumulated", *gentle],
            [
                [
                    length,
                    *(
                        f"{accumulated[name, length].error:.1f}"
                        f" ({accumulated[name, length].loss:.2g})"
                        for name in gentle
                    ),
                ]
                for length in scale.accumulate
            ],
        ),
    ]
    results = {
        "thresholds": thresholds,
        "signs": {
            epochs: {
                batch: {
                    "predicted": predicted._asdict(),
                    "measured": measured._asdict(),
                }
                for batch, (predicted, measured) in by_batch.items()
            }
            for epochs, by_batch in signs.items()
        },
        "training": {
            name: {batch: row._asdict() for batch, row in rows.items()}
            for name, rows in trained.items()
        },
        "remedies": {
            name: [row._asdict() for row in rows] for name, rows in gentle.items()
        },
        "accumulation": {
            f"{name}, {length}": row._asdict()
            for (name, length), row in accumulated.items()
        },
    }
    write_results(arguments.output_dir, "batch_size", results, "\n\n".join(report))
    path = arguments.output_dir / "batch_size.png"
    picture(signs, trained, path)
    print(f"Written: {path}")


if __name__ == "__main__":
    main()
