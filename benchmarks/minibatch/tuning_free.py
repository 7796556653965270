"""Mini-batch Rprop against optimizers that need no tuning either, one setting for all.

In the contests of the study, and on problems that nobody has seen before, with Adam
tuned to each. And today's sign test against the first. Each is measured at its iterates
and at their average.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import optax
from optax import contrib
from tqdm import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import TUNING_FREE
from benchmarks.common.problems import Problem
from benchmarks.common.results import Study
from benchmarks.minibatch import methods
from benchmarks.minibatch.methods import FIRST, OPTIMIZERS, Optimizer
from benchmarks.minibatch.run import (
    RUNS,
    WORKERS,
    batch_sizes,
    load_problems,
    problem_row,
)
from benchmarks.minibatch.tidy import ADAM, OURS
from benchmarks.minibatch.train import (
    CHECKPOINTS,
    FULL,
    STEPS,
    by_run,
    choices,
    runs_and_rows,
    score,
    train,
)
from benchmarks.minibatch.unseen import BATCHES, PROBEN1, unseen

# Adam at the rates that people begin with; the cosine needs the length of the run.
RATES = {
    "Adam, 0.001": {"rate": 1e-3, "cosine": 0},
    "Adam, 0.003": {"rate": 3e-3, "cosine": 0},
    "Adam, 0.01": {"rate": 1e-2, "cosine": 0},
    "Adam, 0.01, cosine": {"rate": 1e-2, "cosine": 1},
}
EVALUATED = ("iterate", "average")
NO_LEAN = "mini-batch Rprop, no lean"
_BY_NAME = {optimizer.name: optimizer for optimizer in OPTIMIZERS}


def _prodigy_cosine(setting: Any, steps: int) -> optax.GradientTransformation:
    del setting
    return contrib.prodigy(optax.cosine_decay_schedule(1.0, steps))


def _fixed(build: Callable[[], optax.GradientTransformation]) -> methods.Build:
    return lambda setting, steps: build()


COMPETITORS = (
    Optimizer(OURS, _fixed(optax_rprop.minibatch_rprop)),
    Optimizer(NO_LEAN, _fixed(lambda: optax_rprop.minibatch_rprop(lean=0.0))),
    _BY_NAME[FIRST],
    *(
        Optimizer(name, _fixed(functools.partial(build, None)))
        for name, build, *_ in TUNING_FREE
    ),
    Optimizer("Prodigy, cosine", _prodigy_cosine),
    Optimizer(
        "schedule-free AdamW",
        _fixed(contrib.schedule_free_adamw),
        evaluated=contrib.schedule_free_eval_params,
    ),
    Optimizer("Muon, 0.02", _fixed(lambda: contrib.muon(0.02))),
)
TUNED_ADAM = _BY_NAME[ADAM]
FIXED_ADAM = TUNED_ADAM._replace(settings=list(RATES.values()))


def run_part(
    problem: Problem, batch: Any, optimizers: Sequence[Optimizer], *, quick: bool
) -> list[dict[str, Any]]:
    """Test errors: a row a run and kind of parameters, a column an optimizer."""
    _, rows = runs_and_rows(problem.data)
    size = rows if batch == FULL else batch
    steps = 2 * CHECKPOINTS if quick else STEPS[batch]
    found = []
    curves = train(problem, optimizers, size, steps, averaged=True)
    for evaluated, measured in zip(EVALUATED, curves, strict=True):
        scores = score(measured)
        chosen = {}
        for optimizer, columns, best in choices(optimizers, scores):
            settings = list(optimizer.settings)
            if settings != list(RATES.values()):
                chosen[optimizer.name] = best
            if optimizer.name == ADAM:
                for name, setting in RATES.items():
                    chosen[name] = columns[settings.index(setting)]
        where = {"problem": problem.name, "batch": batch, "evaluated": evaluated}
        found += [where | row for row in by_run(scores.test_error, chosen)]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    folder, quick = options.output_dir, options.quick
    runs = 2 if quick else RUNS
    known = load_problems(options, runs)
    if quick:
        fresh = [dataclasses.replace(known[0], name="unseen")]
    else:
        fresh = unseen(find_proben1(options.data_dir, PROBEN1), runs)
    competitors = COMPETITORS[:4] if quick else COMPETITORS
    studies = {
        name: Study(folder, name, ["problem", "batch"], script="tuning_free")
        for name in ("tuning_free", "unseen")
    }
    listed = Study(folder, "unseen_problems", ["problem"], script="tuning_free")
    new = [problem for problem in fresh if not listed.has(problem.name)]
    listed.add(map(problem_row, new))

    parts = [
        (studies[study], problem, batch, (*competitors, adam))
        for study, problems, adam in (
            ("unseen", fresh, TUNED_ADAM),
            ("tuning_free", known, FIXED_ADAM),
        )
        for batch in ((32,) if quick else STEPS)
        for problem in problems
        if batch in BATCHES.get(problem.name, batch_sizes(problem))
        and not studies[study].has(problem.name, batch)
    ]

    def run(part: Any) -> None:
        study, *what = part
        study.add(run_part(*what, quick=quick))

    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for _ in tqdm(pool.map(run, parts), total=len(parts), unit="part"):
            pass


if __name__ == "__main__":
    main()
