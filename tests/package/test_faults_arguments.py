"""Arguments: names of other libraries, keywords, and bounds that an error names."""

import functools
import inspect
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checks import LAYOUTS, VARIANTS, descend

import optax_rprop
from optax_rprop import (
    get_rprop_state,
    in_eigenbasis,
    minibatch_rprop,
    resolve_signs,
    rprop,
    scale_by_rprop,
)

FACTORIES = [rprop, scale_by_rprop, minibatch_rprop]
each_factory = pytest.mark.parametrize("factory", FACTORIES, ids=lambda f: f.__name__)

# ----------------------------------------------------------------------------
# PyTorch's names


@each_factory
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"lr": 0.1}, ["lr", "learning_rate"]),
        ({"etas": (0.5, 1.2)}, ["etas", "eta_minus", "eta_plus"]),
        ({"step_sizes": (1e-6, 50)}, ["step_sizes", "min_step_size", "max_step_size"]),
    ],
    ids=["lr", "etas", "step_sizes"],
)
def test_names_of_pytorch_are_answered_with_ours(factory, theirs, ours):
    """Whatever else is given; the message names both."""
    for others in ({}, {"learning_rate": 0.1}, {"state_layout": "packed"}):
        with pytest.raises(TypeError) as caught:
            factory(**theirs, **others)
        for name in ours:
            assert re.search(rf"\b{name}\b", str(caught.value))
        assert "PyTorch" in str(caught.value)


@each_factory
@pytest.mark.parametrize("name", ["maximize", "foreach", "learningrate", "kwargs"])
def test_unknown_names_are_python_s_own_error(factory, name):
    """They are arguments of nobody, or say what is not there."""
    with pytest.raises(TypeError, match=rf"unexpected keyword argument '{name}'"):
        factory(**{name: True})


@each_factory
def test_the_signature_hides_no_name(factory):
    """Editors, `help` and `inject_hyperparams` read it."""
    signature = inspect.signature(factory)
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    assert kinds == {
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    }
    assert "lr" not in signature.parameters
    assert factory.__doc__.strip()
    assert factory.__module__.startswith("optax_rprop")
    assert set(factory.__annotations__) == {*signature.parameters, "return"}
    with pytest.raises(TypeError):
        optax.inject_hyperparams(factory)(lr=0.1)


# ----------------------------------------------------------------------------
# Names and keywords


def test_what_is_inside_public_states_is_public():
    """To be registered for `jax.export`, and to be annotated."""
    for variant, name in zip(
        VARIANTS, ["RpropMinus", "IRpropMinus", "RpropPlus", "IRpropPlus"], strict=True
    ):
        for state_layout in LAYOUTS:
            optimizer = scale_by_rprop(
                eta_plus=2.0, variant=variant, state_layout=state_layout
            )
            state = jax.eval_shape(optimizer.init, jnp.zeros(2))
            assert type(state.variant) is getattr(optax_rprop, name)
            assert type(state).__name__ in optax_rprop.__all__
        # That of the layout "byte", the last one.
        assert type(state.lattice) is optax_rprop.Lattice
        assert {name, "Lattice"} <= set(optax_rprop.__all__)


@pytest.mark.parametrize(
    ("factory", "positional", "keywords"),
    [
        (
            resolve_signs,
            ["threshold"],
            ["decay", "lean", "lean_mask", "statistics_dtype"],
        ),
        (in_eigenbasis, ["inner"], ["decay", "interval", "max_size", "full_matrix"]),
        (rprop, 5, ["variant", "skip_zero_grads", "state_layout"]),
        (
            minibatch_rprop,
            5,
            [
                *("threshold", "decay", "lean", "lean_mask"),
                *("statistics_dtype", "state_layout"),
            ],
        ),
    ],
    ids=lambda argument: getattr(argument, "__name__", ""),
)
def test_only_what_cannot_be_mistaken_is_positional(factory, positional, keywords):
    """The first argument, and those that `optax.rprop` has, too."""
    if positional == 5:
        positional = list(inspect.signature(optax.rprop).parameters)[:5]
    parameters = inspect.signature(factory).parameters.values()
    by_kind = {
        kind: [parameter.name for parameter in parameters if parameter.kind is kind]
        for kind in (
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            inspect.Parameter.KEYWORD_ONLY,
        )
    }
    assert list(by_kind.values()) == [positional, keywords]
    with pytest.raises(TypeError, match="positional argument"):
        factory(*[rprop()] * (len(positional) + 1))


