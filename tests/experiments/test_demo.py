"""The demo and its pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.experiments.demo import RIGHT, WRONG, cluster_sheet, neighbour_sheet, recall_curve

pytestmark = pytest.mark.heavy


def test_neighbours_are_framed_by_whether_they_are_right(few: Benchmark, tmp_path: Path) -> None:
    images = few.query.subset(np.arange(12))
    # Vectors on a line: image 0's neighbours are 1, 2, 3 in this order, and with the second vectors 11, 10, 9.
    vectors = np.arange(12, dtype=np.float32)[:, None]
    turned = vectors.copy()
    turned[0] = 100
    embeddings = {"before": vectors, "after": turned}
    neighbour_sheet(tmp_path / "n.png", images, embeddings, [0, 5], neighbours=3, tile=56)
    sheet = Image.open(tmp_path / "n.png").convert("RGB")
    block = 3 * 56 + 16
    assert sheet.size == (130 + 56 + 2 * block, 24 + 2 * 56)
    marks = set()
    for number, expected in enumerate(([1, 2, 3], [11, 10, 9])):
        for column, index in enumerate(expected):
            right = images.labels[index] == images.labels[0]
            left = 130 + 56 + number * block + 16 + column * 56
            assert sheet.getpixel((left + 2, 24 + 28)) == (RIGHT if right else WRONG)
            # The tick and the cross differ in shape, not in colour alone.
            corner = np.asarray(sheet.crop((left + 41, 27, left + 53, 39)).convert("L")) > 200
            marks.add((bool(right), corner.tobytes()))
    assert {right for right, _ in marks} == {True, False}
    assert len(marks) == 2


def test_clusters_show_their_own_images(few: Benchmark, tmp_path: Path) -> None:
    images = few.train.subset(np.arange(10))
    division = dc.Division(learner=np.array([0] * 5 + [1] * 4 + [-1]), centroids=np.zeros((2, 1)))
    cluster_sheet(tmp_path / "c.png", images, division, columns=3, rows=2, tile=64)
    sheet = Image.open(tmp_path / "c.png")
    assert sheet.size == (3 * 64, 2 * (2 * 64 + 26))
    shown = np.asarray(sheet.crop((2, 154 + 28, 62, 154 + 28 + 60)))
    expected = images.open(5)
    expected.thumbnail((60, 60), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown, np.asarray(expected))


def test_the_curve_is_drawn_for_each_run(tmp_path: Path) -> None:
    lines = [{"epoch": e, "phase": "subspace", "validation": {"recall_at_1": 0.5 + e / 10}} for e in range(3)]
    recall_curve(tmp_path / "r.svg", {"single": lines, "slices": [*lines, {"epoch": 3, "phase": "finetune"}]}, 0.4)
    assert len((tmp_path / "r.svg").read_text()) > 5000


@pytest.mark.slow
def test_the_demo_scores_and_draws(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    words = ("demo", "--out", tmp_path / "demo", "--workers", "0")
    code, printed, notes = command(*words, "--epochs", "2", "--compare")
    assert code == 0
    for name in ("pretrained features", "trained", "divided", "95 % interval"):
        assert name in printed
    assert "--learners 1" in notes  # chosen from the data, in the words of the command line
    for name in ("recall_by_epoch", "clusters", "neighbours"):
        assert Image.open(tmp_path / "demo" / f"{name}.png").width > 300
    for name, learners in (("trained", 1), ("divided", 4)):
        record = json.loads((tmp_path / "demo" / name / "config.json").read_text())
        assert record["model"]["num_learners"] == learners
    # Without --compare it shows the default run alone, which is trained already.
    code, printed, _ = command(*words, "--epochs", "2")
    assert code == 0
    assert "divided" not in printed
    code, _, err = command(*words, "--epochs", "2", "--seed", "1")
    assert code == 2
    assert "cannot resume with other settings (--seed is 0 in the run, 1 now" in err


README = Path(__file__).parents[2] / "README.md"
TOLERANCE = 0.7
"""Points by which a score may differ from README: another processor or version of PyTorch rounds otherwise, and
training amplifies that. On the machine of README's numbers they are equal."""


def table_of(text: str) -> dict[str, list[float]]:
    """The numbers of the demo's table, by the row's name."""
    rows = re.findall(r"^(pretrained features|trained) +(.*)$", text, re.MULTILINE)
    return {name: [float(number) for number in re.findall(r"[+-]?\d+\.\d", rest)] for name, rest in rows}


def test_readme_shows_a_table_of_the_demo() -> None:
    shown = table_of(README.read_text())
    assert {name: len(numbers) for name, numbers in shown.items()} == {
        "pretrained features": 5,
        "trained": 5,
    }


@pytest.mark.slow
def test_readme_shows_what_the_demo_prints(tmp_path: Path, command: Callable[..., tuple[int, str, str]]) -> None:
    code, printed, _ = command("demo", "--out", tmp_path / "demo")
    assert code == 0
    expected, result = table_of(README.read_text()), table_of(printed)
    assert list(result) == list(expected)
    for name, numbers in expected.items():
        assert result[name] == pytest.approx(numbers, abs=TOLERANCE), name
