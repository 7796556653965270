"""Every wrong argument is refused in words that help; every right one is used."""

import decimal
import fractions
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS, assert_identical, for_layout, play, rprop

import optax_rprop


def scale_by_rprop(*args, **options):
    """With factors that the layout can hold."""
    return optax_rprop.scale_by_rprop(*args, **for_layout(options))


FACTORIES = (rprop, scale_by_rprop)
NUMBERS = (
    "learning_rate",
    "eta_minus",
    "eta_plus",
    "min_step_size",
    "max_step_size",
)
NAMES = list(VARIANTS)

each_factory = pytest.mark.parametrize(
    "factory", FACTORIES, ids=["rprop", "scale_by_rprop"]
)
each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def refused(error, *words):
    """Expects an error whose message contains all of the words."""
    return pytest.raises(
        error, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)
    )


NO_NUMBERS = [
    ("0.1", TypeError, ["real number", "'0.1'"]),
    (None, TypeError, ["real number", "None"]),
    (True, TypeError, ["real number", "True"]),
    (np.True_, TypeError, ["real number", "True"]),
    (np.array(True), TypeError, ["real number", "True"]),
    (1j, TypeError, ["real number", "1j"]),
    ([0.1], TypeError, ["real number", "[0.1]"]),
    (decimal.Decimal("0.1"), TypeError, ["real number", "0.1"]),
    (fractions.Fraction(1, 2), TypeError, ["real number", "Fraction(1, 2)"]),
    (np.array([0.1, 0.2]), ValueError, ["scalar", "(2,)", "optax.partition"]),
    (jnp.array([0.1, 0.2]), ValueError, ["scalar", "(2,)", "optax.partition"]),
    (jnp.array(True), TypeError, ["real number", "bool"]),
    (jnp.array(1j), TypeError, ["real number", "complex64"]),
    (float("nan"), ValueError, ["finite", "nan"]),
    (float("inf"), ValueError, ["finite", "inf"]),
    (-float("inf"), ValueError, ["finite", "-inf"]),
    (np.float32("nan"), ValueError, ["finite", "nan"]),
    (np.array(np.inf), ValueError, ["finite", "inf"]),
    (1e39, ValueError, ["finite in float32", "1e+39"]),
    (10**400, ValueError, ["finite in float32"]),
]


@each_factory
@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("number", "error", "words"),
    NO_NUMBERS,
    ids=[repr(row[0])[:20] for row in NO_NUMBERS],
)
def test_no_number(factory, name, number, error, words):
    """Each hyper-parameter is a finite real number; the message names it."""
    with refused(error, name, *words):
        factory(**{name: number})


