"""Time of whole training loops: a small network, full batch, next to its peers.

A network with 8 inputs, 32 tanh units and 2 outputs learns 384 examples. All ways to
train start from the same weights and are timed interleaved.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import cli, pytorch
from benchmarks.common.data import Split
from benchmarks.common.optimizers import TORCH, by_layout
from benchmarks.common.problems import Problem, network
from benchmarks.common.results import Study
from benchmarks.common.timing import Runner, interleave, repeated

INPUTS, HIDDEN, OUTPUTS, EXAMPLES = 8, 32, 2, 384
SGD, DEFAULT = "optax.sgd", "irprop-, split"
SCAN, PER_CALL = "lax.scan", "jit"
EPOCHS = 500


class Loop(NamedTuple):
    """One way to train."""

    run: Runner
    loss: Callable[[], float]  # At the current weights.
    epochs: int = 1  # In one step.
    networks: int = 1  # That are trained at once.


def smooth_function() -> Problem:
    """A network that learns a smooth function of noise."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((EXAMPLES, INPUTS), np.float32)
    mixed = inputs @ rng.standard_normal((INPUTS, OUTPUTS), np.float32)
    data = Split({"inputs": inputs, "targets": np.sin(mixed)})
    return network("smooth function", f"{EXAMPLES} examples", data, (HIDDEN,))


def optimizers() -> dict[str, optax.GradientTransformation]:
    """What runs in the same loop, by name."""
    return {
        SGD: optax.sgd(0.05),
        "optax.adam": optax.adam(0.01),
        "optax.rprop": optax.rprop(0.01),
        **by_layout("irprop-"),
        **by_layout("irprop+"),
    }


def jax_loop(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 1,
    networks: int | None = None,
) -> Loop:
    """Train in JAX.

    A call makes several epochs in `lax.scan`, or is that of the jitted epoch itself;
    `jax.vmap` trains several networks at once.
    """
    update = optax.with_extra_args_support(optimizer).update
    train_data = problem.data.train

    def epoch(carry: Any, _: None = None) -> tuple[Any, None]:
        weights, state = carry
        value, grads = jax.value_and_grad(problem.loss)(weights, train_data)
        updates, state = update(grads, state, weights, value=value)
        return (optax.apply_updates(weights, updates), state), None

    def train(carry: Any) -> Any:
        if epochs == 1:
            return epoch(carry)[0]
        return jax.lax.scan(epoch, carry, length=epochs)[0]

    init, loss = optimizer.init, problem.loss
    weights = problem.start(0)
    if networks is not None:
        init, train = jax.vmap(init), jax.vmap(train)
        loss = jax.vmap(loss, in_axes=(0, None))
        weights = problem.starts(jnp.arange(networks))
    jitted = jax.jit(train, donate_argnums=0)
    carry = [(weights, init(weights))]

    def step() -> Any:
        carry[0] = jitted(carry[0])
        return carry

    def loss_now() -> float:
        weights, _ = carry[0]
        return float(jnp.mean(loss(weights, train_data)))

    return Loop(repeated(step), loss_now, epochs, networks or 1)


def torch_loop(torch: Any, problem: Problem, *, compiled: bool) -> Loop:
    """`torch.optim.Rprop`, on the kind of device that JAX uses."""
    torch_loss: Any = problem.torch_loss
    data = pytorch.tensors(torch, dict(problem.data.train))
    weights = pytorch.tensors(torch, problem.start(0))
    leaves = [leaf.requires_grad_() for leaf in jax.tree.leaves(weights)]
    optimizer = torch.optim.Rprop(leaves)
    loss, step = (lambda: torch_loss(weights, data)), optimizer.step
    if compiled:
        loss, step = torch.compile(loss), torch.compile(step)

    def epoch() -> None:
        optimizer.zero_grad()
        loss().backward()
        step()

    run = repeated(epoch, lambda _: pytorch.synchronize(torch))
    return Loop(run, lambda: torch_loss(weights, data).item())


def loops(problem: Problem, torch: Any, *, quick: bool) -> dict[tuple[str, str], Loop]:
    """All ways to train, by optimizer and setting."""
    epochs = 10 if quick else EPOCHS
    compared = optimizers()
    if quick:
        compared = {name: compared[name] for name in (SGD, DEFAULT)}
    found = {
        (name, setting): jax_loop(problem, optimizer, epochs=epochs_of_call)
        for setting, epochs_of_call in ((SCAN, epochs), (PER_CALL, 1))
        for name, optimizer in compared.items()
    }
    for networks in (2,) if quick else (1, 16, 64, 256):
        found[DEFAULT, f"{SCAN}, vmap of {networks}"] = jax_loop(
            problem,
            compared[DEFAULT],
            epochs=max(2, epochs // networks),
            networks=networks,
        )
    if torch is not None:
        for setting in ("eager",) if quick else ("eager", "compiled"):
            compiled = setting == "compiled"
            found[TORCH, setting] = torch_loop(torch, problem, compiled=compiled)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Train and time all loops, unless that has been done."""
    options = cli.parser(__doc__, "speed").parse_args(arguments)
    study = Study(options.output_dir, "loop", ["problem"])
    problem = smooth_function()
    if study.has(problem.name):
        return
    found = loops(problem, pytorch.optional_torch(), quick=options.quick)
    epochs = 20 if options.quick else EPOCHS
    losses, times = [], []
    for (optimizer, setting), loop in found.items():
        loop.run(epochs // loop.epochs)
        who = {"optimizer": optimizer, "setting": setting}
        losses.append(who | {"epochs": epochs, "loss": loop.loss()})
    for row in interleave(
        {key: loop.run for key, loop in found.items()},
        "training",
        quick=options.quick,
        rounds=15,
        seconds=0.1,
        most_steps=10_000,
    ):
        loop = found[row["optimizer"]]
        who = {"problem": problem.name}
        who["optimizer"], who["setting"] = row["optimizer"]
        # Per epoch and network, whatever one step is.
        seconds = row["seconds"] / loop.epochs / loop.networks
        times.append(who | {"run": row["run"], "seconds": seconds})
    study.add(losses, "losses")
    study.add(times)


if __name__ == "__main__":
    main()
