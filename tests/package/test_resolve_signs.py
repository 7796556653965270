"""The sequential sign test: its rule, its contract and its statistics."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import hyp1f1

import optax_rprop
from optax_rprop import ResolveSignsState, resolve_signs

STEPS, SIZE = 400, 30
FLOATS = ("float16", "bfloat16", "float32", "float64")
each_precision = pytest.mark.parametrize("statistics_dtype", [None, "bfloat16"])


def minibatch_rprop(**options):
    """What the docstring advises for mini-batches."""
    rule = optax_rprop.rprop(0.05, eta_minus=0.75, skip_zero_grads=True)
    return optax.chain(resolve_signs(**options), rule)


def noisy_gradients(steps=STEPS, size=SIZE, seed=0):
    """Gradients of many scales, with a signal in some coordinates and zeros."""
    rng = np.random.default_rng(seed)
    grads = rng.normal(size=(steps, size)) + rng.choice([-1, 0, 0.2, 1], size)
    grads *= 10.0 ** rng.uniform(-12, 12, size)
    grads[rng.random((steps, size)) < 0.1] = 0
    return grads


@functools.partial(jax.jit, static_argnums=0)
def play(tx, grads):
    """Updates and states of every step, stacked."""

    def step(state, grads):
        updates, state = tx.update(grads, state, grads)
        return state, (updates, state)

    start = tx.init(jax.tree.map(lambda leaf: leaf[0], grads))
    return jax.lax.scan(step, start, grads)[1]


def textbook(grads, threshold, decay):
    """One coordinate at a time, from the whole history since it was resolved."""
    emitted = np.zeros_like(grads)
    for i in range(grads.shape[1]):
        since = 0
        for t in range(len(grads)):
            seen = grads[since : t + 1, i]
            seen = np.where(np.isnan(seen), 0, seen)
            weighted = seen * decay ** np.arange(len(seen))[::-1]
            # Exact sums, and a scale, so that nothing over- or underflows.
            scale = np.abs(weighted).max() or 1.0
            total = math.fsum(weighted / scale)
            root = math.sqrt(math.fsum((weighted / scale) ** 2))
            if abs(total) >= threshold * root:
                emitted[t, i] = total * scale
                since = t + 1
    return emitted


@pytest.mark.parametrize(
    ("threshold", "decay"), [(2.0, 0.98), (2.0, 1.0), (1.4, 0.7), (3.1, 0.9)]
)
def test_equals_plain_python(x64, threshold, decay):
    """What is emitted, and when, in float64."""
    grads = noisy_gradients()
    grads[np.random.default_rng(1).random(grads.shape) < 0.05] = np.nan
    updates, _ = play(resolve_signs(threshold, decay), jnp.asarray(grads))
    expected = textbook(grads, threshold, decay)
    assert 0.002 < np.mean(expected != 0) < 0.3
    np.testing.assert_allclose(updates, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("threshold", "decay"), [(1.0, 1.0), (1.0, 0.3), (0.7, 0.98), (1e-3, 0.95)]
)
def test_threshold_of_at_most_one_changes_nothing(threshold, decay):
    """What comes in goes out, so that plain Rprop remains, bit for bit."""
    grads = noisy_gradients().astype(np.float32)
    grads[0, :4] = [np.inf, -np.inf, 3.4e38, 1.2e-38]
    updates, _ = play(resolve_signs(threshold, decay), grads)
    # An infinity counts as the largest number.
    largest = np.finfo(np.float32).max
    np.testing.assert_array_equal(updates, np.clip(grads, -largest, largest))
    chain = minibatch_rprop(threshold=threshold, decay=decay)
    plain = optax_rprop.rprop(0.05, 0.75, skip_zero_grads=True)
    np.testing.assert_array_equal(play(chain, grads)[0], play(plain, grads)[0])
    # Without zeros, it is plain Rprop without that option, too.
    grads = np.where(grads == 0, np.float32(1e-3), grads)
    plain = optax_rprop.rprop(0.05, 0.75)
    np.testing.assert_array_equal(play(chain, grads)[0], play(plain, grads)[0])


@pytest.mark.parametrize("exponent", [-95, -60, 60, 90])
def test_units_of_the_gradient_do_not_matter(exponent):
    """Gradients times 2**k resolve at the same steps; squares would underflow."""
    rng = np.random.default_rng(2)
    # Within 20 powers of two, all normal numbers of float32 after scaling.
    grads = (rng.normal(size=(STEPS, SIZE)) + 0.3).round(3).astype(np.float32)
    scale = np.float32(2.0**exponent)
    run = functools.partial(play, resolve_signs())
    expected, _ = run(grads)
    updates, _ = run(grads * scale)
    assert np.mean(np.asarray(expected) != 0) > 0.02
    np.testing.assert_array_equal(updates, np.asarray(expected) * scale)


def test_nan_is_passed_over():
    """A NaN is as if it were 0, and leaves no trace."""
    grads = noisy_gradients().astype(np.float32)
    holes = np.random.default_rng(3).random(grads.shape) < 0.2
    expected = play(resolve_signs(), np.where(holes, np.float32(0), grads))
    actual = play(resolve_signs(), np.where(holes, np.float32(np.nan), grads))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_infinities_have_a_sign_and_leave_the_state_finite():
    """Resolved at once, as is a sum that overflows; what cancels can go on."""
    largest = np.finfo(np.float32).max
    grads = np.array(
        [
            [-1.0, 1.0, largest, largest],
            [np.inf, -np.inf, largest, -largest],
            [1.0, 1.0, 1.0, largest],
            [1.0, 1.0, 1.0, -largest],
        ],
        np.float32,
    )
    # Signs that stay for the last coordinate, to resolve in the end.
    grads = np.concatenate([grads, np.repeat(grads[:1], 60, axis=0)])
    updates, states = play(resolve_signs(2.0, decay=1.0), grads)
    assert updates[1, 0] == largest
    assert updates[1, 1] == -largest
    assert np.all(np.isfinite(jax.tree.leaves(states)))
    resolved = np.asarray(updates) != 0
    assert np.all(resolved.any(axis=0))
    assert not np.isnan(updates).any()
    # Again 4 steps after the infinities, as if they had not been.
    assert not resolved[2:5, :2].any()


@pytest.mark.parametrize("param_dtype", FLOATS)
@pytest.mark.parametrize("grad_dtype", FLOATS)
def test_dtypes(x64, param_dtype, grad_dtype):
    """float64 state for float64 parameters and float32 else; updates as gradients."""
    tx = minibatch_rprop()
    params, grads = jnp.ones(3, param_dtype), jnp.ones(3, grad_dtype)
    state = tx.init(params)
    expected = "float64" if param_dtype == "float64" else "float32"
    assert {leaf.dtype for leaf in jax.tree.leaves(state[0])} == {jnp.dtype(expected)}
    updates, new_state = jax.eval_shape(tx.update, grads, state)
    assert updates.dtype == grad_dtype

    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    assert types(new_state) == types(jax.eval_shape(lambda: state))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_loses_no_evidence(dtype):
    """The sum of many small gradients does not stick, and no resolved sign is lost."""
    # 6e-8 is the least float16 above 0; in half precision a sum stalls at 2048 ulp.
    noise = np.where(np.arange(4000) % 2, 1.0, -1.0) * 2.0**-10
    grads = jnp.asarray((noise + 2.0**-24)[:, None], "float32").astype(dtype)
    tx = resolve_signs(threshold=1.9, decay=1.0)
    updates, states = play(tx, grads)
    expected, _ = play(tx, grads.astype("float32"))
    np.testing.assert_array_equal(updates != 0, expected != 0)
    assert states.grad_sums.dtype == "float32"


@pytest.mark.parametrize("decay", [0.98, 0.7])
def test_what_fades_away_is_never_resolved(decay):
    """Zeros resolve nothing, however long they last, as sum and norm underflow."""
    grads = np.zeros((6000, 40), np.float32)
    grads[:3] = np.random.default_rng(6).uniform(0.5, 1.5, (3, 40))
    updates, states = jax.jit(functools.partial(play, resolve_signs(2.0, decay)))(grads)
    assert not np.any(updates)
    assert not any(np.any(leaf[-1]) for leaf in jax.tree.leaves(states))


def textbook_in_bfloat16(grads, threshold, decay):
    """What the docstring says, with the statistics rounded after each step."""
    emitted = np.zeros_like(grads)
    sums, norms = np.zeros((2, grads.shape[1]), np.float64)
    for t, grad in enumerate(grads):
        sums = decay * sums + grad
        norms = np.hypot(decay * norms, grad)
        resolved = (np.abs(sums) >= threshold * norms) & (norms > 0)
        sums, norms = (
            np.asarray(x.astype("float32").astype(jnp.bfloat16), np.float64)
            for x in (sums, norms)
        )
        emitted[t] = np.where(resolved, sums, 0)
        sums, norms = np.where(resolved, 0, sums), np.where(resolved, 0, norms)
    return emitted


def test_statistics_in_bfloat16():
    """Rounded statistics, and nothing else rounded; against NumPy."""
    grads = noisy_gradients().astype(np.float32)
    updates, states = play(resolve_signs(statistics_dtype=jnp.bfloat16), grads)
    expected = textbook_in_bfloat16(grads.astype(np.float64), 1.7, 0.95)
    # A number half way between two of bfloat16 may fall to either side.
    assert np.mean(np.asarray(updates) != expected.astype(np.float32)) < 2e-3
    assert np.mean(expected != 0) > 0.05
    assert states.statistics.dtype == np.uint32


@pytest.mark.parametrize("wrong", ["float16", jnp.float32, "int8"])
def test_statistics_of_another_dtype(wrong):
    """Only what there is."""
    with pytest.raises(ValueError, match='statistics_dtype must be None or "bfloat16"'):
        resolve_signs(statistics_dtype=wrong)


TREES = {
    "empty": {},
    "None": None,
    "None among leaves": {"a": None, "b": jnp.array([-2.0])},
    "zero-size": {"a": jnp.zeros((0, 3)), "b": jnp.array([2.0])},
    "tuples of 3": ((jnp.array(1.0), jnp.array(-2.0), jnp.array(0.0)),) * 3,
    "Python floats": {"a": 1.5, "b": (-2.5, 0.0)},
    "NumPy": {"a": np.array([1.0, -2.0], np.float32)},
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_trees_of_any_kind(tree):
    """Each leaf waits for itself, and the structure stays."""
    tx = resolve_signs(2.0, decay=1.0)
    state = tx.init(tree)
    abstract = tx.init(jax.eval_shape(lambda: tree))
    jax.tree.map(np.testing.assert_array_equal, abstract, state)
    for step in range(1, 5):
        updates, state = tx.update(tree, state, tree, value=1.0, unknown=2.0)
        expected = jax.tree.map(lambda leaf: np.asarray(leaf) * 4 * (step == 4), tree)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, updates, expected)


@each_precision
def test_ways_to_run_it_agree(statistics_dtype):
    """Eager, compiled, scanned, vectorized, and resumed from bytes: the same bits."""
    tx = minibatch_rprop(statistics_dtype=statistics_dtype)
    grads = noisy_gradients(steps=40, size=6).astype(np.float32)
    scanned, _ = jax.jit(functools.partial(play, tx))(grads)
    for update in (tx.update, jax.jit(tx.update)):
        state = tx.init(jnp.asarray(grads[0]))
        for number, grad in enumerate(grads):
            updates, state = update(jnp.asarray(grad), state)
            np.testing.assert_array_equal(updates, scanned[number])
            if number == 20:
                leaves, treedef = jax.tree.flatten(state)
                saved = [(np.asarray(x).tobytes(), x.dtype, x.shape) for x in leaves]
                state = treedef.unflatten(
                    [
                        jnp.asarray(np.frombuffer(data, dtype).reshape(shape))
                        for data, dtype, shape in saved
                    ]
                )
    alone = jax.vmap(functools.partial(play, tx), in_axes=1, out_axes=1)(grads)[0]
    np.testing.assert_array_equal(alone, scanned)


def test_sharding_is_kept():
    """State and updates lie where the parameters lie, and are the same numbers."""
    mesh = jax.make_mesh((8,), ("devices",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    tx = resolve_signs()
    params = jax.device_put(np.ones(16, np.float32), sharding)
    start = state = tx.init(params)
    update = jax.jit(tx.update)
    plain = tx.init(jnp.ones(16))
    for _ in range(3):
        updates, state = update(params, state)
        expected, plain = update(jnp.ones(16), plain)
        np.testing.assert_array_equal(updates, expected)
    assert np.all(np.asarray(updates) != 0)
    for leaf in jax.tree.leaves((start, state, updates)):
        assert leaf.sharding.is_equivalent_to(sharding, 1)


def test_compiles_once_and_in_place():
    """One trace serves all steps, donated memory is used again, no copy is made."""
    tx = minibatch_rprop()
    traces = []

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, grads):
        traces.append(1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.default_device(jax.devices("cpu")[0]):
        params = {"a": jnp.ones(1000), "b": jnp.ones(1000)}
        grads = jax.tree.map(jnp.copy, params)
        carry = params, tx.init(params)
        for _ in range(3):
            given = jax.tree.leaves(carry)
            carry = step(*carry, grads)
            assert all(leaf.is_deleted() for leaf in given)
    assert len(traces) == 1


@each_precision
@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
def test_lowers_for_every_platform(platform, statistics_dtype):
    """For devices that are not there, too."""
    tx = minibatch_rprop(statistics_dtype=statistics_dtype)
    params = jnp.ones((8, 4), "bfloat16")
    traced = jax.jit(tx.update).trace(params, tx.init(params))
    assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()


def test_bytes_of_state():
    """8 bytes a float32 parameter, and 13 with Rprop's."""

    def state_bytes(tx):
        leaves = jax.tree.leaves(tx.init(jnp.zeros(1000)))
        return sum(leaf.nbytes for leaf in leaves) / 1000

    assert state_bytes(resolve_signs()) == 8
    assert state_bytes(resolve_signs(statistics_dtype="bfloat16")) == 4
    assert state_bytes(minibatch_rprop()) == 13


