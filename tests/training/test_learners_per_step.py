"""One step of the optimiser on the batches of several learners."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.division import divide
from divcon.errors import ConfigError
from divcon.training.losses import create_objectives
from divcon.training.sampler import EpochPlan, plan_epoch

CONFIG = dc.TrainConfig(
    epochs=1,
    batch_size=12,
    images_per_class=2,
    finetune_epoch=1,
    workers=0,
    loss="TripletMarginLoss",
    miner="none",
    distill_weight=0.0,
    ema_decay=0.0,
)


@pytest.fixture(scope="module")
def images() -> dc.LabeledSet:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(12), 7)
    vectors = (rng.normal(size=(12, 10))[labels] + rng.normal(size=(84, 10))).astype(np.float32)
    names, paths = tuple(map(str, range(12))), pa.array([f"row {row}" for row in range(84)])
    return dc.LabeledSet(labels, names, paths, np.arange(84), "data", vectors=vectors)


def model_of(method: str, learners: int) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    return dc.EmbeddingModel("none", 8, learners, method=method, vector_dim=10, dropout=0.0)


@pytest.mark.parametrize(("method", "learners"), [("single", 1), ("slices", 4), ("masks", 4)])
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_step_is_on_the_mean_of_their_losses(method: str, learners: int, at_once: int, images: dc.LabeledSet) -> None:
    """Against one graph of all losses of a step, of a loop written out; seven batches do not divide by 2 or 3."""
    config = replace(CONFIG, learners_per_step=at_once)
    model, plain = model_of(method, learners), model_of(method, learners)
    report = next(dc.train(model, images, config))

    features = plain.features(images)
    division = divide(features, images.labels, learners, by="image", seed=(0, 0))
    plan = plan_epoch(
        division, images.labels, num_learners=learners, batch_size=12, images_per_class=2, seed=0, epoch=0
    )
    assert len(plan.batches) == 7
    objective = create_objectives(config, plain.head, 12)[-1]
    groups = [{"params": plain.head.linear.parameters(), "lr": config.head_lr}]
    if method == "masks":
        groups.append({"params": [plain.head.masks], "lr": config.chosen_mask_lr})
    optimizer = torch.optim.Adam(groups, weight_decay=1e-4)
    plain.train()
    for start in range(0, 7, at_once):
        losses = []
        for batch in plan.batches[start : start + at_once]:
            targets = torch.from_numpy(images.labels[batch.indices])
            own, full = plain.head(torch.from_numpy(features[batch.indices]), learner=batch.learner, with_full=True)
            losses.append(objective(own, targets) + config.mask_penalty * plain.head.penalty())
            if learners > 1:
                losses[-1] = losses[-1] + objective(full, targets)
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    assert report.batches == 7
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_the_steps_of_an_epoch_hold_each_batch_once() -> None:
    plan = EpochPlan([None] * 7, (), 1)  # type: ignore[list-item]
    for at_once in range(1, 9):
        steps = list(plan.steps(at_once))
        assert [n for step in steps for n in step] == list(range(7))
        assert all(len(step) == at_once for step in steps[:-1]) and len(steps[-1]) <= at_once
        assert list(plan.steps(at_once, steps[-1].start)) == steps[-1:]


def test_none_at_once_is_refused() -> None:
    with pytest.raises(ConfigError, match="`learners_per_step` 0"):
        dc.TrainConfig(learners_per_step=0)


def test_an_image_that_fails_within_a_step_leaves_the_checkpoint_of_the_step_before(
    images: dc.LabeledSet, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, the weights are those of a training that nothing failed."""
    from divcon.errors import ImageError
    from divcon.training.loader import VectorLoader

    config = replace(CONFIG, epochs=3, finetune_epoch=2, learners_per_step=3, memory_size=24, divide_on="bank")
    expected = model_of("masks", 4)
    list(dc.train(expected, images, config))
    batches: Callable = VectorLoader.training_batches
    for fails_at in (3, 4, 5):

        def failing(self, plan, epoch, labels, numbers, fails_at=fails_at):  # type: ignore[no-untyped-def]
            for batch in batches(self, plan, epoch, labels, numbers):
                if epoch == 1 and batch[0] == fails_at:
                    raise ImageError("gone")
                yield batch

        file = tmp_path / str(fails_at)
        with monkeypatch.context() as patched:
            patched.setattr(VectorLoader, "training_batches", failing)
            with pytest.raises(ImageError):
                list(dc.train(model_of("masks", 4), images, config, checkpoint=file))
        model = model_of("masks", 4)
        list(dc.train(model, images, config, checkpoint=file))
        for name, value in model.state_dict().items():
            assert torch.equal(value, expected.state_dict()[name]), (fails_at, name)
