"""``divcon.read``: a benchmark by its name, from a folder or table, or from a reader of your own."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.config.settings import SPLITTING
from divcon.data.benchmark import Benchmark
from divcon.data.image_files import check_name, is_folder, is_image_name
from divcon.data.labeled_set import LabeledSet
from divcon.data.published import read_cars, read_cub, read_inshop, read_market1501, read_sop, read_vehicleid
from divcon.data.published.vehicleid import vehicleid_of
from divcon.data.python_values import advice_on_value, columns_of, is_value
from divcon.data.readers.arrays import is_vector_file, read_vector_file
from divcon.data.readers.folder import read_folder
from divcon.data.readers.icons import read_icons
from divcon.data.readers.shards import is_folder_of_shards, is_shards, read_shards
from divcon.data.readers.table import read_columns, read_table, read_table_folder, table_files
from divcon.data.remote_folder import bring_tables, look_again
from divcon.data.table_format import TABLE_SUFFIXES, content_of, is_table
from divcon.errors import ConfigError, DataError, DivconError, unknown
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.importing import Trust, check_trusted, is_named, load_part, name_of
from divcon.runtime.places import place, text_of, url_of, without_secrets

Reader = Callable[..., Any]
"""Returns a benchmark. It may take ``root``, ``context`` and options of its own; it is passed what it takes."""

pc: Any = pyarrow.compute
"""Any: pyarrow creates its functions at import, so type checkers do not know them."""

Readable = str | os.PathLike[str] | Reader | Mapping[str, Any] | pa.Table | Any


def read(
    data: Readable,
    root: str | os.PathLike[str] | None = None,
    *,
    context: Context = DEFAULT,
    **options: Any,
) -> Benchmark:
    """Read labelled images or vectors: classes to train on, and queries and a gallery of other classes to test on.

    Args:
        data: one of

            - a name: ``"demo"`` (bundled icons), ``"icons"``, or a published data set: ``"cub"``, ``"cars"``,
              ``"sop"``, ``"inshop"``, ``"vehicleid-small"`` (``-medium``, ``-large``; ``"vehicleid"`` is the large
              one), ``"market1501"``. A name goes before a folder of the same name; ``./icons`` is the folder;
            - a folder with one folder per class (``read_folder``);
            - a CSV, parquet or JSON Lines file (``read_table``), or a folder of tables: one parquet per split, or
              images beside a metadata.csv (``read_table_folder``);
            - a file of vectors: .npy, .npz, .pt or .safetensors (``read_vector_file``);
            - columns in memory: a dict of lists, a list of dicts or of pairs (image, label), a pair (images or vectors,
              labels), a pyarrow table, a data frame of pandas or polars, a `datasets.Dataset` or `DatasetDict`, a torch
              `Dataset` (`divcon.data.python_values.columns_of`, ``read_columns``);
            - a reader of your own: a function that returns a `Benchmark`, or its name, ``"my_module:my_reader"``.
        root: the folder of a named data set, or the folder that a table's relative paths start from. For a published
            data set it may be the downloaded archive, which is unpacked beside itself. A reader of your own is passed
            it if it takes ``root``.
        context: reports how much of an archive is unpacked. A reader of your own is passed it if it takes ``context``.
        options: of the reader. Tables and folders take ``flip=False``, for data in which a mirrored image is of another
            class; tables and published data sets take ``check_files=False``, to not look for every file now. Tables
            take ``image_column``, ``label_column``, ``split_column`` and ``vector_column``, the names of these columns
            (None: guessed from the usual names, and `Benchmark.notes` says which), and ``on_missing_label="skip"``;
            files of vectors take ``labels_file``. Tables and folders also take

            - ``test_fraction``: share of the classes to test on, where the data has no split (0.2). They are drawn by a
              hash of each class's name, so that a class stays on its side when others are added. None: the last half of
              the sorted classes;
            - ``group``: a column of a table. Classes that have a value of it in common, such as the variants of one
              product, stay on one side, also when validation classes are drawn;
            - ``protocol``: ``"open"``, to test on classes that are not trained on: test images of train classes are
              left out; or ``"closed"``, to test on other images of the classes that are: queries are test images, and
              the gallery is the training images. ``"auto"``: closed where train has every class of test;
            - ``ignore_split=True``: draw a split, though the data has one.

    Raises:
        DataError: no such name or path, or the data cannot be used: the message says what is wrong, where, and what to
            do. A reader of your own failed, or returned something else.
        ConfigError: the reader does not take an option, or there is no such reader.
        OutputError: an archive cannot be unpacked where it is.
    """
    reader, name, arguments = _reader(data, root)
    options = dict(options)
    if root is not None and not arguments:
        options["root"] = root
    _check_options(reader, name, options, len(arguments))
    if _takes(reader, "context"):
        options["context"] = context
    own = not (reader in NAMED.values() or arguments)
    benchmark = _from_own(reader, name, options) if own else reader(*arguments, **options)
    names = [name for name in SPLITTING if name != "test_fraction" and options.get(name) not in (None, SPLITTING[name])]
    splitting = {**benchmark.splitting, **{name: options[name] for name in names}}
    return replace(benchmark, splitting=splitting) if names else benchmark


def splitting_for(data: Readable, splitting: Mapping[str, Any]) -> dict[str, Any]:
    """The options to read data with, of those that a run was trained with (`DataConfig.splitting`): without
    ``test_fraction=None``, which older runs have all, where the data has a split of its own by what it is.

    Raises:
        DataError, ConfigError: there is no such data.
    """
    options = dict(splitting)
    if "test_fraction" in options and options["test_fraction"] is None and not _reader(data, None)[2]:
        del options["test_fraction"]
    return options


def read_source(source: Mapping[str, Any], where: str, *, trust: Trust = (), **options: Any) -> Benchmark:
    """Read the data that a file says a run was trained on: ``{"data": ..., "root": ..., "options": ...}``.

    Args:
        where: the file, for the message.
        trust: modules of readers that the file may name: True for all, or their names.
        options: of `read`; those of the split as in `splitting_for`.

    Raises:
        TrustError: the data is a reader whose module the user has not allowed.
        DataError, ConfigError, OutputError: as of `read`.
    """
    check_trusted(source["data"], where, trust)
    options = {**(source.get("options") or {}), **splitting_for(source["data"], options)}
    return read(source["data"], source.get("root"), **options)


def takes_option(data: Readable, option: str) -> bool:
    """Whether what reads the data takes an option of that name.

    Raises:
        DataError, ConfigError: there is no such data.
    """
    return _takes(_reader(data, None)[0], option)


def is_dataset_name(data: str) -> bool:
    """Whether ``data`` names a data set that comes with divcon, or a reader of your own, and is no path."""
    return data in NAMED or (is_named(data) and not Path(data).exists())


def read_demo() -> Benchmark:
    """The icons that come with the package: permissive licences only, each named in ATTRIBUTION.md beside
    them."""
    folder = resources.files("divcon.data") / "demo"
    with resources.as_file(folder) as path:
        return read_icons(path, name="demo")


def _named_icons(root: str | os.PathLike[str] | None = None) -> Benchmark:
    if root is None:
        raise DataError("icons: pass the folder that `python tools/icons.py PACKAGE_DIR --out DIR` wrote as `root`")
    return read_icons(root)


NAMED: dict[str, Reader] = {
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


def _reader(data: Readable, root: str | os.PathLike[str] | None) -> tuple[Reader, str, tuple[Any, ...]]:
    """The reader of the data, its name for messages, and the positional arguments it is called with."""
    if not isinstance(data, (str, os.PathLike)):
        if is_value(data):
            return read_columns, "the table", (columns_of(data), root)
        if callable(data):
            return data, f"reader {name_of(data)}", ()
        if (advice := advice_on_value(data)) is not None:
            raise DataError(f"{type(data).__name__} cannot be read: {advice}")
        raise DataError(
            f"{type(data).__name__} cannot be read: pass the name of a data set, a folder, a table, a dict of columns, "
            "a list of rows, a data frame, a Dataset, or a function that returns a Benchmark"
        )
    name = os.fspath(data)
    if not name:
        raise DataError("the name of the data is empty: pass a folder, a table or the name of a data set")
    if root is not None:
        check_name(root)
    if name in NAMED:
        if root is not None and url_of(root) is not None:
            raise ConfigError(f"{name}: is read from a folder of this machine, not from {text_of(root)}; copy it first")
        return NAMED[name], name, ()
    if (url := url_of(name)) is not None:
        return _reader_at_address(url, root)
    check_name(name)
    path = Path(name)
    if is_shards(name):
        return read_shards, name, (name,)
    if is_folder(path):
        if root is not None:
            raise ConfigError(f"{name}: a folder takes no `root`; its own path says where it is", field="root")
        return (read_table_folder if table_files(path) else read_folder), name, (path,)
    if is_table(path):
        return read_table, name, (path, root)
    if is_vector_file(path):
        if root is not None:
            raise ConfigError(f"{name}: a file of vectors takes no `root`", field="root")
        return read_vector_file, name, (path,)
    if path.is_file():
        is_image = is_image_name(name)
        ending = "" if is_image else f"; if it is a table, give it the ending {_ENDINGS[content_of(path).format]}"
        raise DataError(
            f"{name}: labelled images come as a folder with one folder per class, or as a table "
            f"({', '.join(TABLE_SUFFIXES)}) with the columns path and label{ending}"
        )
    if is_named(name):
        reader = load_part(name, "reader")
        if not callable(reader):
            raise ConfigError(f"reader {name!r}: is no function, but {type(reader).__name__}")
        return cast(Reader, reader), f"reader {name}", ()
    known = "" if path.name != name else f"; {unknown('data set', name, NAMED)}"
    raise DataError(f"{name}: there is no such file or folder{known}")


_ENDINGS = {"csv": ".csv", "parquet": ".parquet", "json": ".jsonl", "arrow": ".arrow"}


def _reader_at_address(url: str, root: str | os.PathLike[str] | None) -> tuple[Reader, str, tuple[Any, ...]]:
    """As `_reader`, of data at an address: tables are brought here, parquet files and images are read when needed."""
    look_again(url)
    if is_shards(url):
        return read_shards, url, (url,)
    path = place(url)
    if is_table(path):
        return read_table, url, (_file_at(url), root)
    if root is not None:
        raise ConfigError(f"{without_secrets(url)}: takes no `root`; its own address says where it is", field="root")
    if is_vector_file(path):
        return read_vector_file, url, (_file_at(url),)
    if is_folder_of_shards(url):
        return read_shards, url, (url,)
    tables = bring_tables(url)
    return (read_table_folder if tables is not None and table_files(tables) else read_folder), url, (path,)


def _file_at(url: str) -> Path:
    if not (path := here(url)).is_file():
        raise DataError(f"{without_secrets(url)}: there is no such file")
    return path


def _check_options(reader: Reader, name: str, options: Mapping[str, Any], num_arguments: int) -> None:
    known = _parameters(reader)
    if known is None:
        return
    for option in options:
        if option not in known[num_arguments:] and option in _OF_TABLES:
            what = "files of vectors (.npy, .npz, .pt, .safetensors)" if option == "labels_file" else "tables"
            raise ConfigError(f"{name}: `{option}` is for {what}, and this is none", field=option)
        if option not in known[num_arguments:]:
            rest = [known_name for known_name in known[num_arguments:] if known_name != "context"]
            what = unknown("option", option, rest) if rest else f"takes no `{option}`"
            raise ConfigError(f"{name}: {what}", field=option)


_OF_TABLES = ("image_column", "label_column", "split_column", "vector_column", "on_missing_label", "labels_file")


def _takes(reader: Reader, option: str) -> bool:
    known = _parameters(reader)
    return known is None or option in known


def _parameters(reader: Reader) -> list[str] | None:
    """The names of a reader's parameters; None where it takes any, or does not say."""
    try:
        parameters = inspect.signature(reader).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_POSITIONAL]


