"""Timing of several functions side by side in one process."""

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import tqdm

Runner = Callable[[int], object]
"""Runs a number of steps and returns when the last one has finished."""


def repeated(
    step: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready
) -> Runner:
    """Steps one after the other; waits for the result of the last."""

    def run(steps: int) -> None:
        last = None
        for _ in range(steps):
            last = step()
        wait(last)

    return run


def interleave(
    runners: Mapping[Any, Runner],
    title: str,
    *,
    quick: bool,
    rounds: int = 12,
    seconds: float = 0.05,
    most_steps: int = 1000,
) -> Iterator[dict[str, Any]]:
    """Measure the time of every runner, once per round.

    In each round all of them run, in a new random order, so that a temporary slowdown
    of the machine affects all alike and ratios within a round are reliable. A
    measurement takes some seconds, but at most `most_steps`; if that is 1, nothing runs
    between the measurements to refill the caches.

    Yields:
      Rows with the optimizer, the round (``run``) and the seconds per step.
    """
    if quick:
        rounds, seconds = 2, 0.001
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
                    runners[name](1)  # Refills the caches that another runner used.
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
