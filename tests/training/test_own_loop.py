"""The parts of training in loops of one's own: batches, losses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import divcon as dc
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.training import LearnerBatchSampler, create_losses, plan_epoch

RNG = np.random.default_rng(0)
LABELS = RNG.permutation(np.repeat(np.arange(20), 6)) * 3 + 7
FEATURES = RNG.normal(size=(60, 8))[LABELS - 7] + 0.5 * RNG.normal(size=(len(LABELS), 8))


def test_a_loader_gives_the_batches_of_the_plan() -> None:
    sampler = LearnerBatchSampler(torch.from_numpy(LABELS), 12, 3, seed=4)
    data = TensorDataset(torch.arange(len(LABELS)), torch.from_numpy(LABELS))
    loader = DataLoader(data, batch_sampler=sampler)
    assert set(sampler.learners) == {0} and len(loader) == len(LABELS) // 12
    sampler.division = division = dc.divide(FEATURES, sampler.labels, 3)
    assert sampler.labels.tolist() == ((LABELS - 7) // 3).tolist()
    seen = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        plan = plan_epoch(division, sampler.labels, batch_size=12, images_per_class=3, seed=4, epoch=epoch)
        assert len(loader) == len(plan.batches)
        for batch, learner, (rows, targets) in zip(plan.batches, sampler.learners, loader, strict=True):
            assert (batch.learner, batch.indices.tolist()) == (learner, rows.tolist())
            assert set(division.learner[rows.numpy()]) == {learner}
            assert (targets.numpy() == LABELS[rows.numpy()]).all()
        seen.append([batch.indices.tolist() for batch in plan.batches])
    assert seen[0] != seen[1]


def test_ranks_share_out_the_batches() -> None:
    division = dc.divide(FEATURES, LABELS, 3)
    whole = LearnerBatchSampler(LABELS, 12, 3, division=division)
    ranks = [LearnerBatchSampler(LABELS, 12, 3, division=division, rank=rank, world_size=3) for rank in range(3)]
    steps = len(whole) // 3
    assert [len(rank) for rank in ranks] == [steps] * 3
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    assert together == list(whole)[: 3 * steps]
    assert sorted(rank.learners[0] for rank in ranks) == [0, 1, 2]  # a step trains all learners


def test_what_no_batch_can_be_is_refused() -> None:
    with pytest.raises(ValueError, match="images_per_class 7 in a batch of 12"):
        LearnerBatchSampler(LABELS, 12, 7)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        LearnerBatchSampler(LABELS, 12, 3, rank=2, world_size=2)
    division = dc.divide(FEATURES, LABELS, 3)
    with pytest.raises(ValueError, match="the division is of 120 items, and there are 10 labels"):
        LearnerBatchSampler(LABELS[:10], 4, 2, division=division)


def test_the_losses_are_those_of_training() -> None:
    from divcon.training.losses import create_objectives

    head = create_head("slices", 8, 6, 3)
    losses = create_losses(head, 20, loss="ProxyAnchorLoss", loss_options={"margin": 0.2}, seed=5)
    config = dc.TrainConfig(loss="ProxyAnchorLoss", loss_options={"margin": 0.2}, seed=5)
    theirs = create_objectives(dataclasses.replace(config, images_per_class=4), head, 20)
    assert len(losses) == 4 and sum(p.numel() for p in losses.parameters()) == 20 * (2 + 2 + 2 + 6)
    features, labels = torch.from_numpy(FEATURES[:16]).float(), torch.from_numpy((LABELS[:16] - 7) // 3)
    for learner, place in ((0, 0), (2, 2), (None, -1)):
        embeddings = head.eval()(features, learner=learner)
        mine = losses[place](embeddings, labels)
        assert mine.item() == theirs[place](embeddings, labels).item() and mine.requires_grad
    with pytest.raises(ConfigError, match="did you mean 'ProxyAnchorLoss'"):
        create_losses(head, 20, loss="ProxyAnchrLoss")


def test_the_page_has_a_loop_of_sixty_lines_without_the_parts_that_train_calls() -> None:
    page = Path(__file__).parents[2] / "docs" / "extending" / "own_loop.md"
    loop = page.read_text().split("```python\n")[1].split("```")[0]
    assert len(loop.splitlines()) <= 60
    assert "dc.divide(" in loop and "dc.train" not in loop and "TrainConfig" not in loop
