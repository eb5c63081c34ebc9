"""Four kinds of stores: LanceDB in a folder, a real PostgreSQL with pgvector, Qdrant embedded, and a store of one's own
in a dict."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.search import Store

DIM = 12
_numbers = itertools.count()


class DictStore(Store):
    """The five methods that a store of one's own needs, with a dict of rows by id."""

    def __init__(self) -> None:
        self.saved: dict[str, Any] | None = None
        self.items: dict[int, dict[str, Any]] = {}

    def read_about(self) -> dict[str, Any] | None:
        return self.saved

    def write_about(self, about: dict[str, Any]) -> None:
        self.saved = about

    def read(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        rows = list(self.items.values())
        for start in range(0, len(rows), 64):
            yield pa.Table.from_pylist([{name: row.get(name) for name in columns} for row in rows[start : start + 64]])

    def write(self, rows: pa.Table) -> None:
        self.items |= {row["id"]: row for row in rows.to_pylist()}

    def delete(self, ids: np.ndarray) -> None:
        for id_ in ids.tolist():
            self.items.pop(id_, None)


@pytest.fixture
def dict_store() -> type[DictStore]:
    """The class of a store of one's own."""
    return DictStore


@pytest.fixture
def qdrant() -> Iterator[str]:
    """The address of an embedded Qdrant that is not there yet, in memory where the machine can: it writes each point to
    the disk for itself."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield f"qdrant://{folder}/qdrant"


@pytest.fixture(params=["lancedb", "postgres", "qdrant", "own"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str | DictStore:
    """The address of a store that is not there yet, or a store."""
    if request.param == "lancedb":
        return str(tmp_path / "store")
    if request.param == "qdrant":
        return request.getfixturevalue("qdrant")
    if request.param == "own":
        return DictStore()
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
