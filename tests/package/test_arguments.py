"""Every wrong argument raises a helpful error; every valid one is used."""

import decimal
import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS, play, rprop

import optax_rprop
from optax_rprop import in_eigenbasis

NUMBERS = ("learning_rate", "eta_minus", "eta_plus", "min_step_size", "max_step_size")
NAMES = list(VARIANTS)


def refused(error, *words):
    """Expects an error whose message contains all of the words."""
    return pytest.raises(
        error, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)
    )


def rows(error, *table):
    """Parameter sets: the wrong argument, the error, and words of its message."""
    return [
        pytest.param(wrong, error, words, id=re.sub(r" at 0x.*", "", repr(wrong))[:30])
        for wrong, *words in table
    ]


@pytest.mark.parametrize(
    ("number", "error", "words"),
    rows(
        TypeError,
        ("0.1", "real number", "'0.1'"),
        (None, "real number", "None"),
        (True, "real number", "True"),
        (np.array(True), "real number", "True"),
        (1j, "real number", "1j"),
        (decimal.Decimal("0.1"), "real number", "0.1"),
        (jnp.array(True), "real number", "bool"),
        (jnp.array(1j), "real number", "complex64"),
    )
    + rows(
        ValueError,
        (np.array([0.1, 0.2]), "scalar", "(2,)", "optax.partition"),
        (jnp.array([0.1, 0.2]), "scalar", "(2,)", "optax.partition"),
        (float("nan"), "finite", "nan"),
        (float("inf"), "finite", "inf"),
        (np.array(np.inf), "finite", "inf"),
        (1e39, "finite in float32", "1e+39"),
        (10**400, "finite in float32"),
    ),
)
def test_no_number(number, error, words):
    """Each hyper-parameter is a finite real number; the message names it."""
    # An array may hold the initial step sizes of each parameter.
    for name in NUMBERS[1:] if np.ndim(number) else NUMBERS:
        with refused(error, name, *words):
            optax_rprop.rprop(**{name: number})


PACKED, BYTE = {"state_layout": "packed"}, {"state_layout": "byte"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    rows(
        TypeError,
        *(
            (
                {"learning_rate": schedule},
                "name the argument of the callable `params`",
                "learning_rate(params=params)",
                "read only once",
                "schedule max_step_size",
            )
            for schedule in (
                lambda step: 0.1,
                lambda p: p,
                optax.constant_schedule(0.1),
                lambda params, step: params,
                jax.tree_util.Partial(lambda step: 0.1),
                min,
            )
        ),
        (
            {"max_step_size": optax.constant_schedule(1.0)},
            "inject_hyperparams(function)(max_step_size=schedule)",
        ),
        ({"skip_zero_grads": 1}, "True or False", "1"),
        ({"eta_plus": jnp.asarray(2.0)} | BYTE, "Python numbers", "static_args"),
    )
    + rows(
        ValueError,
        ({"eta_minus": 0.0}, "(0, 1)", "got 0.0"),
        ({"eta_minus": 1.0}, "(0, 1)", "got 1.0"),
        ({"min_step_size": -1e-9}, "not be negative", "got -1e-09"),
        ({"learning_rate": 0.0, "min_step_size": 0.0}, "positive", "got 0.0"),
        (
            {"learning_rate": 1e-46, "min_step_size": 0.0},
            "at least 1.18e-38, the smallest normal float32",
            "1e-46",
        ),
        (
            {"min_step_size": 2.0, "max_step_size": 1.0},
            "not exceed max_step_size",
            "2.0 > 1.0",
        ),
        ({"learning_rate": 1e-7}, "less than min_step_size=1e-06", "1e-07", "Raise it"),
        ({"learning_rate": 51.0}, "exceed max_step_size=50.0", "51.0", "Lower it"),
        ({"variant": "rprop"}, *NAMES, "got 'rprop'"),
        ({"state_layout": "dense"}, "'split', 'packed', 'byte'", "got 'dense'"),
        ({"state_layout": {}}, "got {}"),
        ({"min_step_size": 1e-13} | PACKED, "at least 2**-42", "1e-13", '"split"'),
        ({"max_step_size": 2**42} | PACKED, "less than 2**42", "439804", '"split"'),
        ({"eta_plus": 1.2} | BYTE, "0.5 and 1.2", "eta_plus=0.5**-(1/3)", "about 1.26"),
        # With fewer levels, the closest valid one is farther away.
        (
            {"eta_plus": 1.2, "variant": "irprop+"} | BYTE,
            "eta_plus=0.5**-(1/2)",
            "about 1.414",
        ),
    ),
)
def test_wrong_option(options, error, words):
    """The message names the option, the expected values and the actual one."""
    with refused(error, next(iter(options)), *words):
        optax_rprop.rprop(**options)


