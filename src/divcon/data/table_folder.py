"""Folders of tables: parquet files with a split each, as Hugging Face's ``datasets`` writes them, and images beside a
``metadata.csv``, as its ``imagefolder`` wants them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from divcon.data.image_set import Benchmark, ImageSet
from divcon.data.packed import as_packed
from divcon.data.table import benchmark_of, images_of_tables
from divcon.data.table_file import PARQUET_SUFFIXES, TABLE_SUFFIXES
from divcon.data.table_parts import SPLITS
from divcon.data.tables import TableFile, Tables, load_tables
from divcon.errors import DataError

_METADATA = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES)
_SHARD = re.compile(
    rf"(?P<split>{'|'.join(SPLITS)})(-(?P<number>\d+)-of-(?P<count>\d+))?(-[0-9a-f]+)?({'|'.join(PARQUET_SUFFIXES)})"
)


def table_files(folder: str | os.PathLike[str]) -> list[TableFile]:
    """The tables that a folder is read from; none where it is a folder of images alone.

    - ``metadata.csv`` (or .tsv, .parquet, .pq, .jsonl, .ndjson) in it, or one in each of its folders ``train``,
      ``test``, ``validation``, ``val``, ``query``, ``gallery``, whose split that is;
    - parquet files named by their split, ``train.parquet`` or ``train-00000-of-00002.parquet``, in it or in its
      folder ``data``.

    A file's own column ``split`` goes before its name. Files of one split alone have no split.

    Raises:
        DataError: two metadata files in one folder; one split's folder has one, and another's has none; of files
            numbered "of N" one is missing.
    """
    root = Path(folder)
    files = _metadata_in(root) or _metadata_by_split(root) or _shards_in(root) or _shards_in(root / "data", "data")
    splits = {file.split for file in files}
    if len(splits) == 1:
        files = [TableFile(file.path, None, file.folder) for file in files]
    return files


def read_table_folder(root: str | os.PathLike[str], *, check_files: bool = True, flip: bool = True) -> Benchmark:
    """A benchmark from the tables in a folder (``table_files``), with their columns as in ``read_table``; paths start
    from the folder of the table that names them.

    Raises:
        DataError: as ``read_table`` and ``table_files``; there are none.
    """
    return as_packed(benchmark_of(_loaded(root), check_files=check_files, flip=flip), Path(root))


def images_in_table_folder(root: str | os.PathLike[str]) -> ImageSet:
    """All images or vectors of the tables in a folder, whose labels, if they have any, are kept.

    Raises:
        DataError: as ``read_table_folder``.
    """
    return images_of_tables(_loaded(root))


def _loaded(root: str | os.PathLike[str]) -> Tables:
    files = table_files(root)
    if not files:
        raise DataError(f"{root}: there are no tables in it ({', '.join(_METADATA)}, or parquet files of each split)")
    return load_tables(Path(root).resolve().name, str(root), files, str(root))


def _metadata_in(folder: Path, split: str | None = None) -> list[TableFile]:
    found = [folder / name for name in _METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder}: there are {' and '.join(path.name for path in found)}; keep one")
    return [TableFile(path, split, split or "") for path in found]


def _metadata_by_split(root: Path) -> list[TableFile]:
    splits = [split for split in SPLITS if (root / split).is_dir()]
    found = [_metadata_in(root / split, split) for split in splits]
    if any(found) and not all(found):
        without = splits[[bool(files) for files in found].index(False)]
        raise DataError(f"{root / without}: there is no metadata file, and another split has one; write it here too")
    return [file for files in found for file in files]


def _shards_in(folder: Path, below: str = "") -> list[TableFile]:
    """The files named by their split, by split and number; none in a folder that holds others but ``data``."""
    if not folder.is_dir():
        return []
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if any(entry.is_dir() and not entry.name.startswith(".") and entry.name != "data" for entry in entries):
        # Folders of classes, beside which a table may lie.
        return []
    names = [match for entry in entries if (match := _SHARD.fullmatch(entry.name))]
    _check_complete(folder, names)
    names.sort(key=lambda match: (SPLITS.index(match["split"]), match.string))
    return [TableFile(folder / match.string, match["split"], below) for match in names]


def _check_complete(folder: Path, names: Iterable[re.Match[str]]) -> None:
    numbers: dict[tuple[str, int], set[int]] = {}
    for match in names:
        if match["count"]:
            numbers.setdefault((match["split"], int(match["count"])), set()).add(int(match["number"]))
    for (split, count), there in numbers.items():
        missing = [number for number in range(count) if number not in there]
        if missing:
            raise DataError(
                f"{folder}: of the {count} files of {split}, number {missing[0]:05d} is missing"
                f"{f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''}; fetch it, or rename those there are"
            )
