"""The rules, compared with references that share no code with them.

A rule decides by the memory of a coordinate, by its gradient and by the trend of the
loss. So one step from every state, compared with the reference, tests the whole rule.
"""

import functools
import itertools
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from checks import (
    FLOATS,
    SETTINGS,
    UNDOING,
    assert_identical,
    each_layout,
    each_variant,
    play,
    player,
    property_test,
)
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

import optax_rprop

NAN, INF = math.nan, math.inf
# 1 means the smallest normal number of the dtype, whose square is 0.
GRADS = (-3.0, 0.0, 5.0, NAN, INF, -INF, 1.0, -1.0)
LARGEST = 8.0  # Means the largest number of the dtype of the loss.
# The last finite loss (INF: none yet), and the loss.
LOSSES = [
    *itertools.product((INF, 1.0), (0.5, 1.0, 2.0, NAN, INF, -INF, LARGEST, -LARGEST)),
    (-LARGEST, 0.0),
    (LARGEST / 2, LARGEST),
]


def every_state(variant):
    """Step sizes and codes of all states, each with every gradient."""
    most = 2 if variant in UNDOING else 1
    levels = 2.0 ** np.arange(-5, 1)
    assert levels[0] == SETTINGS["min_step_size"]
    assert levels[-1] == SETTINGS["max_step_size"]
    grid = itertools.product(levels, range(-most, most + 1), GRADS)
    return [np.array(column) for column in zip(*grid, strict=True)]


def textbook(variant, skip, step_sizes, codes, prev_value):
    """The reference with a coordinate in each of these states."""
    book = reference.Rprop(len(codes), variant, skip_zero_grads=skip, **SETTINGS)
    book.prev_value = prev_value
    for coordinate, step_size, code in zip(
        book.coordinates, step_sizes.tolist(), codes.tolist(), strict=True
    ):
        coordinate.step_size = step_size
        if abs(code) == 1:
            coordinate.prev_grad = float(code)
            coordinate.prev_update = -code * step_size
        elif abs(code) == 2:
            coordinate.prev_update = math.copysign(step_size, code)
            coordinate.reduced_from = step_size
            coordinate.step_size = max(step_size * book.eta_minus, book.min_step_size)
    return book


def check_one_step(variant, skip, dtypes):
    """Updates and states after one step from every state, in leaves of these dtypes."""
    step_sizes, codes, grads = every_state(variant)
    optimizer = optax_rprop.scale_by_rprop(
        **SETTINGS, variant=variant, skip_zero_grads=skip
    )
    update = jax.jit(optimizer.update)
    leaves = {}
    for dtype in dtypes:
        tiny = np.asarray(jnp.finfo(dtype).tiny, float)
        leaf = jnp.asarray(np.where(np.abs(grads) == 1, grads * tiny, grads), dtype)
        leaves[dtype] = leaf
    start = optimizer.init(leaves)
    start = start._replace(
        step_sizes={
            dtype: jnp.asarray(step_sizes, leaf.dtype)
            for dtype, leaf in start.step_sizes.items()
        },
        prev_grad_signs=dict.fromkeys(dtypes, jnp.asarray(codes, jnp.int8)),
    )
    for prev_value, value in LOSSES if variant == "irprop+" else [(INF, NAN)]:
        if variant == "irprop+":
            largest = float(jnp.finfo(start.prev_value.dtype).max)
            prev_value, value = (
                number / LARGEST * largest if 2 < abs(number) < INF else number
                for number in (prev_value, value)
            )
            # The largest number means none.
            stored = jnp.full_like(start.prev_value, min(prev_value, largest))
            start = start._replace(prev_value=stored)
        updates, state = update(leaves, start, value=value)
        book = textbook(variant, skip, step_sizes, codes, prev_value)
        expected = book.update(grads.tolist(), value)
        for dtype in dtypes:
            # Along the gradient, to be subtracted.
            actual = -updates[dtype], state.step_sizes[dtype]
            assert_identical(actual, (np.array(expected), np.array(book.step_sizes)))
            assert_identical(state.prev_grad_signs[dtype], np.array(book.codes))
        if variant == "irprop+":
            assert_identical(state.prev_value, min(book.prev_value, largest))


@pytest.mark.stack
@pytest.mark.parametrize("skip", [False, True], ids=["", "skip"])
@each_variant
def test_one_step_from_every_state(x64, variant, skip):
    """Bit for bit like the reference, for every gradient, loss and dtype."""
    check_one_step(variant, skip, FLOATS)


def test_one_step_with_a_loss_in_single_precision():
    """The same without x64, where the last loss is float32."""
    state = optax_rprop.scale_by_rprop(variant="irprop+").init(np.ones(1, "float32"))
    assert state.prev_value.dtype == "float32"
    check_one_step("irprop+", False, ("float32",))


# ----------------------------------------------------------------------------
# Many steps

HOLDS = (-0.1, -0.12, -0.144, 0.0, -0.072, -0.0864)
UNDOES = (-0.1, -0.12, -0.144, 0.144, -0.072, -0.0864)


