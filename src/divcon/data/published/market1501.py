"""Market-1501 (Zheng et al. 2015): 1,501 people under six cameras before a supermarket."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from divcon.data.benchmark import Benchmark, labelled
from divcon.data.published.build import build, swapped_error
from divcon.data.published.tree import find_tree, images_below, require
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

_FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
_NAME = re.compile(r"(?P<person>-1|\d{4})_c(?P<camera>\d+)s\d+_\d+_\d+\.jpe?g", re.IGNORECASE | re.ASCII)
JUNK = "-1"
"""The label of gallery images that are neither hit nor miss: bad detections of the people who are asked for."""
DISTRACTOR = "0000"
"""The label of gallery images that are a miss for every query."""


def read_market1501(
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """Market-1501: queries against a gallery, both with the camera that the file's name gives.

    A query ignores images of its own person and camera, and the junk: as a query ignores its own group, all queries
    and the junk are of group 0. The gallery holds the junk all the same, as is published.

    Args:
        root: the folder Market-1501-v15.09.15, with bounding_box_train/, query/ and bounding_box_test/; or its zip,
            which is unpacked beside itself.
        check_files: note numbers that are not the published ones; there is no list that says which images there are.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, a folder that is missing or empty, swapped folders, an image whose name is not as
            published.
        OutputError: the archive cannot be unpacked where it is.
    """
    root = find_tree("market1501", root, tuple(_FOLDERS.values()), context).root
    require("market1501", root, _FOLDERS.values())
    paths: list[str] = []
    people: list[str] = []
    cameras: list[int] = []
    parts: list[str] = []
    for part, folder in _FOLDERS.items():
        named = _named_in(root, folder)
        if part != "gallery" and (odd := [path for path, name in named if name["person"] in (JUNK, DISTRACTOR)]):
            why = f"{odd[0]} is junk or a distractor, which the gallery alone has"
            raise swapped_error(root, folder, _FOLDERS["gallery"], why)
        paths += [path for path, _ in named]
        people += [name["person"] for _, name in named]
        cameras += [int(name["camera"]) for _, name in named]
        parts += [part] * len(named)
    label_names, labels = labelled(people)
    part_of, junk = np.array(parts), np.array(people) == JUNK
    benchmark = build(
        "market1501",
        root,
        paths=paths,
        labels=labels,
        label_names=label_names,
        parts={part: part_of == part for part in _FOLDERS},
        folders=list(_FOLDERS.values()),
        cameras=np.array(cameras, np.int64),
        groups=np.where(junk | (part_of == "query"), 0, -1),
        check_files=check_files,
    )
    return replace(benchmark, no_classes=(JUNK, DISTRACTOR))


def _named_in(root: Path, folder: str) -> list[tuple[str, re.Match[str]]]:
    """The images of a folder by path, with what their names say."""
    images = []
    for path in sorted(images_below(root, folder)):
        name = _NAME.fullmatch(path.rpartition("/")[2])
        if name is None:
            raise DataError(
                f"{root / path}: the name does not say person and camera, as in 0002_c1s1_000451_03.jpg; take out what "
                "is not of the data set"
            )
        images.append((path, name))
    if not images:
        raise DataError(f"{root / folder}: has no images; unpack the original archive again")
    return images
