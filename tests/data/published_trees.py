"""Trees of the published data sets as their archives unpack: the layouts, list files and file names of the originals
with their quirks, and tiny images in place of theirs.

    write_cub(root, train=[5] * 4, test=[5] * 4, put=draw)
    write_cub(root, **FULL["cub"], put=Links(root))

``train`` and ``test`` say how many images each class has. What ``put`` does decides what lies at the paths: `draw`
makes images of their own, `Links` hard links to one, `nothing` leaves them out.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

Put = Callable[[Path, int], None]
"""Called with the path of each image and a number of its class."""
Sizes = Sequence[int]
Pairs = Sequence[tuple[int, int]]
"""Of each class of the test: how many are queries, how many are in the gallery."""


def draw(path: Path, label: int) -> None:
    """A small JPEG: classes differ in colour, and images of a class in noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = np.random.default_rng([label, *path.name.encode()])
    colour = np.random.default_rng(label).integers(0, 256, 3)
    pixels = np.clip(colour + seed.integers(-60, 61, (8, 8, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path, "JPEG")


def nothing(path: Path, label: int) -> None:
    """No image."""


class Links:
    """Hard links to one tiny JPEG, and to a copy of it where a file system has no more links to give."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.copies = 0
        self.made: set[str] = set()
        self._new()

    def _new(self) -> None:
        self.copies += 1
        self.jpeg = self.root.parent / f"{self.root.name}-{self.copies}.jpg"
        self.jpeg.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (90, 120, 150)).save(self.jpeg, "JPEG")

    def __call__(self, path: Path, label: int) -> None:
        folder = os.path.dirname(path)  # noqa: PTH120
        if folder not in self.made:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.made.add(folder)
        try:
            os.link(self.jpeg, path)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            self._new()
            os.link(self.jpeg, path)


def spread(images: int, classes: int) -> list[int]:
    """So many images over so many classes, as evenly as it goes."""
    return [images // classes + (i < images % classes) for i in range(classes)]


FULL: dict[str, dict[str, Any]] = {
    "cub": {"train": spread(5864, 100), "test": spread(5924, 100)},
    "cars": {"train": spread(8054, 98), "test": spread(8131, 98)},
    "sop": {"train": spread(59551, 11318), "test": spread(60502, 11316)},
    "inshop": {
        "train": spread(25882, 3997),
        "test": list(zip(spread(14218, 3985), spread(12612, 3985), strict=True)),
    },
    "vehicleid": {
        "train": spread(113346, 13164),
        "tests": {800: spread(6493, 800), 1600: spread(13377, 1600), 2400: spread(19777, 2400)},
    },
    "market1501": {
        "train": spread(12936, 751),
        "test": list(zip(spread(3368, 750), spread(13115, 750), strict=True)),
        "distractors": 2798,
        "junk": 3819,
    },
}
"""What the writers take to give the published numbers, for which these stand a second time."""


_FIVE: dict[str, Any] = {"train": [5] * 4, "test": [5] * 4}
_PAIRS: dict[str, Any] = {"train": [5] * 4, "test": [(2, 3)] * 4}
SMALL: dict[str, dict[str, Any]] = {
    "cub": _FIVE,
    "cars": _FIVE,
    "cars_devkit": _FIVE,
    "sop": _FIVE,
    "inshop": _PAIRS,
    "vehicleid": {"train": [5] * 4, "tests": {800: [5] * 4, 1600: [5] * 5, 2400: [5] * 6}},
    "market1501": {**_PAIRS, "distractors": 4, "junk": 3},
}
"""What they take to give a few classes, by the name of the writer."""


def write_cub(root: Path, train: Sizes, test: Sizes, put: Put) -> Path:
    """``CUB_200_2011``: the classes to train on are the first of 200."""
    root.mkdir(parents=True)
    ids = [*range(1, len(train) + 1), *range(101, 101 + len(test))]
    names = {label: f"{label:03d}.Bird_{label}" for label in ids}
    images, classes = [], []
    for label, size in zip(ids, [*train, *test], strict=True):
        for k in range(size):
            number = len(images) + 1
            path = f"{names[label]}/Bird_{label}_{k:04d}_{number}.jpg"
            images.append(f"{number} {path}")
            classes.append(f"{number} {label}")
            put(root / "images" / path, label)
    _write(root / "images.txt", images)
    _write(root / "image_class_labels.txt", classes)
    _write(root / "classes.txt", [f"{label} {name}" for label, name in names.items()])
    _write(root / "train_test_split.txt", [f"{i + 1} {i % 2}" for i in range(len(images))])
    return root


def write_cars(root: Path, train: Sizes, test: Sizes, put: Put) -> Path:
    """``car_ims`` and ``cars_annos.mat``."""
    root.mkdir(parents=True)
    classes = _car_classes(train, test)
    paths = [f"car_ims/{i + 1:06d}.jpg" for i in range(len(classes))]
    for path, label in zip(paths, classes, strict=True):
        put(root / path, label)
    annotations = _struct(
        {"relative_im_path": paths, **_boxes(len(paths)), "class": classes, "test": [i % 2 for i in range(len(paths))]}
    )
    scipy.io.savemat(root / "cars_annos.mat", {"annotations": annotations, "class_names": _car_names()})
    return root


def write_cars_devkit(root: Path, train: Sizes, test: Sizes, put: Put) -> Path:
    """``cars_train``, ``cars_test`` and ``devkit``, whose split shares out the images of every class."""
    (root / "devkit").mkdir(parents=True)
    classes = _car_classes(train, test)
    for part, place in (("train", ""), ("test", "_withlabels")):
        labels = classes[::2] if part == "train" else classes[1::2]
        names = [f"{i + 1:05d}.jpg" for i in range(len(labels))]
        for name, label in zip(names, labels, strict=True):
            put(root / f"cars_{part}" / name, label)
        annotations = {**_boxes(len(names)), "class": labels, "fname": names}
        folder = root if place else root / "devkit"
        scipy.io.savemat(folder / f"cars_{part}_annos{place}.mat", {"annotations": _struct(annotations)})
        if place:
            annotations.pop("class")
            scipy.io.savemat(root / "devkit" / "cars_test_annos.mat", {"annotations": _struct(annotations)})
    scipy.io.savemat(root / "devkit" / "cars_meta.mat", {"class_names": _car_names()})
    return root


def write_sop(root: Path, train: Sizes, test: Sizes, put: Put) -> Path:
    """``Stanford_Online_Products``: images and classes are counted from 1 on, through both lists."""
    kinds = ("bicycle", "cabinet", "chair", "coffee_maker", "fan", "kettle", "lamp", "mug", "sofa", "stapler")
    kinds += ("table", "toaster")
    root.mkdir(parents=True)
    image = label = 0
    for name, sizes in (("Ebay_train.txt", train), ("Ebay_test.txt", test)):
        lines = ["image_id class_id super_class_id path"]
        for place, size in enumerate(sizes):
            label += 1
            kind = place * len(kinds) // len(sizes)
            for k in range(size):
                image += 1
                path = f"{kinds[kind]}_final/{110000000000 + label}_{k}.JPG"
                lines.append(f"{image} {label} {kind + 1} {path}")
                put(root / path, label)
        _write(root / name, lines)
    return root


def write_inshop(
    root: Path, train: Sizes, test: Pairs, put: Put, images: str = "Img/img", listed: str = "Eval"
) -> Path:
    """The list with its two lines above, and columns filled up with spaces; ids alternate between train and test."""
    lines = []
    kinds = ("MEN/Denim", "MEN/Jackets_Vests", "WOMEN/Blouses_Shirts", "WOMEN/Dresses")
    sizes = [(("train", n),) for n in train] + [(("query", q), ("gallery", g)) for q, g in test]
    order = sorted(range(len(sizes)), key=lambda i: (i % max(1, len(train)), i))
    for item, i in enumerate(order, 1):
        for status, size in sizes[i]:
            for k in range(size):
                path = f"{kinds[item % 4]}/id_{item:08d}/{k + 1:02d}_{status == 'query':d}_front.jpg"
                lines.append(f"{f'img/{path}':<72}{f'id_{item:08d}':<12}{status:<10}")
                put(root / images / path, item)
    (root / listed).mkdir(parents=True, exist_ok=True)
    header = "image_name item_id evaluation_status"
    _write(root / listed / "list_eval_partition.txt", [str(len(lines)), header, *lines])
    return root


def write_vehicleid(root: Path, train: Sizes, tests: dict[int, Sizes], put: Put) -> Path:
    """``VehicleID_V1.0``: each test has vehicles of its own."""
    image = vehicle = 0
    for name, sizes in [("train_list", train), *((f"test_list_{n}", sizes) for n, sizes in tests.items())]:
        lines = []
        for size in sizes:
            vehicle += 1
            for _ in range(size):
                image += 1
                lines.append(f"{image:07d} {vehicle}")
                put(root / "image" / f"{image:07d}.jpg", vehicle)
        (root / "train_test_split").mkdir(parents=True, exist_ok=True)
        _write(root / "train_test_split" / f"{name}.txt", lines)
    return root


def write_market1501(root: Path, train: Sizes, test: Pairs, put: Put, distractors: int = 0, junk: int = 0) -> Path:
    """``Market-1501-v15.09.15``: everybody is seen by the six cameras in turn, and Windows was here."""
    frame = 0

    def image(folder: str, person: str, camera: int) -> None:
        nonlocal frame
        frame += 1
        name = f"{person}_c{camera}s{1 + frame % 6}_{frame:06d}_{frame % 9:02d}.jpg"
        put(root / folder / name, int(person) + 1)

    for number, size in enumerate(train):
        for k in range(size):
            image("bounding_box_train", f"{2 * number + 2:04d}", 1 + k % 6)
    for number, (queries, items) in enumerate(test):
        for k in range(queries):
            image("query", f"{2 * number + 1:04d}", 1 + k % 6)
        for k in range(items):
            image("bounding_box_test", f"{2 * number + 1:04d}", 1 + k % 6)
    for k in range(distractors):
        image("bounding_box_test", "0000", 1 + k % 6)
    for k in range(junk):
        image("bounding_box_test", "-1", 1 + k % 6)
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    _write(root / "readme.txt", ["Market-1501"])
    return root


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _car_classes(train: Sizes, test: Sizes) -> list[int]:
    ids = [*range(1, len(train) + 1), *range(99, 99 + len(test))]
    return [label for label, size in zip(ids, [*train, *test], strict=True) for _ in range(size)]


def _car_names() -> np.ndarray:
    return np.array([[f"Maker Model {label} 20{label % 13:02d}" for label in range(1, 197)]], dtype=object)


def _boxes(n: int) -> dict[str, list[int]]:
    return {name: [value] * n for name, value in (("bbox_x1", 1), ("bbox_y1", 1), ("bbox_x2", 30), ("bbox_y2", 30))}


def _struct(fields: dict[str, list[Any]]) -> np.ndarray:
    """A MATLAB structure array, 1 x N, as that of the devkit."""
    array = np.empty((1, len(next(iter(fields.values())))), dtype=[(name, object) for name in fields])
    for name, values in fields.items():
        array[name][0] = values
    return array
