"""The sequential sign test and the chain for mini-batches: rule and statistics."""

import functools
import inspect
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import assert_identical, program

import optax_rprop
from optax_rprop import ResolveSignsState, get_rprop_state, minibatch_rprop

STEPS, SIZE = 400, 30
# Equal options give the same transformation, which is compiled once.
resolve_signs = functools.cache(optax_rprop.resolve_signs)
each_precision = pytest.mark.parametrize("statistics_dtype", [None, "bfloat16"])


def noisy_gradients(steps=STEPS, size=SIZE, seed=0):
    """Gradients of many scales, with a signal in some coordinates and zeros."""
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, size)) + rng.choice([-1, 0, 0.2, 1], size)
    grads *= 10.0 ** rng.uniform(-12, 12, size)
    grads[rng.random((steps, size)) < 0.1] = 0
    return grads


def bad_gradients():
    """The same, with NaN and infinities in a quarter of the steps."""
    grads = noisy_gradients()
    draws = np.random.default_rng(1).random(grads[::4].shape)
    grads[::4][draws < 0.05] = np.nan
    grads[::4][(draws > 0.96) & (grads[::4] != 0)] *= np.inf
    return grads


def moving_params(steps=STEPS, size=SIZE, seed=7):
    """Parameters of both signs, some of which lie far from 0, and some on it."""
    rng = np.random.default_rng(seed)
    scales = rng.choice([0, 0.1, 1, 5], size)
    return scales * (rng.choice([-1, 1], size) + rng.normal(size=(steps, size)) / 4)


@functools.partial(jax.jit, static_argnums=0)
def play(tx, grads, params=None):
    """Updates and states of every step, stacked; at 0 if there are no parameters."""

    def step(state, inputs):
        updates, state = tx.update(inputs[0], state, inputs[1])
        return state, (updates, state)

    if params is None:
        params = jax.tree.map(jnp.zeros_like, grads)
    start = tx.init(jax.tree.map(lambda leaf: leaf[0], params))
    return jax.lax.scan(step, start, (grads, params))[1]


@jax.jit
def play_with(threshold, decay, lean, grads, params, norm_decay=0.995):
    """The same with any numbers, compiled once for all of them."""
    tx = optax_rprop.resolve_signs(
        threshold, decay=decay, norm_decay=norm_decay, lean=lean
    )
    return play(tx, grads, params)


def textbook(
    grads,
    params,
    threshold=1.2,
    decay=0.95,
    norm_decay=0.995,
    lean=0.1,
    largest=math.inf,
    stored=lambda total, norm: (total, norm),
    leaves=(slice(None),),
):
    """The rule in plain Python, a coordinate at a time; leaves are slices of a row."""
    grads, params = np.asarray(grads, float), np.asarray(params, float)
    emitted = np.zeros_like(grads)
    steps, size = grads.shape
    sums, norms = [0.0] * size, [0.0] * size
    sizes = sizes_weight = sums_weight = norms_weight = 0.0
    for t in range(steps):
        if np.isfinite(grads[t]).all():
            sizes = 0.8 * sizes + math.fsum(map(abs, grads[t])) / size
            sizes_weight = 0.8 * sizes_weight + 1
        unit = sizes / sizes_weight if sizes_weight else 1
        unit = min(max(unit, 2.0**-125), 2.0**125)
        sums_weight = decay**2 * sums_weight + 1
        norms_weight = norm_decay**2 * norms_weight + 1
        rms = np.empty(size)
        for leaf in leaves:
            rms[leaf] = np.sqrt(np.mean(params[t, leaf] ** 2))
        for i, (grad, weight) in enumerate(
            zip(grads[t].tolist(), params[t].tolist(), strict=True)
        ):
            if math.isinf(grad):
                emitted[t, i] = math.copysign(largest, grad)
                norms[i] = norm_decay * norms[i]
                sums[i], norms[i] = 0.0, stored(emitted[t, i], norms[i])[1]
                continue
            grad = 0.0 if math.isnan(grad) else grad / unit
            total = decay * sums[i] + grad
            norms[i] = math.hypot(norm_decay * norms[i], grad)
            bound = threshold
            if lean:
                far = min(abs(weight) / rms[i], 2) if rms[i] > 0 else 0
                towards = np.sign(total) * np.sign(weight)
                bound = max(threshold - lean * far * towards, min(threshold, 1.05))
            bound *= norms[i] * math.sqrt(sums_weight / norms_weight)
            # In real arithmetic, equal gradients can reach the bound exactly.
            resolved = abs(total) >= bound * (1 - 1e-14) and total != 0
            total, norms[i] = stored(total, norms[i])
            emitted[t, i] = total if resolved else 0
            sums[i] = 0 if resolved else total
    return emitted


SETTINGS = [
    (1.2, 0.95, 0.995, 0.1),
    (1.2, 0.95, 0.95, 0.0),
    (2.0, 0.98, 0.999, 0.4),
    (1.4, 0.7, 0.5, 0.2),
    (0.8, 0.9, 1.0, 0.3),
    (1.1, 0.9, 0.9, 0.3),
    (2.0, 1.0, 1.0, 0.1),
    (2.0, 1.0, 0.98, 0.1),
]


