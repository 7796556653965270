"""What README and CHANGELOG say of the package is true of it."""

import re
import typing
from pathlib import Path

import optax_rprop
from optax_rprop._layouts import LAYOUTS
from optax_rprop._rule import VARIANTS

ROOT = Path(__file__).parents[1]


def test_readme_lists_the_public_names():
    """All of them, and no other."""
    section = (ROOT / "README.md").read_text().partition("## Public names\n")[2]
    rows = re.findall(r"^\| (`.*?) \|", section.partition("\n## ")[0], re.M)
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    assert sorted(listed) == sorted(optax_rprop.__all__)


def test_changelog_has_the_version():
    """As the newest entry."""
    newest = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert newest == optax_rprop.__version__


def test_each_name_of_an_option_is_one_of_the_table():
    """The types for users name what the tables hold."""
    assert typing.get_args(optax_rprop.Variant) == tuple(VARIANTS)
    assert typing.get_args(optax_rprop.StateLayout) == tuple(LAYOUTS)
