"""``divcon search``: what of an index is like an image."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from divcon.cli.app import BatchSize, DeviceOption, app, console


@app.command
def search(
    store: str,
    queries: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    k: Annotated[int, Parameter(name=("--k", "-k"))] = 10,
    where: Annotated[list[str] | None, Parameter(negative=())] = None,
    learner: int | None = None,
    exact: Annotated[bool, Parameter(negative=())] = False,
    model: Path | None = None,
    json_lines: Annotated[bool, Parameter(name="--json", negative=())] = False,
    batch_size: BatchSize = 128,
    device: DeviceOption = "auto",
) -> None:
    """Find what of an index is most like an image, nearest first.

    divcon search runs/products query.jpg -k 5

    divcon search runs/products query.jpg --where colour=red --where "price<10"

    divcon search runs/products query.jpg --learner 2 --json

    Parameters
    ----------
    store
        What divcon index made: a folder, or postgresql://USER@HOST/DATABASE; or a run, for its index.
    queries
        Images; a path that was indexed is found in the store, and not embedded again. For a model of vectors, paths
        that were indexed.
    k
        How many to find, 1 to 10,000.
    where
        Only items whose column is so: COLUMN=VALUE, or with !=, <, <=, > or >=. Columns are label, path, and those of
        the table that was indexed; several must all hold.
    learner
        Search by this learner's subspace alone.
    exact
        Compare with every item, where else the store's approximate index is used.
    model
        The model, where it does not lie any more where it was when the index was made: a run folder, or a model folder.
    json_lines
        Print a line of JSON a hit.
    """
    from divcon.runtime.device import resolve_device
    from divcon.search import Index

    with Index.open(store, model, device=resolve_device(device)) as index:
        found = index.search(queries, k, where=where, learner=learner, exact=exact, batch_size=batch_size)
    for query, hits in zip(queries, found, strict=True):
        if json_lines:
            for rank, hit in enumerate(hits, 1):
                console.print(json.dumps({"query": query, "rank": rank, **asdict(hit)}, ensure_ascii=False))
            continue
        if len(queries) > 1:
            console.print(query)
        for hit in hits:
            console.print(f"{hit.score:7.4f}  {hit.label or '-'}  {hit.path}")
