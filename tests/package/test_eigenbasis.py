"""Rprop in a learned eigenbasis: the rule, invariances, bad numbers, devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_identical, descend
from compat import use_mesh
from eigenbasis_reference import Eigenbasis
from jax.sharding import NamedSharding, PartitionSpec
from workloads import feed, gradient_stream, state_shardings, value_stream

import optax_rprop
from optax_rprop import in_eigenbasis, rprop
from optax_rprop._eigenbasis.rotation import Frame, carried_over

pytestmark = [pytest.mark.slow, pytest.mark.stack]

NAN, INF = float("nan"), float("inf")
STEPS = 24


def irprop_plus(**options):
    """The variant with the largest state."""
    return rprop(**{"learning_rate": 0.1, "variant": "irprop+"} | options)


def mixed(seed=1, steps=STEPS):
    """A leaf that is rotated and one that is not; their gradients, and losses.

    One difference determines all directions of a square matrix. In undetermined
    directions rounding chooses the eigenvectors, and two programs may differ.
    """
    params = {
        "matrix": jnp.ones((2, 2)),
        "vector": jnp.ones(2),
    }
    grads = {
        name: gradient_stream((steps, *leaf.shape), seed + i)
        for i, (name, leaf) in enumerate(params.items())
    }
    return params, grads, value_stream(steps, seed)


@functools.cache
def plain_run():
    """Parameters, state of Rprop and updates after `mixed`, without any wrapper."""
    return jax.jit(functools.partial(feed, in_eigenbasis(irprop_plus())))(*mixed())


@functools.cache
def square(**options):
    """The transformation, and its compiled update for leaves of shape (2, 2)."""
    optimizer = in_eigenbasis(irprop_plus(), **options)
    return optimizer, jax.jit(optimizer.update)


# ----------------------------------------------------------------------------
# The rule


@pytest.mark.parametrize(
    ("shape", "rotated", "full_matrix", "variant", "state_layout"),
    [
        ((3, 2), (0, 1), False, "rprop-", "split"),
        ((3, 2), (0, 1), False, "rprop+", "packed"),
        ((3, 2), (0, 1), False, "irprop-", "packed"),
        ((3, 2), (0, 1), False, "irprop+", "split"),
        # With an axis of size 1, and one that is too long.
        ((2, 1, 6), (0,), False, "irprop+", "packed"),
        ((4,), (0,), True, "irprop+", "split"),
    ],
)
def test_follows_the_transcription(
    x64, shape, rotated, full_matrix, variant, state_layout
):
    """Step by step, with NaN, infinities, zeros and repeated gradients.

    Eigenvectors are not unique, so the transcription uses those of the package, after
    checking that they are eigenvectors.
    """
    settings = {"learning_rate": 0.25, "eta_plus": 1.5, "variant": variant}
    optimizer = in_eigenbasis(
        rprop(**settings, state_layout=state_layout),
        decay=0.8,
        interval=3,
        max_size=5,
        full_matrix=full_matrix,
    )
    book = Eigenbasis(
        shape, rotated, scaled=full_matrix, decay=0.8, interval=3, **settings
    )
    grads = np.random.default_rng(3).normal(size=(STEPS, *shape))
    values = np.array(value_stream(STEPS, 4))
    grads[5], grads[8], grads[13] = NAN, 0.0, grads[12]
    values[7], values[15] = NAN, INF
    state = optimizer.init(jnp.zeros(shape))
    update = jax.jit(optimizer.update)
    basis_updates = 0
    for grad, value in zip(grads, values, strict=True):
        before = state.bases
        updates, state = update(jnp.asarray(grad), state, value=value)
        (moments,), (bases,) = state.moments, state.bases
        bases = {axis: np.array(bases[axis]) for axis in rotated}
        assert [m is not None for m in moments] == [
            i in rotated for i in range(len(shape))
        ]
        if book.learn(grad, value):
            basis_updates += 1
            book.change_basis(bases)
            for axis, basis in bases.items():
                np.testing.assert_allclose(
                    basis.T @ basis, np.eye(len(basis)), atol=1e-12
                )
                diagonal = basis.T @ book.moments[axis] @ basis
                # The anchor changes entries below this.
                np.testing.assert_allclose(
                    diagonal, np.diag(np.diag(diagonal)), atol=1e-11
                )
            if full_matrix:
                np.testing.assert_array_equal(state.units[0], book.units)
        else:
            assert_identical(state.bases, before)
        for axis in rotated:
            np.testing.assert_allclose(moments[axis], book.moments[axis], rtol=1e-12)
        with np.errstate(invalid="ignore"):
            expected = book.update(grad, value)
        np.testing.assert_allclose(updates, expected, rtol=1e-10, atol=1e-12)
        plain = optax_rprop.get_rprop_state(state)
        np.testing.assert_allclose(
            np.ravel(plain.step_sizes), book.rprop.step_sizes, rtol=1e-10
        )
        codes = np.ravel(plain.prev_grad_signs)
        signs = np.where(np.abs(codes) == 2, 0, codes)
        np.testing.assert_array_equal(signs, book.rprop.prev_grad_signs)
    assert basis_updates == 6


@functools.partial(jax.jit, static_argnums=0)
def on_quadratic(optimizer, hessian, params, state):
    """Thirteen updates; parameters, state and the losses before each."""

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda x: jnp.vdot(x, hessian @ x))(params)
        updates, state = optimizer.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), value

    return jax.lax.scan(step, (params, state), length=13)


def orthogonal(seed):
    """A random rotation."""
    return jnp.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(5, 5)))[0])


def valley():
    """The Hessian of a rotated quadratic of condition 100."""
    axes = orthogonal(0)
    return axes * jnp.geomspace(1.0, 1e2, 5) @ axes.T


def test_is_invariant_to_rotations_of_the_problem(x64):
    """With a learned basis, rotating problem and state gives the same losses."""
    hessian, rotation = valley(), orthogonal(7)
    optimizer = in_eigenbasis(irprop_plus())
    start = jnp.arange(1.0, 6.0)[:, None]
    (params, state), _ = on_quadratic(optimizer, hessian, start, optimizer.init(start))
    rotated = state._replace(
        prev_grads=rotation @ state.prev_grads,
        moments=((rotation @ state.moments[0][0] @ rotation.T, None),),
        bases=((rotation @ state.bases[0][0], None),),
    )
    _, expected = on_quadratic(optimizer, hessian, params, state)
    _, actual = on_quadratic(
        optimizer, rotation @ hessian @ rotation.T, rotation @ params, rotated
    )
    assert expected[-1] < 0.1 * expected[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_is_invariant_to_the_units_of_parameters(x64):
    """With a learned basis, changing units does the same; only for the full matrix."""
    hessian = valley()
    units = 2.0 ** jnp.array([3.0, -40.0, 0.0, 21.0, -7.0])
    bounds = {"min_step_size": 1e-30, "max_step_size": 1e30}
    optimizer = in_eigenbasis(irprop_plus(**bounds), full_matrix=True)
    start = jnp.arange(1.0, 6.0)
    (params, state), _ = on_quadratic(optimizer, hessian, start, optimizer.init(start))
    scaled = state._replace(
        prev_grads=units * state.prev_grads, units=(state.units[0] / units,)
    )
    _, expected = on_quadratic(optimizer, hessian, params, state)
    _, actual = on_quadratic(
        optimizer, units[:, None] * hessian * units, params / units, scaled
    )
    assert expected[-1] < 0.1 * expected[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_other_rounding_gives_the_same_run(x64):
    """The anchor determines directions without any difference so far."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 12)) * np.geomspace(1.0, 1e-3, 12)
    targets = inputs @ rng.normal(size=12)
    optimizer = in_eigenbasis(irprop_plus(), full_matrix=True)

    @jax.jit
    def run(inputs, targets):
        def loss(x):
            return jnp.sum((inputs @ x - targets) ** 2) + jnp.sum(x**4)

        return descend(optimizer, loss, jnp.zeros(12), 20)[0]

    order = rng.permutation(200)
    expected = run(inputs, targets)
    actual = run(inputs[order], targets[order])
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("full_matrix", [False, True])
def test_eigenproblems_under_vmap_stay_in_a_branch(full_matrix):
    """They are solved when bases are updated, not at every step."""
    optimizer = in_eigenbasis(irprop_plus(), full_matrix=full_matrix)

    def run(params):
        return descend(optimizer, lambda x: jnp.sum(x**2), params, 3)

    text = jax.jit(jax.vmap(run)).lower(jnp.ones((4, 3, 2))).as_text()
    assert "stablehlo.case" in text


