"""The parts of a report that are drawn: curves, divisions, the learners' images, queries."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from divcon.data.image_set import ImageSet
from divcon.report.charts import Line, learner_look, line_chart, thinned
from divcon.report.contents import Contents
from divcon.report.flow import flow_chart
from divcon.report.html import Child, Html, element, fold, joined, number, numbers, percent, short, table
from divcon.report.queries import Query
from divcon.report.thumbnails import Thumbnails, image_words, sampled

_FULL = "var(--ink)"
_MOST_OF_A_LEARNER = 24
_MOST_IN_SHEETS = 240
_MOST_LEARNERS = 40


def curves(contents: Contents) -> Html:
    """Loss, Recall@1 on validation classes, share of positive pairs that the division keeps; by epoch."""
    lines = contents.lines
    marks = [
        (float(line["epoch"]), line["phase"])
        for before, line in itertools.pairwise(lines)
        if line["phase"] != before["phase"]
    ]
    drawn = [_loss_chart(lines, marks), *_recall_chart(contents, marks), *_pairs_chart(lines, marks)]
    return element("div", drawn, class_="charts")


def _loss_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> Html:
    learners: dict[int, list[tuple[float, float]]] = {}
    full, grown = [], set()
    for before, line in zip([None, *lines], lines, strict=False):
        epoch = float(line["epoch"])
        if line["phase"] == "subspace":
            for k, value in enumerate(line["learner_loss"]):
                if value is not None and math.isfinite(value):
                    learners.setdefault(k, []).append((epoch, value))
            if before is not None and len(before["learner_loss"]) != len(line["learner_loss"]):
                grown.add(epoch)
        whole = line["full_loss"] if line["phase"] == "subspace" and "full_loss" in line else line["loss"]
        if (line["phase"] != "subspace" or line.get("full_loss") is not None) and math.isfinite(whole):
            full.append((epoch, whole))
    found = [
        Line(f"learner {k}", thinned(points), *learner_look(k), breaks=frozenset(grown))
        for k, points in sorted(learners.items())[:_MOST_LEARNERS]
    ]
    if full:
        found.append(Line("full embedding", thinned(full), _FULL, "5 2" if found else None))
    first, last = lines[0], lines[-1]
    some = f" Of {len(learners):,} learners, the first {_MOST_LEARNERS}." if len(learners) > _MOST_LEARNERS else ""
    about = (
        f"Mean loss {first['loss']:.3f} in epoch {first['epoch']}, {last['loss']:.3f} in epoch {last['epoch']}.{some}"
    )
    return line_chart("Loss", about, found, y_label="mean loss of the batches", marks=marks)


def _recall_chart(contents: Contents, marks: list[tuple[float, str]]) -> list[Html]:
    judged = thinned([line for line in contents.lines if "validation" in line])
    kept = contents.kept
    if not judged or kept is None:
        return []
    if kept not in judged:
        judged = sorted([*judged, kept], key=lambda line: line["epoch"])
    points = [(float(line["epoch"]), 100 * line["validation"]["recall_at_1"]) for line in judged]
    band = [tuple(100 * end for end in line["validation"]["recall_at_1_interval"]) for line in judged]
    about = (
        f"{points[0][1]:.1f} % in epoch {points[0][0]:g}, {100 * kept['validation']['recall_at_1']:.1f} % in epoch "
        f"{kept['epoch']}, which is kept, {points[-1][1]:.1f} % in epoch {points[-1][0]:g}."
    )
    line = Line("Recall@1", points, "var(--c0)", band=band)  # type: ignore[arg-type]
    title = "Recall@1 on validation classes"
    return [line_chart(title, about, [line], y_label="%", marks=marks, kept=float(kept["epoch"]))]


def _pairs_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> list[Html]:
    if all(len(line["sizes"]) == 1 for line in lines):
        return []
    kept = Line(
        "positive pairs kept together",
        thinned([(float(line["epoch"]), 100 * line["kept_pairs"]) for line in lines]),
        "var(--c0)",
    )
    moved = [(float(line["epoch"]), 100 * line["changed"]) for line in lines if line.get("changed") is not None]
    found = [kept] + ([Line("images that changed learner", thinned(moved), "var(--c1)", "6 3")] if moved else [])
    about = f"{kept.points[0][1]:.1f} % of positive pairs at first, {kept.points[-1][1]:.1f} % at last."
    return [line_chart("What the divisions keep", about, found, y_label="%", marks=marks)]


def division(contents: Contents) -> Html:
    """Sizes and the flow of images from one division to the next."""
    if contents.config.model.num_learners == 1:
        return element("p", "One learner has all images: nothing is divided.")
    if contents.config.train.divide_by == "none":
        return element("p", "Every learner trains its part on all images: nothing is divided (--divide-by none).")
    lines = [line for line in contents.lines if line["redivided"]]
    parts: list[Child] = []
    if len(contents.divisions) > 1:
        columns = [(f"epoch {epoch}", made) for epoch, made in contents.divisions]
        drawn, dropped = flow_chart(columns)
        some = f"{len(columns)} of {len(lines):,} divisions. " if len(columns) < len(lines) else ""
        few = f" The {dropped:,} smallest flows are not drawn." if dropped else ""
        words = f"{some}A column a division, a block a learner (out: left out); a band is the images that go on.{few}"
        parts.append(element("figure", drawn, element("figcaption", words)))
    rows = (
        (
            number(line["epoch"]),
            line["phase"],
            numbers(line["sizes"]),
            number(line["left_out"]),
            percent(line["kept_pairs"]),
            percent(line.get("changed")),
            number(line.get("nmi_previous"), short(line.get("nmi_previous"))),
        )
        for line in thinned(lines)
    )
    head = ("epoch", "phase", "images of each learner", "left out", "pairs kept", "changed learner", "NMI to the last")
    parts.append(fold(f"Numbers of {len(lines):,} divisions", table("Divisions", head, rows, class_="numbers")))
    return joined(parts)


def sheet_indices(contents: Contents) -> list[np.ndarray]:
    """The images that are shown of each learner at the last division, drawn by the run's seed."""
    last = contents.last_divided
    if last is None:
        return []
    made = last[1]
    learners = min(made.num_learners, _MOST_LEARNERS)
    count = max(6, min(_MOST_OF_A_LEARNER, _MOST_IN_SHEETS // learners))
    seed = contents.config.train.seed
    return [sampled(made.indices(k), count, (seed, 0x5EE7, k)) for k in range(learners)]


def sheets(contents: Contents, images: ImageSet, thumbnails: Thumbnails, shown: Sequence[np.ndarray]) -> Html:
    """Some images of each learner at the last division."""
    last = contents.last_divided
    assert last is not None
    epoch, made = last
    what = "images" if thumbnails.has_pictures else "vectors"
    parts: list[Child] = [element("p", f"Of the division of epoch {epoch}, drawn by the run's seed.")]
    for k, indices in enumerate(shown):
        members = made.indices(k)
        name = f"Learner {k}" if made.num_learners > 1 else "All together"
        classes = len(np.unique(images.labels[members]))
        items = (element("li", thumbnails.tag(i), _beside(images, i, thumbnails)) for i in indices.tolist())
        words = f": {len(members):,} {what} of {classes:,} classes"
        style = f"border-color:{learner_look(k)[0]}"
        kind = "sheet" if thumbnails.has_pictures else "words"
        parts.append(element("h3", element("span", name, class_="tag", style=style), words))
        parts.append(element("ul", items, class_=kind))
    if made.num_learners > len(shown):
        parts.append(element("p", f"{made.num_learners - len(shown):,} more learners are not shown."))
    return joined(parts)


def _beside(images: ImageSet, index: int, thumbnails: Thumbnails) -> Child:
    return None if thumbnails.has_pictures else f" {images.label_name(index)}"


def query_rows(images: ImageSet, thumbnails: Thumbnails, found: Sequence[Query]) -> Html:
    """A row a query: the query, and what it finds, nearest first."""
    rows = []
    for query in found:
        cells = [_tile(images, thumbnails, query.index, "query")]
        for index, distance in query.neighbours:
            hit = images.labels[index] == images.labels[query.index]
            cells.append(_tile(images, thumbnails, index, "hit" if hit else "miss", distance))
        about = f"MAP@R {100 * query.map_at_r:.0f} %, {query.matches:,} to find"
        items = (element("li", cell) for cell in cells)
        rows.append(element("li", element("p", about, class_="dim"), element("ol", items, class_="row")))
    return element("ol", rows, class_="queries")


def _tile(images: ImageSet, thumbnails: Thumbnails, index: int, kind: str, distance: float | None = None) -> Html:
    mark = {"query": "query", "hit": "✓ hit", "miss": "✗ miss"}[kind]
    far = None if distance is None else [" ", number(distance, f"{distance:.2f}")]
    return element(
        "figure",
        thumbnails.tag(index, f"{kind}: "),
        element(
            "figcaption",
            element("span", mark, far, class_="mark"),
            element("span", images.label_name(index), class_="label", title=image_words(images, index)),
        ),
        class_=f"tile {kind}",
    )
