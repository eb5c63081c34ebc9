"""Transforms of one's own: what they may be, what they may return, and that their random numbers are the image's."""

from __future__ import annotations

import pickle
import random
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from divcon.data.loading import Decoded, batches_of, collate, evaluation_batches
from divcon.data.readers.folder import images_of
from divcon.data.transforms import EvalTransform, create_transform
from divcon.errors import ConfigError
from divcon.runtime.context import Context

SIZE = 8


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))


@pytest.fixture
def images(make_images):
    root = make_images([f"{i}.png" for i in range(6)], size=(12, 10))
    return images_of(root)


def create(own, size: int = SIZE):
    return create_transform(own, size, "train_transform")


def pixels_of(image: Image.Image) -> torch.Tensor:
    """What all transforms below give: the left upper corner."""
    return torch.from_numpy(np.array(image)[:SIZE, :SIZE].transpose(2, 0, 1).copy())


class Albumentation:
    """The protocol of albumentations: called with keywords, generators of its own."""

    available_keys = ("image", "mask")

    def __init__(self) -> None:
        self.generator = np.random.default_rng()

    def set_random_seed(self, seed: int | None) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, *args, **data):
        assert not args, "call it with keywords"
        image = data["image"][:SIZE, :SIZE]
        return {"image": image[:, ::-1] if self.generator.random() < 0.5 else image}


def on_a_tensor(image: torch.Tensor) -> torch.Tensor:
    assert image.dtype == torch.uint8 and image.shape == (3, 12, 16)
    return image[:, :SIZE, :SIZE]


def on_an_array(image: np.ndarray) -> np.ndarray:
    assert image.shape == (12, 16, 3)
    return image[:SIZE, :SIZE]


def flips(image):
    """Draws from all generators that libraries draw from."""
    draws = [random.random(), np.random.random(), float(torch.rand(()))]  # noqa: NPY002
    return Image.new("RGB", (SIZE, SIZE), tuple(int(255 * draw) for draw in draws))


@pytest.mark.parametrize(
    "own",
    [
        lambda image: image.crop((0, 0, SIZE, SIZE)),
        lambda image: np.array(image)[:SIZE, :SIZE],
        lambda image: np.array(image)[:SIZE, :SIZE] / 255,
        lambda image: {"image": image.crop((0, 0, SIZE, SIZE))},
        v2.Compose([v2.ToImage(), lambda image: image[..., :SIZE, :SIZE]]),
        v2.Compose([v2.ToImage(), lambda i: i[..., :SIZE, :SIZE], v2.ToDtype(torch.float32, scale=True)]),
        v2.Compose([v2.ToImage(), lambda i: i[..., :SIZE, :SIZE], v2.ToDtype(torch.float16, scale=True)]),
        on_a_tensor,
        on_an_array,
    ],
)
def test_whatever_is_an_image_becomes_pixels(own, image):
    result = create(own)(image)
    assert type(result) is torch.Tensor and result.dtype == torch.uint8
    assert torch.equal(result, pixels_of(image))


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (
            v2.Compose([v2.ToImage(), v2.Resize((8, 8)), v2.ToDtype(torch.float32, True), v2.Normalize([0.5], [0.2])]),
            r"returned floats from -\S+ to \S+ \(torch\.float32\); return floats .*, or uint8\. Leave out Norm",
        ),
        (
            lambda image: np.array(image)[:8, :8].astype(np.float32),
            r"returned floats from \S+ to \d+ \(torch.float32\)",
        ),
        (lambda image: torch.full((3, 8, 8), torch.nan), "returned floats from nan to nan"),
        (
            lambda image: image,
            r"returned 12 x 16 \(height x width\) pixels, and the model takes 8 x 8: end it with a crop or resize",
        ),
        (lambda image: np.array(image.convert("L")), r"returned an array of shape \(12, 16\); return \(H, W, 3\)"),
        (lambda image: torch.zeros(1, 3, 8, 8), r"returned a tensor of shape \(1, 3, 8, 8\); return \(3, 8, 8\)"),
        (lambda image: torch.zeros(3, 8, 8, dtype=torch.int64), r"returned values of torch\.int64"),
        (lambda image: None, "returned NoneType; return a PIL image"),
        (lambda image: 1 / 0, r"failed with ZeroDivisionError: division by zero, in .*test_own_transform\.py line \d+"),
    ],
)
def test_what_is_no_image_is_an_error(own, message, image):
    with pytest.raises(ConfigError, match=message) as error:
        create(own)(image)
    assert error.value.field == "train_transform" and "for an image of 12 x 16 (height x width) pixels" in str(
        error.value
    )