# ----------------------------------------------------------------------------
# The rule


@pytest.mark.parametrize(("threshold", "decay", "norm_decay", "lean"), SETTINGS)
def test_equals_plain_python(x64, threshold, decay, norm_decay, lean):
    """What is emitted, and when, in float64; with NaN and infinities."""
    grads, params = bad_gradients(), moving_params()
    largest = np.finfo(float).max
    updates, states = play_with(threshold, decay, lean, grads, params, norm_decay)
    expected = textbook(grads, params, threshold, decay, norm_decay, lean, largest)
    assert 0.01 < np.mean(expected != 0) < 0.95
    np.testing.assert_allclose(updates, expected, rtol=1e-9, atol=0)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states))


def test_the_lean_is_that_of_an_array_and_the_scale_that_of_all(x64):
    """The root mean square over all axes of a leaf, and the size of all numbers."""
    rows = [
        np.concatenate([1e3 * part, part[:, :9]], axis=1)
        for part in (bad_gradients(), moving_params())
    ]
    shaped = [
        {"a": row[:, :SIZE].reshape(STEPS, 5, 6), "b": row[:, SIZE:], "c": row[:, :0]}
        for row in rows
    ]
    updates, _ = play(resolve_signs(lean=0.3), *shaped)
    leaves = slice(SIZE), slice(SIZE, None)
    largest = np.finfo(float).max
    expected = textbook(*rows, lean=0.3, largest=largest, leaves=leaves)
    assert np.any(expected != textbook(*rows, lean=0.3, largest=largest))
    flat = np.concatenate([updates["a"].reshape(STEPS, SIZE), updates["b"]], axis=1)
    np.testing.assert_allclose(flat, expected, rtol=1e-9)


def waits(updates):
    """Steps between the last two resolved signs of each coordinate."""
    return [
        int(np.diff(np.flatnonzero(column))[-1]) for column in np.asarray(updates).T
    ]


def test_documented_number_of_equal_gradients():
    """2 at first and 5 once R has settled; 4 for a step towards 0 from afar."""
    grads, params = np.ones((2, 300, 8), np.float32)
    params[:, 1:] = 0
    # A positive gradient leads down: towards 0 from above.
    for sign in np.float32([1, -1]):
        updates, _ = play_with(1.2, 0.95, 0.1, sign * grads, sign * params)
        assert np.flatnonzero(updates[:, 1])[0] == 1
        assert waits(updates) == [4] + [5] * 7
    # And away from 0, more are needed.
    assert waits(play_with(1.2, 0.95, 0.15, grads, -params)[0]) == [6] + [5] * 7


def signs_of_many_sizes():
    """Gradients of constant magnitude in each coordinate."""
    signs = np.where(noisy_gradients() < 0, -1, 1)
    sizes = 10 ** np.random.default_rng(3).uniform(-3, 3, SIZE)
    return (signs * sizes).astype(np.float32)


def test_constant_magnitudes_leave_no_trace_of_the_norm():
    """The root that corrects for its memory is exact, from the first step on."""
    grads, params = signs_of_many_sizes(), moving_params().astype(np.float32)
    expected = np.asarray(play_with(1.2, 0.95, 0.1, grads, params, 0.95)[0])
    assert 0.02 < np.mean(expected != 0) < 0.5
    for norm_decay in (0.9, 0.995, 1.0):
        updates, _ = play_with(1.2, 0.95, 0.1, grads, params, norm_decay)
        np.testing.assert_array_equal(np.asarray(updates) != 0, expected != 0)


def test_rare_large_gradients_are_waited_for():
    """One resolves alone and at once, and tiny ones do not undo it, as documented."""
    grads = np.ones((1100, 8), np.float32)
    grads[:, 0] = -0.003
    grads[600, 0] = 1
    before, after = slice(600), slice(601, 900)
    updates = np.asarray(play(resolve_signs(lean=0), grads)[0])[:, 0]
    assert np.any(updates[before])
    assert updates[600] > 0
    assert not np.any(updates[after])
    # A norm that forgets as fast as the sum waits for nothing.
    short = resolve_signs(lean=0, norm_decay=0.95)
    updates = np.asarray(play(short, grads)[0])[:, 0]
    assert updates[600] == 0
    assert np.any(updates[after] < 0)


def test_the_size_remembers_a_little():
    """A batch with hardly any gradient counts for little, and a loss may blow up."""
    grads = np.ones((300, 8), np.float32)
    small = grads.copy()
    small[150::7] = -1e-3
    nothing = np.where(small < 0, 0, small)
    expected = np.asarray(play(resolve_signs(lean=0), nothing)[0])
    assert np.count_nonzero(expected[150:])
    updates = np.asarray(play(resolve_signs(lean=0), small)[0])
    np.testing.assert_array_equal(updates != 0, expected != 0)
    grads[:9] *= -1e6
    updates, _ = play(resolve_signs(lean=0), grads)
    assert not np.any(updates[20:50])
    assert waits(updates) == [5] * 8


