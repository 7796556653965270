"""Draws the four variants on one parabola, computed by the package.

``python docs/pictures.py FOLDER`` writes ``rprop-.svg`` and so on. Colours are of
medium brightness and the background is transparent, so that they are legible on the
light and on the dark theme.
"""

import sys
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_rprop

START, INITIAL_STEP_SIZE, UPDATES = -0.6, 0.1, 12
SIGNS_AT = -0.85
SIGN = {"fontsize": 13, "ha": "center", "va": "center"}
SAME, CHANGED, NEUTRAL = "#2f86c9", "#d9711a", "#7a8088"
STYLE = {
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": NEUTRAL,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "svg.hashsalt": "optax_rprop",
    "text.color": NEUTRAL,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
}


class Path1D(typing.NamedTuple):
    """The course of a run; all fields but `points` have one entry per update."""

    points: np.ndarray
    signs: np.ndarray
    remembered: np.ndarray
    step_sizes: np.ndarray


def descend(variant: optax_rprop.Variant) -> Path1D:
    """Minimize w**2."""
    optimizer = optax_rprop.rprop(INITIAL_STEP_SIZE, variant=variant)

    def update(carry, _):
        w, state = carry
        loss, grad = jax.value_and_grad(jnp.square)(w)
        before = optax_rprop.get_rprop_state(state).prev_grad_signs
        updates, state = optimizer.update(grad, state, w, value=loss)
        step_size = optax_rprop.get_rprop_state(state).step_sizes
        carry = optax.apply_updates(w, updates), state
        return carry, (carry[0], jnp.sign(grad), before, step_size)

    start = jnp.array(START)
    carry = start, optimizer.init(start)
    _, (points, signs, before, step_sizes) = jax.lax.scan(update, carry, length=UPDATES)
    # A sign of 2 or -2 counts as 0: its update was undone.
    remembered = np.where(np.abs(before) == 2, 0, before)
    return Path1D(np.append(START, points), signs, remembered, step_sizes)


def picture(variant: optax_rprop.Variant, file: Path) -> None:
    """The points at the top, the signs below them, the step sizes at the bottom."""
    path = descend(variant)
    agreement = path.signs * path.remembered
    colours = [{1: SAME, -1: CHANGED, 0: NEUTRAL}[int(a)] for a in agreement]
    figure, (above, below) = plt.subplots(
        2,
        figsize=(4.4, 3.8),
        height_ratios=(3, 2),
        sharex=True,
        layout="constrained",
    )
    above.axhline(0, color=NEUTRAL, linewidth=0.8, linestyle=":")
    for i, colour in enumerate(colours):
        ends = path.points[i : i + 2]
        undone = agreement[i] < 0 and np.sign(ends[1]) != np.sign(ends[0])
        undone = undone and variant != "rprop-"
        above.plot((i, i + 1), ends, "--" if undone else "-", color=colour, linewidth=2)
        above.plot(i, ends[0], "o", color=colour, markersize=5)
        sign = "+" if path.signs[i] > 0 else "\N{MINUS SIGN}"
        above.text(i, SIGNS_AT, sign, color=colour, **SIGN)
    above.plot(UPDATES, path.points[-1], "o", color=NEUTRAL, markersize=5)
    above.set(ylabel="parameter", ylim=(-1, 0.25))
    above.set_yticks((SIGNS_AT, -0.5, 0), ("sign", "\N{MINUS SIGN}0.5", "0"))
    above.set_title(variant, fontweight="bold", fontfamily="monospace", loc="left")
    below.bar(range(UPDATES), path.step_sizes, color=colours, width=0.7)
    below.set(ylabel="step size", xlabel="update", yticks=(0, 0.1, 0.2))
    below.set(ylim=(0, 0.26), xticks=range(0, UPDATES + 1, 2))
    figure.savefig(file, transparent=True, metadata={"Date": None})
    plt.close(figure)


def draw(folder: Path) -> None:
    """All four."""
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for variant in typing.get_args(optax_rprop.Variant):
            picture(variant, folder / f"{variant}.svg")


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
