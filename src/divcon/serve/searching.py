"""A request to search: what may be in it, and what is answered."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from divcon.runtime.context import DEFAULT
from divcon.search import Index
from divcon.search.queries import embeddings_of
from divcon.serve.items import check_pixels, rows_of
from divcon.serve.limits import Limits, Refusal

Value = str | int | float | bool
Compared = dict[Literal["=", "!=", "<", "<=", ">", ">="], Value]
Filter = dict[str, Value | list[Value] | Compared] | list[str]


class Search(BaseModel):
    """One of ``id``, ``path``, ``vector`` (and, in a form, ``image``), and how to search."""

    model_config = ConfigDict(extra="forbid")

    id: int | None = Field(None, description="An item's number.")
    path: str | None = Field(None, description="The path of an item, as it was indexed; no other file is opened.")
    vector: list[float] | None = Field(None, description="An embedding (D numbers), as `embedding` of an answer is.")
    k: int = Field(12, ge=1, description="How many neighbours.")
    where: Filter = Field(
        default_factory=list,
        description='Conditions on columns: {"label": "mug", "price": {"<": 10}} or '
        '["label=mug", "price<10"]; all must hold. Not SQL.',
    )
    learner: int | Literal["each"] | None = Field(
        None, description="Search by this learner's subspace alone; `each`: also by that of every learner."
    )
    each_k: int = Field(6, ge=1, description="How many neighbours of each learner, with learner `each`.")


class Found(BaseModel):
    """An item that was found."""

    id: int
    score: float = Field(description="The cosine of the two embeddings.")
    label: str | None
    path: str
    metadata: dict[str, Any]
    box: tuple[int, int, int, int] | None
    image: str


class OfLearner(BaseModel):
    """What one learner's subspace finds alike."""

    learner: int
    hits: list[Found]


class Answer(BaseModel):
    """What is like the query, best first."""

    hits: list[Found]
    learners: list[OfLearner] = Field(description="With learner `each`, one a learner; else empty.")
    embedding: list[float] = Field(description="Of the query; searches again as `vector`.")


SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/Search"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {
                        "image": {"type": "string", "format": "binary"},
                        "k": {"type": "integer"},
                        "where": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "COLUMN=VALUE, or an object as JSON.",
                        },
                        "learner": {"type": "string", "description": "A learner's number, or `each`."},
                        "each_k": {"type": "integer"},
                    },
                }
            },
        },
    }
}
"""Of the body, which is read by hand as it comes in two forms."""


def with_search(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema with `Search` among its components."""
    own = Search.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.setdefault("components", {}).setdefault("schemas", {})["Search"] = own
    return schema


def parsed(text: bytes) -> Search:
    """A body of JSON.

    Raises:
        Refusal: it is not, or not of the form.
    """
    try:
        return _checked(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error})") from None


async def of_form(form: FormData) -> tuple[Search, bytes]:
    """The fields of a form, and the image in it.

    Raises:
        Refusal: they are not of the form.
    """
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise Refusal(400, "the form has no file 'image'; send one, or JSON with id, path or vector")
    values: dict[str, Any] = {name: form.get(name) for name in form if name not in ("image", "where")}
    if any(isinstance(value, UploadFile) for value in values.values()):
        raise Refusal(400, "the form has another file than 'image'")
    values["where"] = _read([text for text in form.getlist("where") if isinstance(text, str)])
    return _checked(values), await image.read()


def where_of(texts: list[str]) -> Any:
    """The conditions in a query string, as the index takes them: COLUMN=VALUE, or an object as JSON.

    Raises:
        Refusal: they are not of that form.
    """
    return _as_taken(_checked({"where": _read(texts)}).where)


def _read(texts: list[str]) -> Any:
    texts = [text for text in texts if text.strip()]
    if len(texts) != 1 or not texts[0].lstrip().startswith("{"):
        return texts
    try:
        return json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"where is not JSON ({error})") from None


def _as_taken(where: Filter) -> Any:
    if isinstance(where, list):
        return where or None
    pairs = {}
    for name, value in where.items():
        if isinstance(value, dict) and len(value) != 1:
            raise Refusal(422, f"where {name}: give one comparison, such as {{'<': 10}}")
        pairs[name] = next(iter(value.items())) if isinstance(value, dict) else value
    return pairs


def _checked(values: Any) -> Search:
    try:
        return Search.model_validate(values)
    except ValidationError as error:
        raise Refusal(422, told(error.errors())) from None


def told(errors: Any) -> str:
    """What pydantic says is wrong, in a line."""
    first = errors[0]
    if "where" in first["loc"]:
        # It names the type that each of several forms failed at.
        return 'where: give columns and values, as {"label": "mug", "price": {"<": 10}} or ["label=mug"]'
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return f"{place or 'the body'}: {first['msg'].lower()}"


def search(index: Index, query: Search, image: bytes | None, learners: int, limits: Limits) -> dict[str, Any]:
    """The answer to a request, as `Answer` has it.

    Raises:
        Refusal: it asks for too much, or for what is not there.
        DivconError: as `Index.search`.
    """
    given = [name for name in ("id", "path", "vector") if getattr(query, name) is not None]
    given += ["image"] if image is not None else []
    if len(given) != 1:
        raise Refusal(400, f"give one of id, path, vector or image; given: {', '.join(given) or 'none'}")
    for name in ("k", "each_k"):
        if getattr(query, name) > limits.most_k:
            raise Refusal(400, f"{name} {getattr(query, name)}: at most {limits.most_k:,} are found")
    vector = _embedding(index, query, image, limits)
    by = query.learner if isinstance(query.learner, int) else None
    asked = {"where": _as_taken(query.where), "embedded": True}
    found = [index.search(vector, query.k, learner=by, **asked)]
    if query.learner == "each":
        found += [index.search(vector, query.each_k, learner=k, **asked) for k in range(learners)]
    rows = rows_of(index, list({hit.id for hits in found for hit in hits}))
    told = [[rows[hit.id].to_dict(hit.score) for hit in hits if hit.id in rows] for hits in found]
    each = [{"learner": k, "hits": hits} for k, hits in enumerate(told[1:])]
    return {"hits": told[0], "learners": each, "embedding": [round(v, 7) for v in vector.tolist()]}


def _embedding(index: Index, query: Search, image: bytes | None, limits: Limits) -> np.ndarray:
    """(D,) float32."""
    if image is not None:
        check_pixels(image, limits.pixels, known_only=True)
    item = query.id
    if query.path is not None:
        if ".." in query.path.replace("\\", "/").split("/"):
            raise Refusal(400, "path: '..' is not taken; give the path of an item as it was indexed")
        item = _id_of(index, query.path)
    if item is not None:
        there = index.store.embeddings(np.array([item])) if 0 <= item < 2**63 else None
        if there is None or not len(there[0]):
            raise Refusal(404, f"there is no item {item}")
        return there[1][0]
    asked = image if image is not None else query.vector
    return embeddings_of(
        [asked],  # type: ignore[list-item]
        index.store,
        index.about,
        lambda: index.model,
        embedded=True,
        batch_size=1,
        context=DEFAULT,
    )[0]


def _id_of(index: Index, path: str) -> int:
    from divcon.search.items import key_of

    try:
        known = index.store.lookup([key_of(path)])
    except UnicodeEncodeError:
        known = {}
    if not known:
        raise Refusal(404, "path: no item has this path")
    return next(iter(known.values())).id
