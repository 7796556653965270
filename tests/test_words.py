"""Statements of README, CHANGELOG and the module about the package are true."""

import itertools
import re
import typing
from pathlib import Path

import jax
import pytest

import optax_rprop
from optax_rprop._layouts import LAYOUTS
from optax_rprop._rule import VARIANTS

ROOT = Path(__file__).parents[1]


def test_module_lists_the_public_names():
    """All of them, and no others."""
    listed = set(re.findall(r"`(\w+)`", optax_rprop.__doc__))
    assert listed == set(optax_rprop.__all__)


def test_changelog_has_the_version():
    """It is the newest entry."""
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == optax_rprop.__version__


def test_each_name_of_an_option_is_one_of_the_table():
    """The public types list the keys of the tables."""
    assert typing.get_args(optax_rprop.Variant) == tuple(VARIANTS)
    assert typing.get_args(optax_rprop.StateLayout) == tuple(LAYOUTS)


def test_what_public_states_hold_is_public():
    """So that it can be registered for `jax.export` and used in annotations."""
    for variant, state_layout in itertools.product(VARIANTS, LAYOUTS):
        optimizer = optax_rprop.scale_by_rprop(
            eta_plus=2.0, variant=variant, state_layout=state_layout
        )
        state = jax.eval_shape(optimizer.init, jax.ShapeDtypeStruct((), "float32"))
        for part in (state, state.variant, getattr(state, "lattice", state)):
            assert getattr(optax_rprop, type(part).__name__) is type(part)
            assert type(part).__name__ in optax_rprop.__all__


PAGES = [
    path
    # In docs/, pages in capitals are copies.
    for pattern in (
        "*.md",
        "docs/[a-z]*.md",
        "examples/*.md",
        "benchmarks/**/*.md",
        ".github/*.md",
    )
    for path in ROOT.glob(pattern)
]


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    """Each link to a file or heading of this repository."""
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
