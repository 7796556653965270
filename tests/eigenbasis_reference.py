"""Rprop in an eigenbasis in NumPy, for one leaf: one big rotation of a long vector.

It shares no code with the package and none of its structure: where the package turns
a leaf axis by axis, here the Kronecker product of the bases is written out.
"""

import functools

import numpy as np
import reference


class Eigenbasis:
    """One leaf of a shape, of which some axes are rotated."""

    def __init__(self, shape, rotated, decay=0.9, interval=5, **settings):
        self.shape = shape
        self.decay = decay
        self.interval = interval
        self.rprop = reference.Rprop(int(np.prod(shape)), **settings)
        self.moments = {axis: np.zeros((shape[axis],) * 2) for axis in rotated}
        self.bases = {axis: np.eye(shape[axis]) for axis in rotated}
        self.prev_grad = None
        self.differences = 0

    def rotation(self, bases):
        """What takes a leaf's numbers, in a row, from rotated to plain coordinates."""
        factors = [
            bases.get(axis, np.eye(size)) for axis, size in enumerate(self.shape)
        ]
        return functools.reduce(np.kron, factors, np.eye(1))

    def learn(self, grad, value):
        """Whether the bases are to turn now."""
        if not np.all(np.isfinite(grad)) or not np.isfinite(value):
            return False
        due = False
        if self.prev_grad is not None and np.any(grad != self.prev_grad):
            change = grad - self.prev_grad
            change = change / np.linalg.norm(change)
            for axis, moment in self.moments.items():
                rows = np.moveaxis(change, axis, 0).reshape(self.shape[axis], -1)
                self.moments[axis] = self.decay * moment + rows @ rows.T
            due = self.differences % self.interval == 0
            self.differences += 1
        self.old_grad, self.prev_grad = self.prev_grad, grad
        return due

    def turn(self, bases):
        """Take over step sizes and signs, in the order in which the rule is told."""
        new = self.rotation(bases)
        weights = (new.T @ self.rotation(self.bases)) ** 2
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
        self.bases = bases

    def update(self, grad, value):
        """The update of one step, to be added to the parameters."""
        rotation = self.rotation(self.bases)
        moves = self.rprop.update(list(rotation.T @ grad.ravel()), value)
        return (rotation @ np.array(moves)).reshape(self.shape)
