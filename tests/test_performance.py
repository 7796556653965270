"""What a step costs, by what XLA's CPU compiler makes of it; nothing is timed.

XLA's CPU backend compiles one fusion for each output of a leaf, and each fusion
reads its inputs from memory again. Where one overwrites a donated buffer that
another still reads, it copies the buffer first. So bytes, fusions and copies tell
a good formulation of the rule from one that takes three times as long. The limits
are what jax 0.5.3, 0.10.2 and 0.12.0 all compile to.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest

import optax_rprop

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="other backends fuse in another way"
)

SIZE = 1_000_000
LAYOUTS = ("split", "packed")
# Rounds off scalars, such as the loss of irprop+.
TOLERANCE = 0.01


class Cost(NamedTuple):
    """Bytes per parameter, and the numbers of operations."""

    bytes_accessed: float
    temporary_bytes: float
    fusions: int
    copies: int


def compile_step(optimizer, params):
    """`update` and `apply_updates`, with parameters and state donated."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params, state, grads, value):
        updates, state = optimizer.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    value = jax.ShapeDtypeStruct((), jnp.float32)
    # A donated buffer that cannot be used is a warning, hence an error here.
    jitted = jax.jit(step, donate_argnums=(0, 1))
    return jitted.lower(params, state, params, value).compile()


def cost(optimizer, leaves=1):
    params = [jax.ShapeDtypeStruct((SIZE // leaves,), jnp.float32)] * leaves
    compiled = compile_step(optimizer, params)
    text = compiled.as_text()
    return Cost(
        compiled.cost_analysis()["bytes accessed"] / SIZE,
        compiled.memory_analysis().temp_size_in_bytes / SIZE,
        text.count(" fusion("),
        text.count(" copy("),
    )


def nbytes(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("state_layout", "variant", "skip_zero_grads", "limit"),
    [
        ("split", "irprop-", False, Cost(36, 0, 3, 0)),
        ("split", "irprop-", True, Cost(40, 0, 3, 0)),
        ("split", "rprop-", False, Cost(36, 0, 3, 0)),
        ("split", "rprop+", False, Cost(55, 5, 3, 2)),
        # The comparison of the losses is one more fusion, of scalars, and the last
        # loss one more copy.
        ("split", "irprop+", False, Cost(55, 5, 4, 3)),
        ("packed", "irprop-", False, Cost(24, 0, 2, 0)),
        ("packed", "irprop-", True, Cost(28, 0, 2, 0)),
        ("packed", "rprop-", False, Cost(24, 0, 2, 0)),
        ("packed", "rprop+", False, Cost(40, 4, 2, 1)),
        ("packed", "irprop+", False, Cost(40, 4, 3, 2)),
    ],
)
def test_cost_of_one_leaf(state_layout, variant, skip_zero_grads, limit):
    """A step moves no more bytes, and takes no more operations, than it did."""
    optimizer = optax_rprop.rprop(
        variant=variant, skip_zero_grads=skip_zero_grads, state_layout=state_layout
    )
    actual = cost(optimizer)
    assert actual.bytes_accessed <= limit.bytes_accessed + TOLERANCE
    assert actual.temporary_bytes <= limit.temporary_bytes + TOLERANCE
    assert actual.fusions <= limit.fusions
    assert actual.copies <= limit.copies


@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_cheaper_than_its_peers(state_layout):
    """Fewer bytes and no more fusions than Adam and Optax's own Rprop."""
    ours = cost(optax_rprop.rprop(state_layout=state_layout))
    for peer in (optax.adam(0.01), optax.rprop(0.01)):
        # Optax raises a float to an integer power.
        with jax.numpy_dtype_promotion("standard"):
            theirs = cost(peer)
        assert ours.bytes_accessed < theirs.bytes_accessed
        assert ours.fusions <= theirs.fusions


@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_cost_grows_with_the_leaves_alone(state_layout):
    """Many leaves cost what the single leaves cost; nothing is gathered."""
    optimizer = optax_rprop.rprop(state_layout=state_layout)
    one, many = cost(optimizer), cost(optimizer, leaves=20)
    assert many.bytes_accessed <= one.bytes_accessed + TOLERANCE
    assert many.fusions <= 20 * one.fusions
    assert many.copies <= 20 * one.copies


@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+", "irprop+"])
@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_step_is_made_in_place(state_layout, variant):
    """Every donated byte of parameters and state becomes one of the result."""
    params = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    optimizer = optax_rprop.rprop(variant=variant, state_layout=state_layout)
    state = jax.eval_shape(optimizer.init, params)
    memory = compile_step(optimizer, params).memory_analysis()
    assert memory.alias_size_in_bytes == nbytes((params, state))


@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+"])
@pytest.mark.parametrize(
    ("dtype", "split_bytes", "packed_bytes"),
    [("float16", 5, 4), ("bfloat16", 5, 4), ("float32", 5, 4), ("float64", 9, 8)],
)
def test_state_bytes_per_parameter(x64, variant, dtype, split_bytes, packed_bytes):
    """A step size and an int8 sign, or the one float that holds both."""
    params = jax.ShapeDtypeStruct((SIZE,), jnp.dtype(dtype))
    for layout, expected in (("split", split_bytes), ("packed", packed_bytes)):
        optimizer = optax_rprop.rprop(variant=variant, state_layout=layout)
        state = jax.eval_shape(optimizer.init, params)
        assert nbytes(state) == expected * SIZE


@pytest.mark.parametrize("state_layout", LAYOUTS)
def test_the_loss_costs_one_number(state_layout):
    """The state of irprop+ is that of the others and one scalar."""
    params = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    without, with_loss = (
        nbytes(
            jax.eval_shape(
                optax_rprop.rprop(variant=variant, state_layout=state_layout).init,
                params,
            )
        )
        for variant in ("rprop+", "irprop+")
    )
    assert with_loss == without + 4
