"""The layouts in which the state is stored: one file per layout, and this table."""

from typing import Any, Literal, NamedTuple

import jax

from optax_rprop._layouts.byte import Byte
from optax_rprop._layouts.layout import Layout, Memory, fields_of
from optax_rprop._layouts.packed import Packed
from optax_rprop._layouts.split import Split

StateLayout = Literal["split", "packed", "byte"]

LAYOUTS: dict[StateLayout, type[Layout]] = {
    "split": Split,
    "packed": Packed,
    "byte": Byte,
}
_LAYOUT_OF = {layout.state_type: layout for layout in LAYOUTS.values()}


class Found(NamedTuple):
    """A state of Rprop in a tree, where it is nested, and its layout."""

    path: str
    state: Any
    layout: type[Layout]

    @property
    def tree(self) -> Any:
        """One of the state's trees that are like the parameters."""
        return getattr(self.state, self.layout.tree_names[0])

    def memory(self) -> list[Memory]:
        """Step sizes and codes, leaf by leaf."""
        leaves = fields_of(self.layout, self.state)
        return [self.layout.read(fields, self.state) for fields in leaves]


def is_rprop_state(node: Any) -> bool:
    """Whether a node of a tree is a state of Rprop, in any layout."""
    return type(node) in _LAYOUT_OF


def find_states(tree: Any) -> list[Found]:
    """All states of Rprop in a tree."""
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_rprop_state)
    return [
        Found(jax.tree_util.keystr(path), node, _LAYOUT_OF[type(node)])
        for path, node in nodes
        if is_rprop_state(node)
    ]
