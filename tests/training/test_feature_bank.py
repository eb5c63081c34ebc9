"""What is divided on: the feature bank against a loop written out, and what it saves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.runtime.context import Progress
from divcon.training import Phase
from divcon.training.checkpoint_file import read_checkpoint
from divcon.training.feature_bank import FeatureBank
from divcon.training.loader import TrainLoader, create_loader

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=7, batch_size=16, images_per_class=2, joint_epoch=4, finetune_epoch=5, workers=0, divide_on="bank"
)
CPU = torch.device("cpu")


def as_vectors(images: dc.LabeledSet, vectors: np.ndarray) -> dc.LabeledSet:
    return replace(images, vectors=vectors.astype(np.float32), encoded=None)


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass over them embeds, to divide."""
    counted: list[int] = []
    passes = TrainLoader.evaluation_batches

    def counting(self: TrainLoader, images: np.ndarray, *rest: object) -> object:
        counted.append(len(images))
        return passes(self, images, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainLoader, "evaluation_batches", counting)
    return counted


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=6), max_size=6), seed=st.integers(0, 99))
def test_it_holds_the_exponential_mean_of_views_and_embeds_the_rest(
    few: Benchmark, batches: list[list[int]], seed: int
) -> None:
    """Three rounds of batches with a division after each, against a dictionary of views."""
    rng = np.random.default_rng(seed)
    images = as_vectors(few.train.subset(np.arange(9)), rng.standard_normal((9, 5)))
    model = dc.EmbeddingModel("none", 4, 1, vector_dim=5)
    clean = unit(model.features(images))
    memory = FeatureBank(9, 5, CPU, enabled=True)
    expected: np.ndarray = clean.copy()
    in_batches: set[int] = set()
    shown: list[Progress] = []
    with create_loader(model, images, CONFIG, CPU, dc.Context(on_progress=shown.append)) as loader:
        for turn in range(3):
            shown.clear()
            features = memory.features_to_divide(model, loader, turn)
            missing, kept = sorted(set(range(9)) - in_batches), sorted(in_batches)
            expected[missing] = clean[missing]
            if missing and kept:
                expected[missing] += expected[kept].mean(0) - clean[missing].mean(0)
            np.testing.assert_allclose(features, expected, atol=2e-3)  # half precision
            assert (shown[-1].total if shown else 0) == 9 - len(in_batches)
            in_batches = set()
            for batch in batches:
                views = rng.standard_normal((len(batch), 5)).astype(np.float32)
                memory.update(np.array(batch), torch.from_numpy(views))
                for image in set(batch):
                    last = max(place for place, other in enumerate(batch) if other == image)
                    expected[image] = (expected[image] + unit(views)[last]) / 2
                in_batches |= set(batch)


@pytest.mark.heavy
def test_only_images_in_no_batch_are_embedded_again(few: Benchmark, tiny_model: Make, embedded: list) -> None:
    drawn: list[np.ndarray] = []
    sizes: list[int] = []
    for report in dc.train(tiny_model(), few.train, CONFIG):
        if report.redivided and report.phase is not Phase.FINETUNE:
            sizes.append(len(few.train) - len(np.unique(np.concatenate([*drawn, np.empty(0, np.int64)]))))
            drawn = []
        drawn.append(report.drawn)
    assert embedded == sizes
    assert sizes[0] == len(few.train)
    assert all(0 < size < len(few.train) for size in sizes[1:])


@pytest.mark.heavy
def test_fresh_embeds_all_of_them_at_each_division(few: Benchmark, tiny_model: Make, embedded: list) -> None:
    for _ in dc.train(tiny_model(), few.train, replace(CONFIG, divide_on="fresh")):
        pass
    assert embedded == [len(few.train)] * 3


def test_if_features_do_not_change_both_divide_the_same(few: Benchmark) -> None:
    """Vectors without a backbone of their own: a view is the feature."""
    vectors = np.random.default_rng(0).standard_normal((len(few.train), 24))
    images = as_vectors(few.train, vectors + 4 * np.eye(24)[np.arange(len(few.train)) % 4 * 5])
    learners = []
    for way in ("bank", "fresh"):
        torch.manual_seed(0)
        model = dc.EmbeddingModel("none", 16, 4, vector_dim=24)
        reports = list(dc.train(model, images, replace(CONFIG, divide_on=way)))
        learners.append([report.division.learner for report in reports])
    for memory, fresh in zip(*learners, strict=True):
        assert (memory == fresh).mean() > 0.97  # but for half precision


@pytest.mark.heavy
@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_resumed_after_any_epoch_it_divides_as_if_never_stopped(
    few: Benchmark, tiny_model: Make, tmp_path: Path, stop: int
) -> None:
    straight = tiny_model()
    expected = [report.division.learner for report in dc.train(straight, few.train, CONFIG)]
    file = tmp_path / "checkpoint"
    for _ in islice(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file), stop + 1):
        pass
    model = tiny_model(seed=5)
    rest = list(dc.train(model, few.train, CONFIG, checkpoint=file))
    torch.testing.assert_close(model.state_dict(), straight.state_dict(), rtol=0, atol=0)
    for report in rest:
        np.testing.assert_array_equal(report.division.learner, expected[report.number])


@pytest.mark.heavy
def test_a_checkpoint_has_no_features_after_the_last_division(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    sizes = {}
    for name, settings_ in (("memory", {}), ("fresh", {"divide_on": "fresh"}), ("none", {"divide_by": "none"})):
        for _ in islice(dc.train(tiny_model(), few.train, replace(CONFIG, **settings_), checkpoint=tmp_path / name), 2):
            pass
        sizes[name] = read_checkpoint(tmp_path / name)["features"]["features"].numel()
    assert sizes == {"memory": len(few.train) * tiny_model().num_features, "fresh": 0, "none": 0}
    list(dc.train(tiny_model(), few.train, CONFIG, checkpoint=tmp_path / "memory"))  # to the end of the finetune phase
    assert read_checkpoint(tmp_path / "memory")["features"]["features"].numel() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_if_batches_had_all_images_none_is_embedded(few: Benchmark, tiny_model: Make, workers: int) -> None:
    model, n = tiny_model(), len(few.train)
    memory = FeatureBank(n, model.num_features, CPU, enabled=True)
    views = torch.rand(n, model.num_features)
    shown: list[Progress] = []
    with create_loader(model, few.train, CONFIG, CPU, dc.Context(workers, shown.append)) as loader:
        first = memory.features_to_divide(model, loader, 0)
        memory.update(np.arange(n), views)
        shown.clear()
        second = memory.features_to_divide(model, loader, 2)
    assert not shown
    np.testing.assert_allclose(second, (first + unit(views.numpy())) / 2, atol=2e-3)
