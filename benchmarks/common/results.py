"""Results: tidy CSV files that grow part by part, and their provenance."""

import datetime
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import pandas as pd

import optax_rprop

ENVIRONMENT = "environment.json"
PACKAGES = ("optax-rprop", "jax", "jaxlib", "optax", "numpy", "torch")
PACKAGES += ("scipy", "optimistix", "sif2jax")
# Enough for float32, in which most results are computed.
DIGITS = 7


Frame = Any
"""A `pandas.DataFrame` or `pandas.Series`, whose types pyright does not follow."""


class Study:
    """The results of one study, in files of one folder.

    A part, such as one problem, is written when it is done, and is not run again as
    long as its rows are there. Rows go into ``NAME.csv`` or ``NAME_TABLE.csv``;
    ``environment.json`` says where, when and for how long the study ran.

    Args:
      folder: Where the files are; created if missing.
      name: The name of the study.
      key: The columns of ``NAME.csv`` that identify a part.
      script: The script that ran it; by default, the one with that name.
    """

    def __init__(
        self, folder: Path, name: str, key: Sequence[str], *, script: str = ""
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._name, self._script = folder, name, script or name
        self._done: set[tuple[str, ...]] = set()
        path = folder / f"{name}.csv"
        if path.exists():
            parts = pd.read_csv(path, usecols=list(key), dtype=str)[list(key)]
            self._done = set(parts.itertuples(index=False, name=None))

    def has(self, *part: object) -> bool:
        """Whether the part with these values of the key is done."""
        return tuple(map(str, part)) in self._done

    def add(self, rows: Iterable[Mapping[str, Any]] | Frame, table: str = "") -> None:
        """Append rows; those of ``NAME.csv`` must be last: they mark the part as done.

        Raises:
          ValueError: The file has other columns.
        """
        name = f"{self._name}_{table}" if table else self._name
        path = self._folder / f"{name}.csv"
        frame: Frame = pd.DataFrame(rows)
        if frame.empty:
            return
        if path.exists():
            columns = list(pd.read_csv(path, nrows=0).columns)
            if sorted(columns) != sorted(frame.columns):
                raise ValueError(
                    f"{path} has the columns {columns}, not"
                    f" {list(frame.columns)}; move it away and run again."
                )
            frame = frame[columns]
        frame.to_csv(
            path,
            mode="a",
            header=not path.exists(),
            index=False,
            float_format=f"%.{DIGITS}g",
        )
        self._describe()

    def _describe(self) -> None:
        """Append the environment of this run to those of earlier ones."""
        path = self._folder / ENVIRONMENT
        scripts = json.loads(path.read_text()) if path.exists() else {}
        now = environment()
        runs = [run for run in scripts.get(self._script, []) if run["id"] != now["id"]]
        minutes = (time.perf_counter() - _START) / 60
        scripts[self._script] = [*runs, now | {"minutes": round(minutes, 1)}]
        path.write_text(json.dumps(scripts, indent=1, sort_keys=True) + "\n")


def read(folder: Path, name: str) -> Frame:
    """The rows of ``NAME.csv``.

    Raises:
      SystemExit: There are none.
    """
    path = folder / f"{name}.csv"
    if not path.exists():
        raise SystemExit(f"{path} is missing: measure first, as README.md says.")
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def exists(folder: Path, name: str) -> bool:
    """Whether there is a ``NAME.csv``."""
    return (folder / f"{name}.csv").exists()


_START = time.perf_counter()
_ID = f"{datetime.datetime.now():%Y-%m-%dT%H:%M:%S}"


def environment() -> dict[str, Any]:
    """The machine, the versions and the command that the numbers depend on."""
    return {
        "id": _ID,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "options": [_portable(option) for option in sys.argv[1:]],
    }


def _portable(option: str) -> str:
    """An option without the paths of this machine."""
    return Path(option).name if Path(option).is_absolute() else option


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    if package == "optax-rprop":
        # The imported version; an editable installation may have been made long ago.
        return optax_rprop.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def context(folder: Path, *scripts: str) -> str:
    """When, where, with which versions and how long scripts ran, in sentences."""
    kept = json.loads((folder / ENVIRONMENT).read_text())
    return "\n".join(
        f"- `{script}`, {_sentence(run)}" for script in scripts for run in kept[script]
    )


def _sentence(run: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    return (
        f"{run['id'][:10]}: {run['minutes']:.3g} minutes on {run['cores']} cores of"
        f" {run['processor']} ({', '.join(run['devices'])}); Python {run['python']},"
        f" {versions}."
    )
