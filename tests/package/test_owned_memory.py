"""A state owns its memory: it may be donated, and the caller's arrays live on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS

from optax_rprop import (
    get_rprop_state,
    in_eigenbasis,
    minibatch_rprop,
    resolve_signs,
    rprop,
    scale_by_rprop,
)

each_layout = pytest.mark.parametrize("state_layout", LAYOUTS)
# A step size of the same shape could be an array that was given.
PARAMS = {
    "scalar": {"a": 1.0},
    "scalars": {"a": 1.0, "b": 2.0},
    "vector": {"a": [1.0, 2.0]},
    "matrix": {"a": 1.0, "b": [[1.0, 2.0], [3.0, 4.0]]},
}
BOUNDS = {
    "eta_minus": 0.5,
    "eta_plus": 2**0.5,
    "min_step_size": 1e-3,
    "max_step_size": 50.0,
}
NAMES = ("learning_rate", "min_step_size", "max_step_size")


def fresh(params):
    """Parameters of their own for each run."""
    return jax.tree.map(
        jnp.array, PARAMS[params], is_leaf=lambda node: type(node) is list
    )


def pointers(tree):
    """The memory that the arrays of a tree occupy."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return [leaf.unsafe_buffer_pointer() for leaf in leaves if leaf.size]


def arrays(dtype="float32"):
    """Hyper-parameters as arrays of the caller."""
    numbers = {"learning_rate": 0.1} | BOUNDS
    return {name: jnp.array(numbers[name], dtype) for name in NAMES}


def injected(factory, state_layout, **options):
    """Under `inject_hyperparams`, as far as the layout allows."""
    static = ("eta_minus", "eta_plus") if state_layout == "byte" else ()
    inject = optax.inject_hyperparams(factory, static_args=static)
    return inject(**BOUNDS, state_layout=state_layout, **options)


# From a layout and arrays of the caller to an optimizer.
OPTIMIZERS = {
    "arrays": lambda layout, given: rprop(**BOUNDS | given, state_layout=layout),
    "scale_by": lambda layout, given: scale_by_rprop(
        **BOUNDS | given, state_layout=layout
    ),
    "inject": lambda layout, given: injected(rprop, layout),
    "inject minibatch": lambda layout, given: injected(minibatch_rprop, layout),
    "minibatch": lambda layout, given: minibatch_rprop(
        **BOUNDS | given, state_layout=layout, decay=jnp.float32(0.9), lean=0.0
    ),
    "partition": lambda layout, given: optax.partition(
        {"x": rprop(**BOUNDS | given, state_layout=layout)}, "x"
    ),
    "MultiSteps": lambda layout, given: optax.MultiSteps(
        rprop(**BOUNDS | given, state_layout=layout), 1
    ),
    "MultiSteps inject": lambda layout, given: optax.MultiSteps(
        injected(rprop, layout), 2
    ),
    "twice": lambda layout, given: optax.chain(
        rprop(**BOUNDS | given, state_layout=layout),
        rprop(**BOUNDS | given, state_layout=layout),
    ),
    "eigenbasis": lambda layout, given: in_eigenbasis(
        rprop(**BOUNDS | given, state_layout=layout),
        decay=jnp.float32(0.9),
    ),
    "inject eigenbasis": lambda layout, given: optax.inject_hyperparams(
        lambda rate, decay: in_eigenbasis(rprop(rate, state_layout=layout), decay=decay)
    )(rate=0.1, decay=0.9),
    "schedule-free": lambda layout, given: optax.contrib.schedule_free(
        rprop(**BOUNDS | given, state_layout=layout), 1.0
    ),
}
CASES = [
    (name, state_layout, params)
    for name in OPTIMIZERS
    for state_layout in LAYOUTS
    # Arrays of shape () are those that could be shared; a byte shares its unit.
    for params in {
        "eigenbasis": {"byte": ()}.get(state_layout, ("matrix",)),
        "other": {"byte": ("scalars", "vector")}.get(state_layout, ("scalars",)),
    }["eigenbasis" if "eigenbasis" in name else "other"]
]