class TestNames:
    SOURCE = """
from PIL import Image
from torchvision.transforms import v2

ready = v2.Compose([v2.CenterCrop(8)])
number = 3

class Crop:
    def __init__(self, image_size):
        self.size = image_size
    def __call__(self, image):
        return image.crop((0, 0, self.size, self.size))

class Fixed:
    def __call__(self, image):
        return image.crop((0, 0, 8, 8))

def factory(image_size, shift=0):
    return v2.Compose([v2.CenterCrop(image_size)])

def without():
    return Fixed()

def plain(image):
    return image.crop((0, 0, 8, 8))

def returns_nothing(image_size):
    pass

def fails(image_size):
    raise KeyError("scale")
"""

    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "my_transforms.py").write_text(self.SOURCE)
        monkeypatch.syspath_prepend(tmp_path)
        yield
        sys.modules.pop("my_transforms", None)

    @pytest.mark.parametrize("name", ["ready", "Crop", "Fixed", "factory", "without", "plain"])
    def test_objects_classes_factories_and_functions(self, name, image):
        own = create(f"my_transforms:{name}")
        assert own(image).shape == (3, 8, 8) and own.name == f"my_transforms:{name}"
        assert pickle.loads(pickle.dumps(own))(image).shape == (3, 8, 8)

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("number", "`train_transform` my_transforms:number: int is not callable"),
            ("returns_nothing", "returned NoneType, which is not callable"),
            ("fails", r"creating it failed with KeyError: 'scale'"),
            ("gone", "unknown name in my_transforms 'gone'"),
        ],
    )
    def test_names_of_none(self, name, message):
        with pytest.raises(ConfigError, match=message):
            create(f"my_transforms:{name}")


class TestRandomNumbers:
    @pytest.mark.parametrize("own", [flips, Albumentation()], ids=["flips", "albumentations"])
    def test_are_of_seed_epoch_and_position(self, own, images):
        def batch(workers: int, seed: int = 0, epoch: int = 0) -> torch.Tensor:
            decoded = Decoded(images, EvalTransform(SIZE), create(own), seed)
            keys = [(i % 6, epoch, i) for i in range(24)]
            loader = DataLoader(decoded, batch_sampler=[keys[:9], keys[9:]], num_workers=workers, collate_fn=collate)
            return torch.cat([pixels for pixels, _ in batches_of(loader)])

        one = batch(0)
        assert torch.equal(one, batch(0)) and torch.equal(one, batch(2))
        if own is flips:  # one colour an image
            assert len(one[:, :, 0, 0].unique(dim=0)) == 24
            assert not torch.equal(one, batch(0, seed=1)) and not torch.equal(one, batch(0, epoch=1))

    def test_leave_the_generators_as_they_were(self, image):
        def draws():
            return random.random(), np.random.random(), float(torch.rand(()))  # noqa: NPY002

        def seed():
            random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002

        seed()
        expected = draws()
        seed()
        create(flips)(image, 7)
        assert draws() == expected

    def test_of_evaluation_do_not_depend_on_workers(self, images):
        own = create_transform(flips, SIZE, "eval_transform")
        alone, shared = (
            torch.cat([p for p, _ in evaluation_batches(images, own, batch_size=2, context=Context(workers=workers))])
            for workers in (0, 2)
        )
        assert torch.equal(alone, shared)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_error_names_the_image(workers, images):
    own = create_transform(lambda image: image, SIZE, "eval_transform")
    with pytest.raises(
        ConfigError, match=r"images/0\.png: `eval_transform` .*: returned 10 x 12 \(height x width\) pixels"
    ) as error:
        list(evaluation_batches(images, own, batch_size=2, context=Context(workers=workers)))
    assert error.value.field == "eval_transform"


def test_albumentations(images):
    albumentations = pytest.importorskip("albumentations", reason="it is no dependency")
    pipeline = albumentations.Compose(
        [albumentations.RandomCrop(SIZE, SIZE), albumentations.HorizontalFlip(), albumentations.ColorJitter()]
    )

    def batch(workers: int) -> torch.Tensor:
        keys = [(i % 6, 0, i) for i in range(24)]
        decoded = Decoded(images, EvalTransform(SIZE), create(pipeline), 0)
        loader = DataLoader(decoded, batch_sampler=[keys[:9], keys[9:]], num_workers=workers, collate_fn=collate)
        return torch.cat([pixels for pixels, _ in batches_of(loader)])

    one = batch(0)
    assert torch.equal(one, batch(0)) and torch.equal(one, batch(2)) and len(one.unique(dim=0)) > 6
    normalised = albumentations.Compose([albumentations.CenterCrop(SIZE, SIZE), albumentations.Normalize()])
    with pytest.raises(ConfigError, match="Leave out Normalize"):
        create(normalised)(images.open(0))
