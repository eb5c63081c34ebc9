"""Masks and the hierarchy in the loop: what learns when, what children inherit, and that a stop loses nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError
from divcon.training.checkpoint_file import read_checkpoint
from divcon.training.setup import check, double_learners, set_up, training_device

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=7,
    batch_size=16,
    images_per_class=2,
    joint_epoch=5,
    finetune_epoch=6,
    workers=0,
    distill_weight=0.0,
    ema_decay=0.0,
)
GROWING = replace(CONFIG, hierarchy=True)


def weights(model: dc.EmbeddingModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.heavy
def test_learned_masks_part_until_the_joint_phase_and_then_stay(few: Benchmark, tiny_model: Make) -> None:
    model = tiny_model(4, method="masks")
    masks, penalties = [], []
    for report in dc.train(model, few.train, replace(CONFIG, lr=1e-3, mask_penalty=0.1)):
        masks.append(model.head.masks.detach().clone())
        penalties.append(report.penalty)
    assert penalties[5:] == [None, None]
    falling = [1, *penalties[:5], 0]  # 1 before the first batch
    assert all(later < before for before, later in itertools.pairwise(falling))
    assert not torch.equal(masks[3], masks[4])
    assert torch.equal(masks[4], masks[5])
    assert torch.equal(masks[4], masks[6])


@pytest.mark.heavy
def test_the_penalty_pushes_masks_apart(few: Benchmark, tiny_model: Make) -> None:
    def last_penalty(weight: float) -> float:
        model = tiny_model(4, method="masks")
        config = replace(CONFIG, epochs=2, joint_epoch=None, finetune_epoch=2, lr=1e-3, mask_penalty=weight)
        return [report.penalty for report in dc.train(model, few.train, config)][-1]

    assert last_penalty(10.0) < last_penalty(0.0)


@pytest.mark.heavy
@pytest.mark.parametrize("options", [{"kind": "fixed"}, {"kind": "learned", "full": "masked"}])
def test_other_masks_train_in_every_phase(few: Benchmark, tiny_model: Make, options: dict[str, str]) -> None:
    model = tiny_model(2, method="masks", head_options=options)
    before, masks = weights(model), None
    for report in dc.train(model, few.train, CONFIG):
        if report.number == 4:
            masks = model.head.masks.detach().clone()
    assert not torch.equal(before["head.linear.weight"], model.head.linear.weight)
    assert torch.equal(masks, model.head.masks)
    assert torch.equal(before["head.masks"], model.head.masks) == (options["kind"] == "fixed")


@pytest.mark.heavy
def test_a_hierarchy_doubles_at_each_division(few: Benchmark, tiny_model: Make) -> None:
    model = tiny_model(4, method="masks")
    reports = list(dc.train(model, few.train, GROWING))
    assert [r.division.num_learners for r in reports] == [1, 1, 2, 2, 4, 4, 1]
    assert [r.redivided for r in reports] == [True, False, True, False, True, False, True]
    assert reports[0].kept_pairs == 1
    # All were with the one learner whose children the two are.
    assert reports[2].changed == 0
    parent, child = reports[2].division, reports[4].division
    both = (parent.learner >= 0) & (child.learner >= 0)
    assert reports[4].changed == pytest.approx(float((parent.learner != child.merged().learner)[both].mean()))
    assert model.num_learners == 4


@pytest.mark.heavy
def test_stopped_and_resumed_a_hierarchy_is_the_same_bit_for_bit(
    few: Benchmark, tiny_model: Make, tmp_path: Path
) -> None:
    config = replace(GROWING, freeze_backbone_epochs=1, small_classes="fill", loss="ProxyAnchorLoss")
    straight = tiny_model(4, method="masks")
    reports = list(dc.train(straight, few.train, config))
    for stop in (1, 2, 3, 4, 5):
        file = tmp_path / f"checkpoint{stop}"
        for _ in islice(dc.train(tiny_model(4, method="masks"), few.train, config, checkpoint=file), stop + 1):
            pass
        again = tiny_model(4, seed=7, method="masks")
        rest = list(dc.train(again, few.train, config, checkpoint=file))
        assert [r.loss for r in rest] == [r.loss for r in reports[stop:]]
        assert [r.penalty for r in rest] == [r.penalty for r in reports[stop:]]
        assert same(weights(again), weights(straight))


@pytest.mark.parametrize("optimizer_name", ["adam", "adamw"])
def test_children_inherit_masks_and_losses_but_no_moments_of_masks(
    few: Benchmark, tiny_model: Make, optimizer_name: str
) -> None:
    model = tiny_model(4, method="masks")
    config = replace(GROWING, loss="ProxyNCALoss", optimizer=optimizer_name)
    objectives = check(model, few.train, config)
    optimizer = set_up(model, objectives, config, training_device(config))
    assert model.num_learners == 1
    targets = torch.from_numpy(np.unique(few.train.labels[:32], return_inverse=True)[1])
    for step in range(4):
        if step == 2:
            double_learners(model, objectives, optimizer)
        learner = step % model.num_learners
        loss = objectives[learner](model.head(torch.randn(32, model.num_features), learner=learner), targets)
        optimizer.zero_grad()
        (loss + model.head.penalty()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    parents = [{k: v.clone() for k, v in objectives[k].state_dict().items()} for k in range(2)]
    masks = model.head.masks.detach().clone()
    state = optimizer.state[model.head.masks]
    assert all(torch.any(state[name] != 0) for name in ("exp_avg", "exp_avg_sq"))
    proxies = [optimizer.state[next(objectives[k].parameters())]["exp_avg"].clone() for k in range(2)]
    assert not torch.equal(proxies[0], proxies[1])
    double_learners(model, objectives, optimizer)
    assert model.num_learners == 4
    for child in range(4):
        assert torch.equal(model.head.masks[child], masks[child // 2])
        assert same(dict(objectives[child].state_dict()), parents[child // 2])
        assert torch.equal(optimizer.state[next(objectives[child].parameters())]["exp_avg"], proxies[child // 2])
    assert float(state["step"]) == 0
    assert not any(torch.any(state[name] != 0) for name in ("exp_avg", "exp_avg_sq"))
    # Copies, not the same tensors: what one child learns is not its sibling's.
    first, second = (optimizer.state[next(objectives[k].parameters())]["exp_avg"] for k in range(2))
    assert first.data_ptr() != second.data_ptr()


def test_a_backbone_at_rest_keeps_its_weights(few: Benchmark, tiny_model: Make) -> None:
    config = replace(CONFIG, freeze_backbone_epochs=1, joint_epoch=None)
    model = tiny_model(2)
    before, moved = weights(model), []
    for _ in dc.train(model, few.train, config):
        now = weights(model)
        parameters = [f"backbone.{name}" for name, _ in model.backbone.named_parameters()]
        moved.append(any(not torch.equal(now[name], before[name]) for name in parameters))
        assert not torch.equal(now["head.linear.weight"], before["head.linear.weight"])
        before = now
    assert moved == [False, True, False, True, False, True, True]


def test_a_dead_mask_has_a_warning(few: Benchmark, tiny_model: Make) -> None:
    model = tiny_model(2, method="masks")
    with torch.no_grad():
        model.head.masks[1] = -1.0
    first = next(dc.train(model, few.train, CONFIG))
    assert any("learner 1 is dead: its mask is zero in every dimension" in w for w in first.warnings)
    assert not any("learner 0" in w for w in first.warnings)
    assert np.isfinite(first.loss)


def test_a_hierarchy_that_cannot_be_is_refused(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    def refused(model: dc.EmbeddingModel, config: dc.TrainConfig, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            next(dc.train(model, few.train, config))

    refused(
        tiny_model(4, method="slices"), GROWING, "learners of method slices cannot be split in two; use `method=masks`"
    )
    refused(tiny_model(3, method="masks"), GROWING, "`num_learners` must be 2, 4, 8, ..., not 3")
    refused(tiny_model(8, method="masks"), GROWING, "all 8 learners from epoch 6 on, and the subspace .* epoch 5")
    early = replace(GROWING, redivide_until=4)
    refused(tiny_model(4, method="masks"), early, "`redivide_until` 4: .* division of epoch 4; use `redivide_until=5`")
    # Three classes cannot be in four clusters with two classes each: what was done until then is kept.
    small = few.train.of_classes(few.train.classes[:3])
    file = tmp_path / "checkpoint"
    config = replace(GROWING, batch_size=4)
    done = []
    with pytest.raises(DataError, match=r"the hierarchy cannot split learner . of .: of its .* images"):
        for report in dc.train(tiny_model(4, method="masks"), small, config, checkpoint=file):
            done.append(report.number)
    assert read_checkpoint(file)["epochs_done"] == len(done) >= 2


def test_an_unfinished_hierarchy_warm_starts_the_backbone_only(tiny_model: Make) -> None:
    young, model = tiny_model(4, method="masks", seed=1), tiny_model(4, method="masks")
    young.head.start_with_one()
    head = weights(model)["head.linear.weight"]
    assert not model.warm_start(young)
    assert model.num_learners == 4
    assert torch.equal(model.head.linear.weight, head)
    assert same(dict(model.backbone.state_dict()), dict(young.backbone.state_dict()))
    assert model.warm_start(tiny_model(4, method="masks", seed=2))
