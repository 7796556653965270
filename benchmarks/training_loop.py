"""Time of whole training loops: a small network, full batch, next to their peers.

A network with 8 inputs, 32 tanh units and 2 outputs learns 384 examples. All
peers start from the same weights and are timed interleaved. Writes
training_loop.json, training_loop.md and training_loop.png.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
import timing

import optax_rprop

mpl.use("Agg")
import matplotlib.pyplot as plt

INPUTS, HIDDEN, OUTPUTS, EXAMPLES = 8, 32, 2, 384
SGD, DEFAULT = "optax.sgd", "irprop-, split"
SCAN, PER_CALL = "lax.scan", "jit"

Weights = dict[str, jax.Array]


class Peer(NamedTuple):
    """One way to train.

    Attributes:
      run: Makes steps of `epochs` epochs each.
      loss: Gives the loss at the current weights.
      epochs: The epochs in one step.
      networks: The networks that are trained at once.
      rival: The peer that runs the same loop with `optax.sgd`.
    """

    run: timing.Runner
    loss: Callable[[], float]
    epochs: int = 1
    networks: int = 1
    rival: str | None = None


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets: a smooth function of noise."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((EXAMPLES, INPUTS), np.float32)
    return inputs, np.sin(inputs @ rng.standard_normal((INPUTS, OUTPUTS), np.float32))


def initial_weights(seed: int) -> dict[str, np.ndarray]:
    """Weights that give the sums over a unit's inputs a variance of 1."""
    rng = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> np.ndarray:
        return rng.standard_normal((rows, columns), np.float32) / np.float32(rows**0.5)

    return {
        "hidden": layer(INPUTS, HIDDEN),
        "hidden_bias": np.zeros(HIDDEN, np.float32),
        "output": layer(HIDDEN, OUTPUTS),
        "output_bias": np.zeros(OUTPUTS, np.float32),
    }


def optimizers() -> dict[str, optax.GradientTransformation]:
    """What runs in the same loop, by name."""
    return {
        SGD: optax.sgd(0.05),
        "optax.adam": optax.adam(0.01),
        "optax.rprop": optax.rprop(0.01),
        DEFAULT: optax_rprop.rprop(),
        "irprop-, packed": optax_rprop.rprop(state_layout="packed"),
        "irprop+, split": optax_rprop.rprop(variant="irprop+"),
        "irprop+, packed": optax_rprop.rprop(variant="irprop+", state_layout="packed"),
    }


