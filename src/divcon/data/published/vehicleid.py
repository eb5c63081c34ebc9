"""PKU VehicleID (Liu et al. 2016): vehicles from the front and the back, under the cameras of a city."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Literal

import numpy as np

from divcon.data.benchmark import Benchmark, labelled
from divcon.data.published.build import build
from divcon.data.published.tree import find_tree, read_list, require
from divcon.errors import ConfigError, unknown
from divcon.runtime.context import DEFAULT, Context

Size = Literal["small", "medium", "large"]
TEST_VEHICLES = {"small": 800, "medium": 1600, "large": 2400}
"""The number of vehicles in each of the three test sets."""
_FOLDER = "train_test_split"
_TRAIN = f"{_FOLDER}/train_list.txt"


def read_vehicleid(
    root: str | os.PathLike[str] | None = None,
    *,
    size: Size = "large",
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """PKU VehicleID with one of its three tests, leave-one-out over the test's list.

    Args:
        root: the folder VehicleID_V1.0, with train_test_split/train_list.txt, test_list_800.txt (1600, 2400) and
            image/; or an archive of it, which is unpacked beside itself.
        size: the test: small (800 vehicles), medium (1,600) or large (2,400).
        check_files: look for every image now, not when it is first used.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, a list or image that is missing, a line of a list that is not as published.
        ConfigError: there is no such size.
        OutputError: the archive cannot be unpacked where it is.
    """
    if size not in TEST_VEHICLES:
        raise ConfigError(f"vehicleid: {unknown('size', size, TEST_VEHICLES)}")
    test = f"{_FOLDER}/test_list_{TEST_VEHICLES[size]}.txt"
    root = find_tree("vehicleid", root, (_TRAIN, test), context).root
    require("vehicleid", root, [_TRAIN, test, "image"])
    lists = [read_list(root / name, ("image", "vehicle")) for name in (_TRAIN, test)]
    for part in lists:
        part.numbers("vehicle")
    vehicles = [vehicle for part in lists for vehicle in part.texts("vehicle")]
    label_names, labels = labelled(vehicles)
    train = np.arange(len(vehicles)) < len(lists[0])
    return build(
        f"vehicleid-{size}",
        root,
        paths=[f"image/{image}.jpg" for part in lists for image in part.texts("image")],
        labels=labels,
        label_names=label_names,
        parts={"train": train, "test": ~train},
        folders=["image"],
        others=True,
        check_files=check_files,
    )


def vehicleid_of(size: Size) -> Callable[..., Benchmark]:
    """The reader of one of the three tests."""

    def read(
        root: str | os.PathLike[str] | None = None,
        *,
        check_files: bool = True,
        context: Context = DEFAULT,
    ) -> Benchmark:
        return read_vehicleid(root, size=size, check_files=check_files, context=context)

    return read
