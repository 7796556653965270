"""The command line of all benchmarks."""

import argparse
from pathlib import Path


def parser(description: str | None, topic: str) -> argparse.ArgumentParser:
    """A parser with the options that every measuring script has.

    Args:
      description: The module's docstring.
      topic: The folder of the script; names the default output folder.
    """
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument(
        "--quick", action="store_true", help="a smoke run: small sizes, few repeats"
    )
    options.add_argument(
        "--output-dir",
        type=Path,
        default=Path("output") / topic,
        help="folder for CSV files; parts that are already there are skipped",
    )
    return options


def add_data_dir(options: argparse.ArgumentParser, *, required: bool = False) -> None:
    """Add the option for the data sets of Proben1."""
    options.add_argument(
        "--data-dir",
        type=Path,
        required=required,
        help="folder with the .dt files of Proben1"
        + ("" if required else "; without it, they are skipped"),
    )
