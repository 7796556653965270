"""The documentation site names everything public, and its code runs as shown."""

import doctest
import re
from pathlib import Path

import jax
import pytest

import optax_rprop

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    page.stem: blocks
    for page in sorted(DOCS.glob("*.md"))
    if (blocks := BLOCK.findall(page.read_text()))
}


def test_reference_has_every_public_name():
    """Each has an autodoc directive, and only one."""
    pages = "".join(page.read_text() for page in DOCS.glob("api/*.md"))
    documented = re.findall(r"^\.\. auto\w+:: (\S+)", pages, re.MULTILINE)
    assert sorted(documented) == sorted(optax_rprop.__all__)


@pytest.mark.parametrize("page", BLOCKS)
def test_code_prints_what_the_page_shows(page):
    """A block is a doctest, or a few lines to be executed."""
    for block in BLOCKS[page]:
        # Without the strict mode of the tests, which readers do not have.
        with jax.numpy_dtype_promotion("standard"):
            if block.startswith(">>>"):
                test = doctest.DocTestParser().get_doctest(block, {}, page, page, 0)
                assert doctest.DocTestRunner().run(test).failed == 0
            else:
                exec(block, {})
