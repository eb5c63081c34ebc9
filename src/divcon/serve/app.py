"""The server over an index: its API, and the files of its page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from divcon import __version__
from divcon.errors import ConfigError, DivconError, StoreError, WeightsError
from divcon.evaluation.threshold import read_threshold
from divcon.runtime.places import place
from divcon.search import Index
from divcon.search.filters import conditions_of
from divcon.search.queries import subspace_weights
from divcon.search.untrained import training_of
from divcon.serve import search_request
from divcon.serve.compare import CompareRequest, Comparison
from divcon.serve.guard import COOKIE, Access, Guard, Metrics, location, route_path
from divcon.serve.items import Catalogue, EncodedImages, Pictures, image_answer, page_of, row_of
from divcon.serve.labels import Labelling
from divcon.serve.limits import Limits, Refusal, Threads
from divcon.serve.page_files import PAGE_FILES
from divcon.serve.views import Views

try:
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.middleware.gzip import GZipMiddleware
    from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.routing import Match, Route
except ImportError:
    raise ConfigError('a server needs FastAPI: pip install "divcon[serve]"') from None

_ZIPPED_FROM = 1024
"""Bytes from which an answer is compressed."""


def create_app(
    index: Index,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    run: str | Path | None = None,
    scores: dict[str, Any] | None = None,
    compare: Index | Sequence[Index] = (),
    root_path: str = "",
    allow_host: Sequence[str] = (),
    trust_proxy: Sequence[str] = (),
    cors_origin: Sequence[str] = (),
    labels: str | Path | None = None,
) -> FastAPI:
    """The server over an index, as an ASGI application.

    Args:
        token: the token that requests must send as ``Authorization: Bearer TOKEN``; None: the server answers only
            requests to 127.0.0.1, localhost or ``allow_host``.
        run: the run of the index's model; the page shows its data and divisions.
        scores: the scores that `divcon.evaluate` returns with ``per_query=True``, or ``divcon evaluate --json`` writes;
            the page shows the run's failures.
        compare: indexes of other models; the page shows the results of the same query side by side.
        root_path: the path that a proxy serves the server under, such as ``/tools/divcon``; the proxy may strip it or
            not.
        allow_host: names of the server behind a proxy, such as ``shop.example``.
        trust_proxy: addresses or networks of proxies whose ``X-Forwarded-Host`` and ``X-Forwarded-Proto`` are believed;
            run uvicorn with ``proxy_headers=False`` then.
        cors_origin: origins such as ``https://shop.example`` whose pages may call the API.
        labels: the file that keeps the labels given on the page; None: ``page-labels.csv`` in the store's folder.

    Raises:
        StoreError: a store is gone.
        ConfigError: an index is to be compared with itself, or ``root_path``, ``allow_host``, ``trust_proxy`` or
            ``cors_origin`` has another form.
        DataError: the file of labels is damaged.
    """
    limits = limits or Limits()
    access = Access(token, root_path, allow_host, trust_proxy, cors_origin)
    run = None if run is None else place(run)
    threads, metrics, pictures = Threads(limits), Metrics(), Pictures(limits, EncodedImages(index, run))
    views = Views(index, threads, run, scores)
    others = [compare] if isinstance(compare, Index) else list(compare)
    comparison = Comparison(index, run, pictures, others, limits) if others else None
    catalogue = Catalogue(index)
    labelling = Labelling(index, catalogue, threads, None if labels is None else place(labels))
    learners = _learners(index)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        threads.close()
        views.close()

    app = FastAPI(
        title="divcon",
        version=__version__,
        description="Search images or vectors by similarity.",
        docs_url=None,  # its page loads scripts from another server
        redoc_url=None,
        lifespan=life,
        redirect_slashes=False,  # its redirects name the host that the proxy sent
    )
    described = app.openapi
    requests = (search_request.SearchRequest, *([CompareRequest] if comparison else []))
    app.openapi = lambda: search_request.with_request_schemas(described(), *requests)  # type: ignore[method-assign]
    _add_error_handlers(app)

    @app.post("/search", response_model=search_request.SearchResponse, openapi_extra=search_request.SCHEMA)
    async def search(request: Request) -> Any:
        """Find the items most similar to an uploaded image (as a form), or to an item or vector (as JSON)."""
        query, image = await search_request.query_of(request, search_request.SearchRequest)
        return JSONResponse(await threads.run(search_request.search, index, query, image, learners, limits))

    @app.get("/items")
    async def items(
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1)] = 50,
        where: Annotated[list[str], Query()] = [],  # noqa: B006
        sample: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    ) -> dict[str, Any]:
        """List items page by page, in order of their ids or, with `sample` (a seed), in a mixed order that shows the
        whole index early; `where` as in a search."""
        if limit > limits.most_k:
            raise Refusal(400, f"limit {limit}: the maximum is {limits.most_k:,}")

        def page() -> dict[str, Any]:
            conditions = conditions_of(search_request.where_of(where), index.about)
            return page_of(index, catalogue, conditions, offset, limit, sample)

        return await threads.run(page)

    @app.get("/items/{item}")
    async def one(item: int) -> dict[str, Any]:
        """An item."""
        return (await threads.run(row_of, index, item)).to_dict()

    @app.get("/items/{item}/image", response_class=Response, responses={200: {"content": {"image/webp": {}}}})
    async def image(request: Request, item: int, size: Annotated[int, Query(ge=1)] = 192) -> Response:
        """A thumbnail of an item, its longer side about `size` pixels and at most 768."""
        return await image_answer(request, threads, index, pictures, item, size)

    @app.get("/about")
    async def about() -> dict[str, Any]:
        """The index, its columns with their types, its learners, and this server's limits. `untrained` is whether its
        model is a pretrained backbone; `training` then says what training would need."""

        def describe() -> dict[str, Any]:
            about = index.about
            columns = [{"name": name, "type": "text"} for name in ("label", "path")]
            columns += [{"name": column.name, "type": column.type} for column in about.user_columns]
            training = training_of(index)
            return {
                "items": len(index),
                "dims": about.dims,
                "metric": "cosine",
                "fingerprint": about.fingerprint,
                "sees": "images" if about.vector_dim is None else "vectors",
                "vector_dim": about.vector_dim,
                "learners": learners,
                "columns": columns,
                "views": [*views.names, *(["compare"] if comparison else [])],
                "compare": comparison.names if comparison else [],
                "threshold": _threshold(about.model, run),
                "untrained": training is not None,
                "training": training,
            }

        limited = {"upload_bytes": limits.upload_bytes, "pixels": limits.pixels, "most_k": limits.most_k}
        return {**await threads.run(describe), "limits": limited, "version": __version__}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answer 200 if the index can be searched, else 503."""
        await threads.run(index.store.version)
        return {"status": "ok"}

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> PlainTextResponse:
        """Counts for Prometheus."""
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/login", status_code=204, include_in_schema=False)
    async def login(request: Request) -> Response:
        # The guard has checked the token. A cookie keeps it, since <img> cannot send a header.
        response = Response(status_code=204)
        if token is not None:
            path, secure = request.scope.get("root_path") or "/", request.scope["scheme"] == "https"
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path=path, secure=secure)
        return response

    views.add_to(app)
    labelling.add_to(app)
    if comparison is not None:
        comparison.add_to(app, views)
    for path, file in PAGE_FILES.items():
        app.get(path, include_in_schema=False)(file.answer)
    _check_root_path(app, access.root_path)
    app.add_middleware(GZipMiddleware, minimum_size=_ZIPPED_FROM, compresslevel=5)
    # The page's own files reveal nothing of the data.
    app.add_middleware(Guard, limits=limits, metrics=metrics, access=access, open_paths=("", "/health", *PAGE_FILES))
    if access.cors_origin:
        # Around the guard, so that pages of these origins can read its refusals too. Their requests send the token as
        # a header, which is not a credential in the sense of CORS.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors_origin,
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("Authorization", "Content-Type"),
            expose_headers=("ETag", "Retry-After"),
        )
    return app


