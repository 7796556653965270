"""The style of all pictures, and one colour per optimizer."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

mpl.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "font.size": 9,
    }
)
DOTS_PER_INCH = 100
COLORS = 128

# The palette of Okabe and Ito. Blue is Rprop, vermilion Adam, orange SGD.
_DASHED, _DOTTED = (0, (4, 1.5)), (0, (1, 1))
_STYLES: dict[str, tuple[str, Any]] = {
    "irprop+": ("#0072B2", "-"),
    "irprop-": ("#56B4E9", "-"),
    "rprop+": ("#0072B2", _DASHED),
    "rprop-": ("#56B4E9", _DASHED),
    "eigenbasis": ("#CC79A7", "-"),
    "mini-batch Rprop": ("#0072B2", "-"),
    "irprop-, split": ("#56B4E9", "-"),
    "irprop-, packed": ("#0072B2", "-"),
    "irprop-, byte": ("#0072B2", _DASHED),
    "mini-batch Rprop, packed": ("#009E73", "-"),
    "mini-batch Rprop, bfloat16, byte": ("#009E73", _DASHED),
    "optax.rprop": ("#009E73", _DOTTED),
    "Rprop": ("#009E73", "-"),
    "optax.adam": ("#D55E00", "-"),
    "Adam": ("#D55E00", "-"),
    "Adam, 0.001": ("#D55E00", "-"),
    "optax.sgd": ("#E69F00", "-"),
    "SGD, momentum 0.9": ("#E69F00", "-"),
    "SGD, tuned": ("#E69F00", "--"),
    "Lion": ("#CC79A7", "-."),
    "L-BFGS": ("#000000", "-"),
    "optax.lbfgs": ("#000000", "-"),
    "SciPy BFGS": ("#009E73", "-"),
    "SciPy L-BFGS-B": ("#555555", _DASHED),
    "optimistix.BFGS": ("#E69F00", "-"),
    "copy of the parameters": ("#000000", ":"),
    "torch.optim.Rprop, compiled": ("#555555", _DASHED),
}


def style(optimizer: str) -> dict[str, Any]:
    """Colour and dashes of an optimizer's line."""
    color, dashes = _STYLES.get(optimizer, ("#999999", "-"))
    return {"color": color, "linestyle": dashes, "label": optimizer}


def figure(width: float, height: float) -> Figure:
    """An empty picture; sizes are in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def legend(picture: Figure, axes: Any, columns: int) -> None:
    """One legend below all panels, with the lines of all of them."""
    handles: dict[str, Any] = {}
    for panel in np.ravel(axes):
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    picture.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns
    )


def save(picture: Figure, path: Path) -> None:
    """Write a PNG with few colours, a third of the usual size."""
    buffer = io.BytesIO()
    picture.savefig(buffer, dpi=DOTS_PER_INCH)
    with Image.open(buffer) as image:
        image.convert("RGB").quantize(COLORS).save(path, optimize=True)
