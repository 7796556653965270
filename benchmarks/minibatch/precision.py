"""Whether the sign test needs float32: its statistics in bfloat16, on the same runs."""

from typing import Any

import optax
from tqdm import tqdm

import optax_rprop
from benchmarks.common import cli
from benchmarks.common.results import Study
from benchmarks.minibatch.methods import Optimizer
from benchmarks.minibatch.problems import DEVELOPED_ON
from benchmarks.minibatch.run import RUNS, batch_sizes, load_problems
from benchmarks.minibatch.train import CHECKPOINTS, STEPS, contest

DTYPES = {"float32": None, "bfloat16": "bfloat16"}
SIZES = (32, 128)


def _optimizer(name: str) -> Optimizer:
    def build(setting: Any, steps: int) -> optax.GradientTransformation:
        del setting, steps
        return optax_rprop.minibatch_rprop(statistics_dtype=DTYPES[name])

    return Optimizer(name, build, [{}])


def main(arguments: list[str] | None = None) -> None:
    """Run all parts that are not there yet."""
    parser = cli.parser(__doc__, "minibatch")
    cli.add_data_dir(parser)
    options = parser.parse_args(arguments)
    study = Study(options.output_dir, "precision", ["problem", "batch"])
    problems = load_problems(options, 2 if options.quick else RUNS)
    parts = [
        (problem, size)
        for problem in problems
        for size in SIZES
        if options.quick or problem.name in DEVELOPED_ON
        if size in batch_sizes(problem) and not study.has(problem.name, size)
    ]
    optimizers = [_optimizer(name) for name in DTYPES]
    for problem, size in tqdm(parts, unit="part"):
        steps = 2 * CHECKPOINTS if options.quick else STEPS[size]
        rows, _ = contest(problem, optimizers, size, steps)
        where = {"problem": problem.name, "batch": size}
        study.add([where | row for row in rows if row.pop("measure") == "test_error"])


if __name__ == "__main__":
    main()
