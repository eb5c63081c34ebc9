"""Training whose features do not fit into the memory to divide in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.division import Division
from divcon.division.kmeans import nearest_centroids
from divcon.errors import ConfigError
from divcon.runtime import memory
from divcon.runtime.context import Progress
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.training.checkpoint_file import read_checkpoint, write_checkpoint
from divcon.training.loader import TrainLoader

CLASSES, EACH, DIMS = 12, 60, 140
CONFIG = dc.TrainConfig(epochs=3, batch_size=60, images_per_class=4, finetune_epoch=2, redivide_every=1, workers=0)


@pytest.fixture(scope="module")
def vectors() -> dc.LabeledSet:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(CLASSES), EACH)
    values = (rng.normal(size=(CLASSES, DIMS))[labels] + rng.normal(size=(len(labels), DIMS))).astype(np.float32)
    paths = pa.array([f"row {row}" for row in range(len(labels))])
    names = tuple(map(str, range(CLASSES)))
    return dc.LabeledSet(labels, names, paths, np.arange(len(labels)), "data", vectors=values)


def model(backbone: str = "none") -> dc.EmbeddingModel:
    torch.manual_seed(0)
    return dc.EmbeddingModel(backbone, 8, 2, vector_dim=DIMS)


def with_memory(size: float | str, **more: object) -> dc.TrainConfig:
    return dc.TrainConfig(**{**vars(CONFIG), "division_memory": size, **more})


def test_beyond_the_memory_a_sample_is_clustered_and_each_image_embedded_once(
    vectors: dc.LabeledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[np.ndarray] = []
    load = TrainLoader.evaluation_batches

    def counting(self: TrainLoader, images: np.ndarray, *args: object, **options: object) -> object:
        loaded.append(images)
        return load(self, images, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainLoader, "evaluation_batches", counting)
    shown: list[tuple[int, int | None]] = []
    context = dc.Context(on_progress=lambda p: shown.append((p.done, p.total)) if p.stage == "divide" else None)
    network = model()
    before = network.features(vectors)
    first = next(iter(dc.train(network, vectors, with_memory("1MB"), context=context)))
    np.testing.assert_array_equal(np.sort(np.concatenate(loaded)), np.arange(len(vectors)))
    assert len(loaded[0]) == first.division_sample == first.division.sample == 10**6 // (4 * (3 * DIMS + 2))
    assert shown[-1] == (len(vectors), len(vectors))
    assert first.to_dict()["division_sample"] == first.division_sample
    [warning] = [w for w in first.warnings if "k-means is fitted on" in w]
    assert f"{first.division_sample} of 720 images" in warning
    features = before / np.linalg.norm(before, axis=1, keepdims=True)
    expected = Division(nearest_centroids(features, first.division.centroids), first.division.centroids)
    learner = expected.without_singletons(vectors.labels).learner
    np.testing.assert_array_equal(learner, first.division.learner)


def test_within_the_memory_nothing_is_different(vectors: dc.LabeledSet) -> None:
    whole = [e.division.learner for e in dc.train(model(), vectors, with_memory(0))]
    for size in ("2MB", 1.0):
        for epoch, learner in zip(dc.train(model(), vectors, with_memory(size)), whole, strict=True):
            assert epoch.division_sample is None
            np.testing.assert_array_equal(epoch.division.learner, learner)


@pytest.mark.parametrize("memory", [0, "1MB"])
def test_the_embedding_is_clustered_where_one_asks_for_it(vectors: dc.LabeledSet, memory: float | str) -> None:
    network = model()
    embeddings = network.encode(vectors)
    division = next(iter(dc.train(network, vectors, with_memory(memory, divide_on="embedding")))).division
    assert division.centroids.shape == (2, 8)
    # Nearly all images are with the nearest of the centroids, which are of embeddings.
    near = nearest_centroids(embeddings, division.centroids)
    kept = division.learner >= 0
    assert (near[kept] == division.learner[kept]).mean() > 0.95


def test_the_last_division_stays(vectors: dc.LabeledSet) -> None:
    config = with_memory(0, epochs=5, finetune_epoch=4, redivide_every=1, redivide_until=2)
    reports = list(dc.train(model(), vectors, config))
    assert [report.redivided for report in reports[:4]] == [True, True, False, False]
    assert reports[3].division is reports[1].division
    assert reports[4].division.num_learners == 1  # finetune


def test_class_means_that_fit_are_all_clustered(vectors: dc.LabeledSet) -> None:
    whole = [e.division.learner for e in dc.train(model(), vectors, with_memory(0, divide_by="class"))]
    for epoch, learner in zip(dc.train(model(), vectors, with_memory("1MB", divide_by="class")), whole, strict=True):
        assert epoch.division_sample is None
        np.testing.assert_array_equal(epoch.division.learner, learner)


def test_random_learners_need_no_features(vectors: dc.LabeledSet, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"divide_by": "random", "epochs": 1, "finetune_epoch": 1}
    [whole] = dc.train(model(), vectors, with_memory(0, **config))
    monkeypatch.setattr(dc.EmbeddingModel, "pooled", None)
    [epoch] = dc.train(model(), vectors, with_memory("1MB", **config))
    np.testing.assert_array_equal(epoch.division.learner, whole.division.learner)


def test_a_run_keeps_the_memory_that_it_started_with(
    vectors: dc.LabeledSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine of another size it resumes to the same weights."""
    monkeypatch.setattr(memory, "machine_memory", lambda: 4 * 10**6)
    config = with_memory(0.25)
    whole = model()
    assert [e.division_sample for e in dc.train(whole, vectors, config)] == [592, 592, None]
    epochs = dc.train(model(), vectors, config, checkpoint=tmp_path / "c")
    for _ in range(2):
        next(epochs)  # the second request saves epoch 0
    epochs.close()  # type: ignore[attr-defined]
    monkeypatch.setattr(memory, "machine_memory", lambda: 10**12)
    resumed = model()
    assert [e.division_sample for e in dc.train(resumed, vectors, config, checkpoint=tmp_path / "c")] == [592, None]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