INFIX = "or a prefix of it, got "


@pytest.mark.parametrize(
    ("tree", "error", "words"),
    rows(
        TypeError,
        ({"w": True, "b": [0.1]}, "learning_rate['w']", "real number", "True"),
        ({"w": 0.1, "b": ["0.1"]}, "learning_rate['b'][0]", "'0.1'"),
        ({"w": 0.1, "b": 1j}, "learning_rate['b']", "1j"),
        ({"w": np.ones((2, 3), bool), "b": 0.1}, "learning_rate['w']", "True"),
        ({"w": 0.1, "b": [lambda params: 0.1]}, "learning_rate['b'][0]", "lambda"),
        ({"w": jax.ShapeDtypeStruct((), "float32"), "b": 0.1}, "['w']", "Shape"),
    )
    + rows(
        ValueError,
        ((0.5, 1.2), INFIX + "PyTreeDef((*, *))", "PyTorch", "eta_plus"),
        ({"w": 0.1}, "{'b': [*], 'w': *}", INFIX, "rprop().init(params)"),
        ({"w": 0.1, "b": None}, INFIX, "'b': None"),
        ({"w": {"w": 0.1}, "b": 0.1}, INFIX),
        ({}, INFIX),
        ({"w": np.ones(2), "b": 0.1}, "['w']", "params['w'], (2, 3)", "got (2,)"),
        # A prefix has to fit all that it holds for.
        (np.ones(3), "learning_rate must", "params['b'][0], ()"),
        ({"w": 0.1, "b": [np.ones(1)]}, "learning_rate['b'][0]", "got (1,)"),
        (
            {"w": np.array([1, 1, -0.5]), "b": 0.1},
            "learning_rate['w'] must be positive",
            "-0.5",
            "jnp.maximum",
            "rprop().init(params)",
        ),
        ({"w": jnp.array([1.0, 0.0, 1.0]), "b": 0.1}, "positive", "got 0.0"),
        ({"w": 0.1, "b": [np.nan]}, "learning_rate['b'][0] must be finite", "nan"),
        ({"w": jnp.full((2, 1), np.inf), "b": 0.1}, "finite", "inf"),
        ({"w": jnp.array(np.nan), "b": 0.1}, "learning_rate['w']", "finite", "nan"),
        ({"w": 1e39, "b": 0.1}, "finite in float32"),
        ({"w": np.float64([1, 1, 2e-7]), "b": 1}, "min_step_size=1e-06", "2e-07"),
        ({"w": jnp.array([1, 51, 1]), "b": 1}, "['w']", "max_step_size=50.0", "51.0"),
    ),
)
def test_wrong_initial_step_sizes_of_parameters(tree, error, words):
    """Refused by `init`, also where it is traced; the message names the leaf."""
    params = {"w": jnp.ones((2, 3)), "b": [jnp.ones(())]}
    for learning_rate in (tree, lambda params: tree):
        optimizer = optax_rprop.rprop(learning_rate)
        for init in (optimizer.init, functools.partial(jax.eval_shape, optimizer.init)):
            with refused(error, "learning_rate", *words):
                init(params)