@each_factory
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"eta_minus": 0.0}, ValueError, ["eta_minus", "(0, 1)", "got 0.0"]),
        ({"eta_minus": 1.0}, ValueError, ["eta_minus", "(0, 1)", "got 1.0"]),
        ({"eta_minus": 1.5}, ValueError, ["eta_minus", "(0, 1)", "got 1.5"]),
        ({"eta_minus": -0.5}, ValueError, ["eta_minus", "(0, 1)", "got -0.5"]),
        ({"eta_plus": 1}, ValueError, ["eta_plus", "greater than 1", "got 1"]),
        ({"eta_plus": 0.5}, ValueError, ["eta_plus", "greater than 1", "got 0.5"]),
        (
            {"min_step_size": -1e-9},
            ValueError,
            ["min_step_size", "not be negative", "got -1e-09"],
        ),
        (
            {"learning_rate": 0.0, "min_step_size": 0.0},
            ValueError,
            ["learning_rate", "positive", "got 0.0"],
        ),
        ({"learning_rate": -0.1}, ValueError, ["learning_rate", "positive", "-0.1"]),
        (
            {"learning_rate": 1e-46, "min_step_size": 0.0},
            ValueError,
            ["learning_rate", "positive in float32", "1e-46"],
        ),
        (
            {"min_step_size": 2.0, "max_step_size": 1.0},
            ValueError,
            ["min_step_size", "not exceed max_step_size", "2.0 > 1.0"],
        ),
        (
            {"learning_rate": 1e-7},
            ValueError,
            ["learning_rate", "less than min_step_size=1e-06", "1e-07", "Raise it"],
        ),
        (
            {"learning_rate": 51.0},
            ValueError,
            ["learning_rate", "exceed max_step_size=50.0", "51.0", "Lower it"],
        ),
        (
            {"learning_rate": lambda step: 0.1},
            TypeError,
            ["learning_rate", "read only once", "optax.scale_by_schedule"],
        ),
        (
            {"max_step_size": optax.constant_schedule(1.0)},
            TypeError,
            ["max_step_size", "inject_hyperparams(rprop)(max_step_size=schedule)"],
        ),
        ({"variant": "rprop"}, ValueError, ["variant", *NAMES, "got 'rprop'"]),
        ({"variant": "IRPROP-"}, ValueError, ["variant", *NAMES, "got 'IRPROP-'"]),
        ({"variant": None}, ValueError, ["variant", *NAMES, "got None"]),
        ({"variant": ["rprop-"]}, ValueError, ["variant", *NAMES, "got ['rprop-']"]),
        (
            {"state_layout": "dense"},
            ValueError,
            ["state_layout", "'split', 'packed', 'byte'", "got 'dense'"],
        ),
        ({"state_layout": {}}, ValueError, ["state_layout", "got {}"]),
        ({"skip_zero_grads": 1}, TypeError, ["skip_zero_grads", "True or False", "1"]),
        (
            {"skip_zero_grads": None},
            TypeError,
            ["skip_zero_grads", "True or False", "None"],
        ),
        (
            {"min_step_size": 1e-13, "state_layout": "packed"},
            ValueError,
            ["min_step_size", "at least 2**-42", "1e-13", 'state_layout="split"'],
        ),
        (
            {"min_step_size": 0, "state_layout": "packed"},
            ValueError,
            ["min_step_size", "at least 2**-42", "got 0", 'state_layout="split"'],
        ),
        (
            {"max_step_size": 2**42, "state_layout": "packed"},
            ValueError,
            ["max_step_size", "less than 2**42", "439804", 'state_layout="split"'],
        ),
        (
            # In float32 this is 2**42.
            {"max_step_size": 2**42 - 1, "state_layout": "packed"},
            ValueError,
            ["max_step_size", "less than 2**42", "439804", 'state_layout="split"'],
        ),
        (
            {"eta_plus": 1.2, "state_layout": "byte"},
            ValueError,
            ["powers of one base", "0.5 and 1.2", "eta_plus=0.5**-(1/3), about 1.26"],
        ),
        (
            # With fewer levels, the nearest that fits is farther off.
            {"eta_plus": 1.2, "variant": "irprop+", "state_layout": "byte"},
            ValueError,
            ["powers of one base", "eta_plus=0.5**-(1/2), about 1.414"],
        ),
        (
            {"eta_plus": jnp.asarray(2.0), "state_layout": "byte"},
            TypeError,
            ["eta_plus", "Python numbers", "static_args"],
        ),
        (
            {"eta_plus": 1.26, "state_layout": "byte"},
            ValueError,
            ["powers of one base", "0.5 and 1.26", "0.5**-(1/3), about 1.26"],
        ),
    ],
    ids=lambda argument: "-".join(argument) if isinstance(argument, dict) else "",
)
def test_wrong_option(factory, options, error, words):
    """Each is refused by the factory, with what was expected, and what came."""
    with refused(error, *words):
        factory(**options)


@each_factory
def test_options_after_the_numbers_are_keywords(factory):
    """Positional arguments end where those of `optax.rprop` do."""
    with refused(TypeError, "positional"):
        factory(0.01, 0.5, 1.2, 1e-6, 50.0, "rprop-")


NO_LEAVES = [
    (np.array([1, 2]), ["real floating dtype", "int", "optax.partition"]),
    (jnp.array([True]), ["real floating dtype", "bool", "optax.partition"]),
    (jnp.array([1j]), ["real floating dtype", "complex64", "split_real_and_imag"]),
    (3, ["real floating dtype", "int", "optax.set_to_zero"]),
    (1j, ["real floating dtype", "complex", "split_real_and_imaginary"]),
    (jax.random.key(0), ["real floating dtype", "key<fry>"]),
    ("float32", ["real floating dtype", "'float32'"]),
    ("weight", ["real floating dtype", "'weight'"]),
    (jnp.float32, ["real floating dtype", "float32"]),
    (jnp.tanh, ["real floating dtype", "tanh"]),
    (np.array(["weight"]), ["real floating dtype", "<U6"]),
    (np.array([None]), ["real floating dtype", "object"]),
]
each_wrong_leaf = pytest.mark.parametrize(
    ("leaf", "words"), NO_LEAVES, ids=[repr(leaf)[:20] for leaf, _ in NO_LEAVES]
)


