"""All code that a reader can copy from the Markdown files runs, as for a reader.

A separate process per file executes its Python blocks, because the strict promotion,
eight devices and warnings of the tests cause errors that no reader has. This module,
run as a script, is that process.
"""

import ast
import contextlib
import importlib.metadata
import io
import json
import re
import subprocess
import sys
import tomllib
import traceback
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
# README.md is read from top to bottom, so its blocks share their names; each
# recipe stands alone.
MARKDOWN = {
    "README.md": "shared",
    "examples/README.md": "fresh",
    "examples/LIBRARIES.md": "fresh",
}
RECIPES = (ROOT / "examples" / "README.md").read_text()
LIBRARIES = (ROOT / "examples" / "LIBRARIES.md").read_text()
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT_NAMES = {
    "jax-md": "jax_md",
    "orbax-checkpoint": "orbax",
    "scikit-learn": "sklearn",
}


class Block(NamedTuple):
    """A Python block, and the line of the file on which its fence opens."""

    line: int
    source: str


class Outcome(NamedTuple):
    """The outcome of a block.

    Attributes:
      shown: Its output.
      failure: Where it failed, or None.
      missing: Required packages that are absent; if any, it was not executed.
    """

    shown: str
    failure: str | None
    missing: list[str]


def python_blocks(text):
    """The Python blocks of a Markdown text."""
    return [
        Block(text.count("\n", 0, fence.start()) + 1, fence[2])
        for fence in FENCE.finditer(text)
        if fence[1] == "python"
    ]


def extra(name):
    """The requirements of an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(line) for line in project["optional-dependencies"][name]]


def missing_extras():
    """Packages of the examples' extras that are absent."""
    missing = set()
    for requirement in extra("examples") + extra("libraries"):
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or version not in requirement.specifier:
            missing.add(IMPORT_NAMES.get(requirement.name, requirement.name))
    return missing


def imported(source):
    """Names of the packages that a block imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    return names


def execute(file, namespaces):
    """Execute the blocks of a file one after another; returns their outcomes."""
    import jax

    outcomes = []
    absent = missing_extras()
    namespace = {}
    for line, source in python_blocks(Path(file).read_text()):
        if namespaces == "fresh" or not namespace:
            # Python shows deprecation warnings only to the main module.
            namespace = {"__name__": "__main__"}
        if missing := imported(source) & absent:
            outcomes.append(Outcome("", None, sorted(missing)))
            continue
        shown, failure = io.StringIO(), None
        # The empty lines make tracebacks point into the Markdown file.
        padded = "\n" * line + source
        with (
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
            warnings.catch_warnings(),
        ):
            try:
                exec(compile(padded, file, "exec"), namespace)
            except (Exception, SystemExit):
                failure = traceback.format_exc()
        outcomes.append(Outcome(shown.getvalue(), failure, []))
        jax.config.update("jax_enable_x64", False)
    return outcomes


def execute_elsewhere(file, namespaces, folder):
    """`execute` in a new process, in an empty folder."""
    results = folder / "outcomes.json"
    process = subprocess.run(
        # -P: a reader does not have the folder of the tests on the path.
        [sys.executable, "-P", __file__, str(file), namespaces, str(results)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, process.stderr
    return [Outcome(*outcome) for outcome in json.loads(results.read_text())]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("README.md", marks=pytest.mark.stack),
        pytest.param("examples/README.md", marks=[pytest.mark.slow, pytest.mark.stack]),
        pytest.param(
            "examples/LIBRARIES.md", marks=[pytest.mark.slow, pytest.mark.once]
        ),
    ],
)
def test_blocks_run(name, tmp_path):
    """Each ends without an error and without a visible warning.

    One test per file, because its blocks share a process, whose start is slow.
    """
    outcomes = execute_elsewhere(ROOT / name, MARKDOWN[name], tmp_path)
    lines = [block.line for block in python_blocks((ROOT / name).read_text())]
    for line, (shown, failure, _) in zip(lines, outcomes, strict=True):
        assert failure is None, f"{name}:{line}: {failure}\n{shown}"
        assert "Warning" not in shown, f"{name}:{line}: {shown}"
    missing = sorted({package for outcome in outcomes for package in outcome.missing})
    if missing:
        pytest.skip(f"needs the extras of the examples: {', '.join(missing)}")


@pytest.mark.parametrize("name", MARKDOWN)
def test_no_fence_escapes(name):
    """Every fence opens a Python block or one of another known language."""
    text = (ROOT / name).read_text()
    fences = FENCE.findall(text)
    assert 2 * len(fences) == sum("```" in line for line in text.splitlines())
    assert {language for language, _ in fences} <= {"bibtex", "python", "sh"}


def recipes(markdown):
    """The sections under the heading "Recipes", by title."""
    _, _, text = markdown.partition("\n## Recipes\n")
    text, _, _ = text.partition("\n## ")
    titles_and_texts = re.split(r"^### (.*)\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(titles_and_texts[::2], titles_and_texts[1::2], strict=True))


def test_recipes_check_themselves():
    """A recipe has a Python block, and each of its blocks ends in an assertion."""
    for title, text in (recipes(RECIPES) | recipes(LIBRARIES)).items():
        blocks = python_blocks(text)
        assert blocks, title
        for block in blocks:
            assert isinstance(ast.parse(block.source).body[-1], ast.Assert), title


def test_table_lists_the_scripts():
    """Every script has a row in the table of examples."""
    rows = re.findall(r"^\| \[(\w+\.py)\]\((\w+\.py)\) \|", RECIPES, re.MULTILINE)
    assert all(name == link for name, link in rows)
    modules = (ROOT / "examples").glob("*.py")
    scripts = {module.name for module in modules if "__main__" in module.read_text()}
    assert scripts == {name for name, _ in rows}


def test_table_lists_the_libraries():
    """Each library of the extra is in the table, and a recipe imports it."""
    table = "".join(re.findall(r"^\|.*\n", LIBRARIES, re.MULTILINE)).lower()
    used = set().union(*(imported(block.source) for block in python_blocks(LIBRARIES)))
    for requirement in extra("libraries"):
        assert requirement.name.lower() in table
        assert IMPORT_NAMES.get(requirement.name, requirement.name) in used


if __name__ == "__main__":
    file_to_execute, kind, results_file = sys.argv[1:]
    Path(results_file).write_text(json.dumps(execute(file_to_execute, kind)))
