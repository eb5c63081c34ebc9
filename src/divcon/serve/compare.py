"""Two models side by side: one query searched in the index of each, and the queries whose results differ most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from divcon.errors import ConfigError, RunError, StoreError
from divcon.evaluation.neighbours import nearest
from divcon.runs.folder import RunFolder, kept_epoch, run_of
from divcon.runs.report.thumbnails import sampled
from divcon.runtime.context import DEFAULT
from divcon.runtime.places import place
from divcon.search import Index
from divcon.search.queries import embeddings_of
from divcon.search.untrained import Untrained
from divcon.serve import search_request
from divcon.serve.items import EncodedImages, Pictures, Row, check_pixels, image_answer, row_of, rows_of
from divcon.serve.limits import Limits, Refusal
from divcon.serve.run_data import RunData
from divcon.serve.views import Views

K = 10
"""The neighbours that the overview counts."""
_MAX_ITEMS, _MAX_QUERIES = 20_000, 500
"""Of more, a sample is searched for the overview."""
_FEW_QUERIES = 50
"""The run's test images are the queries of the overview if so many of them are in both indexes."""
_STARTS = 12
"""The queries of each kind that the overview names."""


class CompareRequest(BaseModel):
    """A query, which is ``id`` or, in a form, ``image``; and the model to compare with."""

    model_config = ConfigDict(extra="forbid")

    id: int | None = Field(None, description="The id of an item of the server's own index.")
    k: int = Field(12, ge=1, description="The number of neighbours of each model; the query itself is none of them.")
    against: str | None = Field(
        None, description="The name of the other model, one of `compare` in `/about`. Default: the first."
    )


class ComparedHit(search_request.SearchHit):
    """A hit of one of the two models."""

    shared: bool = Field(description="Whether the other model returned it too.")
    right: bool | None = Field(description="Whether its label is the query's; null where either has none.")
    own_id: int | None = Field(description="Its id in the server's own index; null if it is not there.")
    indexed: bool = Field(description="Whether the other model's index has this item at all.")


class ComparedHits(BaseModel):
    """The most similar items by one of the two models, best first."""

    name: str
    hits: list[ComparedHit]


class CompareResponse(BaseModel):
    """The same query by two models."""

    query: dict[str, Any] | None = Field(description="The item that is the query; null for an uploaded image.")
    models: list[ComparedHits] = Field(description="The server's own model, and the other.")
    shared: int = Field(description="The number of items that both models returned.")
    overlap: float = Field(description="`shared` as a share of the items that each returned (overlap@k).")


SCHEMA = search_request.schema_of(
    "CompareRequest", {"k": {"type": "integer"}, "against": {"type": "string", "description": "A name in `/about`."}}
)


@dataclass(eq=False)
class Side:
    """One of the models that are compared: its index, its run if it has one, and the pictures of its items."""

    name: str
    index: Index
    run: Path | None
    pictures: Pictures

    @property
    def is_of_images(self) -> bool:
        return self.index.about.vector_dim is None

    def described(self) -> dict[str, Any]:
        """For JSON: name, dims, items, fingerprint, and the settings and validation scores of its run."""
        about = self.index.about
        described: dict[str, Any] = {
            "name": self.name,
            "dims": about.dims,
            "items": len(self.index),
            "fingerprint": about.fingerprint,
            "sees": "images" if self.is_of_images else "vectors",
            "backbone": None,
            "method": None,
            "learners": None,
            "untrained": False,
            "validation": None,
        }
        try:
            untrained = Untrained.read(about.model) if about.model else None
            if untrained is not None:
                described |= {"untrained": True, "backbone": untrained.backbone if self.is_of_images else None}
            origin = None if self.run is None else RunFolder(self.run).origin()
            if origin is not None:
                model = origin[0].model
                learners = model.num_learners if model.method != "single" else 1
                own = {"method": model.method, "learners": learners}
                described |= own | ({"backbone": str(model.backbone)} if self.is_of_images else {})
                described["validation"] = self._validation()
        except (RunError, StoreError):
            pass  # a damaged run still has an index
        return described

    def _validation(self) -> dict[str, Any] | None:
        folder = RunFolder(run_of(self.run or ""))
        lines = folder.lines()
        kept = kept_epoch(lines)
        line = next((line for line in lines if line["epoch"] == kept), {})
        names = ("recall_at_1", "map_at_r", "num_queries", "num_queries_total", "num_classes")
        scores = line.get("validation")
        if scores is not None:  # of the head; here as the model embeds in the end
            scores = {**scores, **(folder.baselines_of(kept) or {})}
        return None if scores is None else {name: scores[name] for name in names if name in scores}

    def validation_classes(self) -> list[str]:
        """The names of its run's validation classes; empty where unknown."""
        return [] if self.run is None else sorted(RunFolder(run_of(self.run)).classes_of("validation"))