@pytest.mark.stack
@pytest.mark.parametrize(
    ("variant", "trend", "expected"),
    [
        ("rprop-", -1, (-0.1, -0.12, -0.144, 0.072, -0.036, -0.0432)),
        ("irprop-", -1, HOLDS),
        ("rprop+", -1, UNDOES),
        ("irprop+", -1, HOLDS),
        ("irprop+", 1, UNDOES),
    ],
)
def test_golden_sequence(x64, variant, trend, expected):
    """A sequence derived by hand, with a falling or rising loss."""
    optimizer = optax_rprop.rprop(0.1, variant=variant)
    grads = jnp.array([1.0, 1.0, 1.0, -1.0, 1.0, 1.0])
    steps = play(optimizer, grads, trend * jnp.arange(6.0))
    np.testing.assert_allclose(steps.updates, expected, rtol=1e-12)


def hard_gradients(steps, size, seed, *, nan):
    """Gradients over 60 decades, with signs that repeat, change and are 0."""
    rng = np.random.default_rng(seed)
    keep = rng.uniform(0.3, 1.0, size=size)
    signs = np.cumprod(np.where(rng.random((steps, size)) < keep, 1, -1), axis=0)
    grads = signs * 10.0 ** rng.uniform(-30, 30, (steps, size))
    grads[rng.random((steps, size)) < 0.05] = 0.0
    if nan:
        grads[rng.random((steps, size)) < 0.05] = np.nan
        grads[rng.random((steps, size)) < 0.02] = np.inf
        grads[rng.random((steps, size)) < 0.02] = -np.inf
    return grads


def follow(book, grads, values):
    """The steps of a reference, as `checks.play` returns them."""
    steps = []
    for grad, value in zip(grads.tolist(), values.tolist(), strict=True):
        updates = book.update(grad, value)
        steps.append((updates, book.step_sizes, book.codes))
    return tuple(map(np.array, zip(*steps, strict=True)))


@pytest.mark.stack
@each_variant
def test_a_long_run_equals_plain_python(x64, variant):
    """600 steps on 40 coordinates, with factors and bounds that are not exact."""
    steps, size = 600, 40
    rng = np.random.default_rng(2)
    grads = hard_gradients(steps, size, seed=1, nan=True)
    values = np.round(rng.normal(size=steps), 1)
    values = np.where(
        rng.random(steps) < 0.15, rng.choice([NAN, INF, -INF], steps), values
    )
    settings = {
        "learning_rate": 0.3,
        "eta_minus": 0.45,
        "eta_plus": 1.3,
        "min_step_size": 0.01,
        "max_step_size": 7.0,
    }
    run = jax.jit(
        lambda *streams: play(optax_rprop.rprop(**settings, variant=variant), *streams)
    )
    expected = follow(reference.Rprop(size, variant, **settings), grads, values)
    assert {0.01, 7.0} <= set(expected[1].ravel())
    for actual, field in zip(run(grads, values), expected, strict=True):
        np.testing.assert_allclose(actual, field, rtol=1e-12, atol=0)


@each_variant
@each_layout
def test_parameters_with_initial_step_sizes_of_their_own(x64, variant, state_layout):
    """Each coordinate does what it does in the textbook, where it starts with them."""
    sizes = [0.0625, 0.5, 0.125, 1.0, 1.0, 0.25, 0.03125]
    tree = {"a": np.array(sizes[:3]), "b": 1.0, "c": np.array([[0.25], [0.03125]])}
    steps = 40
    grads = hard_gradients(steps, 7, seed=3, nan=True)
    values = np.round(np.random.default_rng(4).normal(size=steps), 1)
    leaves = {
        "a": grads[:, :3],
        "b": [grads[:, 3], grads[:, 4]],
        "c": grads[:, 5:].reshape(steps, 2, 1),
    }
    book = reference.Rprop(7, variant, **SETTINGS)
    for coordinate, size in zip(book.coordinates, sizes, strict=True):
        coordinate.step_size = size
    expected = follow(book, grads, values)
    options = SETTINGS | {"variant": variant, "state_layout": state_layout}
    for learning_rate in (tree, lambda *, params: tree):
        optimizer = optax_rprop.rprop(**options | {"learning_rate": learning_rate})
        run = jax.jit(functools.partial(play, optimizer))
        for actual, field in zip(run(leaves, values), expected, strict=True):
            columns = [leaf.reshape(steps, -1) for leaf in jax.tree.leaves(actual)]
            assert_identical(np.concatenate(columns, 1), field)


def floats(low, high):
    """Numbers of either sign, between two magnitudes, or 0."""
    magnitudes = strategies.floats(low, high, width=32)
    return strategies.one_of(
        magnitudes, magnitudes.map(lambda number: -number), strategies.just(0.0)
    )


STEPS, SIZE = 12, 4
# On CPU, XLA treats subnormal numbers as 0 in all comparisons.
any_floats = strategies.floats(width=32, allow_subnormal=False)
# Small integers, so that losses repeat and return to earlier ones.
few_losses = strategies.integers(-4, 4).map(float)


