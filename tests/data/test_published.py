"""The published data sets, read from trees of their original layouts."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divcon.data.benchmark import Benchmark
from divcon.data.published import PUBLISHED_COUNTS
from divcon.data.published.counts import differences
from divcon.data.read import read
from divcon.errors import ConfigError, DataError

TABLE = {
    "cub": {"train": (100, 5864), "test": (100, 5924)},
    "cars": {"train": (98, 8054), "test": (98, 8131)},
    "sop": {"train": (11318, 59551), "test": (11316, 60502)},
    "inshop": {"train": (3997, 25882), "query": (3985, 14218), "gallery": (3985, 12612)},
    "vehicleid-small": {"train": (13164, 113346), "test": (800, 6493)},
    "vehicleid-medium": {"train": (13164, 113346), "test": (1600, 13377)},
    "vehicleid-large": {"train": (13164, 113346), "test": (2400, 19777)},
    "market1501": {"train": (751, 12936), "query": (750, 3368), "gallery": (752, 19732)},
}
"""The published numbers, typed a second time: classes and images of each part."""
NAMES = ("cub", "cars", "cars_devkit", "sop", "inshop", "vehicleid", "market1501")
"""Of what is written: cars in both forms."""
Write = Callable[..., Path]


@pytest.fixture
def write(trees: ModuleType, tmp_path: Path) -> Write:
    """``write("cub")`` makes a small tree, whose images are there unless ``put`` says otherwise."""

    def make(name: str, put: object = None, at: str = "tree", **options: object) -> Path:
        sizes = {**trees.SMALL[name], **options}
        return getattr(trees, f"write_{name}")(tmp_path / at, **sizes, put=put or trees.draw)

    return make


def numbers(data: Benchmark) -> dict[str, tuple[int, int]]:
    return {part: (len(set(images.labels.tolist())), len(images)) for part, images in data.parts.items()}


def labels(images: object) -> list[str]:
    return [images.label_name(i) for i in range(len(images))]  # type: ignore[attr-defined]


def check_sound(data: Benchmark) -> None:
    """No class is in train and in test, and no image twice."""
    train, *test = ({images.label_names[c] for c in images.labels} for images in data.parts.values())
    assert not any(train & names for names in test)
    paths = [path for images in data.parts.values() for path in images.paths.to_pylist()]
    assert len(paths) == len(set(paths))
    rows = [row for images in data.parts.values() for row in images.rows.tolist()]
    assert len(rows) == len(set(rows))


def test_the_published_numbers_are_those_of_the_papers() -> None:
    assert {name: dict(published.parts) for name, published in PUBLISHED_COUNTS.items()} == TABLE
    assert {name: published.recall_at for name, published in PUBLISHED_COUNTS.items()} == {
        "cub": (1, 2, 4, 8),
        "cars": (1, 2, 4, 8),
        "sop": (1, 10, 100, 1000),
        "inshop": (1, 10, 20, 30, 50),
        "vehicleid-small": (1, 5),
        "vehicleid-medium": (1, 5),
        "vehicleid-large": (1, 5),
        "market1501": (1, 5, 10),
    }
    with pytest.raises(TypeError):
        PUBLISHED_COUNTS["cub"] = PUBLISHED_COUNTS["cars"]  # type: ignore[index]


class TestFullCounts:
    """Lists at the published numbers; the images are hard links to one."""

    @pytest.fixture
    def full(self, trees: ModuleType, tmp_path: Path) -> Iterator[Write]:
        def make(name: str, put: object = None) -> Path:
            links = put or trees.Links(tmp_path / name)
            return getattr(trees, f"write_{name}")(
                tmp_path / name, **trees.FULL[name.removesuffix("_devkit")], put=links
            )

        yield make
        shutil.rmtree(tmp_path)

    @pytest.mark.heavy
    @pytest.mark.parametrize(
        "name",
        [
            "cub",
            "market1501",
            pytest.param("inshop", marks=pytest.mark.slow),
            pytest.param("cars", marks=pytest.mark.slow),
            pytest.param("cars_devkit", marks=pytest.mark.slow),
            pytest.param("sop", marks=pytest.mark.slow),
            pytest.param("vehicleid", marks=pytest.mark.slow),
        ],
    )
    def test_with_every_image(self, full: Write, name: str) -> None:
        root = full(name)
        names = (
            [n for n in PUBLISHED_COUNTS if n.startswith(name)]
            if name == "vehicleid"
            else [name.removesuffix("_devkit")]
        )
        for each in names:
            data = read(each, root)
            assert (data.name, numbers(data), data.notes) == (each, TABLE[each], ())
            assert data.recall_at == PUBLISHED_COUNTS[each].recall_at
            check_sound(data)

    @pytest.mark.heavy
    @pytest.mark.parametrize("name", ["sop", "inshop", "vehicleid"])
    def test_by_the_lists_alone(self, full: Write, trees: ModuleType, name: str) -> None:
        root = full(name, put=trees.nothing)
        folder = root / {"sop": "bicycle_final", "inshop": "Img/img", "vehicleid": "image"}[name]
        folder.mkdir(parents=True)
        data = read(name, root, check_files=False)
        assert not differences(data, PUBLISHED_COUNTS[data.name])
        check_sound(data)
        with pytest.raises(
            DataError, match=rf"([\d,]+) of \1 images are missing \({folder.name}/\S+, \S+, \S+, \.\.\.\)"
        ):
            read(name, root)


@pytest.mark.heavy
@pytest.mark.parametrize("name", NAMES)
def test_every_reader(write: Write, name: str) -> None:
    root = write(name)
    data = read(name.removesuffix("_devkit"), root)
    check_sound(data)
    assert numbers(data)["train"] == (4, 20) and data.train.flip
    assert sum("are published" in note for note in data.notes) >= 4
    for images in data.parts.values():
        assert images.open(len(images) - 1).size == (32, 32)
        assert Path(images.where(0)).is_file() and images.where(0).endswith(images.path(0))
    unchecked = read(name.removesuffix("_devkit"), root, check_files=False)
    assert unchecked.split_hash == data.split_hash and not unchecked.notes


def test_the_hash_is_of_the_data_not_of_its_place(write: Write) -> None:
    one, two = (read("cub", write("cub", at=at)) for at in ("one", "two"))
    assert (one.split_hash, one.train.fingerprint) == (two.split_hash, two.train.fingerprint)


def test_cub_names_its_classes(write: Write) -> None:
    data = read("cub", write("cub"))
    assert data.protocol == "leave-one-out"
    assert set(labels(data.train)) == {f"{i:03d}.Bird_{i}" for i in (1, 2, 3, 4)}
    assert set(labels(data.query)) == {f"{i:03d}.Bird_{i}" for i in (101, 102, 103, 104)}


@pytest.mark.heavy
def test_cars_are_the_same_in_both_forms(write: Write) -> None:
    one, two = read("cars", write("cars")), read("cars", write("cars_devkit", at="devkit"))
    assert Counter(labels(one.train)) == Counter(labels(two.train))
    assert Counter(labels(one.query)) == Counter(labels(two.query))
    assert set(labels(one.query)) == {f"Maker Model {i} 20{i % 13:02d}" for i in (99, 100, 101, 102)}
    # Of both folders: what the devkit trains on and what it tests on is another split.
    assert {two.train.path(i).partition("/")[0] for i in range(len(two.train))} == {"cars_train", "cars_test"}


@pytest.mark.heavy
def test_the_labels_of_cars_test_may_lie_in_the_devkit(write: Write) -> None:
    root = write("cars_devkit")
    before = read("cars", root).split_hash
    (root / "cars_test_annos_withlabels.mat").rename(root / "devkit" / "cars_test_annos_withlabels.mat")
    assert read("cars", root).split_hash == before


def test_sop_counts_from_one_and_calls_classes_by_folder_and_number(write: Write) -> None:
    data = read("sop", write("sop"))
    assert (
        data.train.label_names
        == data.query.label_names
        == (
            *("bicycle 1", "coffee_maker 2", "lamp 3", "stapler 4"),
            *("bicycle 5", "coffee_maker 6", "lamp 7", "stapler 8"),
        )
    )
    assert data.train.classes.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("images", ["Img/img", "img", "Img/img_highres", "img_highres"])
@pytest.mark.parametrize("listed", ["Eval", "."])
def test_inshop_wherever_its_parts_are(write: Write, images: str, listed: str) -> None:
    data = read("inshop", write("inshop", images=images, listed=listed))
    assert data.protocol == "query-gallery"
    assert numbers(data) == {"train": (4, 20), "query": (4, 8), "gallery": (4, 12)}
    assert data.query.path(0).startswith(images.removeprefix("Img/") + "/")
    assert all(name.startswith("id_0000000") for name in labels(data.train))


def test_inshop_takes_img_where_both_sizes_are_there(write: Write, trees: ModuleType) -> None:
    root = write("inshop")
    shutil.copytree(root / "Img" / "img", root / "Img" / "img_highres")
    data = read("inshop", root)
    assert data.query.path(0).startswith("img/")
    assert "both sizes are there: img is read, not img_highres" in data.notes
    data = read("inshop", root, images="img_highres")
    assert data.query.path(0).startswith("img_highres/")
    assert not any("both sizes" in note for note in data.notes)


def test_vehicleid_has_three_tests(write: Write) -> None:
    root = write("vehicleid")
    by_size = {size: read(f"vehicleid-{size}", root) for size in ("small", "medium", "large")}
    assert [data.query.num_classes for data in by_size.values()] == [4, 5, 6]
    assert len({data.train.fingerprint for data in by_size.values()}) == 1
    assert read("vehicleid", root).split_hash == by_size["large"].split_hash
    assert read("vehicleid", root, size="small").name == "vehicleid-small"
    with pytest.raises(ConfigError, match="vehicleid: unknown size 'smal'; did you mean 'small'"):
        read("vehicleid", root, size="smal")


def test_the_other_images_of_vehicleid_are_no_surprise(write: Write) -> None:
    assert not any("no list" in note for note in read("vehicleid-small", write("vehicleid")).notes)


def test_vehicleid_images_vary_and_its_classes_do_not(write: Write) -> None:
    differing = differences(read("vehicleid-small", write("vehicleid")), PUBLISHED_COUNTS["vehicleid-small"])
    assert [(each.part, each.things, each.fails) for each in differing] == [
        ("train", "classes", True),
        ("train", "images", False),
        ("test", "classes", True),
        ("test", "images", False),
    ]


def test_market_has_cameras_distractors_and_junk(write: Write) -> None:
    data = read("market1501", write("market1501"))
    assert data.protocol == "query-gallery"
    assert numbers(data) == {"train": (4, 20), "query": (4, 8), "gallery": (6, 19)}
    assert Counter(labels(data.gallery))["0000"] == 4 and Counter(labels(data.gallery))["-1"] == 3
    for images in (data.train, data.query, data.gallery):
        for i in range(len(images)):
            name = images.path(i).rpartition("/")[2]
            assert name.startswith(f"{images.label_name(i)}_c{images.cameras[i]}s")
    assert set(data.query.groups) == {0} and data.train.groups is None
    assert [group == 0 for group in data.gallery.groups] == [name == "-1" for name in labels(data.gallery)]


@pytest.mark.parametrize("name", NAMES)
def test_thumbnails_of_a_storage_device_are_no_images(write: Write, name: str) -> None:
    """Synology's lie in a folder beside the images, in folders that are called as the images are."""
    root = write(name)
    named = "vehicleid-small" if name == "vehicleid" else name.removesuffix("_devkit")
    before = read(named, root)
    image = next(path for path in sorted(root.rglob("*.*")) if path.suffix.lower() == ".jpg")
    thumb = image.parent / "@eaDir" / image.name / "SYNOPHOTO_THUMB_M.jpg"
    thumb.parent.mkdir(parents=True)
    shutil.copy(image, thumb)
    after = read(named, root)
    assert after.split_hash == before.split_hash and after.notes == before.notes


