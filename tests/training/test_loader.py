"""The loader of vectors: the rows that were planned, all of them in order, and nothing drawn at random. That of images:
its workers stay, and what is divided is decoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data import loading as dataset
from divcon.data.benchmark import Benchmark
from divcon.division import Division
from divcon.runtime.context import Progress
from divcon.training.loader import ImageLoader, TrainLoader, VectorLoader, create_loader
from divcon.training.sampler import plan_epoch

CONFIG = dc.TrainConfig(batch_size=16, images_per_class=2, workers=0)


@pytest.fixture
def vectors(few: Benchmark) -> dc.LabeledSet:
    rows = np.random.default_rng(0).normal(size=(len(few.train), 7)).astype(np.float32)
    return replace(few.train, vectors=rows, encoded=None)


def test_batches_are_the_planned_rows_with_their_labels(vectors: dc.LabeledSet) -> None:
    assert vectors.vectors is not None
    labels = np.unique(vectors.labels, return_inverse=True)[1].astype(np.int64)
    plan = plan_epoch(Division.whole(labels), labels, batch_size=16, images_per_class=2, seed=0, epoch=3)
    model = dc.EmbeddingModel(vector_dim=7)
    state = torch.get_rng_state()
    with create_loader(model, vectors, CONFIG, torch.device("cpu")) as loader:
        assert isinstance(loader, VectorLoader)
        loaded = [values for _, *values in loader.training_batches(plan, 3, labels, range(len(plan.batches)))]
    assert len(loaded) == len(plan.batches)
    for (batch, values, targets), planned in zip(loaded, plan.batches, strict=True):
        assert batch.learner == planned.learner
        np.testing.assert_array_equal(batch.indices, planned.indices)
        assert values.dtype == torch.float32
        np.testing.assert_array_equal(values.numpy(), vectors.vectors[planned.indices])
        np.testing.assert_array_equal(targets.numpy(), labels[planned.indices])
    assert torch.equal(torch.get_rng_state(), state)


def test_all_of_them_come_in_order_and_progress_is_reported(vectors: dc.LabeledSet) -> None:
    reported: list[Progress] = []
    context = dc.Context(on_progress=reported.append)
    with create_loader(dc.EmbeddingModel(vector_dim=7), vectors, CONFIG, torch.device("cpu"), context) as loader:
        parts = list(loader.evaluation_batches(np.arange(len(vectors)), 2))
    np.testing.assert_array_equal(np.concatenate([values.numpy() for values, _ in parts]), vectors.vectors)
    np.testing.assert_array_equal(np.concatenate([rows.numpy() for _, rows in parts]), np.arange(len(vectors)))
    assert [len(rows) for _, rows in parts[:-1]] == [32] * (len(parts) - 1)
    assert [p.done for p in reported] == np.cumsum([len(rows) for _, rows in parts]).tolist()
    assert {(p.stage, p.epoch, p.total) for p in reported} == {("divide", 2, len(vectors))}


def test_a_batch_can_be_changed_and_the_vectors_stay(vectors: dc.LabeledSet) -> None:
    assert vectors.vectors is not None
    frozen = vectors.vectors.copy()
    frozen.flags.writeable = False
    labels = np.unique(vectors.labels, return_inverse=True)[1].astype(np.int64)
    plan = plan_epoch(Division.whole(labels), labels, batch_size=16, images_per_class=2, seed=0, epoch=0)
    with create_loader(
        dc.EmbeddingModel(vector_dim=7), replace(vectors, vectors=frozen), CONFIG, torch.device("cpu")
    ) as loader:
        for _, _, values, _ in loader.training_batches(plan, 0, labels, range(len(plan.batches))):
            values.zero_()
        for values, _ in loader.evaluation_batches(np.arange(len(vectors)), 0):
            values.zero_()
    np.testing.assert_array_equal(frozen, vectors.vectors)


def test_images_have_the_other_loader(few: Benchmark) -> None:
    model = dc.EmbeddingModel("test_resnet", pretrained=False, image_size=32)
    assert isinstance(create_loader(model, few.train, CONFIG, torch.device("cpu")), ImageLoader)


def test_the_workers_of_evaluations_stay_as_long_as_a_training(few: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multiprocessing.get_start_method", lambda allow_none: "spawn")
    assert dataset._kept is None
    with create_loader(
        dc.EmbeddingModel("test_resnet", pretrained=False, image_size=32), few.train, CONFIG, torch.device("cpu")
    ):
        assert dataset._kept == {}
    assert dataset._kept is None


def test_what_is_divided_is_decoded_once(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = dc.read(image_folder).train
    model = dc.EmbeddingModel("test_resnet", 8, 2, pretrained=False, image_size=32)
    every = np.arange(len(images))
    decoded: list[int] = []
    getitem = dataset.Decoded.__getitem__
    monkeypatch.setattr(dataset.Decoded, "__getitem__", lambda self, key: decoded.append(key) or getitem(self, key))

    def pixels_of(loader: TrainLoader, which: np.ndarray) -> torch.Tensor:
        decoded.clear()
        parts = list(loader.evaluation_batches(which, 0))
        np.testing.assert_array_equal(torch.cat([indices for _, indices in parts]).numpy(), which)
        return torch.cat([pixels for pixels, _ in parts])

    for config in (CONFIG, replace(CONFIG, batch_size=4)):
        with create_loader(model, images, config, torch.device("cpu")) as loader:
            some = pixels_of(loader, every[3:9])
            assert decoded == every[3:9].tolist()
            first = pixels_of(loader, every)
            # By whole batches: those that miss an image are decoded.
            assert set(every) - set(range(3, 9)) <= set(decoded)
            assert torch.equal(first[3:9], some)
            again = pixels_of(loader, every)
            assert not decoded and torch.equal(again, first)
            assert torch.equal(pixels_of(loader, every[[5, 2, 2, 0]]), first[[5, 2, 2, 0]]) and not decoded
            again.zero_()
            assert torch.equal(pixels_of(loader, every), first)
    monkeypatch.setattr("divcon.training.loader.CACHE_BYTES", len(images) * 3 * 32 * 32 - 1)
    with create_loader(model, images, CONFIG, torch.device("cpu")) as loader:
        for _ in range(2):
            assert torch.equal(pixels_of(loader, every), first) and decoded == every.tolist()