def test_is_invariant_to_the_scale_of_the_loss():
    """Both the moments, whose squares would underflow, and the updates."""
    run = jax.jit(functools.partial(feed, in_eigenbasis(irprop_plus())))
    params, values = jnp.ones((3, 2)), value_stream(STEPS, 3)
    grads = gradient_stream((STEPS, 3, 2), 3)
    expected = run(params, grads, values)
    for exponent in (-80, 80):
        scaled = grads * jnp.float32(2.0**exponent)
        assert_identical(run(params, scaled, values), expected)


def test_leaves_that_are_not_rotated_follow_plain_rprop():
    """Vectors, scalars, axes above `max_size` and of size 1, exactly."""
    shapes = {"long": (4, 5), "row": (1, 5), "scalar": (), "vector": (3,)}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    params["matrix"] = jnp.ones((5, 2))
    grads = {
        name: gradient_stream((STEPS, *leaf.shape), len(name))
        for name, leaf in params.items()
    }
    rotated, plain = (
        jax.jit(functools.partial(feed, optimizer))(
            params, grads, value_stream(STEPS, 1)
        )[2]
        for optimizer in (in_eigenbasis(irprop_plus(), max_size=3), irprop_plus())
    )
    for name in shapes:
        assert_identical(rotated[name], plain[name])
    assert not np.array_equal(rotated["matrix"], plain["matrix"])


