"""Timing of several functions side by side in one process."""

import gc
import importlib
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import tqdm

Runner = Callable[[int], object]
"""Runs a number of steps and returns when the last one is done."""


def interleave(
    runners: Mapping[str, Runner],
    *,
    rounds: int,
    seconds: float,
    title: str,
    most_steps: int = 1000,
) -> dict[str, list[float]]:
    """Measure the seconds per step of every runner, once a round.

    In each round all of them run, in a new random order, so that a machine that
    slows down for a while does so for all alike, and ratios within a round hold.

    Args:
      runners: What to measure.
      rounds: The number of measurements of each.
      seconds: How long one measurement is to take, about.
      title: What the progress bar says.
      most_steps: The most steps that one measurement takes.

    Returns:
      For each runner, the seconds per step in each round.
    """
    steps = {}
    shuffle = random.Random(0).shuffle
    names = list(runners)
    gc.collect()
    with tqdm.tqdm(total=len(names) * (rounds + 1), desc=title) as progress:
        for name, run in runners.items():
            run(2)
            step = min(_seconds(run, 1), _seconds(run, 1))
            steps[name] = max(1, min(most_steps, math.ceil(seconds / step)))
            progress.update()
        samples: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            shuffle(names)
            for name in names:
                runners[name](1)  # Refills the caches that another one used.
                samples[name].append(_seconds(runners[name], steps[name]))
                progress.update()
    return samples


def _seconds(run: Runner, steps: int) -> float:
    start = time.perf_counter()
    run(steps)
    return (time.perf_counter() - start) / steps


def ratio(samples: list[float], reference: list[float]) -> float:
    """The median of the ratios of two runners within each round."""
    return statistics.median(a / b for a, b in zip(samples, reference, strict=True))


def spread(samples: list[float], unit: float) -> str:
    """The median and, in brackets, the quartiles, in multiples of `unit` seconds."""
    quartiles = statistics.quantiles(samples, n=4, method="inclusive")
    low, middle, high = (f"{quartile / unit:.3g}" for quartile in quartiles)
    return f"{middle} ({low} to {high})"


def optional_torch() -> Any:
    """PyTorch, or None after a word to the reader."""
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        print(f"Without PyTorch, which cannot be imported: {error}.")
        return None
