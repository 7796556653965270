"""`resolve_signs`: which decays are kept, which arrays lean, and what is emitted."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_identical

from optax_rprop import in_eigenbasis, minibatch_rprop, resolve_signs, rprop

FACTORIES = [resolve_signs, minibatch_rprop]
each_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)


# ----------------------------------------------------------------------------
# Precision


@each_factory
@pytest.mark.parametrize(
    "decay", [0.9901, 0.995, 0.998, 0.9999, np.float32(0.995), np.array(0.999)]
)
def test_slow_decays_are_refused_in_bfloat16(factory, decay):
    """Rounded to 8 bits, they would not decay at all."""
    for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        with pytest.raises(ValueError, match=r"decay .*bfloat16") as caught:
            factory(decay=decay, statistics_dtype=dtype)
        assert f"{float(decay)}" in str(caught.value)
    factory(decay=decay)


@each_factory
@pytest.mark.parametrize("decay", [0.5, 0.9, 0.95, 0.99, 1, 1.0, np.int64(1)])
def test_decays_that_are_kept_in_bfloat16(factory, decay):
    """Up to 0.99, and 1, which multiplies by nothing."""
    factory(threshold=0.5, lean=0, decay=decay, statistics_dtype="bfloat16")


@pytest.mark.parametrize(
    "decay", [0.5, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.9, 0.99))]
)
def test_what_was_seen_fades_in_bfloat16_as_in_float32(decay):
    """One gradient and many zeros: the norm falls to near what it would be."""
    steps = round(np.log(1e-4) / np.log(decay))

    @functools.partial(jax.jit, static_argnums=0)
    def faded(statistics_dtype, grads):
        tx = resolve_signs(0.5, decay=decay, lean=0, statistics_dtype=statistics_dtype)
        state = tx.init(grads)
        _, state = tx.update(grads, state)
        state = jax.lax.fori_loop(
            0, steps, lambda _, state: tx.update(0 * grads, state)[1], state
        )
        return jax.tree.leaves(state)[-1]

    grads = jnp.array([1.3])
    packed = np.asarray(faded("bfloat16", grads)) << np.uint32(16)
    norms = packed.view(np.float32), np.asarray(faded(None, grads))
    np.testing.assert_allclose(np.abs(norms[1]), 1.3 * decay**steps, rtol=1e-3)
    np.testing.assert_allclose(*np.abs(norms), rtol=1.0)


@each_factory
@pytest.mark.parametrize(
    "dtype", ["bf16", "float33", "float16", jnp.float32, 8, "f4", np.int8, object(), ""]
)
def test_dtypes_of_statistics_there_are_not(factory, dtype):
    """The message names those that there are, whether NumPy knows this one or not."""
    with pytest.raises(ValueError, match='statistics_dtype must be None or "bfloat16"'):
        factory(statistics_dtype=dtype)


# ----------------------------------------------------------------------------
# Finite sums


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("statistics_dtype", [None, "bfloat16"])
def test_sums_of_finite_gradients_are_finite(statistics_dtype, sign):
    """Twice 60,000 is more than float16 holds: the largest number says as much."""
    tx = resolve_signs(lean=0, statistics_dtype=statistics_dtype)
    grads = jnp.full(2, sign * 60000.0, "float16")
    state = tx.init(grads)
    with jax.debug_infs(True):
        for _ in range(2):
            updates, state = tx.update(grads, state)
    assert updates.dtype == np.float16
    np.testing.assert_array_equal(updates, sign * np.finfo(np.float16).max)


FLOATS = ("float16", "bfloat16", "float32", "float64")
# The largest float32 is infinite in bfloat16.
ALWAYS = ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("grads", "params"),
    [
        pytest.param(*case, marks=[] if case == ALWAYS else pytest.mark.slow)
        for case in itertools.product(FLOATS, FLOATS)
    ],
)
def test_infinite_gradients_are_emitted_as_finite_ones(x64, grads, params):
    """Whatever the dtypes of gradients and of what is kept; and the state is finite."""
    largest = jnp.finfo(grads).max
    start = jnp.zeros(4, params)
    grads = jnp.array([np.inf, -np.inf, largest, -largest], grads)
    for statistics_dtype in (None, "bfloat16"):
        tx = resolve_signs(lean=0, statistics_dtype=statistics_dtype)
        state = tx.init(start)
        for _ in range(2):
            updates, state = tx.update(grads, state)
            assert np.isfinite(np.asarray(updates, "float64")).all()
            if statistics_dtype is None:
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# ----------------------------------------------------------------------------
# Arrays that do not lean


PARAMS = {
    "weights": jnp.linspace(-2.0, 3.0, 12).reshape(3, 4),
    "norm": {"scale": jnp.ones(5), "bias": jnp.linspace(-1.0, 1.0, 5)},
}
STEPS = 60


def noise():
    """Gradients that say nothing, stacked."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.normal(size=(STEPS, *leaf.shape)), "float32")  # noqa: E731
    return jax.tree.map(draw, PARAMS)


