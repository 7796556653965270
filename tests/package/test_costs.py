"""The cost of a step in the program of XLA's CPU compiler; nothing is timed.

XLA's CPU backend compiles one fusion for each output of a leaf, and each fusion
reads its inputs from memory again. If one overwrites a donated buffer that another
still reads, it copies the buffer first. So bytes, fusions and copies distinguish a
good formulation of the rule from one that takes three times as long. The limits are
the counts of jax 0.5.3, 0.10.2 and 0.12.0, which agree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from checks import each_layout, rprop

from optax_rprop import minibatch_rprop, resolve_signs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.stack,
    pytest.mark.skipif(
        jax.default_backend() != "cpu", reason="other backends fuse in another way"
    ),
]

SIZE = 1_000_000
# Rounds away scalars, such as the loss of irprop+.
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


def assert_within(actual, limit):
    assert actual.bytes_accessed <= limit.bytes_accessed + TOLERANCE
    assert actual.temporary_bytes <= limit.temporary_bytes + TOLERANCE
    assert actual.fusions <= limit.fusions
    assert actual.copies <= limit.copies


# irprop+ compares two losses, one more fusion of scalars, and keeps the last one, one
# more copy. The bounds of a byte are two fusions of scalars.
@pytest.mark.parametrize(
    ("state_layout", "variant", "skip_zero_grads", "limit"),
    [
        ("split", "irprop-", False, Cost(36, 0, 3, 0)),
        ("split", "irprop-", True, Cost(40, 0, 3, 0)),
        ("split", "rprop+", False, Cost(36, 0, 3, 0)),
        ("split", "irprop+", False, Cost(36, 0, 4, 1)),
        ("split", "irprop+", True, Cost(40, 0, 4, 1)),
        ("packed", "irprop-", False, Cost(24, 0, 2, 0)),
        ("packed", "irprop-", True, Cost(28, 0, 2, 0)),
        ("packed", "rprop+", False, Cost(24, 0, 2, 0)),
        ("packed", "irprop+", False, Cost(24, 0, 3, 1)),
        ("packed", "irprop+", True, Cost(28, 0, 3, 1)),
        ("byte", "irprop-", False, Cost(15, 0, 4, 0)),
        ("byte", "irprop-", True, Cost(19, 0, 4, 0)),
        ("byte", "rprop+", False, Cost(15, 0, 4, 0)),
        ("byte", "irprop+", False, Cost(15, 0, 5, 1)),
        ("byte", "irprop+", True, Cost(19, 0, 5, 1)),
    ],
)
def test_cost_of_one_leaf(state_layout, variant, skip_zero_grads, limit):
    """The bytes and operations of a step do not increase."""
    optimizer = rprop(
        variant=variant, skip_zero_grads=skip_zero_grads, state_layout=state_layout
    )
    assert_within(cost(optimizer), limit)


# The root mean square of a leaf is two more fusions. One of them reads the parameters,
# and the test reads them again. The mean size of the gradients reads those once more;
# with its running mean, it is 6 or 7 fusions and 2 copies, most of them of scalars.
@pytest.mark.parametrize(
    ("state_layout", "statistics_dtype", "lean", "limit"),
    [
        ("split", None, 0, Cost(88, 0, 12, 2)),
        ("packed", None, 0, Cost(72, 0, 11, 2)),
        ("byte", None, 0, Cost(63, 0, 13, 2)),
        ("byte", "bfloat16", 0, Cost(35, 0, 12, 2)),
        ("split", None, 0.1, Cost(96, 0, 14, 2)),
        ("packed", None, 0.1, Cost(80, 0, 13, 2)),
        ("byte", None, 0.1, Cost(71, 0, 15, 2)),
        ("split", "bfloat16", 0.1, Cost(64, 0, 13, 2)),
        ("packed", "bfloat16", 0.1, Cost(52, 0, 12, 2)),
        ("byte", "bfloat16", 0.1, Cost(43, 0, 14, 2)),
    ],
)
def test_cost_of_a_sign_test(state_layout, statistics_dtype, lean, limit):
    """The same for the chain for mini-batches."""
    optimizer = optax.chain(
        resolve_signs(lean=lean, statistics_dtype=statistics_dtype),
        rprop(0.05, skip_zero_grads=True, state_layout=state_layout),
    )
    if jax.__version_info__ < (0, 10):
        # Older compilers store sizes and squares before adding them.
        limit = limit._replace(
            bytes_accessed=limit.bytes_accessed + (20.6 if lean else 8.3),
            temporary_bytes=8.2 if lean else 4.2,
        )
    assert_within(cost(optimizer), limit)


def operations(jaxpr):
    """How many, with those of the functions that it calls."""
    called = [each.params.get("jaxpr") for each in jaxpr.eqns]
    return sum(1 if each is None else operations(each.jaxpr) for each in called)


@pytest.mark.parametrize(
    ("optimizer", "limit"),
    [
        (rprop(), 40),
        (rprop(state_layout="packed"), 54),
        (rprop(state_layout="byte"), 88),
        (minibatch_rprop(), 113),
        (minibatch_rprop(statistics_dtype="bfloat16"), 129),
    ],
    ids=["split", "packed", "byte", "minibatch", "minibatch in bfloat16"],
)
def test_operations_of_a_leaf(optimizer, limit):
    """The time that compiling takes goes with their number."""

    def count(leaves):
        params = [jax.ShapeDtypeStruct((SIZE,), jnp.float32)] * leaves
        state = jax.eval_shape(optimizer.init, params)
        return operations(jax.make_jaxpr(optimizer.update)(params, state, params).jaxpr)

    assert 10 < count(2) - count(1) <= limit


@each_layout
def test_cheaper_than_its_peers(state_layout):
    """Fewer bytes and no more fusions than Adam and Optax's own Rprop."""
    ours = cost(rprop(state_layout=state_layout))
    for peer in (optax.adam(0.01), optax.rprop(0.01)):
        # Optax raises a float to an integer power.
        with jax.numpy_dtype_promotion("standard"):
            theirs = cost(peer)
        assert ours.bytes_accessed < theirs.bytes_accessed
        assert nbytes(jax.eval_shape(peer.init, jnp.zeros(SIZE))) >= 8 * SIZE
        if state_layout != "byte":  # Its bounds are fusions of scalars.
            assert ours.fusions <= theirs.fusions


@pytest.mark.parametrize("variant", ["irprop-", "irprop+"])
@pytest.mark.parametrize(
    ("dtype", "split_bytes", "packed_bytes"),
    [("float16", 5, 4), ("bfloat16", 5, 4), ("float32", 5, 4), ("float64", 9, 8)],
)
def test_state_bytes_per_parameter(x64, variant, dtype, split_bytes, packed_bytes):
    """A step size and an int8, or the one float or byte that holds both.

    irprop+ has one more number, the loss.
    """
    params = jax.ShapeDtypeStruct((SIZE,), jnp.dtype(dtype))
    bytes_of = {"split": split_bytes, "packed": packed_bytes, "byte": 1}
    for state_layout, expected in bytes_of.items():
        optimizer = rprop(variant=variant, state_layout=state_layout)
        state = jax.eval_shape(optimizer.init, params)
        # Apart from scalars.
        assert expected * SIZE <= nbytes(state) <= expected * SIZE + 100
