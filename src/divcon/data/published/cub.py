"""CUB-200-2011 (Wah et al. 2011): birds of 200 kinds, of which the first 100 train."""

from __future__ import annotations

import os

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.published.build import build
from divcon.data.published.tree import class_folders, find_tree, read_list, require
from divcon.runtime.context import DEFAULT, Context

_LISTS = ("images.txt", "image_class_labels.txt")
_TRAIN_CLASSES = 100


def read_cub(
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """CUB-200-2011: classes 1 to 100 train, the others test, leave-one-out.

    Its own train_test_split.txt, which shares out the images of each class, is not for this.

    Args:
        root: the folder CUB_200_2011, with images.txt, image_class_labels.txt and images/; or CUB_200_2011.tgz, which
            is unpacked beside itself.
        check_files: look for every image now, not when it is first used.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, a list or image that is missing, a line of a list that is not as published.
        OutputError: the archive cannot be unpacked where it is.
    """
    root = find_tree("cub", root, _LISTS, context).root
    require("cub", root, [*_LISTS, "images"])
    images = read_list(root / _LISTS[0], ("image_id", "path"))
    labelled = read_list(root / _LISTS[1], ("image_id", "class_id"))
    class_of = dict(zip(labelled.numbers("image_id").tolist(), labelled.numbers("class_id").tolist(), strict=True))
    classes = []
    for i, image in enumerate(images.numbers("image_id").tolist()):
        if image not in class_of:
            raise images.error(i, f"image {image} has no class in {_LISTS[1]}")
        classes.append(class_of[image])
    folder_of = class_folders(images, classes)
    ids, labels = np.unique(classes, return_inverse=True)
    train = np.array(classes) <= _TRAIN_CLASSES
    return build(
        "cub",
        root,
        paths=[f"images/{path}" for path in images.texts("path")],
        labels=labels.astype(np.int64),
        label_names=[folder_of[label] for label in ids.tolist()],
        parts={"train": train, "test": ~train},
        folders=["images"],
        check_files=check_files,
    )
