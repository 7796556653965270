"""The layouts in which the state is kept: a file each, and this table of them."""

from typing import Literal

from optax_rprop._layouts import byte, packed, split
from optax_rprop._layouts.interface import Layout

StateLayout = Literal["split", "packed", "byte"]

LAYOUTS: dict[StateLayout, Layout] = {
    "split": split.LAYOUT,
    "packed": packed.LAYOUT,
    "byte": byte.LAYOUT,
}
LAYOUT_OF = {layout.state_type: layout for layout in LAYOUTS.values()}
"""The layout of each type of state."""
