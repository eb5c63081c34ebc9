"""``divcon check`` as a user types it."""

from __future__ import annotations

import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

import divcon as dc
from divcon.cli.app import read_data
from divcon.data.published import PUBLISHED_COUNTS, PublishedCounts

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(command: Run) -> Run:
    return lambda *arguments: command("check", *arguments, "--workers", 0)


@pytest.fixture
def table(image_folder: Path) -> Path:
    """The photos as a table beside them: classes 0 to 3 train, the others test."""
    lines = [
        f"photos/class{n}/{place}.png,class{n},{'train' if n < 4 else 'test'}" for n in range(8) for place in range(5)
    ]
    path = image_folder.parent / "products.csv"
    path.write_text("\n".join(["path,label,split", *lines]) + "\n")
    return path


def copy(root: Path, source: str, target: str) -> None:
    (root / target).write_bytes((root / source).read_bytes())


def test_a_clean_folder(check: Run, image_folder: Path) -> None:
    code, printed, err = check(image_folder)
    assert code == 0, err
    assert f"photos: leave-one-out, split {dc.read(image_folder).split_hash}" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["train", "30", "6", "5", "5", "5", "0"] in rows
    assert ["test", "10", "2", "5", "5", "5", "0"] in rows
    assert "ok: nothing would break training" in printed
    assert "note: the folder has no split" in err


