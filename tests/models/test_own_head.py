"""A head of the user's own, neither slices nor masks, wherever a model goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

import divcon as dc
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, TrustError, WeightsError
from divcon.models import SubspaceHead, keep_components, keep_learner, keep_subspaces
from divcon.runtime.importing import name_of
from divcon.training.checkpoint import model_in

DIM = 12


class RotatedSlices(SubspaceHead):
    """Slices of the embedding after a fixed rotation."""

    def __init__(self, num_features: int, embedding_dim: int, num_learners: int, dropout: float) -> None:
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        rotation = torch.linalg.qr(torch.randn(embedding_dim, embedding_dim))[0]
        self.register_buffer("rotation", rotation)

    def _slices(self, features: torch.Tensor) -> list[torch.Tensor]:
        rotated = self.linear(features) @ self.rotation  # type: ignore[operator]
        return [F.normalize(dims, dim=1) for dims in rotated.tensor_split(self.max_learners, dim=1)]

    def full(self, features: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._slices(features), dim=1) / self.max_learners**0.5

    def subspace(self, features: torch.Tensor, learner: int) -> torch.Tensor:
        return self._slices(features)[learner]

    def subspace_dim(self, learner: int) -> int:
        return len(self.dimensions()[learner])

    def dimensions(self) -> list[list[int]]:
        return [dims.tolist() for dims in np.array_split(np.arange(self.embedding_dim), self.max_learners)]


class TwoLayers(SubspaceHead):
    """A hidden layer; learner k has the embedding rolled by k steps, its first half."""

    method = "two-layers"

    def __init__(
        self, num_features: int, embedding_dim: int, num_learners: int, dropout: float, *, hidden: int = 16
    ) -> None:
        super().__init__(num_features, embedding_dim, num_learners, dropout)
        self.inner = torch.nn.Linear(num_features, hidden)
        self.linear = torch.nn.Linear(hidden, embedding_dim)

    def full(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.linear(F.gelu(self.inner(features))), dim=1)

    def subspace(self, features: torch.Tensor, learner: int) -> torch.Tensor:
        rolled = self.full(features).roll(3 * learner, dims=1)
        return F.normalize(rolled[:, : self.subspace_dim(learner)], dim=1)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim // 2


HEADS: list[dict[str, Any]] = [{"method": RotatedSlices}, {"method": TwoLayers, "head_options": {"hidden": 20}}]
each_head = pytest.mark.parametrize("head", HEADS, ids=["rotated", "two layers"])


def model_of(head: dict[str, Any], **options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    return dc.EmbeddingModel("mlp", 10, 2, vector_dim=DIM, **head, **options).eval()


@pytest.fixture(scope="module")
def data() -> Benchmark:
    rng = np.random.default_rng(0)

    def labelled(name: str, classes: int) -> LabeledSet:
        labels = np.repeat(np.arange(classes), 8)
        vectors = rng.normal(size=(classes, DIM))[labels] + rng.normal(size=(len(labels), DIM))
        paths, rows = pa.array([f"v{i}" for i in range(len(labels))]), np.arange(len(labels))
        names = tuple(f"{name}{c}" for c in range(classes))
        return LabeledSet(labels, names, paths, rows, name, vectors=vectors.astype(np.float32))

    test = labelled("test", 6)
    return Benchmark("own", labelled("train", 8), test, test)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def same(model: dc.EmbeddingModel, expected: np.ndarray, vectors: np.ndarray, folder: Path) -> None:
    """The model, and what is loaded of it, embed so."""
    np.testing.assert_allclose(model.encode(vectors), expected, atol=1e-6)
    model.save(folder)
    np.testing.assert_array_equal(dc.EmbeddingModel.load(folder).encode(vectors), model.encode(vectors))


@each_head
def test_a_model_is_saved_and_loaded(head: dict[str, Any], data: Benchmark, tmp_path: Path) -> None:
    model, vectors = model_of(head), data.query.vectors
    same(model, model.encode(vectors), vectors, tmp_path)
    name = json.loads((tmp_path / "config.json").read_text())["method"]
    assert name == f"{__name__}:{head['method'].__name__}"
    again = dc.EmbeddingModel("mlp", 10, 2, vector_dim=DIM, **{**head, "method": name})
    assert type(again.head) is head["method"]


@each_head
def test_pruning_keeps_a_learner_and_components(head: dict[str, Any], data: Benchmark, tmp_path: Path) -> None:
    model, vectors = model_of(head), data.query.vectors
    for learner in (0, 1):
        small = keep_learner(model, learner)
        expected = model.encode(vectors, learner=learner)
        assert (small.num_learners, small.embedding_dim) == (1, expected.shape[1])
        same(small, expected, vectors, tmp_path / f"learner{learner}")
    embeddings = model.encode(vectors)
    small = keep_components(model, model.features(vectors), 4)
    basis = np.linalg.svd(embeddings.astype(np.float64), full_matrices=False)[2][:4]
    expected = unit(embeddings @ basis.T)
    projected = small.encode(vectors)
    np.testing.assert_allclose(projected @ projected.T, expected @ expected.T, atol=1e-5)
    same(small, projected, vectors, tmp_path / "pca")
    smaller = keep_components(small, small.features(vectors), 2)  # a head derived from a derived one
    assert smaller.embedding_dim == 2
    same(smaller, smaller.encode(vectors), vectors, tmp_path / "pca2")
    assert dc.prune(model, data, 3, by="pca").embedding_dim == 3


def test_pruning_keeps_subspaces(data: Benchmark, tmp_path: Path) -> None:
    model, vectors = model_of({"method": RotatedSlices}), data.query.vectors
    assert vectors is not None
    small = keep_subspaces(model, [1])
    kept = model.head.dimensions()[1]
    same(small, unit(model.encode(vectors)[:, kept]), vectors, tmp_path)
    np.testing.assert_allclose(small.encode(vectors, learner=0), model.encode(vectors, learner=1), atol=1e-6)
    assert small.head.dimensions() == [list(range(5))]
    assert dc.prune(model, data, 5, by="subspaces").embedding_dim == 5
    with pytest.raises(ConfigError, match="share the dimensions"):
        keep_subspaces(model_of({"method": TwoLayers}), [1])


@each_head
def test_it_is_evaluated_by_parts(head: dict[str, Any], data: Benchmark) -> None:
    scores = dc.evaluate(model_of(head), data, parts=True)
    assert len(scores["learners"]) == 2
    assert ("without" in scores) == (head["method"] is RotatedSlices)


def test_an_index_is_searched_by_learner(data: Benchmark, tmp_path: Path) -> None:
    model, vectors = model_of({"method": RotatedSlices}), data.query.vectors
    assert vectors is not None
    index = dc.Index.build(model, vectors, tmp_path / "rotated")
    hits = index.search(vectors[3], k=5, learner=1)
    cosines = model.encode(vectors, learner=1) @ model.encode(vectors[3:4], learner=1)[0]
    assert [hit.id for hit in hits] == np.argsort(-cosines)[:5].tolist()
    model = model_of({"method": TwoLayers})
    index = dc.Index.build(model, vectors, tmp_path / "two")
    with pytest.raises(ConfigError, match=r"cannot be computed from the stored ones; .*keep_learner\(model, 1\)"):
        index.search(vectors[3], learner=1)
    alone = dc.Index.build(keep_learner(model, 1), vectors, tmp_path / "one")
    cosines = model.encode(vectors, learner=1) @ model.encode(vectors[3:4], learner=1)[0]
    assert [hit.id for hit in alone.search(vectors[3], k=5)] == np.argsort(-cosines)[:5].tolist()


@pytest.mark.heavy
@each_head
@pytest.mark.parametrize(("format", "name"), [("onnx", "m.onnx"), ("torch", "m.pt2"), ("hf", "m")])
def test_it_is_exported(head: dict[str, Any], format: Any, name: str, tmp_path: Path) -> None:
    model = model_of(head)
    for learner in (None, 1):
        assert dc.export(model, tmp_path / f"{learner}{name}", format, learner=learner).difference <= 1e-4
    assert dc.export(keep_learner(model, 0), tmp_path / f"kept{name}", format).difference <= 1e-4


@each_head
@pytest.mark.heavy
def test_it_trains_resumes_and_is_started_from(head: dict[str, Any], data: Benchmark, tmp_path: Path) -> None:
    options = {"num_learners": 2, "embedding_dim": 10, "backbone": "mlp"}
    train = TrainConfig(epochs=3, batch_size=8, images_per_class=2, workers=0, finetune_epoch=2)
    config = RunConfig(
        ModelConfig(**{**head, "method": name_of(head["method"])}, **options), train, DataConfig(validation=False)
    )
    whole = dc.run(data, tmp_path / "whole", config, report=False)
    state = tmp_path / "state"
    model = model_of(head)
    list(dc.train(model, data.train, train, checkpoint=state))
    np.testing.assert_array_equal(model_in(state).encode(data.query.vectors), model.encode(data.query.vectors))
    again = dc.run(data, tmp_path / "whole", config, resume=True, report=False)
    np.testing.assert_array_equal(again.encode(data.query.vectors), whole.encode(data.query.vectors))
    warned: list[str] = []
    dc.run(data, tmp_path / "next", config, init=tmp_path / "whole", report=False, display=_display(warned))
    assert warned == []


def _display(into: list[str]) -> Any:
    from divcon.runs.display import NullDisplay

    display = NullDisplay()
    display.warn = into.append  # type: ignore[method-assign]
    return display


def test_it_has_no_hierarchy_unless_it_says_how(data: Benchmark) -> None:
    with pytest.raises(ConfigError, match="cannot be split in two") as raised:
        next(dc.train(model_of({"method": TwoLayers}), data.train, TrainConfig(hierarchy=True, epochs=9, batch_size=8)))
    assert raised.value.field == "hierarchy"


MODULE = """
from torch.nn import functional as F
from divcon.models import SubspaceHead

