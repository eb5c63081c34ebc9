"""Distance-weighted sampling against a loop in high precision, and where pytorch-metric-learning's goes wrong; the
nearest negatives; both over a memory."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from divcon.training.miners import DistanceWeightedMiner, NearestNegativesMiner


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


def plackett_luce(weights: np.ndarray, draws: int) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of draws without replacement, by enumeration."""
    found = {}
    for sequence in itertools.permutations(np.flatnonzero(weights), draws):
        left, chance = weights.sum(), 1.0
        for j in sequence:
            chance *= weights[j] / left
            left -= weights[j]
        found[tuple(int(j) for j in sequence)] = chance
    return found


def test_draws_without_replacement_follow_the_weights() -> None:
    embeddings, labels = batch(8, classes=3, each=3)
    miner = DistanceWeightedMiner(nonzero_loss_cutoff=2.1, replacement=False)
    expected = plackett_luce(miner.weights(embeddings, labels)[0].double().numpy(), 2)
    torch.manual_seed(0)
    seen, draws = dict.fromkeys(expected, 0), 6000
    for _ in range(draws):
        anchors, _, negatives = miner(embeddings, labels)
        seen[tuple(negatives[anchors == 0].tolist())] += 1
    assert max(abs(seen[key] / draws - chance) for key, chance in expected.items()) < 0.02
    # Unlike with replacement, no anchor has a negative twice.
    assert all(a != b for a, b in seen)


def test_the_nearest_negative_gets_a_third_of_the_draws_without_replacement() -> None:
    """D 128, batches of 20 classes with 4 images each, as in the papers, whose means vary in 8 directions."""
    labels, generator = torch.arange(20).repeat_interleave(4), torch.Generator().manual_seed(0)
    centres = torch.randn(20, 8, generator=generator) @ torch.randn(8, 128, generator=generator) / 8**0.5
    embeddings = F.normalize(centres[labels] + 0.5 * torch.randn(80, 128, generator=generator), dim=1)
    distances = torch.cdist(embeddings, embeddings).masked_fill(labels[:, None] == labels[None, :], 9)
    shares = {}
    for replacement in (True, False):
        torch.manual_seed(0)
        hits = []
        for _ in range(20):
            anchors, _, negatives = DistanceWeightedMiner(replacement=replacement)(embeddings, labels)
            hits.append((negatives == distances.argmin(dim=1)[anchors]).float().mean())
        shares[replacement] = float(torch.stack(hits).mean())
    assert 0.3 < shares[False] <= 1 / 3 + 1e-6
    assert shares[True] > 0.6


@pytest.mark.parametrize("dim", [3, 512])
def test_without_replacement_negatives_without_a_loss_come_last_and_all_before_any_twice(dim: int) -> None:
    embeddings, labels = batch(dim, classes=2, each=4, spread=0.3)
    embeddings[4] = embeddings[0]  # one near negative of class 0; at D 512 its weight leaves the others none
    miner = DistanceWeightedMiner(nonzero_loss_cutoff=0.5, replacement=False)
    anchors, _, negatives = miner(embeddings, labels)
    distances = torch.cdist(embeddings, embeddings)
    for a in range(len(labels)):
        mine = negatives[anchors == a]
        near = {j for j in range(len(labels)) if labels[j] != labels[a] and distances[a, j] < 0.5}
        assert len(set(mine.tolist())) == 3  # of the four that there are
        assert near <= set(mine.tolist()) or len(near) > 3
        assert set(mine[: len(near)].tolist()) <= near or not near
    # More positives than negatives: each negative comes once before any comes twice.
    few = torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    anchors, _, negatives = miner(embeddings, few)
    assert set(negatives[anchors == 0].tolist()) == {5, 6, 7}
    assert len(negatives[anchors == 0]) == 4


def test_a_batch_without_pairs_gives_none() -> None:
    for labels in (torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2])):
        for miner in (DistanceWeightedMiner(), DistanceWeightedMiner(replacement=False), NearestNegativesMiner()):
            triplets = miner(F.normalize(torch.randn(3, 4), dim=1), labels)
            assert [len(part) for part in triplets] == [0, 0, 0]


def test_half_precision_is_mined_in_full() -> None:
    embeddings, labels = batch(128)
    half = embeddings.bfloat16()
    assert DistanceWeightedMiner().weights(half, labels).dtype == torch.float32
    torch.testing.assert_close(
        DistanceWeightedMiner().weights(half, labels), DistanceWeightedMiner().weights(half.float(), labels)
    )