@each_precision
def test_debugging_flags_find_nothing(statistics_dtype):
    """No infinity or NaN on the way from finite gradients."""
    tx = minibatch_rprop(statistics_dtype=statistics_dtype)
    with jax.debug_nans(True), jax.debug_infs(True):
        state = tx.init(jnp.ones(3))
        for grads in ([0.0, 1.0, -1.0], [0.0, 1e37, 1e-37], [1.0, 0.0, -1.0]):
            _, state = tx.update(jnp.array(grads), state)


def test_arguments_may_be_traced():
    """Under `inject_hyperparams`, and one setting per model under vmap."""
    grads = noisy_gradients().astype(np.float32)
    injected = optax.inject_hyperparams(resolve_signs)(threshold=1.7, decay=0.9)
    expected = [play(resolve_signs(c, 0.9), grads)[0] for c in (1.7, 2.5)]
    np.testing.assert_array_equal(play(injected, grads)[0], expected[0])
    together = jax.vmap(lambda c: play(resolve_signs(c, 0.9), grads)[0])(
        jnp.array([1.7, 2.5])
    )
    np.testing.assert_array_equal(together, expected)


def test_before_another_sign_based_optimizer():
    """Whatever looks only at signs may follow: here, signSGD moves once in four."""
    tx = optax.chain(resolve_signs(2.0, decay=1.0), optax.sign_sgd(0.5))
    updates, _ = play(tx, jnp.array([[-3.0]] * 8))
    np.testing.assert_array_equal(updates[:, 0], [0, 0, 0, 0.5] * 2)


