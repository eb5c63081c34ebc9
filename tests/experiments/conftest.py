"""A small benchmark of vectors, and settings that train on it in a blink."""

from __future__ import annotations

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
