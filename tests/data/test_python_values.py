"""Python values as data: frames, lists, dicts, datasets of Hugging Face and PyTorch; images in every form alike."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.data.inputs import as_benchmark, as_labeled_set
from divcon.errors import DataError, ImageError
from divcon.models.inputs import as_set
from divcon.search.items import set_of

NAMES = [f"{c}{i}.png" for c in "abcd" for i in (1, 2)]
LABELS = list("aabbccdd")
SPLIT = ["train"] * 4 + ["test"] * 4
VECTORS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


@pytest.fixture
def folder(make_images) -> Path:
    return make_images(NAMES)


@pytest.fixture
def paths(folder) -> list[str]:
    return [str(folder / name) for name in NAMES]


@pytest.fixture
def images(paths) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in paths]


def colours(images: dc.LabeledSet) -> list[tuple[int, int, int]]:
    return [images.open(i).getpixel((0, 0)) for i in range(len(images))]


def names(images: dc.LabeledSet) -> list[str]:
    return [images.label_name(i) for i in range(len(images))]


def assert_same(data: dc.Benchmark, colour_of) -> None:
    assert (names(data.train), names(data.query)) == (LABELS[:4], LABELS[4:])
    assert colours(data.train) + colours(data.query) == [colour_of(name) for name in NAMES]


FORMS = {
    "PIL": lambda image: image,
    "array": np.asarray,
    "channels first": lambda image: np.asarray(image).transpose(2, 0, 1),
    "tensor": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1),
    "tensor, channels last": lambda image: torch.from_numpy(np.array(image)),
    "floats": lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
    "floats to 255": lambda image: np.asarray(image, np.float64),
    "uint16": lambda image: np.asarray(image).astype(np.uint16) * 257,
    "transparent": lambda image: np.asarray(image.convert("RGBA")),
}


def png(image: Image.Image) -> bytes:
    image.save(content := io.BytesIO(), "PNG")
    return content.getvalue()


FORMS |= {"bytes": png, "BytesIO": lambda image: io.BytesIO(png(image)), "bytearray": lambda i: bytearray(png(i))}


class TestImages:
    @pytest.mark.parametrize("form", FORMS)
    def test_every_form_is_read_alike(self, form, images, colour_of):
        forms = [FORMS[form](image) for image in images]
        assert_same(dc.read({"image": forms, "label": LABELS, "split": SPLIT}), colour_of)
        rows = [{"img": image, "label": a, "split": b} for image, a, b in zip(forms, LABELS, SPLIT, strict=True)]
        assert_same(dc.read(rows), colour_of)
        expected = [colour_of(name) for name in NAMES]
        for data in ((forms, LABELS), list(zip(forms, LABELS, strict=True))):
            held = as_labeled_set(data)
            assert colours(held) == expected and names(held) == LABELS
            assert as_benchmark(data).query.num_classes == 4
        # To encode or to index.
        assert colours(as_set(forms)) == colours(set_of(forms)) == expected
        assert colours(as_set(forms[0])) == expected[:1]

    def test_batches(self, images, colour_of):
        array = np.stack([np.asarray(image) for image in images])
        tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
        for batch in (array, tensor, tensor / 255):
            assert colours(as_set(batch)) == colours(set_of(batch)) == [colour_of(name) for name in NAMES]
            assert colours(as_labeled_set((batch, LABELS))) == [colour_of(name) for name in NAMES]

    def test_grey(self):
        grey = np.full((5, 7), 130, np.uint8)
        for value in ([grey], [torch.from_numpy(grey)], grey[..., None], torch.from_numpy(grey)[None], grey > 0):
            held = as_set([value] if getattr(value, "ndim", 0) == 2 else value)
            assert held.open(0).size == (7, 5)
            assert len(set(held.open(0).getpixel((0, 0)))) == 1

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (torch.full((3, 4, 4), -0.5), "its pixels are from -0.5 to -0.5; pass them from 0 to 1 or from 0 to 255"),
            (np.full((4, 4, 3), 300), "its pixels are from 300 to 300"),
            (np.full((4, 4, 3), np.nan), "its pixels are from nan to nan"),
        ],
    )
    def test_pixels_that_are_none(self, value, said):
        with pytest.raises(ImageError, match=f"the image: this image does not decode.*{said}"):
            as_set(value)
        with pytest.raises(ImageError, match=f"image 0: this image does not decode.*{said}"):
            dc.read({"image": [value] * 4, "label": list("aabb")})

    def test_paths(self, paths, colour_of):
        pairs = [(Path(path), label) for path, label in zip(paths, LABELS, strict=True)]
        assert colours(as_labeled_set(pairs)) == [colour_of(name) for name in NAMES]
        assert as_labeled_set((paths, LABELS)).path(0) == paths[0]
        assert_same(dc.read(list(zip(paths, LABELS, SPLIT, strict=True))), colour_of)
        with pytest.raises(DataError, match="row 1: the label is empty"):
            as_labeled_set([(paths[0], "a"), (paths[1], None)])


class TestVectors:
    @pytest.mark.parametrize(
        "form",
        [VECTORS, torch.from_numpy(VECTORS), VECTORS.tolist(), list(VECTORS), list(torch.from_numpy(VECTORS))],
        ids=["array", "tensor", "lists", "arrays", "tensors"],
    )
    def test_every_form(self, form):
        data = dc.read({"embedding": form, "label": LABELS, "split": SPLIT})
        np.testing.assert_allclose(data.train.vectors, VECTORS[:4])
        np.testing.assert_allclose(as_labeled_set((form, LABELS)).vectors, VECTORS)
        np.testing.assert_allclose(as_set(form).vectors, VECTORS)
        assert len(dc.read((form, LABELS)).train) == 4

    def test_lengths(self):
        with pytest.raises(DataError, match="vector 1 has 2 numbers, where the first has 3"):
            as_set([[1.0, 2.0, 3.0], [1.0, 2.0]])


@pytest.mark.parametrize("library", ["pandas", "polars"])
class TestFrames:
    def test_paths(self, library, folder, paths, colour_of):
        frame = pytest.importorskip(library).DataFrame({"filename": NAMES, "category": LABELS, "subset": SPLIT})
        assert_same(dc.read(frame, folder), colour_of)
        assert_same(dc.read(frame.head(8), folder, label_column="category"), colour_of)
        absolute = pytest.importorskip(library).DataFrame({"filename": paths, "category": LABELS})
        assert names(as_labeled_set(absolute)) == LABELS
        assert colours(as_set(absolute)) == colours(set_of(absolute)) == [colour_of(name) for name in NAMES]

    def test_images_and_vectors(self, library, images, colour_of):
        module = pytest.importorskip(library)
        data = {"label": LABELS, "split": SPLIT}
        assert_same(dc.read(module.DataFrame({"image": [png(image) for image in images], **data})), colour_of)
        vectors = dc.read(module.DataFrame({"embedding": list(VECTORS), **data}))
        np.testing.assert_array_equal(vectors.train.vectors, VECTORS[:4])
        if library == "pandas":
            assert_same(dc.read(module.DataFrame({"image": images, **data})), colour_of)
            assert_same(dc.read(module.DataFrame({"image": images, **data}, index=range(3, 11))), colour_of)


def test_categories_of_polars(folder, paths, colour_of, tmp_path):
    polars = pytest.importorskip("polars")
    for kind in (polars.Categorical, polars.Enum(sorted(set(LABELS)))):
        frame = polars.DataFrame({"path": paths, "label": polars.Series(LABELS, dtype=kind), "split": SPLIT})
        assert_same(dc.read(frame), colour_of)
        frame.write_ipc(tmp_path / "t.arrow")
        assert_same(dc.read(tmp_path / "t.arrow"), colour_of)


def test_what_is_read_row_after_row_is_named():
    polars = pytest.importorskip("polars")

    class Streamed(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(())

    rows = zip(NAMES, LABELS, strict=True)
    for value, advice in (
        (rows, "zip cannot be read: its rows are there one after the other.*pass a list of them"),
        ((row for row in rows), "generator cannot be read: .*pass a list of them"),
        (Streamed(), "Streamed cannot be read: .*pass a list of them"),
        (polars.LazyFrame({"path": NAMES}), r"LazyFrame cannot be read: pass its rows \(`.collect\(\)`\)"),
        (torch.utils.data.DataLoader(Pairs([], [])), "a DataLoader makes batches of its rows; pass its dataset"),
    ):
        with pytest.raises(DataError, match=advice):
            dc.read(value)


class TestHuggingFace:
    @pytest.fixture
    def datasets(self):
        return pytest.importorskip("datasets")

    def rows(self, datasets, images):
        features = datasets.Features({"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=list("abcd"))})
        numbers = ["abcd".index(label) for label in LABELS]
        return datasets.Dataset.from_dict({"img": images, "fine_label": numbers}, features=features)

    def test_a_dataset(self, datasets, images, colour_of):
        rows = self.rows(datasets, images)
        assert names(as_labeled_set(rows)) == LABELS
        assert colours(as_set(rows)) == [colour_of(name) for name in NAMES]
        chosen = rows.select([1, 0, 3, 2]).shuffle(seed=0).with_format("torch")
        expected = [NAMES[i] for i in np.array([1, 0, 3, 2])[np.random.default_rng(0).permutation(4)]]
        assert colours(as_labeled_set(chosen)) == [colour_of(name) for name in expected]

    def test_its_splits(self, datasets, images, colour_of):
        rows = self.rows(datasets, images)
        both = datasets.DatasetDict({"train": rows.select(range(4)), "test": rows.select(range(4, 8))})
        assert_same(dc.read(both), colour_of)
        assert len(as_labeled_set(both)) == 4 and len(as_benchmark(both).query) == 4

    def test_files(self, datasets, paths, colour_of):
        rows = datasets.Dataset.from_dict({"image": paths, "label": LABELS, "split": SPLIT})
        assert_same(dc.read(rows.cast_column("image", datasets.Image())), colour_of)
        assert_same(dc.read(rows), colour_of)

    def test_one_that_streams(self, datasets, images):
        with pytest.raises(DataError, match="read as it streams"):
            dc.read(self.rows(datasets, images).to_iterable_dataset())


class Pairs(torch.utils.data.Dataset):
    classes = list("abcd")  # noqa: RUF012

    def __init__(self, images, labels) -> None:
        self.rows = list(zip(images, labels, strict=True))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return self.rows[i]


class TestTorch:
    @pytest.mark.parametrize("form", ["PIL", "tensor", "floats"])
    def test_a_dataset(self, form, images, colour_of):
        numbers = torch.tensor(["abcd".index(label) for label in LABELS])
        held = Pairs([FORMS[form](image) for image in images], numbers)
        assert names(as_labeled_set(held)) == LABELS
        assert colours(as_labeled_set(held)) == [colour_of(name) for name in NAMES]
        assert names(as_labeled_set(torch.utils.data.Subset(held, [5, 0]))) == ["2", "0"]
        assert colours(as_set(held)) == [colour_of(name) for name in NAMES]
        vectors = torch.utils.data.TensorDataset(torch.from_numpy(VECTORS), numbers)
        np.testing.assert_array_equal(as_labeled_set(vectors).vectors, VECTORS)
        dicts = Pairs(images, LABELS)
        dicts.rows = [
            {"image": image, "label": a, "split": b} for image, a, b in zip(images, LABELS, SPLIT, strict=True)
        ]
        assert_same(dc.read(dicts), colour_of)

    def test_an_image_folder(self, make_images, colour_of):
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        root = make_images([f"{label}/{name}" for label, name in zip(LABELS, NAMES, strict=True)])
        held = ImageFolder(root, transform=v2.Resize(2))
        images = as_labeled_set(held)
        assert names(images) == LABELS and images.open(0).size == (8, 8)
        assert images.path(0) == f"{root}/a/a1.png"

    def test_columns_of_another_kind(self):
        with pytest.raises(DataError, match="the column 'path' is of type str; a column has a value for each row"):
            dc.read({"path": "a.png", "label": "a"})
        pandas = pytest.importorskip("pandas")
        frame = pandas.DataFrame([["a", "b", "c"]], columns=["path", "label", "label"])
        with pytest.raises(DataError, match="two columns 'label'"):
            dc.read(frame)

    def test_items_of_another_kind(self):
        with pytest.raises(DataError, match="item 0 of the TensorDataset is of type tuple: items are pairs"):
            as_labeled_set(torch.utils.data.TensorDataset(torch.from_numpy(VECTORS)))
        with pytest.raises(DataError, match="a list of int: rows are dicts"):
            dc.read([1, 2])


@pytest.mark.heavy
def test_train_and_evaluate_take_them(images):
    model = dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32)
    frame = {"image": images * 2, "label": LABELS * 2}
    config = dc.TrainConfig(epochs=1, batch_size=8, images_per_class=2, workers=0)
    assert [epoch.number for epoch in dc.train(model, frame, config)] == [0]
    scores = dc.evaluate(model, [(image, label) for image, label in zip(images, LABELS, strict=True)], clustering=False)
    assert scores["num_queries"] == 8
    one, other = model.encode(images), model.encode(torch.stack([FORMS["tensor"](image) for image in images]))
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, model.encode({"img": images}))


@pytest.mark.heavy
def test_run_and_index_take_them(images, tmp_path):
    pytest.importorskip("lancedb")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(12), 6)
    vectors = (rng.normal(size=(12, 6))[labels] + 0.1 * rng.normal(size=(72, 6))).astype(np.float32)
    config = dc.RunConfig(
        dc.ModelConfig(embedding_dim=4, num_learners=1),
        dc.TrainConfig(epochs=1, batch_size=8, images_per_class=2, workers=0),
        dc.DataConfig(validation=False),
    )
    model = dc.run({"embedding": vectors, "label": labels}, tmp_path / "run", config)
    index = dc.Index.build(model, {"vector": vectors, "category": labels}, tmp_path / "index")
    assert len(index) == 72
    for query in (vectors[5], torch.from_numpy(vectors[5]), vectors[5].tolist()):
        assert index.search(query, k=2)[0].label == "0"
    several = index.search(torch.from_numpy(vectors[[5, 40]]), k=1)
    assert [hits[0].label for hits in several] == ["0", "6"]

    pictures = dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32)
    index = dc.Index.build(pictures, images, tmp_path / "pictures")
    assert len(index) == 8
    forms = [form(images[3]) for form in FORMS.values()]
    ids = {index.search(form, k=1)[0].id for form in forms}
    assert len(ids) == 1
