"""Many images: several processes embed a part of them each into parquet files, which are then loaded into a store."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.errors import StoreError
from divcon.files import written_whole
from divcon.search.about import About
from divcon.search.items import Items, key_of
from divcon.search.update import Embedded, Embedding, contents_of, embed, embedded

_ABOUT, _MADE_OF = b"divcon about", b"divcon made of"
_PART = re.compile(r"part-(\d{8})\.parquet")
_SHARD = re.compile(r"shard-(\d+)-of-(\d+)\.json")


def write_parts(
    how: Embedding,
    about: About,
    chunks: Iterable[Items],
    folder: Path,
    shard: int = 1,
    shards: int = 1,
    *,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[int, int]:
    """Embed every ``shards``-th chunk into a parquet of its own, ``part-00000017.parquet``, whole or not at all. One
    that is there and was made of the same images by the same model stays, so that an interrupted shard goes on.

    Args:
        how: the model, and how it embeds.
        about: of the model: see `divcon.search.about`.
        chunks: all chunks, the same for every shard.
        shard: which of the ``shards`` it is, from 1.

    Returns:
        How many items were embedded, and how many were there.

    Raises:
        StoreError: a part is of another model.
        OutputError: a part cannot be written.
        ImageError: an image does not decode, and is not to be skipped.
    """
    ended = folder / f"shard-{shard}-of-{shards}.json"
    ended.unlink(missing_ok=True)
    made = kept = done = number = 0
    for number, chunk in enumerate(chunks, 1):
        if number % shards != shard % shards:
            continue
        part = folder / f"part-{number - 1:08d}.parquet"
        contents = contents_of(chunk, how)
        made_of = key_of(json.dumps([chunk.keys(), contents, chunk.details()]))
        if _made_of(part, about) == made_of:
            kept += len(chunk)
        else:
            wanted = np.array([i for i, content in enumerate(contents) if content], np.int64)
            rows = embedded(*embed(chunk, contents, wanted, how)).rows
            told = {_ABOUT: json.dumps(about.to_dict()).encode(), _MADE_OF: made_of.encode()}
            with written_whole(part) as beside:
                pq.write_table(rows.replace_schema_metadata(told), beside)
            made += len(rows)
        done += len(chunk)
        on_progress(done)
    for part in folder.glob("part-*.parquet"):
        found = _PART.fullmatch(part.name)
        if found and int(found[1]) >= number and (int(found[1]) + 1) % shards == shard % shards:
            part.unlink()  # of images that are not listed any more
    with written_whole(ended) as beside:
        beside.write_text(json.dumps({"parts": number}) + "\n")
    return made, kept


def _made_of(part: Path, about: About) -> str | None:
    try:
        told = pq.read_schema(part).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    About.from_dict(json.loads(told[_ABOUT]), str(part)).check_same(about, str(part))
    return told[_MADE_OF].decode()


def read_parts(folder: Path) -> tuple[About, int, Iterator[Embedded]]:
    """Of what model the parts in a folder are, how many items there are, and the items, a part at a time.

    Raises:
        StoreError: there are none, a shard has not ended, or parts are of several models.
    """
    ends = [found for path in folder.glob("shard-*.json") if (found := _SHARD.fullmatch(path.name))]
    if not ends:
        raise StoreError(f"{folder}: no shard has ended here; run divcon index RUN IMAGES --shard 1/N --parts {folder}")
    shards = max(int(found[2]) for found in ends)
    missing = sorted(set(range(1, shards + 1)) - {int(found[1]) for found in ends if int(found[2]) == shards})
    if missing:
        raise StoreError(f"{folder}: shard {missing[0]} of {shards} has not ended; run it (again) with --shard")
    counts = {json.loads((folder / found.string).read_text())["parts"] for found in ends if int(found[2]) == shards}
    paths = [folder / f"part-{number:08d}.parquet" for number in range(max(counts))]
    gone = next((path for path in paths if not path.is_file()), None)
    if len(counts) > 1 or gone is not None or not paths:
        what = f"{gone.name} is missing" if gone else "the shards were of different images"
        raise StoreError(f"{folder}: {what}; run the shards again, which embed only what is missing")
    about: About | None = None
    for path in paths:
        own = _about(path)
        about = about or own
        about.check_same(own, str(path))
    assert about is not None
    total = sum(pq.read_metadata(path).num_rows for path in paths)
    return about, total, (Embedded(pq.read_table(path).replace_schema_metadata(None)) for path in paths)


def _about(path: Path) -> About:
    with suppress(OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return About.from_dict(json.loads((pq.read_schema(path).metadata or {})[_ABOUT]), str(path))
    raise StoreError(f"{path}: damaged; remove it, and run its shard again")
