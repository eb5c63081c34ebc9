"""Packed images: the same benchmark with the same pixels, gone on with after a stop, and checked when they are read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import divcon as dc
from divcon.data import encoded as encoded_images
from divcon.data import pack as pack_module
from divcon.data.loading import Decoded, batches_of, collate
from divcon.data.pack import Packing, pack
from divcon.data.readers.vectors import write_benchmark_vectors
from divcon.data.transforms import EvalTransform
from divcon.errors import ConfigError, DataError, ImageError, RunError
from divcon.runtime.context import Progress

NAMES = ("cub", "cars", "sop", "inshop", "vehicleid", "market1501")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, few: dc.Benchmark) -> Path:
    """A folder of classes: 40 JPEGs of many sizes, real icons drawn large on a smooth ground, one of them turned."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(40):
        width, height = (int(side) for side in rng.integers(200, 500, 2))
        ground = np.linspace(rng.integers(0, 200, 3), 255, width * height).reshape(height, width, 3).astype(np.uint8)
        picture = Image.fromarray(ground)
        picture.paste(few.train.open(number).resize((150, 150)), (20, 30))
        path = root / f"class {number // 4}" / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if number == 3 else 1
        picture.save(path, quality=90, exif=exif)
    return root


def pixels_of(images: dc.LabeledSet, size: int) -> np.ndarray:
    """What evaluation sees of all images."""
    transform = EvalTransform(size)
    return np.stack([transform(images.open(i, transform.needs)).numpy() for i in range(len(images))]).astype(float)


def same_benchmark(reread: dc.Benchmark, data: dc.Benchmark) -> None:
    assert (reread.name, reread.protocol, reread.split_hash) == (data.name, data.protocol, data.split_hash)
    assert (reread.recall_at, reread.random_galleries) == (data.recall_at, data.random_galleries)
    assert reread.notes[: len(data.notes)] == data.notes
    assert reread.parts.keys() == data.parts.keys()
    for name, images in data.parts.items():
        packed = reread.parts[name]
        assert packed.flip == images.flip
        order, other = (np.argsort([f"{s.path(i)} {i}" for i in range(len(s))]) for s in (images, packed))
        assert [images.label_name(i) for i in order] == [packed.label_name(i) for i in other]
    np.testing.assert_array_equal(excluded(reread), excluded(data))


def excluded(data: dc.Benchmark) -> np.ndarray:
    """(Q, G) bool, by path: what a query may not retrieve."""
    query, gallery = data.query, data.gallery
    mask = np.zeros((len(query), len(gallery)), bool)
    if query is not gallery and query.source == gallery.source:
        mask |= query.rows[:, None] == gallery.rows[None]
    if query.cameras is not None and gallery.cameras is not None:
        labels = [np.array([s.label_name(i) for i in range(len(s))]) for s in (query, gallery)]
        mask |= (query.cameras[:, None] == gallery.cameras[None]) & (labels[0][:, None] == labels[1][None])
    if query.groups is not None and gallery.groups is not None:
        mask |= (query.groups[:, None] == gallery.groups[None]) & (query.groups[:, None] >= 0)
    order = [np.argsort([s.path(i) for i in range(len(s))]) for s in (data.query, data.gallery)]
    return mask[order[0]][:, order[1]]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_data_set_is_the_same_benchmark(name: str, trees: ModuleType, tmp_path: Path) -> None:
    root = getattr(trees, f"write_{name}")(tmp_path / "tree", **trees.SMALL[name], put=trees.draw)
    data = dc.read("vehicleid-small" if name == "vehicleid" else name, root)
    same_benchmark(dc.read(pack(data, tmp_path / "packed")), data)


def test_a_validation_part_is_kept(few: dc.Benchmark, tmp_path: Path) -> None:
    data = few.with_validation(0.2)
    reread = dc.read(pack(data, tmp_path / "packed"))
    same_benchmark(reread, data)
    assert reread.validation is not None and reread.validation.num_classes == 5


@pytest.mark.heavy
def test_evaluation_sees_the_same_pixels(photos: Path, tmp_path: Path) -> None:
    """224 is cut from a shorter side of 256."""
    data = dc.read(photos)
    whole = dc.read(pack(data, tmp_path / "whole", Packing(lossless=True)))
    jpeg = dc.read(pack(data, tmp_path / "jpeg"))
    for part in ("train", "test"):
        expected = pixels_of(data.parts[part], 224)
        np.testing.assert_array_equal(pixels_of(whole.parts[part], 224), expected)
        difference = np.abs(pixels_of(jpeg.parts[part], 224) - expected)
        assert 0 < difference.mean() < 1.5
        assert difference.max() < 60


def test_what_is_small_stays_byte_for_byte(few: dc.Benchmark, tmp_path: Path) -> None:
    reread = dc.read(pack(few, tmp_path / "packed"))
    for i in range(len(few.train)):
        assert reread.train.content(i) == few.train.content(i)
    smaller = dc.read(pack(few, tmp_path / "smaller", Packing(short_side=20, interpolation="bicubic")))
    assert smaller.train.open(0).size == (20, 20)
    assert smaller.train.content(0)[:2] == b"\xff\xd8"


def test_what_a_box_leaves_is_packed(few: dc.Benchmark, tmp_path: Path) -> None:
    boxes = np.tile([4, 8, 44, 38], (len(few.train), 1))
    boxes[0] = -1
    data = replace(few, train=replace(few.train, boxes=boxes))
    reread = dc.read(pack(data, tmp_path / "packed", Packing(lossless=True)))
    assert reread.train.boxes is None
    for i in (0, 1, 2):
        np.testing.assert_array_equal(np.asarray(reread.train.open(i)), np.asarray(data.train.open(i)))