# ----------------------------------------------------------------------------
# Statistics


def law_of_signs(right, threshold, steps):
    """Exact, by dynamic programming, for signs +1 with probability `right`, no decay.

    Returns:
      The probability of a right and of a wrong decision within `steps`, the mean
      wait up to there of those decided, and the probability of none at all after
      each step.
    """
    bound = math.ceil(threshold * math.sqrt(steps)) + 1
    sums = np.arange(-bound, bound + 1)
    mass = (sums == 0).astype(float)
    decided, wait, waiting = np.zeros(2), 0.0, []
    for n in range(1, steps + 1):
        mass = right * np.roll(mass, 1) + (1 - right) * np.roll(mass, -1)
        out = np.where(np.abs(sums) >= threshold * math.sqrt(n) - 1e-9, mass, 0)
        decided += out[sums > 0].sum(), out[sums < 0].sum()
        wait += n * out.sum()
        mass = mass - out
        waiting.append(mass.sum())
    return *decided, wait / decided.sum(), np.array(waiting)


def documented_table():
    """The rows of the docstring's table: threshold, growth, and the two waits."""
    rows = re.findall(
        r"^ *([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$",
        resolve_signs.__doc__,
        re.MULTILINE,
    )
    assert len(rows) == 4
    return [tuple(map(float, row)) for row in rows]