class _Found(NamedTuple):
    """What one model returned."""

    hits: list[tuple[Row, float]]
    """Items and their cosines, best first."""
    label: str | None
    """The query's, as this index has it."""


def names_of(uris: Sequence[str]) -> list[str]:
    """A short name for each address of an index: the end of its path, as long as it takes to tell them apart. An index
    in a run is named for the run.

    Raises:
        ConfigError: two addresses are the same.
    """
    paths = [uri.rstrip("/").removesuffix("/index").split("/") for uri in uris]
    if len({tuple(path) for path in paths}) < len(paths):
        raise ConfigError("`compare`: the same index twice; pass indexes of other models", field="compare")
    longest = max(map(len, paths))
    return next(
        names
        for length in range(1, longest + 1)
        if len(set(names := ["/".join(path[-length:]) for path in paths])) == len(paths)
    )


class Comparison:
    """The server's own index and others, whose results for the same query are compared.

    Args:
        run: the run of the server's own index.
        others: the indexes to compare it with, at least one.

    Raises:
        ConfigError: an index is passed twice.
        StoreError: a store is gone.
    """

    def __init__(self, index: Index, run: Path | None, pictures: Pictures, others: Sequence[Index], limits: Limits):
        own, *names = names_of([each.uri for each in (index, *others)])
        self.limits = limits
        self.own = Side(own, index, run, pictures)
        self.others: dict[str, Side] = {}
        for name, other in zip(names, others, strict=True):
            folder = other.about.model
            of = place(folder) if folder and RunFolder(folder).origin() is not None else None
            self.others[name] = Side(name, other, of, Pictures(limits, EncodedImages(other, of)))

    @property
    def names(self) -> list[str]:
        """The names of the other models."""
        return list(self.others)

    def other(self, name: str | None) -> Side:
        """The other model of a name.

        Raises:
            Refusal: there is none.
        """
        if name is None:
            return next(iter(self.others.values()))
        if name not in self.others:
            raise Refusal(404, f"against: no model here is called {name!r}; there is {', '.join(self.others)}")
        return self.others[name]

    def search(self, request: CompareRequest, image: bytes | None) -> dict[str, Any]:
        """The response to a request: the fields of `CompareResponse`.

        Raises:
            Refusal: it exceeds the limits, there is no such item or model, or the other model cannot embed the query.
            DivconError: as `Index.search`.
        """
        if (request.id is None) == (image is None):
            raise Refusal(400, f"send {'either' if image else 'an'} id or an image{', not both' if image else ''}")
        if request.k > self.limits.most_k:
            raise Refusal(400, f"k {request.k}: the maximum is {self.limits.most_k:,}")
        sides = [self.own, self.other(request.against)]
        query = None if request.id is None else row_of(self.own.index, request.id)
        found = [self._found(side, query, image, request.k) for side in sides]
        shared = {row.key for row, _ in found[0].hits} & {row.key for row, _ in found[1].hits}
        models = [
            {"name": side.name, "hits": self._hits(side, each, other.index, shared)}
            for side, each, other in zip(sides, found, reversed(sides), strict=True)
        ]
        most = max(len(model["hits"]) for model in models)
        return {
            "query": None if query is None else query.to_dict(),
            "models": models,
            "shared": len(shared),
            "overlap": round(len(shared) / most, 4) if most else 0.0,
        }

    def _found(self, side: Side, query: Row | None, image: bytes | None, k: int) -> _Found:
        """The items most similar to an item of the server's own index, or to an uploaded image, by one model."""
        same = query if query is None or side is self.own else _same_item(query, side)
        if same is not None:
            ranked, label = _by_item(side, same.id, k), same.label
        else:
            content = image if query is None else self._image_of(query, side)
            assert content is not None, "there is an item or an image"
            ranked, label = _by_image(side, content, k, self.limits), None if query is None else query.label
        rows = rows_of(side.index, [i for i, _ in ranked])
        return _Found([(rows[i], score) for i, score in ranked if i in rows], label)

    def _hits(self, side: Side, found: _Found, other: Index, shared: set[str]) -> list[dict[str, Any]]:
        """For JSON: see `ComparedHit`."""
        there = other.store.lookup([row.key for row, _ in found.hits])
        hits = []
        for row, score in found.hits:
            indexed = row.key in there
            own_id = row.id if side is self.own else there[row.key].id if indexed else None
            comparison = {
                "shared": row.key in shared,
                "right": None if found.label is None or row.label is None else row.label == found.label,
                "own_id": own_id,
                "indexed": indexed,
                # One picture for both columns, so that the browser loads it once.
                "image": self._picture(side, row, own_id),
            }
            hits.append(row.to_dict(score) | comparison)
        return hits

    def _picture(self, side: Side, row: Row, own: int | None) -> str:
        if own is not None:
            return f"/items/{own}/image"
        return f"/compare/{1 + self.names.index(side.name)}/items/{row.id}/image"

    def _image_of(self, row: Row, side: Side) -> bytes:
        """The image of one of the server's own items, which the other index does not have."""
        wrong = f"item {row.id} is not in the index of {side.name}"
        if not (side.is_of_images and self.own.is_of_images):
            raise Refusal(404, f"{wrong}; choose an item that both indexes have")
        source = self.own.pictures.source(row) if row.box is None else None
        if source is None:
            raise Refusal(404, f"{wrong}, and its image is not here to be embedded; choose an item that both have")
        try:
            check_pixels(source, self.limits.pixels)
            return source if isinstance(source, bytes) else source.read_bytes()
        except OSError as error:
            raise Refusal(404, f"{wrong}, and its image cannot be read ({error.strerror or error})") from None

    def overview(self, name: str, run_data: RunData | None) -> dict[str, Any]:
        """What `GET /compare` returns; see there."""
        own, other = self.own, self.other(name)
        items = own.index.store.ids()
        ids = sampled(items, _MAX_ITEMS, (0,))
        rows = own.index.store.rows(ids).select(["id", "key", "content", "label"]).to_pylist()
        known = other.index.store.lookup([row["key"] for row in rows]) if rows else {}
        both = sorted((row for row in rows if row["key"] in known), key=lambda row: row["id"])
        changed = sum(row["content"] != known[row["key"]].content for row in both)
        counts = {"items": len(items), "sampled": len(rows), "both": len(both), "changed": changed}
        found = {"queries": None, "starts": {}}
        if len(both) > 1:
            own_ids = np.array([row["id"] for row in both], np.int64)
            other_ids = np.array([known[row["key"]].id for row in both], np.int64)
            vectors = (_vectors(own.index, own_ids), _vectors(other.index, other_ids))
            found = self._differences(own_ids, vectors, [row["label"] for row in both], run_data)
        models = [own.described(), other.described()]
        return {"models": models, "counts": counts, "notes": self._notes(models, other, counts), **found}

    def _notes(self, models: list[dict[str, Any]], other: Side, counts: Mapping[str, int]) -> list[str]:
        own, notes = self.own, []
        of, both = counts["sampled"], counts["both"]
        is_sample = " (of a sample)" if of < counts["items"] else ""
        if models[0]["fingerprint"] == models[1]["fingerprint"]:
            notes.append(
                "Both indexes are of the same model: where they have the same items, their results are the same."
            )
        if both == 0:
            use = (
                "so only their results for an uploaded image can be compared, side by side"
                if own.is_of_images and other.is_of_images
                else "so nothing can be compared"
            )
            notes.append(f"The two indexes have no item in common (items are matched by their path), {use}.")
        elif both < of or len(other.index) > counts["items"]:
            notes.append(
                f"{both:,} of {of:,} items{is_sample} of {own.name} are in {other.name}, which has "
                f"{len(other.index):,} (items are matched by their path). An item that "
                "only one index has cannot be a result of both."
            )
        if counts["changed"]:
            notes.append(
                f"{counts['changed']:,} items{is_sample} have the same path in both indexes, but not the same content: "
                'one index is older than the data. Bring it up to date with "divcon index".'
            )
        if not (own.is_of_images and other.is_of_images):
            who = own.name if not own.is_of_images else other.name
            notes.append(f"{who} has a model of vectors, so that no uploaded image can be compared: choose an item.")
        classes = own.validation_classes(), other.validation_classes()
        if all(model["validation"] for model in models) and classes[0] != classes[1]:
            notes.append("The runs were validated on other classes, so their validation scores cannot be compared.")
        return notes

    def _differences(
        self,
        ids: np.ndarray,
        vectors: tuple[np.ndarray, np.ndarray],
        labels: list[str | None],
        run_data: RunData | None,
    ) -> dict[str, Any]:
        """``queries``, the means over some queries, and ``starts``, those whose results differ most.

        Args:
            ids: (N,) int64 ids of the items that both indexes have, ascending.
            vectors: of each model, (N, D) float32.
            labels: N labels.
        """
        of_test = np.concatenate(
            [np.empty(0, np.int64), *(run_data.splits.get(s, ()) for s in ("test", "query"))] if run_data else [()]
        )
        is_test = np.isin(ids, of_test)
        among_test = int(is_test.sum()) >= _FEW_QUERIES
        queries = sampled(np.flatnonzero(is_test) if among_test else np.arange(len(ids)), _MAX_QUERIES, (0,))
        k = min(K, len(ids) - 1)
        near = [_others(queries, nearest(each[queries], each, k + 1, metric="cosine")[0], k) for each in vectors]
        overlaps = np.array([len(np.intersect1d(*pair)) / k for pair in zip(*near, strict=True)])
        names, numbers = np.unique([label or "" for label in labels], return_inverse=True)
        known = np.array([label is not None for label in labels])
        # A query without another item of its class cannot be right.
        judged = known[queries] & (np.bincount(numbers, minlength=len(names))[numbers[queries]] > 1)
        right = [numbers[each] == numbers[queries][:, None] for each in near]
        first = [each[:, 0] for each in right]
        gain = right[0].mean(1) - right[1].mean(1)
        starts = {
            "differ": _ordered(overlaps < 1, overlaps),
            "first": _ordered(judged & first[0] & ~first[1], -gain),
            "second": _ordered(judged & first[1] & ~first[0], gain),
        }
        counts = {name: len(places) for name, places in starts.items()}
        of_class = np.where(known, numbers, -1)[queries]
        starts = {name: _varied(places, of_class)[:_STARTS] for name, places in starts.items()}
        rows = rows_of(self.own.index, ids[queries[np.unique(np.concatenate(list(starts.values())))]])
        summary = {
            "count": len(queries),
            "among": len(ids),
            "test": among_test,
            "k": k,
            "overlap": round(float(overlaps.mean()), 4),
            "judged": int(judged.sum()),
            "right": [round(float(each[judged].mean()), 4) for each in first] if judged.any() else None,
            "only_first": counts["first"],
            "only_second": counts["second"],
        }
        return {
            "queries": summary,
            "starts": {
                name: [
                    rows[i].to_dict() | {"overlap": round(float(overlaps[p]), 4)}
                    for p in places
                    if (i := int(ids[queries[p]])) in rows
                ]
                for name, places in starts.items()
            },
        }

    def add_to(self, app: FastAPI, views: Views) -> None:
        """Add the routes."""

        @app.post("/compare", response_model=CompareResponse, openapi_extra=SCHEMA)
        async def compare(request: Request) -> Any:
            """Search with an item (as JSON) or an uploaded image (as a form) by two models."""
            query, image = await search_request.query_of(request, CompareRequest)
            return JSONResponse(await views.threads.run(self.search, query, image))

        @app.get("/compare")
        async def overview(against: Annotated[str | None, Query()] = None) -> Any:
            """The two models, what their indexes have in common, and the queries whose results differ most."""
            other = self.other(against)

            def version() -> tuple[str, str]:
                return self.own.index.store.version(), other.index.store.version()

            versions = await views.threads.run(version)
            result = views.background.get(
                f"compare {other.name}",
                " ".join(versions),
                lambda: self.overview(other.name, views.run_data(versions[0])),
            )
            if result is None:
                return JSONResponse({"state": "computing"}, 202, {"Retry-After": "1"})
            return JSONResponse(result)

        @app.get("/compare/{number}/items/{item}/image", response_class=JSONResponse, include_in_schema=False)
        async def image(request: Request, number: int, item: int, size: Annotated[int, Query(ge=1)] = 192) -> Any:
            if not 1 <= number <= len(self.others):
                raise Refusal(404, f"there is no model {number} to compare with")
            side = self.others[self.names[number - 1]]
            return await image_answer(request, views.threads, side.index, side.pictures, item, size)


