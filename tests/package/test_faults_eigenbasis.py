"""`in_eigenbasis`: what it cannot rotate, abstract parameters, and derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import VARIANTS, assert_identical

from optax_rprop import in_eigenbasis, rprop

NOTHING = "in_eigenbasis has nothing to rotate"


@pytest.mark.parametrize(
    ("params", "number"),
    [
        ({"a": jnp.zeros(()), "b": jnp.zeros(())}, 2),
        ({"a": jnp.zeros(()), "b": jnp.zeros(3), "c": None}, 2),
        (jnp.zeros(5), 1),
        ([1.0, 2.0, np.zeros(2, "float32")], 3),
        # A leaf without coordinates does not count.
        ((jnp.zeros(3), jnp.zeros(()), jnp.zeros((0, 4))), 2),
    ],
    ids=["scalars", "None", "array", "Python and NumPy", "zero size"],
)
def test_scalars_and_vectors_need_the_full_matrix(params, number):
    """Without it the wrapper would do nothing; the message says what helps."""
    subject = "the only parameter is a scalar or vector"
    if number > 1:
        subject = f"all {number} parameters are scalars or vectors"
    message = rf"{NOTHING}: {subject}\."
    for init in (in_eigenbasis(rprop()).init, lambda params: abstract_init(params)):
        with pytest.raises(ValueError, match=f"{message} Use full_matrix=True"):
            init(params)
    abstract_init(params, full_matrix=True)


def abstract_init(params, **options):
    """The same without values."""
    return jax.eval_shape(in_eigenbasis(rprop(), **options).init, params)


@pytest.mark.parametrize(
    ("params", "max_size"),
    [
        (jnp.zeros((4, 5)), 3),
        ({"a": jnp.zeros((4, 5)), "b": jnp.zeros(())}, 3),
        (jnp.zeros((1, 1)), 1024),
        ([jnp.zeros((1, 6)), jnp.zeros((6, 7, 1))], 5),
    ],
    ids=["matrix", "with a scalar", "one entry", "ranks"],
)
def test_matrices_of_which_no_axis_is_rotated(params, max_size):
    """Each is too long, or of one entry."""
    with pytest.raises(ValueError, match=f"{NOTHING}.*max_size"):
        abstract_init(params, max_size=max_size)
    abstract_init(params, max_size=100, full_matrix=True)


@pytest.mark.parametrize(
    "params",
    [{}, None, [], {"a": jnp.zeros((0, 3))}, {"a": jnp.zeros(0), "b": None}],
    ids=["dict", "None", "list", "zero size", "zero size and None"],
)
@pytest.mark.parametrize("full_matrix", [False, True])
def test_nothing_at_all_needs_no_rotation(params, full_matrix):
    """A tree without coordinates is no mistake."""
    optimizer = in_eigenbasis(rprop(), full_matrix=full_matrix)
    state = optimizer.init(params)
    updates, _ = jax.eval_shape(optimizer.update, params, state)
    assert jax.tree.structure(updates) == jax.tree.structure(params)


def test_one_rotated_axis_is_enough():
    """Beside scalars, vectors and axes that are too long."""
    params = {"matrix": jnp.zeros((2, 9)), "vector": jnp.zeros(3), "n": jnp.zeros(())}
    state = abstract_init(params, max_size=5)
    assert [leaf.shape for leaf in jax.tree.leaves(state.bases)] == [(2, 2)]


# ----------------------------------------------------------------------------
# Abstract parameters


@pytest.mark.parametrize("full_matrix", [False, True])
def test_init_of_abstract_parameters(full_matrix):
    """`ShapeDtypeStruct`s suffice, and give what real parameters do."""
    params = {"a": jnp.ones((2, 3), "bfloat16"), "b": (jnp.ones(()), None)}
    optimizer = in_eigenbasis(rprop(variant="irprop+"), full_matrix=full_matrix)
    expected = optimizer.init(params)
    assert_identical(optimizer.init(jax.eval_shape(lambda: params)), expected)
    half = {"a": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "b": (jnp.ones(()), None)}
    assert_identical(optimizer.init(half), expected)


# ----------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("params", [jnp.ones((2, 2)), jnp.zeros((0, 2))])
@pytest.mark.parametrize(
    "value", [1, np.int32(1), jnp.array(1), True, None, "1"], ids=repr
)
def test_a_value_that_is_no_float_is_ignored(params, value):
    """As by the `rprop` inside, whether anything is rotated or not."""
    optimizer = in_eigenbasis(rprop())
    update = functools.partial(optimizer.update, params, value=value)
    jax.eval_shape(update, jax.eval_shape(optimizer.init, params))


@pytest.mark.parametrize("value", [1, None, "1"], ids=repr)
def test_the_variant_that_reads_it_still_needs_a_float(value):
    """`in_eigenbasis` leaves that to `rprop`."""
    params = jnp.ones((2, 2))
    optimizer = in_eigenbasis(rprop(variant="irprop+"))
    update = functools.partial(optimizer.update, params, value=value)
    with pytest.raises((TypeError, ValueError), match="value"):
        jax.eval_shape(update, jax.eval_shape(optimizer.init, params))


# ----------------------------------------------------------------------------
# Derivatives through the optimizer


START = [3.0, -2.0, 1.0, 0.5, 0.25, -1.0]


def end(wrap, rate, start, variant="irprop-", steps=3):
    """The loss after some steps, in which two of six parameters matter."""

    def loss(x):
        return jnp.sum(jnp.ravel(x)[:2] ** 2)

    def step(carry, _):
        x, state = carry
        value, grads = jax.value_and_grad(loss)(x)
        updates, state = optimizer.update(grads, state, x, value=value)
        return (optax.apply_updates(x, updates), state), None

    optimizer = optax.with_extra_args_support(wrap(rprop(rate, variant=variant)))
    carry = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)[0]
    return loss(carry[0])


WRAPS = {
    "plain": (lambda inner: inner, (6,)),
    "full_matrix": (lambda inner: in_eigenbasis(inner, full_matrix=True), (6,)),
    "per axis": (lambda inner: in_eigenbasis(inner, interval=2), (3, 2)),
}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *(
            pytest.param(name, variant, marks=pytest.mark.slow)
            for name in WRAPS
            for variant in VARIANTS
        ),
    ],
)
def test_derivatives_by_the_rate_are_right(x64, name, variant):
    """Finite, and the difference quotient: a basis counts as a constant."""
    wrap, shape = WRAPS[name]
    start = jnp.array(START).reshape(shape)
    run = jax.jit(
        lambda rate: jax.value_and_grad(lambda rate: end(wrap, rate, start, variant))(
            rate
        )
    )
    value, slope = run(0.1)
    quotient = (run(0.1 + 1e-4)[0] - run(0.1 - 1e-4)[0]) / 2e-4
    assert abs(slope) > 1
    np.testing.assert_allclose(slope, quotient, rtol=1e-4)
    assert value < 13.0


@pytest.mark.slow
def test_derivatives_by_the_start_are_finite(x64):
    """Forwards, and through a run in which a gradient comes twice and one is 0."""
    wrap, _ = WRAPS["full_matrix"]
    start = jnp.array(START)
    run = functools.partial(end, wrap, 0.1)
    _, slope = jax.jit(lambda x, v: jax.jvp(run, (x,), (v,)))(start, start)
    assert np.isfinite(slope)
