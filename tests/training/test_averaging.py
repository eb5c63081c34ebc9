"""The average of the weights: what is evaluated and saved has it, and training does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, Stopped

Make = Callable[..., dc.EmbeddingModel]
PLAIN = dc.TrainConfig(
    epochs=4, batch_size=16, images_per_class=2, finetune_epoch=3, joint_epoch=2, workers=0, ema_decay=0.0
)
AVERAGED = replace(PLAIN, ema_decay=0.7)


def weights(model: dc.EmbeddingModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_each_epoch_is_evaluated_with_the_average_and_training_goes_on_without(
    few: Benchmark, tiny_model: Make
) -> None:
    plain = tiny_model()
    trained, losses = [], []
    for report in dc.train(plain, few.train, PLAIN):
        trained.append(weights(plain))
        losses.append(report.loss)
    average = trained[0]
    averaged = tiny_model()
    for number, report in enumerate(dc.train(averaged, few.train, AVERAGED)):
        if number:
            average = {name: 0.7 * value + 0.3 * trained[number][name] for name, value in average.items()}
        assert report.loss == losses[number]
        for name, value in weights(averaged).items():
            torch.testing.assert_close(value, average[name])
    for name, value in weights(averaged).items():
        torch.testing.assert_close(value, average[name])  # at the end, too


def test_resumed_it_is_the_same_bit_for_bit(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    straight = tiny_model()
    list(dc.train(straight, few.train, AVERAGED))
    file = tmp_path / "checkpoint"
    # The third epoch is asked for, so that the checkpoint has the second.
    list(islice(dc.train(tiny_model(), few.train, AVERAGED, checkpoint=file), 3))
    resumed = tiny_model()
    assert [report.number for report in dc.train(resumed, few.train, AVERAGED, checkpoint=file)] == [2, 3]
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name])
    done = tiny_model()
    assert list(dc.train(done, few.train, AVERAGED, checkpoint=file)) == []
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(done)[name])


def test_stopped_while_an_epoch_is_evaluated_it_is_averaged_once(
    few: Benchmark, tiny_model: Make, tmp_path: Path
) -> None:
    straight = tiny_model()
    list(dc.train(straight, few.train, AVERAGED))
    file = tmp_path / "checkpoint"
    epochs = dc.train(tiny_model(), few.train, AVERAGED, checkpoint=file)
    list(islice(epochs, 2))
    with pytest.raises(Stopped):
        epochs.throw(Stopped("while it is evaluated", 2))  # type: ignore[attr-defined]
    resumed = tiny_model()
    assert [report.number for report in dc.train(resumed, few.train, AVERAGED, checkpoint=file)] == [1, 2, 3]
    for name, value in weights(straight).items():
        assert torch.equal(value, weights(resumed)[name])


def test_left_after_an_epoch_the_model_is_the_one_that_was_evaluated(few: Benchmark, tiny_model: Make) -> None:
    model = tiny_model()
    evaluated = {}
    for report in dc.train(model, few.train, AVERAGED):
        evaluated = weights(model)
        if report.number == 1:
            break
    for name, value in weights(model).items():
        assert torch.equal(value, evaluated[name])


def test_an_error_of_the_caller_s_leaves_the_weights_to_train_on(few: Benchmark, tiny_model: Make) -> None:
    plain, model = tiny_model(), tiny_model()
    list(islice(dc.train(plain, few.train, PLAIN), 2))
    epochs = dc.train(model, few.train, AVERAGED)
    list(islice(epochs, 2))
    with pytest.raises(RuntimeError, match="of the caller"):
        epochs.throw(RuntimeError("of the caller"))  # type: ignore[attr-defined]
    for name, value in weights(plain).items():
        assert torch.equal(value, weights(model)[name])


def test_a_hierarchy_that_doubles_starts_its_average_again(few: Benchmark, tiny_model: Make) -> None:
    settings = {"epochs": 3, "redivide_every": 1, "finetune_epoch": 3, "joint_epoch": 3, "hierarchy": True}
    models = [tiny_model(num_learners=2, method="masks") for _ in range(2)]
    for config, model in zip((PLAIN, AVERAGED), models, strict=True):
        list(islice(dc.train(model, few.train, replace(config, **settings)), 2))
    for name, value in weights(models[0]).items():
        assert torch.equal(value, weights(models[1])[name])


def test_a_decay_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="ema_decay"):
        dc.TrainConfig(ema_decay=1.0)