def test_never_twice_in_a_row():
    """With a threshold above 1 and constant magnitudes, even where it leans most."""
    grads, params = signs_of_many_sizes(), moving_params()
    updates, _ = play_with(1.2, 0.95, 1.0, grads, params.astype(np.float32))
    resolved = np.asarray(updates) != 0
    assert resolved.mean() > 0.03
    assert not np.any(resolved[1:] & resolved[:-1])


@pytest.mark.parametrize("threshold", [math.sqrt(2), 1.5, 2.0])
def test_rounding_does_not_decide(threshold):
    """Equal gradients that reach the threshold exactly do resolve, of any size."""
    # Without decay, n of them have a sum of n and a norm of sqrt(n).
    grads = np.random.default_rng(8).uniform(0.1, 10, (1, 1000)).astype(np.float32)
    first = math.ceil(threshold**2 - 1e-9)
    grads = np.repeat(grads, 4, axis=0)
    updates, _ = play_with(threshold, 1.0, 0.0, grads, 0 * grads, 1.0)
    resolved = np.asarray(updates[:first]) != 0
    assert np.all(resolved == (np.arange(first) == first - 1)[:, None])


def test_units_of_the_gradient_do_not_matter():
    """Gradients times 2**k make the same updates; squares would underflow."""
    rng = np.random.default_rng(2)
    # Within 20 powers of two, all normal numbers of float32 after scaling.
    grads = (rng.normal(size=(STEPS, SIZE)) + 0.3).round(3).astype(np.float32)
    params = moving_params().astype(np.float32)
    expected, _ = play_with(1.2, 0.95, 0.1, grads, params)
    assert np.mean(np.asarray(expected) != 0) > 0.02
    for scale in np.float32([2.0**-95, 2.0**90]):
        updates, _ = play_with(1.2, 0.95, 0.1, grads * scale, params)
        np.testing.assert_array_equal(updates, expected)


def test_each_model_of_an_ensemble_has_its_own_scale():
    """Under `vmap`, the gradients of one do not count in another."""
    grads = noisy_gradients(60).astype(np.float32)
    expected = play(resolve_signs(lean=0), grads)
    models = np.stack([grads, 1024 * grads])
    updates, states = jax.vmap(lambda each: play(resolve_signs(lean=0), each))(models)
    np.testing.assert_array_equal(updates, np.stack([expected[0]] * 2))
    np.testing.assert_array_equal(states.scale.size[1], 1024 * expected[1].scale.size)


def test_parameters_without_a_root_mean_square():
    """Not finite, or 0: the test leans nowhere, in all of the array."""
    grads = noisy_gradients().astype(np.float32)
    expected, _ = play_with(1.2, 0.95, 0.0, grads, np.zeros_like(grads))
    assert np.all(np.any(expected, axis=0))
    for bad in (np.nan, np.inf, -np.inf, 1e30, None):
        params = moving_params().astype(np.float32)
        params = np.zeros_like(params) if bad is None else params
        if bad is not None:
            params[:, 3] = bad
        updates, states = play_with(1.2, 0.95, 0.5, grads, params)
        np.testing.assert_array_equal(updates, expected)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(states))


def test_zeros_resolve_nothing():
    """Not even at the least threshold, nor as sum and norm underflow."""
    for threshold, fading in ((1e-30, 0), (2.0, 3)):
        grads = np.zeros((STEPS, SIZE), np.float32)
        grads[:fading] = np.random.default_rng(6).uniform(0.5, 1.5, (fading, SIZE))
        params = np.ones_like(grads)
        updates, states = play_with(threshold, 0.7, 0.1, grads, params, 0.7)
        assert not np.any(updates)
        assert not np.any(states.grad_sums[-1])
        assert not np.any(states.grad_norms[-1])


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.9, 0.99, 0.995])
def test_what_was_seen_fades_in_bfloat16_too(decay):
    """One gradient and many zeros: the norm falls to near what it would be."""
    steps = round(np.log(1e-4) / np.log(decay))
    grads = np.zeros((steps + 1, 1), np.float32)
    grads[0] = 1.3
    options = {"norm_decay": decay, "lean": 0, "statistics_dtype": "bfloat16"}
    _, states = play(resolve_signs(0.5, **options), grads)
    last = np.asarray(states.statistics[-1]) << np.uint32(16)
    # In units of the first gradient.
    expected = decay**steps
    np.testing.assert_allclose(np.abs(last.view(np.float32)), expected, rtol=1.0)


# ----------------------------------------------------------------------------
# The contract


