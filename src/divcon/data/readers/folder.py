"""Read folders of images: one folder per class, or images without labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from divcon.data.benchmark import Benchmark, checked_benchmark, counted, first_half, labelled
from divcon.data.columns import GUESS, Columns
from divcon.data.labeled_set import LabeledSet
from divcon.data.labels import spellings_in
from divcon.data.readers.arrays import images_in_vector_file, is_vector_file
from divcon.data.readers.table import images_in_table, images_in_table_folder, table_files
from divcon.data.tables import is_table
from divcon.errors import DataError
from divcon.runtime.context import DEFAULT, Context

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLIT_FOLDERS = ("train", "test", "validation", "val")
_HIDDEN = ("hidden file", "hidden files")
_LOOSE = ("image beside the class folders", "images beside the class folders")
_OTHER = ("file that is no image", "files that are no images")
_LAYOUT = "images are in one folder per class, ROOT/CLASS/*, or ROOT/train/CLASS/* and ROOT/test/CLASS/*"


def read_folder(root: str | os.PathLike[str], *, flip: bool = True) -> Benchmark:
    """Read images from ``root/CLASS/*``, or from ``root/train/CLASS/*`` and ``root/test/CLASS/*``.

    Images in folders below a class are of that class. Without a split, the first half of the sorted classes is train,
    the rest test. ``validation`` (or ``val``) is for model selection; without ``test`` it is the test set. Hidden files
    and files that are no images are skipped, and a note counts them.

    Args:
        flip: whether a mirrored image is still of its class, so that training may mirror images.

    Raises:
        DataError: not a folder, no images, images without class folders, too few classes or images.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'this is not a folder' if root.exists() else 'there is no such folder'}")
    folders = _folders_in(root)
    split = "train" in folders and len(folders) > 1 and set(folders) <= set(SPLIT_FOLDERS)
    parts = folders if split else [""]
    skipped: Counter[tuple[str, str]] = Counter()
    files = [
        (part, label, path)
        for part in parts
        for label in _class_folders(root, part, skipped)
        for path in _images_under(root, os.path.join(part, label), skipped)  # noqa: PTH118
    ]
    if not files:
        raise DataError(f"{root}: there are no images ({', '.join(IMAGE_SUFFIXES)}); {_LAYOUT}")
    images = _image_set(root, [label for _, label, _ in files], [path for _, _, path in files])
    images = replace(images, flip=flip)
    notes = [f"skipped: {counted(n, *what)}" for what, n in sorted(skipped.items())]
    if not split:
        train = first_half(images.labels, str(root))
        test = images.subset(~train)
        number = f"{len(np.unique(images.labels[train])):,} train, the other {test.num_classes:,} test"
        notes.append(f"the folder has no split: the first half of the sorted classes, {number}")
        return checked_benchmark(root.resolve().name, images.subset(train), test, test, notes=notes)
    part = np.array([part for part, _, _ in files])
    validation = (part == "validation") | (part == "val")
    tested = part == "test"
    if not tested.any():
        validation, tested = tested, validation
    test = images.subset(tested)
    return checked_benchmark(
        root.resolve().name,
        images.subset(part == "train"),
        test,
        test,
        validation=images.subset(validation) if validation.any() else None,
        notes=notes,
    )


def images_of(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    root: str | os.PathLike[str] | None = None,
    *,
    chosen: Columns = GUESS,
    context: Context = DEFAULT,
) -> LabeledSet:
    """Images or vectors to encode: one image, a folder with its subfolders, a list of images and folders, a table, or a
    folder of tables (``table_files``).

    Labels are those of the table; otherwise all labels are 0 and ``label_names`` is ``("",)``.

    Args:
        root: the folder that a table's relative paths start from, instead of the table's own.
        chosen: the names of a table's columns.
        context: warned of columns that are guessed.

    Raises:
        DataError: there is no such file or folder, or no image in it.
        ConfigError: a table has no column of a chosen name.
    """
    if isinstance(source, (str, os.PathLike)) and is_table(source):
        return images_in_table(source, root, chosen=chosen, context=context)
    if isinstance(source, (str, os.PathLike)) and is_vector_file(source):
        return images_in_vector_file(source, chosen=chosen, context=context)
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        if table_files(source):
            return images_in_table_folder(source, chosen=chosen, context=context)
        return _image_set(Path(source), None, _all_under(Path(source)))
    paths: list[str] = []
    for item in [source] if isinstance(source, (str, os.PathLike)) else source:
        if Path(item).is_dir():
            paths += [str(Path(item, path)) for path in _all_under(Path(item))]
        elif Path(item).is_file():
            paths.append(os.fspath(item))
        else:
            raise DataError(f"{item}: there is no such file or folder")
    if not paths:
        raise DataError("there are no images to read: the list is empty")
    return _image_set(None, None, paths)


def _image_set(root: Path | None, names: list[str] | None, paths: list[str]) -> LabeledSet:
    label_names, labels = (("",), np.zeros(len(paths), np.int64)) if names is None else labelled(names)
    return LabeledSet(
        labels=labels,
        label_names=label_names,
        paths=pa.array(paths, pa.string()),
        rows=np.arange(len(paths), dtype=np.int64),
        source="" if root is None else str(root),
        root="" if root is None else str(root),
        spellings=() if names is None else spellings_in(set(names)),
    )


def _class_folders(root: Path, part: str, skipped: Counter[tuple[str, str]]) -> list[str]:
    """The class folders in ``root/part``, sorted.

    Raises:
        DataError: there are images, but no folders.
    """
    here = root / part
    folders = _folders_in(here)
    loose = [entry.name for entry in os.scandir(here) if entry.is_file() and not entry.name.startswith(".")]
    images = sum(_is_image(name) for name in loose)
    if images and not folders:
        raise DataError(f"{here}: {counted(images, 'image')}, but no labels; {_LAYOUT}")
    if images:
        skipped[_LOOSE] += images
    if len(loose) > images:
        skipped[_OTHER] += len(loose) - images
    return folders


def _all_under(folder: Path) -> list[str]:
    paths = list(_images_under(folder, "", Counter()))
    if not paths:
        raise DataError(f"{folder}: there are no images in it ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def _images_under(root: Path, folder: str, skipped: Counter[tuple[str, str]]) -> Iterable[str]:
    """The images below ``root/folder`` in order, relative to ``root``, with forward slashes."""
    visited = set()
    paths = []
    for here, folders, files in os.walk(root / folder, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            # A link to a folder above would be walked forever.
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            if _is_hidden(name):
                skipped[_HIDDEN] += 1
            elif _is_image(name):
                paths.append(Path(here, name).relative_to(root).as_posix())
            else:
                skipped[_OTHER] += 1
    return sorted(paths)


def _folders_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _is_hidden(entry.name))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
