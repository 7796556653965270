"""Timing of several functions side by side in one process."""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tqdm

Runner = Callable[[int], object]
"""Runs a number of steps and returns when the last one is done."""


def interleave(
    runners: Mapping[Any, Runner],
    *,
    rounds: int,
    seconds: float,
    title: str,
    most_steps: int = 1000,
) -> Iterator[dict[str, Any]]:
    """Measure the time of every runner, once a round.

    In each round all of them run, in a new random order, so that a machine that
    slows down for a while does so for all alike, and ratios within a round hold.

    Args:
      runners: What to measure, by optimizer.
      rounds: The number of measurements of each.
      seconds: How long one measurement is to take, about.
      title: What the progress bar says.
      most_steps: The most steps that one measurement takes. Where it is 1, nothing
        runs between the measurements to refill the caches.

    Yields:
      Rows with the optimizer, the round (``run``) and the seconds per step.
    """
    shuffle = random.Random(0).shuffle
    names = list(runners)
    gc.collect()
    with tqdm.tqdm(total=len(names) * (rounds + 1), desc=title) as progress:
        steps = {}
        for name, run in runners.items():
            run(1)
            steps[name] = _steps(run, seconds) if most_steps > 1 else 1
            steps[name] = min(most_steps, steps[name])
            progress.update()
        for number in range(rounds):
            shuffle(names)
            for name in names:
                if most_steps > 1:
                    runners[name](1)  # Refills the caches that another one used.
                time_per_step = _seconds(runners[name], steps[name])
                yield {"optimizer": name, "run": number, "seconds": time_per_step}
                progress.update()


def _steps(run: Runner, seconds: float) -> int:
    run(1)
    return max(1, math.ceil(seconds / min(_seconds(run, 1), _seconds(run, 1))))


def _seconds(run: Runner, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps
