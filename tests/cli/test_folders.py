"""The command line where folders are odd, full of something else, or have changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import divcon as dc

pytestmark = pytest.mark.heavy

SMALL = ["--backbone", "test_resnet", "--no-pretrained", "--size", "32", "--dim", "16", "--learners", "2"]
QUICK = ["--batch-size", "8", "--images-per-class", "2", "--no-validation", "--workers", "0", "--epochs", "1"]


@pytest.fixture
def run(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
    """``run("train", ...)``: exit code, and all that is printed, on one line."""

    def call(*arguments: object) -> tuple[int, str]:
        code, out, err = command(*arguments)
        return code, " ".join((out + err).split())

    return call


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def trained(run: Run, image_folder: Path, tmp_path: Path) -> Path:
    assert run("train", image_folder, *SMALL, *QUICK, "--out", tmp_path / "run")[0] == 0
    return tmp_path / "run"


def test_names_that_look_like_markup_are_printed_as_they_are(run: Run, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos[").mkdir()
    odd = image_folder.rename(tmp_path / "photos[" / "b]")  # a path of photos[/b]
    code, printed = run("train", odd, *SMALL, *QUICK, "--out", tmp_path / "run[i]")
    assert code == 0
    assert "b]: 30 images" in printed
    assert "run[i]/model" in printed
    (odd / "class0" / "0.png").write_text("no image")
    code, printed = run("train", odd, *SMALL, *QUICK, "--out", tmp_path / "again")
    assert code == 2
    assert "photos[/b]/class0/0.png: this image does not decode" in printed


def test_places_that_cannot_be_written_are_reported(
    run: Run, image_folder: Path, tmp_path: Path, trained: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        code, printed = run("train", image_folder, *SMALL, *QUICK, "--out", out)
        assert code == 2
        assert "is a file" in printed or "cannot be written" in printed
    assert (tmp_path / "file").read_text() == "mine"
    code, printed = run("evaluate", trained, "--json", tmp_path / "file" / "scores.json")
    assert code == 2
    assert "cannot be written" in printed
    code, printed = run("encode", trained, image_folder, "--out", tmp_path / "file" / "v.parquet")
    assert code == 2
    assert "cannot be written" in printed


def test_a_mistake_does_not_take_the_folder(run: Run, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", image_folder, *SMALL, *QUICK, "--loss", "MarginLos", "--out", out)[0] == 2
    assert run("train", image_folder, *SMALL, *QUICK, "--out", out)[0] == 0


def test_init_brings_the_model_s_own_sizes(run: Run, image_folder: Path, tmp_path: Path, trained: Path) -> None:
    code, printed = run("train", image_folder, *QUICK, "--init", trained, "--out", tmp_path / "next")
    assert code == 0
    assert "2 learners, D 16, test_resnet at 32 px" in printed
    code, printed = run("train", image_folder, *QUICK, "--init", trained, "--dim", 24, "--out", tmp_path / "wider")
    assert code == 0
    assert "the head starts from new weights" in printed
    assert dc.EmbeddingModel.load(tmp_path / "wider").embedding_dim == 24


def test_a_resume_refuses_other_settings(run: Run, tmp_path: Path, trained: Path) -> None:
    code, printed = run("train", "--out", trained, "--resume", "--dim", 128)  # 128 is the default
    assert code == 2
    assert "--dim is 16 in the run, 128 now" in printed
    code, printed = run("train", "--out", tmp_path / "nothing", "--resume")
    assert code == 2
    assert "no run here to resume" in printed


def test_a_folder_that_has_grown_is_not_scored_as_if_unseen(run: Run, image_folder: Path, trained: Path) -> None:
    shutil.copytree(image_folder / "class7", image_folder / "a0")  # by its hash a train class
    code, printed = run("evaluate", trained, "--no-clustering", "--workers", 0)
    assert code == 0, printed
    for number in (8, 9):  # by their hashes test classes
        shutil.copytree(image_folder / "class7", image_folder / f"class{number}")
    code, printed = run("evaluate", trained)
    assert code == 2
    assert "its data has changed since it was trained" in printed
    code, printed = run("evaluate", trained, image_folder, "--no-clustering", "--workers", 0)
    assert code == 0 and "of the test classes" not in printed
    options = ("--test-fraction", "none", "--no-clustering", "--workers", 0)
    code, printed = run("evaluate", trained, image_folder, *options)
    assert code == 0
    words = "3 of the test classes have names of classes that the model was trained on ('class5', for one)"
    assert f"{words}; the run split its data with --test-fraction 0.2" in printed


def test_sixteen_bit_images_keep_their_greys(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from divcon.data.readers.folder import images_of

    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    decoded = np.asarray(images_of(tmp_path / "ramp.png").open(0))
    np.testing.assert_array_equal(decoded[..., 0], ramp >> 8)


def make_odd(root: Path) -> list[str]:
    """A folder as people have them; returns the paths of its images that decode."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    paths = []
    for label in ('comma, "quote"', "line\nbreak", " lead", "trail ", "dots..", "ünï", "[b]", "007"):
        for name in ("1.JPG", "a,b.jfif", 'q"q.webp', "new\nline.ppm", " s .png", "cr\rx.png", "0001"):
            path = root / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
            pixels.save(path, None if "." in name else "PNG")
            paths.append(f"{label}/{name}")
    (root / "007" / "empty.png").write_bytes(b"")
    (root / "007" / "page.png").write_text("<html>")
    (root / "007" / "Thumbs.db").write_text("x")
    (root / "none").mkdir()
    (root / "@eaDir" / "007").mkdir(parents=True)
    shutil.copy(root / "007" / "1.JPG", root / "@eaDir" / "007" / "SYNOPHOTO_THUMB.jpg")
    shutil.copy(root / "007" / "1.JPG", root / "007" / os.fsdecode(b"caf\xe9.jpg"))
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_names_from_check_to_search(run: Run, command: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    root, report = tmp_path / "odd", tmp_path / "report.json"
    paths = make_odd(root)
    code, printed = run("check", root, "--no-near", "--workers", 0, "--fix", tmp_path / "clean.csv", "--json", report)
    assert code == 1, printed
    assert r"note: skipped: 1 name that is not UTF-8 ('007/caf\xe9.jpg'); rename them to use them" in printed
    assert "note: skipped: 1 hidden or system file ('007/Thumbs.db')" in printed
    assert "note: skipped: 1 hidden or system folder ('@eaDir/')" in printed
    assert "note: skipped: 1 folder without images ('none/')" in printed
    assert "fails: 2 images do not decode" in printed and "empty.png" in printed and "page.png" in printed
    written = json.loads(report.read_text())
    assert {kind["kind"]: kind["paths"] for kind in written["skipped"]} == {
        "names that are not UTF-8": [r"007/caf\xe9.jpg"],
        "hidden or system files": ["007/Thumbs.db"],
        "hidden or system folders": ["@eaDir/"],
        "folders without images": ["none/"],
    }
    assert [kind["count"] for kind in written["skipped"]] == [1, 1, 1, 1]
    assert any("Thumbs.db" in note for note in written["notes"]) and len(written["unreadable"]) == 2

    for table in ("clean.csv", "again.parquet"):
        fixed = () if table == "again.parquet" else ("--fix", tmp_path / "again.parquet")
        code, printed = run("check", tmp_path / table, "--no-near", "--workers", 0, *fixed)
        assert code == 0, printed
        data = dc.read(tmp_path / table)
        read = {path for images in data.parts.values() for path in images.paths.to_pylist()}
        assert sorted(read) == sorted(f"odd/{path}" for path in paths)
        run_folder = tmp_path / f"run of {table}"
        code, printed = run("train", tmp_path / table, *SMALL, *QUICK, "--out", run_folder)
        assert code == 0, printed
        code, printed = run("index", run_folder, tmp_path / table, "--workers", 0)
        assert code == 0 and f"{len(paths)} added" in printed, printed

    code, printed = run(
        "index", run_folder, root, "--store", tmp_path / "store", "--on-bad-image", "skip", "--workers", 0
    )
    assert code == 0 and f"{len(paths)} added" in printed and r"caf\xe9.jpg" in printed, printed
    code, out, err = command("search", tmp_path / "store", root / "007" / os.fsdecode(b"caf\xe9.jpg"), "-k", 1)
    assert code == 0 and out.split()[:2] == ["1.0000", "007"] and out.endswith("007/1.JPG\n"), err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_path_that_is_not_utf8_is_named(run: Run, image_folder: Path, trained: Path, tmp_path: Path) -> None:
    odd = image_folder.rename(tmp_path / os.fsdecode(b"th\xe9"))
    for words in (["check", odd], ["train", odd, "--out", tmp_path / "x"], ["index", trained, odd]):
        code, printed = run(*words)
        assert code == 2 and rf"{tmp_path}/th\xe9: this name is not UTF-8; rename it" in printed
    code, printed = run("encode", trained, odd / "class0" / "0.png", "--out", tmp_path / "v.parquet")
    assert code == 2 and r"th\xe9/class0/0.png: this name is not UTF-8" in printed


def test_splits_of_a_folder_are_never_classes(run: Run, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for name, classes in {"Training": range(4), "valid": range(4, 6), "TEST": range(6, 8)}.items():
        for number in classes:
            shutil.copytree(image_folder / f"class{number}", root / "images" / name / f"class{number}")
    code, printed = run("check", root, "--no-near", "--workers", 0)
    assert code == 0, printed
    assert "note: splits: 'TEST' is test, 'Training' is train, 'valid' is validation" in printed
    assert "train 20 4 " in printed and "validation 10 2 " in printed and "test 10 2 " in printed
    shutil.copytree(image_folder / "class0", root / "images" / "extra" / "class0")
    for words in (["check", root], ["train", root, *SMALL, *QUICK, "--out", tmp_path / "run"]):
        code, printed = run(*words)
        assert code == 2
        assert "'TEST', 'Training' and 'valid' are names of splits, and 'extra' is not: move away" in printed
    assert not (tmp_path / "run").exists()


def test_an_index_has_the_labels_of_the_folder(trained: Path, image_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for name, number in (("Training", 0), ("holdout", 6)):
        shutil.copytree(image_folder / f"class{number}", root / "images" / name / f"class{number}")
    (root / "images" / "@eaDir").mkdir()
    shutil.copy(image_folder / "class1" / "0.png", root / "images" / "@eaDir" / "0.png")
    index = dc.Index.build(dc.EmbeddingModel.load(trained), root, tmp_path / "store")
    hits = index.search(root / "images" / "holdout" / "class6" / "0.png", k=10)
    assert {hit.label for hit in hits} == {"class0", "class6"} and len(hits) == 10


def test_a_pack_with_a_folder_of_the_system_is_a_pack(run: Run, image_folder: Path, tmp_path: Path) -> None:
    for number in range(8):
        image = image_folder / f"class{number}" / "0.png"
        image.rename(image.with_suffix(""))  # without an ending
    (tmp_path / "packed" / "@eaDir").mkdir(parents=True)
    (tmp_path / "packed" / ".DS_Store").write_bytes(b"x")
    code, printed = run("pack", image_folder, "--out", tmp_path / "packed", "--workers", 0)
    assert code == 0, printed
    packed = dc.read(tmp_path / "packed")
    assert packed.packed and packed.split_hash == dc.read(image_folder).split_hash
    assert "class0/0" in [path for images in packed.parts.values() for path in images.paths.to_pylist()]
