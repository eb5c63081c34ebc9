"""Similarity distillation: the loss against a loop, what it gives a gradient, and its place in training."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError
from divcon.training.losses import similarity_distillation

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=3, batch_size=16, images_per_class=2, finetune_epoch=2, joint_epoch=1, workers=0, distill_weight=10.0
)


def by_loops(embeddings: torch.Tensor, features: torch.Tensor, temperature: float) -> float:
    total, count = 0.0, len(embeddings)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        rows = []
        for x in (embeddings, features):
            cosines = [float(F.cosine_similarity(x[i], x[j], dim=0)) / temperature for j in others]
            weights = [math.exp(c) for c in cosines]
            rows.append([w / sum(weights) for w in weights])
        student, teacher = rows
        total += sum(t * (math.log(t) - math.log(s)) for s, t in zip(student, teacher, strict=True))
    return temperature**2 * total / count


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_it_equals_a_loop(temperature: float) -> None:
    torch.manual_seed(0)
    embeddings, features = F.normalize(torch.randn(7, 5), dim=1), 3 * torch.rand(7, 11)
    loss = float(similarity_distillation(embeddings, features, temperature))
    assert loss == pytest.approx(by_loops(embeddings, features, temperature), rel=1e-4)


def test_it_is_zero_where_similarities_agree_and_for_one_image() -> None:
    x = F.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    assert float(similarity_distillation(x, 5 * x)) == pytest.approx(0, abs=1e-6)
    assert float(similarity_distillation(x[:1], x[:1])) == 0


def test_features_get_no_gradient() -> None:
    torch.manual_seed(0)
    embeddings = F.normalize(torch.randn(6, 4), dim=1).requires_grad_()
    features = torch.randn(6, 8, requires_grad=True)
    similarity_distillation(embeddings, features).backward()
    assert features.grad is None
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0


def test_it_trains_in_every_phase_and_is_reported(few: Benchmark, tiny_model: Make) -> None:
    with_it = list(dc.train(tiny_model(), few.train, CONFIG))
    without = list(dc.train(tiny_model(), few.train, replace(CONFIG, distill_weight=0.0)))
    assert all(report.distillation is not None and report.distillation > 0 for report in with_it)
    assert all(report.distillation is None for report in without)
    assert with_it[0].to_dict()["distillation"] == with_it[0].distillation
    # It changes what is learned: the losses of the second epoch differ.
    assert with_it[1].loss != without[1].loss


def test_a_stop_within_an_epoch_loses_none_of_its_values(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    straight = list(dc.train(tiny_model(), few.train, CONFIG))
    file = tmp_path / "checkpoint"
    model = tiny_model()
    steps = iter(range(3))

    def stop_in_the_first_epoch(progress: dc.Progress) -> None:
        if progress.stage == "train" and next(steps, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        context = dc.Context(on_progress=stop_in_the_first_epoch)
        list(dc.train(model, few.train, replace(CONFIG, checkpoint_minutes=1e-9), checkpoint=file, context=context))
    resumed = list(islice(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file), 3))
    assert [r.distillation for r in resumed] == [r.distillation for r in straight]
    np.testing.assert_array_equal([r.loss for r in resumed], [r.loss for r in straight])


def test_a_run_of_an_earlier_version_is_distilled_as_it_was(few: Benchmark, tiny_model: Make) -> None:
    """It kept null where the weight was chosen: images of several learners were distilled."""
    assert dc.TrainConfig().distill_weight == 0
    default = replace(CONFIG, epochs=1, finetune_epoch=1, joint_epoch=1, distill_weight=None)
    assert next(dc.train(tiny_model(num_learners=2), few.train, default)).distillation is not None
    assert next(dc.train(tiny_model(num_learners=1), few.train, default)).distillation is None
    vectors = np.random.default_rng(0).normal(size=(len(few.train), 8)).astype(np.float32)
    model = dc.EmbeddingModel("none", 8, 2, vector_dim=8)
    assert next(dc.train(model, (vectors, few.train.labels), default)).distillation is None


def test_values_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="distill_weight"):
        dc.TrainConfig(distill_weight=-1)
    with pytest.raises(ConfigError, match="distill_temperature"):
        dc.TrainConfig(distill_temperature=0)