class Plain(SubspaceHead):
    def full(self, features):
        return F.normalize(self.linear(features), dim=1)
    def subspace(self, features, learner):
        return self.full(features)
    def subspace_dim(self, learner):
        return self.embedding_dim
"""


def test_a_folder_of_somebody_else_imports_nothing_by_itself(
    data: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain_head_of_own.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    # As in a process that has not imported the module.
    model = model_of({"method": TwoLayers})
    model.config |= {"method": "plain_head_of_own:Plain", "head_options": {}}
    model.save(tmp_path / "model")
    state = tmp_path / "state"
    list(dc.train(model, data.train, TrainConfig(epochs=1, batch_size=8, workers=0), checkpoint=state))
    dc.Index.create(model, tmp_path / "index")
    for load in (
        lambda: dc.EmbeddingModel.load(tmp_path / "model"),
        lambda: dc.EmbeddingModel.load(tmp_path / "model", trust=["another"]),
        lambda: dc.Index.create(tmp_path / "model", tmp_path / "other"),
        lambda: model_in(state),
    ):
        with pytest.raises(TrustError, match=r"names plain_head_of_own:Plain.*`trust=plain_head_of_own`"):
            load()
    assert "plain_head_of_own" not in sys.modules
    with pytest.raises(WeightsError, match="weights do not fit"):  # it is imported; the weights are of another head
        dc.EmbeddingModel.load(tmp_path / "model", trust=["plain_head_of_own"])


@pytest.mark.heavy
def test_the_command_line_works_with_it(data: Benchmark, tmp_path: Path) -> None:
    (tmp_path / "plain_head.py").write_text(MODULE)
    table = tmp_path / "vectors.parquet"
    assert data.train.vectors is not None
    pq.write_table(pa.table({"embedding": list(data.train.vectors), "label": data.train.labels}), table)

    def divcon(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "divcon", *map(str, words)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    small = ["--dim", 8, "--learners", 2, "--epochs", 1, "--batch-size", 8, "--images-per-class", 2, "--workers", 0]
    done = divcon("train", table, "--method", "plain_head:Plain", *small, "--no-validation", "--out", "run")
    assert done.returncode == 0, done.stderr
    refused = divcon("evaluate", "run", "--workers", 0)
    assert refused.returncode == 2
    assert "--import plain_head" in " ".join(refused.stderr.split())
    allowed = divcon("evaluate", "run", "--workers", 0, "--import", "plain_head")
    assert allowed.returncode == 0, allowed.stderr