def carry_over(step_sizes, codes, basis):
    """Transfer memory from the axes into a basis."""
    return carried_over(
        (step_sizes, codes), jnp.ones(3), (basis**2,), Frame((basis,), None)
    )


def test_a_pending_shrink_survives_a_basis_update():
    """If most of a direction was undone; it then remembers no sign."""
    codes = jnp.array([2, -2, 1], "int8")
    _, carried = carry_over(jnp.ones(3), codes, jnp.eye(3)[:, ::-1])
    np.testing.assert_array_equal(carried, [1, 2, 2])
    # Directions with equal parts of the first and the last have no majority.
    half = jnp.sqrt(0.5)
    basis = jnp.array([[half, 0, half], [0, 1, 0], [half, 0, -half]])
    _, carried = carry_over(jnp.ones(3), codes, basis)
    assert carried[1] == 2


# ----------------------------------------------------------------------------
# Bad numbers


@pytest.mark.parametrize(
    ("variant", "full_matrix"),
    [("rprop-", False), ("rprop+", True), ("irprop+", False)],
)
def test_state_and_updates_stay_finite(variant, full_matrix):
    """With NaN, infinities, the largest and the smallest numbers."""
    rng = np.random.default_rng(5)
    extremes = [NAN, INF, -INF, 3e38, -3e38, 1e-38, -1e-45, 0.0, 1.0, -1.0]
    grads = rng.choice(extremes, (200, 3, 2), p=[0.02, 0.02, 0.02, *[0.94 / 7] * 7])
    values = rng.choice([NAN, INF, -INF, 3e38, 0.0, 1.0, 2.0], 200)
    # Squares of these step sizes underflow.
    bounds = {"min_step_size": 1e-29, "max_step_size": 1e-20}
    optimizer = in_eigenbasis(
        irprop_plus(learning_rate=1e-25, variant=variant, **bounds),
        interval=2,
        full_matrix=full_matrix,
    )

    def step(state, grad_and_value):
        grad, value = grad_and_value
        updates, state = optimizer.update(grad, state, value=value)
        return state, (updates, state)

    grads, values = jnp.asarray(grads, "float32"), jnp.asarray(values, "float32")
    _, steps = jax.jit(
        lambda: jax.lax.scan(step, optimizer.init(grads[0]), (grads, values))
    )()
    for leaf in jax.tree.leaves(steps):
        assert np.isfinite(leaf).all()
    step_sizes = np.asarray(optax_rprop.get_rprop_state(steps[1]).step_sizes)
    assert step_sizes.min() > 0
    if not full_matrix:  # In new units, the next step brings them back within bounds.
        assert 1e-29 * (1 - 1e-6) <= step_sizes.min() < step_sizes.max() <= 1e-20
    bases = np.asarray(steps[1].bases[0][0])
    np.testing.assert_allclose(
        bases.transpose(0, 2, 1) @ bases,
        np.broadcast_to(np.eye(bases.shape[1]), bases.shape),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    ("bad", "value"), [(NAN, 1.0), (INF, 1.0), (2.0, NAN), (2.0, INF), (2.0, -INF)]
)
def test_a_non_finite_evaluation_changes_no_basis(bad, value):
    """Bases, moments and the last gradient are those of the last finite one."""
    optimizer, update = square()
    state = optimizer.init(jnp.zeros((2, 2)))
    for grad in gradient_stream((5, 2, 2), 1):
        _, state = update(grad, state, value=1.0)
    grads = jnp.full((2, 2), 3.0).at[0, 1].set(bad)
    _, after = update(grads, state, value=value)
    assert_identical(after[1:-1], state[1:-1])


