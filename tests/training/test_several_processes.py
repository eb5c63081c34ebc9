"""Two processes train what one trains that steps on two learners at once."""

from __future__ import annotations

from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
import divcon.training.gradients
from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.runtime.distributed import ALONE, ProcessGroup
from divcon.runtime.launch import launch
from divcon.training.gradients import Gradients
from divcon.training.loop import train
from divcon.training.setup import on_started_group

pytestmark = pytest.mark.heavy

CONFIG = TrainConfig(epochs=5, batch_size=12, images_per_class=2, finetune_epoch=4, workers=0, learners_per_step=2)
BATCH = {"across": "batch", "learners_per_step": 1}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "single": ("single", 1, {}),
    "slices": ("slices", 4, {}),
    "masks": ("masks", 4, {}),
    "a learner's batches go from one to the other": ("masks", 3, {}),
    "three at once, seven batches": ("masks", 4, {"learners_per_step": 3}),
    "hierarchy": ("masks", 4, {"hierarchy": True, "redivide_every": 1}),
    "proxies of some classes": ("masks", 4, {"loss": "ProxyAnchorLoss", "divide_by": "class"}),
    "a beta that is learned": ("slices", 2, {"loss_options": {"learn_beta": True}}),
    "more images than the memory holds": ("masks", 2, {"division_memory": "1MB"}),
    "more images than the memory holds, by class": ("masks", 2, {"division_memory": "1MB", "divide_by": "class"}),
    "more images than the memory holds, hierarchy": (
        "masks",
        2,
        {"division_memory": "1MB", "hierarchy": True, "redivide_every": 1},
    ),
    "batch": ("masks", 4, BATCH),
    "batch, two learners a step": ("masks", 4, {"across": "batch"}),
    "batch, memory of embeddings": ("masks", 4, {**BATCH, "memory_size": 24}),
    "batch, feature bank": ("masks", 4, {**BATCH, "divide_on": "bank"}),
    "batch, its own state": ("slices", 3, {**BATCH, "loss": "DynamicSoftMarginLoss", "miner": "none"}),
}


def data(seed: int = 0, each: int = 7, dims: int = 10) -> dc.LabeledSet:
    rng, labels = np.random.default_rng(seed), np.repeat(np.arange(12), each)
    vectors = (rng.normal(size=(12, dims))[labels] + rng.normal(size=(12 * each, dims))).astype(np.float32)
    paths = pa.array([f"row {row}" for row in range(12 * each)])
    return dc.LabeledSet(labels, tuple(map(str, range(12))), paths, np.arange(12 * each), "data", vectors=vectors)


def model(method: str, learners: int, seed: int = 0, dims: int = 10) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    return dc.EmbeddingModel("mlp", 8, learners, method=method, vector_dim=dims, dropout=0.1)


def trained(name: str, processes: ProcessGroup) -> tuple[dc.EmbeddingModel, list[dict[str, Any]]]:
    method, learners, more = CASES[name]
    config = replace(CONFIG, **more)
    processes.across = config.across
    large = "division_memory" in more
    if large:
        config = replace(config, epochs=3, finetune_epoch=2, batch_size=60)
    images = data(each=60, dims=140) if large else data()
    # Whatever the others begin with, they take over the first one's weights.
    network = model(method, learners, seed=processes.rank, dims=140 if large else 10)
    reports = [report.to_dict() for report in train(network, images, config, context=dc.Context(processes=processes))]
    return network, [{k: v for k, v in report.items() if not k.startswith("seconds")} for report in reports]


