"""How near a query is to gallery items: quickly with a known error, and exactly, pair by pair."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import faiss  # pyright: ignore[reportMissingTypeStubs]
import numpy as np
import torch

from divcon.evaluate.smallest import smallest_products

METRICS = ("euclidean", "cosine", "inner")

_QUICK_MOST = 2048
"""Beyond so many neighbours a query, selection over the whole row is faster."""
_TRIAL = 512
"""So many queries are enough to tell how long a search takes."""
_MOST_ITEMS = 2**16
"""Of the gallery, so many are compared at a time."""
_ROOM_BYTES = 2**27
"""Of their products with queries, so many bytes are computed at a time."""
_COSINE_DIGITS = 12
"""Cosines equal to so many digits tie: normalising rounds, yet parallel vectors of any lengths are to tie."""


class Space:
    """Q queries and G gallery items under a metric.

    Nearness is a number that is smaller for what is nearer: squared euclidean distance, or minus the cosine
    or inner product. ``exact`` gives it in float64, summed in one fixed order, so that equal pairs give equal
    numbers. Matrix products give it fast, with errors below ``error``, of vectors that are moved and scaled
    so that float32 holds them best.
    """

    def __init__(
        self,
        query: np.ndarray,
        gallery: np.ndarray,
        metric: str,
        *,
        device: torch.device,
        backend: str | None,
        budget: int,
    ) -> None:
        self.query, self.gallery, self.metric = query, gallery, metric
        self.device, self.budget = device, budget
        both = backend is None and device.type == "cpu"
        # What a query took, by the searches that there are.
        self._seconds = dict.fromkeys(("torch", "faiss") if both else (backend or "torch",), 0.0)
        # Moving all vectors leaves distances alone; around their mean, less of them is lost to rounding.
        self._centre = gallery.mean(axis=0, dtype=np.float64) if metric == "euclidean" else None
        self._extent = float(max(_norms(query).max(), _norms(gallery).max()))
        if not np.isfinite(self._extent):
            raise ValueError("the vectors are so large that their squares overflow float64")
        self._scale = float(2.0 ** -np.frexp(self._extent)[1])
        self._gallery32 = np.empty(gallery.shape, dtype=np.float32)
        self._gallery_norm = 0.0
        for part in self._parts():
            vectors = self._prepared(gallery[part])
            self._gallery32[part] = vectors
            self._gallery_norm = max(self._gallery_norm, float(_norms(vectors).max()))
        self._gallery: torch.Tensor | None = None
        self._room: torch.Tensor | None = None

    def _parts(self) -> Iterator[slice]:
        """Slices of the gallery whose float64 copies are small beside the budget."""
        step = max(1, min(self.budget // (64 * self.gallery.shape[1]), _MOST_ITEMS))
        return (slice(i, i + step) for i in range(0, len(self.gallery), step))

    def _prepared(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) float64, moved and scaled for products."""
        if self.metric == "cosine":
            norms = _norms(vectors)
            return vectors / np.where(norms > 0, norms, 1)[:, None]
        moved = vectors.astype(np.float64)
        if self._centre is not None:
            moved -= self._centre
        moved *= self._scale
        return moved

    def queries_at_once(self, reach: int) -> int:
        """How many queries the budget allows when each is given ``reach`` candidates."""
        row = 128 * reach + 16 * self.query.shape[1]
        if reach > _QUICK_MOST:
            row += 24 * len(self.gallery)
        return max(1, self.budget // row)

    def rankings_at_once(self) -> int:
        """How many queries the budget allows when all of the gallery may tie for each."""
        return max(1, self.budget // (160 * len(self.gallery)))

    def exact(self, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """(n,) float64: the nearness of n pairs, from the vectors as they were given."""
        out = np.empty(len(rows), dtype=np.float64)
        step = max(1, min(self.budget // 8, 2**25) // (32 * self.query.shape[1]))
        for i in range(0, len(rows), step):
            query = self.query[rows[i : i + step]].astype(np.float64)
            gallery = self.gallery[items[i : i + step]]
            if self.metric == "euclidean":
                query -= gallery
                out[i : i + step] = np.square(query, out=query).sum(axis=1)
                continue
            if self.metric == "cosine":
                norms = _norms(query) * _norms(gallery)
            query *= gallery
            product = query.sum(axis=1)
            if self.metric == "cosine":
                product = np.round(product / np.where(norms > 0, norms, 1), _COSINE_DIGITS)
            out[i : i + step] = -product
        return out

    def error(self, norms: np.ndarray, quick: np.ndarray, dtype: torch.dtype) -> np.ndarray:
        """Bounds on how far ``quick`` (q, m), computed in ``dtype``, may be from the exact nearness."""
        # Sums of D products err by some sqrt(D) roundings; the rest is margin (a test measures it).
        unit = torch.finfo(dtype).eps * (4 + np.sqrt(self.query.shape[1]))
        norms = norms[:, None]
        if self.metric != "euclidean":
            rounding = 4 * 10.0**-_COSINE_DIGITS if self.metric == "cosine" else 0.0
            return unit * norms * self._gallery_norm + rounding + np.zeros_like(quick)
        # An item's norm is at most the query's plus the distance: a few far items do not blur the near ones.
        squared = np.minimum(self._gallery_norm**2, 2 * norms**2 + 2 * np.abs(quick))
        moving = 2.0**-50 * self._extent * self._scale * (norms + np.sqrt(squared))
        return unit * (norms**2 + squared) + moving

    def dtype(self, reach: int) -> torch.dtype:
        """Long rankings hold many near ties, which float64 tells apart at once."""
        return torch.float32 if reach <= _QUICK_MOST else torch.float64

    def quick(self, rows: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The ``reach`` nearest of each query at ``rows``, by products.

        Returns:
            (q, reach) float64 nearness, rising; (q, reach) int64 indices; (q, reach) float64 error bounds.
        """
        vectors, dtype = self._prepared(self.query[rows]), self.dtype(reach)
        if dtype == torch.float64:
            return self._top(vectors, self._products(vectors), reach)
        values, indices = (np.concatenate(found) for found in zip(*self._raced(vectors, reach), strict=True))
        return values, indices, self.error(_norms(vectors), values, dtype)

    def _raced(self, vectors: np.ndarray, reach: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Nearness and indices of some queries after others. Which search is the faster differs by processor, up to
        three times: each has some queries to begin with, then the one that took less has the rest."""
        # Fewer queries faiss compares one by one, not by products of matrices: each takes several times longer.
        enough = max(_TRIAL, -(-faiss.cvar.distance_compute_blas_threshold // vectors.shape[1]))
        while len(vectors):
            tried = {backend: seconds for backend, seconds in self._seconds.items() if seconds}
            trial = len(tried) < len(self._seconds) and (not tried or len(vectors) >= enough)
            backend = next(b for b in self._seconds if b not in tried) if trial else min(tried, key=tried.__getitem__)
            some = vectors[: enough if trial and len(self._seconds) > 1 else None]
            started = time.perf_counter()
            search = self._by_faiss if backend == "faiss" else self._by_torch
            values, indices = search(some.astype(np.float32), reach)
            self._seconds[backend] = (time.perf_counter() - started) / len(some)
            values = values.astype(np.float64)
            if self.metric == "euclidean" and backend == "torch":
                values += _norms(some)[:, None] ** 2
            yield values, indices
            vectors = vectors[len(some) :]

    def _by_faiss(self, vectors: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        if self.metric == "euclidean":
            return faiss.knn(vectors, self._gallery32, reach, metric=faiss.METRIC_L2)
        found, indices = faiss.knn(vectors, self._gallery32, reach, metric=faiss.METRIC_INNER_PRODUCT)
        return -found, indices

    def _by_torch(self, vectors: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        if self._room is None or self._gallery is None:
            self._room = torch.empty(min(self.budget // 4, _ROOM_BYTES) // 4, device=self.device)
            self._gallery = torch.from_numpy(self._gallery32).to(self.device)
        held = self._gallery
        query = torch.from_numpy(vectors).to(self.device)
        euclidean = self.metric == "euclidean"
        query = torch.cat([-2 * query, torch.ones_like(query[:, :1])], dim=1) if euclidean else -query

        def part_of(part: slice) -> torch.Tensor:
            gallery = held[part]
            return torch.cat([gallery, gallery.square().sum(1, keepdim=True)], dim=1) if euclidean else gallery

        parts = ((part.start, part_of(part)) for part in self._parts())
        with _full_precision(self.device):
            values, indices = smallest_products(query, parts, reach, self._room)
        return values.cpu().numpy(), indices.cpu().numpy()

    def thorough(self, rows: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Like ``quick`` in float64, with as many more (all rows alike) as may tie with the last."""
        vectors = self._prepared(self.query[rows])
        products = self._products(vectors)
        values, _, error = self._top(vectors, products, reach)
        last = values[:, -1] + 3 * error[:, -1]
        if self.metric == "euclidean":
            last -= _norms(vectors) ** 2
        within = products <= torch.from_numpy(last).to(products.device)[:, None]
        return self._top(vectors, products, max(reach, int(within.sum(dim=1).max())))

    def _top(
        self, vectors: np.ndarray, products: torch.Tensor, reach: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        top = torch.topk(products, reach, dim=1, largest=False)
        values, norms = top.values.cpu().numpy().astype(np.float64), _norms(vectors)
        if self.metric == "euclidean":
            values += norms[:, None] ** 2
        return values, top.indices.cpu().numpy(), self.error(norms, values, products.dtype)

    def _products(self, vectors: np.ndarray) -> torch.Tensor:
        """(q, G) float64 nearness, less the query's own squared norm, which changes no order."""
        device = torch.device("cpu") if self.device.type == "mps" else self.device  # which has no float64
        query = torch.from_numpy(vectors).to(device)
        out = torch.empty(len(vectors), len(self.gallery), dtype=torch.float64, device=device)
        with _full_precision(device):
            for part in self._parts():
                gallery = torch.from_numpy(self._prepared(self.gallery[part])).to(device)
                if self.metric == "euclidean":
                    out[:, part] = torch.addmm(gallery.square().sum(dim=1), query, gallery.T, alpha=-2)
                else:
                    out[:, part] = (query @ gallery.T).neg_()
        return out


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Products in full float32 even where the training around runs in less."""
    mkldnn = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
    backends = (torch.backends.cuda.matmul, mkldnn)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False), torch.no_grad():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