FACTORIES = (
    optax_rprop.rprop,
    optax_rprop.scale_by_rprop,
    optax_rprop.minibatch_rprop,
    optax_rprop.resolve_signs,
    optax_rprop.in_eigenbasis,
)
THEIRS = {
    "lr": ["learning_rate"],
    "etas": ["eta_minus", "eta_plus"],
    "step_sizes": ["min_step_size", "max_step_size"],
}


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_names_of_arguments(factory):
    """Positional ones are those of Optax; for PyTorch's, the error names ours."""
    parameters = inspect.signature(factory).parameters.values()
    names = list(inspect.signature(optax.rprop).parameters)
    drop_in = "rprop" in factory.__name__
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == (names if drop_in else positional[:1])
    assert {p.kind for p in parameters} == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert set(factory.__annotations__) == {*(p.name for p in parameters), "return"}
    with refused(TypeError, "unexpected keyword argument 'foreach'"):
        factory(foreach=True)
    for theirs, ours in THEIRS.items() if drop_in else ():
        for others in ({}, {"learning_rate": 0.1}, {"state_layout": "packed"}):
            with refused(TypeError, "PyTorch", theirs, *ours):
                factory(**{theirs: 0.1}, **others)
    if drop_in:
        with refused(TypeError, *THEIRS, *itertools.chain(*THEIRS.values())):
            factory(lr=0.1, etas=(0.5, 1.2), step_sizes=(1e-6, 50))


@pytest.mark.parametrize(
    ("leaf", "error", "words"),
    rows(
        TypeError,
        (np.array([1, 2]), "int", "Convert it to floating", "optax.partition"),
        (jnp.array([True]), "bool", "optax.partition"),
        (jnp.array([1j]), "complex64", "split_real_and_imag"),
        (3, "int", "optax.set_to_zero"),
        (jax.random.key(0), "key<fry>"),
        ("weight", "'weight'"),
        (np.array(["weight"]), "<U6"),
    ),
)
def test_leaf_of_wrong_type(leaf, error, words):
    """`init` and `update` accept only real floating numbers; errors name the leaf."""
    optimizer = optax_rprop.rprop()
    with refused(error, "params['layers'][1]", "real floating dtype", *words):
        optimizer.init({"layers": [jnp.zeros(2), leaf]})
    state = optimizer.init({"layers": [jnp.zeros(2), jnp.zeros(2)]})
    with refused(error, "updates['layers'][1]", "real floating dtype", *words):
        optimizer.update({"layers": [jnp.zeros(2), leaf]}, state)


@pytest.mark.parametrize(
    ("updates", "error", "words"),
    rows(
        ValueError,
        ({"w": jnp.ones(2)}, "structure", "'b': *, 'w': *", "{'w': *}"),
        ({"w": jnp.ones(2), "b": None}, "structure", "'b': None"),
        (None, "structure", "None"),
        ({"w": jnp.ones(2), "b": jnp.ones(1)}, "updates['b']", "(3,)", "got (1,)"),
    ),
)
def test_gradient_of_wrong_structure_or_shape(updates, error, words):
    """A gradient must match the parameters; nothing is broadcast."""
    optimizer = optax_rprop.rprop()
    state = optimizer.init({"w": jnp.zeros(2), "b": jnp.zeros(3)})
    with refused(error, *words):
        optimizer.update(updates, state)


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (tuple, "got tuple"),
        (lambda state: state._asdict(), "got dict"),
        (lambda state: None, "got NoneType"),
        (lambda state: (state, optax.EmptyState()), "got tuple"),
    ],
    ids=["tuple", "dict", "None", "chain"],
)
def test_state_of_wrong_type(spoil, got):
    """The message says that this is not a whole state."""
    optimizer = optax_rprop.scale_by_rprop()
    state = optimizer.init(jnp.zeros(2))
    with refused(TypeError, "state must be", "'split'", got, "from `init`"):
        optimizer.update(jnp.ones(2), spoil(state))


def test_state_of_the_other_layout():
    """The message says which layout was expected."""
    params = jnp.zeros(2)
    optimizers = {
        name: optax_rprop.scale_by_rprop(eta_plus=2.0, state_layout=name)
        for name in LAYOUTS
    }
    states = {name: jax.eval_shape(tx.init, params) for name, tx in optimizers.items()}
    for layout, other in itertools.permutations(LAYOUTS, 2):
        expected, got = (type(states[name]).__name__ for name in (layout, other))
        with refused(TypeError, expected, f"state_layout='{layout}'", f"got {got}"):
            optimizers[layout].update(params, states[other])


