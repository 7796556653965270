"""The problems on which optimizers are compared, each with its data.

Networks are in float32, as people train them; everything else is in float64, for
which the scripts enable x64.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from proben1_training import read_data_set
from sklearn import datasets

Params = Any
Data = Mapping[str, jax.Array]
Loss = Callable[[Params, Data], jax.Array]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A function to minimize.

    Attributes:
      name: What tables call it.
      description: One line for the reader.
      dtype: Of the parameters.
      init: Draws a start; the seed is the only thing in which runs differ.
      loss: Of the parameters and the data.
      train: The data to fit.
      validation: The data on which training is stopped early, if there are any.
      test: The data for the final error, likewise.
      error: The error on held-out data, in units of `error_name`.
      error_name: What `error` measures.
      torch_loss: The same loss on PyTorch tensors, where it is written.
    """

    name: str
    description: str
    dtype: str
    init: Callable[[jax.Array], Params]
    loss: Loss
    train: Data = dataclasses.field(default_factory=dict)
    validation: Data | None = None
    test: Data | None = None
    error: Loss | None = None
    error_name: str = ""
    torch_loss: Callable[[Any, Any], Any] | None = None

    @functools.cached_property
    def starts(self) -> Callable[[jax.Array], Params]:
        """`init` for a vector of seeds: the first axis of what it returns."""
        return jax.jit(
            lambda seeds: jax.vmap(lambda seed: self.init(jax.random.key(seed)))(seeds)
        )

    def start(self, seed: int) -> Params:
        """The start of one seed."""
        return jax.tree.map(lambda leaf: leaf[0], self.starts(jnp.array([seed])))


# --- Data sets ---------------------------------------------------------------


def split(inputs: np.ndarray, targets: np.ndarray, train: int) -> tuple[Any, ...]:
    """Shuffle once, then `train` rows to fit and the rest in halves."""
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    stop = (len(inputs) + train) // 2
    bounds = [slice(None, train), slice(train, stop), slice(stop, None)]
    return tuple((inputs[rows], targets[rows]) for rows in bounds)


def find_proben1(data_dir: Path | None, name: str) -> Path | None:
    """The file of a Proben1 data set; None, after a word to the reader, without one.

    Raises:
      SystemExit: There is a folder, but the file is not in it.
    """
    source = f"{name}.dt of Proben1 (it is in the repository jeffheaton/proben1)"
    if data_dir is None:
        print(f"Without {source}: no --data-dir was given.")
        return None
    path = data_dir / f"{name}.dt"
    if not path.is_file():
        raise SystemExit(f"--data-dir must hold {source}, got {data_dir}.")
    return path


def read_proben1(path: Path) -> tuple[tuple[Any, ...], bool]:
    """Read a Proben1 file: training, validation and test rows, and if it has classes.

    Classes become numbers.

    Raises:
      ValueError: The file is not in Proben1's format.
    """
    parts = [
        (inputs.astype("float32"), targets.astype("float32"))
        for inputs, targets in read_data_set(path)
    ]
    outputs = np.concatenate([targets for _, targets in parts])
    # Classes are the only targets of one 1 and else 0.
    classes = bool((np.sort(outputs) == np.eye(outputs.shape[1])[-1]).all())
    if classes:
        parts = [(inputs, targets.argmax(axis=1)) for inputs, targets in parts]
    return tuple(parts), classes