class Branches(torch.nn.Module):
    """A backbone with layers that some batches leave out, one that none uses, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 6
        self.first, self.left, self.right, self.unused, self.fixed = (torch.nn.Linear(6, 6) for _ in range(5))
        self.fixed.requires_grad_(False)
        self.taken = ""

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        features = self.fixed(self.first(vectors))
        for name in self.taken:
            features = {"l": self.left, "r": self.right}[name](features)
        return features


BRANCHES = {
    "one each, others": [["lr"], ["l"]],
    "neither": [[""], [""]],
    "the last leaves out what the one before it uses": [["l", ""], ["", ""]],
    "as many as there are": [["l", "r"], ["r"]],
    "one process has no batch": [["l"], []],
    "again": [["lr"], ["lr"]],
}


def branching(name: str, processes: ProcessGroup) -> dict[str, torch.Tensor | None]:
    """The gradients of a step; by one process those of the batches of both."""
    torch.manual_seed(0)
    network = dc.EmbeddingModel(Branches(), 4, vector_dim=6, dropout=0.0)
    backbone: Any = network.backbone
    gradients, optimizer = Gradients(network, processes), torch.optim.SGD(network.parameters())
    for of_step in (name, "again"):  # the next step is as if nothing had been before it
        optimizer.zero_grad()
        plan = BRANCHES[of_step]
        numbered = [batch for pair in zip_longest(*plan) for batch in pair if batch is not None]
        step = range(len(numbered))
        for number in processes.batches(step):
            backbone.taken = numbered[number]
            inputs = torch.full((3, 6), 1.0 + number)
            (gradients.network(step, number)(inputs)[:, 0].sum() / len(step)).backward()
        gradients.all_reduce(optimizer)
        if of_step == name:
            result = {key: None if p.grad is None else p.grad.clone() for key, p in network.named_parameters()}
    assert all(
        p.grad is not None for key, p in network.named_parameters() if "unused" not in key and "fixed" not in key
    )
    return result


def overlapping(processes: ProcessGroup) -> list[str]:
    """What happens in a backward pass, in order."""
    network = dc.EmbeddingModel("mlp", 8, method="single", vector_dim=1200)
    happened: list[str] = []
    weight = next(network.backbone.parameters())
    weight.register_post_accumulate_grad_hook(lambda _: happened.append("first layer"))
    summed = divcon.training.gradients._summed

    def noted(bucket: Any) -> Any:
        happened.append("bucket")
        return summed(bucket)

    divcon.training.gradients._summed = noted
    try:
        wrapped = Gradients(network, processes).network(range(2), processes.rank)
        wrapped(torch.randn(4, 1200)).sum().backward()
    finally:
        divcon.training.gradients._summed = summed
    return happened


def recomputing(processes: ProcessGroup) -> dict[str, torch.Tensor | None]:
    """The gradients of a step with gradient checkpointing."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"pretrained": False, "image_size": 32, "dropout": 0.0}
    network = dc.EmbeddingModel("test_vit", 4, **options).train()
    network.recompute_activations(True)
    gradients = Gradients(network, processes)
    for number in processes.batches(range(2)):
        images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        gradients.network(range(2), number)(images)[:, 0].sum().backward()
    gradients.all_reduce(torch.optim.SGD(network.parameters()))
    return {key: p.grad for key, p in network.named_parameters()}


def follow(processes: ProcessGroup) -> None:
    for name in CASES:
        trained(name, processes)
    processes.across = "learners"
    for name in BRANCHES:
        branching(name, processes)
    overlapping(processes)
    recomputing(processes)


@pytest.fixture(scope="module")
def by_two() -> dict[str, Any]:
    """All cases by one pair of processes, which take seconds to start."""
    with launch(2, "learners", "cpu", follow) as processes:
        results: dict[str, Any] = {name: trained(name, processes) for name in CASES}
        processes.across = "learners"
        results |= {name: branching(name, processes) for name in BRANCHES}
        return results | {"overlapping": overlapping(processes), "recomputing": recomputing(processes)}


@pytest.mark.parametrize("name", BRANCHES)
def test_a_backbone_that_leaves_layers_out(name: str, by_two: dict[str, Any]) -> None:
    alone = branching(name, ALONE)
    assert by_two[name].keys() == alone.keys()
    for key, gradient in alone.items():
        if gradient is None:
            assert by_two[name][key] is None, key
        else:
            torch.testing.assert_close(by_two[name][key], gradient, msg=key)
    assert alone["backbone.unused.weight"] is None and alone["backbone.fixed.weight"] is None


def test_gradient_checkpointing(by_two: dict[str, Any]) -> None:
    for key, gradient in recomputing(ALONE).items():
        torch.testing.assert_close(by_two["recomputing"][key], gradient, rtol=1e-4, atol=1e-5, msg=key)


def test_gradients_are_reduced_while_the_backward_pass_goes_on(by_two: dict[str, Any]) -> None:
    happened = by_two["overlapping"]
    assert happened.count("first layer") == 1
    assert 0 < happened.index("first layer") < len(happened) - 1 and happened[0] == happened[-1] == "bucket"