# ----------------------------------------------------------------------------
# Arrays that do not fit together, which nobody checks


@pytest.mark.parametrize(
    ("stored", "variant", "rate", "bound"),
    [
        pytest.param(
            *case,
            *end,
            marks=[]
            if (*case, end[0]) == ("byte", "irprop-", 1e5)
            else pytest.mark.slow,
        )
        for case in itertools.product(LAYOUTS, VARIANTS)
        for end in ((1e3, 50.0), (1e5, 50.0), (1e-9, 1e-3))
    ],
)
def test_an_initial_step_size_beyond_the_bounds_starts_at_one(
    stored, variant, rate, bound
):
    """An array of JAX, as injected numbers are: clipped, and it remembers no sign."""
    optimizer = scale_by_rprop(
        jnp.float32(rate),
        eta_plus=2 ** (1 / 3),
        min_step_size=1e-3,
        variant=variant,
        state_layout=stored,
    )
    state = optimizer.init(jnp.zeros(2))
    assert not np.any(get_rprop_state(state).prev_grad_signs)
    updates, _ = optimizer.update(jnp.array([1.0, -1.0]), state, value=1.0)
    # A byte stops at the outermost level within.
    np.testing.assert_allclose(updates, [bound, -bound], rtol=0.27)


# ----------------------------------------------------------------------------
# The bounds that a byte proposes


def proposed(**options):
    """The bounds in the message, and the rest."""
    with pytest.raises(ValueError, match="levels apart") as caught:
        rprop(**options, state_layout="byte")
    found = re.findall(r"(m.._step_size)=([-+.e0-9]*\d)", str(caught.value))
    return {name: float(number) for name, number in found}


TOO_WIDE = [
    ({"learning_rate": 0.05, "eta_minus": 0.85, "eta_plus": 0.85**-0.5}, "irprop-"),
    ({"eta_plus": 2 ** (1 / 3), "min_step_size": 1e-12}, "irprop-"),
    ({"eta_plus": 2 ** (1 / 3), "min_step_size": 0, "max_step_size": 1e8}, "rprop-"),
    ({"eta_plus": 2 ** (1 / 3)}, "irprop+"),
    ({"eta_plus": 2 ** (1 / 2), "max_step_size": 1e12}, "rprop+"),
    ({"learning_rate": 50.0, "eta_plus": 2 ** (1 / 4)}, "irprop-"),
    ({"learning_rate": 1e-6, "eta_plus": 2 ** (1 / 4)}, "irprop-"),
]


@pytest.mark.parametrize(("options", "variant"), TOO_WIDE)
def test_the_proposed_bounds_are_a_window_around_the_start(options, variant):
    """Within those that were given, all levels wide, with room on both sides."""
    settings = {"learning_rate": 0.01, "min_step_size": 1e-6, "max_step_size": 50.0}
    settings |= options | {"variant": variant}
    bounds = proposed(**settings)
    rprop(**settings | bounds, state_layout="byte")
    base = settings["eta_plus"]
    start = settings["learning_rate"]
    lower, upper = bounds["min_step_size"], bounds["max_step_size"]
    below = np.log(start / lower) / np.log(base)
    above = np.log(upper / start) / np.log(base)
    levels = (51 if "+" in variant else 85) - 1
    assert settings["min_step_size"] <= lower * (1 + 1e-5)
    assert upper <= settings["max_step_size"] * (1 + 1e-5)
    assert below + above == pytest.approx(levels, abs=1.1)
    given = np.log(settings["max_step_size"] / start) / np.log(base)
    assert above >= min(levels // 3, given) - 0.1
    if settings["min_step_size"] < start < settings["max_step_size"]:
        assert below >= levels / 2


@pytest.mark.parametrize(
    ("options", "variant"),
    [
        TOO_WIDE[0],
        *(pytest.param(*row, marks=pytest.mark.slow) for row in TOO_WIDE[1:5]),
    ],
)
def test_a_run_with_the_proposed_bounds_converges(options, variant):
    """On a parabola: those who take the message at its word get a solution."""
    settings = {"learning_rate": 0.01} | options | {"variant": variant}
    bounds = proposed(**settings)
    optimizer = rprop(**settings | bounds, state_layout="byte")
    run = functools.partial(
        descend, optimizer, lambda x: jnp.sum((x - 0.3) ** 2), steps=500
    )
    params, _ = jax.jit(run)(start=jnp.array([0.0, -1.0, 2.0]))
    np.testing.assert_allclose(params[-1], 0.3, atol=2e-4)
