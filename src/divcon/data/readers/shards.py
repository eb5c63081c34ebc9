"""Read shards of webdataset: tar archives in which files of one sample follow each other, ``000.jpg``, ``000.cls``.

The package webdataset reads them in order, as a stream. Batches of a class each, clustering and neighbours need any
image at any time, so the archives are read once from start to end, and the place of each image is kept: later images
are read by place, also from archives at addresses. The places are in the cache folder, so that this is done once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.config.settings import TEST_FRACTION, Protocol
from divcon.data.benchmark import Benchmark
from divcon.data.decode import image_endings
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.table import OnMissingLabel, read_columns, set_of_columns
from divcon.data.remote_folder import files_below
from divcon.data.split_names import split_role
from divcon.data.tar_members import Archive, TarMembers
from divcon.errors import DataError, RemoteMissingError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.places import cache_folder, is_url, text_of, url_of, without_secrets

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_SHARDS = 1_000_000
_FORMAT = 1
"""Of the kept places; one more when what is kept changes."""
_ABOUT = ("cls", "json", "txt")
"""Endings of the files of a sample that may hold its label, in the order in which they are asked."""
_FIELDS = (
    *("label", "labels", "class", "class_name", "class_label", "cls", "category", "category_name", "target"),
    *("product_id", "item_id", "identity", "species"),
)
"""Fields of a sample's .json that are the label, in the order in which they are looked for."""
_AHEAD = 8
"""Blocks that a request for the next header brings, of an archive at an address: nearly all of it is read."""


