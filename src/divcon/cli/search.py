"""``divcon search``."""

from __future__ import annotations

import json
from typing import Annotated, Any

from cyclopts import Parameter

from divcon.cli.app import SEARCH, BatchSize, DeviceOption, Place, app, console, note
from divcon.errors import ConfigError


@app.command(group=SEARCH)
def search(
    store: str,
    queries: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    k: Annotated[int, Parameter(name=("--k", "-k"))] = 10,
    where: Annotated[list[str] | None, Parameter(negative=())] = None,
    min_score: float | None = None,
    learner: int | None = None,
    exact: Annotated[bool, Parameter(negative=())] = False,
    model: Place | None = None,
    text_model: str | None = None,
    json_lines: Annotated[bool, Parameter(name="--json", negative=())] = False,
    batch_size: BatchSize = 128,
    device: DeviceOption = "auto",
) -> None:
    """Search an index for the items most similar to an image, nearest first.

    divcon search runs/products query.jpg -k 5

    divcon search runs/products query.jpg --where colour=red --where "price<10"

    divcon search runs/products query.jpg --min-score 0.8

    divcon search runs/products query.jpg --learner 2 --json

    divcon search runs/products "red running shoes" --text-model sentence-transformers/all-MiniLM-L6-v2

    Parameters
    ----------
    store
        The run that was indexed, a store's folder or address (s3://BUCKET/PATH), postgresql://USER@HOST/DATABASE,
        qdrant://HOST:PORT/COLLECTION, or a store of your own
        (module:Name or module:Name?OPTION=VALUE).
    queries
        Images. The embedding of an indexed image is read from the store. For a model of vectors, paths of indexed
        items.
    k
        Number of neighbours, 1 to 10,000.
    where
        Search only items whose column has this value: COLUMN=VALUE, or with !=, <, <=, > or >=. Columns are label,
        path, and those of the indexed table (divcon index --info shows their types); repeat it for several conditions.
    min_score
        Show only items whose cosine similarity is this or more, -1 to 1: fewer than k then, or none.
    learner
        Search by this learner's subspace only.
    exact
        Compare with every item, even if the store has an approximate index.
    model
        The run or model folder, if it has moved since the index was built.
    text_model
        The queries are texts, of which this model of sentence-transformers makes vectors: that of features --text,
        which made the vectors of the index. For texts alone; vectors of images and texts together need both.
    json_lines
        Print one line of JSON per neighbour.
    """
    from divcon.search import Index

    with Index.open(store, model, device=device) as index:
        asked: Any = queries
        if text_model is not None:
            asked = _vectors_of(queries, text_model, index.about.vector_dim, device)
        neighbours = index.search(
            asked, k, where=where, learner=learner, exact=exact, min_score=min_score, batch_size=batch_size
        )
    for query, hits in zip(queries, neighbours, strict=True):
        if json_lines:
            for rank, hit in enumerate(hits, 1):
                console.print(json.dumps({"query": query, "rank": rank, **hit.to_dict()}, ensure_ascii=False))
            continue
        if len(queries) > 1:
            console.print(query)
        for hit in hits:
            console.print(f"{hit.score:7.4f}  {hit.label or '-'}  {hit.path}")
        if not hits:
            fits = [f"fits {' and '.join(where)}"] if where else []
            similar = [f"has a cosine similarity of {min_score:g} or more"] if min_score is not None else []
            note(f"{query}: no item {' and '.join(fits + similar)}" if fits + similar else "the index has no items")


def _vectors_of(texts: list[str], name: str, dim: int | None, device: str) -> Any:
    """The vectors of texts, (Q, F), for an index of vectors of ``dim`` dimensions."""
    from divcon.models.text import TextModel
    from divcon.runtime.device import resolve_device

    if dim is None:
        raise ConfigError("--text-model: the index is of images; divcon features --text makes one of texts")
    if not all(text.strip() for text in texts):
        raise ConfigError("a query is empty; write the text to search for")
    vectors = TextModel(name, device=resolve_device(device)).encode(texts)
    if vectors.shape[1] != dim:
        raise ConfigError(
            f"--text-model {name}: its vectors have {vectors.shape[1]:,} dimensions, and those of the index {dim:,}; "
            "use the model that made them, of texts alone (vectors of images and texts together are found by an item's "
            "path)"
        )
    return vectors