def assert_close(mine: Any, theirs: Any) -> None:
    assert type(mine) is type(theirs)
    if isinstance(mine, (list, dict)):
        assert len(mine) == len(theirs)
        for key in mine if isinstance(mine, dict) else range(len(mine)):
            assert_close(mine[key], theirs[key])
    else:
        assert mine == (pytest.approx(theirs, rel=1e-4, nan_ok=True) if isinstance(mine, float) else theirs)


@pytest.mark.parametrize("name", CASES)
def test_as_one_that_steps_on_both(name: str, by_two: dict[str, Any]) -> None:
    network, reports = trained(name, ProcessGroup())
    other, others = by_two[name]
    assert len(reports) == (3 if "memory holds" in name else 5)
    assert_close(reports, others)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(other.state_dict()[key], value, rtol=1e-4, atol=1e-6)


def test_started_by_train_itself(by_two: dict[str, Any], tmp_path: Path) -> None:
    """And stopped between two epochs, gone on with by two, and by one."""
    config = replace(CONFIG, devices=2)
    whole = model("masks", 4)
    list(dc.train(whole, data(), config))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, by_two["masks"][0].state_dict()[name])
    epochs = dc.train(model("masks", 4), data(), config, checkpoint=tmp_path / "c")
    for _ in range(3):
        next(epochs)
    epochs.close()  # type: ignore[attr-defined]
    begun = (tmp_path / "c").read_bytes()
    resumed = model("masks", 4, seed=5)
    assert [report.number for report in dc.train(resumed, data(), config, checkpoint=tmp_path / "c")] == [2, 3, 4]
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])
    (tmp_path / "c").write_bytes(begun)
    by_one = model("masks", 4, seed=6)
    list(dc.train(by_one, data(), replace(config, devices=1), checkpoint=tmp_path / "c"))
    for name, value in by_one.state_dict().items():
        torch.testing.assert_close(value, whole.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"memory_size": 24}, "`memory_size=24` keeps state of each batch"),
        ({"divide_on": "bank"}, "`divide_on=bank` keeps"),
        ({"loss": "DynamicSoftMarginLoss", "miner": "none"}, "`loss=DynamicSoftMarginLoss` keeps"),
        ({"loss": "P2SGradLoss"}, "`loss=P2SGradLoss` keeps"),
    ],
)
def test_learners_that_remember_are_not_shared_out(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        list(dc.train(model("masks", 4), data(), replace(CONFIG, devices=2, **more)))


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (TrainConfig().num_devices, TrainConfig().batches_per_step) == (1, 1)
    assert TrainConfig(devices=3).batches_per_step == 3
    assert TrainConfig(devices=3, across="batch").batches_per_step == 1
    with pytest.raises(ConfigError, match="`learners_per_step` is 2: use `learners_per_step=3`"):
        TrainConfig(devices=3, learners_per_step=2)
    with pytest.raises(ConfigError, match="`devices` 0"):
        TrainConfig(devices=0)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (TrainConfig().devices, TrainConfig().learners_per_step) == (4, 4)
    assert ALONE.alone


def test_a_run_that_goes_on_keeps_what_is_trained_in_a_group_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = TrainConfig(devices=2, learners_per_step=2)

    def group_of(size: int) -> None:
        for name, value in {"RANK": "0", "WORLD_SIZE": str(size), "MASTER_ADDR": "h", "MASTER_PORT": "1"}.items():
            monkeypatch.setenv(name, value)

    group_of(4)
    with pytest.raises(ConfigError, match="`devices` 4 share out the batches of a step"):
        on_started_group(begun)
    grown = on_started_group(begun, resumed=True)  # more than there are batches in a step
    assert (grown.devices, grown.across, grown.learners_per_step) == (4, "batch", 2)
    group_of(3)
    shrunk = on_started_group(TrainConfig(devices=8, learners_per_step=8), resumed=True)
    assert (shrunk.devices, shrunk.across, shrunk.learners_per_step) == (3, "learners", 8)
    group_of(1)
    assert on_started_group(begun, resumed=True) is begun  # no launcher that would start more: it spawns them
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert on_started_group(begun, resumed=True).devices == 1
