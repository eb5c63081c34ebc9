"""Contact sheets of a run."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.runs.sheets import RIGHT, WRONG, Examples, choose_examples, cluster_sheet, flow_sheet, neighbour_sheet

pytestmark = pytest.mark.heavy


def test_neighbours_are_framed_by_whether_they_are_right(few: Benchmark) -> None:
    images = few.query.subset(np.arange(12))
    # Vectors on a line: image 0's neighbours are 1, 2, 3 in this order, and with the second vectors 11, 10, 9.
    vectors = np.arange(12, dtype=np.float32)[:, None]
    turned = vectors.copy()
    turned[0] = 100
    embeddings = {"before": vectors, "after": turned}
    examples = [Examples("chosen by hand", [0, 5]), Examples("and", [7])]
    texts = {"title": "Neighbours", "caption": "What is near, before and after."}
    sheet = neighbour_sheet(images, embeddings, examples, neighbours=3, tile=56, **texts)
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


def test_clusters_show_their_own_images(few: Benchmark) -> None:
    images = few.train.subset(np.arange(10))
    division = dc.Division(learner=np.array([0] * 5 + [1] * 4 + [-1]), centroids=np.zeros((2, 1)))
    sheet = cluster_sheet(images, division, columns=3, rows=2, tile=64)
    assert sheet.width == 3 * 64
    top = sheet.height - 154
    assert top - 154 > 40  # a title and a caption
    shown = np.asarray(sheet.crop((2, top + 28, 62, top + 28 + 60)))
    expected = images.open(5)
    expected.thumbnail((60, 60), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(shown, np.asarray(expected))


def test_bands_are_as_wide_as_the_images_that_move() -> None:
    """Columns of pixels near both ends of the bands: the bars and the bands of each learner have its share."""
    learner = np.repeat([0, 1], 50)
    moved = learner.copy()
    moved[:20] = 1  # twenty of learner 0 go over
    moved[99] = -1
    one, two = (dc.Division(learner=values, centroids=np.zeros((2, 1))) for values in (learner, moved))
    sheet = flow_sheet([("epoch 0", one), ("epoch 2", two)], width=600, height=324)
    pixels = np.asarray(sheet).astype(int)[-324:]
    bar = pixels[:, 12 + 7]
    drawn = np.abs(bar - 255).sum(1) > 60
    unit = (324 - 24 - 8 - 2 * 10) / 100
    assert drawn[20:].sum() == pytest.approx(100 * unit, abs=3)
    last = pixels[:, 600 - 12 - 7]
    colours = [tuple(bar[30]), tuple(bar[-40])]
    for colour, count in zip(colours, (30, 69), strict=True):
        assert (np.abs(last - colour).sum(1) < 12).sum() == pytest.approx(count * unit, abs=3)
