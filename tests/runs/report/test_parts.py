"""The parts of a report: charts read back, flows counted, queries ranked by hand, and the bounds of size."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.runs.folder import RunFolder
from divcon.runs.report import sections
from divcon.runs.report.charts import MAX_POINTS, Line, flow_chart, flows, learner_style, line_chart, thinned
from divcon.runs.report.html import Html, element, joined, page
from divcon.runs.report.sections import Contents, best_and_worst, sheet_indices
from divcon.runs.report.thumbnails import Thumbnails, sampled


@pytest.mark.parametrize("seed", range(6))
def test_values_can_be_read_off_a_chart_by_its_ticks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    xs = np.arange(rng.integers(2, 30))
    ys = rng.normal(size=len(xs)) * 10.0 ** rng.integers(-3, 4) + rng.normal() * 5
    drawn = line_chart("t", "about it", [Line("l", list(zip(xs, ys, strict=True)), "red")], y_label="y")
    (path,) = re.findall(r'<path d="M([^"]+)" class="line"', drawn)
    points = np.array([[float(v) for v in pair.split()] for pair in path.split("L")])
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(end|middle)">([-\d.e+]+)</text>', drawn)
    up = np.array([(float(y) - 4, float(value)) for _, y, anchor, value in texts if anchor == "end"])
    across = np.array([(float(x), float(value)) for x, _, anchor, value in texts if anchor == "middle"])
    assert len(up) >= 3
    assert up[:, 1].min() <= ys.min() + 1e-9 <= ys.max() <= up[:, 1].max() + 1e-9
    slope, offset = np.polyfit(up[:, 0], up[:, 1], 1)
    assert np.allclose(slope * points[:, 1] + offset, ys, atol=abs(slope) * 0.3)
    if len(across) > 1:
        slope, offset = np.polyfit(across[:, 0], across[:, 1], 1)
        assert np.allclose(slope * points[:, 0] + offset, xs, atol=abs(slope) * 0.3)
    assert points.min() >= 0
    assert points[:, 0].max() <= 420
    assert points[:, 1].max() <= 260


def test_a_chart_of_one_epoch_of_the_same_values_and_of_none() -> None:
    one = line_chart("t", "about", [Line("l", [(0.0, 2.0)], "red")], y_label="y")
    assert "<circle" in one
    assert "nan" not in one
    flat = line_chart("t", "about", [Line("l", [(0.0, 0.0), (1.0, 0.0)], "red")], y_label="y")
    assert "nan" not in flat
    assert line_chart("t", "about", [Line("l", [], "red")], y_label="y") == ""


def test_a_line_begins_anew_where_learners_were_doubled() -> None:
    line = Line("l", [(float(i), 1.0 + i) for i in range(6)], "red", breaks=frozenset({2.0, 4.0}))
    assert line_chart("t", "about", [line], y_label="y").count('class="line"') == 3


def test_thinned_keeps_the_ends_and_the_order() -> None:
    assert thinned(list(range(5)), 7) == list(range(5))
    few = thinned(list(range(1000)))
    assert len(few) == MAX_POINTS == len(set(few))
    assert few[0] == 0
    assert few[-1] == 999
    assert few == sorted(few)


def test_flows_are_counted_as_by_hand() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = (
            dc.Division(rng.integers(-1, k, 300), np.zeros((k, 1), np.float32)) for k in rng.integers(1, 6, 2)
        )
        expected = np.zeros((one.num_learners + 1, other.num_learners + 1), np.int64)
        for a, b in zip(one.learner, other.learner, strict=True):
            expected[a if a >= 0 else one.num_learners, b if b >= 0 else other.num_learners] += 1
        np.testing.assert_array_equal(flows(one, other), expected)
        np.testing.assert_array_equal(expected[:-1, :-1], one.overlap(other))
    with pytest.raises(ValueError, match="do not compare"):
        flows(one, dc.Division(np.zeros(3, np.int64), np.zeros((1, 1))))


def test_bands_are_as_high_as_their_images_are_many_and_blocks_do_not_overlap() -> None:
    rng = np.random.default_rng(1)
    divisions = [dc.Division(rng.integers(-1, k, 400), np.zeros((k, 1), np.float32)) for k in (1, 2, 4)]
    drawn, dropped = flow_chart([(f"epoch {i}", division) for i, division in enumerate(divisions)])
    assert dropped == 0
    bands = re.findall(r'<path d="[^"]*?v(-?[\d.]+)C[^"]*" class="ribbon"[^>]*><title>[^<]*: (\d+) images', drawn)
    heights, counts = np.array(bands, np.float64).T
    assert counts.sum() == 2 * 400
    scale = heights.sum() / counts.sum()
    assert np.allclose(heights, scale * counts, atol=0.06)
    blocks = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="12.0" height="([\d.]+)"', drawn)
    for column in {x for x, _, _ in blocks}:
        spans = sorted((float(y), float(y) + float(height)) for x, y, height in blocks if x == column)
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


def test_bands_leave_and_enter_a_block_side_by_side() -> None:
    rng = np.random.default_rng(4)
    one, other = (dc.Division(rng.integers(-1, 3, 300), np.zeros((3, 1), np.float32)) for _ in range(2))
    drawn, _ = flow_chart([("one", one), ("other", other)])
    blocks = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="12.0" height="([\d.]+)"', drawn)
    number = r"([\d.]+)"
    bands = re.findall(rf'd="M{number} {number}C{number} {number} {number} {number} {number} {number}v{number}C', drawn)
    for left, ends in (
        ("0", [(float(b[1]), float(b[8])) for b in bands]),
        ("92", [(float(b[7]), float(b[8])) for b in bands]),
    ):
        spans = sorted((top, top + height) for top, height in ends)
        assert len(spans) == 16
        for _, y, height in (block for block in blocks if block[0] == left):
            top, bottom = float(y), float(y) + float(height)
            inside = [span for span in spans if top - 0.2 <= span[0] and span[1] <= bottom + 0.2]
            assert len(inside) == 4
            assert inside[0][0] == pytest.approx(top, abs=0.2)
            assert inside[-1][1] == pytest.approx(bottom, abs=0.2)
            assert all(a[1] == pytest.approx(b[0], abs=0.2) for a, b in itertools.pairwise(inside))


def test_many_learners_are_bounded(report_run: Path) -> None:
    rng = np.random.default_rng(2)
    contents = Contents.of(RunFolder(report_run))
    for learners in (2, 12, 40, 300):
        division = dc.Division(rng.integers(0, learners, 20_000), np.zeros((learners, 1), np.float32))
        drawn = sheet_indices(replace(contents, divisions=[(0, division)]))
        assert 6 * min(learners, 40) <= sum(map(len, drawn)) <= 240
        assert all((division.learner[indices] == k).all() for k, indices in enumerate(drawn))
        other = dc.Division(rng.integers(0, learners, 20_000), np.zeros((learners, 1), np.float32))
        chart, dropped = flow_chart([("one", division), ("two", other)])
        assert chart.count("ribbon") <= 64
        assert dropped == np.count_nonzero(flows(division, other)) - chart.count("ribbon")
        assert len(chart) < 200_000


def test_a_long_run_of_many_learners_stays_small(report_run: Path) -> None:
    contents = Contents.of(RunFolder(report_run))
    many = {"learner_loss": [0.12345678901234567] * 300, "sizes": [12345] * 300, "phase": "subspace"}
    lines = [{**contents.lines[0], **many, "epoch": epoch, "redivided": True} for epoch in range(3000)]
    model = dc.ModelConfig(num_learners=300, embedding_dim=300)
    long = replace(contents, lines=lines, config=replace(contents.config, model=model))
    text = sections.curves(long) + sections.epochs(long) + sections.division(long)
    assert "and 276 more" in text
    assert "200 of 3,000 epochs" in text
    assert len(text) < 2_000_000


def test_samples_are_drawn_by_the_seed() -> None:
    indices = np.arange(100) * 3
    one, same, other = (sampled(indices, 10, (seed, 1)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert np.isin(one, indices).all()
    assert len(np.unique(one)) == 10
    np.testing.assert_array_equal(sampled(indices, 100, (0,)), indices)


def ranked(embeddings: np.ndarray, i: int, allowed: np.ndarray) -> list[tuple[float, int]]:
    return sorted(
        (float(np.linalg.norm(embeddings[i] - embeddings[j])), j) for j in range(len(embeddings)) if allowed[j]
    )


@pytest.mark.parametrize("cameras", [False, True], ids=["plain", "cameras"])
def test_best_and_worst_queries_as_by_hand(few: Benchmark, cameras: bool) -> None:
    rng = np.random.default_rng(3)
    images = few.query.subset(np.arange(60))
    if cameras:
        images = replace(images, cameras=rng.integers(0, 2, 60), groups=rng.integers(-1, 30, 60))
    centres = rng.normal(size=(images.labels.max() + 1, 5))
    embeddings = (centres[images.labels] + rng.normal(size=(60, 5))).astype(np.float32)
    best, worst = best_and_worst(images, embeddings, count=4, neighbours=5)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    facts = {}
    for i in range(60):
        allowed = np.arange(60) != i
        if cameras:
            allowed &= ~((images.labels == images.labels[i]) & (images.cameras == images.cameras[i]))
            allowed &= ~((images.groups == images.groups[i]) & (images.groups[i] >= 0))
        order = ranked(embeddings, i, allowed)
        hits = [images.labels[j] == images.labels[i] for _, j in order]
        matches = sum(hits)
        if matches:
            score = sum(sum(hits[: n + 1]) / (n + 1) for n in range(matches) if hits[n]) / matches
            facts[i] = (score, matches, order)

    def first_of_each_class(order: list[int]) -> list[int]:
        firsts: dict[int, int] = {}
        for i in order:
            firsts.setdefault(int(images.labels[i]), i)
        return list(firsts.values())[:4]

    middle = float(np.median([score for score, _, _ in facts.values()]))
    good = first_of_each_class(sorted(facts, key=lambda i: (-facts[i][0], -facts[i][1], i)))
    bad = first_of_each_class(sorted(facts, key=lambda i: (facts[i][0], facts[i][2][0][0], i)))
    assert [query.index for query in best] == [i for i in good if facts[i][0] >= middle]
    assert [query.index for query in worst] == [i for i in bad if facts[i][0] <= middle]
    assert best
    assert worst
    for query in [*best, *worst]:
        score, matches, order = facts[query.index]
        assert query.map_at_r == pytest.approx(score)
        assert query.matches == matches
        assert [j for j, _ in query.neighbours] == [j for _, j in order[:5]]
        assert [similarity for _, similarity in query.neighbours] == pytest.approx(
            [1 - d**2 / 2 for d, _ in order[:5]], abs=1e-5
        )


def test_an_image_that_does_not_decode_has_words_in_its_place(
    image_folder: Path, broken_png: object, tmp_path: Path
) -> None:
    images = dc.read(image_folder).train
    assert callable(broken_png)
    broken_png(image_folder / images.path(1))
    thumbnails = Thumbnails(images, [0, 1, 1])
    assert thumbnails.tag(0, "hit: ").startswith("<img")
    assert "does not decode" in thumbnails.tag(1)
    assert isinstance(images, LabeledSet)


def test_what_is_no_html_is_escaped() -> None:
    html = element("p", "<b>", element("i", "&"), ["x", None, Html("<br>")], title='"><script>', hidden=True, id=None)
    assert html == '<p title="&quot;&gt;&lt;script&gt;" hidden>&lt;b&gt;<i>&amp;</i>x<br></p>'
    assert joined("a", [["<"]]) == "a&lt;"
    assert isinstance(html, Html)
    assert "<title>&lt;/title&gt;</title>" in page("</title>", [], "")


def test_the_legend_of_many_lines_takes_a_click() -> None:
    for number, folded in ((8, False), (17, True)):
        lines = [Line(f"learner {k}", [(0.0, 1.0), (1.0, 0.5)], *learner_style(k)) for k in range(number)]
        figure = str(line_chart("Loss", "about", lines, y_label="loss"))
        assert figure.count("<li") == (number if folded else 0)
        assert (f"<summary>The {number} lines</summary>" in figure) == folded
