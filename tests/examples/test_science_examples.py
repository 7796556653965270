"""The science examples: small runs, which check their result, and parts of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("diffrax", reason="needs the extras of the examples")
pytest.importorskip("sklearn", reason="needs the extras of the examples")
import ensemble
import example_io
import gaussian_process
import ode_fit
import valley
from scipy.integrate import solve_ivp
from sklearn.gaussian_process import GaussianProcessRegressor, kernels

pytestmark = [
    pytest.mark.slow,
    pytest.mark.once,
    pytest.mark.usefixtures("standard_promotion"),
]
SCRIPTS = {
    "gaussian_process": gaussian_process,
    "ensemble": ensemble,
    "ode_fit": ode_fit,
    "valley": valley,
}
SMALL = {
    "gaussian_process": "--rows 80 --evaluations 60 --initial-step-sizes 0.1 9"
    " --adam-rates 1",
    "ensemble": "--networks 8 --one-by-one 2 --epochs 40",
    "ode_fit": "--evaluations 110 --adam-rates 0.1",
    "valley": "--steps 20",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_small_run_passes_its_check(name, precision, monkeypatch, tmp_path, capsys):
    """The exit status is 0, and the picture is in a new folder."""
    for constant, numbers in ode_fit.CONSTANTS.items():
        # A closer start, which needs only a few evaluations.
        nearer = numbers._replace(start=0.95 * numbers.truth)
        monkeypatch.setitem(ode_fit.CONSTANTS, constant, nearer)
    folder = tmp_path / "new"
    status = SCRIPTS[name].main([*SMALL[name].split(), "--output-dir", str(folder)])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_standing_still_fails(precision, monkeypatch, tmp_path, capsys):
    """Optimizers that make no progress and never leave the domain give status 1."""

    def stand_still(name, optimizer, evaluate, params, evaluations):
        return example_io.Run(name, np.array([30.0]), [params], [])

    def succeed(name, evaluate, params, evaluations, lower_bounds):
        return example_io.Run(name, np.array([30.0, 20.0]), [params, params], [])

    monkeypatch.setattr(example_io, "run_optax", stand_still)
    monkeypatch.setattr(example_io, "run_lbfgs", succeed)
    monkeypatch.setattr(gaussian_process, "plot", lambda *_: None)
    options = ["--rows", "20", "--output-dir", str(tmp_path)]
    assert gaussian_process.main(options) == 1
    message = capsys.readouterr().err
    assert "size 0.1 got from 30.00 to 30.00 nats, less than 90% of" in message
    assert "It may need more --evaluations." in message
    assert "irprop+, initial step size 10 never left the domain" in message


def test_likelihood_and_prediction_equal_scikit_learn(x64):
    """An independent implementation gives the same likelihood and predictions."""
    data = gaussian_process.load_data(60, seed=3)
    relevances = np.linspace(0.1, 0.7, 10)
    params = {
        "relevances": jnp.asarray(relevances),
        "signal_variance": jnp.array(1.7),
        "noise_variance": jnp.array(0.4),
    }
    kernel = kernels.ConstantKernel(1.7) * kernels.RBF(1 / relevances)
    theirs = GaussianProcessRegressor(
        kernel + kernels.WhiteKernel(0.4), alpha=0.0, optimizer=None
    ).fit(*data.train)
    loss = jax.jit(gaussian_process.negative_log_likelihood)(params, data.train)
    assert float(loss) == pytest.approx(
        -theirs.log_marginal_likelihood_value_, rel=1e-9
    )
    expected = theirs.predict(data.test.inputs, return_std=True)
    actual = gaussian_process.predict(params, data.train, data.test.inputs)
    np.testing.assert_allclose(actual, expected, rtol=1e-8)


def test_absorbance_equals_scipy(x64):
    """Another solver with tight tolerances gives the same curves."""
    truth = {name: c.truth for name, c in ode_fit.CONSTANTS.items()}
    times = np.logspace(
        -3.5, 2.0, 45
    )  # As many as in the script, so that they are compiled once.
    actual = ode_fit.absorbance(ode_fit.constants("truth"), jnp.asarray(times))
    for row, substrate in zip(actual, ode_fit.SUBSTRATE, strict=True):

        def rates(time, state, substrate=substrate):
            # All four species; the script eliminates two by conservation.
            enzyme, free, bound, _ = state
            binding = truth["k_on"] * enzyme * free - truth["k_off"] * bound
            turnover = truth["k_cat"] * bound
            return [turnover - binding, -binding, binding - turnover, turnover]

        solution = solve_ivp(
            rates,
            (0.0, times[-1]),
            [ode_fit.ENZYME, substrate, 0.0, 0.0],
            method="LSODA",
            t_eval=times,
            rtol=1e-9,
            atol=1e-15,
        )
        _, _, bound, product = solution.y
        expected = truth["eps_ES"] * bound + truth["eps_P"] * product + truth["zero"]
        # A hundredth of the noise.
        np.testing.assert_allclose(row, expected, atol=0.01 * ode_fit.NOISE)
