"""Training with parts of a user's own, in full: trained, stopped, resumed, evaluated, repeated from its config.json."""

from __future__ import annotations

import importlib
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_labeled_set
from divcon.errors import ConfigError, RunError, TrustError

PARTS = """
import torch
from torch import nn


class Centres(nn.Module):
    def __init__(self, num_classes, embedding_size, scale=8.0):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(num_classes, embedding_size))
        self.scale = scale

    def forward(self, embeddings, labels):
        return nn.functional.cross_entropy(self.scale * embeddings @ self.centres.T, labels)


class Contrast(nn.Module):
    def __init__(self, margin=0.5):
        super().__init__()
        self.margin = margin

    def forward(self, embeddings, labels, indices_tuple=None):
        a1, p, a2, n = indices_tuple
        cosines = embeddings @ embeddings.T
        return (1 - cosines[a1, p]).mean() + (cosines[a2, n] - self.margin).relu().mean()


def all_pairs(embeddings, labels):
    same = labels[:, None] == labels[None, :]
    off = ~torch.eye(len(labels), dtype=torch.bool)
    return (*torch.where(same & off), *torch.where(~same))


def halving(epochs_done, config):
    return 0.5 ** epochs_done


def sgd(groups, momentum=0.0, **options):
    return torch.optim.SGD(groups, momentum=momentum, **options)
"""
MODULE = "training_parts_for_tests"
NAMED = {
    "loss": {"loss": f"{MODULE}:Centres", "loss_options": {"scale": 4.0}},
    "loss and miner": {"loss": f"{MODULE}:Contrast", "miner": f"{MODULE}:all_pairs"},
    "optimizer": {"optimizer": "torch.optim:SGD", "optimizer_options": {"momentum": 0.9}},
    "optimizer by function": {"optimizer": f"{MODULE}:sgd", "optimizer_options": {"momentum": 0.9}},
    "schedule": {"lr_schedule": f"{MODULE}:halving", "warmup_epochs": 0.5},
}
"""Settings of each door."""
CONFIG = {"epochs": 4, "finetune_epoch": 3, "redivide_every": 1, "batch_size": 16, "images_per_class": 4, "workers": 0}


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(PARTS)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(MODULE)


@pytest.fixture(scope="module")
def data() -> Benchmark:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(12), 8)
    vectors = np.eye(12, 16)[labels] + 0.3 * rng.normal(size=(96, 16))
    images = as_labeled_set((vectors.astype(np.float32), labels))
    train, test = images.subset(labels < 8), images.subset(labels >= 8)
    return Benchmark("few", train, test, test)


def model(seed: int = 0) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    return dc.EmbeddingModel("mlp", 8, 2, vector_dim=16, method="slices")


def objects(kind: str, parts: ModuleType) -> dict[str, Any]:
    """The settings of a door, with the parts themselves."""
    return {
        "loss": {"loss": parts.Centres, "loss_options": {"scale": 4.0}},
        "loss and miner": {"loss": parts.Contrast(), "miner": parts.all_pairs},
        "optimizer": {"optimizer": torch.optim.SGD, "optimizer_options": {"momentum": 0.9}},
        "optimizer by function": {"optimizer": parts.sgd, "optimizer_options": {"momentum": 0.9}},
        "schedule": {"lr_schedule": parts.halving, "warmup_epochs": 0.5},
    }[kind]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", NAMED)
def test_trained_stopped_resumed_and_evaluated(kind: str, data: Benchmark, parts: ModuleType, tmp_path: Path) -> None:
    reports, ends = {}, {}
    for form, settings in (("named", NAMED[kind]), ("object", objects(kind, parts))):
        config = dc.TrainConfig(**CONFIG, **settings)
        straight = model()
        expected = [report.loss for report in dc.train(straight, data.train, config)]
        file = tmp_path / form
        for _ in islice(dc.train(model(), data.train, config, checkpoint=file), 3):
            pass
        resumed = model(seed=5)
        rest = [report.loss for report in dc.train(resumed, data.train, config, checkpoint=file)]
        assert rest == expected[2:]
        reports[form] = expected
        ends[form] = dc.evaluate(resumed, data, clustering=False)["recall_at_1"]
        assert ends[form] == dc.evaluate(straight, data, clustering=False)["recall_at_1"]
    assert reports["named"] == reports["object"]
    assert ends["named"] == ends["object"]
    if kind not in ("loss and miner", "optimizer"):  # whose names are not those of the objects
        config = dc.TrainConfig(**CONFIG, **NAMED[kind])
        assert list(dc.train(model(), data.train, config, checkpoint=tmp_path / "object")) == []
    with pytest.raises(RunError, match="cannot resume with other settings"):
        next(dc.train(model(), data.train, dc.TrainConfig(**CONFIG), checkpoint=tmp_path / "named"))