@pytest.fixture(autouse=True)
def standard(standard_promotion):
    """Some wrappers of Optax mix dtypes themselves."""


@pytest.mark.parametrize(
    ("name", "state_layout", "params"),
    [
        pytest.param(*case, marks=pytest.mark.slow if "eigenbasis" in case[0] else [])
        for case in CASES
    ],
)
def test_state_shares_no_memory(name, state_layout, params):
    """Neither with arrays of the caller nor within itself, from `init` on."""
    given, params = arrays(), fresh(params)
    state = OPTIMIZERS[name](state_layout, given).init(params)
    mine = pointers(state)
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(pointers((params, given)))


@each_layout
def test_compiled_init_shares_no_memory(state_layout):
    """Nor does what is compiled return the arrays that it found."""
    given, params = arrays(), fresh("scalars")
    optimizer = rprop(**BOUNDS | given, variant="irprop+", state_layout=state_layout)
    state = jax.jit(optimizer.init)(params)
    mine = pointers(state)
    assert len(set(mine)) == len(mine)
    assert not set(mine) & set(pointers((params, given)))


@pytest.mark.parametrize(
    "variant",
    [*(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS[:3]), "irprop+"],
)
def test_state_shares_no_memory_in_any_variant(variant):
    """The last loss included; and of parameters in NumPy."""
    given = arrays()
    for state_layout in LAYOUTS:
        optimizer = rprop(**BOUNDS | given, variant=variant, state_layout=state_layout)
        for params in (jnp.float32(1.0), np.float32(1.0), np.ones(1, "float32"), 1.0):
            state = optimizer.init(params)
            mine = pointers(state)
            assert len(set(mine)) == len(mine)
            assert not set(mine) & set(pointers((params, given)))


@pytest.mark.parametrize("param_dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_layout
def test_dtypes_make_no_difference(x64, state_layout, dtype, param_dtype):
    """Whether a number has to be cast for the state or not."""
    given = arrays(dtype)
    optimizer = rprop(**BOUNDS | given, variant="irprop+", state_layout=state_layout)
    state = optimizer.init(jnp.ones((), param_dtype))
    assert not set(pointers(state)) & set(pointers(given))


def test_tests_of_signs_share_no_memory():
    """Of a scalar, the sums and the norms."""
    given = {name: jnp.float32(0.9) for name in ("threshold", "decay", "lean")}
    for statistics_dtype in (None, "bfloat16"):
        optimizer = resolve_signs(**given, statistics_dtype=statistics_dtype)
        mine = pointers(optimizer.init({"a": jnp.zeros(()), "b": jnp.zeros(())}))
        assert len(set(mine)) == len(mine)
        assert not set(mine) & set(pointers(given))


DONATED = [
    ("inject", "split", "scalar"),
    ("arrays", "split", "scalars"),
    ("arrays", "byte", "vector"),
    ("inject", "byte", "vector"),
    ("inject", "packed", "scalar"),
    ("inject minibatch", "split", "scalar"),
    ("partition", "split", "scalar"),
    ("MultiSteps", "split", "scalar"),
    ("eigenbasis", "split", "matrix"),
]
# One of each kind; the others run in CI.
ALWAYS = (("inject", "split", "scalar"), ("arrays", "byte", "vector"))


@pytest.mark.parametrize(
    ("name", "layout", "params"),
    [
        pytest.param(*case, marks=[] if case in ALWAYS else pytest.mark.slow)
        for case in DONATED
    ],
)
def test_a_run_that_donates_leaves_the_next_one_alone(name, layout, params):
    """Two runs with one optimizer, which owns arrays, give the same numbers."""
    given = arrays()
    optimizer = OPTIMIZERS[name](layout, given)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    ends = []
    for _ in range(2):
        carry = fresh(params), optimizer.init(fresh(params))
        for _ in range(3):
            carry = step(*carry)
        step_sizes = get_rprop_state(carry[1]).step_sizes
        ends.append(jax.tree.map(np.asarray, (carry[0], step_sizes)))
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert not any(array.is_deleted() for array in given.values())
    assert float(given["learning_rate"]) == np.float32(0.1)
