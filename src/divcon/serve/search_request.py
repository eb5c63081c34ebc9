"""The request and the response of ``POST /search``."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from divcon.runtime.context import DEFAULT
from divcon.search import Index
from divcon.search.digests import key_of
from divcon.search.queries import embeddings_of, subspace_weights
from divcon.serve.items import check_pixels, rows_of
from divcon.serve.limits import Limits, Refusal

M = TypeVar("M", bound=BaseModel)
Value = str | int | float | bool
Compared = dict[Literal["=", "!=", "<", "<=", ">", ">="], Value]
Filter = dict[str, Value | list[Value] | Compared] | list[str]


class SearchRequest(BaseModel):
    """A query, which is one of ``id``, ``path``, ``vector`` or, in a form, ``image``; and the options of the search."""

    model_config = ConfigDict(extra="forbid")

    id: int | None = Field(None, description="The id of an item.")
    path: str | None = Field(None, description="The path of an item, as it was indexed; no other file is opened.")
    vector: list[float] | None = Field(None, description="An embedding (D numbers), such as `embedding` of a response.")
    k: int = Field(12, ge=1, description="The number of neighbours.")
    where: Filter = Field(
        default_factory=list,
        description='Filters: {"label": "mug", "price": {"<": 10}} or ["label=mug", "price<10"]; all must hold. '
        "A value in an object is of the column's type: a number for int and float, text for dates and decimals.",
    )
    min_score: float | None = Field(
        None,
        ge=-1,
        le=1,
        allow_inf_nan=False,
        description="Return only items whose cosine is this or more; with `learner`, the cosine in its subspace.",
    )
    learner: int | Literal["each"] | None = Field(
        None, description="Search in the subspace of this learner; `each`: in the full embedding and in each subspace."
    )
    each_k: int = Field(6, ge=1, description="The number of neighbours in each subspace, with learner `each`.")


class SearchHit(BaseModel):
    """An item and its similarity to the query."""

    id: int
    score: float = Field(description="The cosine of the two embeddings.")
    label: str | None
    path: str
    metadata: dict[str, Any]
    box: tuple[int, int, int, int] | None
    image: str


class LearnerHits(BaseModel):
    """The most similar items in one learner's subspace."""

    learner: int
    hits: list[SearchHit]


class SearchResponse(BaseModel):
    """The most similar items, best first."""

    hits: list[SearchHit]
    learners: list[LearnerHits] = Field(description="With learner `each`, one entry per learner; else empty.")
    agreement: float | None = Field(
        description="With learner `each`: the mean correlation of two learners' cosines to the query, over the items "
        "of this response without the query's own; null where there are fewer than 3, or one learner."
    )
    embedding: list[float] = Field(description="The embedding of the query; send it as `vector` to search again.")


def schema_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI schema of a body that is JSON or a form with an image, which FastAPI cannot derive.

    Args:
        name: of the model of the JSON.
        fields: those of the form, besides the image.
    """
    image = {"image": {"type": "string", "format": "binary"}}
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}},
                "multipart/form-data": {
                    "schema": {"type": "object", "required": ["image"], "properties": image | fields}
                },
            },
        }
    }


SCHEMA = schema_of(
    "SearchRequest",
    {
        "k": {"type": "integer"},
        "where": {
            "type": "array",
            "items": {"type": "string"},
            "description": "COLUMN=VALUE, or a JSON object.",
        },
        "min_score": {"type": "number", "minimum": -1, "maximum": 1},
        "learner": {"type": "string", "description": "A learner's number, or `each`."},
        "each_k": {"type": "integer"},
    },
)


def with_request_schemas(schema: dict[str, Any], *kinds: type[BaseModel]) -> dict[str, Any]:
    """Add models of requests to the components of an OpenAPI schema."""
    schemas = schema.setdefault("components", {}).setdefault("schemas", {})
    for kind in kinds:
        schemas[kind.__name__] = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return schema


async def query_of(request: Request, kind: type[M]) -> tuple[M, bytes | None]:
    """The query in the body of a request, and the image that was uploaded with it.

    Args:
        kind: the model of the query's fields.

    Raises:
        Refusal: it is neither JSON nor a form with an image, or not a valid request.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "multipart/form-data":
        return from_json(await request.body(), kind), None
    async with request.form(max_files=1, max_fields=100) as form:
        return await from_form(form, kind)


def from_json(text: bytes, kind: type[M]) -> M:
    """The request in a JSON body.

    Raises:
        Refusal: it is not JSON, or not a valid request.
    """
    try:
        return _validated(json.loads(text), kind)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON ({error})") from None


async def from_form(form: FormData, kind: type[M]) -> tuple[M, bytes]:
    """The request in a form, and the image in it.

    Raises:
        Refusal: there is no image, or it is not a valid request.
    """
    image = form.get("image")
    if not isinstance(image, UploadFile):
        raise Refusal(400, "the form has no file 'image'; send one, or JSON with id, path or vector")
    values: dict[str, Any] = {name: form.get(name) for name in form if name not in ("image", "where")}
    if any(isinstance(value, UploadFile) for value in values.values()):
        raise Refusal(400, "the form has more files than 'image'")
    if "where" in form:
        values["where"] = _read([text for text in form.getlist("where") if isinstance(text, str)])
    return _validated(values, kind), await image.read()


def where_of(texts: list[str]) -> Any:
    """The filters in a query string, COLUMN=VALUE or a JSON object, as `Index.search` takes them.

    Raises:
        Refusal: they have another form.
    """
    return _where(_validated({"where": _read(texts)}, SearchRequest).where)