@each_factory
@each_layout
@each_wrong_leaf
def test_parameter_of_wrong_type(factory, leaf, words, state_layout):
    """`init` takes real floating numbers only, and names the leaf."""
    optimizer = factory(state_layout=state_layout)
    with refused(TypeError, "params['layers'][1]", *words):
        optimizer.init({"layers": [jnp.zeros(2), leaf]})


@each_factory
@each_layout
@each_wrong_leaf
def test_gradient_of_wrong_type(factory, leaf, words, state_layout):
    """`update` likewise."""
    optimizer = factory(state_layout=state_layout)
    state = optimizer.init({"layers": [jnp.zeros(2), jnp.zeros(2)]})
    with refused(TypeError, "updates['layers'][1]", *words):
        optimizer.update({"layers": [jnp.zeros(2), leaf]}, state)


@each_factory
@each_layout
@pytest.mark.parametrize(
    ("updates", "words"),
    [
        ({"w": jnp.ones(2)}, ["structure", "'w': *, 'b': *", "{'w': *}"]),
        ({"w": jnp.ones(2), "b": None}, ["structure", "'b': None"]),
        ((jnp.ones(2), jnp.ones(3)), ["structure", "(*, *)"]),
        (None, ["structure", "None"]),
        (
            {"w": jnp.ones(2), "b": jnp.ones(1)},
            ["updates['b']", "shape of its parameter", "(3,)", "got (1,)"],
        ),
        (
            {"w": 1.0, "b": jnp.ones(3)},
            ["updates['w']", "shape of its parameter", "(2,)", "got ()"],
        ),
        (
            {"w": jnp.ones((2, 1)), "b": jnp.ones(3)},
            ["updates['w']", "shape of its parameter", "(2,)", "got (2, 1)"],
        ),
    ],
    ids=["missing", "None", "tuple", "nothing", "broadcasts", "scalar", "column"],
)
def test_gradient_of_wrong_structure_or_shape(factory, updates, words, state_layout):
    """A gradient belongs to the parameters; nothing is broadcast."""
    optimizer = factory(state_layout=state_layout)
    # Keys of a dictionary are sorted in messages.
    words = [word.replace("'w': *, 'b': *", "'b': *, 'w': *") for word in words]
    state = optimizer.init({"w": jnp.zeros(2), "b": jnp.zeros(3)})
    with refused(ValueError, *words):
        optimizer.update(updates, state)


@each_layout
@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (lambda state: tuple(state), TypeError, ["state must be", "got tuple"]),
        (lambda state: state._asdict(), TypeError, ["state must be", "got dict"]),
        (lambda state: None, TypeError, ["state must be", "got NoneType"]),
        (
            lambda state: (state, optax.EmptyState()),
            TypeError,
            ["state must be", "got tuple", "`init`"],
        ),
    ],
    ids=["tuple", "dict", "None", "chain"],
)
def test_state_of_wrong_type(spoil, error, words, state_layout):
    """A state that was taken apart is named as such."""
    optimizer = scale_by_rprop(state_layout=state_layout)
    state = optimizer.init(jnp.zeros(2))
    with refused(error, f"state_layout='{state_layout}'", *words):
        optimizer.update(jnp.ones(2), spoil(state))


@pytest.mark.parametrize(
    ("layout", "other", "expected", "got"),
    [
        ("split", "packed", "RpropState", "PackedRpropState"),
        ("packed", "split", "PackedRpropState", "RpropState"),
        ("byte", "packed", "ByteRpropState", "PackedRpropState"),
        ("split", "byte", "RpropState", "ByteRpropState"),
    ],
)
@each_factory
def test_state_of_the_other_layout(factory, layout, other, expected, got):
    """The message says which layout was expected."""
    params = jnp.zeros(2)
    state = factory(state_layout=other).init(params)
    with refused(TypeError, expected, f"state_layout='{layout}'", f"got {got}"):
        factory(state_layout=layout).update(params, state)


