"""The science examples: small runs, whose exit status is the check, and parts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
        # A nearer start, for which so few evaluations are enough.
        nearer = numbers._replace(start=0.95 * numbers.truth)
        monkeypatch.setitem(ode_fit.CONSTANTS, constant, nearer)
    folder = tmp_path / "new"
    status = SCRIPTS[name].main([*SMALL[name].split(), "--output-dir", str(folder)])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_standing_still_fails(precision, monkeypatch, tmp_path, capsys):
    """Optimizers that gain nothing, and never leave the domain, end with status 1."""

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


def test_untrained_networks_fail(monkeypatch, tmp_path, capsys):
    """Guesses, and other losses together than alone, end with status 1."""

    def untrained(params, splits, epochs):
        losses = jnp.ones((2, 1))
        return ensemble.Timed(ensemble.Trained(params, losses[:, 0], losses), 1.0)

    monkeypatch.setattr(ensemble, "train_together", untrained)
    monkeypatch.setattr(
        ensemble, "train_one_by_one", lambda *_: ensemble.Timed(np.array([1.2]), 1.0)
    )
    monkeypatch.setattr(ensemble, "plot", lambda *_: None)
    options = ["--networks", "2", "--one-by-one", "1", "--output-dir", str(tmp_path)]
    assert ensemble.main(options) == 1
    message = capsys.readouterr().err
    assert "of the chosen network is below --min-accuracy 0.9." in message
    assert "networks trained together and one by one do not agree" in message


def test_wrong_constants_fail(x64, monkeypatch, tmp_path, capsys):
    """Estimates far from the truth, and a loss above the best, end with status 1."""

    def run(name, field, loss):
        return example_io.Run(name, np.array([loss]), [ode_fit.constants(field)], [])

    def compare(problem, logarithms, adam_rates, evaluations):
        lbfgs = run("L-BFGS-B", "truth", 0.5)
        return ode_fit.Comparison(run("irprop-", "start", 9.0), [lbfgs], lbfgs)

    # Compiling the real ones takes seconds.
    monkeypatch.setattr(ode_fit, "compare", compare)
    squares = run("least_squares", "truth", 0.5)
    errors = jax.tree.map(lambda number: abs(number) / 100, ode_fit.constants("truth"))
    monkeypatch.setattr(ode_fit, "make_problem", lambda *_: None)
    monkeypatch.setattr(ode_fit, "run_least_squares", lambda *_: squares)
    monkeypatch.setattr(ode_fit, "standard_errors", lambda *_: errors)
    monkeypatch.setattr(ode_fit, "plot", lambda *_: None)
    assert ode_fit.main(["--output-dir", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "irprop- reached a loss of 9.0000, more than 1 % above the best" in message
    assert "k_on is 1e+05, more than 4 standard errors" in message


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "--seed: must not be negative, got -1"),
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--output-dir", __file__], "--output-dir: cannot create the folder"),
        (["--learning-rate", "1"], "unrecognized arguments: --learning-rate"),
    ],
)
def test_refuses_bad_options(name, options, message, capsys):
    """A wrong option ends in a usage message that names it."""
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[name].main(options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gaussian_process", ["--rows", "440"], "--rows: must lie between 20 and 422"),
        ("gaussian_process", ["--evaluations", "0"], "must be at least 1, got 0"),
        ("gaussian_process", ["--initial-step-sizes", "-1"], "must be positive"),
        ("gaussian_process", ["--adam-rates", "nan"], "must be positive and finite"),
        ("ode_fit", ["--adam-rates", "inf"], "must be positive and finite, got inf"),
        ("ode_fit", ["--adam-rates"], "expected at least one argument"),
        (
            "ensemble",
            ["--networks", "2", "--one-by-one", "3"],
            "--one-by-one: must not exceed --networks (2), got 3",
        ),
    ],
)
def test_refuses_bad_settings(name, options, message, tmp_path, capsys):
    """So does one that is wrong for one script alone."""
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[name].main([*options, "--output-dir", str(tmp_path)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def counted(function):
    """The value and gradient of a function, and the list of its evaluations."""
    calls = []
    evaluate = jax.jit(jax.value_and_grad(function))

    def loss_and_gradient(params):
        calls.append(params)
        return evaluate(params)

    return loss_and_gradient, calls


def shifted_bowl(params):
    return (params["x"] - 2.0) ** 2 + 9.0 * (params["y"] + 1.0) ** 2


@pytest.mark.parametrize("method", ["optax", "lbfgs"])
def test_every_evaluation_is_counted(x64, method):
    """The history is the sequence of evaluations, losses and parameters alike."""
    loss_and_gradient, calls = counted(shifted_bowl)
    start = {"x": jnp.array(0.0), "y": jnp.array(0.0)}
    if method == "optax":
        run = example_io.run_optax("", optax.sgd(0.05), loss_and_gradient, start, 12)
        assert len(run.losses) == len(run.opt_states) == 12
    else:
        run = example_io.run_lbfgs("", loss_and_gradient, start, 12)
        assert 2 < len(run.losses) <= 12
    assert len(run.losses) == len(calls)
    assert run.params == calls
    np.testing.assert_allclose(run.losses, [shifted_bowl(p) for p in calls])
    assert run.losses[0] == 13.0
    assert run.best_loss == min(run.losses)
    assert shifted_bowl(run.best_params) == pytest.approx(run.best_loss)
    assert run.evaluations_to(13.0) == 1
    assert (
        run.evaluations_to(run.best_loss) == list(run.losses).index(run.best_loss) + 1
    )
    assert run.evaluations_to(-1.0) is None


def test_bounds_hold(x64):
    """L-BFGS-B stays within its bounds, a projection keeps Optax's optimizers there."""
    loss_and_gradient, _ = counted(shifted_bowl)
    start = {"x": jnp.array(0.0), "y": jnp.array(0.5)}
    lower = {"x": jnp.array(-jnp.inf), "y": jnp.array(0.0)}
    runs = [
        example_io.run_lbfgs("", loss_and_gradient, start, 50, lower),
        example_io.run_optax(
            "",
            optax.sgd(0.05),
            loss_and_gradient,
            start,
            200,
            lambda params: jax.tree.map(jnp.maximum, params, lower),
        ),
    ]
    for run in runs:
        assert min(params["y"] for params in run.params) == 0.0
        assert run.best_loss == pytest.approx(9.0)