def test_state_of_another_variant():
    """The variants store different things, even if the arrays are alike."""
    params = jnp.zeros(2)
    optimizers = {variant: optax_rprop.rprop(variant=variant) for variant in VARIANTS}
    states = {
        variant: jax.eval_shape(tx.init, params) for variant, tx in optimizers.items()
    }
    for variant, other in itertools.permutations(VARIANTS, 2):
        with refused(ValueError, f"to variant '{variant}'", f"is '{other}'", "`init`"):
            optimizers[other].update(params, states[variant], value=1.0)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    rows(
        ValueError,
        ({"prev_grad_signs": [jnp.zeros(2, jnp.int8)] * 2}, "structure"),
        ({"prev_grad_signs": jnp.zeros(1, jnp.int8)}, "shape", "(1,)"),
        ({"step_sizes": jnp.ones(1)}, "shape", "(1,)"),
    ),
)
def test_state_of_wrong_shape(fields, error, words):
    """Serializers restore wrong shapes silently; these must not be broadcast."""
    optimizer = optax_rprop.scale_by_rprop()
    state = optimizer.init(jnp.zeros(2))._replace(**fields)
    with refused(error, *words):
        optimizer.update(jnp.ones(2), state)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    rows(
        TypeError,
        (1, "real floating", "int32"),
        (True, "real floating", "bool"),
        ("1.0", "real floating", "'1.0'"),
        ({"loss": 1.0}, "real floating", "loss"),
    )
    + rows(
        ValueError,
        (None, "irprop+", "needs `value`", "value=loss"),
        (jnp.ones(1), "scalar", "(1,)", "jnp.mean"),
        (np.ones((2, 3)), "scalar", "(2, 3)", "jnp.mean"),
    ),
)
def test_wrong_value(value, error, words):
    """irprop+ needs a loss, one real number."""
    optimizer = optax_rprop.rprop(variant="irprop+")
    params = jnp.zeros(2)
    with refused(error, "value", *words):
        optimizer.update(params, optimizer.init(params), params, value=value)


# ----------------------------------------------------------------------------
# In an eigenbasis


SCALARS = {"a": jnp.zeros(()), "b": jnp.zeros(3), "c": None}
VECTORS = "are scalars or vectors. Use full_matrix=True."


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (SCALARS, f"all 2 parameters {VECTORS}"),
        # A leaf without coordinates does not count.
        (
            [1.0, np.zeros(2, "float32"), jnp.zeros((0, 4))],
            f"all 2 parameters {VECTORS}",
        ),
        (jnp.zeros(5), "the only parameter is a scalar or vector. Use full_matrix"),
        (jnp.zeros((4, 5)), "max_size"),
        ({"a": jnp.zeros((1, 5)), "b": jnp.zeros(())}, "max_size"),
    ],
)
def test_nothing_to_rotate(params, message):
    """The wrapper would do nothing; the message has the remedy."""
    message = (
        re.escape("in_eigenbasis has nothing to rotate: ") + ".*" + re.escape(message)
    )
    init = in_eigenbasis(rprop(), max_size=3).init
    for over in (lambda init: init, jax.jit):
        with pytest.raises(ValueError, match=message):
            over(init)(params)
    jax.eval_shape(in_eigenbasis(rprop(), full_matrix=True).init, params)


@pytest.mark.parametrize("shape", [(2, 2), (0, 2)])
def test_a_value_that_is_no_float_is_left_to_rprop(shape):
    """It is ignored, unless the variant reads it and refuses it."""
    params = jnp.ones(shape)
    ignoring, reading = in_eigenbasis(rprop()), in_eigenbasis(rprop(variant="irprop+"))
    states = [jax.eval_shape(tx.init, params) for tx in (ignoring, reading)]
    for value in (1, np.int32(1), jnp.array(1), True, None, "1"):
        ignore, read = (
            functools.partial(tx.update, value=value) for tx in (ignoring, reading)
        )
        jax.eval_shape(ignore, params, states[0])
        with pytest.raises((TypeError, ValueError), match="value"):
            jax.eval_shape(read, params, states[1])


