"""The unconstrained problems of CUTEst in a random order."""

import dataclasses
import functools
import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

LARGEST = 200
SIZES = (24, 96)


class Problem(NamedTuple):
    """A function of one vector."""

    name: str
    start: np.ndarray
    loss: Callable[[jax.Array], jax.Array]
    # The loss that optimizers see if the exact one can only be approximated.
    approximation: Callable[[jax.Array], jax.Array] | None = None


def candidates() -> dict[str, Callable[[], Problem]]:
    """By name, in alphabetical order, with systems of equations that have no twin."""
    # The import creates all problems, which takes most of a minute.
    sif2jax = importlib.import_module("sif2jax")
    found = {p.name: p for p in sif2jax.unconstrained_minimisation_problems}
    for system in sif2jax.nonlinear_equations_problems:
        stem = system.name.removesuffix("NE")
        twins = {stem, stem + "LS", system.name + "LS"} - {system.name}
        # Some problems without bounds do not say so.
        if getattr(system, "bounds", None) is None and not twins & found.keys():
            found[system.name] = system
    sizes = itertools.cycle(SIZES)
    sized = {}
    for name, problem in sorted(found.items()):
        make = functools.partial(of_vector, problem)
        if problem.num_variables() > LARGEST:
            fields = {field.name for field in dataclasses.fields(problem)}
            size = next((field for field in ("n", "N") if field in fields), None)
            if size is None:
                continue
            make = functools.partial(of_vector, problem, **{size: next(sizes)})
        sized[name] = make
    return sized


def of_vector(problem: Any, **size: int) -> Problem:
    """The loss as a function of one vector; for a system, the sum of squares."""
    if size:
        problem = dataclasses.replace(problem, **size)
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, problem.y0))
    ends = np.cumsum([leaf.size for leaf in leaves])

    def loss(vector: jax.Array) -> jax.Array:
        parts = jnp.split(vector, ends[:-1])
        pairs = zip(parts, leaves, strict=True)
        params = treedef.unflatten([part.reshape(leaf.shape) for part, leaf in pairs])
        if hasattr(problem, "constraint"):
            residuals, _ = ravel_pytree(problem.constraint(params))
            return jnp.sum(residuals**2)
        return jnp.squeeze(problem.objective(params, problem.args))

    start = np.concatenate([np.ravel(leaf) for leaf in leaves])
    return Problem(problem.name, start.astype(np.float64), loss)


def drawn() -> Iterator[Problem]:
    """All candidates in a fixed random order, except those that cannot start."""
    found = candidates()
    names = np.array(list(found))
    for name in np.random.default_rng(0).permutation(names):
        try:
            problem = found[name]()
            values = jax.jit(jax.value_and_grad(problem.loss))(problem.start)
        except (TypeError, ValueError, IndexError):
            continue  # This size does not exist.
        finite = all(np.isfinite(leaf).all() for leaf in values)
        if finite and 1 <= problem.start.size <= LARGEST:
            yield problem