def test_state_is_as_documented():
    """S or what was emitted, and R, which is negative where a sign was resolved."""
    # Of mean size 4: scaled, 0.75, 1, and 1.25.
    grads = np.array([[3, -5], [4, 4], [5, -3]], np.float32)
    options = {"decay": 0.5, "norm_decay": 0.8, "lean": 0}
    updates, states = play(resolve_signs(1.2, **options), grads)
    np.testing.assert_allclose(updates[:, 0], [0, 1.375, 0])
    np.testing.assert_allclose(states.grad_sums[:, 0], [0.75, 1.375, 1.25])
    roots = 0.75, math.hypot(0.6, 1), math.hypot(0.48, 0.8, 1.25)
    np.testing.assert_allclose(
        states.grad_norms[:, 0], roots * np.array([1, -1, 1]), rtol=1e-6
    )
    scale = {
        "size": [4, 7.2, 9.76],
        "size_weight": [1, 1.8, 2.44],
        "sum_weight": [1, 1.25, 1.3125],
        "norm_weight": [1, 1.64, 2.0496],
    }
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        states.scale._asdict(),
        {name: np.array(numbers) for name, numbers in scale.items()},
    )
    packed = resolve_signs(1.2, **options, statistics_dtype="bfloat16")
    _, states = play(packed, grads)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-6),
        states.scale._asdict(),
        {name: np.array(numbers) for name, numbers in scale.items()},
    )
    bits = np.asarray(states.statistics[:, 0])
    signed = (bits << 16).astype(np.uint32).view(np.float32)
    np.testing.assert_allclose(signed, roots * np.array([1, -1, 1]), rtol=4e-3)
    sums = (bits & 0xFFFF0000).view(np.float32)
    np.testing.assert_array_equal(sums, [0.75, 1.375, 1.25])


def test_low_precision_loses_no_evidence():
    """The sum of many small gradients does not stick, and the lean is no coarser."""
    # In float16, 1 + 2**-12 is 1. The sum has to reach 1.9 times the first gradient.
    grads = np.full((4000, 2), [2.0**-12, 1], np.float32)
    grads[0] = grads[0, ::-1]
    updates, states = play_with(1.9, 1.0, 0.0, *[grads.astype("float16")] * 2, 1.0)
    resolved = np.flatnonzero(updates[:, 0])
    expected = play_with(1.9, 1.0, 0.0, grads, grads, 1.0)[0]
    np.testing.assert_array_equal(resolved, np.flatnonzero(expected[:, 0]))
    assert resolved[0] == pytest.approx(0.9 * 2**12, abs=20)
    assert states.grad_sums.dtype == "float32"
    # The squares of 300 and of 1e-5 are not numbers of float16.
    grads = np.ones((300, 8), "float16")
    for scale in (300.0, 1e-5):
        params = np.zeros_like(grads)
        params[:, 0] = scale
        updates, _ = play_with(1.2, 0.95, 0.1, grads, params)
        assert waits(updates) == [4] + [5] * 7


@each_precision
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_are_emitted_as_finite_numbers(statistics_dtype, dtype):
    """In units of the mean, or as an infinity, they may exceed what a dtype holds."""
    largest, size = float(jnp.finfo(dtype).max), 200_000
    signs = np.array([1, -1, 1, -1])
    finite, infinite = np.zeros((2, size))
    finite[:2], infinite[2:4] = signs[:2] * largest / 4, signs[2:] * np.inf
    tx = resolve_signs(lean=0, statistics_dtype=statistics_dtype)
    # The statistics of float32 parameters hold more than the gradient's dtype.
    state, seen = tx.init(np.zeros(size)), []
    for grads in (finite, finite, infinite):
        updates, state = jax.jit(tx.update)(jnp.asarray(grads, dtype), state)
        assert updates.dtype == dtype
        seen.append(np.asarray(updates[:4], float))
    summed = min(1.95 * size / 2, largest)
    np.testing.assert_allclose(
        seen[1:],
        signs * [[summed, summed, 0, 0], [0, 0, largest, largest]],
        rtol=4e-3 if dtype == "bfloat16" else 0,
    )