def _diabetes(*, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    bunch: Any = datasets.load_diabetes(scaled=scaled)
    return bunch.data, bunch.target[:, None]


def _arrays(parts: Sequence[Any], dtype: str) -> list[Data]:
    """Rows as JAX arrays; class numbers keep their integer dtype."""
    return [
        {
            "inputs": jnp.asarray(inputs, dtype),
            "targets": jnp.asarray(
                targets, "int32" if targets.dtype.kind == "i" else dtype
            ),
        }
        for inputs, targets in parts
    ]


def _standardize(parts: Sequence[Any], *, targets: bool) -> list[Any]:
    """Mean 0 and variance 1 on the training rows."""
    inputs, outputs = parts[0]
    columns = inputs.mean(axis=0), inputs.std(axis=0)
    rows = (outputs.mean(axis=0), outputs.std(axis=0)) if targets else (0, 1)
    return [
        ((x - columns[0]) / columns[1], (t - rows[0]) / rows[1] if targets else t)
        for x, t in parts
    ]


# --- Networks ----------------------------------------------------------------


def init_network(sizes: Sequence[int], dtype: str, key: jax.Array) -> Params:
    """Weights with standard deviation 1 / sqrt(inputs), biases 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(key, (inputs, outputs), dtype)
            / jnp.asarray(inputs, dtype) ** 0.5,
            "biases": jnp.zeros(outputs, dtype),
        }
        for key, inputs, outputs in zip(keys, sizes, sizes[1:], strict=False)
    ]


def forward(params: Params, activations: Any, hidden: Callable[[Any], Any]) -> Any:
    """A multilayer network; works on JAX arrays and PyTorch tensors alike."""
    for layer in params[:-1]:
        activations = hidden(activations @ layer["weights"] + layer["biases"])
    return activations @ params[-1]["weights"] + params[-1]["biases"]


def cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of the softmax."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


def error_rate(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Percentage of rows whose largest output is not that of their class."""
    wrong = outputs.argmax(axis=-1).astype(targets.dtype) != targets
    return 100 * jnp.mean(wrong, dtype=outputs.dtype)


def mean_square(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean square error."""
    return jnp.mean((outputs - targets) ** 2)


def network(
    name: str,
    description: str,
    parts: Sequence[Any],
    hidden_sizes: Sequence[int],
    *,
    classes: bool,
    hidden: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> Problem:
    """A multilayer network for classes (cross-entropy) or numbers (mean square)."""
    train, validation, test = _arrays(parts, "float32")
    targets = train["targets"]
    outputs = int(targets.max()) + 1 if classes else targets.shape[1]
    sizes = (train["inputs"].shape[1], *hidden_sizes, outputs)
    compare = cross_entropy if classes else mean_square

    def loss(params: Params, data: Data) -> jax.Array:
        return compare(forward(params, data["inputs"], hidden), data["targets"])

    def error(params: Params, data: Data) -> jax.Array:
        found = forward(params, data["inputs"], hidden)
        return (error_rate if classes else mean_square)(found, data["targets"])

    def torch_loss(params: Any, data: Any) -> Any:
        from torch.nn import functional

        compare = functional.cross_entropy if classes else functional.mse_loss
        found = forward(params, data["inputs"], lambda inputs: inputs.tanh())
        return compare(found, data["targets"])

    return Problem(
        name=name,
        description=f"{description}; net {'-'.join(map(str, sizes))}",
        dtype="float32",
        init=lambda key: init_network(sizes, "float32", key),
        loss=loss,
        train=train,
        validation=validation,
        test=test,
        error=error,
        error_name="% wrong" if classes else "mean square",
        torch_loss=torch_loss if hidden is jnp.tanh else None,
    )


def digits_parts(train: int) -> tuple[Any, ...]:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn."""
    inputs, targets = datasets.load_digits(return_X_y=True)
    return split(inputs / 16, targets, train)


def digits(train: int = 1024) -> Problem:
    """The network 64-64-10 on the digits."""
    return network(
        "digits",
        f"digits of scikit-learn, {train:,} to train; tanh, cross-entropy",
        digits_parts(train),
        (64,),
        classes=True,
    )


def deep_sigmoid(train: int = 512) -> Problem:
    """Three hidden layers of logistic units, whose gradients nearly vanish."""
    return network(
        "deep sigmoid net",
        f"digits, {train} to train; three hidden layers of logistic units",
        digits_parts(train),
        (16, 16, 16),
        classes=True,
        hidden=jax.nn.sigmoid,
    )


def small_regression() -> Problem:
    """A small network on the diabetes data that come with scikit-learn."""
    inputs, targets = _diabetes(scaled=True)
    parts = _standardize(split(inputs, targets, 266), targets=True)
    return network(
        "regression net",
        "diabetes of scikit-learn, standardized; tanh, mean square",
        parts,
        (8,),
        classes=False,
    )


def proben1(path: Path, hidden: int = 16) -> Problem:
    """A network on a Proben1 data set, split as the file says."""
    parts, classes = read_proben1(path)
    return network(
        path.stem,
        f"Proben1, {len(parts[0][0]):,} to train; tanh,"
        f" {'cross-entropy' if classes else 'mean square'}",
        parts,
        (hidden,),
        classes=classes,
    )


# --- Linear models -----------------------------------------------------------


def _linear(
    name: str,
    description: str,
    parts: Sequence[Any],
    *,
    classes: bool,
    ridge: float,
) -> Problem:
    """A linear model from 0, with a ridge that does not depend on units."""
    train, validation, test = _arrays(parts, "float64")
    spread = train["inputs"].std(axis=0)
    outputs = int(train["targets"].max()) + 1 if classes else 1
    compare = cross_entropy if classes else mean_square

    def init(key: jax.Array) -> Params:
        # About as far off as 0 is, seen from the standardized features.
        drawn = 0.1 * jax.random.normal(key, (spread.size, outputs), "float64")
        return [
            {
                "weights": drawn / spread[:, None],
                "biases": jnp.zeros(outputs, "float64"),
            }
        ]

    def loss(params: Params, data: Data) -> jax.Array:
        weights = params[0]["weights"] * spread[:, None]
        fit = compare(forward(params, data["inputs"], jnp.tanh), data["targets"])
        return fit + ridge * jnp.sum(weights**2)

    def error(params: Params, data: Data) -> jax.Array:
        found = forward(params, data["inputs"], jnp.tanh)
        return (error_rate if classes else mean_square)(found, data["targets"])

    return Problem(
        name=name,
        description=description,
        dtype="float64",
        init=init,
        loss=loss,
        train=train,
        validation=validation,
        test=test,
        error=error,
        error_name="% wrong" if classes else "mean square",
    )


def logistic(name: str, *, standardized: bool) -> Problem:
    """Softmax regression on ``"cancer"`` or ``"wine"`` of scikit-learn."""
    load = {"cancer": datasets.load_breast_cancer, "wine": datasets.load_wine}[name]
    inputs, targets = load(return_X_y=True)
    parts = split(inputs, targets, round(0.6 * len(inputs)))
    if standardized:
        parts = _standardize(parts, targets=False)
    units = "standardized features" if standardized else "features in their units"
    return _linear(
        f"logistic {name}, {'scaled' if standardized else 'raw'}",
        f"softmax regression, ridge 1e-3, {units}",
        parts,
        classes=True,
        ridge=1e-3,
    )


def least_squares() -> Problem:
    """Linear least squares on the diabetes data in their units."""
    inputs, targets = _diabetes(scaled=False)
    return _linear(
        "least squares, raw",
        "linear regression on diabetes of scikit-learn, features in their units",
        split(inputs, targets, 266),
        classes=False,
        ridge=0.0,
    )


# --- Functions ---------------------------------------------------------------


def _around(start: Sequence[float] | np.ndarray) -> Callable[[jax.Array], jax.Array]:
    """Starts at the textbook's point, with noise of standard deviation 0.1."""
    point = jnp.asarray(start)
    return lambda key: point + 0.1 * jax.random.normal(key, point.shape, "float64")


def quadratic(*, rotated: bool, size: int = 30, condition: float = 1e4) -> Problem:
    """A quadratic with geometric eigenvalues from 1 to `condition`."""
    eigenvalues = np.geomspace(1, condition, size)
    axes = np.eye(size)
    if rotated:
        axes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))
    roots = jnp.asarray(np.sqrt(eigenvalues)[:, None] * axes.T)

    def loss(params: Params, data: Data) -> jax.Array:
        return 0.5 * jnp.sum((data["roots"] @ params) ** 2)

    return Problem(
        name=f"quadratic, {'rotated' if rotated else 'axis-parallel'}",
        description=f"{size} dimensions, condition number {condition:,.0f}",
        dtype="float64",
        init=lambda key: jax.random.normal(key, (size,), "float64"),
        loss=loss,
        train={"roots": roots},
        torch_loss=lambda params, data: 0.5 * ((data["roots"] @ params) ** 2).sum(),
    )


