"""Folders of tables as other tools write them: Spark, pandas and polars in partitions, `datasets.save_to_disk`, Hugging
Face's parquet branches."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

from divcon.data.table_format import is_table
from divcon.data.tables import TableFile
from divcon.errors import DataError
from divcon.runtime.copies import size_of

_ABOUT = (".json", ".md", ".txt", ".yml", ".yaml", ".crc", ".rst", ".cff", ".gitattributes", ".lock", ".sha256", ".py")
"""Endings of files that may lie beside tables and are none."""
_OTHER_TABLES = {".orc": "ORC", ".avro": "Avro", ".tfrecord": "TFRecord", ".tfrecords": "TFRecord"}
_NOTHING = "__HIVE_DEFAULT_PARTITION__"
"""The value of a partition whose rows have none."""
_MOST_FILES = 100_000


def saved_files(root: Path) -> list[TableFile]:
    """The files of a `Dataset` or `DatasetDict` that ``save_to_disk`` wrote; none for another folder.

    Raises:
        DataError: a file or a split is missing.
    """
    splits = root / "dataset_dict.json"
    if splits.is_file():
        names = _json(splits).get("splits", [])
        files = [file for name in names for file in _saved(root / name, str(name))]
        if not files:
            raise DataError(f"{splits}: names no splits; save the DatasetDict again")
        return files
    return _saved(root, None) if (root / "state.json").is_file() and (root / "dataset_info.json").is_file() else []


def _saved(folder: Path, split: str | None) -> list[TableFile]:
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(f"{folder}: has no state.json, so that this split is not saved to its end; save it again")
    files = [folder / str(entry["filename"]) for entry in _json(state).get("_data_files", []) if "filename" in entry]
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: is missing, and state.json beside it names it; save the Dataset again")
    return [TableFile(file, split) for file in files]


def _json(path: Path) -> dict:
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is damaged ({error}); save the Dataset again") from None
    return held if isinstance(held, dict) else {}


def tree_files(root: Path, splits: Sequence[str]) -> list[TableFile]:
    """The tables in a folder and the folders below it, in order; none where there is an image, or another file that is
    no table.

    Args:
        splits: the names of splits, of folders and in names of files (``train-00.parquet``).

    Raises:
        DataError: several data sets, each in a folder of its own; files that are no parts of one table; Spark has not
            written all of it; or it is of a format that is not read.
    """
    found = sorted(_walk(root)) if root.is_dir() else []
    if not found or any(path is None for _, path in found):
        return []
    paths = [path for _, path in found if path is not None]
    if (root / "_temporary").is_dir() and not (root / "_SUCCESS").exists():
        raise DataError(f"{root}: is not written to its end (there is _temporary and no _SUCCESS); write it again")
    files: list[TableFile] = []
    sets: dict[str, Path] = {}
    kinds: dict[tuple[str, str | None], dict[str, Path]] = {}
    for path in paths:
        constants: list[tuple[str, str | None]] = []
        rest: list[str] = []
        split = _split_in(path.name, splits)
        for part in path.relative_to(root).parts[:-1]:
            name, sign, value = part.partition("=")
            if sign and name:
                constants.append((unquote(name), None if value == _NOTHING else unquote(value)))
            elif part.lower() in splits:
                split = part.lower()
            elif part != "data":
                rest.append(part)
        folder = path.parent.relative_to(root).as_posix()
        sets.setdefault("/".join(rest), path)
        files.append(TableFile(path, split, "" if folder == "." else folder, tuple(constants)))
        kinds.setdefault((folder, split), {}).setdefault(_NUMBERS.sub("#", path.name.lower()), path)
    if len(sets) > 1:
        shown = ", ".join(sorted(name or path.name for name, path in sets.items())[:8])
        raise DataError(f"{root}: holds several data sets ({shown}); pass one of them")
    for parts in kinds.values():
        if len(parts) > 1:
            shown = ", ".join(sorted(path.name for path in parts.values())[:8])
            raise DataError(
                f"{root}: which of its tables ({shown})? They are no parts of one; pass the path of one file"
            )
    if len(files) > 1:
        # An empty file holds no row; of one alone that is an error.
        files = [file for file in files if size_of(file.path)] or files
    return files


_NUMBERS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]+")
"""What differs in the names of the parts of one table."""


def _split_in(name: str, splits: Sequence[str]) -> str | None:
    return next((word for word in splits if re.fullmatch(rf"(.*[-_.])?{word}[-_.].*", name.lower())), None)


def _walk(folder: Path, depth: int = 0) -> Iterator[tuple[str, Path | None]]:
    """The tables below a folder; None for a file that is neither a table nor lies beside tables."""
    others: list[str] = []
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries):
            name = entry.name
            if name.startswith((".", "_")):
                continue
            if entry.is_dir():
                others.append(entry.path)
            elif is_table(name) and not _is_about(name):
                yield entry.path, Path(entry.path)
            elif (suffix := Path(name).suffix.lower()) in _OTHER_TABLES:
                raise DataError(f"{entry.path}: {_OTHER_TABLES[suffix]} is not read; write it as parquet")
            elif suffix not in _ABOUT or count > _MOST_FILES:
                yield entry.path, None
                return
    for path in sorted(others):
        if depth < 6:
            for found in _walk(Path(path), depth + 1):
                yield found
                if found[1] is None:
                    return


def _is_about(name: str) -> bool:
    """Whether a JSON file describes tables, and is none."""
    return name.lower().endswith(".json") and not name.startswith("part-")
