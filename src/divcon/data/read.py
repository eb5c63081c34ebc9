"""``divcon.read``: a benchmark by its name, or from a folder or table of one's own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

from divcon.data.benchmark import Benchmark
from divcon.data.published import read_cars, read_cub, read_inshop, read_market1501, read_sop, read_vehicleid
from divcon.data.published.vehicleid import vehicleid_of
from divcon.data.readers.folder import read_folder
from divcon.data.readers.icons import read_icons
from divcon.data.readers.table import read_table, read_table_folder, table_files
from divcon.data.tables import TABLE_SUFFIXES
from divcon.errors import ConfigError, DataError, unknown
from divcon.runtime.context import DEFAULT, Context


def read(
    name_or_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    context: Context = DEFAULT,
    **options: Any,
) -> Benchmark:
    """Read labelled images or vectors: train classes, and queries and a gallery of other classes.

    Args:
        name_or_path: ``"demo"`` (bundled icons), ``"icons"``, one of the published data sets ``"cub"``, ``"cars"``,
            ``"sop"``, ``"inshop"``, ``"vehicleid-small"`` (``-medium``, ``-large``; ``"vehicleid"`` is the large one)
            and ``"market1501"``; a folder with one folder a class (``read_folder``), a CSV, parquet or JSON Lines
            (``read_table``), or a folder of tables: parquet files by split, or images beside a metadata.csv
            (``read_table_folder``). A name goes before a folder of the same name; ``./icons`` is the folder.
        root: where a named data set lies, or the folder that a table's relative paths start from. A published data
            set may be the archive that was downloaded, which is unpacked beside itself.
        context: reports the bytes of an archive that are unpacked.
        options: of the reader: a table or folder takes ``flip=False`` where a mirrored image is of another
            class; tables and published data sets take ``check_files=False`` to leave the files unchecked.

    Raises:
        DataError: no such name or path, or the reader's own errors, which say what is wrong, where, and what
            to do.
        ConfigError: the reader has no such option.
        OutputError: an archive cannot be unpacked where it is.
    """
    name = os.fspath(name_or_path)
    if name in NAMED:
        if root is not None:
            options["root"] = root
        if "context" in inspect.signature(NAMED[name]).parameters:
            options["context"] = context
        return _call(NAMED[name], name, options)
    path = Path(name)
    if path.is_dir():
        if root is not None:
            raise ConfigError(f"{name}: a folder takes no root; its own path says where it lies")
        return _call(read_table_folder if table_files(path) else read_folder, name, options, path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return _call(read_table, name, options, path, root)
    if path.is_file():
        raise DataError(
            f"{name}: labelled images come as a folder with one folder a class, or as a table "
            f"({', '.join(TABLE_SUFFIXES)}) with the columns path and label"
        )
    raise DataError(f"{name}: there is no such file or folder; {unknown('data set', name, NAMED)}")


def read_demo() -> Benchmark:
    """The icons that come with the package: permissive licences only, each named in ATTRIBUTION.md beside
    them."""
    folder = resources.files("divcon.data") / "demo"
    with resources.as_file(folder) as path:
        return read_icons(path, name="demo")


def _named_icons(root: str | os.PathLike[str] | None = None) -> Benchmark:
    if root is None:
        raise DataError("icons: say where they are: the folder that `python tools/icons.py PACKAGE_DIR --out DIR` made")
    return read_icons(root)


NAMED: dict[str, Callable[..., Benchmark]] = {
    "demo": read_demo,
    "icons": _named_icons,
    "cub": read_cub,
    "cars": read_cars,
    "sop": read_sop,
    "inshop": read_inshop,
    "vehicleid": read_vehicleid,
    "vehicleid-small": vehicleid_of("small"),
    "vehicleid-medium": vehicleid_of("medium"),
    "vehicleid-large": vehicleid_of("large"),
    "market1501": read_market1501,
}
"""The readers of named data sets; each takes ``root`` unless it comes with the package."""


def _call(reader: Callable[..., Benchmark], name: str, options: dict[str, Any], *arguments: Any) -> Benchmark:
    known = list(inspect.signature(reader).parameters)[len(arguments) :]
    for option in options:
        if option not in known:
            raise ConfigError(f"{name}: {unknown('option', option, known) if known else f'it takes no {option}'}")
    return reader(*arguments, **options)