@each_layout
@each_factory
@each_variant
def test_state_of_another_variant(variant, factory, state_layout):
    """Each remembers other things, even where the arrays are alike."""
    params = jnp.zeros(2)
    state = factory(variant=variant, state_layout=state_layout).init(params)
    for other in set(VARIANTS) - {variant}:
        optimizer = factory(variant=other, state_layout=state_layout)
        with refused(ValueError, f"from variant '{other}'", f"'{variant}'", "`init`"):
            optimizer.update(params, state, value=1.0)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda state: state._replace(prev_grad_signs=[jnp.zeros(2, jnp.int8)] * 2),
            ["structure"],
        ),
        (
            lambda state: state._replace(prev_grad_signs=jnp.zeros(1, jnp.int8)),
            ["shape", "(1,)"],
        ),
        (lambda state: state._replace(step_sizes=jnp.ones(1)), ["shape", "(1,)"]),
    ],
    ids=["structure", "signs", "step sizes"],
)
def test_state_of_wrong_shape(spoil, words):
    """Serializers restore wrong shapes silently: none may be broadcast."""
    optimizer = optax_rprop.scale_by_rprop()
    state = spoil(optimizer.init(jnp.zeros(2)))
    with refused(ValueError, *words):
        optimizer.update(jnp.ones(2), state)


NO_VALUES = [
    (None, ValueError, ["irprop+", "needs `value`", "value=loss"]),
    (jnp.ones(1), ValueError, ["value", "scalar", "(1,)", "jnp.mean"]),
    (np.ones((2, 3)), ValueError, ["value", "scalar", "(2, 3)", "jnp.mean"]),
    (1, TypeError, ["value", "real floating", "int32"]),
    (True, TypeError, ["value", "real floating", "bool"]),
    (1j, TypeError, ["value", "real floating", "complex64"]),
    (jnp.array(1), TypeError, ["value", "real floating", "int32"]),
    ("1.0", TypeError, ["value", "real floating", "'1.0'"]),
    ("float32", TypeError, ["value", "real floating", "'float32'"]),
    (jnp.sum, TypeError, ["value", "real floating", "sum"]),
    ({"loss": 1.0}, TypeError, ["value", "real floating", "loss"]),
]


@each_factory
@each_layout
@pytest.mark.parametrize(
    ("value", "error", "words"), NO_VALUES, ids=[repr(row[0])[:20] for row in NO_VALUES]
)
def test_wrong_value(factory, value, error, words, state_layout):
    """irprop+ wants a loss: one real number."""
    optimizer = factory(variant="irprop+", state_layout=state_layout)
    params = jnp.zeros(2)
    with refused(error, *words):
        optimizer.update(params, optimizer.init(params), params, value=value)