@pytest.mark.parametrize("kept_in_memory", [1 << 30, 0])
def test_workers_read_it_at_random(kept_in_memory: int, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(pack_module, "IMAGES_A_FILE", 10)
    monkeypatch.setattr(encoded_images, "IN_MEMORY", kept_in_memory)
    monkeypatch.setattr(encoded_images, "_FILES_OPEN", 1)
    reread = dc.read(pack(dc.read(photos), tmp_path / "packed")).train
    assert isinstance(reread.encoded, encoded_images.RowGroups) == (kept_in_memory == 0)
    order = np.random.default_rng(0).permutation(len(reread)).tolist()
    expected = pixels_of(reread, 32)
    for workers in (0, 2):
        loader = DataLoader(
            Decoded(reread, EvalTransform(32)), batch_size=7, sampler=order, num_workers=workers, collate_fn=collate
        )
        for pixels, indices in batches_of(loader):
            np.testing.assert_array_equal(pixels.numpy(), expected[indices.numpy()])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.heavy
def test_stopped_it_goes_on(workers: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pack_module, "IMAGES_A_FILE", 8)
    data = dc.read(photos, test_fraction=None)
    whole = pack(data, tmp_path / "whole")
    out, reported = tmp_path / "packed", []

    def stop(progress: Progress) -> None:
        reported.append((progress.done, progress.total))
        if progress.done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(data, out, context=dc.Context(workers, stop))
    assert [path.name for path in out.iterdir()] == ["train-00000-of-00003.parquet"]
    first = (out / "train-00000-of-00003.parquet").stat()
    pack(data, out, context=dc.Context(workers, lambda p: reported.append((p.done, p.total))))
    assert reported[-1] == (40, 40)
    assert (out / "train-00000-of-00003.parquet").stat().st_mtime_ns == first.st_mtime_ns
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes()


def test_a_folder_that_is_something_else(photos: Path, few: dc.Benchmark, tmp_path: Path) -> None:
    data = dc.read(photos)
    out = pack(data, tmp_path / "packed")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(RunError, match="of other data or other settings"):
        pack(data, out, Packing(quality=80))
    with pytest.raises(RunError, match="of other data or other settings"):
        pack(few, out)
    assert before == {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "mine.txt").write_text("")
    with pytest.raises(RunError, match="holds mine"):
        pack(data, out)
    file = tmp_path / "vectors.parquet"
    write_benchmark_vectors(file, few, lambda images: np.zeros((len(images), 3), np.float32))
    with pytest.raises(DataError, match="holds vectors"):
        pack(dc.read(file), tmp_path / "other")
    with pytest.raises(ConfigError, match="`quality` 0: must be from 1 to 100"):
        Packing(quality=0)


def test_an_image_that_does_not_decode(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    bad = tmp_path / "photos" / "class 2" / "10.jpg"
    bad.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"10\.jpg"):
        pack(dc.read(tmp_path / "photos"), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize("kept_in_memory", [1 << 30, 0])
def test_a_flipped_bit_is_noticed(kept_in_memory: int, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(encoded_images, "IN_MEMORY", kept_in_memory)
    out = pack(dc.read(photos), tmp_path / "packed")
    file = out / "train-00000-of-00001.parquet"
    content = bytearray(file.read_bytes())
    group = pq.read_metadata(file).row_group(0)
    column: Any = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "image")
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet.*CRC checksum"):
        reread = dc.read(out)
        reread.train.open(0)


@pytest.mark.parametrize(
    "broken", [b"{", b"[]", b"{}", b'{"name": "x"}', b"\xff", b"[" * 100_000], ids=lambda text: repr(text[:9])
)
def test_a_damaged_pack_json(broken: bytes, few: dc.Benchmark, tmp_path: Path) -> None:
    out = pack(few, tmp_path / "packed")
    (out / "pack.json").write_bytes(broken)
    with pytest.raises(DataError, match=r"pack\.json: is damaged"):
        dc.read(out)
    (out / "pack.json").unlink()
    assert len(dc.read(out).train) == len(few.train)  # a folder of tables is left


def test_of_another_split(few: dc.Benchmark, tmp_path: Path) -> None:
    out = pack(few, tmp_path / "packed")
    about = json.loads((out / "pack.json").read_text())
    (out / "pack.json").write_text(json.dumps({**about, "split_hash": "0" * 16}))
    with pytest.raises(DataError, match="its split is 0000"):
        dc.read(out)


@pytest.mark.heavy
def test_from_the_command_line(photos: Path, tmp_path: Path, command: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = command("pack", photos, "--out", "packed", "--short-side", 36, "--workers", 0)
    assert code == 0
    assert "train with: divcon train packed" in out
    options = ["--backbone", "test_resnet", "--no-pretrained", "--size", "32", "--epochs", "1", "--learners", "2"]
    options += [
        "--batch-size",
        "8",
        "--images-per-class",
        "2",
        "--workers",
        "0",
        "--no-validation",
        "--method",
        "masks",
    ]
    code, _, err = command("train", "packed", "--out", "run", *options)
    assert code == 0, err
    packed = json.loads(Path("run/config.json").read_text())["packed"]
    assert packed == f"packed from {photos}: shorter side 36 (bilinear), as JPEG of quality 95"
    assert packed in err.replace("\n", " ")
    assert pa.types.is_binary(pq.read_schema("packed/train-00000-of-00001.parquet").field("image").type)


def test_progress_is_reported(few: dc.Benchmark, tmp_path: Path) -> None:
    reported: list[tuple[int, int | None]] = []
    dc.pack(few, tmp_path / "packed", context=dc.Context(on_progress=lambda p: reported.append((p.done, p.total))))
    total = len(few.train) + len(few.query)
    assert reported[-1] == (total, total)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
