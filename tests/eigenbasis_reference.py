"""Rprop in an eigenbasis in NumPy, for one leaf: one big matrix for a long vector.

It shares neither code nor structure with the package, which rotates a leaf axis by axis
and scales it separately; here one explicit matrix does both.
"""

import functools

import numpy as np
import reference


class Eigenbasis:
    """One leaf, of which some axes are rotated.

    With `scaled`, for vectors, the basis is learned in units of the step sizes.
    """

    def __init__(
        self, shape, rotated, *, scaled=False, decay=0.9, interval=5, **settings
    ):
        self.shape = shape
        self.scaled = scaled
        self.decay = decay
        self.interval = interval
        self.rprop = reference.Rprop(int(np.prod(shape)), **settings)
        self.moments = {axis: np.zeros((shape[axis],) * 2) for axis in rotated}
        self.bases = {axis: np.eye(shape[axis]) for axis in rotated}
        self.units = np.ones(shape)
        self.prev_grad = np.zeros(shape)
        self.calls = 0

    def directions(self, bases, units):
        """Columns: the change of the parameters by unit steps of each coordinate."""
        factors = [
            bases.get(axis, np.eye(size)) for axis, size in enumerate(self.shape)
        ]
        rotation = functools.reduce(np.kron, factors, np.eye(1))
        return units.ravel()[:, None] * rotation

    def learn(self, grad, value):
        """Whether the bases are due for an update."""
        self.calls += 1
        if not np.all(np.isfinite(grad)) or not np.isfinite(value):
            return False
        self.old_grad, self.prev_grad = self.prev_grad, grad
        if not np.any(self.old_grad) or np.all(grad == self.old_grad):
            return False
        change = self.units * (grad - self.old_grad)
        change = change / np.linalg.norm(change)
        for axis, moment in self.moments.items():
            rows = np.moveaxis(change, axis, 0).reshape(self.shape[axis], -1)
            self.moments[axis] = self.decay * moment + rows @ rows.T
        return self.calls % self.interval == 2 % self.interval

    def new_units(self):
        """The root mean square of each parameter's update, to a power of 2."""
        if not self.scaled:
            return self.units
        directions = self.directions(self.bases, self.units)
        step_sizes = np.array(self.rprop.step_sizes)
        sizes = np.sqrt(directions**2 @ (step_sizes / step_sizes.max()) ** 2)
        exponents = np.round(np.log2(sizes))
        return np.exp2(exponents - exponents.max())

    def change_basis(self, bases):
        """Transfer step sizes and signs, in the order of the docstring."""
        units = self.new_units()
        if self.scaled:
            ratio = units / self.units
            moment = np.diag(ratio) @ self.moments[0] @ np.diag(ratio)
            self.moments[0] = moment * np.trace(self.moments[0]) / np.trace(moment)
        new = self.directions(bases, units)
        weights = np.linalg.solve(new, self.directions(self.bases, self.units)) ** 2
        squares = np.array(self.rprop.step_sizes) ** 2
        remembered = squares * (np.array(self.rprop.prev_grad_signs) != 0)
        step_sizes = np.sqrt(weights @ squares)
        signs = np.sign(new.T @ self.old_grad.ravel())
        signs[weights @ remembered <= 0.5 * (weights @ squares)] = 0
        undone = [c.reduced_from is not None for c in self.rprop.coordinates]
        undone = weights @ (squares * undone) > 0.5 * (weights @ squares)
        signs[undone] = 0
        for i, coordinate in enumerate(self.rprop.coordinates):
            coordinate.step_size, coordinate.reduced_from = step_sizes[i], None
            if undone[i]:
                coordinate.reduced_from = step_sizes[i]
                coordinate.step_size = max(
                    self.rprop.eta_minus * step_sizes[i], self.rprop.min_step_size
                )
            coordinate.prev_grad = signs[i]
            coordinate.prev_update = -signs[i] * step_sizes[i]
        self.bases, self.units = bases, units

    def update(self, grad, value):
        """The update of one step, to be added to the parameters."""
        directions = self.directions(self.bases, self.units)
        updates = self.rprop.update(list(directions.T @ grad.ravel()), value)
        return (directions @ np.array(updates)).reshape(self.shape)
