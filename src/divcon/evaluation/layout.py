"""Vectors in two dimensions, for pictures: UMAP, t-SNE or PCA."""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from divcon.errors import ConfigError

By = Literal["tsne", "umap", "pca"]
NAMES: dict[By, str] = {"tsne": "t-SNE", "umap": "UMAP", "pca": "PCA"}

MAX_TSNE = 5_000
"""Vectors that t-SNE lays out, in some 10 to 20 seconds on two cores; of more, the others are placed beside these."""
_NEIGHBOURS = 15
"""Of UMAP, as in its paper."""
_BESIDE = 4
"""The laid out vectors that another one is placed among."""
_FEWEST = 8
"""Vectors; fewer have no neighbourhoods to keep, and PCA shows them."""
UMAP_MISSING = 'UMAP needs umap-learn: pip install "divcon[map]"'

OnStep = Callable[[str, float | None], None]
"""Called with the name of the step and how much of it is done, 0 to 1; None: unknown."""


@dataclass(frozen=True, eq=False)
class Layout:
    """N vectors in two dimensions."""

    xy: np.ndarray
    """(N, 2) float32, from -1 to 1."""
    by: By
    """How they were laid out."""
    note: str | None = None
    """What a reader of the picture should know."""


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def layouts() -> list[By]:
    """The layouts that can be computed here, the default first."""
    return ["umap", "tsne", "pca"] if has_umap() else ["tsne", "pca"]


def check_layout(by: By | Literal["auto"]) -> By:
    """The layout of a name; of ``auto`` UMAP where it is installed, else t-SNE. UMAP takes one to two minutes for
    100,000 vectors.

    Raises:
        ConfigError: another name, or UMAP is not installed.
    """
    if by == "auto":
        return layouts()[0]
    if by not in NAMES:
        raise ConfigError(f"`by` {by}: pass tsne, umap, pca or auto", field="by")
    if by == "umap" and not has_umap():
        raise ConfigError(f"`by` umap: {UMAP_MISSING}", field="by")
    return by


def lay_out(vectors: np.ndarray, by: By | Literal["auto"] = "auto", on_step: OnStep = lambda *_: None) -> Layout:
    """Lay vectors out in two dimensions; the same vectors get the same layout.

    t-SNE (van der Maaten and Hinton, 2008) and UMAP (McInnes, Healy and Melville, 2018) keep neighbours together and
    distort distances between groups; PCA shows the two directions of most variance.

    Args:
        vectors: (N, D) numbers, compared by their cosine.
        by: ``auto`` is UMAP where umap-learn is installed, else t-SNE. Fewer than 8 vectors are laid out by PCA.
        on_step: it may raise to stop UMAP.

    Raises:
        ConfigError: as `check_layout`.
    """
    by = check_layout(by)
    vectors = np.asarray(vectors, np.float32)
    if by != "pca" and (len(vectors) < _FEWEST or vectors.shape[1] < 2):
        return Layout(_scaled(_pca(vectors)), "pca", f"PCA, since {len(vectors)} items are too few for {NAMES[by]}")
    on_step(NAMES[by], None)
    if by == "pca":
        return Layout(_scaled(_pca(vectors)), by)
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if by == "umap":
        return Layout(_scaled(_umap(vectors, on_step)), by)
    if len(vectors) <= MAX_TSNE:
        return Layout(_scaled(_tsne(vectors)), by)
    chosen = np.sort(np.random.default_rng(0).choice(len(vectors), MAX_TSNE, replace=False))
    placed = _beside(vectors, chosen, _tsne(vectors[chosen]), on_step)
    how = "choose UMAP" if has_umap() else UMAP_MISSING.removeprefix("UMAP needs umap-learn: ")
    note = (
        f"t-SNE of {MAX_TSNE:,} of the {len(vectors):,} items; each of the others stands among those that are most "
        f"similar to it. For a layout of all: {how}."
    )
    return Layout(_scaled(placed), by, note)


def _scaled(points: np.ndarray) -> np.ndarray:
    """Points moved and scaled to -1 to 1, with both axes alike."""
    if len(points):
        points = points - (points.max(0) + points.min(0)) / 2
    return (points / (np.abs(points).max(initial=0) or 1.0)).astype(np.float32)


def _pca(vectors: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    size = min(2, *vectors.shape)
    if len(vectors) < 2:
        return np.zeros((len(vectors), 2))
    solver = "full" if len(vectors) <= vectors.shape[1] else "covariance_eigh"
    points = PCA(size, svd_solver=solver).fit_transform(vectors.astype(np.float64))
    return np.pad(points, ((0, 0), (0, 2 - size)))


def _tsne(vectors: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 4)
    return TSNE(2, init="pca", perplexity=perplexity, random_state=0).fit_transform(vectors).astype(np.float64)


def _beside(vectors: np.ndarray, chosen: np.ndarray, points: np.ndarray, on_step: OnStep) -> np.ndarray:
    """Points of all vectors: those of the chosen, and for another one the mean of the most similar chosen ones,
    weighted by how much more similar each is than the next one after them."""
    on_step("placing the others", None)
    from divcon.evaluation.neighbours import nearest

    places, cosines = nearest(vectors, vectors[chosen], _BESIDE + 1, metric="cosine")
    weights = np.maximum(cosines[:, :_BESIDE] - cosines[:, _BESIDE:], 1e-6) ** 2
    weights /= weights.sum(1, keepdims=True)
    placed = np.einsum("nk,nkd->nd", weights, points[places[:, :_BESIDE]])
    placed[chosen] = points
    return placed


def _umap(vectors: np.ndarray, on_step: OnStep) -> np.ndarray:
    from umap import UMAP, layouts  # pyright: ignore[reportMissingImports]

    # tqdm's own lock is shared with processes that were forked: one that is killed with it would stop this one forever.
    layouts.tqdm.set_lock(threading.RLock())
    count = min(_NEIGHBOURS, len(vectors) - 1)
    from divcon.evaluation.neighbours import nearest

    on_step("neighbours", None)
    places, cosines = nearest(vectors, vectors, count + 1, metric="cosine")
    rows = np.arange(len(vectors))[:, None]
    # An item is its own first neighbour, also where others are equal to it.
    order = np.argsort(places != rows, axis=1, kind="stable")
    places = np.take_along_axis(places, order, 1)
    distances = np.maximum(1 - np.take_along_axis(cosines, order, 1), 0)
    places[:, :1], distances[:, 0] = rows, 0
    bar = {"disable": False, "file": _Steps(on_step), "bar_format": "{n_fmt} {total_fmt}", "mininterval": 0.5}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own choice of threads, and of what it cannot do later
        umap = UMAP(
            n_neighbors=count + 1,
            metric="cosine",
            precomputed_knn=(places.astype(np.int32), distances.astype(np.float32), None),
            init="pca",
            n_epochs=200 if len(vectors) > 10_000 else 500,
            random_state=0,
            tqdm_kwds=bar,
        )
        return np.asarray(umap.fit_transform(vectors), np.float64)


class _Steps:
    """The file that UMAP's progress bar is written to: reports how many epochs are done."""

    def __init__(self, on_step: OnStep) -> None:
        self._on_step = on_step

    def write(self, text: str) -> None:
        numbers = text.split()
        if len(numbers) == 2 and all(number.isdigit() for number in numbers) and int(numbers[1]):
            self._on_step("UMAP", int(numbers[0]) / int(numbers[1]))

    def flush(self) -> None:
        """Nothing is kept back."""
