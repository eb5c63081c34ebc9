"""Distance-weighted sampling against a loop in high precision, and where pytorch-metric-learning's goes wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from divcon.train.miner import DistanceWeightedMiner


def batch(
    dim: int, seed: int = 0, classes: int = 5, each: int = 4, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(classes).repeat_interleave(each)
    noise = torch.randn(classes * each, dim, generator=generator)
    return F.normalize(centres[labels] + spread * noise, dim=1), labels


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 512])
def test_weights_equal_a_loop(dim: int) -> None:
    embeddings, labels = batch(dim)
    weights = DistanceWeightedMiner().weights(embeddings, labels).double().numpy()
    points = embeddings.double().numpy()
    for i in range(len(labels)):
        logs = {}
        for j in range(len(labels)):
            distance = float(np.linalg.norm(points[i] - points[j]))
            if labels[j] != labels[i] and distance < 1.4:
                d = max(distance, 0.5)
                logs[j] = -((dim - 2) * math.log(d) + (dim - 3) / 2 * math.log(1 - d * d / 4))
        expected = np.zeros(len(labels))
        if logs:
            for j, log in logs.items():
                expected[j] = math.exp(log - max(logs.values()))
        else:
            expected[(labels != labels[i]).numpy()] = 1
        np.testing.assert_allclose(weights[i] / weights[i].sum(), expected / expected.sum(), atol=2e-3)


def test_every_positive_pair_is_kept_once_with_a_negative_of_another_class() -> None:
    embeddings, labels = batch(32)
    anchors, positives, negatives = DistanceWeightedMiner()(embeddings, labels)
    pairs = list(zip(anchors.tolist(), positives.tolist(), strict=True))
    n = len(labels)
    assert sorted(pairs) == [(i, j) for i in range(n) for j in range(n) if i != j and labels[i] == labels[j]]
    assert all(labels[a] != labels[b] for a, b in zip(anchors.tolist(), negatives.tolist(), strict=True))


def test_one_confusable_pair_does_not_silence_the_other_anchors() -> None:
    # At D 512 random unit vectors are 1.41 apart: with one near pair, PML's single maximum leaves the rest no weight.
    from pytorch_metric_learning.miners import DistanceWeightedMiner as Theirs

    embeddings, labels = batch(512, classes=8, spread=0.6)
    embeddings[4] = F.normalize(embeddings[0] + 0.01 * embeddings[4], dim=0)
    ours = DistanceWeightedMiner()(embeddings, labels)
    theirs = Theirs()(embeddings, labels)
    assert len(set(ours[0].tolist())) == len(labels)
    assert len(set(theirs[0].tolist())) < len(labels)


def test_an_anchor_without_near_negatives_draws_from_all_of_them() -> None:
    embeddings = torch.eye(6)  # all 1.414 apart
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    weights = DistanceWeightedMiner().weights(embeddings, labels)
    assert torch.equal(weights, (labels[:, None] != labels[None, :]).float())


def test_draws_follow_the_weights() -> None:
    embeddings, labels = batch(8, classes=3, each=3)
    miner = DistanceWeightedMiner()
    weights = miner.weights(embeddings, labels)
    torch.manual_seed(0)
    counts = torch.zeros_like(weights)
    for _ in range(3000):
        anchors, _, negatives = miner(embeddings, labels)
        counts.index_put_((anchors, negatives), torch.ones(len(anchors)), accumulate=True)
    expected = weights / weights.sum(dim=1, keepdim=True)
    assert float((counts / counts.sum(dim=1, keepdim=True) - expected).abs().max()) < 0.02


def test_a_batch_without_pairs_gives_none() -> None:
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])):
        triplets = DistanceWeightedMiner()(F.normalize(torch.randn(3, 4), dim=1), labels)
        assert [len(part) for part in triplets] == [0, 0, 0]


def test_half_precision_is_mined_in_full() -> None:
    embeddings, labels = batch(128)
    half = embeddings.bfloat16()
    assert DistanceWeightedMiner().weights(half, labels).dtype == torch.float32
    torch.testing.assert_close(
        DistanceWeightedMiner().weights(half, labels), DistanceWeightedMiner().weights(half.float(), labels)
    )