@each_layout
@pytest.mark.parametrize(
    "value",
    [
        0.5,
        np.float64(0.5),
        np.float16(0.5),
        np.array(0.5),
        jnp.array(0.5),
        jnp.array(0.5, jnp.bfloat16),
        jnp.array(0.5, jnp.float16),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_right_value(value, state_layout):
    """Any real number will do; its dtype does not become that of the state."""
    optimizer = rprop(variant="irprop+", state_layout=state_layout)
    params = jnp.zeros(2)
    _, state = optimizer.update(params, optimizer.init(params), value=value)
    kept = optax_rprop.get_rprop_state(state).prev_value
    assert kept == 0.5
    assert kept.dtype == jnp.float32


@each_variant
def test_extra_arguments_are_ignored(variant):
    """Other transformations in a chain may want arguments that Rprop does not."""
    optimizer = optax_rprop.rprop(variant=variant)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    expected = optimizer.update(jnp.ones(2), state, params, value=1.0)
    actual = optimizer.update(
        jnp.ones(2), state, params, value=1.0, grad=3, value_fn=None, key="any"
    )
    assert_identical(actual, expected)


# Signs change, stay and are 0, and the loss rises and falls.
GRADS = jnp.array([1.0, 1.0, 1.0, -1.0, 1.0, 0.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
VALUES = jnp.array([5.0, 4.0, 3.0, 4.0, 2.0, 1.0, 0.0, 2.0, 1.0, 0.0, -1.0, -2.0])
ODD = {
    "learning_rate": 0.3,
    "eta_minus": 0.25,
    "eta_plus": 4.0,
    "min_step_size": 0.008,
    "max_step_size": 0.012,
}


@each_factory
@each_layout
@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_is_used(factory, name, state_layout):
    """Another number makes other moves."""
    usual = play(factory(state_layout=state_layout), GRADS, VALUES)
    optimizer = factory(state_layout=state_layout, **{name: ODD[name]})
    odd = play(optimizer, GRADS, VALUES)
    assert not np.array_equal(odd.updates, usual.updates)


@each_factory
@each_layout
def test_skip_zero_grads_is_used(factory, state_layout):
    """After a gradient of 0 the step size grows, or does not."""
    usual, skipping = (
        play(factory(skip_zero_grads=skip, state_layout=state_layout), GRADS, VALUES)
        for skip in (False, True)
    )
    assert not np.array_equal(usual.updates, skipping.updates)


@each_factory
@each_layout
def test_variant_is_used(factory, state_layout):
    """No two variants make the same moves."""
    runs = [
        play(factory(variant=variant, state_layout=state_layout), GRADS, VALUES)
        for variant in VARIANTS
    ]
    assert len({np.asarray(run.updates).tobytes() for run in runs}) == len(VARIANTS)


@each_factory
@each_layout
def test_value_is_used(factory, state_layout):
    """irprop+ makes other moves where the loss rises."""
    optimizer = factory(variant="irprop+", state_layout=state_layout)
    falling, rising = (play(optimizer, GRADS, sign * VALUES) for sign in (1, -1))
    assert not np.array_equal(falling.updates, rising.updates)


@each_factory
@pytest.mark.parametrize(
    ("state_layout", "state_type", "bytes_per_parameter"),
    [
        ("split", optax_rprop.RpropState, 5),
        ("packed", optax_rprop.PackedRpropState, 4),
        ("byte", optax_rprop.ByteRpropState, 1),
    ],
)
def test_state_layout_is_used(factory, state_layout, state_type, bytes_per_parameter):
    """The layout decides what the state is made of, and so its size."""
    state = factory(state_layout=state_layout).init(jnp.zeros(1000))
    (found,) = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, state_type))
    assert type(found) is state_type
    arrays = [leaf for leaf in jax.tree.leaves(found) if leaf.size >= 1000]
    assert sum(leaf.nbytes for leaf in arrays) == 1000 * bytes_per_parameter


@each_factory
@pytest.mark.parametrize(
    "options",
    [
        {"min_step_size": 0},
        {"min_step_size": 0.01, "max_step_size": 0.01},
        {"learning_rate": 1e-6},
        {"learning_rate": 50},
        {"learning_rate": np.float16(0.5), "max_step_size": np.array(1)},
        {"eta_minus": np.float64(0.9), "eta_plus": np.int32(2)},
        {"min_step_size": 2.0**-42, "state_layout": "packed"},
        {"max_step_size": 2.0**41, "state_layout": "packed"},
        {"eta_plus": 2 ** (1 / 3), "state_layout": "byte"},
        {"eta_plus": 2**0.5, "variant": "irprop+", "state_layout": "byte"},
        {"eta_minus": 0.75, "eta_plus": 0.75**-2, "state_layout": "byte"},
        {"max_step_size": float(np.finfo(np.float32).max)},
        {"learning_rate": float(np.finfo(np.float32).tiny), "min_step_size": 0.0},
    ],
    ids=str,
)
def test_numbers_at_their_limits_pass(factory, options):
    """Bounds include their ends, and all kinds of real numbers are welcome."""
    optimizer = factory(**options)
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), value=0.0)
    expected = np.float32(options.get("learning_rate", 0.01))
    np.testing.assert_array_equal(np.abs(updates), expected)


@pytest.mark.parametrize(
    ("state_layout", "name"),
    [
        (state_layout, name)
        for state_layout in LAYOUTS
        for name in NUMBERS
        # A byte needs to know its factors.
        if not (state_layout == "byte" and name.startswith("eta"))
    ],
)
def test_arrays_pass(name, state_layout):
    """JAX arrays, traced or not, do what the number does that they hold."""

    def run(number):
        optimizer = rprop(**{name: number}, state_layout=state_layout)
        return play(optimizer, GRADS, VALUES)

    number = jnp.asarray(ODD[name])
    expected = run(ODD[name])
    assert_identical(run(number), expected)
    assert_identical(jax.jit(run)(number), expected)


