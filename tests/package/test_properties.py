"""Laws that every trajectory obeys, on inputs that Hypothesis makes up."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checks import (
    LAYOUTS,
    SETTINGS,
    SIZE,
    STEPS,
    VARIANTS,
    any_gradients,
    any_losses,
    assert_identical,
    descend,
    finite_gradients,
    finite_losses,
    gradients,
    player,
    property_test,
    rprop,
)
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

import optax_rprop

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
vectors = arrays.arrays(
    np.float32, (SIZE,), elements=strategies.floats(-8, 8, width=16)
)
curvatures = arrays.arrays(
    np.float32, (SIZE,), elements=strategies.integers(-8, 8).map(lambda k: 2.0**k)
)


@functools.cache
def descender(variant, state_layout):
    """Descent on a separable parabola, in any units of loss and parameters.

    The units are powers of two, so that no rounding depends on them.
    """

    @jax.jit
    def run(loss_unit, unit, start, centre, curvature):
        scaled = ("learning_rate", "min_step_size", "max_step_size")
        settings = SETTINGS | {name: SETTINGS[name] * unit for name in scaled}
        optimizer = rprop(**settings, variant=variant, state_layout=state_layout)

        def loss(params):
            return loss_unit * jnp.sum(curvature * (params / unit - centre) ** 2)

        return descend(optimizer, loss, start * unit, STEPS)

    def run_in_units(*parabola, loss_exponent=0, exponent=0):
        units = np.float32(2.0**loss_exponent), np.float32(2.0**exponent)
        return jax.tree.map(np.asarray, run(*units, *parabola))

    return run_in_units


# All factors are powers of two, so that float32 computes without rounding.
EXACT_SETTINGS = {
    "learning_rate": 0.25,
    "eta_minus": 0.5,
    "eta_plus": 2.0,
    "min_step_size": 0.125,
    "max_step_size": 2.0,
}


@each_layout
@each_variant
@property_test
@hypothesis.given(grads=any_gradients, values=any_losses)
def test_equals_plain_python_on_any_input(variant, state_layout, grads, values):
    """Whatever the gradients and losses, not a bit differs from the textbook."""
    run = player(**EXACT_SETTINGS, variant=variant, state_layout=state_layout)
    textbook = reference.Rprop(SIZE, variant, **EXACT_SETTINGS)
    steps = []
    for grad, value in zip(grads.tolist(), values.tolist(), strict=True):
        updates = textbook.update(grad, value)
        steps.append((updates, textbook.step_sizes, textbook.prev_grad_signs))
    expected = map(np.array, zip(*steps, strict=True))
    assert_identical(tuple(run(grads, values)), tuple(expected))


@each_layout
@each_variant
@property_test
@hypothesis.given(grads=any_gradients)
def test_skipped_zeros_do_not_count(variant, state_layout, grads):
    """A coordinate is the textbook's that never hears of its gradients of 0.

    The loss stays the same: it is no coordinate's own, and hears of all steps.
    """
    run = player(
        **EXACT_SETTINGS,
        variant=variant,
        skip_zero_grads=True,
        state_layout=state_layout,
    )
    textbooks = [reference.Rprop(1, variant, **EXACT_SETTINGS) for _ in range(SIZE)]
    steps = []
    for grad in grads.tolist():
        updates = []
        for textbook, partial in zip(textbooks, grad, strict=True):
            if partial:
                updates += textbook.update([partial], 0.0)
            else:
                updates.append(0.0)
                (coordinate,) = textbook.coordinates
                if coordinate.reduced_from is not None:
                    # A step passes, in which what was taken back is done with.
                    coordinate.reduced_from, coordinate.prev_update = None, 0.0
        step_sizes = [textbook.step_sizes[0] for textbook in textbooks]
        signs = [textbook.prev_grad_signs[0] for textbook in textbooks]
        steps.append((updates, step_sizes, signs))
    expected = map(np.array, zip(*steps, strict=True))
    assert_identical(tuple(run(grads, np.zeros(STEPS, np.float32))), tuple(expected))


@each_layout
@each_variant
@property_test
@hypothesis.given(
    grads=finite_gradients, values=finite_losses, exponent=strategies.integers(-90, 90)
)
@hypothesis.example(
    grads=np.ones((STEPS, SIZE), np.float32),
    values=np.zeros(STEPS, np.float32),
    exponent=-90,
)
def test_scale_of_the_gradient_is_ignored(
    variant, state_layout, grads, values, exponent
):
    """Gradients times 2**k make the same moves, though their products underflow."""
    run = player(variant=variant, state_layout=state_layout)
    scale = np.float32(2.0**exponent)
    assert_identical(run(grads * scale, values * scale), run(grads, values))


@each_layout
@each_variant
@property_test
@hypothesis.given(start=vectors, centre=vectors, curvature=curvatures)
def test_scale_of_the_loss_is_ignored(variant, state_layout, start, centre, curvature):
    """A loss times 2**90 or 2**-90, in float32, is minimized on the same path."""
    run = descender(variant, state_layout)
    plain, _ = run(start, centre, curvature)
    for exponent in (-90, 90):
        scaled, _ = run(start, centre, curvature, loss_exponent=exponent)
        assert_identical(scaled, plain)


@each_layout
@pytest.mark.parametrize(
    ("dtype", "tiny"),
    [("float16", 1e-4), ("bfloat16", 1.2e-38), ("float32", 1.2e-38)],
)
@each_variant
def test_a_vanishing_gradient_acts_like_one(variant, dtype, tiny, state_layout):
    """Its sign is all that is read; its square is 0 in its own dtype."""
    tiny = jnp.asarray(tiny, dtype)
    assert tiny * tiny == 0
    signs = jnp.array([1, 1, 1, -1, -1, 1, 1, 0, 1, 1, -1, 1], dtype)[:, None]
    values = jnp.linspace(1, 0, STEPS)
    run = player(variant=variant, state_layout=state_layout)
    assert_identical(run(signs * tiny, values), run(signs, values))


TRANSFORMS = {
    name: jax.jit(jax.vmap(jax.value_and_grad(transform)))
    for name, transform in {
        "exp": jnp.exp,
        "arctan": jnp.arctan,
        "cubic": lambda loss: loss**3 + loss,
    }.items()
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@each_layout
@each_variant
@property_test
@hypothesis.given(grads=finite_gradients, values=finite_losses)
def test_any_increasing_transform_of_the_loss(
    variant, state_layout, transform, grads, values
):
    """Only the order of losses counts, and the sign of derivatives."""
    run = player(variant=variant, state_layout=state_layout)
    transformed, slopes = TRANSFORMS[transform](values)
    chained = grads * np.asarray(slopes)[:, None]
    np.testing.assert_array_equal(np.sign(chained), np.sign(grads))
    assert_identical(run(chained, transformed), run(grads, values))


@each_layout
def test_a_decreasing_transform_of_the_loss_shows(state_layout):
    """The converse of the law above: irprop+ does read the order of losses."""
    run = player(variant="irprop+", state_layout=state_layout)
    grads = np.tile(np.float32([1, -1]), STEPS // 2)[:, None]
    values = np.arange(STEPS, dtype=np.float32)
    assert not np.array_equal(run(grads, values).updates, run(grads, -values).updates)


@each_layout
@pytest.mark.parametrize("variant", ["rprop-", "irprop-", "rprop+"])
@property_test
@hypothesis.given(start=vectors, centre=vectors, curvature=curvatures)
def test_coordinates_are_separate(variant, state_layout, start, centre, curvature):
    """On a separable loss each coordinate's path is that on its own term alone."""
    run = descender(variant, state_layout)
    together, _ = run(start, centre, curvature)
    parabolas = (
        [vector[i : i + 1] for vector in (start, centre, curvature)]
        for i in range(SIZE)
    )
    alone = [run(*parabola)[0] for parabola in parabolas]
    assert_identical(together, np.concatenate(alone, axis=1))