def test_weights_over_a_memory_equal_a_loop() -> None:
    (embeddings, labels), (memory, others) = batch(16), batch(16, seed=1, classes=8, each=2)
    joined, names = torch.cat([embeddings, memory]), torch.cat([labels, others])
    weights = DistanceWeightedMiner().weights(embeddings, labels, memory, others)
    assert weights.shape == (20, 16)
    # Of the joined batch, the rows of the anchors and the columns of the memory; each row by its own largest.
    whole = DistanceWeightedMiner().weights(joined, names)[:20, 20:]
    near = weights.sum(dim=1) > 0
    assert near.any()
    torch.testing.assert_close(
        weights[near] / weights[near].sum(dim=1, keepdim=True), whole[near] / whole[near].sum(dim=1, keepdim=True)
    )


def test_with_a_memory_pairs_come_from_it_without_the_image_itself() -> None:
    (embeddings, labels), (memory, others) = batch(16, classes=3, each=2), batch(16, seed=1, classes=4, each=3)
    memory, others = torch.cat([memory, embeddings]), torch.cat([others, labels])
    own = torch.arange(12, 18)
    for miner in (DistanceWeightedMiner(), DistanceWeightedMiner(replacement=False), NearestNegativesMiner()):
        anchors, positives, negatives = miner(embeddings, labels, memory, others, own)
        expected = [(i, j) for i in range(6) for j in range(18) if labels[i] == others[j] and j != 12 + i]
        assert list(zip(anchors.tolist(), positives.tolist(), strict=True)) == expected
        assert (others[negatives] != labels[anchors]).all()


def test_weights_in_chunks_draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = batch(8, classes=3, each=3)
    expected = DistanceWeightedMiner().weights(embeddings, labels)
    monkeypatch.setattr(DistanceWeightedMiner, "_WEIGHTS_AT_ONCE", 20)  # two rows of nine
    torch.manual_seed(0)
    counts = torch.zeros(9, 9)
    for _ in range(1500):
        anchors, positives, negatives = DistanceWeightedMiner()(embeddings, labels)
        assert len(anchors) == len(positives) == len(negatives) == 18
        counts.index_put_((anchors, negatives), torch.ones(18), accumulate=True)
    drawn, expected = counts / counts.sum(dim=1, keepdim=True), expected / expected.sum(dim=1, keepdim=True)
    assert float((drawn - expected).abs().max()) < 0.04


@given(
    seed=st.integers(0, 10_000),
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=12),
    cutoff=st.sampled_from([0.0, 0.5, 1.0, 1.9]),
)
def test_nearest_negatives_equal_a_loop(seed: int, labels: list[int], cutoff: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(len(labels), 3, generator=generator), dim=1)
    expected = []
    for a in range(len(labels)):
        distance = [float((embeddings[a] - other).norm()) for other in embeddings]
        negatives = [n for n in range(len(labels)) if labels[n] != labels[a]]
        far = sorted((n for n in negatives if distance[n] >= cutoff), key=lambda n: distance[n])
        near = sorted((n for n in negatives if distance[n] < cutoff), key=lambda n: -distance[n])
        ordered = far + near
        positives = [p for p in range(len(labels)) if p != a and labels[p] == labels[a]]
        if ordered:
            expected += [(a, p, ordered[turn % len(ordered)]) for turn, p in enumerate(positives)]
    triplets = NearestNegativesMiner(cutoff)(embeddings, torch.tensor(labels))
    assert list(zip(*(part.tolist() for part in triplets), strict=True)) == expected


@pytest.mark.parametrize(
    "miner", [DistanceWeightedMiner(), DistanceWeightedMiner(replacement=False), NearestNegativesMiner()]
)
def test_embeddings_that_are_zero_or_alike_still_give_every_pair_a_negative(miner: torch.nn.Module) -> None:
    labels = torch.arange(3).repeat_interleave(3)
    for embeddings in (torch.zeros(9, 512), F.normalize(torch.ones(9, 4), dim=1)):
        anchors, positives, negatives = miner(embeddings, labels)
        assert len(anchors) == 18
        assert (labels[anchors] == labels[positives]).all()
        assert (labels[anchors] != labels[negatives]).all()
