"""The shapes of a set's images: of real files, upright, with boxes; cheaply."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

import divcon as dc
from divcon.config.settings import ModelConfig
from divcon.data.encoded import RowGroups
from divcon.data.shapes import MOST, facts_to_choose_by, image_shapes


def saved(path: Path, width: int, height: int, orientation: int = 1, **options: Any) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), "red").save(path, exif=exif, **options)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(("orientation", "expected"), [(1, (60, 20)), (3, (60, 20)), (6, (20, 60)), (8, (20, 60))])
def test_shapes_are_those_of_the_decoded_images(
    suffix: str, orientation: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    for name in ("a/0", "a/1", "b/0", "b/1", "c/0", "c/1", "d/0", "d/1"):
        saved(tmp_path / f"{name}.{suffix}", 20, 60, orientation)
    images = dc.read(tmp_path).train
    assert images.open(0).size == expected[::-1]
    np.testing.assert_array_equal(image_shapes(images), [expected] * len(images))


def test_boxes_count_and_what_cannot_be_read_does_not(tmp_path: Path) -> None:
    saved(tmp_path / "whole.png", 20, 60)
    saved(tmp_path / "lying.jpg", 50, 40, orientation=6)
    for name in ("t0", "t1", "t2", "t3"):
        saved(tmp_path / f"{name}.png", 9, 9)
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "t.csv").write_text(
        "path,label,split,x_1,y_1,x_2,y_2\nwhole.png,a,train,,,,\nwhole.png,a,train,2,3,12,8\n"
        "lying.jpg,b,train,0,0,30,10\nbroken.png,b,train,,,,\n"
        "t0.png,c,test,,,,\nt1.png,c,test,,,,\nt2.png,d,test,,,,\nt3.png,d,test,,,,\n"
    )
    images = dc.read(tmp_path / "t.csv").train
    sizes = [images.open(i).size[::-1] for i in range(3)]
    assert sizes == [(60, 20), (5, 10), (30, 10)]
    np.testing.assert_array_equal(image_shapes(images), sizes)


def test_few_of_many_are_read(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or real(file))
    assert len(demo.train) > MOST
    shapes = image_shapes(demo.train)
    assert len(shapes) == len(opened) <= MOST
    assert (shapes == 64).all()


def test_row_groups_are_read_in_few_runs(few: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dc.pack(few, tmp_path / "packed")
    monkeypatch.setattr("divcon.data.encoded.IN_MEMORY", 0)
    images = dc.read(tmp_path / "packed").train
    assert isinstance(images.encoded, RowGroups)
    groups: list[int] = []
    real = RowGroups.group
    monkeypatch.setattr(RowGroups, "group", lambda self, number: groups.append(number) or real(self, number))
    shapes = image_shapes(images, most=32)
    assert len(shapes) == 32 and len(set(groups)) <= 4


def test_nothing_is_read_where_nothing_is_open(few: Any) -> None:
    assert facts_to_choose_by(ModelConfig(image_size=32, fit="crop", pixel_range="full"), few.train) is None
    facts = facts_to_choose_by(ModelConfig(image_size=32), few.train)
    assert facts is not None and len(facts.shapes) == min(MOST, len(few.train)) and facts.extremes is None
    vectors = dataclasses.replace(few.train, vectors=np.zeros((len(few.train), 4), np.float32), encoded=None)
    assert facts_to_choose_by(ModelConfig(), vectors) is None and image_shapes(vectors).shape == (0, 2)