def rosenbrock(size: int = 10) -> Problem:
    """Rosenbrock's valley, chained."""

    def loss(x: Params, data: Data) -> jax.Array:
        del data
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return Problem(
        "Rosenbrock",
        f"chained, {size} dimensions",
        "float64",
        _around(np.resize([-1.2, 1.0], size)),
        loss,
    )


def powell_singular() -> Problem:
    """Powell's function, whose Hessian is singular at the minimum."""

    def loss(x: Params, data: Data) -> jax.Array:
        del data
        a, b, c, d = x.reshape(4, -1)
        return jnp.sum(
            (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4
        )

    return Problem(
        "Powell singular",
        "extended, 20 dimensions",
        "float64",
        _around(np.repeat([3.0, -1.0, 0.0, 1.0], 5)),
        loss,
    )


def beale() -> Problem:
    """Beale's function of two variables."""
    constants = jnp.asarray([1.5, 2.25, 2.625])

    def loss(params: Params, data: Data) -> jax.Array:
        x, y = params
        powers = y ** jnp.arange(1.0, 4.0)
        return jnp.sum((data["constants"] - x * (1 - powers)) ** 2)

    return Problem(
        "Beale",
        "2 dimensions",
        "float64",
        _around([1.0, 1.0]),
        loss,
        {"constants": constants},
    )


def factorization() -> Problem:
    """A matrix of 20 x 15 as a product of rank 3, with noise."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(20, 3)) @ rng.normal(size=(3, 15))
    matrix += 0.1 * rng.normal(size=matrix.shape)

    def init(key: jax.Array) -> Params:
        left, right = jax.random.split(key)
        return {
            "left": jax.random.normal(left, (20, 3), "float64"),
            "right": jax.random.normal(right, (3, 15), "float64"),
        }

    return Problem(
        "matrix factorization",
        "20 x 15, rank 3, mean square",
        "float64",
        init,
        lambda params, data: mean_square(
            params["left"] @ params["right"], data["matrix"]
        ),
        {"matrix": jnp.asarray(matrix)},
    )


def gaussian_process(rows: int = 60) -> Problem:
    """The marginal likelihood of a Gaussian process, a length scale per input."""
    inputs, targets = datasets.make_friedman1(rows, 8, noise=1.0, random_state=0)
    targets = (targets - targets.mean()) / targets.std()

    def init(key: jax.Array) -> Params:
        return {
            "log_length_scales": 0.5 * jax.random.normal(key, (8,), "float64"),
            "log_amplitude": jnp.zeros((), "float64"),
            "log_noise": jnp.zeros((), "float64"),
        }

    def loss(params: Params, data: Data) -> jax.Array:
        scaled = data["inputs"] / jnp.exp(params["log_length_scales"])
        squares = jnp.sum((scaled[:, None] - scaled[None]) ** 2, axis=-1)
        kernel = jnp.exp(2 * params["log_amplitude"] - 0.5 * squares)
        noise = jnp.exp(2 * params["log_noise"]) * jnp.eye(rows)
        factor = jnp.linalg.cholesky(kernel + noise)
        whitened = jax.scipy.linalg.solve_triangular(
            factor, data["targets"], lower=True
        )
        log_determinant = jnp.sum(jnp.log(jnp.diag(factor)))
        constant = 0.5 * jnp.log(2 * jnp.pi)
        return (0.5 * whitened @ whitened + log_determinant) / rows + constant

    return Problem(
        "GP likelihood",
        f"Friedman's function, {rows} rows, 8 length scales, amplitude, noise",
        "float64",
        init,
        loss,
        {"inputs": jnp.asarray(inputs), "targets": jnp.asarray(targets)},
    )


def peaks() -> Problem:
    """Three Gaussian peaks on a sloping line, all parameters in their units."""
    grid = np.linspace(0, 10, 200)
    truth = {
        "heights": np.array([900.0, 250.0, 500.0]),
        "centers": np.array([2.5, 5.0, 6.5]),
        "widths": np.array([0.3, 0.8, 0.5]),
        "line": np.array([120.0, -4.0]),
    }
    guess = {
        "heights": np.array([600.0, 400.0, 400.0]),
        "centers": np.array([2.3, 4.6, 6.9]),
        "widths": np.array([0.5, 0.5, 0.5]),
        "line": np.array([0.0, 0.0]),
    }

    def curve(params: Params, grid: Any) -> Any:
        distances = (grid[:, None] - params["centers"]) / params["widths"]
        bells = jnp.exp(-0.5 * distances**2) @ params["heights"]
        return bells + params["line"][0] + params["line"][1] * grid

    noise = np.random.default_rng(0).normal(size=grid.size)
    observed = jnp.asarray(curve(truth, grid) + 5 * noise)

    def init(key: jax.Array) -> Params:
        keys = dict(zip(guess, jax.random.split(key, len(guess)), strict=True))
        return {
            part: numbers
            * (1 + 0.1 * jax.random.normal(keys[part], numbers.shape, "float64"))
            for part, numbers in guess.items()
        }

    return Problem(
        "peak fitting",
        "3 Gaussian peaks on a line, 11 parameters from 0.3 to 900, mean square",
        "float64",
        init,
        lambda params, data: mean_square(curve(params, data["grid"]), data["observed"]),
        {"grid": jnp.asarray(grid), "observed": observed},
    )


def predator_prey() -> Problem:
    """The four rates of Lotka and Volterra's equations, from noisy counts."""
    rates = np.array([1.1, 0.4, 0.1, 0.4])
    step, steps = 0.2, 60

    def velocity(state: jax.Array, rates: Any) -> jax.Array:
        prey, predators = state
        growth, hunting, feeding, death = rates
        return jnp.stack(
            [
                growth * prey - hunting * prey * predators,
                feeding * prey * predators - death * predators,
            ]
        )

    def solve(rates: Any) -> jax.Array:
        def runge_kutta(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            k1 = velocity(state, rates)
            k2 = velocity(state + 0.5 * step * k1, rates)
            k3 = velocity(state + 0.5 * step * k2, rates)
            k4 = velocity(state + step * k3, rates)
            state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            return state, state

        return jax.lax.scan(runge_kutta, jnp.array([10.0, 5.0]), length=steps)[1]

    noise = np.random.default_rng(0).normal(size=(steps, 2))
    observed = solve(jnp.asarray(rates)) * (1 + 0.05 * noise)

    return Problem(
        "predator and prey",
        "4 rates of an ordinary differential equation, 60 Runge-Kutta steps",
        "float64",
        lambda key: rates * (1 + 0.2 * jax.random.normal(key, (4,), "float64")),
        lambda params, data: mean_square(solve(params), data["observed"]),
        {"observed": observed},
    )
