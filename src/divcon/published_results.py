"""What the papers and the repositories of their code report for the presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Published:
    """A published result."""

    recall_at_1: float
    """0 to 1, of the best epoch on the test classes: that is how both papers choose."""
    source: str


_README = "README of CompVis/metric-learning-divide-and-conquer"
PUBLISHED: Mapping[str, Mapping[str, Published]] = MappingProxyType(
    {
        name: MappingProxyType({data: Published(recall / 100, source) for data, recall in scores.items()})
        for name, source, scores in (
            ("cvpr2019", "CVPR 2019", {"cub": 65.9, "cars": 84.6, "sop": 75.9, "inshop": 85.7}),
            ("cvpr2019-released", _README, {"sop": 76.40, "inshop": 87.36, "vehicleid-large": 91.54}),
            (
                "tpami2021-fixed",
                f"{_README}-improved",
                {"cub": 67.39, "cars": 87.22, "sop": 79.50, "inshop": 89.84, "vehicleid-large": 94.01},
            ),
            (
                "tpami2021-learned",
                f"{_README}-improved",
                {"cub": 67.71, "cars": 86.90, "sop": 79.80, "inshop": 90.49, "vehicleid-large": 93.93},
            ),
        )
    }
)
"""What is published, by preset and data set."""
