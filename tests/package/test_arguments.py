"""Every wrong argument is refused in words that help; every right one is used."""

import decimal
import fractions
import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import (
    VARIANTS,
    assert_identical,
    each_layout,
    play,
    rprop,
)

import optax_rprop

NUMBERS = (
    "learning_rate",
    "eta_minus",
    "eta_plus",
    "min_step_size",
    "max_step_size",
)
NAMES = list(VARIANTS)


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


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    ("number", "error", "words"),
    NO_NUMBERS,
    ids=[repr(row[0])[:20] for row in NO_NUMBERS],
)
def test_no_number(name, number, error, words):
    """Each hyper-parameter is a finite real number; the message names it."""
    with refused(error, name, *words):
        optax_rprop.rprop(**{name: number})


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
def test_wrong_option(options, error, words):
    """Each is refused by the factory, with what was expected, and what came."""
    with refused(error, *words):
        optax_rprop.rprop(**options)


def test_positional_arguments_are_those_of_optax():
    """A drop-in replacement: same names, same order; all else is a keyword."""
    names = list(inspect.signature(optax.rprop).parameters)
    for factory in (
        optax_rprop.rprop,
        optax_rprop.scale_by_rprop,
        optax_rprop.minibatch_rprop,
    ):
        parameters = inspect.signature(factory).parameters.values()
        assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == names


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


@pytest.mark.parametrize(
    ("leaf", "words"), NO_LEAVES, ids=[repr(leaf)[:20] for leaf, _ in NO_LEAVES]
)
def test_leaf_of_wrong_type(leaf, words):
    """`init` and `update` take real floating numbers only, and name the leaf."""
    optimizer = optax_rprop.rprop()
    right, wrong = (
        {"layers": [np.zeros(2, "float32"), x]} for x in (np.zeros(2, "float32"), leaf)
    )
    with refused(TypeError, "params['layers'][1]", *words):
        optimizer.init(wrong)
    state = optimizer.init(right)
    with refused(TypeError, "updates['layers'][1]", *words):
        optimizer.update(wrong, state)


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
def test_gradient_of_wrong_structure_or_shape(updates, words):
    """A gradient belongs to the parameters; nothing is broadcast."""
    optimizer = optax_rprop.rprop()
    # Keys of a dictionary are sorted in messages.
    words = [word.replace("'w': *, 'b': *", "'b': *, 'w': *") for word in words]
    state = optimizer.init({"w": jnp.zeros(2), "b": jnp.zeros(3)})
    with refused(ValueError, *words):
        optimizer.update(updates, state)


@each_layout
@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda state: tuple(state), "got tuple"),
        (lambda state: state._asdict(), "got dict"),
        (lambda state: None, "got NoneType"),
        (lambda state: (state, optax.EmptyState()), "got tuple"),
    ],
    ids=["tuple", "dict", "None", "chain"],
)
def test_state_of_wrong_type(spoil, got, state_layout):
    """A state that was taken apart is named as such."""
    optimizer = optax_rprop.scale_by_rprop(eta_plus=2.0, state_layout=state_layout)
    state = optimizer.init(jnp.zeros(2))
    with refused(TypeError, "state must be", f"'{state_layout}'", got, "`init`"):
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
def test_state_of_the_other_layout(layout, other, expected, got):
    """The message says which layout was expected."""
    params = jnp.zeros(2)
    state = rprop(state_layout=other).init(params)
    with refused(TypeError, expected, f"state_layout='{layout}'", f"got {got}"):
        rprop(state_layout=layout).update(params, state)


@each_layout
def test_state_of_another_variant(state_layout):
    """Each remembers other things, even where the arrays are alike."""
    params = jnp.zeros(2)
    optimizers = {v: rprop(variant=v, state_layout=state_layout) for v in VARIANTS}
    for variant, other in itertools.permutations(VARIANTS, 2):
        state = optimizers[variant].init(params)
        with refused(ValueError, f"from variant '{other}'", f"'{variant}'", "`init`"):
            optimizers[other].update(params, state, value=1.0)


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


