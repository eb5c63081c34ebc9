"""The command line where folders are odd, full of something else, or have changed."""

from __future__ import annotations

import shutil
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