def _read(texts: list[str]) -> Any:
    texts = [text for text in texts if text.strip()]
    if len(texts) != 1 or not texts[0].lstrip().startswith("{"):
        return texts
    try:
        return json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"where is not JSON ({error})") from None


def _where(where: Filter) -> Any:
    if isinstance(where, list):
        return where or None
    pairs = {}
    for name, value in where.items():
        if isinstance(value, dict) and len(value) != 1:
            raise Refusal(422, f"where {name}: write one comparison, such as {{'<': 10}}")
        pairs[name] = next(iter(value.items())) if isinstance(value, dict) else value
    return pairs


def _validated(values: Any, kind: type[M]) -> M:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise Refusal(422, validation_message(error.errors())) from None


def validation_message(errors: Any) -> str:
    """The first of pydantic's errors, in one line."""
    first = errors[0]
    if "where" in first["loc"]:
        # pydantic has an error for each of the forms that a filter may have.
        return 'where: write columns and values, such as {"label": "mug", "price": {"<": 10}} or ["label=mug"]'
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return f"{place or 'the body'}: {first['msg'].lower()}"


def search(index: Index, request: SearchRequest, image: bytes | None, learners: int, limits: Limits) -> dict[str, Any]:
    """The response to a request: the fields of `SearchResponse`.

    Raises:
        Refusal: it exceeds the limits, or there is no such item.
        DivconError: as `Index.search`.
    """
    queries = [name for name in ("id", "path", "vector") if getattr(request, name) is not None]
    queries += ["image"] if image is not None else []
    if len(queries) != 1:
        raise Refusal(400, f"send one of id, path, vector or image, not {' and '.join(queries) or 'none'}")
    for name in ("k", "each_k"):
        if getattr(request, name) > limits.most_k:
            raise Refusal(400, f"{name} {getattr(request, name)}: the maximum is {limits.most_k:,}")
    vector = _embedding(index, request, image, limits)
    learner = request.learner if isinstance(request.learner, int) else None
    options = {"where": _where(request.where), "min_score": request.min_score}
    rankings = index.neighbours(vector[None], request.k, learner=learner, **options)
    if request.learner == "each":
        for k in range(learners):
            rankings += index.neighbours(vector[None], request.each_k, learner=k, **options)
    found = np.unique(np.concatenate([ids for ids, _ in rankings])).tolist()
    rows = rows_of(index, found)
    full, *each = [
        [rows[i].to_dict(score) for i, score in zip(ids.tolist(), scores.tolist(), strict=True) if i in rows]
        for ids, scores in rankings
    ]
    by_learner = [{"learner": k, "hits": hits} for k, hits in enumerate(each)]
    agreement = _agreement(index, vector, found, learners) if by_learner else None
    embedding = [round(v, 7) for v in vector.tolist()]
    return {"hits": full, "learners": by_learner, "agreement": agreement, "embedding": embedding}


def _agreement(index: Index, query: np.ndarray, ids: list[int], learners: int) -> float | None:
    """The agreement of the learners on a (D,) query, as in `SearchResponse`."""
    _, embeddings = index.store.embeddings(np.array(ids, np.int64))
    # The query's own item has a cosine of one for every learner, and would make strangers agree.
    embeddings = embeddings[embeddings @ query < 1 - 1e-5]
    weights = [subspace_weights(index.model, k) for k in range(learners)]
    return agreement_of(np.stack([_cosines(query * w, embeddings * w) for w in weights]))


def _cosines(query: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """(n,) float64, of a (D,) query with (n, D) embeddings; NaN where either is zero."""
    query, embeddings = query.astype(np.float64), embeddings.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return embeddings @ query / (np.linalg.norm(embeddings, axis=1) * np.linalg.norm(query))


def agreement_of(cosines: np.ndarray) -> float | None:
    """The mean Pearson correlation of two rows of (K, n) cosines; None for one row, fewer than 3 columns, or a row
    without variance."""
    if min(len(cosines), cosines.shape[1] - 1) < 2 or not np.isfinite(cosines).all() or not np.ptp(cosines, 1).all():
        return None
    correlations = np.corrcoef(cosines)[np.triu_indices(len(cosines), 1)]
    return round(float(correlations.mean()), 4)


def _embedding(index: Index, request: SearchRequest, image: bytes | None, limits: Limits) -> np.ndarray:
    """(D,) float32."""
    if image is not None:
        check_pixels(image, limits.pixels, known_only=True)
    item = request.id
    if request.path is not None:
        if ".." in request.path.replace("\\", "/").split("/"):
            raise Refusal(400, "path: '..' is refused; send the path of an item as it was indexed")
        item = _id_of(index, request.path)
    if item is not None:
        valid = [item] if 0 <= item < 2**63 else []
        _, embeddings = index.store.embeddings(np.array(valid, np.int64))
        if not len(embeddings):
            raise Refusal(404, f"there is no item {item}")
        return embeddings[0]
    query = image if image is not None else request.vector
    return embeddings_of(
        [query],  # type: ignore[list-item]
        index.store,
        index.about,
        lambda: index.model,
        embedded=True,
        batch_size=1,
        context=DEFAULT,
    )[0]


def _id_of(index: Index, path: str) -> int:
    try:
        known = index.store.lookup([key_of(path)])
    except UnicodeEncodeError:
        known = {}
    if not known:
        raise Refusal(404, "path: no item has this path")
    return next(iter(known.values())).id
