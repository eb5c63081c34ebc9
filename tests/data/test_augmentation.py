"""Augmentation by name: what each name does to real images, its arguments, and what is refused."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.config.augment import DEFAULTS, read_augment
from divcon.config.fields import field_docs
from divcon.config.settings import TrainConfig
from divcon.data.augmentation import CLASSES, create_augmentation
from divcon.data.benchmark import Benchmark
from divcon.data.loading import Decoded, batches_of, collate
from divcon.data.transforms import EvalTransform, TrainTransform
from divcon.errors import ConfigError, ImageError
from divcon.training.sheet import augmented_sheet

Run = Callable[..., tuple[int, str, str]]


def transform_of(augment: Any, size: Any = 64, **options: Any) -> TrainTransform:
    return TrainTransform(size, min_scale=1.0, flip=False, augment=read_augment(augment), **options)


def config_of(augment: Any, **options: Any) -> TrainConfig:
    """Any of the ways to say it."""
    return TrainConfig(augment=augment, **options)


@pytest.fixture(scope="module")
def photo(few: Benchmark) -> Image.Image:
    """Coloured, with edges, from 0 to 255."""
    icon = np.asarray(few.train.open(3)).astype(float) / 255
    ramp = np.linspace(0, 1, 64)
    colours = np.stack([ramp[None].repeat(64, 0), ramp[:, None].repeat(64, 1), 1 - ramp[None].repeat(64, 0)], 2)
    return Image.fromarray((255 * (0.7 * colours + 0.3 * icon)).astype(np.uint8))


def test_names_are_the_classes_and_are_documented() -> None:
    assert list(CLASSES) == list(DEFAULTS)
    about = field_docs(TrainConfig)["augment"]
    assert all(f"{name}" in about for name in CLASSES)


@pytest.mark.parametrize("name", DEFAULTS)
def test_each_changes_the_image_and_draws_from_torch_alone(name: str, photo: Image.Image) -> None:
    plain, augmented = transform_of("none"), transform_of(name)

    def pixels(transform: TrainTransform, other: int) -> list[torch.Tensor]:
        torch.manual_seed(3)
        random.seed(other)
        np.random.seed(other)  # noqa: NPY002
        return [transform(photo) for _ in range(12)]

    one, again = pixels(augmented, 0), pixels(augmented, 1)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert all(p.shape == (3, 64, 64) and p.dtype == torch.uint8 for p in one)
    before = pixels(plain, 0)[0].float()
    changes = [(p.float() - before).abs().mean().item() for p in one]
    assert max(changes) > 1, changes


def test_color_jitter_changes_colours_and_no_places(photo: Image.Image) -> None:
    torch.manual_seed(0)
    grey = transform_of("color_jitter(saturation=[0,0], hue=0, brightness=0, contrast=0, p=1)")(photo)
    assert (grey.float().std(0) < 1.5).all()
    brighter = transform_of({"color_jitter": {"brightness": [2, 2], "hue": 0, "saturation": 0, "contrast": 0, "p": 1}})
    dark = Image.fromarray(np.full((64, 64, 3), 50, np.uint8))
    assert (brighter(dark) == 100).all()


def test_rotation_turns_and_fills_with_the_mean_colour() -> None:
    black = Image.new("RGB", (64, 64))
    turned = transform_of("rotation(degrees=[45,45])", fill=(9, 80, 200))(black)
    assert turned[:, 0, 0].tolist() == [9, 80, 200] and turned[:, 32, 32].tolist() == [0, 0, 0]
    assert transform_of("rotation(degrees=[45,45], fill=7)")(black)[:, 0, 0].tolist() == [7, 7, 7]


def test_erasing_erases_one_rectangle_of_the_mean_colour() -> None:
    torch.manual_seed(0)
    white = Image.new("RGB", (64, 64), "white")
    erase = transform_of("erasing(p=1, scale=[0.1,0.2])", fill=(10, 20, 30))
    for _ in range(20):
        gone = (erase(white) != 255).any(0)
        rows, columns = gone.any(1).nonzero().flatten(), gone.any(0).nonzero().flatten()
        assert gone[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 0.07 < gone.float().mean() < 0.23
        assert erase(white).flatten(1).min(1).values.tolist() == [10, 20, 30]


@pytest.mark.parametrize(("share", "low", "high"), [(0, 0, 0), (0.5, 60, 140), (1, 200, 200)])
def test_p_is_the_share_of_images(share: float, low: int, high: int, photo: Image.Image) -> None:
    torch.manual_seed(0)
    for name in ("gaussian_blur", "trivial_augment", "erasing", "rotation"):
        arguments = {"rotation": {"degrees": [9, 9]}, "gaussian_blur": {"sigma": [1, 2]}}.get(name, {})
        plain, transform = transform_of("none")(photo), transform_of({name: {**arguments, "p": share}})
        changed = sum(not torch.equal(transform(photo), plain) for _ in range(200))
        slack = 60 if name == "trivial_augment" else 0  # which may draw the identity
        assert low - slack <= changed <= high, name


def test_order_is_kept() -> None:
    white = Image.new("RGB", (32, 32), "white")
    torch.manual_seed(0)
    inverted_last = transform_of("erasing(p=1, value=255), invert(p=1)", 32)(white)
    assert (inverted_last == 0).all()
    erased_last = transform_of("invert(p=1), erasing(p=1, value=255)", 32)(white)
    assert set(erased_last.unique().tolist()) == {0, 255}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", {}),
        ("", {}),
        ("color_jitter,erasing", {"color_jitter": {}, "erasing": {}}),
        ("rotation(degrees=5,interpolation=nearest)", {"rotation": {"degrees": 5, "interpolation": "nearest"}}),
        ("jpeg(quality=(20,30)), affine(fill=none)", {"jpeg": {"quality": [20, 30]}, "affine": {"fill": None}}),
        (["color_jitter", "erasing(p=0.1)"], {"color_jitter": {}, "erasing": {"p": 0.1}}),
        ("RandAugment, TrivialAugmentWide(p=0.5)", {"rand_augment": {}, "trivial_augment": {"p": 0.5}}),
        ({"color_jitter": None, "erasing": {"p": 0.1}}, {"color_jitter": {}, "erasing": {"p": 0.1}}),
    ],
)
def test_the_ways_to_say_it(value: Any, expected: dict[str, Any]) -> None:
    assert read_augment(value) == expected
    config = TrainConfig(augment=value)
    assert config.augment == expected and list(config.augment) == list(expected)
    assert dc.RunConfig.from_dict(dc.RunConfig(train=config).to_dict()).train == config


def test_the_names_of_the_classes_are_names_too() -> None:
    for name, kind in CLASSES.items():
        assert read_augment(kind.__name__) == {name: {}}
    with pytest.raises(ConfigError, match="erasing is named twice"):
        TrainConfig(augment="erasing,RandomErasing")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "colour_jitter",
            "`augment`: unknown augmentation 'colour_jitter'; did you mean 'color_jitter'.*there are color",
        ),
        ("erasing, erasing", "erasing is named twice"),
        ("erasing(0.5)", "expected names such as"),
        ("erasing(p=", "expected names such as"),
        ("erasing(p=open('x'))", "expected names such as"),
        ("a b", "expected names such as"),
        (3, "expected names such as"),
        ({"erasing": 3}, "expected names such as"),
        ({"erasing": {"p": object}}, "erasing: the argument p must be a number"),
        ([{"erasing": {}}], "expected names such as"),
    ],
)
def test_what_is_refused(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        TrainConfig(augment=value)
    assert error.value.field == "augment"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("erasing(q=0.5)", r"unknown argument of `augment` erasing 'q'.*it takes p, scale, ratio, value"),
        ("color_jitter(hue=3)", "`augment` color_jitter: .*hue"),
        ("gaussian_blur(kernel_size=4)", "`augment` gaussian_blur: "),
        ("erasing(p=2)", "`augment` erasing: p should be a floating point"),
        ("rotation(p=2)", "`augment` rotation: p must be from 0 to 1, not 2"),
        ("auto_augment(policy=best)", "`augment` auto_augment: 'best' is not a valid"),
    ],
)
def test_arguments_are_checked_before_training(value: str, message: str, few: Benchmark, tiny_model: Any) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        create_augmentation(read_augment(value), (0, 0, 0))
    assert error.value.field == "augment"
    with pytest.raises(ConfigError, match=message):
        dc.train(tiny_model(), few.train, config_of(value, epochs=1, workers=0))


def test_what_an_image_is_too_small_for_is_said(few: Benchmark, tiny_model: Any) -> None:
    config = config_of("elastic(p=1, sigma=10.0)", epochs=1, batch_size=8, workers=0)
    with pytest.raises(ConfigError, match=r"`augment` elastic: cannot be applied to 3 x 32 x 32 pixels"):
        list(dc.train(tiny_model(), few.train, config))


def test_what_does_not_go_with_it(few: Benchmark) -> None:
    with pytest.raises(ConfigError, match="`augment` erasing: belongs to the built-in transform"):
        config_of("erasing", train_transform="my:augment")
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    model = dc.EmbeddingModel("none", 4, 1, vector_dim=8)
    config = config_of("erasing", epochs=1, batch_size=8, workers=0)
    with pytest.raises(ConfigError, match="`augment`: vectors are not transformed"):
        dc.train(model, (vectors, np.repeat(np.arange(10), 4)), config)


AUGMENT = "color_jitter,rotation,trivial_augment,augmix,gaussian_noise,erasing"


def test_the_number_of_workers_changes_nothing(few: Benchmark) -> None:
    keys = [(i, 2, i) for i in range(30)]

    def batch(workers: int) -> torch.Tensor:
        loader: Any = torch.utils.data.DataLoader(
            Decoded(few.train, EvalTransform(32), TrainTransform(32, augment=read_augment(AUGMENT)), 5),
            batch_sampler=[keys[:11], keys[11:]],
            num_workers=workers,
            collate_fn=collate,
            generator=torch.Generator(),
        )
        return torch.cat([pixels for pixels, _ in batches_of(loader)])

    state = torch.get_rng_state()
    alone = batch(0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(alone, batch(2))


@pytest.mark.heavy
def test_a_stopped_training_resumes_to_the_same_weights(few: Benchmark, tiny_model: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 16, "images_per_class": 2, "workers": 0, "augment": AUGMENT, "epochs": 3}
    config = dc.TrainConfig(**options, redivide_every=1, finetune_epoch=2)
    straight, stopped = tiny_model(), tiny_model()
    torch.manual_seed(1)
    list(dc.train(straight, few.train, config))
    torch.manual_seed(1)
    going: Any = dc.train(stopped, few.train, config, checkpoint=tmp_path / "c")
    while next(going).number < 1:
        pass
    going.close()
    resumed = tiny_model(seed=7)
    list(dc.train(resumed, few.train, config, checkpoint=tmp_path / "c"))
    for name, value in straight.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=name)
    plain = tiny_model()
    torch.manual_seed(1)
    list(
        dc.train(plain, few.train, dc.TrainConfig(**{**options, "augment": "none"}, redivide_every=1, finetune_epoch=2))
    )
    assert not torch.equal(plain.head.linear.weight, straight.head.linear.weight)


def test_the_sheet_shows_what_the_network_sees(few: Benchmark, tiny_model: Any) -> None:
    model, config = tiny_model(), config_of("erasing(p=1, value=[255,0,0])")
    sheet = np.asarray(augmented_sheet(model, few.train, config, rows=3, draws=4))
    assert sheet.shape == (3 * 36 - 4, 5 * 36 + 4, 3)
    red = (sheet == (255, 0, 0)).all(2)
    for row in range(3):
        first = sheet[36 * row : 36 * row + 32, :32]
        assert not red[36 * row : 36 * row + 32, :32].any()
        index = few.train.classes[[0, 11, 23][row]]
        image = few.train.open(int(np.flatnonzero(few.train.labels == index)[0]))
        assert np.array_equal(first, model.eval_transform(image).permute(1, 2, 0).numpy())
        draws = [red[36 * row : 36 * row + 32, 40 + 36 * k : 72 + 36 * k] for k in range(4)]
        assert all(draw.any() for draw in draws)
        assert not all(np.array_equal(draws[0], draw) for draw in draws[1:])
    with pytest.raises(ImageError, match="such"):
        augmented_sheet(model, dataclasses.replace(few.train, encoded=None, root="nowhere"), config)


@pytest.mark.heavy
def test_from_the_command_line(image_folder: Path, tmp_path: Path, command: Run) -> None:
    out, sheet = tmp_path / "run", tmp_path / "sheet.png"
    basics = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--epochs", 1, "--workers", 0)
    augment = "color_jitter(hue=0.05),erasing(p=0.7)"
    code, printed, err = command("train", image_folder, *basics, "--augment", augment, "--out", out)
    assert code == 0, err
    config = dc.RunConfig.load(out / "config.json")
    assert config.train.augment == {"color_jitter": {"hue": 0.05}, "erasing": {"p": 0.7}}
    text = (out / "report.html").read_text()
    assert "What the network sees" in text and "mirroring, color_jitter, erasing)" in text
    # Its settings are shown, repeated and resumed; a run does not change its augmentation.
    code, printed, err = command("train", "--config", out / "config.json", "--show-config")
    (tmp_path / "again.yaml").write_text(printed)
    assert code == 0 and dc.RunConfig.load(tmp_path / "again.yaml").train.augment == config.train.augment, err
    code, _, err = command("train", "--out", out, "--resume", "--epochs", 2)
    assert code == 0, err
    code, _, err = command("train", "--out", out, "--resume", "--augment", "erasing")
    assert code == 2 and "--augment is" in err
    code, _, err = command("train", image_folder, *basics, "--augment", "erase", "--out", tmp_path / "no")
    assert code == 2 and "--augment: unknown augmentation 'erase'; did you mean 'erasing'" in err
    code, printed, err = command(
        "check", image_folder, "--show-augmented", sheet, "--config", out / "config.json", "--fit", "pad"
    )
    assert code == 0 and "fit pad" in printed, err
    assert Image.open(sheet).size == (8 * 36 + 4, 6 * 36 - 4)
    for arguments in (("--augment", "erasing"), ("--show-augmented", tmp_path / "a.txt")):
        code, _, err = command("check", image_folder, *arguments)
        assert code == 2 and "--show-augmented" in err


def test_files_may_have_a_mapping_or_a_list(tmp_path: Path) -> None:
    for text in (
        "augment: {erasing: {p: 0.1}, jpeg: }",
        "augment: [erasing(p=0.1), jpeg]",
        "augment: erasing(p=0.1),jpeg",
    ):
        (tmp_path / "a.yaml").write_text(f"train:\n  {text}\n")
        assert dc.RunConfig.load(tmp_path / "a.yaml").train.augment == {"erasing": {"p": 0.1}, "jpeg": {}}
    (tmp_path / "a.yaml").write_text("train:\n  augment: {erasure: {}}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml line 2: train\.augment: unknown augmentation 'erasure'"):
        dc.RunConfig.load(tmp_path / "a.yaml")
