"""How Rprop works: its path in a badly scaled valley, and two step sizes over time.

Gradient descent has one rate for both coordinates, limited by the steeper one. Rprop
gives each coordinate its own step size and uses only the signs of the gradient.
"""

import sys
from typing import Any

import example_io
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import optax_rprop

STEEPNESS = 100.0
START = jnp.array([-4.0, 0.35])


def loss(point: jax.Array) -> jax.Array:
    """A quadratic whose second coordinate is 100 times as steep."""
    return 0.5 * (point[0] ** 2 + STEEPNESS * point[1] ** 2)


def descend(
    optimizer: optax.GradientTransformationExtraArgs, steps: int
) -> tuple[np.ndarray, list[optax.OptState]]:
    """The points, shape (steps + 1, 2), and the optimizer's states."""
    point, state = START, optimizer.init(START)
    points: list[Any] = [point]
    states = [state]
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(jax.grad(loss)(point), state, point)
        point = optax.apply_updates(point, updates)
        points.append(point)
        states.append(state)
    return np.array(points), states


def main(arguments: list[str] | None = None) -> int:
    """Draw both panels; returns the exit status."""
    options = example_io.parser(__doc__)
    options.add_argument(
        "--steps", type=example_io.positive, default=40, help="of each"
    )
    args = example_io.parse(options, arguments)
    # A rate above 2 / 100 diverges.
    plain = optax.with_extra_args_support(optax.sgd(1.8 / STEEPNESS))
    slow, _ = descend(plain, args.steps)
    fast, states = descend(optax_rprop.rprop(0.1), args.steps)
    step_sizes = [optax_rprop.get_rprop_state(state).step_sizes for state in states]

    figure, (valley, sizes) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    x, y = np.meshgrid(np.linspace(-4.6, 1.6, 200), np.linspace(-0.5, 0.5, 200))
    heights = 0.5 * (x**2 + STEEPNESS * y**2)
    valley.contour(x, y, heights, levels=np.geomspace(0.05, 20, 9), colors="0.85")
    sgd, rprop = example_io.COLOURS[1], example_io.COLOURS[0]
    valley.plot(*slow.T, ".-", color=sgd, label="gradient descent", linewidth=1)
    valley.plot(*fast.T, "o-", color=rprop, label="Rprop", markersize=4)
    valley.plot(0, 0, "k+", markersize=12)
    valley.set(xlabel="first coordinate", ylabel="second, 100 times as steep")
    valley.set_title(f"{args.steps} steps of each")
    valley.legend(fontsize="small", loc="lower left")
    for name, column, style in (("first", 0, "-"), ("second", 1, "--")):
        column = np.array(step_sizes)[:, column]
        sizes.step(range(len(column)), column, style, color=rprop, label=name)
    sizes.set(yscale="log", xlabel="step", title="Rprop's step sizes")
    sizes.legend(title="coordinate", fontsize="small")
    example_io.save(figure, args.output_dir / "valley.png")

    ends = {"gradient descent": loss(slow[-1]), "Rprop": loss(fast[-1])}
    example_io.print_table(
        ["optimizer", "loss at the end"],
        [[name, f"{end:.2g}"] for name, end in ends.items()],
    )
    problems = []
    if not ends["Rprop"] < ends["gradient descent"]:
        problems.append("Rprop should have the smaller loss; use more steps.")
    return example_io.exit_status(problems)


if __name__ == "__main__":
    sys.exit(main())
