"""The routes of the failure browser, the map and the divisions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI, Query
from fastapi.responses import JSONResponse, Response

from divcon.division import Division
from divcon.errors import DivconError
from divcon.evaluation.layout import By, Layout, check_layout, layouts
from divcon.search import Index
from divcon.search.layout import index_layout
from divcon.serve.failures import Failures
from divcon.serve.limits import Background, Refusal, Threads
from divcon.serve.run_data import RunData

_NUMBERS = ("int", "float")
"""The types of columns that are coloured by a scale."""


def colour_columns(index: Index) -> list[str]:
    """The user's columns that items can be coloured by."""
    return [column.name for column in index.about.user_columns if column.type != "json"]


def in_kinds(values: Sequence[str | int | None]) -> dict[str, Any]:
    """Values as ``names``, the different ones in order of their first appearance, and ``of``, the place of each value
    among them; -1: missing."""
    names: dict[str | int, int] = {}
    of = [-1 if value is None else names.setdefault(value, len(names)) for value in values]
    return {"names": list(names), "of": of}


def map_points(index: Index, ids: np.ndarray, layout: Layout, run_data: RunData | None, total: int) -> dict[str, Any]:
    """The map of the index, for JSON: a list for each of ``ids``, ``x`` and ``y``; and ``kinds``, the ``label``,
    ``learner`` and ``split`` of each item as `in_kinds` gives them, without those that no item has."""
    kinds = {"label": in_kinds(_of_column(index, "label", ids))}
    if run_data is not None:
        splits, learners = run_data.split_by_id(), run_data.learner_by_id()
        kinds["learner"] = in_kinds([learners.get(i) for i in ids.tolist()])
        kinds["split"] = in_kinds([splits.get(i) for i in ids.tolist()])
    return {
        "by": layout.by,
        "layouts": layouts(),
        "note": layout.note,
        "total": total,
        "ids": ids.tolist(),
        "x": [round(x, 5) for x in layout.xy[:, 0].tolist()],
        "y": [round(y, 5) for y in layout.xy[:, 1].tolist()],
        "kinds": {name: kind for name, kind in kinds.items() if kind["names"]},
        "columns": colour_columns(index),
        "problem": run_data.problem if run_data else None,
    }


def map_column(index: Index, ids: np.ndarray, name: str) -> dict[str, Any]:
    """A column's value of each item of the map, for JSON: ``numbers`` (None: missing), or as `in_kinds`."""
    column = index.about.column(name)
    if column is None or name not in colour_columns(index):
        raise Refusal(404, f"there is no column {name!r} to colour by")
    values = _of_column(index, column.stored, ids)
    if column.type in _NUMBERS:
        return {"numbers": [None if value is None or not np.isfinite(value) else value for value in values]}
    return in_kinds([None if value is None else str(value) for value in values])


def _of_column(index: Index, stored: str, ids: np.ndarray) -> list[Any]:
    """The value of each item in a column; None also for items that are gone."""
    values: dict[int, Any] = {}
    for block in index.store.read_columns(["id", stored]):
        values.update(zip(block["id"].to_pylist(), block[stored].to_pylist(), strict=True))
    return [values.get(i) for i in ids.tolist()]