def in_bfloat16(total, norm):
    """The sum to the nearest, the norm up or down as the lost digits of both say."""
    numbers = np.array([total, norm], np.float32)
    bits = numbers.view(np.uint32).astype(int)
    bits[1] += (bits[0] ^ bits[1]) & 0xFFFF
    norm = (bits[1:] & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return float(numbers[0].astype(jnp.bfloat16)), float(norm[0])


def test_statistics_in_bfloat16():
    """Rounded statistics, and nothing else rounded; against plain Python."""
    lean = 0.4
    grads, params = bad_gradients().astype(np.float32), moving_params()
    params = params.astype(np.float32)
    tx = resolve_signs(lean=lean, statistics_dtype=jnp.bfloat16)
    updates, states = play(tx, grads, params)
    largest = float(jnp.finfo("bfloat16").max)
    expected = textbook(grads, params, lean=lean, largest=largest, stored=in_bfloat16)
    # A number half way between two of bfloat16 may fall to either side.
    assert np.mean(np.asarray(updates) != expected.astype(np.float32)) < 2e-3
    assert np.mean(expected != 0) > 0.01
    assert np.any(np.abs(expected) == largest)
    assert states.statistics.dtype == np.uint32


@pytest.mark.slow
@pytest.mark.stack
@each_precision
def test_sharding_is_kept(statistics_dtype, cpu_devices):
    """State and updates lie where the parameters lie, and are the same numbers."""
    mesh = jax.make_mesh((8,), ("devices",), devices=cpu_devices)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    tx = resolve_signs(lean=0.3, statistics_dtype=statistics_dtype)
    # The root mean square of a shard is another than that of the whole.
    plain_params = jnp.arange(-6.0, 10.0)
    params = jax.device_put(plain_params, sharding)
    grads = jax.device_put(np.ones(16, np.float32), sharding)
    start = state = tx.init(params)
    update = jax.jit(tx.update)
    plain = tx.init(plain_params)
    seen = []
    for _ in range(30):
        updates, state = update(grads, state, params)
        expected, plain = update(jnp.ones(16), plain, plain_params)
        np.testing.assert_array_equal(updates, expected)
        seen.append(updates)
    text = update.lower(grads, state, params).compile().as_text()
    # Of the root mean square and of the size, which newer compilers combine.
    expected = 1 if jax.__version_info__ >= (0, 10) else 2
    assert text.count(" all-reduce(") + text.count(" all-reduce-start(") == expected
    assert "all-gather" not in text
    # The coordinates lean by their places.
    counts = np.count_nonzero(seen, axis=0)
    assert counts[0] < counts[-1]
    for leaf in jax.tree.leaves((start[:-1], state[:-1], updates)):
        assert leaf.sharding.is_equivalent_to(sharding, 1)
    assert all(leaf.is_fully_replicated for leaf in state.scale)


# ----------------------------------------------------------------------------
# Statistics


@functools.cache
def law_of_signs(right, threshold, decay=0.95, cells=4001):
    """The law of a decision once R has settled, for signs +1 with probability `right`.

    By dynamic programming on a grid of sums, whose mass is shared between the two
    nearest points; R of signs is a constant then, so decisions are independent.

    Returns:
      The probability of a right and of a wrong decision, and the mean wait.
    """
    bound = threshold / math.sqrt(1 - decay**2) * (1 - 1e-6)
    grid, width = np.linspace(-bound, bound, cells, retstep=True)
    mass = np.zeros(cells)
    mass[cells // 2] = 1
    outcomes = []
    for sign, probability in ((1, right), (-1, 1 - right)):
        sums = decay * grid + sign
        waits = np.abs(sums) < bound
        places = np.where(waits, (sums + bound) / width, 0)
        lower = np.minimum(places.astype(int), cells - 2)
        outcomes.append((probability, waits, lower, places - lower))
    decided, wait = np.zeros(2), 0.0
    for n in range(1, 3000):
        after = np.zeros(cells)
        for i, (probability, waits, lower, rest) in enumerate(outcomes):
            out = probability * mass[~waits].sum()
            decided[i] += out
            wait += n * out
            kept = np.where(waits, probability * mass, 0)
            after += np.bincount(lower, kept * (1 - rest), cells)
            after += np.bincount(lower + 1, kept * rest, cells)
        mass = after
        if mass.sum() < 1e-9:
            return *decided, wait
    raise AssertionError


def probability_from_which_step_sizes_grow(eta_minus, eta_plus):
    """Of irprop-, for independent signs that are right with probability p.

    It remembers the right sign, the wrong one, or 0 after a change. The stationary
    law of that has 1 / (p (1 - p)) - 3 growths for one change.
    """
    growths = math.log(eta_minus) / -math.log(eta_plus)
    return 0.5 + math.sqrt(0.25 - 1 / (3 + growths))


def test_documented_probability_of_growth():
    """And step sizes do drift down below it, and up above."""
    least = probability_from_which_step_sizes_grow(0.85, 1.1)
    assert f"probability above {least:.3f}" in resolve_signs.__doc__
    rule = optax_rprop.rprop(1.0, 0.85, 1.1, 1e-30, 1e30, skip_zero_grads=True)
    for right, grows in ((least - 0.02, False), (least + 0.02, True)):
        draws = np.random.default_rng(9).random((1000, 500))
        signs = np.where(draws < right, 1, -1).astype(np.float32)
        _, states = play(rule, signs)
        sizes = optax_rprop.get_rprop_state(states).step_sizes[-1]
        assert bool(jnp.mean(jnp.log(sizes)) > 0) is grows


def documented_table():
    """The rows of the docstring's table: threshold, growth, and the two waits."""
    rows = re.findall(
        r"^ *([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$",
        resolve_signs.__doc__,
        re.MULTILINE,
    )
    assert len(rows) == 3
    return [tuple(map(float, row)) for row in rows]


@pytest.mark.parametrize(("threshold", "growth", "wait6", "wait8"), documented_table())
def test_documented_statistics(threshold, growth, wait6, wait8):
    """The table in the docstring is what the law says.

    The second column is given to three decimals, and the grid of the law is good to
    half a percent.
    """
    least = probability_from_which_step_sizes_grow(0.85, 1.1)
    for raw, expected in ((growth - 0.001, False), (growth + 0.001, True)):
        right, wrong, _ = law_of_signs(raw, threshold)
        assert bool(right / (right + wrong) > least) is expected
    for raw, expected in ((0.6, wait6), (0.8, wait8)):
        assert law_of_signs(raw, threshold)[2] == pytest.approx(expected, rel=0.01)
    assert law_of_signs(0.5, 1.2)[2] == pytest.approx(25, rel=0.02)
    doc = " ".join(resolve_signs.__doc__.split())
    assert "resolved after 25 gradients on average" in doc


@pytest.mark.once
@pytest.mark.parametrize(
    ("threshold", "decay"), [(1.0, 0.95), (1.2, 0.95), (1.5, 0.95), (1.5, 0.9)]
)
@pytest.mark.parametrize("right", [0.5, 0.55, 0.7])
def test_false_decisions_and_waits_match_the_law(threshold, decay, right):
    """Of 1,000 coordinates once R has settled, within four standard errors."""
    rng = np.random.default_rng(4)
    signs = np.where(rng.random((1400, 1000)) < right, 1, -1).astype(np.float32)
    updates, _ = play_with(threshold, decay, 0.0, signs, 0 * signs)
    updates = np.asarray(updates)[400:]
    hits, misses, wait = law_of_signs(right, threshold, decay)
    count = np.count_nonzero(updates)
    deviation = math.sqrt(hits * misses / count)
    assert abs(np.mean(updates[updates != 0] < 0) - misses) < 4 * deviation
    # A wait deviates by about itself; beside the error of the grid.
    assert updates.size / count == pytest.approx(wait, rel=4 / math.sqrt(count) + 5e-3)


# ----------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.0}, ValueError, "threshold must be positive, got 0.0"),
        ({"threshold": -1}, ValueError, "threshold must be positive, got -1"),
        ({"threshold": math.nan}, ValueError, "threshold must be finite"),
        ({"threshold": "2"}, TypeError, "threshold must be a real number, got '2'"),
        ({"threshold": abs}, TypeError, "(function)(threshold=schedule)"),
        ({"decay": 0.0}, ValueError, "decay must lie in (0, 1], got 0.0"),
        ({"decay": 1.5}, ValueError, "decay must lie in (0, 1], got 1.5"),
        ({"decay": None}, TypeError, "decay must be a real number, got None"),
        ({"norm_decay": 0.0}, ValueError, "norm_decay must lie in (0, 1], got 0.0"),
        ({"norm_decay": 1.5}, ValueError, "norm_decay must lie in (0, 1], got 1.5"),
        ({"norm_decay": abs}, TypeError, "(function)(norm_decay=schedule)"),
        ({"lean": -0.1}, ValueError, "lean must not be negative, got -0.1"),
        ({"lean": math.inf}, ValueError, "lean must be finite"),
        ({"lean": None}, TypeError, "lean must be a real number, got None"),
        ({"threshold": 10.0}, ValueError, "threshold=10.0 and lean=0.1 with decay"),
        ({"lean": 3}, ValueError, "threshold=1.2 and lean=3"),
        ({"decay": 0.3}, ValueError, "is never resolved"),
        *(
            ({"statistics_dtype": dtype}, ValueError, "statistics_dtype must be None")
            for dtype in ("bf16", "float16", jnp.float32, np.int8, 8, "", object())
        ),
        # Rounded to 8 bits, they would not decay at all.
        *(
            ({name: decay, "statistics_dtype": dtype}, ValueError, f"{name} must be at")
            for name, decay, dtype in (
                ("decay", 0.9951, "bfloat16"),
                ("norm_decay", 0.9999, jnp.bfloat16),
                ("norm_decay", np.array(0.998), jnp.dtype("bfloat16")),
            )
        ),
    ],
)
def test_refuses_bad_arguments(options, error, message):
    """What was expected, and what came; by the chain for mini-batches, too."""
    for factory in (optax_rprop.resolve_signs, minibatch_rprop):
        with pytest.raises(error, match=re.escape(message)):
            factory(**options)