def test_the_walk_from_broken_data_to_clean(check: Run, table: Path, broken_png: Callable[[Path], None]) -> None:
    root = table.parent / "photos"
    broken_png(root / "class0" / "1.png")
    (root / "class5" / "4.png").unlink()
    copy(root, "class6/2.png", "class1/3.png")
    out, report_file = table.parent / "out" / "clean.csv", table.parent / "report.json"
    code, printed, err = check(table, "--fix", out, "--json", report_file, "--no-near")
    assert code == 1, err
    lines = printed.splitlines()
    assert "fails: 2 images do not decode: training and evaluation stop there, unless bad images are skipped" in lines
    assert f"  {table} line 3: photos/class0/1.png: this image does not decode (image file is truncated)" in lines
    assert f"  {table} line 31: photos/class5/4.png: there is no such file" in lines
    at = lines.index(f"  {table} line 10: photos/class1/3.png: 'class1' in train")
    assert lines[at + 1] == f"  = {table} line 34: photos/class6/2.png: 'class6' in test"
    assert "fails: 1 image is in two of train, validation and test" in lines[at - 1]
    assert "2 findings fail" in lines
    left_out = [line for line in lines if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert f"the same as {table} line 34: photos/class6/2.png of test" in left_out[2]
    assert lines[-1] == f"{out}: 18 train, 19 test; 3 left out"

    report = json.loads(report_file.read_text())
    assert report["fails"] == ["unreadable", "across"] and report["near"] is None
    assert [image["row"] for image in report["unreadable"]] == [1, 29]

    code, printed, err = check(out, "--no-near")
    assert code == 0, err
    assert "ok: nothing" in printed
    clean = dc.read(out)
    assert (len(clean.train), len(clean.query)) == (18, 19)
    assert "class6" in [clean.query.label_name(i) for i in range(19)]


def test_images_that_look_alike_are_shown_and_pass(check: Run, table: Path) -> None:
    root = table.parent / "photos"
    images = dc.read(table).train
    images.open(7).resize((128, 128)).save(root / "class1" / "large.png")
    with table.open("a") as file:
        file.write("photos/class1/large.png,class1,train\n")
    code, printed, _ = check(table)
    assert code == 0
    assert "photos/class1/large.png: 'class1' in train" in printed
    code, printed, _ = check(table, "--no-near")
    assert code == 0 and "large.png" not in printed


def test_of_many_the_first_few_are_named_and_all_counted(check: Run, table: Path) -> None:
    for path in sorted((table.parent / "photos").glob("class[01]/*.png")):
        path.write_bytes(b"")
    code, printed, _ = check(table, "--no-near")
    assert code == 1
    assert "fails: 10 images do not decode" in printed and "and 5 more; --json FILE lists all" in printed
    assert printed.count("the file is empty") == 5
    assert "one finding fails; --fix FILE writes a table without them" in printed


def test_where_all_files_are_missing_the_root_may_be_wrong(check: Run, table: Path, tmp_path: Path) -> None:
    code, printed, err = check(table, tmp_path / "elsewhere")
    assert code == 1
    assert "fails: 40 images do not decode" in printed
    assert f"relative paths start from {tmp_path / 'elsewhere'}: ROOT sets another folder" in err
    code, _, err = check(table, tmp_path / "elsewhere", "--fix", tmp_path / "clean.csv")
    assert code == 2 and "no class of train would be left" in err
    assert not (tmp_path / "clean.csv").exists()


@pytest.mark.heavy
def test_the_bundled_icons(check: Run, tmp_path: Path, demo: dc.Benchmark) -> None:
    code, printed, _ = check("demo", "--no-near", "--fix", tmp_path / "clean.csv")
    assert code == 2, "the images are in a parquet"
    code, printed, err = check("demo", "--no-near", "--fix", tmp_path / "clean.parquet")
    assert code == 0, err
    assert "0 left out" in printed
    assert "train with --no-flip" in err
    assert dc.read(tmp_path / "clean.parquet").split_hash == demo.split_hash


def test_vectors(check: Run, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    vectors[3], vectors[12] = 0, vectors[5]
    columns = {"label": [f"c{i // 4}" for i in range(16)], "split": ["train"] * 8 + ["test"] * 8}
    pq.write_table(pa.table(columns | {"embedding": list(vectors)}), tmp_path / "v.parquet")
    code, printed, err = check(tmp_path / "v.parquet", "--fix", tmp_path / "clean.parquet")
    assert code == 1, err
    assert "fails: 1 vector is all zeros" in printed and "fails: 1 vector is in two of train" in printed
    assert "6 train, 8 test; 2 left out" in printed
    code, printed, err = check(tmp_path / "clean.parquet")
    assert code == 0, err


class TestPublished:
    """The six data sets whose numbers are published, here of four classes for training and four for the test."""

    @pytest.fixture
    def cub(self, trees: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        publish(monkeypatch, "cub", {"train": (4, 20), "test": (4, 20)})
        return trees.write_cub(tmp_path / "CUB_200_2011", **trees.SMALL["cub"], put=trees.draw)

    def test_as_published(self, check: Run, cub: Path) -> None:
        code, printed, err = check("cub", cub, "--no-near")
        assert code == 0, printed + err
        assert f"cub: leave-one-out, split {dc.read('cub', cub).split_hash}" in printed
        assert "published" not in printed + err

    def test_a_missing_and_a_truncated_image(self, check: Run, cub: Path, tmp_path: Path) -> None:
        missing, cut = cub / "images/001.Bird_1/Bird_1_0000_1.jpg", cub / "images/102.Bird_102/Bird_102_0003_29.jpg"
        missing.unlink()
        cut.write_bytes(cut.read_bytes()[:-100])
        code, printed, _ = check("cub", cub, "--no-near", "--fix", tmp_path / "clean.csv")
        assert code == 1
        assert "fails: 2 images do not decode" in printed
        assert f"  {missing}: there is no such file" in printed.splitlines()
        assert f"  {cut}: this image does not decode (image file is truncated" in printed
        assert "19 train, 19 test; 2 left out" in printed
        assert len(dc.read(tmp_path / "clean.csv").train) == 19

    def test_too_many_and_too_few(
        self, check: Run, trees: ModuleType, cub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        publish(monkeypatch, "cub", {"train": (4, 19), "test": (5, 22)})
        trees.draw(cub / "images" / "mine.jpg", 9)
        code, printed, err = check("cub", cub, "--no-near", "--json", tmp_path / "report.json")
        assert code == 1
        lines = printed.splitlines()
        assert "fails: train has 20 images, and 19 are published: 1 image too many" in lines
        assert "fails: test has 4 classes, and 5 are published: 1 class missing" in lines
        assert "fails: test has 20 images, and 22 are published: 2 images missing" in lines
        assert lines[-1] == "3 findings fail"
        assert "note: 1 image is there that no list of cub names, and left out (images/mine.jpg)" in err
        report = json.loads((tmp_path / "report.json").read_text())
        assert report["fails"] == ["published"]
        assert report["differences"][0] == {
            "part": "train",
            "things": "images",
            "here": 20,
            "published": 19,
            "fails": True,
        }

    def test_the_numbers_of_vehicleid_s_images_only_warn(
        self, check: Run, trees: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish(monkeypatch, "vehicleid-small", {"train": (4, 21), "test": (4, 20)}, images_vary=True)
        root = trees.write_vehicleid(tmp_path / "VehicleID_V1.0", **trees.SMALL["vehicleid"], put=trees.draw)
        code, printed, _ = check("vehicleid-small", root, "--no-near")
        assert code == 0
        assert "note: train has 20 images, and 21 are published: 1 image missing" in printed

    def test_the_wrong_level_and_a_swapped_split(
        self, check: Run, trees: ModuleType, cub: Path, tmp_path: Path
    ) -> None:
        code, _, err = check("cub", cub.parent)
        assert code == 2 and f"you gave the parent folder; give {cub}" in err
        root = trees.write_sop(tmp_path / "products", **trees.SMALL["sop"], put=trees.draw)
        (root / "Ebay_train.txt").rename(root / "away")
        (root / "Ebay_test.txt").rename(root / "Ebay_train.txt")
        code, _, err = check("sop", root)
        assert code == 2 and "sop lacks Ebay_test.txt" in err
        (root / "away").rename(root / "Ebay_test.txt")
        code, _, err = check("sop", root)
        assert code == 2 and "Ebay_train.txt and Ebay_test.txt are swapped" in err

    def test_a_folder_of_that_name_is_a_folder(self, check: Run, image_folder: Path) -> None:
        folder = image_folder.rename(image_folder.with_name("cub"))
        code, printed, _ = check(folder)
        assert code == 0 and "published" not in printed

    def test_the_archive(self, check: Run, cub: Path, tmp_path: Path) -> None:
        archive = Path(shutil.make_archive(str(tmp_path / "birds"), "gztar", tmp_path, "CUB_200_2011"))
        code, printed, err = check("cub", archive, "--no-near")
        assert code == 0, err
        assert f"split {dc.read('cub', cub).split_hash}" in printed
        assert (tmp_path / "birds.unpacked" / "CUB_200_2011" / "images.txt").is_file()


def test_a_bar_shows_how_far_an_archive_is_unpacked(monkeypatch: pytest.MonkeyPatch, demo: dc.Benchmark) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(sys.modules["divcon.cli.app"], "notes", Console(file=shown, force_terminal=True, width=100))

    def slow(data: str, root: Path, context: dc.Context) -> dc.Benchmark:
        context.progress("unpack", 250_000_000, 1_000_000_000)
        time.sleep(0.3)
        return demo

    monkeypatch.setattr("divcon.data.read.read", slow)
    assert read_data("cub", Path("CUB_200_2011.tgz")) is demo
    for text in ("unpacking", "25%", "250/1,000 MB"):
        assert text in shown.getvalue(), text


def publish(
    monkeypatch: pytest.MonkeyPatch, name: str, parts: dict[str, tuple[int, int]], images_vary: bool = False
) -> None:
    """Let these be the published numbers."""
    numbers = {**PUBLISHED_COUNTS, name: PublishedCounts(parts, (1,), images_vary=images_vary)}
    for module in ("divcon.data.published", "divcon.data.published.build"):
        monkeypatch.setattr(f"{module}.PUBLISHED_COUNTS", numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no such file or folder"),
        (["products.csv", "--fix", "clean.txt"], "ends in .csv or .parquet"),
        (["products.csv", "--fix", "products.csv"], "this is the table that is read"),
        (["products.csv", "--fix", "photos"], "is a folder; give the name of a file"),
        (["products.csv", "--json", "photos"], "is a folder; give the name of a file"),
        (["shared.csv"], "1 class is both in train and in test"),
    ],
)
def test_what_cannot_be_checked(
    check: Run, table: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(table.parent)
    Path("shared.csv").write_text(table.read_text() + "photos/class7/0.png,class0,test\n".replace("7/0", "0/x"))
    before = table.read_text()
    code, _, err = check(*arguments)
    assert code == 2 and message in " ".join(err.split())
    assert table.read_text() == before
