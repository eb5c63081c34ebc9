"""What a folder of packed images says of itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from divcon.data.image_set import Benchmark
from divcon.errors import DataError

ABOUT = "pack.json"
_MOST = 100_000


def as_packed(benchmark: Benchmark, folder: Path) -> Benchmark:
    """What was read from a folder of parquet files, as the benchmark that ``pack.json`` there says it is; as it is
    where there is none.

    Raises:
        DataError: ``pack.json`` is damaged, or of other files.
    """
    path = folder / ABOUT
    if not path.exists():
        return benchmark
    try:
        about = json.loads(path.read_text())
        recall_at, galleries = tuple(int(k) for k in about["recall_at"]), int(about["random_galleries"])
        if not recall_at or not all(1 <= k <= _MOST for k in recall_at) or not 0 <= galleries <= _MOST:
            raise ValueError("recall_at or random_galleries is no number of images")
        found = replace(
            benchmark,
            name=str(about["name"]),
            recall_at=recall_at,
            random_galleries=galleries,
            notes=(*map(str, about["notes"]), str(about["packed"])),
            packed=str(about["packed"]),
        )
        parts = {name: replace(images, flip=bool(about["flip"])) for name, images in found.parts.items()}
        then = about["split_hash"]
    except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error!r}); pack again") from None
    if found.split_hash != then:
        raise DataError(f"{path}: its split is {then}, and that of the files beside it {found.split_hash}; pack again")
    query = parts["test"] if "test" in parts else parts["query"]
    return replace(
        found,
        train=parts["train"],
        validation=parts.get("validation"),
        query=query,
        gallery=parts.get("gallery", query),
    )
