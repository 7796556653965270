"""The results of all topics in one list, for the README of the project."""

from benchmarks.common import tables
from benchmarks.cutest import report as cutest
from benchmarks.eigenbasis import report as eigenbasis
from benchmarks.full_batch import report as full_batch
from benchmarks.minibatch import report as minibatch
from benchmarks.multistart import report as multistart
from benchmarks.speed import report as speed


def show() -> None:
    """One line per question: the answer, and a link to its tables."""
    lines = [
        ("Noise and rounding", cutest.headline(), "cutest"),
        ("Many starts at once", multistart.headline(), "multistart"),
        ("Nothing tuned", full_batch.headline_baselines(), "full_batch"),
        ("Coupled parameters", eigenbasis.headline(), "eigenbasis"),
        ("Mini-batches, small networks", minibatch.headline(), "minibatch"),
        ("Mini-batches, larger models", minibatch.headline_models(), "minibatch"),
        ("One step, two CPU cores", speed.headline(), "speed"),
        ("One step, H100", speed.headline(speed.H100), "speed"),
    ]
    tables.show(
        "\n".join(
            f"- **{topic}.** {answer} [All tables](benchmarks/{folder}/README.md)."
            for topic, answer, folder in lines
        )
    )