SQUARE = np.ones((2, 2), "float32")
BYTE = rprop(eta_plus=2.0, state_layout="byte")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_eigenbasis(rprop), "inner must be a gradient"),
        (lambda: in_eigenbasis(rprop(), decay="0.9"), "decay must be a real"),
        (lambda: in_eigenbasis(rprop()).init(SQUARE.astype(int)), "params must have"),
        (
            lambda: in_eigenbasis(rprop()).update(SQUARE, optax.EmptyState()),
            "state must be the EigenbasisState",
        ),
    ],
)
def test_wrong_types_are_refused(call, message):
    """Messages name the argument, the actual and the expected value."""
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_eigenbasis(rprop(), decay=0.0), r"decay must lie in \(0, 1\]"),
        (lambda: in_eigenbasis(rprop(), decay=1.01), r"decay must lie in \(0, 1\]"),
        (
            lambda: in_eigenbasis(rprop(), full_matrix=True).init(jnp.ones(1025)),
            "at most max_size=1024 coordinates for full_matrix=True, got 1025",
        ),
        (
            lambda: in_eigenbasis(BYTE).init(SQUARE),
            'state_layout="split" or "packed", got "byte"',
        ),
        (lambda: in_eigenbasis(optax.adam(0.1)).init(SQUARE), "of Rprop, got 0"),
        (
            lambda: in_eigenbasis(rprop({"w": 0.1}), full_matrix=True).init(
                {"w": SQUARE}
            ),
            "full_matrix=True, the parameters are one vector: give a callable",
        ),
        (
            lambda: in_eigenbasis(optax.chain(rprop(), rprop())).init(SQUARE),
            "of Rprop, got 2",
        ),
        (
            lambda: in_eigenbasis(optax.masked(rprop(), (True, False))).init(
                (SQUARE, SQUARE)
            ),
            "around `in_eigenbasis`, not inside",
        ),
        (
            lambda: in_eigenbasis(rprop()).update(
                SQUARE, in_eigenbasis(rprop()).init(jnp.ones((3, 2)))
            ),
            "updates must have the shape of its parameter",
        ),
    ],
)
def test_wrong_values_are_refused(call, message):
    """Messages say what is wrong and what to do."""
    with pytest.raises(ValueError, match=message):
        call()


# ----------------------------------------------------------------------------
# Valid arguments are used

