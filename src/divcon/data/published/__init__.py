"""Readers of the data sets that papers report on, as they are unpacked from their original archives."""

from __future__ import annotations

from divcon.data.published.cars import read_cars
from divcon.data.published.counts import PUBLISHED_COUNTS, PublishedCounts
from divcon.data.published.cub import read_cub
from divcon.data.published.inshop import read_inshop
from divcon.data.published.market1501 import read_market1501
from divcon.data.published.sop import read_sop
from divcon.data.published.vehicleid import read_vehicleid

__all__ = [
    "PUBLISHED_COUNTS",
    "PublishedCounts",
    "read_cars",
    "read_cub",
    "read_inshop",
    "read_market1501",
    "read_sop",
    "read_vehicleid",
]
