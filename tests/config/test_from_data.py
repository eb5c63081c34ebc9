"""Settings that are chosen from the data: the same rules for 250 images and for 250,000."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from divcon.config.from_data import MAX_EPOCHS, MIN_EPOCHS, fit, with_choices_of
from divcon.config.settings import ModelConfig, RunConfig, TrainConfig


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