def test_a_run_of_before_the_setting_has_no_limit(vectors: dc.LabeledSet, tmp_path: Path) -> None:
    epochs = dc.train(model(), vectors, with_memory(0), checkpoint=tmp_path / "c")
    for _ in range(2):
        next(epochs)
    epochs.close()  # type: ignore[attr-defined]
    content = read_checkpoint(tmp_path / "c")
    del content["division_budget"], content["config"]["division_memory"], content["format"]
    write_checkpoint(tmp_path / "c", content)
    assert [e.division_sample for e in dc.train(model(), vectors, with_memory(0), checkpoint=tmp_path / "c")] == [
        None,
        None,
    ]


def test_what_does_not_fit_is_refused_before_anything_is_embedded(vectors: dc.LabeledSet) -> None:
    with pytest.raises(ConfigError, match=r"`divide_on=bank` keeps the features of all 720 .* use `divide_on=fresh`"):
        next(iter(dc.train(model(), vectors, with_memory("1MB", divide_on="bank"))))
    torch.manual_seed(0)
    four = dc.EmbeddingModel("none", 8, 4, vector_dim=DIMS)
    with pytest.raises(ConfigError, match="holds 589 features of 140 numbers, and k-means for 4 learners needs 720"):
        next(iter(dc.train(four, vectors, with_memory("1MB"))))


def test_a_share_is_of_the_machine_and_divided_among_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * 10**9)
    assert memory.budget_in_bytes(0.25, ALONE) == 2 * 10**9
    assert memory.budget_in_bytes(0.25, ALONE, 10**9) == 25 * 10**7
    assert memory.budget_in_bytes(10**8, ALONE, 10**6) == 10**8
    eight = ProcessGroup(3, 8)
    assert memory.processes_here(eight) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory.processes_here(eight) == 4
    assert memory.processes_here(ALONE) == 1


def test_memory_of_this_machine_is_read() -> None:
    assert 10**8 < memory.machine_memory() < 10**15


def test_interrupted_while_it_divides_it_resumes_to_the_same(vectors: dc.LabeledSet, tmp_path: Path) -> None:
    """After the sample was embedded, and k-means fitted, in the second epoch."""
    config, whole = with_memory("1MB"), model()
    list(dc.train(whole, vectors, config))

    def interrupt(progress: Progress) -> None:
        if progress.stage == "divide" and progress.epoch == 1 and progress.done > 650:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(dc.train(model(), vectors, config, checkpoint=tmp_path / "c", context=dc.Context(on_progress=interrupt)))
    resumed = model()
    assert [e.number for e in dc.train(resumed, vectors, config, checkpoint=tmp_path / "c")] == [1, 2]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