@pytest.mark.parametrize(("threshold", "growth", "wait6", "wait8"), documented_table())
def test_documented_statistics(threshold, growth, wait6, wait8):
    """The table in the docstring is what the exact law says.

    A resolved sign is right with probability 0.6776 where the raw one is with that
    of the second column, which is given to three decimals.
    """
    for raw, expected in ((growth - 0.001, False), (growth + 0.001, True)):
        right, wrong, _, _ = law_of_signs(raw, threshold, 5000)
        assert bool(right / (right + wrong) > 0.6776) is expected
    for raw, expected in ((0.6, wait6), (0.8, wait8)):
        *_, wait, waiting = law_of_signs(raw, threshold, 3000)
        assert waiting[-1] < 1e-4
        assert wait == pytest.approx(expected, rel=0.02)


def test_documented_tail_of_the_wait():
    """Pure noise waits longer than n with probability n**-0.22 at the threshold 1.7.

    The exponent is the least root of a confluent hypergeometric function, by the
    theory of Brownian motion between square-root boundaries.
    """
    exponent = 0.2232
    assert abs(hyp1f1(-exponent, 0.5, 1.7**2 / 2)) < 1e-3
    *_, waiting = law_of_signs(0.5, 1.7, 8000)
    slope = math.log(waiting[999] / waiting[7999]) / math.log(8)
    assert slope == pytest.approx(exponent, abs=0.01)


