"""Pictures of an embedding in two dimensions, as files: PNG, SVG, or a page that stands alone."""

from __future__ import annotations

from divcon.maps.draw import draw_map

__all__ = ["draw_map"]