def test_decays_that_are_kept_in_bfloat16():
    """Up to 0.995, and 1, which multiplies by nothing."""
    for decay in (0.5, 0.995, 1, 1.0, np.int64(1)):
        decays = {"decay": decay, "norm_decay": decay}
        optax_rprop.resolve_signs(0.5, lean=0, **decays, statistics_dtype="bfloat16")


@pytest.mark.parametrize("lean", [0, 0.5])
def test_limit_of_threshold_and_decay_is_sharp(lean):
    """Just below the limit, equal gradients do resolve; just above, never."""
    limit = math.sqrt(1.9 / 0.1) - 2 * lean
    # The first coordinate lies more than two root mean squares from 0.
    params = np.zeros((400, 8), np.float32)
    params[:, 0] = -1
    run = functools.partial(play_with, decay=0.9, lean=lean)
    below, _ = run(limit * 0.999, grads=np.ones_like(params), params=params)
    # Again and again, with an R that has settled.
    assert np.count_nonzero(below[:, 0]) >= 3
    above, _ = run(limit * 1.001, grads=np.ones_like(params), params=params)
    assert not np.any(above[:, 0])
    build = functools.partial(optax_rprop.resolve_signs, decay=0.9)
    with pytest.raises(ValueError, match="must be less than"):
        build(limit * 1.001, lean=lean)
    # A lean that is not known may be 0.
    build(limit * 0.999, lean=jnp.array(lean))
    with pytest.raises(ValueError, match="must be less than"):
        build(limit * 1.001 + 2 * lean, lean=jnp.array(lean))


