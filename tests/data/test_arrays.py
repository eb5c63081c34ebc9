"""Vectors in files of arrays, and their labels: inside, beside, or in a file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import divcon as dc
from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError

VECTORS = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
LABELS = list("aabbccdd")
SPLIT = ["train"] * 4 + ["test"] * 4
NUMBERS = np.repeat(np.arange(4), 2)


def check(path: Path, labels: list[str] | None = None, **options) -> dc.Benchmark:
    """The vectors and labels are those above, whatever the split is."""
    data = dc.read(path, **options)
    by_row = {}
    for part in (data.train, data.query):
        for i, row in enumerate(part.rows.tolist()):
            by_row[row] = (part.vectors[i], part.label_name(i))
    np.testing.assert_array_equal([by_row[row][0] for row in range(8)], VECTORS)
    assert [by_row[row][1] for row in range(8)] == (LABELS if labels is None else labels)
    return data


def error_of(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        dc.read(path, **options)
    return str(caught.value)


class TestArchive:
    @pytest.mark.parametrize("vectors", ["embeddings", "X", "features", "arr_0", "whatever"])
    @pytest.mark.parametrize("labels", ["labels", "y", "arr_1", "ids"])
    def test_npz(self, tmp_path, vectors, labels):
        np.savez(tmp_path / "v.npz", **{vectors: VECTORS, labels: np.array(LABELS)})
        check(tmp_path / "v.npz")

    def test_split_and_paths(self, tmp_path):
        paths = np.array([f"{i}.jpg" for i in range(8)])
        np.savez_compressed(tmp_path / "v.npz", X=VECTORS, y=NUMBERS, split=np.array(SPLIT), filenames=paths)
        data = check(tmp_path / "v.npz", [str(number) for number in NUMBERS])
        assert data.train.rows.tolist() == [0, 1, 2, 3] and data.query.path(0) == "4.jpg"
        assert data.query.where(1) == f"{tmp_path}/v.npz row 5: 5.jpg" and data.name == "v"

    def test_names_of_the_classes(self, tmp_path):
        np.savez(tmp_path / "v.npz", embeddings=VECTORS, labels=NUMBERS, class_names=np.array(list("abcd")))
        check(tmp_path / "v.npz")

    def test_several_arrays_of_vectors(self, tmp_path):
        np.savez(tmp_path / "v.npz", clip=VECTORS, dino=VECTORS[:, :2], y=NUMBERS, z=np.array(LABELS))
        assert "which of them holds the vectors? `vector_column` chooses (clip (8, 3), dino (8, 2)" in error_of(
            tmp_path / "v.npz"
        )
        check(tmp_path / "v.npz", vector_column="clip", label_column="z")
        with pytest.raises(ConfigError, match=r"`vector_column` 'vit': there is clip \(8, 3\)"):
            dc.read(tmp_path / "v.npz", vector_column="vit")


class TestTensors:
    def save(self, path: Path, value: object) -> Path:
        torch.save(value, path)
        return path

    def test_what_people_save(self, tmp_path):
        tensor = torch.from_numpy(VECTORS)
        check(self.save(tmp_path / "v.pt", {"embeddings": tensor, "labels": LABELS}))
        check(self.save(tmp_path / "v.pth", (tensor, torch.from_numpy(NUMBERS))), [str(n) for n in NUMBERS])
        rows = list(tensor.requires_grad_())
        check(self.save(tmp_path / "v.pt", {"features": rows, "targets": LABELS, "split": SPLIT}))
        half = self.save(tmp_path / "h.pt", {"x": tensor.detach().bfloat16(), "y": LABELS})
        assert dc.read(half).train.vectors.dtype == np.float32
        safetensors.torch.save_file({"x": tensor.detach(), "y": torch.from_numpy(NUMBERS)}, tmp_path / "v.safetensors")
        check(tmp_path / "v.safetensors", [str(n) for n in NUMBERS])

    def test_what_runs_code_is_refused(self, tmp_path):
        path = self.save(tmp_path / "v.pt", {"x": VECTORS, "y": Path("a")})
        assert "v.pt: cannot be read as tensors of PyTorch (it holds more than tensors" in error_of(path)

    def test_weights_are_no_vectors(self, tmp_path):
        path = self.save(tmp_path / "v.pt", torch.nn.Linear(3, 2).state_dict() | {"b": torch.zeros(2)})
        assert "no file of labels" in error_of(path)
        assert "no (N, F) array" in error_of(self.save(path, {"w": torch.zeros(2, 2, 2)}))


class TestLabels:
    @pytest.fixture
    def vectors(self, tmp_path) -> Path:
        np.save(tmp_path / "X_train.npy", VECTORS)
        return tmp_path / "X_train.npy"

    def write(self, path: Path, labels: list | None = None) -> Path:
        labels = LABELS if labels is None else labels
        if path.suffix == ".npy":
            np.save(path, np.array(labels))
        elif path.suffix == ".txt":
            path.write_text("\n".join(labels) + "\n")
        elif path.suffix == ".json":
            path.write_text(json.dumps(labels))
        elif path.suffix == ".parquet":
            pq.write_table(pa.table({"category": labels}), path)
        else:
            path.write_text("\n".join(["label", *labels]) + "\n")
        return path

    @pytest.mark.parametrize("ending", [".npy", ".txt", ".csv", ".json", ".parquet"])
    def test_a_file_of_their_own(self, vectors, tmp_path, ending):
        (tmp_path / "elsewhere").mkdir()
        check(vectors, labels_file=self.write(tmp_path / "elsewhere" / f"them{ending}"))

    @pytest.mark.parametrize(
        "name", ["y_train.npy", "labels.txt", "X_train.labels.txt", "X_train_labels.npy", "X_train.csv", "labels.json"]
    )
    def test_beside(self, vectors, tmp_path, name):
        self.write(tmp_path / name)
        assert [images_of(vectors).label_name(i) for i in range(8)] == LABELS
        (note, *_) = check(vectors).notes
        assert note == f"labels of {name}, beside X_train.npy; `labels_file` chooses another file"

    def test_embeddings_and_labels(self, tmp_path):
        for split in ("train", "test"):
            np.save(tmp_path / f"{split}_embeddings.npy", VECTORS)
            self.write(tmp_path / f"{split}_labels.npy", LABELS if split == "train" else list("ijklmnop"))
        check(tmp_path / "train_embeddings.npy")

    def test_a_table_with_a_split(self, vectors, tmp_path):
        rows = [f"{i}.jpg,{a},{b}" for i, (a, b) in enumerate(zip(LABELS, SPLIT, strict=True))]
        (tmp_path / "rows.csv").write_text("\n".join(["path,species,split", *rows]))
        data = check(vectors, labels_file=tmp_path / "rows.csv")
        assert len(data.train) == 4 and data.train.path(1) == "1.jpg"
        check(vectors, labels_file=tmp_path / "rows.csv", label_column="species")

    def test_a_list_without_a_header(self, vectors, tmp_path):
        (tmp_path / "rows.csv").write_text("\n".join(LABELS))
        check(vectors, labels_file=tmp_path / "rows.csv")

    def test_what_is_wrong(self, vectors, tmp_path):
        assert "X_train.npy: holds vectors and no labels, and there is no file of labels beside it" in error_of(vectors)
        assert images_of(vectors).label_names == ("",)
        np.testing.assert_array_equal(images_of(vectors).vectors, VECTORS)
        short = self.write(tmp_path / "short.txt", LABELS[:7])
        assert f"X_train.npy: holds 8 vectors, and {short} has 7 labels" in error_of(vectors, labels_file=short)
        holes = self.write(tmp_path / "holes.txt", [*LABELS[:6], "", "d"])
        assert "X_train.npy row 6: the label is empty" in error_of(vectors, labels_file=holes)
        assert "there is no such file of labels" in error_of(vectors, labels_file=tmp_path / "gone.npy")
        self.write(tmp_path / "labels.npy")
        self.write(tmp_path / "labels.txt")
        assert "which of labels.npy, labels.txt has its labels? `labels_file` chooses" in error_of(vectors)
        with pytest.raises(ConfigError, match="`labels_file` is for files of vectors"):
            dc.read(self.write(tmp_path / "t.csv"), labels_file=short)
        with pytest.raises(ConfigError, match="takes no `root`"):
            dc.read(vectors, tmp_path)


class TestBadFiles:
    @pytest.mark.parametrize(
        ("bad", "said"),
        [
            (np.nan, "row 5: the vector has nan in place 1"),
            (np.inf, "row 5: the vector has inf in place 1"),
            (1e300, "row 5: the vector has 1e+300 in place 1; every number must be finite in float32"),
            (3e19, "row 5: the vector has numbers up to 3e+19, whose squares overflow float32"),
        ],
    )
    def test_numbers(self, tmp_path, bad, said):
        vectors = VECTORS.astype(np.float64)
        vectors[5, 1] = bad
        np.savez(tmp_path / "v.npz", x=vectors, y=np.array(LABELS))
        assert f"v.npz {said}" in error_of(tmp_path / "v.npz")

    def test_files(self, tmp_path):
        for name in ("v.npy", "v.npz", "v.pt", "v.safetensors"):
            (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\nsize 3\n")
            assert f"{name}: " in error_of(tmp_path / name) and "Git LFS pointer" in error_of(tmp_path / name)
            (tmp_path / name).write_bytes(b"\x93nothing" * 9)
            assert f"{name}: cannot be read as" in error_of(tmp_path / name)
        np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        assert "it holds Python objects: save arrays of numbers and of text" in error_of(tmp_path / "v.npy")
        np.save(tmp_path / "v.npy", VECTORS[None])
        assert "there is no (N, F) array of numbers in it (the array (1, 8, 3))" in error_of(tmp_path / "v.npy")
        (tmp_path / "v.npy").unlink()
        np.savez(tmp_path / "v.npz", train_images=np.zeros((4, 8, 8, 3), np.uint8), train_labels=np.zeros((4, 1)))
        assert "train_images holds images, and not vectors" in error_of(tmp_path / "v.npz")
        np.savez(tmp_path / "v.npz", vectors=VECTORS, labels=np.arange(8)[:, None] // 2)
        assert len(dc.read(tmp_path / "v.npz").train) == 4
