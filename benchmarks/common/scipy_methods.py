"""SciPy's methods, run until a budget of evaluations is spent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

METHODS = ("BFGS", "L-BFGS-B")


class Spent(Exception):  # noqa: N818
    """The budget is spent."""


def descend(
    method: str,
    evaluate: Callable[[Any], tuple[Any, Any]],
    start: Any,
    budget: int,
) -> tuple[np.ndarray, np.ndarray]:
    """All points that a method evaluates, and the losses there.

    Its stopping rules are off, and it is restarted wherever it stops.

    Args:
      method: Of `METHODS`.
      evaluate: The loss and its gradient at a point, which has the dtype of the start.
      start: A vector.
      budget: The number of evaluations.
    """
    stops = {"gtol": 0, "maxiter": 10**9}
    if method == "L-BFGS-B":
        stops |= {"ftol": 0, "maxfun": 10**9}
    points, losses = [], []

    def function(point: np.ndarray) -> tuple[float, np.ndarray]:
        if len(points) == budget:
            raise Spent
        points.append(point.astype(start.dtype))
        value, grads = evaluate(points[-1])
        losses.append(float(value))
        return losses[-1], np.asarray(grads, np.float64)

    point = start
    while True:
        try:
            point = scipy.optimize.minimize(
                function, point, jac=True, method=method, options=stops
            ).x
        except Spent:
            return np.array(points), np.array(losses)
        point = np.where(np.isfinite(point), point, start)