def test_refuses_bad_gradients_and_states():
    """Wrong dtypes, shapes, structures and states are named."""
    tx = resolve_signs()
    params = {"w": jnp.ones(3)}
    state = tx.init(params)
    assert isinstance(state, ResolveSignsState)
    with pytest.raises(TypeError, match="real floating dtype"):
        tx.init(jnp.ones(3, int))
    with pytest.raises(TypeError, match="real floating dtype"):
        tx.update({"w": jnp.ones(3, complex)}, state, params)
    with pytest.raises(ValueError, match="shape of its parameter"):
        tx.update({"w": jnp.ones(4)}, state, params)
    with pytest.raises(ValueError, match="updates must have the structure of the"):
        tx.update({"v": jnp.ones(3)}, state, params)
    with pytest.raises(TypeError, match="must be the ResolveSignsState"):
        tx.update(params, optax.EmptyState(), params)


def test_needs_parameters_to_lean_by():
    """Missing or wrong ones are named; without a lean, none are looked at."""
    grads = {"w": jnp.ones(3)}
    leaning = resolve_signs(), optax_rprop.resolve_signs(lean=jnp.array(0.0))
    for tx in leaning:
        state = tx.init(grads)
        with pytest.raises(ValueError, match=r"update\(grads, state, params\).*lean=0"):
            tx.update(grads, state)
        with pytest.raises(ValueError, match="params must have the structure"):
            tx.update(grads, state, {"v": jnp.ones(3)})
        with pytest.raises(ValueError, match=r"params\['w'\] must have the shape"):
            tx.update(grads, state, {"w": jnp.ones(4)})
        with pytest.raises(TypeError, match=r"params\['w'\] must have a real floating"):
            tx.update(grads, state, {"w": jnp.ones(3, int)})
    for options in ({"lean": 0}, {"lean": np.float32(0)}):
        tx = resolve_signs(**options)
        expected = tx.update(grads, tx.init(grads))
        actual = tx.update(grads, tx.init(grads), "anything")
        assert_identical(actual, expected)


# ----------------------------------------------------------------------------
# Arrays that do not lean

PARAMS = {
    "weights": np.linspace(-2.0, 3.0, 12, dtype="float32").reshape(3, 4),
    "norm": {"scale": np.ones(5, "float32"), "bias": np.linspace(-1, 1, 5, dtype="f4")},
}
# Written out, and in other words.
MASKS = [
    (
        {"weights": True, "norm": {"scale": False, "bias": False}},
        {"weights": True, "norm": False},
        {"weights": np.True_, "norm": np.False_},
        lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        lambda params: {"weights": True, "norm": False},
    ),
    ({"weights": True, "norm": {"scale": True, "bias": True}}, True, None),
    ({"weights": False, "norm": {"scale": False, "bias": False}}, False),
]


def test_masked_arrays_do_not_lean():
    """They are tested as with `lean=0`, and the others as without a mask."""
    rng = np.random.default_rng(0)
    stacked = jax.tree.map(lambda leaf: np.repeat(leaf[None], 60, axis=0), PARAMS)
    grads = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype("float32"), stacked
    )
    mask = {"weights": True, "norm": {"scale": False, "bias": True}}

    @jax.jit
    def run(grads, params):
        options = {"lean": 0.4, "lean_mask": mask}, {"lean": 0.4}, {"lean": 0}
        tests = [optax_rprop.resolve_signs(**each) for each in options]
        return [play(tx, grads, params)[0] for tx in tests]

    masked, leaning, upright = run(grads, stacked)
    for pair in zip(jax.tree.leaves(leaning), jax.tree.leaves(upright), strict=True):
        assert not np.array_equal(*pair)
    expected = jax.tree.map(
        lambda leans, *both: both[0] if leans else both[1], mask, leaning, upright
    )
    assert_identical(masked, expected)


@pytest.mark.parametrize("factory", [optax_rprop.resolve_signs, minibatch_rprop])
def test_masks_in_other_words(factory):
    """Prefixes and functions of the parameters make the program of the whole tree."""
    for written_out, *others in MASKS:
        expected = program(factory(lean_mask=written_out), PARAMS)
        for mask in others:
            assert program(factory(lean_mask=mask), PARAMS) == expected
    mask = MASKS[0][3]
    params = PARAMS | {"none": None}
    inject = optax.inject_hyperparams(factory, static_args="lean_mask")
    for optimizer in (
        inject(lean=0.2, lean_mask=mask),
        optax.masked(factory(lean_mask=mask), True),
        optax.partition({"x": factory(lean_mask=mask)}, "x"),
    ):
        program(optimizer, params)
    for wrong in ({"weights": True}, {"other": True}, [True, False]):
        for mask in (wrong, lambda params, wrong=wrong: wrong):
            with pytest.raises(ValueError, match="lean_mask must be a tree of bools"):
                factory(lean_mask=mask).init(PARAMS)
    with pytest.raises(TypeError, match="lean_mask must hold bools, got 1"):
        factory(lean_mask=1).init(PARAMS)