@pytest.mark.parametrize("threshold", [1.5, 2.0, 2.5])
@pytest.mark.parametrize("right", [0.5, 0.55, 0.7])
def test_false_decisions_and_waits_match_the_exact_law(threshold, right):
    """4,000 coordinates until their first decision, within four standard errors."""
    steps, coordinates = 300, 4000
    rng = np.random.default_rng(4)
    signs = np.where(rng.random((steps, coordinates)) < right, 1, -1)
    updates, _ = jax.jit(functools.partial(play, resolve_signs(threshold, 1.0)))(
        signs.astype(np.float32)
    )
    updates = np.asarray(updates)
    decided = (updates != 0).any(axis=0)
    first = (updates != 0).argmax(axis=0)
    false = (updates[first, np.arange(coordinates)] < 0)[decided]

    hits, misses, wait, waiting = law_of_signs(right, threshold, steps)

    def within(measured, expected, deviation, count):
        assert abs(measured - expected) < 4 * deviation / math.sqrt(count) + 1e-12

    rate = misses / (hits + misses)
    count = decided.sum()
    within(false.mean(), rate, math.sqrt(rate * (1 - rate)), count)
    within(decided.mean(), 1 - waiting[-1], 0.5, coordinates)
    waits = first[decided] + 1
    within(waits.mean(), wait, waits.std(), count)