def loss_fn(weights: Weights, inputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean squared error."""
    hidden = jnp.tanh(inputs @ weights["hidden"] + weights["hidden_bias"])
    outputs = hidden @ weights["output"] + weights["output_bias"]
    return jnp.mean((outputs - targets) ** 2)


def jax_peer(
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    networks: int | None = None,
    rival: str | None = None,
) -> Peer:
    """Train in JAX.

    Args:
      optimizer: The optimizer.
      epochs: How many epochs `lax.scan` makes of one call; 1 stands for a call of
        the jitted epoch itself.
      networks: How many networks `jax.vmap` trains at once; None for one without.
      rival: See `Peer`.

    Returns:
      The peer.
    """
    inputs, targets = map(jnp.asarray, examples())
    update = optax.with_extra_args_support(optimizer).update

    def epoch(carry: Any, _: None = None) -> tuple[Any, None]:
        weights, state = carry
        value, grads = jax.value_and_grad(loss_fn)(weights, inputs, targets)
        updates, state = update(grads, state, weights, value=value)
        return (optax.apply_updates(weights, updates), state), None

    def train(carry: Any) -> Any:
        if epochs == 1:
            return epoch(carry)[0]
        return jax.lax.scan(epoch, carry, length=epochs)[0]

    init, loss = optimizer.init, loss_fn
    weights = jax.tree.map(jnp.asarray, initial_weights(0))
    if networks is not None:
        init, train = jax.vmap(init), jax.vmap(train)
        loss = jax.vmap(loss, in_axes=(0, None, None))
        drawn = [initial_weights(seed) for seed in range(networks)]
        weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
    jitted = jax.jit(train, donate_argnums=0)
    carry = [(weights, init(weights))]

    def run(steps: int) -> None:
        for _ in range(steps):
            carry[0] = jitted(carry[0])
        jax.block_until_ready(carry)

    def loss_now() -> float:
        weights, _ = carry[0]
        return float(jnp.mean(loss(weights, inputs, targets)))

    return Peer(run, loss_now, epochs, networks or 1, rival)


def torch_peer(torch: Any, *, compiled: bool) -> Peer:
    """`torch.optim.Rprop`, on the kind of device that JAX uses."""
    device = torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")
    inputs, targets = (torch.tensor(array, device=device) for array in examples())
    weights = {
        name: torch.nn.Parameter(torch.tensor(leaf, device=device))
        for name, leaf in initial_weights(0).items()
    }
    optimizer = torch.optim.Rprop(weights.values())

    def loss_fn() -> Any:
        hidden = torch.tanh(inputs @ weights["hidden"] + weights["hidden_bias"])
        outputs = hidden @ weights["output"] + weights["output_bias"]
        return torch.mean((outputs - targets) ** 2)

    loss, step = loss_fn, optimizer.step
    if compiled:
        loss, step = torch.compile(loss), torch.compile(step)

    def run(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return Peer(run, lambda: loss_fn().item())


def peers(options: argparse.Namespace, torch: Any) -> dict[str, Peer]:
    """All ways to train, by name."""
    epochs = 10 if options.quick else 500
    ensembles = (2,) if options.quick else (1, 16, 64, 256)
    compared = optimizers()
    if options.quick:
        compared = {name: compared[name] for name in (SGD, DEFAULT)}
    found = {}
    for loop, epochs_of_call in ((SCAN, epochs), (PER_CALL, 1)):
        for name, optimizer in compared.items():
            found[f"{loop}, {name}"] = jax_peer(
                optimizer, epochs=epochs_of_call, rival=f"{loop}, {SGD}"
            )
    for networks in ensembles:
        found[f"{SCAN} and vmap of {networks} networks, {DEFAULT}"] = jax_peer(
            compared[DEFAULT], epochs=max(2, epochs // networks), networks=networks
        )
    if torch is not None:
        found["torch.optim.Rprop, eager"] = torch_peer(torch, compiled=False)
        if not options.quick:
            found["torch.optim.Rprop, compiled"] = torch_peer(torch, compiled=True)
    return found


def measure(options: argparse.Namespace, torch: Any) -> dict[str, Any]:
    """Train and time all of them."""
    contenders = peers(options, torch)
    epochs = 20 if options.quick else 500
    losses = {}
    for name, peer in contenders.items():
        peer.run(epochs // peer.epochs)
        losses[name] = peer.loss()
    steps = timing.interleave(
        {name: peer.run for name, peer in contenders.items()},
        rounds=options.rounds,
        seconds=options.seconds,
        title="training",
        most_steps=10_000,
    )
    # Per epoch and network, whatever one step is.
    samples = {
        name: [
            seconds / contenders[name].epochs / contenders[name].networks
            for seconds in steps[name]
        ]
        for name in contenders
    }
    default = samples[f"{SCAN}, {DEFAULT}"]
    return {
        "epochs_before_loss": epochs,
        "torch_threads": torch and torch.get_num_threads(),
        "peers": {
            name: {
                "seconds": samples[name],
                "times_sgd": peer.rival
                and timing.ratio(samples[name], samples[peer.rival]),
                "times_default": timing.ratio(samples[name], default),
                "loss": losses[name],
            }
            for name, peer in contenders.items()
        },
    }


def table(results: dict[str, Any]) -> str:
    """What was measured, one line a way to train."""
    rows = [
        [
            name,
            timing.spread(peer["seconds"], unit=1e-6),
            format(peer["times_sgd"], ".2f") if peer["times_sgd"] else "",
            format(peer["times_default"], ".2f"),
            format(peer["loss"], ".3g"),
        ]
        for name, peer in results["peers"].items()
    ]
    header = [
        "",
        "us per network and epoch (quartiles)",
        "x sgd in this loop",
        f"x {SCAN}, {DEFAULT}",
        f"loss after {results['epochs_before_loss']} epochs",
    ]
    return common.markdown_table(header, rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """Time of an epoch, with quartiles, shortest at the top."""
    quartiles = {
        name: np.quantile(peer["seconds"], [0.25, 0.5, 0.75])
        for name, peer in results["peers"].items()
    }
    names = sorted(quartiles, key=lambda name: quartiles[name][1], reverse=True)
    low, middle, high = np.transpose([quartiles[name] for name in names]) * 1e6
    figure, axes = plt.subplots(
        figsize=(8, 1 + 0.25 * len(names)), layout="constrained"
    )
    bars = axes.barh(
        names, middle, xerr=[middle - low, high - middle], color="tab:blue"
    )
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.margins(x=0.1)
    axes.set(xlabel="microseconds per network and epoch")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure and write what was seen."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=int, help="by default 15, quick 3")
    parser.add_argument(
        "--seconds", type=float, help="of one measurement; by default 0.1, quick 0.001"
    )
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 15)
    options.seconds = options.seconds or (0.001 if options.quick else 0.1)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2.")
    results = measure(options, timing.optional_torch())
    common.write_results(
        options.output_dir,
        "training_loop",
        results,
        f"## Whole training loops\n\n{table(results)}",
    )
    plot(results, options.output_dir / "training_loop.png")


if __name__ == "__main__":
    main()