# Signs change, repeat and are 0; the loss rises and falls.
GRADS = jnp.array([1.0, 1.0, 1.0, -1.0, 1.0, 0.0, 1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
VALUES = jnp.array([5.0, 4.0, 3.0, 4.0, 2.0, 1.0, 0.0, 2.0, 1.0, 0.0, -1.0, -2.0])
PLAIN = dict(zip(NUMBERS, (0.01, 0.5, 1.2, 1e-6, 50.0), strict=True))
ODD = dict(zip(NUMBERS, (0.3, 0.25, 4.0, 0.008, 0.012), strict=True))


def test_each_number_is_used():
    """Changing any of them changes the updates."""

    @jax.jit
    def run(numbers):
        optimizer = optax_rprop.rprop(**numbers, variant="irprop+")
        return play(optimizer, GRADS, VALUES).updates

    for name in NUMBERS:
        assert not np.array_equal(run(PLAIN | {name: ODD[name]}), run(PLAIN))


@pytest.mark.parametrize(
    "options",
    [
        {"min_step_size": 0},
        {"min_step_size": 0.01, "max_step_size": 0.01},
        {"learning_rate": 50},
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
    """Bounds include their ends."""
    optimizer = optax_rprop.rprop(**options)
    updates, _ = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)), value=0.0)
    expected = np.float32(options.get("learning_rate", 0.01))
    np.testing.assert_array_equal(np.abs(updates), expected)


@pytest.mark.parametrize(
    ("options", "below", "above"),
    [
        ({"min_step_size": 1e-12}, 56, 28),
        ({"min_step_size": 0.0, "max_step_size": 1e8}, 56, 28),
        ({"variant": "irprop+"}, 34, 16),
        # As far as the given bound leaves levels above.
        ({"max_step_size": 0.02, "min_step_size": 1e-12}, 81, 3),
    ],
)
def test_bounds_that_the_byte_can_hold_are_named(options, below, above):
    """Those in the message are accepted, with twice as many levels below the start."""
    settings = {"eta_plus": 2 ** (1 / 3), "state_layout": "byte"} | options
    with pytest.raises(ValueError, match="levels apart") as caught:
        optax_rprop.rprop(**settings)
    found = re.findall(r"(m.._step_size)=([-+.e0-9]*\d)", str(caught.value))
    bounds = {name: float(number) for name, number in found}
    expected = {
        "min_step_size": pytest.approx(0.01 * 2 ** (-below / 3), rel=1e-5),
        "max_step_size": pytest.approx(0.01 * 2 ** (above / 3), rel=1e-5),
    }
    assert bounds == expected
    optax_rprop.rprop(**settings | bounds)


def test_an_initial_step_size_beyond_the_bounds_starts_at_one():
    """An array of JAX, as injected numbers are."""
    for state_layout in LAYOUTS:
        optimizer = optax_rprop.scale_by_rprop(
            jnp.float32(1e5),
            eta_plus=2.0,
            min_step_size=0.01,
            state_layout=state_layout,
        )
        grads = np.float32([[1.0, -1.0]])
        steps = jax.jit(functools.partial(play, optimizer))(grads, grads[:, 0])
        np.testing.assert_allclose(steps.updates, 50 * grads, rtol=1e-6)


def test_initial_step_sizes_in_an_eigenbasis():
    """Its first basis is that of the parameters; `full_matrix` makes them a vector."""
    params = {"b": jnp.array([1.0, -2.0]), "w": jnp.array([[3.0, 4.0], [5.0, 6.0]])}
    make = functools.partial(jax.tree.map, jnp.abs)
    expected = make(params)
    vector = jnp.arange(1.0, 7.0)
    for inner, full_matrix, first in (
        (rprop(expected), False, expected),
        (rprop(lambda params: make(params)), False, expected),
        (rprop(lambda params: make(params)), True, vector),
        (rprop(vector), True, vector),
    ):
        state = in_eigenbasis(inner, full_matrix=full_matrix).init(params)
        actual = optax_rprop.get_rprop_state(state).step_sizes
        jax.tree.map(np.testing.assert_array_equal, actual, first)


def test_modules_that_can_be_called_are_trees():
    """As in Equinox, where a module may hold a step size for each parameter."""

    @jax.tree_util.register_pytree_node_class
    class Module:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, params):
            raise AssertionError("is a tree")

        def tree_flatten(self):
            return (self.weight,), None

        @classmethod
        def tree_unflatten(cls, _, children):
            return cls(*children)

    params = Module(jnp.ones(2))
    make = jax.tree_util.Partial(lambda params: jax.tree.map(lambda _: 0.5, params))
    for learning_rate in (Module(0.5), make):
        updates, _ = (tx := optax_rprop.rprop(learning_rate)).update(
            params, tx.init(params)
        )
        np.testing.assert_array_equal(updates.weight, [-0.5, -0.5])


@pytest.mark.parametrize("variant", ["irprop-", "irprop+"])
def test_factors_that_the_byte_can_hold_are_named(variant):
    """Those in the message are accepted."""
    for shrink, grow in [(0.5, 1.2), (0.75, 1.2), (0.3, 1.05), (0.8, 3.0)]:
        options = {"variant": variant, "state_layout": "byte", "min_step_size": 1e-3}
        with refused(ValueError, "powers of", "base") as caught:
            optax_rprop.rprop(0.1, shrink, grow, max_step_size=1.0, **options)
        (expression,) = re.findall(r"eta_plus=(\S+)", str(caught.value))
        base, numerator, denominator = re.findall(r"[\d.]+", expression + "/1")[:3]
        named = float(base) ** (-int(numerator) / int(denominator))
        optax_rprop.rprop(0.1, shrink, named, max_step_size=1.0, **options)