@each_layout
def test_the_loss_couples_the_coordinates_of_irprop_plus(state_layout):
    """A coordinate that overshoots is put back when alone, but not in company.

    The second coordinate is steep and far away: while it falls, so does the loss.
    """
    run = descender("irprop+", state_layout)
    start, curvature = np.float32([0.1, 8.0]), np.float32([1.0, 64.0])
    centre = np.zeros_like(start)
    together, _ = run(start, centre, curvature)
    alone, _ = run(start[:1], centre[:1], curvature[:1])
    np.testing.assert_allclose(together[:3, 0], [0.1, -0.15, -0.15], rtol=1e-6)
    np.testing.assert_allclose(alone[:3, 0], [0.1, -0.15, 0.1], rtol=1e-6)


@each_layout
@each_variant
@property_test
@hypothesis.given(
    grads=any_gradients,
    values=any_losses,
    order=strategies.permutations(range(SIZE)),
)
def test_order_of_coordinates_does_not_matter(
    variant, state_layout, grads, values, order
):
    """Permuted gradients make permuted moves."""
    run = player(variant=variant, state_layout=state_layout)
    expected = jax.tree.map(
        lambda field: np.asarray(field)[:, order], run(grads, values)
    )
    assert_identical(run(grads[:, order], values), expected)


@each_layout
@each_variant
@property_test
@hypothesis.given(grads=any_gradients, values=any_losses)
def test_reflection(variant, state_layout, grads, values):
    """The opposite gradient makes the opposite move."""
    run = player(variant=variant, state_layout=state_layout)
    expected = run(grads, values)
    expected = expected._replace(updates=-expected.updates, signs=-expected.signs)
    assert_identical(run(-grads, values), expected)


SHAPES = ((2, 3), (), (0, 2), (1, 2))


@each_layout
@each_variant
@property_test
@hypothesis.given(
    grads=gradients(strategies.floats(-1, 1, width=32), size=9), values=any_losses
)
def test_shape_of_the_tree_does_not_matter(variant, state_layout, grads, values):
    """A vector, cut into leaves of any shape, takes the same path."""
    ends = np.cumsum([np.prod(shape, dtype=int) for shape in SHAPES])

    def cut(stacked):
        parts = np.split(np.asarray(stacked), ends[:-1], axis=1)
        matrix, scalar, *others = (
            part.reshape(STEPS, *shape)
            for part, shape in zip(parts, SHAPES, strict=True)
        )
        return {"matrix": matrix, "others": (None, scalar, others)}

    run = player(variant=variant, state_layout=state_layout)
    expected = jax.tree.map(cut, run(grads, values))
    assert_identical(run(cut(grads), values), expected)


