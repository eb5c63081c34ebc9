"""What is searched for, in every form, and what cannot be."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import ExifTags, Image

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, ImageError, NonFiniteError, StoreError


@pytest.fixture
def index(tiny_model: Callable[..., dc.EmbeddingModel], image_folder: Path, tmp_path: Path) -> dc.Index:
    return dc.Index.build(tiny_model(), image_folder, tmp_path / "store")


def test_every_form_of_a_query_finds_the_same(index: dc.Index, image_folder: Path, tmp_path: Path) -> None:
    image = sorted(image_folder.rglob("*.png"))[11]
    copy = tmp_path / "copy.png"
    copy.write_bytes(image.read_bytes())
    forms = [image, str(image), copy, image.read_bytes(), Image.open(image), index.model.encode(image)[0], 11]
    alone = [index.search(form, k=4) for form in forms]
    for hits in (*alone, *index.search(forms, k=4)):
        assert [hit.id for hit in hits] == [hit.id for hit in alone[0]]
        np.testing.assert_allclose([hit.score for hit in hits], [hit.score for hit in alone[0]], atol=1e-6)
    assert alone[0][0].path == str(image)
    assert alone[0][0].label == image.parent.name
    assert index.item(11) == index.item(str(image))
    assert index.item(11).score == 1
    assert index.search(np.stack([forms[5]] * 2), k=4) == [alone[5], alone[5]]
    assert index.search(f"{image_folder}/../photos/{image.relative_to(image_folder)}", k=1)[0].path == str(image)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_by_path_and_as_an_image_are_one_query(index: dc.Index, tmp_path: Path, orientation: int) -> None:
    """A large JPEG, which is decoded at a smaller size, and which a camera held on its side."""
    photo = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).resize((800, 600)).save(photo, exif=exif)
    expected = index.search(photo, k=5)
    for image in (Image.open(photo), Image.open(io.BytesIO(photo.read_bytes()))):
        assert index.search(image, k=5) == expected
        assert index.search(image, k=5) == expected  # it can still be read
        image.load()
        np.testing.assert_allclose(
            [hit.score for hit in index.search(image, k=5)], [h.score for h in expected], atol=0.01
        )
    changed = Image.open(photo)
    changed.paste((0, 0, 0), (0, 0, 800, 600))
    assert index.search(changed, k=5) != expected


def _png_header(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + end + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


def _cut_off() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()[:3000]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        (b"just text", ImageError, "it looks like text"),
        (b"", ImageError, "empty"),
        (_png_header(40_000, 40_000), ImageError, "too many pixels"),
        (_cut_off(), ImageError, "does not decode"),
        ("../../etc/nothing.png", DataError, "there is no such file, and no item of this path"),
        ("a\0b", ImageError, "cannot be read"),
        (np.ones(15), DataError, "the vector has 15 numbers; an embedding has 16"),
        ([1.0] * 17, DataError, "the vector has 17 numbers; an embedding has 16"),
        (np.zeros(16), DataError, "all zeros"),
        (np.full(16, np.nan), NonFiniteError, "the vector has nan in place 0"),
        (np.full(16, -np.inf), NonFiniteError, "the vector has -inf in place 0"),
        (np.full(16, 1e300), NonFiniteError, "the vector has 1e\\+300 in place 0"),
        (np.full(16, 1e19), NonFiniteError, "whose squares overflow float32"),
        ([np.ones(16), np.full(16, 2e19)], NonFiniteError, "query 2: the vector has numbers up to 2e\\+19, whose"),
        (np.ones((2, 3, 16)), DataError, r"an array of shape \(2, 3, 16\)"),
        (10**30, DataError, "there is no item"),
        (-1, DataError, "there is no item -1"),
        (None, DataError, "is no query"),
        ({"a": 1}, DataError, "is no query"),
    ],
)
def test_what_cannot_be_searched_for(index: dc.Index, query: object, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        index.search(query)
    assert len(index.search(0, k=3)) == 3  # and it goes on


@pytest.mark.parametrize("k", [0, -1, 10**9, 10_001, 2.5, True, "3"])
def test_a_k_that_cannot_be(index: dc.Index, k: object) -> None:
    with pytest.raises(ConfigError, match="1 to 10,000 items"):
        index.search(0, k=k)


def test_a_file_that_is_no_image_is_named(index: dc.Index, tmp_path: Path) -> None:
    (tmp_path / "fake.jpg").write_text("hello, I am a text")
    with pytest.raises(ImageError, match=r"fake\.jpg: .*it looks like text"):
        index.search([0.0, tmp_path / "fake.jpg"][1:])
    with pytest.raises(ImageError, match="Is a directory"):
        index.search(tmp_path)


def test_an_item_is_found_by_its_own_path_alone(index: dc.Index, image_folder: Path) -> None:
    first = index.item(0)
    for wrong in (f"{image_folder}/../photos/{Path(first.path).relative_to(image_folder)}", "/etc/passwd", 10**20, -3):
        with pytest.raises(DataError, match="there is no item"):
            index.item(wrong)


@pytest.mark.parametrize("query", [10**30, -1, 99])
def test_an_id_that_no_item_has(
    uri: object, model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet], query: int
) -> None:
    index = dc.Index.build(model, vectors(5), uri)
    for act in (index.search, index.item):
        with pytest.raises(DataError, match=f"there is no item {query}"):
            act(query)


def test_images_for_a_model_of_vectors_and_huge_vectors(
    model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet], tmp_path: Path
) -> None:
    index = dc.Index.build(model, vectors(5), tmp_path / "store")
    with pytest.raises(DataError, match="input is vectors of 12 dimensions, not images"):
        index.search(b"1234")
    embedding = model.encode(vectors(5))[2]
    assert index.search(embedding * 1e18, k=1, embedded=True)[0].score == pytest.approx(1)
    assert index.search(embedding * 1e-30, k=1, embedded=True)[0].score == pytest.approx(1)
    with pytest.raises(NonFiniteError, match="squares overflow float32"):
        index.search(embedding * 1e30, embedded=True)
    assert index.search("item00002", k=1)[0].id == 2


def test_a_store_that_does_not_say_where_its_model_is(index: dc.Index, image_folder: Path, tmp_path: Path) -> None:
    again = dc.Index.open(tmp_path / "store")
    assert again.search(3, k=1)[0].id == 3
    with pytest.raises(StoreError, match="does not say where its model is"):
        again.search(_png_header(1, 1))


def test_a_model_that_gives_nan_is_not_indexed(
    model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet], tmp_path: Path
) -> None:
    with torch.no_grad():
        model.head.linear.bias[0] = torch.nan
    with pytest.raises(DataError, match="item00000: its embedding has NaN"):
        dc.Index.build(model, vectors(5), tmp_path / "store")


def test_boxes_and_encoded_images_are_items_of_their_own(
    tiny_model: Callable[..., dc.EmbeddingModel], image_folder: Path, tmp_path: Path
) -> None:
    image = sorted(image_folder.rglob("*.png"))[0]
    table = tmp_path / "boxes.csv"
    lines = ["path,label,x_1,y_1,x_2,y_2,colour", f"{image},a,0,0,16,16,red", f"{image},b,8,8,30,30,blue"]
    table.write_text("\n".join([*lines, f"{image},c,,,,,", lines[1], ""]))
    said: list[str] = []
    index = dc.Index.create(tiny_model(), tmp_path / "boxes")
    assert index.update(table, context=dc.Context(on_warning=said.append)).added == 3
    assert said == ["left out: 1 rows with the image of an earlier row"]
    by_label = {hit.label: hit for hit in index.search(2, k=3)}
    assert {hit.path for hit in by_label.values()} == {str(image)}
    assert by_label["b"].box == (8, 8, 30, 30)
    assert by_label["c"].box is None
    assert [by_label[label].metadata["colour"] for label in "abc"] == ["red", "blue", None]

    encoded = pa.array([image.read_bytes()] * 2, pa.large_binary())
    images = LabeledSet(np.zeros(2, np.int64), ("x",), pa.array(["p.png", "p.png"]), np.arange(2), "s", encoded=encoded)
    index = dc.Index.build(tiny_model(), images, tmp_path / "encoded")
    assert [index.item(i).path for i in (0, 1)] == ["p.png row 0", "p.png row 1"]
