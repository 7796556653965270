"""A real case: the noise is due to the tolerance of a differential equation solver.

Optimizers see loss and gradient as computed by an adaptive solver at some tolerance;
they are judged by the loss at a tolerance of 1e-10.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from benchmarks.common import cli
from benchmarks.common.results import Study
from benchmarks.cutest import descend
from benchmarks.cutest.problems import Problem
from benchmarks.cutest.run import counted, measure
from benchmarks.cutest.views import View

SOLVER_TOLERANCES = (1e-2, 1e-4, 1e-6)
EXACT = 1e-10
RATES = np.array([1.1, 0.4, 0.1, 0.4])
STARTS = 5


def prey_and_predators(rates: Any, tolerance: float) -> Any:
    """Lotka and Volterra's equations, solved adaptively to a relative tolerance."""

    def velocity(_: Any, state: Any, rates: Any) -> jax.Array:
        prey, predators = state
        met = prey * predators
        born, died = rates[0] * prey, rates[3] * predators
        return jnp.stack([born - rates[1] * met, rates[2] * met - died])

    return diffrax.diffeqsolve(
        diffrax.ODETerm(velocity),
        diffrax.Tsit5(),
        t0=0.0,
        t1=12.0,
        dt0=None,
        y0=jnp.array([10.0, 5.0]),
        args=rates,
        saveat=diffrax.SaveAt(ts=jnp.linspace(0.2, 12, 60)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=4096,
        throw=False,
    ).ys


def problem(tolerance: float) -> Problem:
    """Fit four rates to sixty noisy counts of both species."""
    counts = np.asarray(prey_and_predators(jnp.asarray(RATES), EXACT))
    counts = counts * (1 + 0.05 * np.random.default_rng(0).normal(size=counts.shape))

    def loss(rates: jax.Array, tolerance: float) -> jax.Array:
        return jnp.mean((prey_and_predators(rates, tolerance) - counts) ** 2)

    return Problem(
        f"{tolerance:g}",
        RATES,
        lambda rates: loss(rates, EXACT),
        lambda rates: loss(rates, tolerance),
    )


def main(arguments: list[str] | None = None) -> None:
    """Run every missing tolerance."""
    parser = cli.parser(__doc__, "cutest")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    tolerances = SOLVER_TOLERANCES[:1] if options.quick else SOLVER_TOLERANCES
    starts = range(1 if options.quick else STARTS)
    wanted = [View("start", seed, displaced=0.1) for seed in starts]
    names = ["irprop-", "Adam"] if options.quick else descend.OPTIMIZERS
    study = Study(options.output_dir, "solver", ["solver"], script="solver")
    for tolerance in tqdm.tqdm(tolerances, unit="tolerance"):
        if not study.has(tolerance):
            traces = measure(problem(tolerance), names, wanted)
            study.add({"solver": tolerance, **row} for row in counted(traces))


if __name__ == "__main__":
    main()