def _from_own(reader: Reader, name: str, options: Mapping[str, Any]) -> Benchmark:
    """Call a reader of somebody's own, and check what it returns."""
    try:
        benchmark = reader(**options)
    except DivconError as error:
        if not str(error).startswith(name):
            error.args = (f"{name}: {error}",)
        raise
    except Exception as error:
        raise DataError(f"{name}: failed with {type(error).__name__}: {error}") from error
    if not isinstance(benchmark, Benchmark):
        raise DataError(
            f"{name}: returned {type(benchmark).__name__}, not a divcon.Benchmark; divcon.read makes one of a dict of "
            "columns: path, label and split"
        )
    for (one, images), (other, others) in combinations(benchmark.parts.items(), 2):
        if (clash := _clash(images, others)) is not None:
            i, j = clash
            raise DataError(
                f"{name}: row {images.rows[i]} of {images.source!r} is {images.path(i)} in {one} and "
                f"{others.path(j)} in {other}; within one `source`, `rows` must identify an image: number the "
                "images of all sets through"
            )
    return benchmark


def _clash(images: LabeledSet, others: LabeledSet) -> tuple[int, int] | None:
    """The places in both sets of a row that stands for two images; None where there is none."""
    if images.source != others.source:
        return None
    _, here, there = np.intersect1d(images.rows, others.rows, return_indices=True)
    differ = pc.not_equal(images.paths.take(pa.array(here)), others.paths.take(pa.array(there)))
    first = np.flatnonzero(differ.to_numpy(zero_copy_only=False))[:1]
    return (int(here[first[0]]), int(there[first[0]])) if len(first) else None
