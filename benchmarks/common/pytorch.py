"""PyTorch, where it is installed."""

import importlib
from typing import Any

import jax
import numpy as np


def optional_torch() -> Any:
    """PyTorch, or None after a word to the reader."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        print(f"Without PyTorch, which cannot be imported: {error}.")
        return None
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        print("Without PyTorch, which does not see the GPU.")
        return None
    return torch


def device(torch: Any) -> Any:
    """The kind of device that JAX uses."""
    return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")


def tensors(torch: Any, tree: Any) -> Any:
    """The same tree with tensors for arrays."""

    def tensor(array: Any) -> Any:
        numbers = np.array(array)
        # PyTorch takes class numbers in 64 bits only.
        numbers = numbers.astype("i8") if numbers.dtype == "i4" else numbers
        return torch.tensor(numbers, device=device(torch))

    return jax.tree.map(tensor, tree)


def synchronize(torch: Any) -> None:
    """Wait for the device."""
    if device(torch).type == "cuda":
        torch.cuda.synchronize()
