"""Mini-batch Rprop against optimizers that need no tuning either, one setting for all.

In the contests of the study, and on problems that nobody has seen before, with Adam
tuned to each. Each is measured at its iterates and at their average.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import optax
from optax import contrib

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.data import find_proben1
from benchmarks.common.optimizers import TUNING_FREE
from benchmarks.common.problems import Problem
from benchmarks.minibatch.methods import ADAM, OPTIMIZERS, OURS, Optimizer, fixed
from benchmarks.minibatch.run import (
    RUNS,
    Part,
    batch_sizes,
    list_problems,
    load_problems,
    run_parts,
)
from benchmarks.minibatch.train import STEPS, Rows, at_best, by_run, choices, train
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


def _prodigy_cosine(setting: Any, steps: int) -> optax.GradientTransformation:
    del setting
    return contrib.prodigy(optax.cosine_decay_schedule(1.0, steps))


COMPETITORS = (
    Optimizer(OURS, fixed(optax_rprop.minibatch_rprop)),
    Optimizer(NO_LEAN, fixed(lambda: optax_rprop.minibatch_rprop(lean=0.0))),
    *(
        Optimizer(name, fixed(functools.partial(build, None)))
        for name, build, *_ in TUNING_FREE
    ),
    Optimizer("Prodigy, cosine", _prodigy_cosine),
    Optimizer(
        "schedule-free AdamW",
        fixed(contrib.schedule_free_adamw),
        evaluated=contrib.schedule_free_eval_params,
    ),
    Optimizer("Muon, 0.02", fixed(lambda: contrib.muon(0.02))),
)
(TUNED_ADAM,) = (optimizer for optimizer in OPTIMIZERS if optimizer.name == ADAM)
FIXED_ADAM = TUNED_ADAM._replace(settings=list(RATES.values()))


def compare(
    problem: Problem, size: int, steps: int, *, optimizers: Sequence[Optimizer]
) -> dict[str, Rows]:
    """Test errors: a row a run and kind of parameters, a column an optimizer."""
    found = []
    curves = train(problem, optimizers, size, steps, averaged=True)
    for evaluated, measured in zip(EVALUATED, curves, strict=True):
        scores = at_best(measured)
        chosen = {}
        for optimizer, columns, best in choices(optimizers, scores):
            settings = list(optimizer.settings)
            if settings != list(RATES.values()):
                chosen[optimizer.name] = best
            if optimizer.name == ADAM:
                for name, setting in RATES.items():
                    chosen[name] = columns[settings.index(setting)]
        rows = by_run(scores.test_error, chosen)
        found += [{"evaluated": evaluated} | row for row in rows]
    return {"": found}


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    folder, quick = options.output_dir, options.quick
    runs = 2 if quick else RUNS
    known = load_problems(options, runs)
    if quick:
        new = [dataclasses.replace(known[0], name="unseen")]
    else:
        new = unseen(find_proben1(options.data_dir, PROBEN1), runs)
    list_problems(new, folder, "unseen_problems", "tuning_free")
    competitors = COMPETITORS[:3] if quick else COMPETITORS
    parts = [
        Part(study, problem, batch, measure)
        for study, problems, adam in (
            ("unseen", new, TUNED_ADAM),
            ("tuning_free", known, FIXED_ADAM),
        )
        for measure in [functools.partial(compare, optimizers=(*competitors, adam))]
        for batch in ((32,) if quick else STEPS)
        for problem in problems
        if batch in BATCHES.get(problem.name, batch_sizes(problem))
    ]
    run_parts(parts, folder, "tuning_free", quick=quick)


if __name__ == "__main__":
    main()
