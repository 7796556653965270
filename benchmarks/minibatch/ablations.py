"""What does each number of mini-batch Rprop do?

Changed one at a time, in batches of 32 on four problems. And with the statistics of the
sign test in half the memory, on the problems on which the settings were chosen.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import optax

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.problems import Problem
from benchmarks.minibatch.methods import Optimizer, fixed
from benchmarks.minibatch.problems import DEVELOPED_ON, small
from benchmarks.minibatch.tasks import RUNS, Part, known_problems, run_parts
from benchmarks.minibatch.train import Rows, at_best, by_run, train

ABLATED = ("digits", "clusters", "building1", "heart1")
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
    "norm_decay": [0.95, 0.98, 0.998, 1.0],
    "lean": [0.0, 0.05, 0.2, 0.4],
    "learning_rate": [1e-3, 1e-2, 1e-1],
    "max_step_size": [0.03, 0.1, 1.0],
    "eta_plus": [1.05, 1.2, 1.4],
    "eta_minus": [0.5, 0.75, 0.9],
}
PRECISIONS = [
    Optimizer(
        dtype or "float32",
        fixed(lambda d=dtype: optax_rprop.minibatch_rprop(statistics_dtype=d)),
    )
    for dtype in (None, "bfloat16")
]
"""The sign test's statistics in 8 and in 4 bytes per parameter."""


def of_variant(name: Any) -> Optimizer:
    """Mini-batch Rprop with another variant than its own, irprop-."""
    test = ("threshold", "decay", "norm_decay", "lean")
    rule = {key: value for key, value in DEFAULTS.items() if key not in test}
    sign_test = {key: DEFAULTS[key] for key in test}
    return Optimizer(
        f"variant {name}",
        fixed(
            lambda: optax.chain(
                optax_rprop.resolve_signs(**sign_test),
                # None of the arrays that are trained here is wide.
                optax_rprop.rprop(0.05, **rule, variant=name, skip_zero_grads=True),
            )
        ),
    )


def ablations() -> list[Optimizer]:
    """The default, each change of one number, and two other variants."""
    changes = {"default": DEFAULTS} | {
        f"{name} {value:g}": {**DEFAULTS, name: value}
        for name, values in CHANGES.items()
        for value in values
    }
    found = [
        Optimizer(
            name, fixed(functools.partial(optax_rprop.minibatch_rprop, **numbers))
        )
        for name, numbers in changes.items()
    ]
    return [*found, *map(of_variant, ("rprop-", "rprop+"))]


def measure(
    problem: Problem, size: int, steps: int, *, optimizers: Sequence[Optimizer]
) -> dict[str, Rows]:
    """Test errors of optimizers without a setting: a row a run."""
    errors = {}
    for optimizer in optimizers:
        curves, _ = train(problem, optimizer, size, steps)
        (errors[optimizer.name],) = at_best(curves).test_error
    return {"": by_run(errors)}


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    quick = options.quick
    problems = [small(2)] if quick else known_problems(options, RUNS)
    few = 1 if quick else None
    ablate = functools.partial(measure, optimizers=ablations()[:few])
    compare = functools.partial(measure, optimizers=PRECISIONS[:few])
    parts = [
        Part(study, problem, size, how)
        for study, how, on, sizes in (
            ("ablations", ablate, ABLATED, (32,)),
            ("precision", compare, DEVELOPED_ON, (32,) if quick else (32, 128)),
        )
        for problem in problems
        for size in sizes
        if problem.name in on
    ]
    run_parts(parts, options.output_dir, "ablations", quick=quick)


if __name__ == "__main__":
    main()