def emitted(optimizer, params=PARAMS):
    """All updates."""

    def step(state, grads):
        updates, state = optimizer.update(grads, state, params)
        return state, updates

    run = jax.jit(lambda grads: jax.lax.scan(step, optimizer.init(params), grads)[1])
    return run(noise())


@functools.cache
def leaning_and_upright():
    """What is emitted with the lean and without it."""
    runs = emitted(resolve_signs(lean=0.4)), emitted(resolve_signs(lean=0))
    for pair in zip(*map(jax.tree.leaves, runs), strict=True):
        assert not np.array_equal(*pair)
    return runs


MASKS = {
    "tree": {"weights": True, "norm": {"scale": False, "bias": True}},
    "prefix": {"weights": True, "norm": False},
    "function": lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    "function to a prefix": lambda params: {"weights": False, "norm": True},
    "True": True,
    "False": False,
    "NumPy": {"weights": np.False_, "norm": np.True_},
}


def expected_of(mask):
    """Of each leaf the one run or the other."""
    mask = mask(PARAMS) if callable(mask) else mask
    leans = jax.tree.map(
        lambda lean, part: jax.tree.map(lambda _: lean, part), mask, PARAMS
    )
    choose = lambda lean, leaning, upright: leaning if lean else upright  # noqa: E731
    return jax.tree.map(choose, leans, *leaning_and_upright())


@pytest.mark.parametrize(
    "name",
    [
        name
        if name == "function to a prefix"
        else pytest.param(name, marks=pytest.mark.slow)
        for name in MASKS
    ],
)
def test_masked_arrays_do_not_lean(name):
    """They are tested as with `lean=0`, and the others as without a mask."""
    mask = MASKS[name]
    actual = emitted(resolve_signs(lean=0.4, lean_mask=mask))
    assert_identical(actual, expected_of(mask))


@pytest.mark.slow
def test_minibatch_rprop_hands_the_mask_over():
    """To the test, and nothing else changes."""
    mask = MASKS["prefix"]
    chain = optax.chain(
        resolve_signs(lean=0.4, lean_mask=mask),
        rprop(0.05, 0.85, 1.1, skip_zero_grads=True),
    )
    actual = emitted(minibatch_rprop(lean=0.4, lean_mask=mask))
    assert_identical(actual, emitted(chain))


@each_factory
def test_masks_in_wrappers(factory):
    """Groups of parameters, None among the leaves, and injected numbers."""
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2), "c": None}
    mask = {"a": True, "b": False, "c": None}
    function = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    inject = optax.inject_hyperparams(factory, static_args="lean_mask")
    for optimizer in (
        factory(lean_mask=mask),
        factory(lean_mask=function),
        inject(lean=0.2, lean_mask=function),
        inject(lean=0.2, lean_mask=mask),
        optax.masked(factory(lean_mask=function), {"a": True, "b": True, "c": None}),
        optax.partition({"x": factory(lean_mask=function)}, "x"),
    ):
        state = jax.eval_shape(optimizer.init, params)
        updates, _ = jax.eval_shape(optimizer.update, params, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)


@each_factory
@pytest.mark.parametrize("mask", [{"weights": True}, {"other": True}, [True, False]])
def test_masks_that_fit_no_parameters(factory, mask):
    """A mask of another structure is an error, and not half of a mask."""
    optimizer = factory(lean_mask=mask)

    def run(params):
        return optimizer.update(params, optimizer.init(params), params)

    with pytest.raises(ValueError, match=r"(?s)."):
        jax.eval_shape(run, PARAMS)


def test_without_any_lean_no_parameters_are_needed():
    """As with `lean=0`; and one array that leans needs them."""
    grads = {"a": jnp.ones(2), "b": jnp.ones(3)}
    tx = resolve_signs(lean_mask={"a": True, "b": False})
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(grads, tx.init(grads))
    inside = in_eigenbasis(
        optax.chain(resolve_signs(lean=0), rprop(skip_zero_grads=True)),
        full_matrix=True,
    )
    jax.eval_shape(inside.update, grads, jax.eval_shape(inside.init, grads))
