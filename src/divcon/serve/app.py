"""The server over an index: its API, and the files of its page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from divcon import __version__
from divcon.errors import ConfigError, DivconError, StoreError, WeightsError
from divcon.search import Index
from divcon.search.filters import conditions_of
from divcon.search.queries import subspace_weights
from divcon.serve import search_request
from divcon.serve.guard import COOKIE, Guard, Metrics
from divcon.serve.items import EncodedImages, Pictures, row_of, rows_of
from divcon.serve.limits import Limits, Refusal, Threads
from divcon.serve.views import Views

try:
    from fastapi import FastAPI, Query, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException
except ImportError:
    raise ConfigError('a server needs FastAPI: pip install "divcon[serve]"') from None

PAGE = Path(__file__).parent / "page"
_PAGE_FILES = {"/": "index.html", **{f"/{path.name}": path.name for path in PAGE.iterdir() if path.suffix != ".html"}}


def create_app(
    index: Index,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    run: str | Path | None = None,
    scores: dict[str, Any] | None = None,
) -> FastAPI:
    """The server over an index, as an ASGI application.

    Args:
        token: the token that requests must send as ``Authorization: Bearer TOKEN``; None: the server answers only
            requests to 127.0.0.1 or localhost.
        run: the run of the index's model; the page shows its data and divisions.
        scores: the scores that `divcon.evaluate` returns with ``per_query=True``, or ``divcon evaluate --json`` writes;
            the page shows the run's failures.

    Raises:
        StoreError: the store is gone.
    """
    limits = limits or Limits()
    run = None if run is None else Path(run)
    threads, metrics, pictures = Threads(limits), Metrics(), Pictures(limits, EncodedImages(index, run))
    views = Views(index, threads, run, scores)
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
    )
    described = app.openapi
    app.openapi = lambda: search_request.with_request_schema(described())  # type: ignore[method-assign]
    # The page's own files reveal nothing of the data.
    app.add_middleware(Guard, limits=limits, metrics=metrics, token=token, open_paths=(*_PAGE_FILES, "/health"))
    _add_error_handlers(app)

    @app.post("/search", response_model=search_request.SearchResponse, openapi_extra=search_request.SCHEMA)
    async def search(request: Request) -> Any:
        """Find the items most similar to an uploaded image (as a form), or to an item or vector (as JSON)."""
        if request.headers.get("content-type", "").partition(";")[0].strip() == "multipart/form-data":
            async with request.form(max_files=1, max_fields=100) as form:
                query, image = await search_request.from_form(form)
        else:
            query, image = search_request.from_json(await request.body()), None
        return JSONResponse(await threads.run(search_request.search, index, query, image, learners, limits))

    @app.get("/items")
    async def items(
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1)] = 50,
        where: Annotated[list[str], Query()] = [],  # noqa: B006
    ) -> dict[str, Any]:
        """List items in order of their ids, page by page; `where` as in a search."""
        if limit > limits.most_k:
            raise Refusal(400, f"limit {limit}: the maximum is {limits.most_k:,}")

        def page() -> dict[str, Any]:
            conditions = conditions_of(search_request.where_of(where), index.about)
            ids = index.store.ids(conditions)
            wanted = ids[offset : offset + limit].tolist()
            rows = rows_of(index, wanted)
            return {"total": len(ids), "offset": offset, "items": [rows[i].to_dict() for i in wanted if i in rows]}

        return await threads.run(page)

    @app.get("/items/{item}")
    async def one(item: int) -> dict[str, Any]:
        """An item."""
        return (await threads.run(row_of, index, item)).to_dict()

    @app.get("/items/{item}/image", response_class=Response, responses={200: {"content": {"image/webp": {}}}})
    async def image(request: Request, item: int, size: Annotated[int, Query(ge=1)] = 192) -> Response:
        """A thumbnail of an item, its longer side about `size` pixels and at most 768."""
        row = await threads.run(row_of, index, item)
        headers = {"Cache-Control": "private, max-age=300", "ETag": f'"{row.content}-{size}"'}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(await threads.run(pictures.get, row, size), media_type="image/webp", headers=headers)

    @app.get("/about")
    async def about() -> dict[str, Any]:
        """The index, its columns with their types, its learners, and this server's limits."""

        def describe() -> dict[str, Any]:
            about = index.about
            columns = [{"name": name, "type": "text"} for name in ("label", "path")]
            columns += [{"name": column.name, "type": column.type} for column in about.user_columns]
            return {
                "items": len(index),
                "dims": about.dims,
                "metric": "cosine",
                "fingerprint": about.fingerprint,
                "sees": "images" if about.vector_dim is None else "vectors",
                "vector_dim": about.vector_dim,
                "learners": learners,
                "columns": columns,
                "views": views.names,
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
    async def login() -> Response:
        # The guard has checked the token. A cookie keeps it, since <img> cannot send a header.
        response = Response(status_code=204)
        if token is not None:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path="/")
        return response

    views.add_to(app)
    for route, name in _PAGE_FILES.items():
        app.get(route, include_in_schema=False)(_file(PAGE / name))
    return app


def _file(path: Path) -> Any:
    async def give() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return give


def _learners(index: Index) -> int:
    """The number of learners that can be searched by; 0 if there is one, or the model cannot be loaded."""
    try:
        if index.model.num_learners < 2:
            return 0
        subspace_weights(index.model, 0)
        return index.model.num_learners
    except (StoreError, WeightsError, ConfigError):
        return 0


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
    async def http(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Any) -> JSONResponse:
        return JSONResponse({"error": "internal server error; see the log of the server"}, 500)
