"""Data at the edges: numbers that are none, points that are equal, classes of one kind or another, large tables."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import divcon as dc
from divcon.config.settings import TrainConfig
from divcon.division import divide
from divcon.errors import ConfigError, DataError, NonFiniteError

pytestmark = pytest.mark.heavy

CONFIG = TrainConfig(epochs=2, batch_size=16, images_per_class=2, finetune_epoch=2, workers=0)


def vectors(labels: np.ndarray, dim: int = 6, seed: int = 0, names: tuple[str, ...] | None = None) -> dc.LabeledSet:
    rng, count = np.random.default_rng(seed), int(labels.max()) + 1
    values = (rng.normal(size=(count, dim))[labels] + 0.5 * rng.normal(size=(len(labels), dim))).astype(np.float32)
    paths = pa.array([f"row {row}" for row in range(len(labels))])
    names = names or tuple(map(str, range(count)))
    return dc.LabeledSet(labels, names, paths, np.arange(len(labels)), "", vectors=values)


def model_of(images: dc.LabeledSet, learners: int = 2, dim: int = 8, **options: Any) -> dc.EmbeddingModel:
    assert images.vectors is not None
    torch.manual_seed(0)
    return dc.EmbeddingModel("mlp", dim, learners, vector_dim=images.vectors.shape[1], **options)


def write_table(path: Path, rows: int, dim: int, classes: int) -> Path:
    rng = np.random.default_rng(0)
    schema = pa.schema([("label", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 1_000_000):
            n = min(1_000_000, rows - start)
            flat = pa.array(rng.standard_normal(n * dim, dtype=np.float32))
            labels = pa.array(np.arange(start, start + n) % classes).cast(pa.string())
            writer.write_table(pa.table([labels, pa.FixedSizeListArray.from_arrays(flat, dim)], schema=schema))
    return path


class TestNotFinite:
    @pytest.fixture
    def images(self) -> dc.LabeledSet:
        return vectors(np.repeat(np.arange(8), 6))

    def breaks(self, model: dc.EmbeddingModel, images: dc.LabeledSet, rows: list[int], number: float) -> Any:
        """A backbone whose features of these rows are not finite, in evaluation."""
        assert images.vectors is not None
        wrong = torch.from_numpy(images.vectors[rows, 0])

        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> Any:
            hit = torch.isin(inputs[0][:, 0], wrong)
            return torch.where(hit[:, None] & (not module.training), number, output)

        return model.backbone.register_forward_hook(hook)

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    @pytest.mark.parametrize("divide_on", ["fresh", "bank"])
    def test_dividing_names_the_images_and_the_last_state_stays(
        self, number: float, divide_on: str, images: dc.LabeledSet, tmp_path: Path
    ) -> None:
        config = replace(CONFIG, epochs=4, finetune_epoch=4, redivide_every=2, divide_on=divide_on, rounds="shortest")  # type: ignore[arg-type]
        model = model_of(images)
        epochs = dc.train(model, images, config, checkpoint=tmp_path / "c")
        next(epochs), next(epochs)
        before = (tmp_path / "c").read_bytes()
        hook = self.breaks(model, images, list(range(48)), number)
        with pytest.raises(NonFiniteError, match=r"epoch 2, dividing: .* of 48 images .*: row \d+, row \d+"):
            next(epochs)
        hook.remove()
        # What the checkpoint holds is the second epoch, kept when the third was asked for.
        assert (tmp_path / "c").read_bytes() != before
        resumed = model_of(images)
        assert [r.number for r in dc.train(resumed, images, config, checkpoint=tmp_path / "c")] == [2, 3]
        whole = model_of(images)
        list(dc.train(whole, images, config))
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value)

    def test_evaluating_names_the_images(self, images: dc.LabeledSet) -> None:
        model = model_of(images)
        self.breaks(model, images, [7, 30], float("nan"))
        with pytest.raises(NonFiniteError, match=r"evaluating .*: .* of 2 of 48 images .*: row 7, row 30"):
            dc.evaluate(model, images)


class TestDivisions:
    def test_features_that_are_all_equal(self) -> None:
        labels = np.repeat(np.arange(8), 6)
        with pytest.raises(DataError, match="only 1 distinct points"):
            divide(np.ones((48, 5), np.float32), labels, 2)

    def test_more_learners_than_distinct_points(self) -> None:
        features = np.eye(3, dtype=np.float32).repeat(16, axis=0)
        assert divide(features, np.repeat(np.arange(8), 6), 3).num_learners == 3
        with pytest.raises(DataError, match="only 3 distinct points"):
            divide(features, np.repeat(np.arange(8), 6), 4)

    def test_one_class_a_cluster_trains_no_learner_and_says_what_to_do(self) -> None:
        images = vectors(np.repeat(np.arange(4), 12))
        assert images.vectors is not None
        apart = replace(images, vectors=np.eye(4, 6, dtype=np.float32)[images.labels])
        with pytest.raises(DataError, match=r"no learner has two classes.*`num_learners`"):
            list(dc.train(model_of(apart, 4), apart, CONFIG))

    def test_a_class_of_100_000_images(self) -> None:
        images = vectors(np.concatenate([np.zeros(100_000, np.int64), np.repeat(np.arange(1, 9), 6)]), 4)
        config = replace(CONFIG, epochs=1, finetune_epoch=1, batch_size=1000, images_per_class=500)
        config = replace(config, loss="ContrastiveLoss", miner="none")
        (report,) = dc.train(model_of(images), images, config)
        assert sum(report.division.sizes) + report.division.num_left_out == len(images)
        assert np.isfinite(report.loss)


class TestDimensions:
    @pytest.mark.parametrize("method", ["slices", "masks"])
    def test_that_are_not_divisible_by_the_learners(self, method: str) -> None:
        images = vectors(np.repeat(np.arange(12), 6))
        model = model_of(images, 3, 8, method=method)
        reports = list(dc.train(model, images, CONFIG))
        assert np.isfinite([report.loss for report in reports]).all()
        assert model.encode(images.vectors).shape == (72, 8)  # type: ignore[arg-type]

    def test_fewer_than_learners(self) -> None:
        with pytest.raises(ConfigError):
            model_of(vectors(np.repeat(np.arange(12), 6)), 9, 8, method="slices")
        with pytest.raises(ConfigError, match="`embedding_dim` 8 cannot be divided among `num_learners` 9"):
            dc.ModelConfig(num_learners=9, embedding_dim=8)


def test_labels_in_all_scripts_and_lengths(tmp_path: Path, command: Callable[..., Any]) -> None:
    names = [
        "a" * 20_000,
        "été",
        "e\u0301te\u0301",
        "日本語",
        "🦊🦊",
        "\u202eright",
        "a,b\"c'd",
        "line\nbreak",
        "0",
        "1.0",
    ]
    labels = np.repeat(np.arange(len(names)), 8)
    images = vectors(labels)
    assert images.vectors is not None
    table = {"label": [names[c] for c in labels], "embedding": list(images.vectors)}
    pq.write_table(pa.table(table), tmp_path / "all.parquet")
    options = ["--epochs", 2, "--learners", 2, "--dim", 8, "--batch-size", 8, "--images-per-class", 2, "--workers", 0]
    code, _, err = command("train", tmp_path / "all.parquet", "--out", tmp_path / "run", "--no-validation", *options)
    assert code == 0, err
    code, out, err = command("evaluate", tmp_path / "run", "--workers", 0)
    assert code == 0 and "recall_at_1" in out, err
    data = dc.read(tmp_path / "all.parquet")
    assert {data.train.label_names[c] for c in data.train.classes} | {
        data.query.label_names[c] for c in data.query.classes
    } == {unicodedata.normalize("NFC", name) for name in names}


@pytest.mark.parametrize("rows", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_tables_of_many_rows(rows: int, tmp_path: Path) -> None:
    data = dc.read(write_table(tmp_path / "many.parquet", rows, 4, rows // 10))
    assert len(data.train) + len(data.query) == rows
    assert data.train.num_classes + data.query.num_classes == rows // 10
    assert data.query.num_classes == pytest.approx(rows // 50, rel=0.1)
    assert len(data.split_hash) == 16
