"""The parts of a report that are words and numbers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from divcon.config.settings import RunConfig
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import DataError, RunError
from divcon.evaluation.metrics import Score, scores_in
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.task import Task
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.report.charts import MOST_COLUMNS, Line, flow_chart, learner_look, line_chart, thinned
from divcon.runs.report.html import Child, Html, element, fold, joined, number, numbers, percent, short, table
from divcon.runs.report.thumbnails import Thumbnails, image_words, sampled

FINETUNE = "finetune"


@dataclass(frozen=True)
class Contents:
    """A run, of which one epoch at least is done."""

    folder: RunFolder
    config: RunConfig
    record: Mapping[str, Any]
    """All of ``config.json``."""
    lines: Sequence[dict[str, Any]]
    """Of ``metrics.jsonl``."""
    divisions: Sequence[tuple[int, Division]]
    """By the epoch they were made in, at most `MOST_COLUMNS`, the first and the last, and the last that was divided,
    among them."""
    problems: Sequence[str] = field(default=())
    """What could not be read."""

    @classmethod
    def of(cls, folder: RunFolder) -> Contents:
        """
        Raises:
            RunError: the folder holds no run, none of its epochs is done, or its ``config.json`` is damaged.
        """
        found = folder.read()
        if found is None:
            raise RunError(f"{folder.path}: holds no run (no config.json of one); give a run folder")
        lines = folder.lines()
        if not lines:
            raise RunError(f"{folder.path}: no epoch of this run is done yet, so there is nothing to report")
        divisions, problems = _divisions(folder, lines)
        return cls(folder, *found, lines, divisions, problems)

    @property
    def of_vectors(self) -> bool:
        return self.config.model.backbone in ("none", "mlp")

    @property
    def kept(self) -> dict[str, Any] | None:
        """The line of the epoch that is kept; None while nothing is kept yet."""
        if not any("validation" in line for line in self.lines) and len(self.lines) < self.config.train.epochs:
            return None
        return next(line for line in self.lines if line["epoch"] == kept_epoch(list(self.lines)))

    @property
    def last_divided(self) -> tuple[int, Division] | None:
        """The last division among several learners, or where there is none the last of all."""
        several = [(epoch, division) for epoch, division in self.divisions if division.num_learners > 1]
        return (several or list(self.divisions) or [None])[-1]


def _divisions(folder: RunFolder, lines: Sequence[dict[str, Any]]) -> tuple[list[tuple[int, Division]], list[str]]:
    made = [line["epoch"] for line in lines if line["redivided"]]
    divided = [line["epoch"] for line in lines if line["redivided"] and line["phase"] != FINETUNE]
    chosen = set(thinned(made, MOST_COLUMNS - 1)) | set(divided[-1:])
    found, problems = [], []
    for epoch in sorted(chosen):
        path = folder.divisions / f"epoch_{epoch:04d}.safetensors"
        try:
            found.append((epoch, Division.load(path)))
        except DataError as error:
            problems.append(str(error))
    sizes = {len(division.learner) for _, division in found}
    if len(sizes) > 1:
        return [], [*problems, "the divisions are not of the same number of images, so that they are not shown"]
    return found, problems


_MOST_NOTES = 40
_SECONDS = ("dividing", "training", "evaluating")


def lead(contents: Contents, notes: Sequence[str]) -> Html:
    """The line under the title: what came of it."""
    kept, lines = contents.kept, contents.lines
    what = f"{contents.config.model.method}, {learners_of(contents.config)}, on {contents.record.get('benchmark')}."
    words: list[Child] = [element("p", what, class_="about")]
    if kept is not None and "validation" in kept:
        score = kept["validation"]
        low, high = score["recall_at_1_interval"]
        words.append(
            element(
                "p",
                element("strong", percent(score["recall_at_1"]), class_="big"),
                " Recall@1 on validation classes, 95 % interval ",
                percent(low),
                " to ",
                percent(high),
                f", of epoch {kept['epoch']}, which is kept",
            )
        )
    if len(lines) < contents.config.train.epochs:
        words.append(element("p", f"Not done: {len(lines):,} of {contents.config.train.epochs:,} epochs.", role="note"))
    if notes:
        count = "1 warning or note" if len(notes) == 1 else f"{len(notes):,} warnings and notes"
        words.append(element("p", element("a", count, href="#warnings"), "."))
    return joined(words)


def learners_of(config: RunConfig) -> str:
    """How many learners, in words."""
    count = config.model.num_learners
    return f"{count} learner{'s' * (count > 1)}"


def what_it_is(contents: Contents) -> Html:
    """Data, counts, method, sizes, seed, versions, machine."""
    config, record, lines = contents.config, contents.record, contents.lines
    model, source = config.model, record.get("source") or {}
    what = "vectors" if contents.of_vectors else "images"
    trained = lines[0]["left_out"] + sum(lines[0]["sizes"])
    seconds = {name: sum(line.get(f"seconds_{name}", 0.0) for line in lines) for name in _SECONDS}
    held = next((line["validation"] for line in lines if "validation" in line), None)
    network: Child = model.backbone
    if not contents.of_vectors:
        network = f"{model.backbone} at {model.image_size} px, pooling {model.pooling}"
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    facts: list[tuple[str, Child]] = [
        ("Data", f"{source['data']}" + (f" in {source['root']}" if source.get("root") else "") if source else "given"),
        ("Trained on", [number(trained), f" {what} of ", number(len(contents.folder.classes_of("train"))), " classes"]),
        (
            "Validation",
            [number(held["num_queries"]), f" {what} of ", number(held["num_classes"]), " classes held out"]
            if held
            else "not scored yet"
            if config.data.validation
            else "none: all train classes train, and the last epoch is kept",
        ),
        ("Test split", [f"{record.get('protocol')}, hash ", element("code", str(record.get("split_hash")))]),
        ("Method", model.method + (", hierarchy" if config.train.hierarchy else "")),
        ("Learners (K)", number(model.num_learners)),
        ("Dimensions (D)", number(model.embedding_dim)),
        ("Backbone", network),
        ("Loss", f"{config.train.loss}, miner {config.train.chosen_miner}"),
        ("Seed", number(config.train.seed)),
        ("Epochs", [number(len(lines)), " of ", number(config.train.epochs), f", numbered from 0: {_phases(lines)}"]),
        ("Started from", record.get("init")),
        ("Time", ", ".join(f"{duration(value)} {name}" for name, value in seconds.items())),
        ("Machine", record.get("machine") or "not recorded"),
        ("Versions", versions or None),
    ]
    return element("dl", ([element("dt", name), element("dd", value)] for name, value in facts if value is not None))


def settings(contents: Contents) -> Html:
    """The settings that are not at their defaults, and all of them behind a fold."""
    changed, all_of_them = [], []
    for part in dataclasses.fields(RunConfig):
        ours = getattr(contents.config, part.name)
        theirs = type(ours)()
        for setting in dataclasses.fields(ours):
            value, default = getattr(ours, setting.name), getattr(theirs, setting.name)
            row = (element("code", setting.name), _value(value), _value(default))
            if value != default:
                changed.append(row)
            all_of_them.append((part.name, *row))
    shown: Child = element("p", "Every setting is at its default.")
    if changed:
        shown = table("Settings that are not at their defaults", ("setting", "here", "default"), changed)
    every = table(
        "Every setting",
        ("setting", "part", "here", "default"),
        ((name, part, *rest) for part, name, *rest in all_of_them),
    )
    return joined(shown, fold(f"All {len(all_of_them)} settings", every))


def scores(contents: Contents, given: Mapping[str, Any] | None) -> Html:
    """Of the epoch that is kept, on validation classes; and on test classes, where somebody asked for them."""
    kept, parts = contents.kept, []
    if kept is not None and "validation" in kept:
        parts.append(element("h3", f"Validation classes, epoch {kept['epoch']}"))
        parts.append(
            _scored("Scores on validation classes", {**kept["validation"], "benchmark": contents.record["benchmark"]})
        )
    else:
        parts.append(element("p", "No validation classes were scored in this run."))
    if given is None:
        words: list[Child] = ["The run has not used the test classes. "]
        if contents.record.get("source"):
            words += [element("code", contents.folder.command("report", "--evaluate")), " puts their scores here."]
        else:
            words += ["divcon.report(..., scores=divcon.evaluate(model, data)) puts their scores here."]
        parts.append(element("p", words))
        return joined(parts)
    check_scores(given)
    parts.append(element("h3", "Test classes"))
    if (given["protocol"], given["split_hash"]) != (contents.record.get("protocol"), contents.record.get("split_hash")):
        parts.append(element("p", "These are of another split than the run's own.", role="note"))
    parts.append(_scored("Scores on test classes", given))
    rows = [(f"learner {k}", scores) for k, scores in enumerate(given.get("learners", []))]
    if rows:
        rows.append(("pooled features", given["features"]))
        names = ("recall_at_1", "r_precision", "map_at_r", *given.get("metrics", ()))
        cells = [
            (name, *(_score(by_name[score], by_name[score].value) if score in by_name else None for score in names))
            for name, by_name in ((name, {score.name: score for score in scores_in(each)}) for name, each in rows)
        ]
        parts.append(table("Each learner alone, on test classes", ("", *names), cells))
    return joined(parts)


def check_scores(given: Mapping[str, Any]) -> None:
    """
    Raises:
        DataError: these are no scores of `divcon.evaluate`.
    """
    needed = ("benchmark", "protocol", "split_hash", "recall_at_1", "num_queries", "num_gallery", "num_classes")
    missing = [name for name in needed if name not in given]
    if missing:
        raise DataError(
            f"`scores`: no {' and no '.join(missing)} in it; pass what divcon.evaluate returned, or the "
            "file that divcon evaluate --json wrote",
        )


def _scored(caption: str, found: Mapping[str, Any]) -> Html:
    rows = []
    for score in scores_in(found):
        spread: Child = None
        if score.std is not None:
            spread = ["± ", _score(score, score.std)]
        elif score.interval is not None:
            low, high = score.interval
            spread = [_score(score, low), " to ", _score(score, high), " (95 %, bootstrap over classes)"]
        rows.append((element("code", score.title), _score(score, score.value), spread))
    of = element(
        "p",
        f"{found['benchmark']}, {found['protocol']}, split ",
        element("code", str(found["split_hash"])),
        ": ",
        number(found["num_queries"]),
        " queries of ",
        number(found["num_classes"]),
        " classes, gallery ",
        number(found["num_gallery"]),
        ".",
    )
    return joined(of, table(caption, ("score", "value", "spread"), rows))


def _score(score: Score, value: float) -> Child:
    return percent(value) if score.percent else number(value, score.text(value))


def epochs(contents: Contents) -> Html:
    """The numbers behind the curves, a row an epoch."""
    kept = contents.kept
    shown = thinned(contents.lines)
    if kept is not None and kept not in shown:
        shown = sorted([*shown, kept], key=lambda line: line["epoch"])
    rows = []
    for line in shown:
        mark = " (kept)" if line is kept else ""
        score = line.get("validation", {}).get("recall_at_1")
        took = [number(line.get(f"seconds_{name}"), f"{line.get(f'seconds_{name}') or 0:.1f}") for name in _SECONDS]
        rows.append(
            (
                [number(line["epoch"]), mark],
                line["phase"],
                number(line["loss"], short(line["loss"])),
                numbers(line["learner_loss"], lambda value: short(value) or ""),
                number(line.get("full_loss"), short(line.get("full_loss"))),
                percent(score),
                percent(line["kept_pairs"]),
                *took,
            )
        )
    head = ("epoch", "phase", "loss", "loss of each learner", "of the full embedding", "Recall@1", "kept pairs")
    cells = table("Numbers of each epoch", (*head, *(f"s {name}" for name in _SECONDS)), rows, class_="numbers")
    some = "" if len(shown) == len(contents.lines) else f"{len(shown)} of "
    return fold(f"Numbers of {some}{len(contents.lines):,} epochs", cells)


def notes_of(contents: Contents, more: Iterable[str]) -> list[str]:
    """The warnings of the run, each once with its epochs, and other notes."""
    epochs_of: dict[str, list[int]] = {}
    for line in contents.lines:
        for warning in line["warnings"]:
            epochs_of.setdefault(warning, []).append(line["epoch"])
    warnings = [f"{_spans(epochs)}: {warning}" for warning, epochs in epochs_of.items()]
    return list(dict.fromkeys([*more, *contents.problems, *warnings]))


def warnings(notes: Sequence[str]) -> Html:
    """A list of them; the first, where they are many."""
    if not notes:
        return element("p", "None.")
    items: list[Child] = [element("li", note) for note in notes[:_MOST_NOTES]]
    if len(notes) > _MOST_NOTES:
        items.append(element("li", f"and {len(notes) - _MOST_NOTES:,} more; metrics.jsonl has those of each epoch"))
    return element("ul", items, class_="notes")


def duration(seconds: float) -> str:
    """``4.2 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _spans(epochs: Sequence[int]) -> str:
    """``epoch 3``, or ``epochs 0 to 3, 7``."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in spans[:6]] + ["..."] * (len(spans) > 6)
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(shown)}"


def _phases(lines: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for line in lines:
        counts[line["phase"]] = counts.get(line["phase"], 0) + 1
    return ", ".join(f"{count} {phase}" for phase, count in counts.items())


def _value(value: object) -> Child:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, f"{value:g}" if isinstance(value, float) else None)
    return "none" if value is None else str(value)


@dataclass(frozen=True)
class Query:
    """An image that searched among all the others."""

    index: int
    map_at_r: float
    matches: int
    """Images that it should find."""
    neighbours: tuple[tuple[int, float], ...]
    """The nearest: index and euclidean distance."""


def best_and_worst(
    images: LabeledSet, embeddings: np.ndarray, *, count: int = 6, neighbours: int = 6
) -> tuple[list[Query], list[Query]]:
    """The queries of highest and of lowest MAP@R, at most one a class in each list.

    Of equally good ones, those with more matches come first. Of equally bad ones, those whose nearest neighbour is
    nearest: a model that is sure and wrong says more than one that is lost.

    Args:
        embeddings: (N, D) float32 of the images, each of which searches among all the others (but, where they have
            cameras or groups, those of its label and camera, and of its group).

    Raises:
        DataError: no image has another of its class.
    """
    scores = retrieval_metrics(
        embeddings, images.labels, recall_at=(1,), cameras=images.cameras, groups=images.groups, per_query=True
    )["per_query"]
    columns = {"labels": (images.labels, None), "cameras": (images.cameras, None), "groups": (images.groups, None)}
    exclude = Task.of(len(images), None, columns).exclude
    indices, distances = nearest(embeddings, embeddings, min(neighbours, len(images)), exclude=exclude)
    asked = np.flatnonzero(scores["num_matches"] > 0)
    score, matches = scores["map_at_r"][asked], scores["num_matches"][asked]

    def listed(order: np.ndarray) -> list[Query]:
        queries: list[Query] = []
        classes: set[int] = set()
        for place in order.tolist():
            index = int(asked[place])
            if int(images.labels[index]) in classes:
                continue
            classes.add(int(images.labels[index]))
            pairs = zip(indices[index].tolist(), distances[index].tolist(), strict=True)
            near = tuple((int(other), float(distance)) for other, distance in pairs if other >= 0)
            queries.append(Query(index, float(score[place]), int(matches[place]), near))
            if len(queries) == count:
                break
        return queries

    best = listed(np.lexsort((asked, -matches, -score)))
    worst = listed(np.lexsort((asked, distances[asked, 0], score)))
    # With few classes the two lists would meet.
    middle = float(np.median(score))
    return [q for q in best if q.map_at_r >= middle], [q for q in worst if q.map_at_r <= middle]


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
    validated = thinned([line for line in contents.lines if "validation" in line])
    kept = contents.kept
    if not validated or kept is None:
        return []
    if kept not in validated:
        validated = sorted([*validated, kept], key=lambda line: line["epoch"])
    points = [(float(line["epoch"]), 100 * line["validation"]["recall_at_1"]) for line in validated]
    band = [tuple(100 * end for end in line["validation"]["recall_at_1_interval"]) for line in validated]
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
        return element("p", "Every learner trains its part on all images: nothing is divided (divide_by is none).")
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


def sheets(contents: Contents, images: LabeledSet, thumbnails: Thumbnails, shown: Sequence[np.ndarray]) -> Html:
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


def _beside(images: LabeledSet, index: int, thumbnails: Thumbnails) -> Child:
    return None if thumbnails.has_pictures else f" {images.label_name(index)}"


def query_rows(images: LabeledSet, thumbnails: Thumbnails, found: Sequence[Query]) -> Html:
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


def _tile(images: LabeledSet, thumbnails: Thumbnails, index: int, kind: str, distance: float | None = None) -> Html:
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
