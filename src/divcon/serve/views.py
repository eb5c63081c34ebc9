"""The routes of the failure browser, the map and the divisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from divcon.runs.report.thumbnails import sampled
from divcon.search import Index
from divcon.serve.failures import failures
from divcon.serve.items import rows_of
from divcon.serve.limits import Background, Refusal, Threads
from divcon.serve.run_data import RunData

By = Literal["pca", "tsne"]
MAX_POINTS: dict[str, int] = {"pca": 5_000, "tsne": 2_000}
"""Items on the map; of more, a sample."""


def coordinates(vectors: np.ndarray, by: By) -> np.ndarray:
    """(N, 2) float64 coordinates between -1 and 1 of (N, D) vectors, by PCA, or by t-SNE (van der Maaten and Hinton,
    2008), which keeps neighbours together and distorts distances."""
    vectors = np.asarray(vectors, np.float64)
    if by == "tsne" and len(vectors) >= 8:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(vectors) - 1) / 4)
        points_2d = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors).astype(np.float64)
    else:
        from sklearn.decomposition import PCA

        size = min(2, *vectors.shape)
        points_2d = (
            PCA(size, svd_solver="full").fit_transform(vectors) if len(vectors) > 1 else np.zeros((len(vectors), size))
        )
        points_2d = np.pad(points_2d, ((0, 0), (0, 2 - size)))
    points_2d = points_2d - (points_2d.max(0) + points_2d.min(0)) / 2 if len(points_2d) else points_2d
    return points_2d / (np.abs(points_2d).max(initial=0) or 1.0)


def map_points(index: Index, by: By, run_data: RunData | None) -> dict[str, Any]:
    """The map of the index, for JSON: ``points`` with id, x, y, label, learner and split; ``total`` items."""
    ids = index.store.ids()
    total = len(ids)
    ids, vectors = index.store.embeddings(sampled(ids, MAX_POINTS[by], (0,)))
    order = np.argsort(ids)
    ids, vectors = ids[order], vectors[order]
    rows = rows_of(index, ids)
    splits, learners = (run_data.split_by_id(), run_data.learner_by_id()) if run_data else ({}, {})
    points = [
        {
            "id": int(i),
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "label": rows[i].label,
            "path": rows[i].path,
            "learner": learners.get(i),
            "split": splits.get(i),
        }
        for i, (x, y) in zip(ids.tolist(), coordinates(vectors, by), strict=True)
        if i in rows
    ]
    return {"points": points, "total": total, "problem": run_data.problem if run_data else None}


class Views:
    """The views that need all items: computed in the background, and again when the index has changed."""

    def __init__(self, index: Index, threads: Threads, run: Path | None, scores: dict[str, Any] | None) -> None:
        self.index = index
        self.threads = threads
        self.run = run
        self.scores = scores
        self.background = Background()
        self._run_data: tuple[str, RunData] | None = None

    @property
    def names(self) -> list[str]:
        """The views that the page can show."""
        divided = self.run is not None and any((self.run / "divisions").glob("epoch_*.safetensors"))
        return ["search", *(["failures"] if self.scores else []), "map", *(["divisions"] if divided else [])]

    def run_data(self, version: str) -> RunData | None:
        """The run's data and divisions; called by the background's thread alone."""
        if self.run is None:
            return None
        if self._run_data is None or self._run_data[0] != version:
            self._run_data = (version, RunData.read(self.run, self.index))
        return self._run_data[1]

    async def answer(self, name: str, act: Any) -> Any:
        """The result of ``act(run_data)`` as JSON; 202 while it is being computed."""
        version = await self.threads.run(self.index.store.version)
        result = self.background.get(name, version, lambda: act(self.run_data(version)))
        if result is None:
            return JSONResponse({"state": "computing"}, 202, {"Retry-After": "1"})
        return JSONResponse(result)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; each answers 202 until its result is computed."""

        @app.get("/map")
        async def the_map(by: By = "pca") -> Any:
            """Items in two dimensions, with label, learner and split."""
            return await self.answer(f"map {by}", lambda run_data: map_points(self.index, by, run_data))

        @app.get("/failures")
        async def the_failures() -> Any:
            """The worst queries of an evaluated run, the most confused classes, near-duplicates across splits."""
            scores = self.scores
            if scores is None:
                raise Refusal(404, 'there are no scores; start the server with "divcon serve RUN --scores FILE"')
            return await self.answer("failures", lambda run_data: failures(self.index, scores, run_data))

        @app.get("/divisions")
        async def the_divisions() -> Any:
            """The run's divisions: sizes, flow of images between learners, images of each."""
            if "divisions" not in self.names:
                raise Refusal(404, 'there are no divisions; name the run with "divcon serve STORE --run RUN"')
            return await self.answer("divisions", lambda run_data: run_data.divisions() if run_data else None)
