"""What all benchmark scripts share: options, the machine, tables, files."""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("optax-rprop", "jax", "jaxlib", "optax", "flax", "numpy", "torch")


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that every script has."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument(
        "--quick", action="store_true", help="a smoke run: small sizes, few repeats"
    )
    options.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output"),
        help="folder for JSON, Markdown tables and pictures; made if missing",
    )
    return options


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """The machine, the versions and the command: what a number depends on."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
        "command": " ".join(["python", *sys.argv]),
    }


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [
        "| " + " | ".join(header) + " |",
        "|---" + "|--:" * (len(header) - 1) + "|",
    ]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines)


def write_results(
    output_dir: Path, name: str, results: dict[str, Any], report: str
) -> None:
    """Write ``name.json`` and ``name.md``, each with its environment, and print."""
    output_dir.mkdir(parents=True, exist_ok=True)
    context = environment()
    (output_dir / f"{name}.json").write_text(
        json.dumps({"environment": context, **results}, indent=1) + "\n"
    )
    versions = ", ".join(f"{key} {value}" for key, value in context["versions"].items())
    footer = (
        f"`{context['command']}` on {context['processor']}, {context['cores']} cores,"
        f" {', '.join(sorted(set(context['devices'])))}; Python {context['python']},"
        f" {versions}; {context['date']}."
    )
    text = f"{report}\n\n{footer}\n"
    (output_dir / f"{name}.md").write_text(text)
    print(text)
    print(f"Written to {output_dir}/: {name}.json, {name}.md")
