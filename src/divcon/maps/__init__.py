"""Pictures of an embedding in two dimensions, as files: PNG, SVG, or a page that stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.maps.draw import draw_map

__all__ = ["draw_map"]

__getattr__, __dir__ = lazy_names(__name__, {"draw_map": "draw"})
