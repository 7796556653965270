"""Several optimizers on one problem, and the cost of solving it with each."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common.optimizers import Optimizer
from benchmarks.common.problems import Problem
from benchmarks.full_batch.descend import Run, Trace, descend


class Comparison:
    """A problem, optimizers on it, and all of their runs so far.

    A start is solved once the loss has fallen the fraction 1 - tolerance of the way to
    the lowest value that any run found from there (Moré and Wild, 2009,
    https://doi.org/10.1137/080724083). Runs end after `budget` gradients or at the
    target.
    """

    def __init__(
        self,
        problem: Problem,
        optimizers: Iterable[Optimizer],
        budget: int,
        *,
        target: float = -np.inf,
    ) -> None:
        self.problem, self.budget = problem, budget
        self._target = target
        self.runs: dict[tuple[str, float, int], Run] = {}
        """By optimizer, setting and run number."""
        self._descents: dict[str, Callable[..., Trace]] = {}
        self._lowest: dict[int, float] = {}
        problem.start(0)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.add, optimizers))

    def add(self, optimizer: Optimizer) -> None:
        """Compile one more optimizer."""
        descent = descend(self.problem, optimizer, self.budget)
        self._descents[optimizer.name] = jax.jit(descent)
        self._descend(optimizer.name, 0.01, run=0, target=np.inf)

    def _descend(self, name: str, setting: float, run: int, target: float) -> Run:
        dtype, start = self.problem.dtype, self.problem.start(run)
        limits = jnp.asarray(setting, dtype), start, jnp.asarray(target, dtype)
        arguments = jax.block_until_ready((*limits, self.problem.data))
        begun = time.perf_counter()
        trace = jax.block_until_ready(self._descents[name](*arguments))
        seconds = time.perf_counter() - begun
        made = np.asarray(trace.evaluations) > 0
        return Run(jax.tree.map(lambda leaf: np.asarray(leaf)[made], trace), seconds)

    def run(self, name: str, setting: float, run: int) -> Run:
        """The run of an optimizer; run only once."""
        if (name, setting, run) not in self.runs:
            made = self._descend(name, setting, run, self._target)
            self.keep(name, setting, run, made)
        return self.runs[name, setting, run]

    def keep(self, name: str, setting: float, run: int, made: Run) -> None:
        """Add a run from elsewhere."""
        self.runs[name, setting, run] = made
        lowest = float(np.nanmin(made.trace.losses))
        self._lowest[run] = min(lowest, self._lowest.get(run, np.inf))

    def cost(
        self, name: str, setting: float, run: int, tolerance: float
    ) -> tuple[float, float]:
        """Evaluations and seconds until solved, by all runs so far; NaN if never."""
        made, lowest = self.run(name, setting, run), self._lowest[run]
        start = float(made.trace.losses[0])
        return made.until(lowest + tolerance * (start - lowest))

    def scores(
        self, name: str, settings: Sequence[float], run: int, tolerance: float
    ) -> np.ndarray:
        """The fewest evaluations of any run, divided by those of each setting."""
        alike = [key for key in self.runs if key[-1] == run]
        fewest = np.nanmin([self.cost(*key, tolerance)[0] for key in alike])
        costs = [self.cost(name, setting, run, tolerance)[0] for setting in settings]
        return np.nan_to_num(fewest / np.array(costs))