@each_layout
@each_variant
@property_test
@hypothesis.given(
    start=vectors,
    centre=vectors,
    curvature=curvatures,
    exponent=strategies.integers(-20, 20),
)
def test_units_of_the_parameters_do_not_matter(
    variant, state_layout, start, centre, curvature, exponent
):
    """Parameters, initial step size and bounds times 2**k: so is the path."""
    run = descender(variant, state_layout)
    params, values = run(start, centre, curvature)
    scaled = run(start, centre, curvature, exponent=exponent)
    assert_identical(scaled, (params * np.float32(2.0**exponent), values))


@each_layout
@each_variant
@property_test
@hypothesis.given(grads=any_gradients, values=any_losses)
def test_bounds_and_factors(variant, state_layout, grads, values):
    """Step sizes keep to their bounds, and change by one of three factors.

    No move is longer than the upper bound.
    """
    run = player(variant=variant, state_layout=state_layout)
    updates, step_sizes, _ = jax.tree.map(np.asarray, run(grads, values))
    start, shrink, grow, lower, upper = map(np.float32, SETTINGS.values())
    assert np.all((lower <= step_sizes) & (step_sizes <= upper))
    assert np.all(np.abs(updates) <= upper)
    before = np.concatenate([np.full((1, SIZE), start), step_sizes[:-1]])
    kept, shrunk, grown = (
        step_sizes == np.clip(before * factor, lower, upper)
        for factor in (np.float32(1), shrink, grow)
    )
    assert np.all(kept | shrunk | grown)


@each_layout
@pytest.mark.parametrize(
    ("trend", "twin"), [(-1, "irprop-"), (1, "rprop+")], ids=["falls", "rises"]
)
@property_test
@hypothesis.given(grads=any_gradients.map(np.nan_to_num))
def test_irprop_plus_is_one_or_the_other(state_layout, trend, twin, grads):
    """irprop-, while the loss strictly falls; rprop+, while it strictly rises."""
    values = trend * np.arange(STEPS, dtype=np.float32)
    assert_identical(
        player(variant="irprop+", state_layout=state_layout)(grads, values),
        player(variant=twin, state_layout=state_layout)(grads, values),
    )


@each_layout
@pytest.mark.parametrize("trend", [-1, 1], ids=["falls", "rises"])
@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("rprop-", [0.25, 0.0625, 0.015625]),
        ("irprop-", [0.25, 0.0625, 0.0625]),
        ("rprop+", [0.25, 0.25, 0.0625]),
        ("irprop+", [0.25, 0.0625, 0.0625]),
    ],
)
def test_two_sign_changes_in_a_row(variant, expected, trend, state_layout):
    """rprop- shrinks a step size at both; the others forget, and shrink once.

    That of a step that is taken back shrinks when it is next used.
    """
    if variant == "irprop+" and trend > 0:
        expected = [0.25, 0.25, 0.0625]
    run = player(min_step_size=2.0**-10, variant=variant, state_layout=state_layout)
    steps = run(jnp.array([3.0, -5.0, 0.1]), trend * jnp.arange(3.0))
    np.testing.assert_array_equal(steps.step_sizes, expected)


@pytest.fixture
def models():
    """The gradients of four models, and a loss for each."""
    rng = np.random.default_rng(0)
    grads, values = rng.normal(size=(4, STEPS, 16)), rng.normal(size=(4, STEPS))
    return grads.astype(np.float32), values.astype(np.float32)


@each_layout
@each_variant
def test_ways_to_run_it_agree(variant, state_layout, models):
    """Compiled or not, scanned or in a loop: the same bits."""
    grads, values = (stack[0, :6] for stack in models)
    scanned = player(variant=variant, state_layout=state_layout)(grads, values)
    optimizer = rprop(**SETTINGS, variant=variant, state_layout=state_layout)
    for update in (optimizer.update, jax.jit(optimizer.update)):
        state = optimizer.init(jnp.asarray(grads[0]))
        for number, (grad, value) in enumerate(zip(grads, values, strict=True)):
            updates, state = update(jnp.asarray(grad), state, value=value)
            plain = optax_rprop.get_rprop_state(state)
            assert_identical(
                (updates, plain.step_sizes, plain.prev_grad_signs),
                tuple(field[number] for field in scanned),
            )


@each_layout
@each_variant
def test_vmap_over_models(variant, state_layout, models):
    """Models trained together take the paths that they take alone."""
    run = player(variant=variant, state_layout=state_layout)
    alone = [run(*model) for model in zip(*models, strict=True)]
    stacked = jax.tree.map(lambda *fields: np.stack(fields), *alone)
    assert_identical(jax.jit(jax.vmap(run))(*models), stacked)
