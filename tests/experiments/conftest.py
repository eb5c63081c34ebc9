"""A small benchmark of vectors, and settings that train on it in a blink."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet

DIM, CLASSES, EACH = 8, 12, 6


def vectors_of(first: int, seed: int) -> LabeledSet:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(first, first + CLASSES), EACH)
    vectors = rng.normal(size=(CLASSES, DIM))[labels - first] + 0.7 * rng.normal(size=(len(labels), DIM))
    rows = np.arange(len(labels)) + 1000 * seed
    names = tuple(f"c{i:02d}" for i in range(2 * CLASSES))
    paths = pa.array([f"{row}.png" for row in rows])
    return LabeledSet(labels, names, paths, rows, "made", vectors=vectors.astype(np.float32))


def texts_of(figure: Any) -> list[str]:
    """The texts of a figure of matplotlib. Each is within the figure, and none covers another."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    beyond = set()  # matplotlib keeps labels of ticks that are beyond the axes
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            places = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            beyond |= {label for place, label in places if not low <= place <= high}
    inside = figure.bbox
    boxes = []
    for text in shown:
        box = text.get_window_extent(renderer)
        if text in beyond:
            continue
        assert inside.padded(1).x0 <= box.x0 and box.x1 <= inside.padded(1).x1, text.get_text()
        assert inside.padded(1).y0 <= box.y0 and box.y1 <= inside.padded(1).y1, text.get_text()
        boxes.append((text.get_text(), box))
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or down <= 0.2 * min(a.height, b.height), (one, other)
    return [text for text, _ in boxes]


@pytest.fixture(scope="session")
def small() -> Benchmark:
    """12 train and 12 test classes of 6 vectors; one query without a match."""
    test = vectors_of(CLASSES, 2)
    test = test.subset(np.arange(EACH - 1, len(test)))
    return Benchmark("small", vectors_of(0, 1), test, test)


@pytest.fixture(scope="session")
def base() -> dc.RunConfig:
    return dc.RunConfig(
        dc.ModelConfig(num_learners=2, embedding_dim=4),
        dc.TrainConfig(epochs=3, batch_size=8, images_per_class=2, redivide_every=1, workers=0),
    )
