"""Hashes that do not change from one version to the next, against the plain way to make them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.pack import pack
from divcon.data.read import read
from divcon.data.readers.vectors import write_benchmark_vectors


def of_set(images: LabeledSet) -> str:
    """The slow way: a string an image."""
    lines = [f"{images.path(i)}\t{images.label_name(i)}\n" for i in range(len(images))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def of_benchmark(data: Benchmark) -> str:
    text = data.protocol
    for role, images in (("query", data.query), ("gallery", data.gallery)):
        lines = sorted(f"{images.label_name(i)}\t{images.path(i)}" for i in range(len(images)))
        text += f"\n{role}\n" + "\n".join(lines)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def image_set(rows, kind=None) -> LabeledSet:
    names = tuple(sorted({label for _, label in rows}))
    labels = np.array([names.index(label) for _, label in rows], np.int64)
    paths = pa.array([path for path, _ in rows], kind or pa.string())
    return LabeledSet(labels, names, paths, np.arange(len(rows)), "somewhere")


# A new line or tab in a path is nobody's, but must not break the hash; letters beyond ASCII sort by their code.
TEXT = st.text(st.sampled_from("aZ0\t\n_ é\uffff\U0001f600"), max_size=4)
ROWS = st.lists(st.tuples(TEXT, TEXT), max_size=20)


@given(ROWS, ROWS, st.integers(1, 7), st.sampled_from([pa.string(), pa.large_string()]))
@settings(max_examples=100, deadline=None)
def test_they_are_what_the_plain_way_gives(query, gallery, at_a_time, kind):
    one, other, nothing = image_set(query, kind), image_set(gallery), image_set([])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("divcon.data.digests._AT_A_TIME", at_a_time)
        assert one.fingerprint == of_set(one)
        for data in (Benchmark("x", nothing, one, one), Benchmark("x", nothing, one, other)):
            assert data.split_hash == of_benchmark(data)


def test_a_part_of_a_set(demo):
    part = demo.train.subset(np.arange(100, 300))
    assert part.fingerprint == of_set(part)


FILES = [f"images/{c}/{i}.png" for c in "abcd" for i in (1, 2)]


def table(path: Path, names: Sequence[object]) -> Path:
    """A CSV of the files under these names."""
    splits = ["train" if file[7] in "ab" else "test" for file in FILES]
    lines = [f"{name},{file[7]},{split}" for name, file, split in zip(names, FILES, splits, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["path,label,split", *lines]))
    return path


class TestSpelling:
    """The same files, named in several ways, are one split and one training set."""

    @pytest.fixture
    def root(self, make_images) -> Path:
        return make_images(FILES, "data")

    @pytest.fixture
    def usual(self, root) -> Benchmark:
        return read(table(root / "usual.csv", FILES))

    def test_of_the_usual_one_it_is_as_ever(self, usual):
        assert usual.split_hash == of_benchmark(usual)
        assert usual.train.fingerprint == of_set(usual.train)

    @pytest.mark.parametrize("spelled", ["{root}/{file}", "./{file}", "images/../{file}", "{root}/./{file}"])
    def test_of_files_below_the_root(self, root, usual, spelled):
        data = read(table(root / "other.csv", [spelled.format(root=root, file=file) for file in FILES]))
        assert data.split_hash == usual.split_hash and data.train.fingerprint == usual.train.fingerprint

    def test_of_another_root(self, root, usual, tmp_path, monkeypatch):
        whole = table(tmp_path / "lists" / "whole.csv", [root / file for file in FILES])
        assert read(whole, root).split_hash == usual.split_hash
        monkeypatch.chdir(root)
        assert read("usual.csv").split_hash == read("../lists/whole.csv", ".").split_hash == usual.split_hash

    def test_of_files_outside_of_the_root(self, root, tmp_path, make_images):
        whole = read(table(tmp_path / "lists" / "whole.csv", [root / file for file in FILES]))
        up = read(table(tmp_path / "lists" / "up.csv", [f"../data/{file}" for file in FILES]))
        moved = make_images(FILES, "moved")
        there = read(table(tmp_path / "lists" / "there.csv", [moved / file for file in FILES]))
        in_memory = read({"path": [str(root / file) for file in FILES], "label": [file[7] for file in FILES]})
        assert whole.split_hash == up.split_hash == there.split_hash == in_memory.split_hash
        assert whole.train.fingerprint == up.train.fingerprint == there.train.fingerprint

    def test_other_files_have_another(self, root, usual, tmp_path):
        renamed = [root / file.replace("/1", "/3") for file in FILES]
        swapped = [FILES[i ^ 4] for i in range(8)]
        for names in (renamed, swapped):
            data = read(table(root / "other.csv", names), check_files=False)
            assert data.split_hash != usual.split_hash and not data.has_split(usual.split_hash)

    def test_what_older_versions_recorded(self, root, usual):
        whole = read(table(root / "whole.csv", [root / file for file in FILES]))
        for data in (usual, whole):
            for recorded in (usual, whole):
                assert data.has_split(of_benchmark(recorded))
                assert data.has_train_fingerprint(of_set(recorded.train))
        assert not usual.has_split("0" * 16) and not usual.has_split(None)
        assert not usual.has_train_fingerprint(f"{usual.train.fingerprint}-{usual.train.fingerprint}")

    @pytest.mark.parametrize("outside", [False, True])
    @pytest.mark.parametrize("test", ["test", "query and gallery"])
    def test_packed_and_as_vectors(self, root, tmp_path, outside, test):
        folder = tmp_path / "lists" if outside else root
        path = table(folder / "whole.csv", [root / file for file in FILES])
        if test != "test":
            lines = path.read_text().replace("1.png,c,test", "1.png,c,query").replace("1.png,d,test", "1.png,d,query")
            path.write_text(lines.replace(",test", ",gallery"))
        data = read(path)
        assert (data.query is data.gallery) == (test == "test")
        assert read(pack(data, tmp_path / "packed")).split_hash == data.split_hash
        write_benchmark_vectors(tmp_path / "v.parquet", data, lambda part: np.ones((len(part), 2), np.float32))
        assert read(tmp_path / "v.parquet").split_hash == data.split_hash


def test_those_of_the_demo_stay(demo):
    # Results that were published carry these.
    assert demo.split_hash == of_benchmark(demo) == "28e48916676f6d02"
    assert demo.train.fingerprint == of_set(demo.train) == "bbc83db70e4a2c61"
