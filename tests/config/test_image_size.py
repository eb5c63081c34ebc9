"""Sizes of images: what is one, what is none, and that files keep it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import divcon as dc
from divcon.config.image_size import height_width, read_size, saved_size, size_in_words
from divcon.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (224, 224),
        ("224", 224),
        (np.int64(96), 96),
        ((128, 64), (128, 64)),
        ([128, 64], (128, 64)),
        ("128x64", (128, 64)),
        (" 128 X 64 ", (128, 64)),
        ("128\u00d764", (128, 64)),
        ("64x64", 64),
        ((64, 64), 64),
    ],
)
def test_sizes(value: Any, expected: Any) -> None:
    assert read_size(value) == expected
    assert read_size(saved_size(read_size(value))) == expected
    assert dc.ModelConfig(image_size=value).image_size == expected


@pytest.mark.parametrize("value", ["", "x64", "128x", "128x64x3", "big", 2.5, True, None, (1, 2, 3), ("a", "b"), {}])
def test_what_is_no_size(value: Any) -> None:
    makes = [lambda: dc.ModelConfig(image_size=value)]
    if isinstance(value, str):  # the types of the others are checked under pytest
        makes.append(lambda: dc.EmbeddingModel("test_resnet", image_size=value))
    for make in makes:
        with pytest.raises(
            ConfigError, match="`image_size`: expected a whole number of pixels, or a height and"
        ) as error:
            make()
        assert error.value.field == "image_size"


def test_in_words() -> None:
    assert height_width(7) == (7, 7) and height_width((8, 4)) == (8, 4)
    assert (size_in_words(64), size_in_words((128, 64))) == ("64 x 64", "128 x 64 (height x width)")


@pytest.mark.parametrize("ending", ["json", "yaml"])
def test_files_keep_it(ending: str, tmp_path: Path) -> None:
    config = dc.RunConfig(dc.ModelConfig(image_size=(128, 64), fit="pad"))
    config.save(tmp_path / f"a.{ending}")
    assert "128x64" in (tmp_path / f"a.{ending}").read_text()
    assert dc.RunConfig.load(tmp_path / f"a.{ending}") == config


def test_a_file_with_a_wrong_one_says_where(tmp_path: Path) -> None:
    for text in ("image_size: tall", "image_size: [1, 2, 3]", "image_size: 1.5"):
        (tmp_path / "a.yaml").write_text(f"model:\n  {text}\n")
        with pytest.raises(ConfigError, match=r"a\.yaml line 2: model\.image_size: expected a whole number of pixels"):
            dc.RunConfig.load(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("model:\n  image_size: [128, 64]\n")
    assert dc.RunConfig.load(tmp_path / "a.yaml").model.image_size == (128, 64)