def gradients(elements, size=SIZE):
    """Stacked gradients, float32."""
    return arrays.arrays(np.float32, (STEPS, size), elements=elements)


def losses(elements):
    """As many losses as there are steps, float32."""
    return arrays.arrays(np.float32, (STEPS,), elements=elements)


@each_variant
@property_test
@hypothesis.given(
    grads=gradients(strategies.one_of(floats(2**-30, 2**30), any_floats)),
    values=losses(strategies.one_of(few_losses, any_floats)),
)
def test_equals_plain_python_on_any_input(variant, grads, values):
    """Bit for bit like the reference, for all gradients and losses."""
    expected = follow(reference.Rprop(SIZE, variant, **SETTINGS), grads, values)
    assert_identical(tuple(player(variant=variant)(grads, values)), expected)


def test_rprop_descends_and_scale_by_rprop_does_not():
    """One is the other with the opposite sign, and passes every argument on."""
    grads = hard_gradients(100, 10, seed=7, nan=False).astype(np.float32)
    values = np.random.default_rng(8).normal(size=100).astype(np.float32)
    options = SETTINGS | {
        "variant": "irprop+",
        "skip_zero_grads": True,
        "state_layout": "packed",
    }
    along, against = (
        play(factory(**options), grads, values)
        for factory in (optax_rprop.scale_by_rprop, optax_rprop.rprop)
    )
    np.testing.assert_array_equal(along.updates, -against.updates)
    np.testing.assert_array_equal(along.step_sizes, against.step_sizes)


# ----------------------------------------------------------------------------
# Other implementations


@pytest.fixture
def torch_parameter():
    """A parameter of PyTorch's, and a function that steps it with a gradient."""
    torch = pytest.importorskip("torch", reason="compares with the live PyTorch")

    def build(start, dtype="float64", **options):
        start = torch.tensor(start, dtype=getattr(torch, dtype))
        parameter = torch.nn.Parameter(start)
        optimizer = torch.optim.Rprop([parameter], **options)

        def step(grad):
            before = parameter.detach().clone()
            parameter.grad = torch.tensor(grad, dtype=parameter.dtype)
            optimizer.step()
            return (parameter.detach() - before).numpy()

        return step

    return build


def updates_of(optimizer, grads, dtype="float32"):
    """The updates of one coordinate."""
    state, update = optimizer.init(jnp.zeros((), dtype)), jax.jit(optimizer.update)
    updates = []
    for grad in grads:
        change, state = update(jnp.asarray(grad, dtype), state)
        updates.append(float(change))
    return updates


@pytest.mark.once
def test_default_equals_torch(x64, torch_parameter):
    """500 steps of the default are those of `torch.optim.Rprop`."""
    grads = hard_gradients(500, 30, seed=5, nan=False)
    start = np.random.default_rng(6).normal(size=30)
    step = torch_parameter(start)
    optimizer = optax_rprop.rprop()
    steps = jax.jit(lambda grads: play(optimizer, grads, grads[:, 0]))(grads)
    for grad, update in zip(grads, np.asarray(steps.updates), strict=True):
        # Apart from rounding of the parameter.
        np.testing.assert_allclose(update, step(grad), rtol=1e-12, atol=1e-12)


@pytest.mark.once
@pytest.mark.parametrize(
    ("dtype", "vanishing"), [("float32", 1e-23), ("float16", 1e-4)]
)
def test_torch_stops_adapting(torch_parameter, dtype, vanishing):
    """Two equal vanishing gradients: the step grows here, and not in PyTorch."""
    step = torch_parameter(0.0, dtype, lr=0.1)
    theirs = [step(vanishing), step(vanishing)]
    ours = updates_of(optax_rprop.rprop(0.1), [vanishing] * 2, dtype)
    np.testing.assert_allclose(theirs, [-0.1, -0.1], rtol=1e-3)
    np.testing.assert_allclose(ours, [-0.1, -0.12], rtol=1e-3)


@pytest.mark.once
def test_torch_skips_nan_as_the_default_does(torch_parameter):
    """In both, a NaN skips the coordinate and clears its memory."""
    grads = (1.0, 1.0, NAN, 1.0, 1.0, -1.0)
    step = torch_parameter(0.0, lr=0.1)
    theirs = [step(grad) for grad in grads]
    ours = updates_of(optax_rprop.rprop(0.1), grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.once
def test_optax_is_one_step_late_and_keeps_nan():
    """The pending update is lost at a sign change, and a NaN persists."""
    late = updates_of(optax.rprop(0.1), (1.0, 1.0, 1.0, -1.0, 1.0))
    np.testing.assert_allclose(late, [0, -0.1, -0.12, 0, 0], rtol=1e-6)
    with jax.numpy_dtype_promotion("standard"):
        poisoned = updates_of(optax.rprop(0.1), (1.0, 1.0, NAN, 1.0, 1.0))
    assert np.isnan(poisoned).any()