def _same_item(row: Row, side: Side) -> Row | None:
    """The item of another index with the same key."""
    known = side.index.store.lookup([row.key])
    return None if row.key not in known else rows_of(side.index, [known[row.key].id]).get(known[row.key].id)


def _by_item(side: Side, item: int, k: int) -> list[tuple[int, float]]:
    """The items most similar to an item, without itself, and their cosines."""
    hits = side.index.search(item, k + 1)
    return [(hit.id, hit.score) for hit in hits if hit.id != item][:k]


def _by_image(side: Side, image: bytes, k: int, limits: Limits) -> list[tuple[int, float]]:
    if not side.is_of_images:
        raise Refusal(400, f"{side.name} has a model of vectors: no image can be compared; send the id of an item")
    check_pixels(image, limits.pixels, known_only=True)
    index = side.index
    vector = embeddings_of(
        [image], index.store, index.about, lambda: index.model, embedded=True, batch_size=1, context=DEFAULT
    )[0]
    return [(hit.id, hit.score) for hit in index.search(vector, k, embedded=True)]


def _vectors(index: Index, ids: np.ndarray) -> np.ndarray:
    """(N, D) float32, in the order of the ids."""
    stored, vectors = index.store.embeddings(ids)
    order = np.argsort(stored)
    return vectors[order][np.searchsorted(stored[order], ids)]


def _others(queries: np.ndarray, near: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) neighbours of (Q, k + 1) without the query itself; without the last where it is not among them."""
    near = near.copy()
    own = near == queries[:, None]
    own[~own.any(1), -1] = True
    return near[~own].reshape(len(queries), k)


def _ordered(chosen: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The places that are chosen, ascending by a number."""
    places = np.flatnonzero(chosen)
    return places[np.argsort(by[places], kind="stable")]


def _varied(places: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The places with one of each class first, in their order, then a second of each, and so on.

    Args:
        classes: (Q,) the class at each place; -1: none, which is a class of its own.
    """
    seen: Counter[int] = Counter()
    turns = []
    for c in classes[places].tolist():
        turns.append(seen[c])
        seen[c] += c >= 0
    return places[np.argsort(np.array(turns, np.int64), kind="stable")]
