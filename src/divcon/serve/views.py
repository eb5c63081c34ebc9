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
from divcon.serve.of_run import OfRun

By = Literal["pca", "tsne"]
MOST: dict[str, int] = {"pca": 5_000, "tsne": 2_000}
"""Items that are shown; of more, a sample."""


def coordinates(vectors: np.ndarray, by: By) -> np.ndarray:
    """(N, 2) float64 coordinates of (N, D) vectors, between -1 and 1: the two directions in which they vary most, or
    t-SNE (van der Maaten and Hinton, 2008), which keeps neighbours together and distorts distances."""
    wide = np.asarray(vectors, np.float64)
    if by == "tsne" and len(wide) >= 8:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(wide) - 1) / 4)
        plane = TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(wide).astype(np.float64)
    else:
        from sklearn.decomposition import PCA

        size = min(2, *wide.shape)
        plane = PCA(size, svd_solver="full").fit_transform(wide) if len(wide) > 1 else np.zeros((len(wide), size))
        plane = np.pad(plane, ((0, 0), (0, 2 - size)))
    plane = plane - (plane.max(0) + plane.min(0)) / 2 if len(plane) else plane
    return plane / (np.abs(plane).max(initial=0) or 1.0)


def plane(index: Index, by: By, of_run: OfRun | None) -> dict[str, Any]:
    """For JSON: ``points`` with id, x, y, label, learner and split; ``total`` items."""
    ids = index.store.ids()
    total = len(ids)
    there, vectors = index.store.embeddings(sampled(ids, MOST[by], (0,)))
    order = np.argsort(there)
    there, vectors = there[order], vectors[order]
    rows = rows_of(index, there)
    splits, learners = (of_run.splits(), of_run.learners()) if of_run else ({}, {})
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
        for i, (x, y) in zip(there.tolist(), coordinates(vectors, by), strict=True)
        if i in rows
    ]
    return {"points": points, "total": total, "problem": of_run.problem if of_run else None}


class Views:
    """What is computed of all items, in the background, and again where the index has changed."""

    def __init__(self, index: Index, threads: Threads, run: Path | None, scores: dict[str, Any] | None) -> None:
        self.index = index
        self.threads = threads
        self.run = run
        self.scores = scores
        self.background = Background()
        self._of_run: tuple[str, OfRun] | None = None

    @property
    def names(self) -> list[str]:
        """The views that there are, as the page calls them."""
        divided = self.run is not None and any((self.run / "divisions").glob("epoch_*.safetensors"))
        return ["search", *(["failures"] if self.scores else []), "map", *(["divisions"] if divided else [])]

    def of_run(self, version: str) -> OfRun | None:
        """The run's data and divisions; only the background's thread asks."""
        if self.run is None:
            return None
        if self._of_run is None or self._of_run[0] != version:
            self._of_run = (version, OfRun.of(self.run, self.index))
        return self._of_run[1]

    async def answer(self, name: str, act: Any) -> Any:
        """What ``act`` gives, or a 202 while it is computed."""
        version = await self.threads.run(self.index.store.version)
        made = self.background.get(name, version, lambda: act(self.of_run(version)))
        if made is None:
            return JSONResponse({"state": "computing"}, 202, {"Retry-After": "1"})
        return JSONResponse(made)

    def add_to(self, app: FastAPI) -> None:
        """Add the routes; each answers 202 until its result is there."""

        @app.get("/map")
        async def the_map(by: By = "pca") -> Any:
            """Items in two dimensions, with label, learner and split."""
            return await self.answer(f"map {by}", lambda of_run: plane(self.index, by, of_run))

        @app.get("/failures")
        async def the_failures() -> Any:
            """The worst queries of an evaluated run, the classes most confused, and pairs across the split."""
            scores = self.scores
            if scores is None:
                raise Refusal(404, "no scores: start with --scores FILE, which divcon evaluate --json writes")
            return await self.answer("failures", lambda of_run: failures(self.index, scores, of_run))

        @app.get("/divisions")
        async def the_divisions() -> Any:
            """The run's divisions: sizes, flow of images between learners, images of each."""
            if "divisions" not in self.names:
                raise Refusal(404, "no divisions: the index names no run that has any; give it with --run")
            return await self.answer("divisions", lambda of_run: of_run.divisions() if of_run else None)
