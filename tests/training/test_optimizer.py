"""The optimiser: what AdamW's decay is of, one step against PyTorch's own, resuming, and lower precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, RunError
from divcon.training.checkpoint_file import read_checkpoint
from divcon.training.setup import check, set_up, training_device

Make = Callable[..., dc.EmbeddingModel]
CONFIG = dc.TrainConfig(
    epochs=4, batch_size=16, images_per_class=2, finetune_epoch=3, workers=0, distill_weight=0.0, ema_decay=0.0
)
ADAMW = replace(CONFIG, optimizer="adamw", weight_decay=0.05, loss="ProxyAnchorLoss", mask_weight_decay=0.02)


def vit(seed: int = 0, num_learners: int = 2, backbone: str = "test_vit", **options: object) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    return dc.EmbeddingModel(backbone, 16, num_learners, pretrained=False, image_size=32, **options)  # type: ignore[arg-type]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def groups_by_name(model: dc.EmbeddingModel, config: dc.TrainConfig, few: Benchmark) -> tuple[dict, list[str]]:
    """Of each weight, the group's name and decay; and the groups' names in order."""
    objectives = check(model, few.train, config)
    named = [*model.named_parameters(), *((f"objectives.{n}", p) for n, p in objectives.named_parameters())]
    optimizer = set_up(model, objectives, config, training_device(config))
    groups_of = {id(p): (g["name"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(groups_of) == sum(len(g["params"]) for g in optimizer.param_groups)
    return {name: groups_of.get(id(p)) for name, p in named}, [g["name"] for g in optimizer.param_groups]


def test_adamw_decays_weights_and_not_biases_norms_positions_or_class_tokens(few: Benchmark) -> None:
    model = vit(pooling="gem")
    groups, order = groups_by_name(model, ADAMW, few)
    assert order[0] == "backbone"  # whose learning rate is reported
    assert None not in groups.values()  # all are trained
    assert groups["head.masks"] == ("masks", 0.02)
    assert groups["pooling.p"] == ("head", 0.0)
    assert groups["head.linear.weight"] == ("head", 0.05)
    assert groups["head.linear.bias"] == ("head", 0.0)
    assert groups["backbone.pos_embed"] == groups["backbone.cls_token"] == ("backbone", 0.0)
    assert {group for name, group in groups.items() if name.startswith("objectives")} == {("head", 0.05)}
    assert sum(name.startswith("objectives") for name in groups) == 3  # of each learner, and of the full embedding
    for name, parameter in model.backbone.named_parameters():
        decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        assert groups[f"backbone.{name}"] == ("backbone", 0.05 if decays else 0.0), name
    convnext, _ = groups_by_name(vit(backbone="test_convnext"), ADAMW, few)
    assert convnext["backbone.stem.0.weight"] == ("backbone", 0.05)
    assert {v for k, v in convnext.items() if k.endswith(("norm.weight", "gamma", ".bias"))} == {
        ("backbone", 0.0),
        ("head", 0.0),
    }


def test_adam_has_the_groups_of_both_papers(few: Benchmark) -> None:
    config = replace(ADAMW, optimizer="adam")
    groups, order = groups_by_name(vit(), config, few)
    assert order == ["backbone", "head", "masks"]
    assert {group for name, group in groups.items() if name != "head.masks"} == {("backbone", 0.05), ("head", 0.05)}
    groups, order = groups_by_name(vit(pooling="gem"), config, few)
    assert order == ["backbone", "head", "masks", "head"]
    assert groups["pooling.p"] == ("head", 0.0)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_steps_are_those_of_pytorch_on_groups_written_by_hand(name: str, few: Benchmark) -> None:
    config = replace(ADAMW, optimizer=name)
    model, plain = vit(pooling="gem"), vit(pooling="gem")
    # As it is trained: gradients that are zero but for rounding, as those of the keys' bias are, make whole steps.
    plain.to(memory_format=torch.channels_last)
    objectives = check(model, few.train, config)
    torch.manual_seed(1)
    others = check(plain, few.train, config)
    others.load_state_dict(objectives.state_dict())
    optimizer = set_up(model, objectives, config, training_device(config))

    named = [*plain.named_parameters(), *((f"loss.{n}", p) for n, p in others.named_parameters())]
    groups = []
    for n, p in named:
        free = name == "adamw" and (p.ndim < 2 or n in ("backbone.pos_embed", "backbone.cls_token"))
        decay = 0.02 if n == "head.masks" else 0.0 if free or n == "pooling.p" else 0.05
        lr = 0.1 if n == "head.masks" else 0.01 if n.startswith("backbone") else 0.03
        groups.append({"params": [p], "weight_decay": decay, "lr": lr})
    by_hand = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name](groups)

    images, targets = torch.randn(8, 3, 32, 32), torch.arange(8) // 2
    for _ in range(3):
        for group in optimizer.param_groups:
            group["lr"] = {"backbone": 0.01, "head": 0.03, "masks": 0.1}[group["name"]]
        for network, losses, steps in ((model, objectives, optimizer), (plain, others, by_hand)):
            torch.manual_seed(2)
            own, full, _ = network(images, learner=0, with_all=True)
            steps.zero_grad()
            (losses[0](own, targets) + losses[-1](full, targets) + network.head.penalty()).backward()
            steps.step()
    before = dict(vit(pooling="gem").named_parameters())
    for n, p in plain.named_parameters():
        torch.testing.assert_close(dict(model.named_parameters())[n], p, rtol=1e-5, atol=1e-7)
        assert not torch.equal(p, before[n]), n
    for mine, theirs in zip(objectives.parameters(), others.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.heavy
def test_resumed_under_adamw_a_hierarchy_is_the_same_bit_for_bit(few: Benchmark, tmp_path: Path) -> None:
    config = replace(ADAMW, epochs=6, finetune_epoch=5, hierarchy=True, freeze_backbone_epochs=1)

    def model_of(seed: int = 0) -> dc.EmbeddingModel:
        return vit(seed, 4, pooling="gem", method="masks")

    straight = model_of()
    reports = list(dc.train(straight, few.train, config))
    assert [report.division.num_learners for report in reports] == [1, 1, 2, 2, 4, 1]
    assert reports[1].lr == pytest.approx(config.lr)
    assert straight.pooling.p.item() != 3.0  # type: ignore[union-attr, operator]
    stop = 3  # between the two doublings
    for _ in islice(dc.train(model_of(), few.train, config, checkpoint=tmp_path / "checkpoint"), stop + 1):
        pass
    again = model_of(seed=7)
    rest = list(dc.train(again, few.train, config, checkpoint=tmp_path / "checkpoint"))
    assert [r.loss for r in rest] == [r.loss for r in reports[stop:]]
    assert same(weights(again), weights(straight))


@pytest.mark.heavy
def test_a_checkpoint_of_before_there_was_a_choice_is_of_adam(few: Benchmark, tiny_model: Make, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint"
    straight = tiny_model()
    list(dc.train(straight, few.train, CONFIG))
    for _ in islice(dc.train(tiny_model(), few.train, CONFIG, checkpoint=file), 3):
        pass
    content = read_checkpoint(file)
    del content["config"]["optimizer"], content["made_with"]["pooling"]
    torch.save({**content, "format": 2}, file)
    with pytest.raises(RunError, match="`optimizer`: adam then, adamw now"):
        next(dc.train(tiny_model(), few.train, replace(CONFIG, optimizer="adamw"), checkpoint=file))
    again = tiny_model(seed=3)
    list(dc.train(again, few.train, CONFIG, checkpoint=file))
    assert same(weights(again), weights(straight))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [("test_vit", "auto"), ("test_vit", "gem"), ("test_convnext", "gem"), ("test_resnet", "max")],
)
def test_bf16_trains_as_fp32_does_but_for_rounding(few: Benchmark, backbone: str, pooling: str) -> None:
    config = replace(ADAMW, epochs=1, finetune_epoch=1, loss="MarginLoss", loss_options={"margin": 0.5})
    losses = {}
    for precision in ("fp32", "bf16"):
        model = vit(backbone=backbone, pooling=pooling)
        report = next(dc.train(model, few.train, replace(config, precision=precision)))
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        losses[precision] = report.loss
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    assert losses["bf16"] != losses["fp32"]


@pytest.mark.heavy
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_a_modern_backbone_learns(few: Benchmark, backbone: str) -> None:
    model = vit(backbone=backbone, pooling="gem")
    config = replace(ADAMW, epochs=6, finetune_epoch=0, lr=1e-3, lr_schedule="cosine", warmup_epochs=1.0)
    losses = [report.loss for report in dc.train(model, few.train, config)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "option",
    ["fused", pytest.param("compile", marks=pytest.mark.slow)],  # which takes minutes to compile
)
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_options_of_speed_train_the_same(option: str, optimizer: str, few: Benchmark) -> None:
    """Up to rounding; and PyTorch gets the option."""
    config = replace(CONFIG, epochs=1, finetune_epoch=1, optimizer=optimizer)
    plain, fast = (vit(backbone="test_resnet") for _ in range(2))
    expected = next(dc.train(plain, few.train, config))
    report = next(dc.train(fast, few.train, replace(config, **{option: True})))
    assert report.loss == pytest.approx(expected.loss, rel=1e-3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(fast.state_dict()[name], value, rtol=1e-2, atol=2e-3)
    objectives = check(fast, few.train, config)
    stepping = set_up(fast, objectives, replace(config, **{option: True}), training_device(config))
    assert (stepping.param_groups[0]["fused"] is True) == (option == "fused")
    assert (fast.backbone._compiled_call_impl is not None) == (option == "compile")


def test_compiling_without_a_compiler_is_refused(few: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"`compile` needs a C\+\+ compiler"):
        check(vit(), few.train, replace(CONFIG, compile=True, device="cpu"))
