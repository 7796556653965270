"""Fixtures of the tests of the benchmarks."""

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
# Last, because the tests have a folder of the same name.
sys.path.append(str(ROOT))

KEYS = ("bool_in", "real_in", "bool_out", "real_out")
KEYS += ("training_examples", "validation_examples", "test_examples")


@pytest.fixture
def write_proben1():
    """A function that writes a file in Proben1's format.

    Of (inputs, targets) for training, validation and test rows.
    """

    def write(path, parts):
        inputs, outputs = (array.shape[1] for array in parts[0])
        counts = [0, inputs, outputs, 0, *(len(part[0]) for part in parts)]
        lines = [f"{key}={count}" for key, count in zip(KEYS, counts, strict=True)]
        for x, t in parts:
            lines += [" ".join(map(str, row)) for row in np.hstack([x, t]).tolist()]
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


@pytest.fixture
def noisy_classes():
    """A function that makes classes that partly depend on the inputs."""

    def make(rows, inputs, outputs, seed):
        rng = np.random.default_rng(seed)

        def part(count):
            x = rng.uniform(size=(count, inputs))
            noise = 0.4 * rng.normal(size=(count, outputs))
            scores = x @ np.eye(inputs, outputs) + noise
            return x, np.eye(outputs)[scores.argmax(axis=1)]

        return [part(count) for count in rows]

    return make
