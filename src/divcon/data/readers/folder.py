"""Read folders of images: one folder per class, or images without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from divcon.config.settings import TEST_FRACTION, Protocol
from divcon.data.benchmark import Benchmark, checked_benchmark, counted, labelled
from divcon.data.channels import is_npy_image
from divcon.data.columns import GUESS, Columns
from divcon.data.image_files import (
    EMPTY,
    HIDDEN,
    HIDDEN_FOLDERS,
    LOOSE,
    ImageFiles,
    check_name,
    image_files,
    is_folder,
    is_image_name,
    printable,
)
from divcon.data.labeled_set import LabeledSet
from divcon.data.labels import spellings_in
from divcon.data.readers.arrays import images_in_vector_file, is_vector_file
from divcon.data.readers.shards import images_in_shards, is_folder_of_shards, is_shards
from divcon.data.readers.splits import drawn_benchmark
from divcon.data.readers.table import images_in_table, images_in_table_folder, table_files
from divcon.data.remote_folder import bring_tables
from divcon.data.split_names import Role, is_fold, split_role, split_word
from divcon.data.splitting import Splitting
from divcon.data.tables import is_table
from divcon.errors import ConfigError, DataError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.places import place, text_of, url_of, without_secrets

_LAYOUT = "images are in one folder per class, ROOT/CLASS/*, or ROOT/train/CLASS/* and ROOT/test/CLASS/*"
_SPLITS = "a split is called train, test, validation, query or gallery"
_WRAPPERS = {"images", "image", "imgs", "img", "data", "dataset", "photos", "pictures", "pics", "jpg", "jpeg", "png"}
"""Names of a folder that holds the folders of all classes or splits."""
_AS_READ = ("train", "validation", "val", "test", "query", "gallery")
"""Names of splits that need no note."""


def read_folder(
    root: str | os.PathLike[str],
    *,
    flip: bool = True,
    test_fraction: float | None = TEST_FRACTION,
    group: str | None = None,
    protocol: Protocol = "auto",
    ignore_split: bool = False,
) -> Benchmark:
    """Read images from ``root/CLASS/*``, or from ``root/train/CLASS/*`` and ``root/test/CLASS/*``.

    Images in folders below a class are of that class. Without a split, a fifth of the classes is test, drawn by a hash
    of their names. Splits are called train, validation, test, query and gallery, in any case and usual spelling
    (``Training``, ``valid``, ``val2017``, ``holdout``); ``validation`` is for model selection, and without a test it is
    the test set. All of it may be in one folder, such as ``root/images``. Where train has every class of test, they are
    a closed set.

    What is skipped (hidden and system files, what is no image, images beside the class folders ...) is in
    `Benchmark.skipped`, and a note names it.

    Args:
        flip: whether a mirrored image is still of its class, so that training may mirror images.
        test_fraction, protocol, ignore_split: as in `divcon.read`.
        group: a folder has no columns, so that it takes none.

    Raises:
        DataError: not a folder, one that cannot be read, no images, images without class folders, folders that may be
            splits or classes, too few classes or images; train and test share some of their classes.
        ConfigError: ``test_fraction`` is set, and the folder has a split.
    """
    splitting = Splitting(test_fraction, group, protocol, ignore_split)
    if group is not None:
        raise ConfigError(
            f"`group` {group}: {root} is a folder of images, which has no columns; write a table with the columns "
            f"path, label and {group}, or a metadata.csv beside the images",
            field="group",
        )
    root = place(root)
    files = image_files(root)
    layout = _layout(files)
    if not layout.files:
        raise DataError(f"{files.no_images()}; {_LAYOUT}")
    images = _image_set(root, [label for _, label, _ in layout.files], [path for _, _, path in layout.files])
    images = replace(images, flip=flip)
    skipped = files.skipped()
    notes = [*map(str, skipped), *layout.notes]
    name = root.resolve().name
    if not layout.split or ignore_split:
        try:
            drawn = drawn_benchmark(name, images, splitting, notes, "the folder has no split")
        except DataError as error:
            raise DataError(f"{error}{layout.hint}") from None
        return replace(drawn, skipped=skipped)
    if layout.incomplete:
        raise DataError(layout.incomplete)
    roles = np.array([role for role, _, _ in layout.files])
    splitting.check_own(str(root), f"the folders {', '.join(np.unique(roles).tolist())}")
    parts = {role: images.subset(roles == role) for role in np.unique(roles).tolist()}
    empty = images.subset(np.empty(0, np.int64))
    validation = parts.get("validation")
    query = gallery = parts.get("test")
    if "query" in parts:
        query, gallery = parts["query"], parts["gallery"]
    if query is None or gallery is None:
        # As in open-metric-learning.
        query = gallery = validation
        validation = None
    assert query is not None and gallery is not None
    train_set = parts.get("train", empty)
    data = checked_benchmark(name, train_set, query, gallery, validation=validation, notes=notes, protocol=protocol)
    return replace(data, skipped=skipped)


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
        context: warned of columns that are guessed, and of what is skipped in a folder; hidden and system files are not
            worth a warning.

    Raises:
        DataError: there is no such file or folder, a folder cannot be read, or there is no image in it.
        ConfigError: a table has no column of a chosen name.
    """
    if isinstance(source, (str, os.PathLike)):
        if is_shards(source):
            return images_in_shards(source, context=context)
        if (url := url_of(source)) is not None:
            return _images_at_address(url, root, chosen, context)
        check_name(source)
        path = Path(source)
        if is_folder(path):
            if table_files(path):
                return images_in_table_folder(path, chosen=chosen, context=context)
            return _image_set(path, None, _all_under(path, context))
        if is_table(path):
            return images_in_table(source, root, chosen=chosen, context=context)
        if is_vector_file(path) and not is_npy_image(path):
            return images_in_vector_file(path, chosen=chosen, context=context)
    paths: list[str] = []
    for number, item in enumerate([source] if isinstance(source, (str, os.PathLike)) else source):
        if not isinstance(item, (str, os.PathLike)):
            raise DataError(
                f"item {number} of the list is of type {type(item).__name__}: pass files, folders, images or vectors"
            )
        if (url := url_of(item)) is not None:
            if is_image_name(url):
                paths.append(url)
            else:
                paths += [f"{url}/{path}" for path in _all_under(place(url), context)]
            continue
        check_name(item)
        if is_folder(item):
            paths += [str(Path(item, path)) for path in _all_under(Path(item), context)]
        elif Path(item).is_file():
            paths.append(os.fspath(item))
        else:
            raise DataError(f"{item}: there is no such file or folder")
    if not paths:
        raise DataError("there are no images to read: the list is empty")
    return _image_set(None, None, paths)


def _images_at_address(url: str, root: str | os.PathLike[str] | None, chosen: Columns, context: Context) -> LabeledSet:
    path = place(url)
    if is_table(path) or is_vector_file(path):
        if not (path := here(url)).is_file():
            raise DataError(f"{without_secrets(url)}: there is no such file")
        if is_table(path):
            return images_in_table(path, root, chosen=chosen, context=context)
        return images_in_vector_file(path, chosen=chosen, context=context)
    if is_image_name(url):
        return _image_set(None, None, [url])
    if is_folder_of_shards(url):
        return images_in_shards(url, context=context)
    tables = bring_tables(url)
    if tables is not None and table_files(tables):
        return images_in_table_folder(tables, chosen=chosen, context=context)
    return _image_set(path, None, _all_under(path, context))


def label_in(path: str) -> str | None:
    """The label of an image by its path below the folder that was passed: the name of the first folder, without those
    of a split, or for all images, above it. None: it is in no folder, or the path leads out."""
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return None
    folders = [part for part in Path(path).parts[:-1] if part not in ("/", ".", "..")]
    while len(folders) > 1 and (split_role(folders[0]) or folders[0].casefold() in _WRAPPERS):
        folders = folders[1:]
    return folders[0] if folders else None


def _image_set(root: Path | None, names: list[str] | None, paths: list[str]) -> LabeledSet:
    label_names, labels = (("",), np.zeros(len(paths), np.int64)) if names is None else labelled(names)
    return LabeledSet(
        labels=labels,
        label_names=label_names,
        paths=pa.array(paths, pa.string()),
        rows=np.arange(len(paths), dtype=np.int64),
        source="" if root is None else text_of(root),
        root="" if root is None else text_of(root),
        spellings=() if names is None else spellings_in(set(names)),
    )


def _all_under(folder: Path, context: Context) -> list[str]:
    files = image_files(folder)
    if not files.paths:
        raise DataError(files.no_images())
    for skipped in files.skipped((EMPTY, HIDDEN, HIDDEN_FOLDERS)):
        context.warn(f"{folder}: {skipped}")
    return files.once(sorted(files.paths))


@dataclass
class _Folder:
    """A folder that has images in it or below it."""

    images: list[str] = field(default_factory=list)
    """The paths of those in it."""
    folders: dict[str, _Folder] = field(default_factory=dict)

    def every(self) -> Iterator[str]:
        """The paths of all images in it and below it."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.every()


@dataclass(frozen=True)
class _Layout:
    """What the folders say of the images."""

    files: list[tuple[str, str, str]]
    """Split ("" if there is none), label and path of each image."""
    split: bool
    notes: list[str]
    incomplete: str = ""
    """What the splits lack, and what to do; "": nothing."""
    hint: str = ""
    """What the folders may be, if there are too few for classes."""


def _layout(files: ImageFiles) -> _Layout:
    """The splits and labels by the folders, sorted by folder; images beside the class folders are counted as skipped.

    Raises:
        DataError: there are images, but no class folders; folders may be splits or classes.
    """
    notes: list[str] = []
    top = _tree(files.paths)
    where, top = _unwrapped(top, files, files.root, splits=True)
    if where != files.root:
        notes.append(f"the folders of {printable(where)} are read")
    roles = _roles(where, top, files, notes)
    found: list[tuple[str, str, str]] = []
    if not roles:
        _check_no_splits(where, top, notes)
    for name, role in roles.items() or [("", "")]:
        here, part = (where, top) if not name else (os.path.join(where, name), top.folders[name])  # noqa: PTH118
        if name:
            here, part = _unwrapped(part, files, here, splits=False)
        for label, folder in _classes(here, part, files):
            found += [(role, label, path) for path in files.once(sorted(folder.every()))]
    if roles:
        return _Layout(found, True, notes, incomplete=_lacking(where, roles, files))
    return _Layout(found, False, notes, hint=_hint(where, top))


def _hint(where: str, top: _Folder) -> str:
    """What folders may be that are no classes, as all of them hold folders; "": nothing."""
    if not top.folders or not all(folder.folders for folder in top.folders.values()):
        return ""
    if len(top.folders) == 1:
        return f"; if the folders in it are the classes, pass {os.path.join(where, *top.folders)}"  # noqa: PTH118
    return f"; if {_listed(sorted(top.folders))} are splits, rename them: {_SPLITS}"


def _tree(paths: Sequence[str]) -> _Folder:
    top = _Folder()
    for path in paths:
        folder = top
        for name in path.split("/")[:-1]:
            if (below := folder.folders.get(name)) is None:
                below = folder.folders[name] = _Folder()
            folder = below
        folder.images.append(path)
    return top


def _unwrapped(folder: _Folder, files: ImageFiles, where: str, *, splits: bool) -> tuple[str, _Folder]:
    """The folder that holds the classes or splits: the one given, or the only one in it, if that is called ``images``
    or the like, or holds folders of splits, or is the folder of a split again (``train/train``)."""
    while len(folder.folders) == 1:
        (name, only), *_ = folder.folders.items()
        is_wrapper = sum(map(_is_split, only.folders)) > 1 if splits else _is_split(name)
        if not only.folders or not (is_wrapper or name.casefold() in _WRAPPERS):
            break
        _skip_loose(folder, files)
        where, folder = os.path.join(where, name), only  # noqa: PTH118
    return where, folder


def _is_split(name: str) -> bool:
    return split_role(name) is not None


def _skip_loose(folder: _Folder, files: ImageFiles) -> None:
    for path in folder.images:
        files.skip(LOOSE, path)


def _classes(where: str, folder: _Folder, files: ImageFiles) -> list[tuple[str, _Folder]]:
    """The class folders, sorted.

    Raises:
        DataError: there are images, but no class folders.
    """
    folders = sorted(folder.folders.items())
    is_wrapper = len(folders) == 1 and (folders[0][0].casefold() in _WRAPPERS or _is_split(folders[0][0]))
    if is_wrapper and not folders[0][1].folders:
        where, folder, folders = os.path.join(where, folders[0][0]), folders[0][1], []  # noqa: PTH118
    if folder.images and not folders:
        advice = f"{_LAYOUT}; or name each image's label in a table with the columns path and label"
        if os.path.basename(where).casefold().startswith("bounding_box"):  # noqa: PTH119
            advice = "if this is Market-1501, read it by its name, market1501"
        raise DataError(f"{where}: {counted(len(folder.images), 'image')}, but no labels; {advice}")
    _skip_loose(folder, files)
    return folders


def _roles(where: str, top: _Folder, files: ImageFiles, notes: list[str]) -> dict[str, Role]:
    """The split that each folder is; none if they are classes.

    Raises:
        DataError: some may be splits and others classes, two are one split, or a split lacks another.
    """
    names = sorted(top.folders)
    roles: dict[str, Role] = {name: role for name in names if (role := split_role(name, weak=True))}
    strong = [name for name in roles if _is_split(name)]
    if not roles or (not strong and len(roles) < len(names)):
        return {}
    if strong and len(roles) < len(names):
        roles = {name: roles[name] for name in strong}
        others = [name for name in names if name not in roles]
        if [name.casefold() for name in strong] == ["train"] and not top.folders[strong[0]].folders:
            # The only one, and with images in it as the others have: a railway train.
            notes.append(f"{strong[0]!r} is read as a class: it has images in it, as the other folders have")
            return {}
        are_splits = "is the name of a split" if len(strong) == 1 else "are names of splits"
        raise DataError(
            f"{where}: {_listed(strong)} {are_splits}, and "
            f"{_listed(others)} {'is' if len(others) == 1 else 'are'} not: move away what is no split, or rename what "
            f"is a class ({_SPLITS}), or write a table, in which labels may have any name"
        )
    _check_distinct(where, roles)
    if any(name not in _AS_READ for name in roles):
        notes.append("splits: " + ", ".join(f"{name!r} is {role}" for name, role in roles.items()))
    return roles


def _check_distinct(where: str, roles: dict[str, Role]) -> None:
    """Raise DataError if two folders are one split."""
    by_role: dict[str, list[str]] = {}
    for name, role in roles.items():
        by_role.setdefault(role, []).append(name)
    for role, names in by_role.items():
        if len(names) > 1:
            raise DataError(f"{where}: {_listed(names)} are both {role}; put their classes into one folder")


def _lacking(where: str, roles: dict[str, Role], files: ImageFiles) -> str:
    """What the splits lack for a test; "": nothing."""
    names = {role: name for name, role in roles.items()}
    lone = {"query", "gallery"} & names.keys()
    if len(lone) == 1:
        (role,) = lone
        other = "query" if role == "gallery" else "gallery"
        return (
            f"{where}: {names[role]!r} needs a folder {other!r} beside it; with one folder of test images, call it "
            "'test'"
        )
    if lone and "test" in names:
        return f"{where}: there are {_listed(roles)}; call the test images query and gallery, or test"
    if names.keys() == {"train"}:
        empty = [path for path in files.skipped_paths.get(EMPTY, ()) if split_role(path.rstrip("/").split("/")[-1])]
        there = f"there are no images in {_listed(path.rstrip('/') for path in empty)}" if empty else "there is no test"
        return (
            f"{where}: all images are in {names['train']!r}, and {there}; add a folder 'test' with other classes, or "
            f"pass {os.path.join(where, names['train'])}, of which some classes are then for the test"  # noqa: PTH118
        )
    return ""


def _check_no_splits(where: str, top: _Folder, notes: list[str]) -> None:
    """Note what looks like a split or a class below classes.

    Raises:
        DataError: the folders are folds of a cross-validation, or have a split's name among other words.
    """
    names = sorted(top.folders)
    if len(names) > 1 and all(map(is_fold, names)):
        raise DataError(
            f"{where}: {_listed(names)} are folds, not classes; put the images of each class into one folder: "
            "`validation_folds` makes folds by class"
        )
    like_splits = {name: role for name in names if (role := split_word(name))}
    hold_classes = all(top.folders[name].folders and not top.folders[name].images for name in like_splits)
    if len(set(like_splits.values())) > 1 and (len(like_splits) == len(names) or hold_classes):
        raise DataError(
            f"{where}: {_listed(like_splits)} look like splits, not classes: rename them ({_SPLITS}), pass one of the "
            "folders, or write a table, in which labels may have any name"
        )
    inner = [{name for name in folder.folders if _is_split(name)} for folder in top.folders.values()]
    if inner and all(len(splits) > 1 for splits in inner):
        notes.append(
            f"the folders {_listed(sorted(set.union(*inner)))} below the classes are no splits here: a class is as a "
            "whole for training or for the test"
        )
    elif inner and all(len(folder.folders) > 1 and not folder.images for folder in top.folders.values()):
        below = sorted(set.union(*(set(folder.folders) for folder in top.folders.values())))
        notes.append(
            f"the classes are {_listed(names)}; if the folders in them ({_listed(below)}) are the classes, name each "
            "image's label in a table with the columns path and label"
        )


def _listed(names: Iterable[str]) -> str:
    """``'a', 'b' and 'c'``; of many, the first."""
    quoted = [f"'{name}'" for name in names]
    if len(quoted) > 6:
        quoted = [*quoted[:5], f"{len(quoted) - 5:,} more"]
    return " and ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))
