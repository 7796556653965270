"""The four Rprop rules in plain Python, one coordinate at a time.

Written from the papers' pseudo-code, one function per variant, in the order of the
papers. It shares no code, structure or encoding with the package, which the tests
compare with it. In contrast to the package, it remembers the previous gradient and the
previous update, as the papers do.
"""

import math


class Coordinate:
    """One coordinate's memory between two steps.

    `reduced_from` is the step size before it was reduced by an undone update; None if
    the last update was not undone.
    """

    def __init__(self, step_size):
        self.step_size = step_size
        self.prev_grad = 0.0
        self.prev_update = 0.0
        self.reduced_from = None


def sign(number):
    if number > 0:
        return 1
    if number < 0:
        return -1
    return 0  # For 0 and NaN.


def rprop_minus(c, grad, rose, h):
    """Riedmiller 1994: a changed sign reduces the step size of the update."""
    if sign(grad) == sign(c.prev_grad) != 0:
        c.step_size = min(c.step_size * h.eta_plus, h.max_step_size)
    elif sign(grad) == -sign(c.prev_grad) != 0:
        c.step_size = max(c.step_size * h.eta_minus, h.min_step_size)
    c.prev_update = -sign(grad) * c.step_size
    c.prev_grad = 0.0 if math.isnan(grad) else grad
    return c.prev_update


def irprop_minus(c, grad, rose, h):
    """Igel and Huesken 2003: a changed sign sets the gradient to 0."""
    if sign(grad) == sign(c.prev_grad) != 0:
        c.step_size = min(c.step_size * h.eta_plus, h.max_step_size)
    elif sign(grad) == -sign(c.prev_grad) != 0:
        c.step_size = max(c.step_size * h.eta_minus, h.min_step_size)
        grad = 0.0
    c.prev_update = -sign(grad) * c.step_size
    c.prev_grad = 0.0 if math.isnan(grad) else grad
    return c.prev_update


def undo(c, h):
    """Undo the last update; the step size is reduced only once per update."""
    if c.prev_update == 0:
        c.reduced_from = None
    elif c.reduced_from is None:
        c.reduced_from = c.step_size
        c.step_size = max(c.step_size * h.eta_minus, h.min_step_size)
    c.prev_grad = 0.0
    c.prev_update = -c.prev_update
    return c.prev_update


def rprop_plus(c, grad, rose, h):
    """Riedmiller and Braun 1993: a changed sign undoes the last update.

    A NaN gradient means that the function has no value here: return to the last point.
    """
    if math.isnan(grad) or sign(grad) == -sign(c.prev_grad) != 0:
        return undo(c, h)
    c.reduced_from = None
    if sign(grad) == sign(c.prev_grad) != 0:
        c.step_size = min(c.step_size * h.eta_plus, h.max_step_size)
    c.prev_update = -sign(grad) * c.step_size
    c.prev_grad = grad
    return c.prev_update


def irprop_plus(c, grad, rose, h):
    """Igel and Huesken 2003: a changed sign undoes it only if the loss rose."""
    changed = sign(grad) == -sign(c.prev_grad) != 0
    if rose and (changed or (math.isnan(grad) and c.prev_grad != 0)):
        return undo(c, h)
    c.reduced_from = None
    return irprop_minus(c, grad, rose, h)


def skip(c):
    """As without this step, except that an undone update is settled."""
    if c.reduced_from is not None:
        c.reduced_from, c.prev_update = None, 0.0
    return 0.0


RULES = {
    "rprop-": rprop_minus,
    "irprop-": irprop_minus,
    "rprop+": rprop_plus,
    "irprop+": irprop_plus,
}


class Rprop:
    """A vector of coordinates, and the loss that couples them in irprop+."""

    def __init__(
        self,
        size,
        variant="irprop-",
        learning_rate=0.01,
        eta_minus=0.5,
        eta_plus=1.2,
        min_step_size=1e-6,
        max_step_size=50.0,
        skip_zero_grads=False,
    ):
        self.rule = RULES[variant]
        self.watches_loss = variant == "irprop+"
        self.eta_minus = eta_minus
        self.eta_plus = eta_plus
        self.min_step_size = min_step_size
        self.max_step_size = max_step_size
        self.skip_zero_grads = skip_zero_grads
        self.prev_value = math.inf
        self.coordinates = [Coordinate(learning_rate) for _ in range(size)]

    def update(self, grads, value=None):
        """The updates of one step, to be added to the parameters."""
        rose = False
        if self.watches_loss:
            outside = math.isnan(value) or value == math.inf
            if outside and self.prev_value < math.inf:
                return [undo(c, self) for c in self.coordinates]
            rose = not outside and value > self.prev_value
            if math.isfinite(value):
                self.prev_value = value
        return [
            skip(c)
            if self.skip_zero_grads and grad == 0
            else self.rule(c, grad, rose, self)
            for c, grad in zip(self.coordinates, grads, strict=True)
        ]

    @property
    def step_sizes(self):
        """The step sizes of the last updates."""
        return [
            c.step_size if c.reduced_from is None else c.reduced_from
            for c in self.coordinates
        ]

    @property
    def prev_grad_signs(self):
        return [sign(c.prev_grad) for c in self.coordinates]

    @property
    def codes(self):
        """The remembered signs, or twice the sign of an update that was just undone."""
        return [
            sign(c.prev_grad)
            if c.reduced_from is None
            else int(math.copysign(2, c.prev_update))
            for c in self.coordinates
        ]
