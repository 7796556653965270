"""The documentation site: ``python -m sphinx -W -n docs docs/_build``.

Pages that exist elsewhere are not kept here. README.md is included by ``index.md``; all
others are copied at every build, with the files next to them, so that relative links
between them also work on the site. Git ignores the copies: edit the originals.
"""

import shutil
import sys
from pathlib import Path

import optax
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from jax.typing import ArrayLike, DTypeLike
from sphinx import addnodes
from sphinx.util.typing import stringify_annotation

sys.path.insert(0, str(Path(__file__).parent))

import pictures

import optax_rprop
from optax_rprop._initial import InitialStepSizes
from optax_rprop._sign_test import LeanMask

HERE = Path(__file__).parent
ROOT = HERE.parent
for folder in ("examples", "benchmarks"):
    shutil.rmtree(HERE / folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "output")
    shutil.copytree(ROOT / folder, HERE / folder, ignore=ignored)
for file in ("CHANGELOG.md", "LICENSE", ".github/CONTRIBUTING.md"):
    shutil.copy2(ROOT / file, HERE)
pictures.draw(HERE / "_pictures")

project = "optax_rprop"
version = release = optax_rprop.__version__
html_title = f"optax_rprop {version}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
myst_heading_anchors = 4

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_copyright = False
html_copy_source = html_show_sourcelink = False

autodoc_preserve_defaults = True
napoleon_attr_annotations = False
napoleon_use_rtype = False
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 72
# The site is built offline, so types of other projects have no pages.
nitpick_ignore_regex = [
    ("py:class", r"jax\..*|optax\..*|ArrayLike|DTypeLike|OptState"),
    ("py:class", r"InitialStepSizes|LeanMask"),
]
# Aliases that signatures show by name instead of spelling them out; longest first.
_ALIASES = {
    stringify_annotation(alias, "smart"): name
    for alias, name in (
        (InitialStepSizes, "InitialStepSizes"),
        (LeanMask, "LeanMask"),
        (optax.OptState, "OptState"),
        (ArrayLike, "ArrayLike"),
        (DTypeLike, "DTypeLike"),
        (optax_rprop.Variant, "Variant"),
        (optax_rprop.StateLayout, "StateLayout"),
    )
}


def name_aliases(app, what, name, obj, options, signature, returns):
    """Write ``ArrayLike`` instead of its eight types."""
    for long, short in _ALIASES.items():
        signature = signature and signature.replace(long, short)
    return signature, returns


def name_role(name, rawtext, text, lineno, inliner, options=None, content=None):
    """Text in single backticks: a link if it is a public name, otherwise code."""
    literal = nodes.literal(rawtext, text)
    target = text.removeprefix("optax_rprop.")
    if target not in optax_rprop.__all__:
        return [literal], []
    reference = addnodes.pending_xref(
        rawtext,
        literal,
        refdomain="py",
        reftype="obj",
        reftarget=f"optax_rprop.{target}",
        refexplicit=True,
        refdoc=inliner.document.settings.env.docname,
    )
    return [reference], []


default_role = "name"


def move_links(app, docname, content):
    """Fix the links of pages that the site puts elsewhere.

    README.md is the index. And GitHub Pages does not publish a folder ``.github``.
    """
    text, up = content[0], "../" * docname.count("/")
    if not up:
        text = text.replace("](../", "](")
    if up or docname == "CONTRIBUTING":
        text = text.replace(f"]({up}README.md", f"]({up}index.md")
    content[0] = text.replace(f"]({up}.github/", f"]({up}")


def visit_math(self, node):
    """Math as MathML, which browsers render by themselves."""
    math = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    # Browsers would stretch braces written as \{ too far.
    for brace in "{}":
        math = math.replace(f"<mo>{brace}", f'<mo stretchy="false">{brace}')
    self.body.append(math)
    raise nodes.SkipNode


def setup(app):
    """Register all of this."""
    app.add_role("name", name_role)
    app.connect("autodoc-process-signature", name_aliases)
    app.connect("source-read", move_links)
    app.connect("include-read", lambda app, _, page, text: move_links(app, page, text))
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