# ----------------------------------------------------------------------------
# The chain for mini-batches

NUMBERS = {
    "learning_rate": 0.25,
    "eta_minus": 0.4,
    "eta_plus": 1.5,
    "min_step_size": 0.05,
    "max_step_size": 0.4,
}
TEST = {"threshold": 1.5, "decay": 0.8, "norm_decay": 0.9, "lean": 0.3}


def test_chain_hands_on_every_argument():
    """Each to the part that it belongs to, where another one makes another program."""

    def chain(layout, dtype, **numbers):
        settings = {
            name: parameter.default
            for name, parameter in inspect.signature(minibatch_rprop).parameters.items()
        } | numbers
        test = {name: settings[name] for name in TEST}
        return optax.chain(
            resolve_signs(**test, statistics_dtype=dtype),
            optax_rprop.rprop(
                **{name: settings[name] for name in NUMBERS},
                skip_zero_grads=True,
                state_layout=layout,
            ),
        )

    for layout, dtype in (("split", "bfloat16"), ("packed", None)):
        options = {"state_layout": layout, "statistics_dtype": dtype}
        changed, before = {}, program(minibatch_rprop(**options), PARAMS)
        for name, number in (NUMBERS | TEST).items():
            changed[name] = number
            actual = program(minibatch_rprop(**changed, **options), PARAMS)
            assert actual == program(chain(layout, dtype, **changed), PARAMS)
            assert actual != before
            before = actual
    # The numbers of the docstring, written out.
    expected = optax.chain(
        resolve_signs(1.2, decay=0.95, norm_decay=0.995, lean=0.1),
        optax_rprop.rprop(0.05, 0.85, 1.1, 1e-6, 50.0, skip_zero_grads=True),
    )
    assert program(minibatch_rprop(0.05), PARAMS) == program(expected, PARAMS)
    # A byte cannot hold them, but these.
    with pytest.raises(ValueError, match="powers of"):
        minibatch_rprop(state_layout="byte")
    factors = {"eta_minus": 2**-0.5, "eta_plus": 2**0.25, "min_step_size": 1e-4}
    program(minibatch_rprop(**factors, state_layout="byte"), PARAMS)


# By shape, the inputs of a unit, where they are more than 64. Kernels of a convolution
# are (3, 3, in, out) in Flax, and (out, in, 3, 3) in Equinox.
INPUTS = {
    (): 64,
    (1000,): 64,
    (64, 10): 64,
    (200, 10): 200,
    (10, 200): 200,
    (200, 200): 200,
    (3, 3, 16, 32): 144,
    (32, 16, 3, 3): 144,
    (0, 5): 64,
    (5, 0, 3): 64,
    (0,): 64,
}


def initial_step_sizes(shape, *args, **options):
    """The different ones of an array of this shape; none if it is empty."""
    params = {"w": np.zeros(shape, np.float32)}
    state = optax_rprop.minibatch_rprop(*args, **options).init(params)
    step_sizes = optax_rprop.get_rprop_state(state).step_sizes["w"]
    assert step_sizes.shape == shape
    return np.unique(step_sizes)


@pytest.mark.parametrize("shape", INPUTS)
def test_initial_step_sizes_by_width(shape):
    """The shorter, the more inputs a unit has; a number counts for all."""
    many = int(math.prod(shape) > 0)
    by_width = [0.05 * 64 / INPUTS[shape]] * many
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    close(initial_step_sizes(shape), by_width)
    close(initial_step_sizes(shape, 0.05), [0.05] * many)
    # The nearest of the powers of 2**0.25.
    options = {"eta_minus": 2**-0.5, "eta_plus": 2**0.25, "min_step_size": 1e-4}
    options["state_layout"] = "byte"
    close(initial_step_sizes(shape, **options), by_width, rtol=0.1)


def test_initial_step_sizes_by_width_lie_within_the_bounds():
    """A long table is not refused; arrays as bounds are not known in time."""
    for bound in (1e-2, jnp.array(1e-2)):
        for name, shape in (("min_step_size", (6400, 2)), ("max_step_size", (2,))):
            actual = initial_step_sizes(shape, **{name: bound})
            np.testing.assert_allclose(actual, [1e-2], rtol=1e-6)


@pytest.mark.once
def test_hyperparameters_of_the_chain_may_be_injected():
    """All of them, and as a schedule."""
    inject = optax.inject_hyperparams(minibatch_rprop)
    state = inject(**NUMBERS, **TEST).init(PARAMS)
    assert set(state.hyperparams) == set(NUMBERS | TEST)
    assert get_rprop_state(state).step_sizes["weights"].shape == (3, 4)
    optimizer = inject(max_step_size=optax.linear_schedule(0.5, 0.25, 2))
    state, update = optimizer.init(PARAMS), jax.jit(optimizer.update)
    for expected in (0.5, 0.375, 0.25):
        _, state = update(PARAMS, state, PARAMS)
        assert state.hyperparams["max_step_size"] == expected
