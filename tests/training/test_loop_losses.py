"""The loop with losses that remember: proxies of absent classes, a memory, a histogram; stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.training.cross_batch_memory import CrossBatchMemory
from divcon.training.proxies import ClusterProxies

Make = Callable[..., dc.EmbeddingModel]


@pytest.mark.heavy
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "ProxyAnchorLoss", "divide_by": "class"},
        {"loss": "MarginLoss", "memory_size": 24, "loss_options": {"learn_beta": True}},
        {"loss": "MultiSimilarityLoss", "memory_size": 16},
        {"loss": "DynamicSoftMarginLoss"},
    ],
)
def test_stopped_in_the_midst_of_a_division_and_resumed_it_is_the_same_bit_for_bit(
    options: dict[str, Any], few: Benchmark, tiny_model: Make, tmp_path: Path
) -> None:
    config = dc.TrainConfig(epochs=4, batch_size=16, images_per_class=2, finetune_epoch=3, workers=0, **options)
    expected = [report.loss for report in dc.train(tiny_model(), few.train, config)]
    losses = [r.loss for r in islice(dc.train(tiny_model(), few.train, config, checkpoint=tmp_path / "c"), 2)]
    # The state after the first epoch, from which the division of epochs 0 and 1 goes on.
    losses += [r.loss for r in dc.train(tiny_model(seed=5), few.train, config, checkpoint=tmp_path / "c")]
    assert len(losses) == 5
    assert losses == [*expected[:2], *expected[1:]]


def test_an_objective_has_its_cluster_s_classes_and_an_empty_memory_at_a_new_division(
    few: Benchmark, tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    emptied: list[int] = []
    set_classes, reset = ClusterProxies.set_classes, CrossBatchMemory.reset
    monkeypatch.setattr(
        ClusterProxies, "set_classes", lambda self, classes: (counts.append(len(classes)), set_classes(self, classes))
    )
    monkeypatch.setattr(CrossBatchMemory, "reset", lambda self: (emptied.append(id(self)), reset(self)))
    config = dc.TrainConfig(
        epochs=3,
        batch_size=16,
        images_per_class=2,
        finetune_epoch=3,
        workers=0,
        memory_size=32,
        divide_by="class",
        loss_options={"learn_beta": True, "num_classes": 24},
    )
    torch.manual_seed(0)
    reports = list(dc.train(tiny_model(), few.train, config))
    assert [report.redivided for report in reports] == [True, False, True]
    assert len(counts) == 6
    assert all(counts[2 * epoch] + counts[2 * epoch + 1] == 24 for epoch in range(3))
    assert len(emptied) == 4