def test_a_run_is_repeated_from_its_config_where_the_module_is_allowed(
    data: Benchmark, parts: ModuleType, tmp_path: Path
) -> None:
    settings = {**NAMED["loss"], **NAMED["optimizer by function"], **NAMED["schedule"]}
    config = dc.RunConfig(
        dc.ModelConfig(backbone="mlp", embedding_dim=8, num_learners=2, method="slices"),
        dc.TrainConfig(**CONFIG, **settings),
        dc.DataConfig(validation=False),
    )
    first = dc.run(data, tmp_path / "run", config, report=False)
    with pytest.raises(TrustError, match=MODULE):
        dc.RunConfig.load(tmp_path / "run" / "config.json")
    read = dc.RunConfig.load(tmp_path / "run" / "config.json", trust=[MODULE])
    again = dc.run(data, tmp_path / "again", read, report=False)
    for name, value in again.state_dict().items():
        assert torch.equal(value, first.state_dict()[name])


def test_the_call_checks_its_arguments(data: Benchmark) -> None:
    """Nothing is trained by the call alone, and what cannot be trained is an error at once."""
    for arguments, message in (
        (("resnet50", data.train), "`model` must be a divcon.EmbeddingModel, not of type str"),
        ((model(), data.train, {"epochs": 3}), "`config` must be a divcon.TrainConfig, not of type dict"),
        ((model(), data.train, dc.RunConfig()), "`config` must be a divcon.TrainConfig, not of type RunConfig"),
        ((model(), data.train, dc.TrainConfig(loss="TripletLoss")), "unknown loss 'TripletLoss'"),
        ((model(), data.train, dc.TrainConfig(optimizer="torch.optim:Nothing")), "unknown name in torch.optim"),
        ((model(), data.train, dc.TrainConfig(lr_schedule="divcon.errors:Nothing")), "unknown name in divcon.errors"),
    ):
        with pytest.raises(ConfigError, match=message):
            dc.train(*arguments)  # type: ignore[arg-type]
    for wrong in (3, None, data.train.vectors, (data.train.vectors, [1, 2]), "no/such/folder"):
        with pytest.raises(dc.DivconError):
            dc.train(model(), wrong)  # type: ignore[arg-type]


def test_objectives_are_created_once(data: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from divcon.training import setup

    created = []
    create = setup.create_objectives
    monkeypatch.setattr(setup, "create_objectives", lambda *args: created.append(1) or create(*args))
    config = dc.TrainConfig(**{**CONFIG, "epochs": 1, "finetune_epoch": 1})
    list(dc.train(model(), data.train, config))
    assert len(created) == 1
    created.clear()
    settings = dc.RunConfig(dc.ModelConfig(backbone="none", embedding_dim=8), config, dc.DataConfig(validation=False))
    dc.run(data, tmp_path / "run", settings, report=False)
    assert len(created) == 1


@pytest.mark.parametrize("form", ["benchmark", "arrays", "tensors", "file"])
def test_what_data_it_takes(form: str, data: Benchmark, tmp_path: Path) -> None:
    config = dc.TrainConfig(**{**CONFIG, "epochs": 1, "finetune_epoch": 1})
    vectors, labels = data.train.vectors, [data.train.label_name(i) for i in range(len(data.train))]
    assert vectors is not None
    if form == "file":
        import pyarrow as pa
        import pyarrow.parquet as pq

        both = [data.train, data.query]
        table = {
            "embedding": [row for images in both for row in images.vectors.tolist()],  # type: ignore[union-attr]
            "label": [images.label_name(i) for images in both for i in range(len(images))],
            "split": [name for images, name in zip(both, ("train", "test"), strict=True) for _ in range(len(images))],
        }
        pq.write_table(pa.table(table), tmp_path / "vectors.parquet")
    data_in_form: Any = {
        "benchmark": data,
        "arrays": (vectors, np.array(labels)),
        "tensors": (torch.from_numpy(vectors), labels),
        "file": tmp_path / "vectors.parquet",
    }[form]
    trained, expected = model(), model()
    list(dc.train(trained, data_in_form, config))
    list(dc.train(expected, data.train, config))
    for name, value in trained.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_several_processes_need_parts_that_can_be_imported(data: Benchmark) -> None:
    config = dc.TrainConfig(**CONFIG, devices=2, lr_schedule=lambda epochs_done, config: 1.0)
    with pytest.raises(ConfigError, match="`lr_schedule` cannot be passed to other processes") as refused:
        dc.train(model(), data, config)
    assert refused.value.field == "lr_schedule"


@pytest.mark.heavy
def test_several_processes_train_with_a_part_of_one_s_own(data: Benchmark) -> None:
    own: dict[str, Any] = {"loss": Spread, "lr_schedule": slower, "optimizer": "torch.optim:SGD"}
    config = dc.TrainConfig(**CONFIG, devices=2, device="cpu", **own)
    alone, both = model(), model()
    list(dc.train(alone, data, dc.TrainConfig(**{**vars(config), "devices": 1})))
    list(dc.train(both, data, config))
    for name, value in both.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], rtol=1e-4, atol=1e-6)


class Spread(torch.nn.Module):
    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        same = (labels[:, None] == labels[None, :]).float()
        return (same - embeddings @ embeddings.T).square().mean()


def slower(epochs_done: float, config: dc.TrainConfig) -> float:
    return 1 / (1 + epochs_done)
