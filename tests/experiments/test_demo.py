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
from divcon.experiments.demo import (
    RIGHT,
    WRONG,
    Examples,
    _recall_figure,
    choose_examples,
    cluster_sheet,
    neighbour_sheet,
    recall_curve,
)
from tests.experiments.conftest import texts_of

pytestmark = pytest.mark.heavy


def test_neighbours_are_framed_by_whether_they_are_right(few: Benchmark, tmp_path: Path) -> None:
    images = few.query.subset(np.arange(12))
    # Vectors on a line: image 0's neighbours are 1, 2, 3 in this order, and with the second vectors 11, 10, 9.
    vectors = np.arange(12, dtype=np.float32)[:, None]
    turned = vectors.copy()
    turned[0] = 100
    embeddings = {"before": vectors, "after": turned}
    examples = [Examples("chosen by hand", [0, 5]), Examples("and", [7])]
    texts = {"title": "Neighbours", "caption": "What is near, before and after."}
    neighbour_sheet(tmp_path / "n.png", images, embeddings, examples, neighbours=3, tile=56, **texts)
    sheet = Image.open(tmp_path / "n.png").convert("RGB")
    block, head, rule = 3 * 56 + 20, 58 + 22, 26
    assert sheet.size == (158 + 56 + 2 * block + 12, head + 2 * (rule + 6) + 3 * 56 + 6)
    marks = set()
    for number, expected in enumerate(([1, 2, 3], [11, 10, 9])):
        for column, index in enumerate(expected):
            right = images.labels[index] == images.labels[0]
            left, top = 158 + 56 + 20 + number * block + column * 56, head + rule
            assert sheet.getpixel((left + 2, top + 28)) == (RIGHT if right else WRONG)
            # The tick and the cross differ in shape, not in colour alone.
            corner = np.asarray(sheet.crop((left + 41, top + 3, left + 53, top + 15)).convert("L")) > 200
            marks.add((bool(right), corner.tobytes()))
    assert {right for right, _ in marks} == {True, False}
    assert len(marks) == 2
    # There is text where the title, the caption, the heads of the columns and the rules are.
    for upper, lower in ((0, 30), (34, 54), (58, 80), (head + 5, head + 24)):
        assert (np.asarray(sheet.convert("L"))[upper:lower] < 128).any()


def test_examples_are_chosen_by_the_rule_that_the_picture_states(few: Benchmark) -> None:
    images = few.query
    rng = np.random.default_rng(0)
    unit = lambda vectors: (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)  # noqa: E731
    centres = rng.normal(size=(images.labels.max() + 1, 6))[images.labels]
    before, after = (unit(centres + noise * rng.normal(size=centres.shape)) for noise in (1.5, 1.2))
    examples, each = choose_examples(images, before, after, learned=4, drawn=2, lost=3, neighbours=2, seed=3)
    first = []
    for vectors in (before, after):
        similarity = vectors @ vectors.T
        np.fill_diagonal(similarity, -2)
        first.append(images.labels[similarity.argmax(1)] == images.labels)
    matches = np.bincount(images.labels)[images.labels] - 1
    gain = each[1]["map_at_r"] - each[0]["map_at_r"]
    learned, drawn, lost = examples
    for group, changed, sign in ((learned, ~first[0] & first[1], 1), (lost, first[0] & ~first[1], -1)):
        assert f"{(changed & (matches > 0)).sum():,} of {(matches > 0).sum():,} queries" in group.rule
        assert all(changed[query] for query in group.queries)
        gains = [sign * gain[query] for query in group.queries]
        assert gains == sorted(gains, reverse=True)
    candidates = np.flatnonzero(~first[0] & first[1] & (matches >= 2))
    assert gain[learned.queries[0]] == gain[candidates].max()
    assert "at random" in drawn.rule
    shown = [query for group in examples for query in group.queries]
    assert len({int(images.labels[query]) for query in shown}) == len(shown) == 9
    assert all(matches[query] >= 2 for query in shown)
    same = choose_examples(images, before, before, neighbours=2)[0]
    assert [group.rule[:8] for group in same] == ["Drawn at"]  # nothing was learned or lost


def test_clusters_show_their_own_images(few: Benchmark, tmp_path: Path) -> None:
    images = few.train.subset(np.arange(10))
    division = dc.Division(learner=np.array([0] * 5 + [1] * 4 + [-1]), centroids=np.zeros((2, 1)))
    cluster_sheet(tmp_path / "c.png", images, division, columns=3, rows=2, tile=64)
    sheet = Image.open(tmp_path / "c.png")
    assert sheet.width == 3 * 64
    top = sheet.height - 154
    assert top - 154 > 40  # a title and a caption
    shown = np.asarray(sheet.crop((2, top + 28, 62, top + 28 + 60)))
    expected = images.open(5)
    expected.thumbnail((60, 60), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown, np.asarray(expected))


def test_the_curve_is_drawn_for_each_run(tmp_path: Path) -> None:
    scores = {"num_queries": 1234, "num_classes": 120}
    lines = [
        {
            "epoch": e,
            "phase": "subspace",
            "validation": {"recall_at_1": 0.5 + e / 10, "recall_at_1_interval": [0.4, 0.8], **scores},
        }
        for e in range(3)
    ]
    runs = {"single": lines, "slices": [*lines, {"epoch": 3, "phase": "finetune"}]}
    recall_curve(tmp_path / "r.png", runs, 0.4)
    assert Image.open(tmp_path / "r.png").width > 900
    texts = texts_of(_recall_figure(runs, 0.4))
    assert {"single 70.0", "slices 70.0", "pretrained features 40.0", "slices conquers", "epoch"} <= set(texts)
    assert "Recall@1 on validation classes, %" in texts
    assert any("1,234 queries in 120 classes" in text and "95 % interval" in text for text in texts)


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
