"""Stanford Online Products (Song et al. 2016): photos of 22,634 things that were for sale."""

from __future__ import annotations

import os

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.published.build import build, swapped_error
from divcon.data.published.tree import class_folders, find_tree, read_list, require
from divcon.runtime.context import DEFAULT, Context

_LISTS = ("Ebay_train.txt", "Ebay_test.txt")
_FIELDS = ("image_id", "class_id", "super_class_id", "path")


def read_sop(
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """Stanford Online Products, split by its own lists, leave-one-out.

    A class is called by its folder and its number in the lists, from 1 on: ``bicycle 1``.

    Args:
        root: the folder Stanford_Online_Products, with Ebay_train.txt, Ebay_test.txt and folders of images; or its zip,
            which is unpacked beside itself.
        check_files: look for every image now, not when it is first used.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, a list or image that is missing, swapped lists, a line that is not as published.
        OutputError: the archive cannot be unpacked where it is.
    """
    root = find_tree("sop", root, _LISTS, context).root
    require("sop", root, _LISTS)
    lists = [read_list(root / name, _FIELDS, header=_FIELDS) for name in _LISTS]
    classes = [part.numbers("class_id") for part in lists]
    if classes[0].min() > classes[1].max():
        raise swapped_error(root, *_LISTS, "the classes of train come first, from number 1 on")
    folder_of = class_folders(lists[0], classes[0].tolist()) | class_folders(lists[1], classes[1].tolist())
    ids, labels = np.unique(np.concatenate(classes), return_inverse=True)
    train = np.arange(len(labels)) < len(lists[0])
    return build(
        "sop",
        root,
        paths=[path for part in lists for path in part.texts("path")],
        labels=labels.astype(np.int64),
        label_names=[f"{folder_of[label].removesuffix('_final')} {label}" for label in ids.tolist()],
        parts={"train": train, "test": ~train},
        folders=sorted(set(folder_of.values())),
        check_files=check_files,
    )
