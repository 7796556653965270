"""What the README says of other implementations is true of the installed ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_rprop


def updates_and_state(optimizer, grads, dtype="float32"):
    """The updates of one coordinate, and the state after them."""
    state = optimizer.init(jnp.zeros((), dtype))
    updates = []
    for grad in grads:
        update, state = optimizer.update(jnp.asarray(grad, dtype), state)
        updates.append(float(update))
    return updates, state


@pytest.fixture
def torch_parameter_and_step():
    """A parameter, and a function that steps it with a gradient."""
    torch = pytest.importorskip("torch", reason="compares with the live PyTorch")

    def build(dtype):
        parameter = torch.nn.Parameter(torch.zeros((), dtype=getattr(torch, dtype)))
        optimizer = torch.optim.Rprop([parameter], lr=0.1)

        def step(grad):
            parameter.grad = torch.tensor(grad, dtype=parameter.dtype)
            before = parameter.item()
            optimizer.step()
            return parameter.item() - before

        return step

    return build


def test_optax_is_one_step_late():
    """The step that is pending at a sign change is lost."""
    grads = (1.0, 1.0, 1.0, -1.0, 1.0)
    theirs, _ = updates_and_state(optax.rprop(0.1), grads)
    ours, _ = updates_and_state(optax_rprop.rprop(0.1), grads)
    np.testing.assert_allclose(theirs, [0, -0.1, -0.12, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(ours, [-0.1, -0.12, -0.144, 0, -0.072], rtol=1e-6)


def test_optax_is_poisoned_by_nan():
    """One NaN stays in the updates and the parameters of `optax.rprop`, not here."""
    grads = (1.0, 1.0, float("nan"), 1.0, 1.0)
    with jax.numpy_dtype_promotion("standard"):
        theirs, _ = updates_and_state(optax.rprop(0.1), grads)
    ours, _ = updates_and_state(optax_rprop.rprop(0.1), grads)
    assert np.isnan(theirs).any()
    np.testing.assert_allclose(ours, [-0.1, -0.12, 0, -0.12, -0.144], rtol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "vanishing"), [("float32", 1e-23), ("float16", 1e-4)]
)
def test_torch_stops_adapting(torch_parameter_and_step, dtype, vanishing):
    """Two equal vanishing gradients: the step grows here, and not in PyTorch."""
    step = torch_parameter_and_step(dtype)
    theirs = [step(vanishing), step(vanishing)]
    ours, _ = updates_and_state(optax_rprop.rprop(0.1), [vanishing] * 2, dtype)
    np.testing.assert_allclose(theirs, [-0.1, -0.1], rtol=1e-3)
    np.testing.assert_allclose(ours, [-0.1, -0.12], rtol=1e-3)


def test_torch_skips_nan_as_the_default_does(torch_parameter_and_step):
    """A NaN holds the coordinate and clears its memory in both."""
    grads = (1.0, 1.0, float("nan"), 1.0, 1.0, -1.0)
    step = torch_parameter_and_step("float64")
    theirs = [step(grad) for grad in grads]
    ours, _ = updates_and_state(optax_rprop.rprop(0.1), grads)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("layout", ["split", "packed"])
def test_bytes_of_state(layout):
    """5 bytes a float32 parameter, or 4 packed; `optax.rprop` and Adam take 8."""

    def state_bytes(optimizer):
        leaves = jax.tree.leaves(optimizer.init(jnp.zeros(1000)))
        return sum(leaf.nbytes for leaf in leaves if leaf.shape) / 1000

    ours = state_bytes(optax_rprop.rprop(state_layout=layout))
    assert ours == {"split": 5, "packed": 4}[layout]
    assert state_bytes(optax.rprop(0.1)) == state_bytes(optax.adam(0.1)) == 8
