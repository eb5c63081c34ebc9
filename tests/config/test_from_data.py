"""Settings that are chosen from the data: the same rules for 250 images and for 250,000."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divcon.config.from_data import MAX_EPOCHS, MIN_EPOCHS, ImageFacts, fit, fit_data, fit_images, with_choices_of
from divcon.config.image_size import ImageSize, height_width
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig


def labels_of(classes: int, each: int) -> np.ndarray:
    return np.repeat(np.arange(classes), each)


@pytest.mark.parametrize(
    ("classes", "each", "learners", "batch", "images_per_class", "epochs"),
    [
        (50, 5, 1, 80, 4, 60),  # 250 images: 3 batches an epoch
        (100, 2, 1, 80, 2, 60),  # pairs
        (8, 30, 1, 32, 4, 60),  # too few classes to fill a batch
        (312, 8, 1, 80, 4, 60),
        (1_000, 14, 4, 80, 4, 57),
        (11_318, 5, 4, 80, 4, 20),
        (25_000, 10, 4, 80, 4, 20),  # 250,000 images
    ],
)
def test_the_rules(classes: int, each: int, learners: int, batch: int, images_per_class: int, epochs: int) -> None:
    config, reasons = fit(RunConfig(), labels_of(classes, each))
    train = config.train
    assert (config.model.num_learners, train.batch_size, train.images_per_class, train.epochs) == (
        learners,
        batch,
        images_per_class,
        epochs,
    )
    assert set(reasons) == {"num_learners", "batch_size", "images_per_class", "epochs"}


@pytest.mark.parametrize(
    ("images", "share"), [(0, 0.1), (250, 0.1), (100_000, 0.1), (250_000, 0.04), (1_000_000, 0.01)]
)
def test_the_share_for_validation(images: int, share: float) -> None:
    config, reasons = fit_data(DataConfig(), images)
    assert config.validation_fraction == share
    assert reasons == {"validation_fraction": f"about {share * images:,.0f} of {images:,} images"}
    assert fit_data(DataConfig(validation_fraction=0.3), images) == (DataConfig(validation_fraction=0.3), {})


def test_what_is_set_stays() -> None:
    asked = RunConfig(ModelConfig(num_learners=8), TrainConfig(epochs=3, batch_size=16, images_per_class=2))
    config, reasons = fit(asked, labels_of(4, 3))
    assert config == asked
    assert reasons == {}
    # One of two that go together: the other fits.
    config, _ = fit(RunConfig(train=TrainConfig(images_per_class=5)), labels_of(40, 10))
    assert config.train.batch_size % 5 == 0


def test_a_run_that_is_resumed_has_its_own() -> None:
    run, _ = fit(RunConfig(), labels_of(1_000, 14))
    assert with_choices_of(RunConfig(), run) == run
    asked = RunConfig(train=TrainConfig(epochs=70))
    assert with_choices_of(asked, run).train.epochs == 70


@given(
    sizes=st.lists(st.integers(1, 300), min_size=2, max_size=400),
    each=st.sampled_from([0, 2, 3, 5]),
    by=st.sampled_from(["image", "class"]),
)
def test_any_data_gives_settings_that_work(sizes: list[int], each: int, by: str) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    asked = RunConfig(train=TrainConfig(images_per_class=each, divide_by=by))  # type: ignore[arg-type]
    config, _ = fit(asked, labels)
    train, learners = config.train, config.model.num_learners
    assert MIN_EPOCHS <= train.epochs <= MAX_EPOCHS
    assert train.batch_size % train.images_per_class == 0
    assert 2 * train.images_per_class <= train.batch_size <= 80
    assert 1 <= learners <= len(sizes)


def shapes_of(*shapes: tuple[int, int]) -> ImageFacts:
    return ImageFacts(np.array(shapes))


PEOPLE, PHOTOS, WIDE = (128, 64), (400, 600), (720, 1280)


@pytest.mark.parametrize(
    ("shapes", "any_size", "size", "how", "reasons"),
    [
        ([(64, 64)] * 5, True, 224, "crop", {"fit"}),
        ([PHOTOS] * 3 + [(600, 400)] * 2, True, 224, "crop", {"fit"}),  # 3:2, lying and standing
        ([PEOPLE] * 5, True, (320, 160), "squash", {"image_size", "fit"}),
        ([PEOPLE] * 5, False, 224, "squash", {"image_size", "fit"}),  # a vision transformer
        ([WIDE] * 5, True, (160, 288), "squash", {"image_size", "fit"}),
        ([(1000, 10)] * 5, True, (448, 128), "squash", {"image_size", "fit"}),  # at most 1:4
        ([PEOPLE] * 3 + [(64, 128)] * 3, True, 224, "squash", {"fit"}),  # of both kinds: no one shape is theirs
        ([PEOPLE] * 2 + [(64, 64)] * 3, True, 224, "crop", {"fit"}),
        ([PEOPLE] * 3 + [(64, 64)] * 2, True, 224, "squash", {"fit"}),
    ],
)
def test_the_rules_for_images(
    shapes: list[tuple[int, int]], any_size: bool, size: ImageSize, how: str, reasons: set[str]
) -> None:
    config, why = fit_images(ModelConfig(), shapes_of(*shapes), any_size=any_size)
    assert (config.image_size, config.fit) == (size, how)
    assert set(why) == reasons
    height, width = height_width(config.image_size)
    assert 0.85 < height * width / 224**2 < 1.15


def test_a_size_or_a_fit_that_is_set_stays() -> None:
    tall = shapes_of(PEOPLE, PEOPLE)
    for asked, size, how in (
        (ModelConfig(image_size=96), 96, "squash"),
        (ModelConfig(image_size=(128, 64)), (128, 64), "squash"),
        (ModelConfig(fit="crop"), (320, 160), "crop"),
        (ModelConfig(image_size=96, fit="pad"), 96, "pad"),
    ):
        config, _ = fit_images(asked, tall, any_size=True)
        assert (config.image_size, config.fit) == (size, how)
    # A size that is not square is set on purpose: the whole image comes into it.
    config, why = fit_images(ModelConfig(image_size=(128, 64)), shapes_of((64, 64)), any_size=True)
    assert config.fit == "squash" and why == {"fit": "the input is 128 x 64 (height x width)"}


def test_a_resumed_run_has_the_size_and_fit_that_it_chose() -> None:
    run, reasons = fit(RunConfig(), labels_of(50, 5), shapes_of(PEOPLE, PEOPLE), any_size=True)
    assert run.model.image_size == (320, 160) and "2 times as tall as wide" in reasons["image_size"]
    assert with_choices_of(RunConfig(), run) == run
    assert with_choices_of(RunConfig(ModelConfig(fit="pad")), run).model.fit == "pad"
    assert RunConfig.from_dict(run.to_dict()) == run
    # Vectors have no shape: nothing is chosen, and a model gets what it has by itself.
    config, _ = fit(RunConfig(), labels_of(50, 5))
    assert (config.model.image_size, config.model.fit) == (0, "auto")
    assert (config.model.network["image_size"], config.model.network["fit"]) == (224, "crop")