def test_a_step_out_of_the_domain_is_undone_in_the_same_basis(x64):
    """Even if a basis update was due; the next one happens."""
    optimizer, update = square(interval=2)
    state = optimizer.init(jnp.zeros((2, 2)))
    grads = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2)))
    # Growing along one line, so that no sign changes.
    for factor in (1.0, 2.0, 3.0):
        updates, state = update(factor * grads, state, value=1.0)
    assert state.phase == 1
    back, outside = update(5.0 * grads, state, value=INF)
    np.testing.assert_allclose(back, -updates, rtol=1e-12)
    assert_identical(outside.bases, state.bases)
    for factor in (4.0, 4.5):
        _, inside = update(factor * grads[::-1], outside, value=1.0)
        outside = inside
    assert not np.array_equal(inside.bases[0][0], state.bases[0][0])


# ----------------------------------------------------------------------------
# Trees


@pytest.mark.parametrize(
    ("tree", "full_matrix"),
    [
        ({}, False),
        ({}, True),
        (None, False),
        (((), {"a": None}), True),
        (jnp.array(3.0), True),
        ({"a": jnp.zeros((0, 3)), "b": jnp.ones((2, 2))}, True),
        (({}, jnp.ones((1, 3)), None, jnp.ones((2, 1, 2))), False),
        ({"a": 1.5, "b": np.ones((2, 2), "float32")}, False),
    ],
)
def test_trees_of_any_kind(tree, full_matrix):
    """Structure and shapes are kept; the first step follows the signs."""
    optimizer = in_eigenbasis(irprop_plus(), full_matrix=full_matrix)
    state = optimizer.init(tree)
    assert jax.tree.structure(jax.eval_shape(optimizer.init, tree)) == (
        jax.tree.structure(state)
    )
    updates, state = jax.jit(optimizer.update)(tree, state, tree, value=1.0)
    expected = jax.tree.map(lambda leaf: -0.1 * jnp.sign(leaf), tree)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6), updates, expected
    )


# ----------------------------------------------------------------------------
# The contract of Optax and JAX


def test_hyperparameters_may_be_injected():
    """The decay, or those of the inner Rprop; constants give the same result."""
    params, grads, values = mixed()
    outer = optax.inject_hyperparams(
        in_eigenbasis, static_args=("interval", "max_size")
    )
    inner = optax.inject_hyperparams(rprop)(0.1, variant="irprop+")
    for optimizer in (outer(irprop_plus(), decay=0.9), in_eigenbasis(inner)):
        actual = jax.jit(functools.partial(feed, optimizer))(params, grads, values)
        assert_identical(actual, plain_run())
    with pytest.raises(TypeError, match='name "interval" in its static_args'):
        optax.inject_hyperparams(in_eigenbasis)(rprop()).init(params)


@pytest.mark.parametrize("full_matrix", [False, True])
def test_state_is_read_by_diagnostics_and_by_optax(full_matrix):
    """Both find the step sizes and the trees like the parameters, and nothing else."""
    optimizer = in_eigenbasis(irprop_plus(), full_matrix=full_matrix)
    params, grads, _ = mixed()
    state = optimizer.init(params)
    _, state = jax.jit(optimizer.update)(
        jax.tree.map(lambda leaf: leaf[0], grads), state, value=1.0
    )
    assert optax_rprop.diagnostics(state).largest_step_size == jnp.float32(0.1)
    names = optax_rprop.diagnostics_by_leaf(state)
    assert list(names) == ([""] if full_matrix else [f"['{name}']" for name in params])
    kinds = optax.tree.map_params(
        optimizer,
        lambda leaf, param: leaf.shape == param.shape,
        state,
        params,
        transform_non_params=lambda _: None,
    )
    # Step sizes, signs and the last gradient, in the shapes of the parameters.
    shadows = 0 if full_matrix else 3 * len(params)
    assert jax.tree.leaves(kinds) == [True] * shadows
    for name in ("value", "grad", "count"):
        assert optax.tree.get(state, name) is None