def test_failed_evaluations_are_survived(x64):
    """A NaN counts as a failure, never as the best; L-BFGS-B goes on after one."""
    loss_and_gradient, _ = counted(lambda p: p["x"] - jnp.log(p["x"]))
    run = example_io.run_lbfgs("", loss_and_gradient, {"x": jnp.array(10.0)}, 50)
    assert run.failures > 0
    steep, _ = counted(lambda p: 100.0 * (p["x"] - jnp.log(p["x"])))
    sgd = example_io.run_optax("", optax.sgd(1.0), steep, {"x": jnp.array(10.0)}, 5)
    assert sgd.failures == 4
    assert sgd.best_loss == sgd.losses[0]
    assert sgd.best_params["x"] == 10.0
    assert run.best_params["x"] == pytest.approx(1.0, rel=1e-4)


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


def test_patients_are_standardized_by_the_training_set():
    """Nothing of the test set is in the scales, and they can be undone."""
    data = gaussian_process.load_data(100, seed=0)
    assert [len(patients.targets) for patients in data[:2]] == [100, 342]
    np.testing.assert_allclose(data.train.inputs.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train.inputs.std(axis=0), 1)
    np.testing.assert_allclose(data.train.targets.std(), 1)
    scores = np.concatenate([data.score(patients.targets) for patients in data[:2]])
    assert (round(scores.min()), round(scores.max())) == (25, 346)


def test_negative_noise_fails_the_factor(x64):
    """Outside the domain loss and gradient are NaN, which Rprop is told."""
    data = gaussian_process.load_data(60, seed=3)
    params = gaussian_process.start() | {"noise_variance": jnp.array(-1.0)}
    evaluate = jax.value_and_grad(gaussian_process.negative_log_likelihood)
    loss, grads = jax.jit(evaluate)(params, data.train)
    assert jnp.isnan(loss)
    assert jnp.isnan(grads["noise_variance"])


def test_scores_by_hand():
    """Accuracy and cross-entropy of two networks on two rows."""
    probabilities = jnp.full((2, 2, 10), 0.05).at[:, :, 3].set(0.55)
    scores = ensemble.score(probabilities.at[1, 1, 3].set(0.0), np.array([3, 3]))
    np.testing.assert_allclose(scores.accuracy, [1.0, 0.5])
    # An impossible class costs the logarithm of the smallest normal number.
    expected = -np.log(0.55), -(np.log(0.55) + np.log(np.finfo(np.float32).tiny)) / 2
    np.testing.assert_allclose(scores.cross_entropy, expected, rtol=1e-6)


def test_absorbance_equals_scipy(x64):
    """Another solver, in tight tolerances, gives the same curves."""
    truth = {name: c.truth for name, c in ode_fit.CONSTANTS.items()}
    times = np.logspace(-3.5, 2.0, 45)  # As many as the script has: compiled once.
    actual = ode_fit.absorbance(ode_fit.constants("truth"), jnp.asarray(times))
    for row, substrate in zip(actual, ode_fit.SUBSTRATE, strict=True):

        def rates(time, state, substrate=substrate):
            # All four species, where the script uses what is conserved.
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


def test_logarithms_are_undone(x64):
    """`from_log` inverts `to_log`, which leaves the constant of either sign alone."""
    start = ode_fit.constants("truth")
    logs = ode_fit.to_log(start)
    assert logs["zero"] == start["zero"] < 0
    assert logs["k_on"] == pytest.approx(np.log(2e6))
    for name, number in ode_fit.from_log(logs).items():
        assert float(number) == pytest.approx(float(start[name]))


def test_standard_errors_of_a_straight_line(x64):
    """As the textbook has them: those of a mean and of a slope, scaled apart."""
    positions = jnp.linspace(-1.0, 1.0, 21)

    def residuals(params):
        return 1e6 * params["mean"] + 1e-3 * params["slope"] * positions

    problem = ode_fit.Problem(positions, positions, residuals)
    errors = ode_fit.standard_errors(
        problem, {"mean": jnp.array(1.0), "slope": jnp.array(1.0)}
    )
    assert float(errors["mean"]) == pytest.approx(1e-6 / np.sqrt(21))
    sum_of_squares = float(jnp.sum(positions**2))
    assert float(errors["slope"]) == pytest.approx(1e3 / np.sqrt(sum_of_squares))