def test_images_that_no_list_names_are_reported(write: Write, trees: ModuleType) -> None:
    root = write("cub")
    trees.draw(root / "images" / "001.Bird_1" / "mine.jpg", 1)
    (note,) = (note for note in read("cub", root).notes if "no list" in note)
    assert note == "1 image is there that no list of cub names, and left out (images/001.Bird_1/mine.jpg)"


@pytest.mark.heavy
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 4), min_size=4, max_size=7), st.lists(st.integers(1, 4), min_size=4, max_size=7))
def test_what_is_read_is_what_was_written(
    trees: ModuleType, tmp_path_factory: pytest.TempPathFactory, train: list[int], test: list[int]
) -> None:
    train, test = [2, 2, *train], [2, 2, *test]
    folder = tmp_path_factory.mktemp("written")
    for name in ("cub", "sop", "cars"):
        root = getattr(trees, f"write_{name}")(folder / name, train=train, test=test, put=trees.nothing)
        for images in ("images", "car_ims"):
            (root / images).mkdir(exist_ok=True)
        data = read(name, root, check_files=False)
        for sizes, images in ((train, data.train), (test, data.query)):
            assert np.bincount(images.labels)[images.classes].tolist() == sizes


def test_every_one_needs_a_place() -> None:
    for name in PUBLISHED_COUNTS:
        with pytest.raises(DataError, match="say where it is: the folder as it is unpacked"):
            read(name)