def test_parameters_do_not_reach_the_inner_transformation():
    """Their coordinates differ, so weight decay inside is refused."""
    inner = optax.chain(optax.add_decayed_weights(0.1), irprop_plus())
    optimizer = in_eigenbasis(inner)
    params = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="params"):
        optimizer.update(params, optimizer.init(params), params, value=1.0)


@pytest.mark.parametrize("full_matrix", [False, True])
def test_derivatives_by_the_rate_are_right(x64, full_matrix):
    """They are finite and equal the difference quotient, with constant bases."""
    start = jnp.array([[3.0, -2.0], [1.0, 0.5], [0.25, -1.0]])

    def loss(x):
        return jnp.sum(x[0] ** 2)

    def end(rate):
        optimizer = in_eigenbasis(rprop(rate), interval=2, full_matrix=full_matrix)
        return descend(optimizer, loss, start, 4)[1][-1]

    run = jax.jit(jax.value_and_grad(end))
    slope = run(0.1)[1]
    quotient = (run(0.1 + 1e-4)[0] - run(0.1 - 1e-4)[0]) / 2e-4
    assert abs(slope) > 1
    np.testing.assert_allclose(slope, quotient, rtol=1e-4)


# ----------------------------------------------------------------------------
# Devices


def test_lowers_for_devices_that_are_not_there():
    """A whole step, with its eigenproblems."""
    params, grads, _ = mixed()
    optimizer = in_eigenbasis(irprop_plus())
    grads = jax.tree.map(lambda leaf: leaf[0], grads)

    @jax.jit
    def update(grads, state, value):
        return optimizer.update(grads, state, value=value)

    traced = update.trace(grads, optimizer.init(params), jnp.array(1.0))
    for platform in ("tpu", "cuda", "rocm"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "lapack" not in text
        # In full precision, even if the device defaults to less.
        assert "precision = [HIGHEST, HIGHEST]" in text
        assert "precision = [DEFAULT" not in text


@pytest.mark.parametrize(
    ("kind", "full_matrix"), [("Auto", False), ("Explicit", False), ("Explicit", True)]
)
def test_sharded_run_follows_the_unsharded(x64, cpu_devices, kind, full_matrix):
    """If types contain shardings, all are kept, and the bases are replicated."""
    if kind == "Explicit" and not hasattr(jax.sharding, "reshard"):
        pytest.skip("Explicit axes of this version of JAX are not complete")
    axis_type = getattr(jax.sharding.AxisType, kind)
    mesh = jax.make_mesh(
        (2, 2), ("data", "model"), axis_types=(axis_type,) * 2, devices=cpu_devices[:4]
    )
    shardings = {
        "matrix": NamedSharding(mesh, PartitionSpec("data", "model")),
        "vector": NamedSharding(mesh, PartitionSpec("model")),
    }
    params = {"matrix": jnp.ones((2, 2)), "vector": jnp.ones(2)}
    rng = np.random.default_rng(6)
    stream = [
        {
            name: jnp.asarray(rng.normal(size=leaf.shape))
            for name, leaf in params.items()
        }
        for _ in range(9)
    ]
    optimizer = in_eigenbasis(irprop_plus(), interval=3, full_matrix=full_matrix)

    def run(params, stream):
        state = optimizer.init(params)
        update = jax.jit(optimizer.update)
        for grads in stream:
            updates, state = update(grads, state, value=jnp.array(1.0))
        return updates, state

    expected = run(params, stream)
    with use_mesh(mesh):
        params = jax.device_put(params, shardings)
        updates, state = run(params, jax.device_put(stream, [shardings] * len(stream)))
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
            (updates, state),
            expected,
        )
        if kind == "Explicit":
            trees = [updates]
            if not full_matrix:
                trees += [state.prev_grads, state.inner_state[0].step_sizes]
            for tree in trees:
                for name, leaf in tree.items():
                    assert leaf.sharding.is_equivalent_to(shardings[name], leaf.ndim)
            for leaf in jax.tree.leaves(state.bases):
                assert leaf.sharding.is_fully_replicated
        if not full_matrix:
            everywhere = NamedSharding(mesh, PartitionSpec())
            found = state_shardings(optimizer, params, everywhere)
            assert found.prev_grads == shardings
            assert found.bases == everywhere