def _check_root_path(app: FastAPI, root_path: str) -> None:
    """A request to ``/map`` could mean the map, or the page of a server under ``/map`` whose proxy strips nothing."""
    first = root_path.split("/")[1] if root_path else None
    if first in {route.path.split("/")[1] for route in app.routes if isinstance(route, Route)} - {""}:
        raise ConfigError(
            f"`root_path` {root_path}: /{first} is an address of this server itself; serve it under another path",
            field="root_path",
        )


def _learners(index: Index) -> int:
    """The number of learners that can be searched by; 0 if there is one, or the model cannot be loaded."""
    try:
        if index.model.num_learners < 2:
            return 0
        subspace_weights(index.model, 0)
        return index.model.num_learners
    except (StoreError, WeightsError, ConfigError):
        return 0


def _threshold(*models: str | Path | None) -> float | None:
    """The similarity that the run chose as its threshold (see `divcon.evaluation.threshold`), of the first of these
    models that has one."""
    for model in models:
        with suppress(DivconError):
            if model is not None and (record := read_threshold(model)) is not None:
                return record["min_score"]
    return None


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error with ``{"error": ...}``."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Any) -> JSONResponse:
        return JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)

    @app.exception_handler(DivconError)
    async def wrong(request: Request, error: Any) -> JSONResponse:
        gone = isinstance(error, (StoreError, WeightsError))
        return JSONResponse({"error": str(error)}, 503 if gone else 400, {"Retry-After": "30"} if gone else {})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": search_request.validation_message(error.errors())}, 422)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: Any) -> Response:
        path = route_path(dict(request.scope))
        if error.status_code == 404 and path.endswith("/") and (plain := path.rstrip("/")):
            scope = {**request.scope, "path": plain, "root_path": ""}
            if any(route.matches(scope)[0] is Match.FULL for route in app.routes):
                return RedirectResponse(location(dict(request.scope), plain), 307)
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