@pytest.mark.parametrize(
    ("value", "error", "words"), NO_VALUES, ids=[repr(row[0])[:20] for row in NO_VALUES]
)
def test_wrong_value(value, error, words):
    """irprop+ wants a loss: one real number."""
    optimizer = optax_rprop.rprop(variant="irprop+")
    params = jnp.zeros(2)
    with refused(error, *words):
        optimizer.update(params, optimizer.init(params), params, value=value)


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
def test_right_value(value):
    """Any real number will do; its dtype does not become that of the state."""
    optimizer = optax_rprop.rprop(variant="irprop+")
    params = jnp.zeros(2)
    _, state = optimizer.update(params, optimizer.init(params), value=value)
    kept = optax_rprop.get_rprop_state(state).prev_value
    assert kept == 0.5
    assert kept.dtype == jnp.float32


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


@functools.cache
def run(**options):
    """The updates of these gradients and losses, of the variant that reads both."""
    options = {"variant": "irprop+"} | options
    return jax.jit(functools.partial(play, rprop(**options)))(GRADS, VALUES).updates


@each_layout
@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_is_used(name, state_layout):
    """Another number makes other moves."""
    odd = run(state_layout=state_layout, **{name: ODD[name]})
    assert not np.array_equal(odd, run(state_layout=state_layout))


@each_layout
def test_each_option_is_used(state_layout):
    """No two variants make the same updates, nor does skipping gradients of 0."""
    runs = [run(variant=variant, state_layout=state_layout) for variant in VARIANTS]
    runs.append(run(skip_zero_grads=True, state_layout=state_layout))
    assert len({np.asarray(updates).tobytes() for updates in runs}) == len(runs)


@pytest.mark.parametrize(
    ("state_layout", "state_type", "bytes_per_parameter"),
    [
        ("split", optax_rprop.RpropState, 5),
        ("packed", optax_rprop.PackedRpropState, 4),
        ("byte", optax_rprop.ByteRpropState, 1),
    ],
)
def test_state_layout_is_used(state_layout, state_type, bytes_per_parameter):
    """The layout decides what the state is made of, and so its size."""
    state = rprop(state_layout=state_layout).init(jnp.zeros(1000))
    (found,) = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, state_type))
    assert type(found) is state_type
    arrays = [leaf for leaf in jax.tree.leaves(found) if leaf.size >= 1000]
    assert sum(leaf.nbytes for leaf in arrays) == 1000 * bytes_per_parameter


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
def test_numbers_at_their_limits_pass(options):
    """Bounds include their ends, and all kinds of real numbers are welcome."""
    optimizer = optax_rprop.rprop(**options)
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), value=0.0)
    expected = np.float32(options.get("learning_rate", 0.01))
    np.testing.assert_array_equal(np.abs(updates), expected)


@pytest.mark.parametrize("name", NUMBERS)
def test_arrays_pass(name):
    """JAX arrays, traced or not, do what the number does that they hold."""

    def run_with(number):
        optimizer = optax_rprop.rprop(**{name: number}, variant="irprop+")
        return play(optimizer, GRADS, VALUES).updates

    number = jnp.asarray(ODD[name])
    expected = run(**{name: ODD[name]})
    assert_identical(jax.jit(lambda: run_with(number))(), expected)
    assert_identical(jax.jit(run_with)(number), expected)


@pytest.mark.parametrize(
    ("options", "grads", "limit"),
    [
        ({"min_step_size": 0.0}, [1.0, -1.0] * 30, 2.0**-42),
        ({"max_step_size": 1e30}, [1.0] * 250 + [0.0], 2.0**41),
    ],
    ids=lambda argument: "-".join(argument) if isinstance(argument, dict) else "",
)
def test_arrays_out_of_the_packed_range_are_bounded(options, grads, limit):
    """What the packed layout cannot hold must not be read back as something else.

    So the step sizes stop at the limit of what it can hold.
    """
    options = {"min_step_size": 2.0**-42, "variant": "rprop-"} | options

    @jax.jit
    def run(arrays):
        optimizer = optax_rprop.rprop(**options | arrays, state_layout="packed")
        return play(optimizer, jnp.array(grads), jnp.zeros(len(grads)))

    steps = run({name: options[name] for name in options if name != "variant"})
    assert steps.step_sizes[-1] == limit
    # Up to the limit, all of one sense.
    changes = np.sign(np.diff(steps.step_sizes))
    assert {-1, 1} - set(changes)


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
