"""Both kinds of store, real ones: LanceDB in a folder, and a PostgreSQL with pgvector."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.labeled_set import LabeledSet

DIM = 12
_numbers = itertools.count()


@pytest.fixture(params=["lancedb", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a store that is not there yet."""
    if request.param == "lancedb":
        return str(tmp_path / "store")
    address = request.getfixturevalue("postgres")
    return f"{address}{'&' if '?' in address else '?'}table=t{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def model() -> dc.EmbeddingModel:
    """Of vectors of DIM dimensions, with two learners that have learned masks."""
    return vector_model("masks")


def vector_model(method: str, seed: int = 0, learners: int = 3, **options: object) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    made = dc.EmbeddingModel(vector_dim=DIM, embedding_dim=9, num_learners=learners, method=method, **options)
    if method == "masks":
        with torch.no_grad():
            made.head.masks.copy_(torch.randn(learners, 9).clamp(min=-0.2))
    return made.eval()


@pytest.fixture
def make_model() -> Callable[..., dc.EmbeddingModel]:
    """``make_model("slices")``: as `model`, of another method or seed."""
    return vector_model


@pytest.fixture
def vectors() -> Callable[..., LabeledSet]:
    """``vectors(n)``: n vectors of DIM dimensions of five classes, with paths."""

    def make(n: int, seed: int = 0) -> LabeledSet:
        rng = np.random.default_rng(seed)
        return LabeledSet(
            labels=np.arange(n) % 5,
            label_names=("a", "b", "c", "d", "e"),
            paths=pa.array([f"item{i:05}" for i in range(n)]),
            rows=np.arange(n),
            source="",
            vectors=rng.normal(size=(n, DIM)).astype(np.float32),
        )

    return make