def test_decay_ends_the_wait_of_noise():
    """With decay, noise resolves at a steady rate; without, ever more rarely."""
    grads = np.random.default_rng(5).normal(size=(6000, 300)).astype(np.float32)
    rates = {}
    for decay in (1.0, 0.98):
        updates, _ = jax.jit(functools.partial(play, resolve_signs(2.0, decay)))(grads)
        early, late = np.split(np.asarray(updates) != 0, [3000])
        rates[decay] = late.mean() / early.mean()
    assert rates[1.0] < 0.5
    assert 0.9 < rates[0.98] < 1.1


def test_learns_where_plain_rprop_cannot():
    """A noisy parabola in 100 coordinates, whose noise is three times as strong."""

    @functools.partial(jax.jit, static_argnums=0)
    def distance(tested):
        tx = minibatch_rprop() if tested else optax_rprop.rprop(0.03)

        def step(carry, key):
            params, state = carry
            grads = params + 3 * jax.random.normal(key, params.shape)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jnp.linspace(-2, 2, 100)
        keys = jax.random.split(jax.random.key(0), 3000)
        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), keys)
        return jnp.sqrt(jnp.mean(params**2))

    assert distance(True) < 0.3
    assert distance(False) > 0.8


# ----------------------------------------------------------------------------
# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": 0.0}, ValueError, "threshold must be positive, got 0.0"),
        ({"threshold": -1}, ValueError, "threshold must be positive, got -1"),
        ({"threshold": math.nan}, ValueError, "threshold must be finite"),
        ({"threshold": "2"}, TypeError, "threshold must be a real number, got '2'"),
        (
            {"threshold": lambda step: 2.0},
            TypeError,
            "optax.inject_hyperparams(resolve_signs)(threshold=schedule)",
        ),
        ({"decay": 0.0}, ValueError, "decay must lie in (0, 1], got 0.0"),
        ({"decay": 1.5}, ValueError, "decay must lie in (0, 1], got 1.5"),
        ({"decay": None}, TypeError, "decay must be a real number, got None"),
        ({"threshold": 10.0}, ValueError, "got threshold=10.0 with decay=0.95"),
        ({"decay": 0.4}, ValueError, "not even equal gradients resolve"),
    ],
)
def test_refuses_bad_arguments(options, error, message):
    """What was expected, and what came."""
    with pytest.raises(error, match=re.escape(message)):
        resolve_signs(**options)


def test_limit_of_threshold_and_decay_is_sharp():
    """Just below the limit, equal gradients do resolve; just above, never."""
    limit = math.sqrt(1.9 / 0.1)
    ones = jnp.ones((400, 1))
    below, _ = play(resolve_signs(limit * 0.999, 0.9), ones)
    assert np.any(np.asarray(below) != 0)
    above, _ = play(resolve_signs(jnp.array(limit * 1.001), 0.9), ones)
    assert not np.any(np.asarray(above) != 0)


def test_refuses_bad_gradients_and_states():
    """Wrong dtypes, shapes, structures and states are named."""
    tx = resolve_signs()
    state = tx.init({"w": jnp.ones(3)})
    assert isinstance(state, ResolveSignsState)
    with pytest.raises(TypeError, match="real floating dtype"):
        tx.init(jnp.ones(3, int))
    with pytest.raises(TypeError, match="real floating dtype"):
        tx.update({"w": jnp.ones(3, complex)}, state)
    with pytest.raises(ValueError, match="shape of its parameter"):
        tx.update({"w": jnp.ones(4)}, state)
    with pytest.raises(ValueError, match="structure of the parameters"):
        tx.update({"v": jnp.ones(3)}, state)
    with pytest.raises(TypeError, match="must be a ResolveSignsState"):
        tx.update({"w": jnp.ones(3)}, optax.EmptyState())
