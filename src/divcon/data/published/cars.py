"""Cars196 (Krause et al. 2013): cars of 196 models, of which the first 98 train."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.published.build import build
from divcon.data.published.mat_file import read_mat
from divcon.data.published.tree import Tree, find_tree, require
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

_ALL = "cars_annos.mat"
_TRAIN, _TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
_NAMES = "cars_meta.mat"
_DEVKIT = ("cars_train", f"devkit/{_TRAIN}")
_MARKS = (_ALL, "car_ims", *_DEVKIT)
_TRAIN_CLASSES = 98


def read_cars(
    root: str | os.PathLike[str] | None = None,
    *,
    check_files: bool = True,
    context: Context = DEFAULT,
) -> Benchmark:
    """Cars196: classes 1 to 98 train, the others test, leave-one-out.

    Both forms in which it is handed out are read: car_ims/ with cars_annos.mat, and the devkit's cars_train/ and
    cars_test/. The split of the second, which shares out the images of each class, is not for this.

    Args:
        root: the folder with car_ims/ and cars_annos.mat; or with cars_train/, cars_test/, devkit/cars_train_annos.mat,
            devkit/cars_meta.mat and cars_test_annos_withlabels.mat, beside devkit/ or in it; or car_ims.tgz with
            cars_annos.mat beside it, which is unpacked beside itself.
        check_files: look for every image now, not when it is first used.
        context: reports the bytes unpacked.

    Raises:
        DataError: another folder, a .mat or image that is missing, a .mat that is not as published.
        OutputError: the archive cannot be unpacked where it is.
    """
    tree = find_tree("cars", root, _MARKS, context)
    devkit = not (tree.root / "car_ims").is_dir() and any((tree.root / mark).exists() for mark in _DEVKIT)
    listed, names = _of_devkit(tree.root) if devkit else _of_car_ims(tree)
    for part in listed:
        bad = np.flatnonzero((part.classes < 1) | (part.classes > len(names)))
        if len(bad):
            raise DataError(
                f"{part.source}: {part.paths[bad[0]]} is of class {part.classes[bad[0]]}, and there are {len(names)}"
            )
    classes = np.concatenate([part.classes for part in listed])
    train = classes <= _TRAIN_CLASSES
    return build(
        "cars",
        tree.root,
        paths=[path for part in listed for path in part.paths],
        labels=classes - 1,
        label_names=names,
        parts={"train": train, "test": ~train},
        folders=["cars_train", "cars_test"] if devkit else ["car_ims"],
        check_files=check_files,
    )


@dataclass(frozen=True, eq=False)
class _Annotations:
    source: Path
    paths: Sequence[str]
    classes: np.ndarray
    """(N,) int64, from 1 on."""


def _of_car_ims(tree: Tree) -> tuple[list[_Annotations], list[str]]:
    place = tree.root if (tree.root / _ALL).is_file() else tree.beside
    if not (place / _ALL).is_file():
        raise DataError(f"{place}: cars lacks {_ALL}, which is handed out beside car_ims.tgz; put it here")
    require("cars", tree.root, ["car_ims"])
    contents = read_mat(place / _ALL)
    return [_annotations(place / _ALL, contents, "relative_im_path", "")], _class_names(place / _ALL, contents)


def _of_devkit(root: Path) -> tuple[list[_Annotations], list[str]]:
    paths = {
        name: next((root / at / name for at in ("devkit", "") if (root / at / name).is_file()), None)
        for name in (_TRAIN, _NAMES, _TEST)
    }
    require("cars", root, ["cars_train", "cars_test", *(f"devkit/{n}" for n in (_TRAIN, _NAMES) if paths[n] is None)])
    if paths[_TEST] is None:
        raise DataError(
            f"{root}: cars lacks {_TEST}, the classes of cars_test/, which the devkit's own cars_test_annos.mat does "
            "not have; fetch it from where the data set is handed out, and put it here or into devkit/"
        )
    contents = {name: (path, read_mat(path)) for name, path in paths.items() if path is not None}
    folders = {_TRAIN: "cars_train/", _TEST: "cars_test/"}
    listed = [_annotations(*contents[name], "fname", folder) for name, folder in folders.items()]
    return listed, _class_names(*contents[_NAMES])


def _annotations(source: Path, contents: dict[str, Any], path: str, folder: str) -> _Annotations:
    table = contents.get("annotations")
    fields = table if isinstance(table, dict) else {}
    if "class" not in fields and path in fields:
        raise DataError(f"{source}: names images without their classes; this is cars_test_annos.mat: fetch {_TEST}")
    if path not in fields or "class" not in fields:
        raise DataError(
            f"{source}: there are no annotations with {path} and class in it; unpack the original archive again"
        )
    try:
        classes = np.array(fields["class"]).astype(np.int64)
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"{source}: a class is no whole number; unpack the original archive again") from None
    return _Annotations(source, [f"{folder}{name}" for name in fields[path]], classes)


def _class_names(source: Path, contents: dict[str, Any]) -> list[str]:
    names = contents.get("class_names")
    if not isinstance(names, list):
        raise DataError(f"{source}: there are no class_names in it; unpack the original archive again")
    return [str(name) for name in names]