def is_shards(name: str | os.PathLike[str]) -> bool:
    """Whether a path or address is of shards: it ends in .tar, or is a folder with nothing else."""
    text = os.fspath(name)
    path = text.partition("?")[0] if is_url(text) else text
    if path.lower().endswith(".tar"):
        return True
    if re.search(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", path, re.IGNORECASE) and _BRACES.search(path):
        raise DataError(
            f"{text}: archives that are compressed as a whole cannot be read in any order; unpack them to .tar"
        )
    if is_url(text):
        return False
    with contextlib.suppress(OSError):
        names = [each.name for each in os.scandir(text) if not each.name.startswith((".", "_"))] if text else []
        return _are_shards(names)
    return False


def is_folder_of_shards(url: str) -> bool:
    """Whether a folder at an address holds shards and nothing else.

    Raises:
        RemoteError, DataError: as of `files_below`.
    """
    return _are_shards([name for name in files_below(url) if not name.startswith((".", "_"))])


def _are_shards(names: Sequence[str]) -> bool:
    beside = (".json", ".txt", ".md", ".csv", ".parquet", ".idx", ".index")  # img2dataset writes some beside each shard
    tars = [name for name in names if name.lower().endswith(".tar")]
    return bool(tars) and all(name.lower().endswith((".tar", *beside)) for name in names)


def read_shards(
    name: str | os.PathLike[str],
    *,
    flip: bool = True,
    on_missing_label: OnMissingLabel = "stop",
    label_column: str | None = None,
    split_column: str | None = None,
    test_fraction: float | None = TEST_FRACTION,
    group: str | None = None,
    protocol: Protocol = "auto",
    ignore_split: bool = False,
    context: Context = DEFAULT,
) -> Benchmark:
    """Read shards of webdataset (``photos-{000..099}.tar``), on this machine or at addresses.

    The label of an image is the text of its ``.cls``, else the field ``label`` of its ``.json`` (or ``class`` and the
    like), else its ``.txt``. Its split is a field ``split`` of its ``.json``, or a word in the name of the shard:
    ``train-000.tar``.

    Args:
        name: the path or address of a shard, of several with ranges in braces (``{000..099}``, ``{train,test}``), or of
            a folder of shards.
        label_column: an ending (``txt``), or a field of the ``.json``, that is the label.
        split_column: a field of the ``.json`` that is the split.
        flip, on_missing_label, test_fraction, group, protocol, ignore_split: as in `divcon.read`.
        context: reports the shards that are indexed, which is done once.

    Raises:
        DataError: a shard is missing, damaged or compressed, holds no images, or images have no label.
        RemoteError: one cannot be read from its address.
    """
    samples = _samples(name, label_column, split_column, context)
    data = read_columns(
        samples.columns(),
        name=samples.name,
        check_files=False,
        flip=flip,
        on_missing_label=on_missing_label,
        test_fraction=test_fraction,
        group=group,
        protocol=protocol,
        ignore_split=ignore_split,
    )
    sets: dict[int, LabeledSet] = {}

    def with_images(images: LabeledSet | None) -> LabeledSet | None:
        if images is None:
            return None
        # Queries and gallery may be one set, and must stay one.
        return sets.setdefault(id(images), replace(images, encoded=samples.members, source=samples.source, root=""))

    parts: dict[str, Any] = {part: with_images(getattr(data, part)) for part in ("train", "query", "gallery")}
    return replace(data, **parts, validation=with_images(data.validation))


def images_in_shards(name: str | os.PathLike[str], *, context: Context = DEFAULT) -> LabeledSet:
    """All images of shards, with their labels if all have one.

    Raises:
        DataError, RemoteError: as of ``read_shards``.
    """
    samples = _samples(name, None, None, context)
    columns = {"path": samples.columns()["path"]}
    if any(label is not None for label in samples.labels):
        columns["label"] = samples.columns()["label"]
    # The column of paths alone would be read as files.
    images = set_of_columns(
        columns | {"image": pa.array([b"-"] * len(samples.labels))}, name=samples.name, need_labels=False
    )
    return replace(
        images, paths=pa.array(samples.paths, pa.string()), encoded=samples.members, source=samples.source, root=""
    )


@dataclass(frozen=True)
class _Samples:
    name: str
    source: str
    paths: list[str]
    labels: list[str | None]
    splits: list[str] | None
    members: TarMembers

    def columns(self) -> dict[str, Any]:
        columns: dict[str, Any] = {"path": pa.array(self.paths), "label": pa.array(self.labels, pa.string())}
        return columns | ({"split": pa.array(self.splits)} if self.splits is not None else {})


def _samples(
    name: str | os.PathLike[str], label_column: str | None, split_column: str | None, context: Context
) -> _Samples:
    text = url_of(name) or os.fspath(name)
    shown = without_secrets(text)
    archives = [_archive(shard) for shard in shard_names(text)]
    tables = list(_indexed(archives, context))
    counts = [len(table) for table in tables]
    if not sum(counts):
        raise DataError(f"{shown}: there are no images in it (KEY.jpg, KEY.png, ...)")
    table = pa.concat_tables(tables)
    number = np.repeat(np.arange(len(archives), dtype=np.int32), counts)
    members = TarMembers(
        tuple(archives), number, table["offset"].combine_chunks().to_numpy(), table["size"].combine_chunks().to_numpy()
    )
    shards = _short_names([archive.name for archive in archives])
    paths = [f"{shards[i]}/{path}" for i, path in zip(number.tolist(), table["path"].to_pylist(), strict=True)]
    rows = table.select(list(_ABOUT)).to_pylist()
    held = [_json(row["json"], shown, path) for row, path in zip(rows, paths, strict=True)]
    labels = [_label(row, fields, label_column) for row, fields in zip(rows, held, strict=True)]
    if label_column is not None and all(label is None for label in labels):
        raise DataError(f"{shown}: no sample has {label_column!r}, as an ending or as a field of its .json")
    splits = _splits(held, split_column, [shards[i] for i in number.tolist()], shown)
    return _Samples(_name_of(text), shown, paths, labels, splits, members)


def _name_of(text: str) -> str:
    """A name for the data: the file's or folder's, without what counts the shards."""
    name = text.partition("?")[0].rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[-_.]?\{[^{}]*\}", "", name.removesuffix(".tar")).strip("-_. ") or "shards"


def _short_names(names: Sequence[str]) -> list[str]:
    """The names of the shards from the folder on that holds all of them."""
    names = [name.partition("?")[0] if is_url(name) else name for name in names]
    folders = {name.rpartition("/")[0] for name in names}
    start = os.path.commonprefix([f"{folder}/" for folder in folders]).rpartition("/")[0]  # noqa: RUF071 - cut at a slash
    return [name.removeprefix(f"{start}/") for name in names]


def shard_names(text: str) -> list[str]:
    """The shards that a path or address stands for, in order.

    Raises:
        DataError: there are none, or braces are wrong.
        RemoteError: the folder cannot be listed.
    """
    if text.partition("?")[0].lower().endswith(".tar"):
        return list(expanded(text))
    if is_url(text):
        return [f"{text.rstrip('/')}/{name}" for name in files_below(text.rstrip("/")) if name.lower().endswith(".tar")]
    return sorted(str(path) for path in Path(text).iterdir() if path.name.lower().endswith(".tar"))


def expanded(text: str) -> Iterator[str]:
    """A text with each of the values in its braces: ``a-{00..02}`` is ``a-00``, ``a-01``, ``a-02``.

    Raises:
        DataError: a range counts down, or there are more than a million.
    """
    pieces = _BRACES.split(text)
    choices: list[list[str]] = []
    for inside in pieces[1::2]:
        if (match := _RANGE.fullmatch(inside)) is None:
            choices.append(inside.split(","))
            continue
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise DataError(f"{text}: {{{inside}}} counts down; write the smaller number first")
        if last - first >= _MOST_SHARDS:
            raise DataError(f"{text}: {{{inside}}} stands for more than {_MOST_SHARDS:,} shards")
        width = len(match[1]) if match[1].startswith("0") else 0
        choices.append([f"{number:0{width}d}" for number in range(first, last + 1)])
    for values in itertools.product(*choices):
        yield "".join(itertools.chain.from_iterable(itertools.zip_longest(pieces[::2], values, fillvalue="")))


def _archive(name: str) -> Archive:
    if is_url(name):
        from divcon.runtime import remote

        about = remote.info(name)
        if about is None or about.folder:
            raise DataError(f"{without_secrets(name)}: there is no such shard")
        if about.size is None:
            raise DataError(f"{without_secrets(name)}: the server does not say how large it is; download it first")
        return Archive(name, about.size, about.version)
    try:
        here = Path(name).absolute()
        about = here.stat()
    except OSError as error:
        raise DataError(
            f"{name}: {'there is no such shard' if isinstance(error, FileNotFoundError) else error}"
        ) from None
    return Archive(str(here), about.st_size, str(about.st_mtime_ns))


def _indexed(archives: Sequence[Archive], context: Context) -> Iterator[pa.Table]:
    """The images of each archive: path, offset, size, and the texts of the files that may hold the label."""
    with ThreadPoolExecutor(8 if any(is_url(archive.name) for archive in archives) else 1) as threads:
        try:
            for done, table in enumerate(threads.map(_index_of, archives), 1):
                context.progress("fetch", done, len(archives))
                yield table
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


_SCHEMA = pa.schema(
    [("path", pa.string()), ("offset", pa.int64()), ("size", pa.int64()), *((name, pa.string()) for name in _ABOUT)]
)


def _index_of(archive: Archive) -> pa.Table:
    key = hashlib.sha256(f"{_FORMAT}\0{archive.name}\0{archive.version}\0{archive.size}".encode()).hexdigest()
    kept = cache_folder() / "shards" / f"{key}.parquet"
    try:
        with pq.ParquetFile(kept) as parquet:
            return parquet.read()
    except (OSError, pa.ArrowException):
        pass  # not indexed yet, or damaged
    table = pa.Table.from_pylist(list(_read_archive(archive)), _SCHEMA)
    with contextlib.suppress(OSError):  # without room on the disk it is indexed again next time
        kept.parent.mkdir(parents=True, exist_ok=True)
        beside = kept.with_name(f".{key}.{os.getpid()}")
        pq.write_table(table, beside)
        beside.replace(kept)
    return table


def _read_archive(archive: Archive) -> Iterator[dict[str, Any]]:
    shown = without_secrets(text_of(archive.name))
    sample: dict[str, Any] = {}
    key, end = None, 0
    try:
        with _opened(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                end = member.offset_data + -(-member.size // 512) * 512
                folder, _, name = member.name.rpartition("/")
                stem, _, endings = name.partition(".")
                if not member.isfile() or not stem or name.startswith("."):
                    continue
                if member.offset_data + member.size > archive.size:
                    raise tarfile.ReadError("it ends in the middle of a file")
                if (now := f"{folder}/{stem}" if folder else stem) != key:
                    if "path" in sample:
                        yield sample
                    key, sample = now, {}
                ending = endings.rpartition(".")[2].lower()
                if endings.lower() in _ABOUT:
                    held = tar.extractfile(member)
                    assert held is not None
                    sample[endings.lower()] = held.read().decode("utf-8", "replace").strip()
                elif f".{ending}" in image_endings() and "path" not in sample:
                    sample |= {"path": f"{key}.{endings}", "offset": member.offset_data, "size": member.size}
            if "path" in sample:
                yield sample
            file.seek(end)
            if file.read(512) != bytes(512):  # tarfile takes half a header for the end
                raise tarfile.ReadError("its end is missing: it was cut off")
    except tarfile.TarError as error:
        raise DataError(f"{shown}: this is no tar archive that can be read ({error}); make or get it again") from None
    except RemoteMissingError:
        raise DataError(f"{shown}: there is no such shard") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be read ({error.strerror or error})") from None


def _opened(archive: Archive) -> Any:
    if is_url(archive.name):
        from divcon.runtime.blocks import RemoteFile

        file = RemoteFile(archive.name, archive.size, archive.version)
        file.ahead = _AHEAD
        return file
    return Path(archive.name).open("rb")


def _json(text: str | None, shown: str, path: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        held = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{shown}: the .json of {path} is damaged ({error})") from None
    return held if isinstance(held, dict) else {"label": held}


def _label(row: dict[str, str | None], fields: dict[str, Any], chosen: str | None) -> str | None:
    if chosen is not None:
        value = row[chosen] if chosen in _ABOUT and chosen != "json" else fields.get(chosen)
    else:
        named = next((fields[name] for name in _FIELDS if fields.get(name) is not None), None)
        value = next((value for value in (row["cls"], named, row["txt"]) if value is not None), None)
    if value is None or isinstance(value, (dict, list)):
        return None
    return str(value) or None


def _splits(held: Sequence[dict[str, Any]], chosen: str | None, shards: Sequence[str], shown: str) -> list[str] | None:
    """The split of each image; None: they have none."""
    field = chosen or ("split" if any(fields.get("split") for fields in held) else None)
    if field is not None:
        splits = [fields.get(field) for fields in held]
        if all(isinstance(split, str) and split for split in splits):
            return [str(split) for split in splits]
        if chosen is not None:
            raise DataError(f"{shown}: not all samples have the field {chosen!r} in their .json")
    of_shard = {shard: _split_of_name(shard) for shard in set(shards)}
    if None in of_shard.values() or len(set(of_shard.values())) < 2:
        return None
    return [str(of_shard[shard]) for shard in shards]


def _split_of_name(shard: str) -> str | None:
    words = re.split(r"[-_./]", shard.removesuffix(".tar"))
    return next((role for word in words if word and (role := split_role(word))), None)
