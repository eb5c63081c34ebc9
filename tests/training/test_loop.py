"""The loop: what each phase trains, that it learns, and that a stop loses nothing."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, ImageError, NonFiniteError, RunError
from divcon.training import Phase

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=5,
    batch_size=16,
    images_per_class=2,
    finetune_epoch=4,
    joint_epoch=3,
    workers=0,
    distill_weight=0.0,
    ema_decay=0.0,
)


def weights(model: dc.EmbeddingModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def straight(few: Benchmark) -> tuple[dict[str, torch.Tensor], list]:
    """The weights and reports of a training that was never stopped."""
    torch.manual_seed(0)
    model = dc.EmbeddingModel("test_resnet", 16, 2, pretrained=False, image_size=32)
    reports = list(dc.train(model, few.train, CONFIG))
    return weights(model), reports


def test_phases_divisions_and_what_is_reported(straight: tuple, few: Benchmark) -> None:
    _, reports = straight
    assert [r.phase for r in reports] == [*[Phase.SUBSPACE] * 3, Phase.JOINT, Phase.FINETUNE]
    assert [r.redivided for r in reports] == [True, False, True, False, True]
    assert [r.division.num_learners for r in reports] == [2, 2, 2, 2, 1]
    n = len(few.train)
    for report in reports:
        line = report.to_dict()
        assert sum(line["sizes"]) + line["left_out"] == n
        assert line["batches"] == n // 16
        assert line["images"] == sum(16 for _ in range(line["batches"]))
        assert len(line["learner_loss"]) == len(line["sizes"]) == len(line["classes"])
        assert 0 < line["kept_pairs"] <= 1
        assert line["kept_pairs"] == pytest.approx(
            report.division.kept_pairs(np.unique(few.train.labels, return_inverse=True)[1])
        )
        assert math.isfinite(line["loss"])
        assert line["loss"] == pytest.approx(np.average(list(line["learner_loss"]), weights=counts(report)), rel=1e-5)
    assert reports[0].changed is None
    assert 0 <= reports[2].changed <= 1
    assert 0 <= reports[2].nmi_previous <= 1
    assert reports[2].changed == (
        (reports[2].division.learner != reports[0].division.learner)[
            (reports[2].division.learner >= 0) & (reports[0].division.learner >= 0)
        ].mean()
    )


def counts(report: object) -> list[int]:
    """Batches of each learner, which take turns."""
    k, number = report.division.num_learners, report.batches  # type: ignore[attr-defined]
    first = report.number * number  # type: ignore[attr-defined]
    return [sum((first + t) % k == learner for t in range(number)) for learner in range(k)]


@pytest.mark.heavy
def test_stopped_after_any_epoch_and_resumed_it_is_the_same_bit_for_bit(
    straight: tuple, few: Benchmark, tiny_model: Make, tmp_path: Path
) -> None:
    expected, reports = straight
    for stop in (1, 2, 4):
        file = tmp_path / f"checkpoint{stop}"
        # A generator that is left after its report has not kept that epoch yet: one more is begun, and lost.
        for _ in islice(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file), stop + 1):
            pass
        again = tiny_model(seed=7)
        rest = list(dc.train(again, few.train, replace(CONFIG, workers=2), checkpoint=file))
        assert [r.number for r in rest] == list(range(stop, 5))
        assert same(weights(again), expected)
        assert [r.loss for r in rest] == [r.loss for r in reports[stop:]]
        for mine, theirs in zip(rest, reports[stop:], strict=True):
            np.testing.assert_array_equal(mine.division.learner, theirs.division.learner)
            assert (mine.changed, mine.nmi_previous) == (theirs.changed, theirs.nmi_previous)


def test_a_finished_training_yields_nothing(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, epochs=1, finetune_epoch=1, joint_epoch=None)
    model = tiny_model()
    list(dc.train(model, few.train, config, checkpoint=tmp_path / "c"))
    again = tiny_model(seed=3)
    assert list(dc.train(again, few.train, config, checkpoint=tmp_path / "c")) == []
    assert same(weights(again), weights(model))


@pytest.mark.heavy
def test_workers_change_nothing(straight: tuple, few: Benchmark, tiny_model: Make) -> None:
    for workers in (1, 4):
        model = tiny_model()
        list(dc.train(model, few.train, replace(CONFIG, workers=workers)))
        assert same(weights(model), straight[0])


def test_seeds_change_everything(straight: tuple, few: Benchmark, tiny_model: Make) -> None:
    model = tiny_model()
    reports = list(dc.train(model, few.train, replace(CONFIG, seed=1)))
    assert reports[0].loss != straight[1][0].loss


def test_a_resume_with_other_settings_or_data_is_refused(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    for _ in islice(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file), 2):
        pass
    with pytest.raises(RunError, match=r"`batch_size`: 16 then, 20 now"):
        next(dc.train(tiny_model(), few.train, replace(CONFIG, batch_size=20), checkpoint=file))
    fewer = few.train.subset(np.arange(len(few.train) - 1))
    with pytest.raises(RunError, match="images or their labels have changed"):
        next(dc.train(tiny_model(), fewer, CONFIG, checkpoint=file))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        next(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file))


def test_learners_train_their_own_slice_and_the_end_trains_all(few: Benchmark, tiny_model: Make) -> None:
    # With the moments and the decay of Adam out of the way, a learner that gets no batch keeps its weights.
    config = replace(CONFIG, epochs=2, weight_decay=0.0, full_weight=0.0, joint_epoch=None, finetune_epoch=2)
    fewest = few.train.subset(np.arange(30))  # one batch an epoch: the learners' turns alternate by epoch
    model = tiny_model(method="slices")
    before = model.head.linear.weight.detach().clone()
    training = dc.train(model, fewest, config)
    next(training)
    changed = (model.head.linear.weight.detach() != before).any(dim=1)
    assert changed.tolist() == [True] * 8 + [False] * 8
    assert all(p.grad is not None for p in model.backbone.parameters())
    training.close()

    model = tiny_model(method="slices")
    next(dc.train(model, fewest, replace(config, finetune_epoch=0)))
    assert (model.head.linear.weight.detach() != before).any(dim=1).all()


def test_one_learner_equals_a_plain_loop(few: Benchmark, tiny_model: Make) -> None:
    """`single` is ordinary metric learning: the same batches through a loop written out."""
    from divcon.data.loading import Decoded
    from divcon.data.transforms import TrainTransform
    from divcon.division import Division
    from divcon.training.losses import create_objectives
    from divcon.training.sampler import plan_epoch

    config = replace(CONFIG, epochs=2, joint_epoch=None, finetune_epoch=None, loss="TripletMarginLoss", miner="none")
    model = tiny_model(num_learners=1)
    losses = [r.loss for r in dc.train(model, few.train, config)]

    plain = tiny_model(num_learners=1)
    labels = np.unique(few.train.labels, return_inverse=True)[1]
    objective = create_objectives(config, plain.head, 24)[-1]
    optimizer = torch.optim.Adam(
        [
            {"params": plain.backbone.parameters(), "lr": config.lr},
            {"params": plain.head.parameters(), "lr": config.head_lr},
        ],
        weight_decay=config.weight_decay,
    )
    transform = TrainTransform(32, interpolation=plain.preprocessing.interpolation, min_scale=0.08, flip=False)
    decoded = Decoded(few.train, plain.eval_transform, transform, config.seed)
    plain.to(memory_format=torch.channels_last)
    for epoch in range(2):
        plain.train()
        position, total = 0, []
        plan = plan_epoch(Division.whole(labels), labels, batch_size=16, images_per_class=2, seed=0, epoch=epoch)
        for number, batch in enumerate(plan.batches):
            pixels = torch.stack([decoded[int(i), epoch, position + j][0] for j, i in enumerate(batch.indices)])
            torch.manual_seed(int(np.random.SeedSequence([0, epoch, number]).generate_state(1, np.uint64)[0]))
            position += len(batch.indices)
            images = plain.normalize(pixels).contiguous(memory_format=torch.channels_last)
            loss = objective(plain(images), torch.from_numpy(labels[batch.indices]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total.append(float(loss.detach()))
        assert losses[epoch] == pytest.approx(np.mean(total), rel=1e-5)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.heavy
def test_it_learns(demo: Benchmark, subset: Callable[[LabeledSet, int], LabeledSet]) -> None:
    """Real images, real weights: two epochs improve the embedding of classes that are not trained on."""
    torch.manual_seed(0)
    model = dc.EmbeddingModel("tf_efficientnet_lite0", 64, 2, image_size=32)
    test = subset(demo.query, 30)
    # Over seeds, MAP@R of these 193 queries grows by 4.6 to 6.3 points.
    before = dc.evaluate(model, test, clustering=False)["map_at_r"]
    config = dc.TrainConfig(epochs=2, batch_size=40, workers=0, redivide_every=1)
    losses = [r.loss for r in dc.train(model, subset(demo.train, 30), config)]
    after = dc.evaluate(model, test, clustering=False)["map_at_r"]
    assert after > before + 0.02
    assert losses[1] < losses[0]


@pytest.mark.parametrize("divide_by", ["image", "class", "random"])
def test_every_way_to_divide_trains(few: Benchmark, tiny_model: Make, divide_by: str) -> None:
    config = replace(CONFIG, epochs=1, finetune_epoch=1, joint_epoch=None, divide_by=divide_by)
    report = next(dc.train(tiny_model(), few.train, config))
    assert len(report.division.sizes) == 2
    assert (report.kept_pairs == 1.0) == (divide_by == "class")


def test_learners_that_share_all_images_take_turns_each_with_its_own_slice(few: Benchmark, tiny_model: Make) -> None:
    config = replace(CONFIG, epochs=2, finetune_epoch=1, joint_epoch=None, divide_by="none")
    subspace, finetune = dc.train(tiny_model(method="slices"), few.train, config)
    assert subspace.division.num_learners == finetune.division.num_learners == 1
    assert len(subspace.learner_loss) == 2
    assert None not in subspace.learner_loss
    assert len(finetune.learner_loss) == 1
    assert subspace.kept_pairs == 1.0


def test_no_division_has_no_hierarchy(few: Benchmark, tiny_model: Make) -> None:
    config = replace(CONFIG, divide_by="none", hierarchy=True)
    with pytest.raises(ConfigError, match="with `divide_by=none` there are none"):
        next(dc.train(tiny_model(method="masks"), few.train, config))


def test_bf16_trains_and_its_loss_is_near_fp32_s(straight: tuple, few: Benchmark, tiny_model: Make) -> None:
    report = next(dc.train(tiny_model(), few.train, replace(CONFIG, precision="bf16")))
    assert report.loss == pytest.approx(straight[1][0].loss, rel=0.2)


@pytest.mark.heavy
def test_a_loss_s_own_parameters_are_trained_kept_and_resumed(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    config = replace(CONFIG, loss="ProxyAnchorLoss", epochs=3, finetune_epoch=2, joint_epoch=None)
    whole = tiny_model(method="slices")
    list(dc.train(whole, few.train, config))
    for _ in islice(dc.train(tiny_model(method="slices"), few.train, config, checkpoint=tmp_path / "c"), 2):
        pass
    content = torch.load(tmp_path / "c", weights_only=True)
    assert content["objectives"]["0.loss.loss.proxies"].shape == (24, 8)
    again = tiny_model(seed=5, method="slices")
    list(dc.train(again, few.train, config, checkpoint=tmp_path / "c"))
    assert same(weights(again), weights(whole))


@pytest.mark.parametrize(
    ("call", "named"), [(5, r"^learner \d, epoch 1, batch 2 "), (6, r"^full embedding, learner \d, epoch 1, batch 2 ")]
)
def test_a_loss_that_turns_nan_stops_and_names_learner_and_batch(
    few: Benchmark, tiny_model: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, named: str
) -> None:
    from divcon.training.losses import Objective

    file = tmp_path / "checkpoint"
    calls = []
    forward = Objective.forward

    def broken(self: Objective, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = forward(self, embeddings, labels)
        return loss * torch.nan if len(calls) == call else loss

    model = tiny_model()
    training = dc.train(model, few.train, CONFIG, checkpoint=file)
    next(training)
    monkeypatch.setattr(Objective, "forward", broken)
    with pytest.raises(NonFiniteError, match=named + ".*the loss is nan.*`lr`"):
        next(training)
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    assert torch.load(file, weights_only=True)["epochs_done"] == 1


def test_what_cannot_be_trained_is_refused(few: Benchmark, tiny_model: Make) -> None:
    one = few.train.of_classes(few.train.classes[:1])
    with pytest.raises(DataError, match="1 class to train on; metric learning needs two"):
        next(dc.train(tiny_model(), one, CONFIG))
    with pytest.raises(DataError, match="the 10 training images cannot be divided among 16 learners"):
        next(dc.train(tiny_model(num_learners=16), few.train.subset(np.arange(10)), CONFIG))
    with pytest.raises(ConfigError, match="fp16` needs CUDA"):
        next(dc.train(tiny_model(), few.train, replace(CONFIG, precision="fp16", device="cpu")))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="finds no such device here; available: cpu"):
            next(dc.train(tiny_model(), few.train, replace(CONFIG, device="cuda")))


def test_an_image_that_does_not_decode_stops_with_its_name(
    image_folder: Path, broken_png: Callable[[Path], None], tiny_model: Make
) -> None:
    data = dc.read(image_folder, test_fraction=None)
    broken_png(image_folder / "class1" / "0.png")
    for workers in (0, 2):
        with pytest.raises(ImageError, match=r"class1/0\.png") as raised:
            list(dc.train(tiny_model(), data.train, replace(CONFIG, batch_size=8, workers=workers)))
        # While its traceback still holds the loader; left to the garbage collector, each worker ends after 5 seconds.
        assert multiprocessing.active_children() == [], raised


@pytest.mark.heavy
def test_progress_is_reported_after_each_batch(few: Benchmark, tiny_model: Make) -> None:
    reported = []
    report = next(dc.train(tiny_model(), few.train, CONFIG, context=dc.Context(on_progress=reported.append)))
    stages = [p.stage for p in reported]
    assert stages == sorted(stages)  # all of divide, then all of train
    training = [p for p in reported if p.stage == "train"]
    assert training[-1].done == training[-1].total == report.images
    assert training[-1].loss == pytest.approx(report.loss)
    assert [p.done for p in training] == [16 * (i + 1) for i in range(report.batches)]
    assert reported[0].total == len(few.train)


def test_a_training_uses_its_number_of_threads(few: Benchmark) -> None:
    before = torch.get_num_threads()
    model = dc.EmbeddingModel("test_resnet", 16, 2, pretrained=False, image_size=32)
    config = replace(CONFIG, epochs=1, joint_epoch=None, finetune_epoch=None, num_threads=before + 1)
    assert [torch.get_num_threads() for _ in dc.train(model, few.train, config)] == [before + 1]
    assert torch.get_num_threads() == before