class Views:
    """The views that need all items: computed in the background, and again when the index has changed."""

    def __init__(self, index: Index, threads: Threads, run: Path | None, scores: dict[str, Any] | None) -> None:
        self.index = index
        self.threads = threads
        self.run = run
        self.scores = scores
        self.background = Background()
        self.layouts = Background()  # of its own, since a layout takes a minute or two
        self._steps: dict[str, tuple[str, float | None]] = {}
        self._closed = False
        self._run_data: tuple[str, RunData] | None = None
        self._divided: tuple[list[Path], bool] = ([], False)

    def close(self) -> None:
        """Compute no more."""
        self._closed = True
        self.background.close()
        self.layouts.close()

    @property
    def names(self) -> list[str]:
        """The views that the page can show."""
        divided = self._has_divisions()
        return ["search", *(["failures"] if self.scores else []), "map", *(["divisions"] if divided else [])]

    def _has_divisions(self) -> bool:
        """Whether the run divides its images among several learners."""
        files = [] if self.run is None else sorted((self.run / "divisions").glob("epoch_*.safetensors"), reverse=True)
        if files != self._divided[0]:
            self._divided = (files, any(map(_is_among_several, files)))
        return self._divided[1]

    def run_data(self, version: str) -> RunData | None:
        """The run's data and divisions; called by the background's thread alone."""
        if self.run is None:
            return None
        if self._run_data is None or self._run_data[0] != version:
            self._run_data = (version, RunData.read(self.run, self.index))
        return self._run_data[1]

    async def answer(self, name: str, act: Any) -> Response:
        """The result of ``act(run_data)`` as JSON; 202 while it is being computed."""
        version = await self.threads.run(self.index.store.version)
        content = self.background.get(name, version, lambda: as_json(act(self.run_data(version))))
        return computing() if content is None else Response(content, media_type="application/json")

    async def failures(self) -> Failures | None:
        """The run's failures; None while they are being computed.

        Raises:
            Refusal: there are no scores.
        """
        scores = self.scores
        if scores is None:
            raise Refusal(404, 'there are no scores; start the server with "divcon serve RUN --scores FILE"')
        version = await self.threads.run(self.index.store.version)
        return self.background.get("failures", version, lambda: Failures(self.index, scores, self.run_data(version)))

    async def layout(self, by: By | Literal["auto"]) -> tuple[np.ndarray, Layout] | None:
        """The ids on the map and their layout; None while it is being computed."""
        version = await self.threads.run(self.index.store.version)

        def on_step(step: str, done: float | None) -> None:
            if self._closed:
                raise Refusal.busy("the server stops")
            self._steps[by] = (step, done)

        return self.layouts.get(by, version, lambda: index_layout(self.index, by, on_step))

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; each answers 202 until its result is computed."""

        @app.get("/map")
        async def the_map(by: By | Literal["auto"] = "auto") -> Response:
            """Items in two dimensions, with label, learner and split: a list for each. While it is computed, the step
            and how much of it is done."""
            by = check_layout(by)
            laid_out = await self.layout(by)
            if laid_out is None:
                step, done = self._steps.get(by, (None, None))
                return computing(step=step, done=done)
            total = await self.threads.run(self.index.store.count)
            return await self.answer(f"map {by}", lambda run_data: map_points(self.index, *laid_out, run_data, total))

        @app.get("/map/column")
        async def the_column(name: str, by: By | Literal["auto"] = "auto") -> Response:
            """The value of each item of the map in one of the index's columns."""
            laid_out = await self.layout(check_layout(by))
            if laid_out is None:
                return computing()
            content = await self.threads.run(lambda: as_json(map_column(self.index, laid_out[0], name)))
            return Response(content, media_type="application/json")

        @app.get("/failures")
        async def the_failures() -> Response:
            """The most confused classes of an evaluated run, its classes with failures, near-duplicates across
            splits."""
            found = await self.failures()
            return computing() if found is None else JSONResponse(found.overview)

        @app.get("/failures/queries")
        async def the_queries(
            label: str | None = None,
            offset: Annotated[int, Query(ge=0)] = 0,
            limit: Annotated[int, Query(ge=1, le=100)] = 10,
        ) -> Response:
            """The queries of an evaluated run, worst first, page by page; of one class if it is named."""
            found = await self.failures()
            if found is None:
                return computing()
            return JSONResponse(await self.threads.run(found.queries, label, offset, limit))

        @app.get("/divisions")
        async def the_divisions() -> Response:
            """The run's divisions: sizes, flow of images between learners, images of each."""
            if not self._has_divisions():
                known = "its learner has all images" if self.run else 'name the run with "divcon serve STORE --run RUN"'
                raise Refusal(404, f"there are no divisions; {known}")
            return await self.answer("divisions", lambda run_data: run_data.divisions() if run_data else None)


def as_json(value: Any) -> bytes:
    """Compact JSON; a map of 100,000 items is some megabytes."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def computing(**about: Any) -> JSONResponse:
    """The answer while a result is being computed."""
    return JSONResponse({"state": "computing", **about}, 202, {"Retry-After": "1"})


def _is_among_several(file: Path) -> bool:
    try:
        return Division.load(file).num_learners > 1
    except DivconError:
        return False