@each_factory
@pytest.mark.parametrize("name", NUMBERS)
def test_arrays_out_of_range_pass(factory, name):
    """A schedule may go where a start may not: arrays are not checked for range."""
    optimizer = functools.partial(factory, **{name: jnp.asarray(-1.0)})()
    optimizer.init(jnp.zeros(2))


@each_factory
@pytest.mark.parametrize(
    ("options", "grads", "limit"),
    [
        ({"min_step_size": 0.0}, [1.0, -1.0] * 30, 2.0**-42),
        ({"max_step_size": 1e30}, [1.0] * 250 + [0.0], 2.0**41),
    ],
    ids=lambda argument: "-".join(argument) if isinstance(argument, dict) else "",
)
def test_arrays_out_of_the_packed_range_are_bounded(factory, options, grads, limit):
    """What the packed layout cannot hold must not be read back as something else.

    So the step sizes stop at the limit of what it can hold.
    """
    arrays = {name: jnp.asarray(number) for name, number in options.items()}
    optimizer = factory(
        **{"min_step_size": 2.0**-42} | arrays, variant="rprop-", state_layout="packed"
    )
    steps = play(optimizer, jnp.array(grads), jnp.zeros(len(grads)))
    assert steps.step_sizes[-1] == limit
    # Up to the limit, all of one sense.
    changes = np.sign(np.diff(steps.step_sizes))
    assert {-1, 1} - set(changes)


@each_layout
def test_vmap_over_hyperparams(state_layout):
    """Many settings at once, each as alone."""
    rates = [0.01, 0.1, 0.7]

    def run(learning_rate):
        optimizer = rprop(learning_rate, state_layout=state_layout)
        return play(optimizer, GRADS, VALUES)

    together = jax.vmap(run)(jnp.array(rates))
    alone = [run(rate) for rate in rates]
    assert_identical(together, jax.tree.map(lambda *runs: np.stack(runs), *alone))


@pytest.mark.parametrize(
    ("options", "lower", "upper"),
    [
        ({"min_step_size": 1e-12}, 50.0 * 2.0**-28, 50.0),
        ({"min_step_size": 0.0}, 50.0 * 2.0**-28, 50.0),
        ({"min_step_size": 0.0, "max_step_size": 1e8}, 0.01, 0.01 * 2.0**28),
        ({"variant": "irprop+"}, 50.0 * 2.0 ** (-50 / 3), 50.0),
    ],
)
def test_bounds_that_the_byte_can_hold_are_named(options, lower, upper):
    """Those in the message are taken, and are the widest on their side."""
    settings = {"eta_plus": 2 ** (1 / 3), "state_layout": "byte"} | options
    with pytest.raises(ValueError, match="levels apart") as caught:
        optax_rprop.rprop(**settings)
    found = re.findall(r"(m.._step_size)=([-+.e0-9]*\d)", str(caught.value))
    bounds = {name: float(number) for name, number in found}
    assert bounds["min_step_size"] == pytest.approx(lower, rel=1e-5)
    assert bounds["max_step_size"] == pytest.approx(upper, rel=1e-5)
    optax_rprop.rprop(**settings | bounds)


@pytest.mark.parametrize("variant", ["irprop-", "irprop+"])
def test_factors_that_the_byte_can_hold_are_named(variant):
    """Those in the message are taken."""
    for shrink, grow in [(0.5, 1.2), (0.75, 1.2), (0.3, 1.05), (0.8, 3.0)]:
        options = {"variant": variant, "state_layout": "byte", "min_step_size": 1e-3}
        with pytest.raises(ValueError, match="powers of one base") as caught:
            optax_rprop.rprop(0.1, shrink, grow, max_step_size=1.0, **options)
        (expression,) = re.findall(r"eta_plus=(\S+),", str(caught.value))
        base, numerator, denominator = re.findall(r"[\d.]+", expression + "/1")[:3]
        named = float(base) ** (-int(numerator) / int(denominator))
        optax_rprop.rprop(0.1, shrink, named, max_step_size=1.0, **options)
