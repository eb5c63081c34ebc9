"""The sections of a report, in the order of the page."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from divcon.config.image_size import saved_size
from divcon.config.settings import RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import DataError
from divcon.evaluation.baselines import BASELINES, METRICS
from divcon.evaluation.metrics import Score, scores_in
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.task import Task
from divcon.models.names import EMBEDDING_NAMES
from divcon.runs.embedding import read_record
from divcon.runs.folder import RunFolder, begun, kept_epoch
from divcon.runs.notes import EpochNotes, learners_are_one
from divcon.runs.report.charts import MAX_COLUMNS, Line, flow_chart, learner_style, line_chart, thinned
from divcon.runs.report.html import Child, Html, element, fold, joined, number, numbers, percent, short, table
from divcon.runs.report.thumbnails import Thumbnails, as_tag, image_words, sampled
from divcon.runs.selection import ended_by_patience, last_epoch, notes, patience_note, reason

_FINETUNE = "finetune"
_SECONDS = ("dividing", "training", "evaluating")
_FULL = "var(--ink)"
"""The color of the full embedding."""
_MAX_LEARNERS = 40
_MAX_OF_A_LEARNER = 24
_MAX_IN_SHEETS = 240
_MAX_NOTES = 40


@dataclass(frozen=True)
class Contents:
    """A run of which at least one epoch is done."""

    folder: RunFolder
    config: RunConfig
    record: Mapping[str, Any]
    """All of ``config.json``."""
    lines: Sequence[dict[str, Any]]
    """Of ``metrics.jsonl``."""
    divisions: Sequence[tuple[int, Division]]
    """By epoch, at most `MAX_COLUMNS`, with the first, the last, and the last among several learners."""
    problems: Sequence[str] = field(default=())
    """What could not be read."""
    over_folds: Mapping[str, Any] | None = None
    """Of a run with ``validation_folds``, what `divcon.runs.selection.select_over_folds` returned."""

    @classmethod
    def of(cls, folder: RunFolder) -> Contents:
        """
        Raises:
            RunError: the folder holds no run, none of its epochs is done, or its ``config.json`` is damaged.
        """
        config, record, lines = begun(folder.path)
        divisions, problems = _divisions(folder, lines)
        return cls(folder, config, record, lines, divisions, problems, folder.selection_over_folds())

    @property
    def of_vectors(self) -> bool:
        return self.config.model.backbone in ("none", "mlp")

    @property
    def kept(self) -> dict[str, Any] | None:
        """The line of the epoch whose model is kept; None where no model is kept yet."""
        if not any("validation" in line or "kept" in line for line in self.lines) and not self.complete:
            return None  # of an earlier version
        number = kept_epoch(list(self.lines))
        return next((line for line in self.lines if line["epoch"] == number), None)

    @property
    def reason(self) -> str:
        """Why the epoch that is kept is kept."""
        if not any("kept" in line for line in self.lines) and any("validation" in line for line in self.lines):
            return "the first with the best Recall@1 on validation classes"
        return reason(self.lines, self.config, None if self.over_folds is None else dict(self.over_folds))

    @property
    def selection_notes(self) -> list[str]:
        """What there is to warn of in the choice of the epoch; none before the run ends."""
        lines, config = self.lines, self.config
        ended = ended_by_patience(lines, config)
        if not (self.complete or ended):
            return []
        over_folds = None if self.over_folds is None else dict(self.over_folds)
        return [*([patience_note(lines, config)] if ended else []), *notes(lines, config, over_folds)]

    @property
    def complete(self) -> bool:
        """Whether all epochs are done."""
        return self.lines[-1]["epoch"] >= last_epoch(self.config)

    @property
    def last_divided(self) -> tuple[int, Division] | None:
        """The last division among several learners, or, without one, the last division."""
        several = [(epoch, division) for epoch, division in self.divisions if division.num_learners > 1]
        return (several or list(self.divisions) or [None])[-1]


def _divisions(folder: RunFolder, lines: Sequence[dict[str, Any]]) -> tuple[list[tuple[int, Division]], list[str]]:
    """The divisions to show, and what could not be read."""
    all_epochs = [line["epoch"] for line in lines if line["redivided"]]
    divided = [line["epoch"] for line in lines if line["redivided"] and line["phase"] != _FINETUNE]
    chosen = set(thinned(all_epochs, MAX_COLUMNS - 1)) | set(divided[-1:])
    divisions, problems = [], []
    for epoch in sorted(chosen):
        try:
            divisions.append((epoch, Division.load(folder.division(epoch))))
        except DataError as error:
            problems.append(str(error))
    sizes = {len(division.learner) for _, division in divisions}
    if len(sizes) > 1:
        return [], [*problems, "the divisions are not of the same number of images, so that they are not shown"]
    return divisions, problems


def lead(contents: Contents, notes: Sequence[str]) -> Html:
    """The summary under the title: method, data, Recall@1."""
    kept, lines = contents.kept, contents.lines
    what = (
        f"{contents.config.model.method}, {_count_of_learners(contents.config)}, on {contents.record.get('benchmark')}."
    )
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
    if ended_by_patience(lines, contents.config):
        note = patience_note(lines, contents.config).replace("`", "")
        words.append(element("p", f"{note[0].upper()}{note[1:]}.", role="note"))
    elif not contents.complete:
        words.append(element("p", f"Not done: {len(lines):,} of {contents.config.train.epochs:,} epochs.", role="note"))
    if notes:
        count = "1 warning or note" if len(notes) == 1 else f"{len(notes):,} warnings and notes"
        words.append(element("p", element("a", count, href="#warnings"), "."))
    return joined(words)


def _count_of_learners(config: RunConfig) -> str:
    """``1 learner``, ``4 learners``."""
    count = config.model.num_learners
    return f"{count} learner{'s' * (count > 1)}"


def augmented(config: TrainConfig, sheet: Image.Image) -> Html:
    """The sheet of `divcon.training.sheet.augmented_sheet`, and what it shows."""
    if config.train_transform is not None:
        how = f"your own transform, {config.train_transform}"
    else:
        flipped = "" if config.flip is False else ", mirroring"
        how = f"a random crop of {config.crop_scale:g} to all of the area{flipped}"
        how += "".join(f", {name}" for name in config.augment)
    words = (
        f"A row for each of some training images: first as the model embeds it, then as training draws it anew in each "
        f"epoch ({how})."
    )
    return joined(element("p", words), as_tag(sheet, "training images, embedded and augmented"))


def overview(contents: Contents) -> Html:
    """Data, method, sizes, seed, time, machine and versions."""
    config, record, lines = contents.config, contents.record, contents.lines
    model, source = config.model, record.get("source") or {}
    what = "vectors" if contents.of_vectors else "images"
    trained = lines[0]["left_out"] + sum(lines[0]["sizes"])
    seconds = {name: sum(line.get(f"seconds_{name}", 0.0) for line in lines) for name in _SECONDS}
    validation = next((line["validation"] for line in lines if "validation" in line), None)
    network: Child = model.backbone
    if not contents.of_vectors:
        network = f"{model.backbone} at {saved_size(model.image_size)} px, fit {model.fit}, pooling {model.pooling}"
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    facts: list[tuple[str, Child]] = [
        (
            "Data",
            f"{source['data']}" + (f" in {source['root']}" if source.get("root") else "")
            if source
            else "passed from Python",
        ),
        ("Trained on", [number(trained), f" {what} of ", number(len(contents.folder.classes_of("train"))), " classes"]),
        (
            "Validation",
            [number(validation["num_queries"]), f" {what} of ", number(validation["num_classes"]), " classes held out"]
            if validation
            else "not scored yet"
            if config.data.validates
            else "none: all classes train, those of test too, and the last epoch is kept"
            if config.data.train_on == "all"
            else "none: all train classes train, and the last epoch is kept",
        ),
        (
            "Test split",
            "none: its images are trained on (`train_on=all`), so that this model has no test score of its own".replace(
                "`", ""
            )
            if config.data.train_on == "all"
            else [f"{record.get('protocol')}, hash ", element("code", str(record.get("split_hash")))],
        ),
        ("Settings and length as in", record.get("like")),
        ("Method", model.method + (", hierarchy" if config.train.hierarchy else "")),
        ("Learners (K)", number(model.num_learners)),
        ("Dimensions (D)", number(model.embedding_dim)),
        ("Backbone", network),
        ("Loss", f"{config.train.loss}, miner {config.train.chosen_miner}"),
        ("Seed", number(config.train.seed)),
        ("Epochs", [number(len(lines)), " of ", number(config.train.epochs), f", numbered from 0: {_phases(lines)}"]),
        ("Started from", record.get("init")),
        ("Time", ", ".join(f"{_duration(value)} {name}" for name, value in seconds.items())),
        ("Machine", record.get("machine") or "not recorded"),
        ("Versions", versions or None),
    ]
    return element("dl", ([element("dt", name), element("dd", value)] for name, value in facts if value is not None))


def _phases(lines: Sequence[Mapping[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for line in lines:
        counts[line["phase"]] = counts.get(line["phase"], 0) + 1
    return ", ".join(f"{count} {phase}" for phase, count in counts.items())


def _duration(seconds: float) -> str:
    """``4.2 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def scores(contents: Contents, test: Mapping[str, Any] | None) -> Html:
    """Scores of the kept epoch on validation classes, and on test classes where they are passed."""
    kept, parts = contents.kept, []
    if kept is not None and "validation" in kept:
        parts.append(element("h3", f"Validation classes, epoch {kept['epoch']}"))
        parts.append(
            _scored("Scores on validation classes", {**kept["validation"], "benchmark": contents.record["benchmark"]})
        )
        parts += _baselines("validation", contents.folder.baselines_of(kept["epoch"]))
    elif contents.over_folds is None:
        parts.append(element("p", "No validation classes were scored in this run."))
    if kept is not None:
        parts.append(element("p", f"Epoch {kept['epoch']} is kept: {contents.reason.replace('`', '')}."))
    if (embedding := _embedding(contents)) is not None:
        parts.append(embedding)
    if contents.config.data.train_on == "all" and test is None:
        parts.append(element("p", "The run has trained on the test classes, so that it has no test score of its own."))
        return joined(parts)
    if test is None:
        words: list[Child] = ["The run has not used the test classes. "]
        if contents.record.get("source"):
            words += [element("code", contents.folder.command("report", "--evaluate")), " adds their scores."]
        else:
            words += ["divcon.report(..., scores=divcon.evaluate(model, data)) adds their scores."]
        parts.append(element("p", words))
        return joined(parts)
    check_scores(test)
    parts.append(element("h3", "Test classes"))
    if (test["protocol"], test["split_hash"]) != (contents.record.get("protocol"), contents.record.get("split_hash")):
        parts.append(element("p", "These scores are of another split than the run's own.", role="note"))
    parts.append(_scored("Scores on test classes", test))
    parts += _baselines("test", test)
    rows = [(f"learner {k}", scores) for k, scores in enumerate(test.get("learners", []))]
    if rows:
        rows.append(("pooled features", test["features"]))
        names = ("recall_at_1", "r_precision", "map_at_r", *test.get("metrics", ()))
        cells = [
            (name, *(_score(by_name[score], by_name[score].value) if score in by_name else None for score in names))
            for name, by_name in ((name, {score.name: score for score in scores_in(each)}) for name, each in rows)
        ]
        parts.append(table("Each learner alone, on test classes", ("", *names), cells))
    return joined(parts)


def _embedding(contents: Contents) -> Html | None:
    """What the kept model embeds by, and the scores that it was chosen by; None where it is the head, without a
    choice."""
    record = read_record(contents.folder.model)
    if record is None:
        return None
    chosen, compared = record["chosen"], record["scores"]
    words: list[Child] = [
        "The kept model embeds by the ",
        element("strong", EMBEDDING_NAMES[chosen]),
        ", ",
        number(record["dims"]),
        f" dimensions (embed = {record['embed']}).",
    ]
    if compared:
        words += [
            " It was chosen by MAP@R on ",
            number(record["num_queries"]),
            " validation queries; the head, unless another is better by more than 0.1 points. The scores by epoch are "
            "those of the head.",
        ]
    elif chosen == "pca":
        words.append(" The scores by epoch are those of the head.")
    if record["left_out"]:
        words.append(f" The PCA was left out: {record['left_out']}.")
    rows = [
        (EMBEDDING_NAMES[name], number(each["dims"]), percent(each["map_at_r"]), percent(each["recall_at_1"]))
        for name, each in compared.items()
    ]
    scored = [table("Embeddings on validation classes", ("", "dimensions", "map_at_r", "recall_at_1"), rows)]
    return joined(element("h3", "Embedding"), element("p", words), *(scored if rows else []))


def _baselines(split: str, scores: Mapping[str, Any] | None) -> list[Html]:
    """The embedding beside what needs no training, where it was scored on the classes of a split."""
    if scores is None or not isinstance(baselines := scores.get("baselines"), Mapping):
        return []
    rows: list[tuple[Child, ...]] = [("embedding", *(percent(scores[metric]) for metric in METRICS))]
    for name, title in BASELINES.items():
        if name not in baselines:
            continue
        row: list[Child] = [f"{title}, of {baselines[name]['of']}"]
        row += [percent(baselines[name][metric]) for metric in METRICS]
        for metric in METRICS:
            difference = baselines[name]["difference"][metric]
            low, high = difference["interval"]
            row.append(
                [_points(difference["value"]), " [", _points(low), ", ", _points(high), "]"],
            )
        rows.append(tuple(row))
    head = ("", *METRICS, *(f"embedding less it, {title}" for title in METRICS.values()))
    parts = [table(f"Embedding and untrained features on {split} classes", head, rows)]
    parts += [element("p", line) for line in [baselines.get("note"), *scores.get("advice", [])] if line]
    return parts


def _points(difference: float) -> Child:
    return number(difference, f"{100 * difference:+.1f}")


def check_scores(scores: Mapping[str, Any]) -> None:
    """
    Raises:
        DataError: not scores that `divcon.evaluate` returned.
    """
    needed = ("benchmark", "protocol", "split_hash", "recall_at_1", "num_queries", "num_gallery", "num_classes")
    missing = [name for name in needed if name not in scores]
    if missing:
        raise DataError(
            f"`scores`: holds no {' and no '.join(missing)}; pass what divcon.evaluate returned, or the "
            "file that divcon evaluate --json wrote",
        )


def _scored(caption: str, result: Mapping[str, Any]) -> Html:
    rows = []
    for score in scores_in(result):
        spread: Child = None
        if score.std is not None:
            spread = ["± ", _score(score, score.std)]
        elif score.interval is not None:
            low, high = score.interval
            spread = [_score(score, low), " to ", _score(score, high), f" (95 %, {score.interval_method})"]
        rows.append((element("code", score.title), _score(score, score.value), spread))
    of = element(
        "p",
        f"{result['benchmark']}, {result['protocol']}, split ",
        element("code", str(result["split_hash"])),
        ": ",
        number(result["num_queries"]),
        " queries of ",
        number(result["num_classes"]),
        " classes, gallery ",
        number(result["num_gallery"]),
        ".",
    )
    return joined(of, table(caption, ("score", "value", "spread"), rows))


def _score(score: Score, value: float) -> Child:
    return percent(value) if score.percent else number(value, score.text(value))


def curves(contents: Contents) -> Html:
    """Charts by epoch: loss, Recall@1 and MAP@R on validation classes, share of positive pairs that divisions keep."""
    lines = contents.lines
    marks = [
        (float(line["epoch"]), line["phase"])
        for before, line in itertools.pairwise(lines)
        if line["phase"] != before["phase"]
    ]
    drawn = [_loss_chart(lines, marks), *_recall_chart(contents, marks), *_pairs_chart(lines, marks)]
    drawn += _similarity_chart(lines, marks)
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
    drawn = [
        Line(f"learner {k}", thinned(points), *learner_style(k), breaks=frozenset(grown))
        for k, points in sorted(learners.items())[:_MAX_LEARNERS]
    ]
    if full:
        drawn.append(Line("full embedding", thinned(full), _FULL, "5 2" if drawn else None))
    first, last = lines[0], lines[-1]
    some = f" Of {len(learners):,} learners, the first {_MAX_LEARNERS}." if len(learners) > _MAX_LEARNERS else ""
    about = (
        f"Mean loss {first['loss']:.3f} in epoch {first['epoch']}, {last['loss']:.3f} in epoch {last['epoch']}.{some}"
    )
    return line_chart("Loss", about, drawn, y_label="mean loss of the batches", marks=marks)


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
    drawn = [Line("Recall@1", points, "var(--c0)", band=band)]  # type: ignore[arg-type]
    title = "Recall@1 on validation classes"
    precisions = [(float(line["epoch"]), line["validation"].get("map_at_r")) for line in validated]
    if all(value is not None for _, value in precisions):
        drawn.append(Line("MAP@R", [(epoch, 100 * value) for epoch, value in precisions], "var(--c1)", "6 3"))
        title = "Recall@1 and MAP@R on validation classes"
        about += (
            f" MAP@R: {drawn[1].points[0][1]:.1f} %, {100 * kept['validation']['map_at_r']:.1f} % and "
            f"{drawn[1].points[-1][1]:.1f} %."
        )
    return [line_chart(title, about, drawn, y_label="%", marks=marks, kept=float(kept["epoch"]))]


def _pairs_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> list[Html]:
    if all(len(line["sizes"]) == 1 for line in lines):
        return []
    kept = Line(
        "positive pairs kept together",
        thinned([(float(line["epoch"]), 100 * line["kept_pairs"]) for line in lines]),
        "var(--c0)",
    )
    moved = [(float(line["epoch"]), 100 * line["changed"]) for line in lines if line.get("changed") is not None]
    drawn = [kept] + ([Line("images that changed learner", thinned(moved), "var(--c1)", "6 3")] if moved else [])
    about = f"{kept.points[0][1]:.1f} % of positive pairs at first, {kept.points[-1][1]:.1f} % at last."
    return [line_chart("What the divisions keep", about, drawn, y_label="%", marks=marks)]


def _similarity_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> list[Html]:
    measured = [(line["epoch"], line.get("learner_similarity")) for line in lines]
    points = [(float(epoch), value) for epoch, value in measured if value is not None]
    if not points:
        return []
    about = (
        f"Mean over pairs of learners: {points[0][1]:.2f} at first, {points[-1][1]:.2f} at last. 1: all learners rank "
        "the same images near, so that there is one learner in fact; 0: they are unrelated."
    )
    line = Line("similarity of learners", thinned(points), "var(--c0)")
    return [line_chart("How alike the learners are", about, [line], y_label="correlation", marks=marks)]


def epochs(contents: Contents) -> Html:
    """The numbers behind the curves, a row an epoch."""
    kept = contents.kept
    shown = thinned(contents.lines)
    if kept is not None and kept not in shown:
        shown = sorted([*shown, kept], key=lambda line: line["epoch"])
    rows = []
    for line in shown:
        mark = " (kept)" if line is kept else ""
        validation = line.get("validation", {})
        took = [number(line.get(f"seconds_{name}"), f"{line.get(f'seconds_{name}') or 0:.1f}") for name in _SECONDS]
        rows.append(
            (
                [number(line["epoch"]), mark],
                line["phase"],
                number(line["loss"], short(line["loss"])),
                numbers(line["learner_loss"], lambda value: short(value) or ""),
                number(line.get("full_loss"), short(line.get("full_loss"))),
                percent(validation.get("recall_at_1")),
                percent(validation.get("map_at_r")),
                percent(line["kept_pairs"]),
                *took,
            )
        )
    head = (
        "epoch",
        "phase",
        "loss",
        "loss of each learner",
        "of the full embedding",
        "Recall@1",
        "MAP@R",
        "pairs kept",
    )
    cells = table("Numbers of each epoch", (*head, *(f"s {name}" for name in _SECONDS)), rows, class_="numbers")
    some = "" if len(shown) == len(contents.lines) else f"{len(shown)} of "
    return fold(f"Numbers of {some}{len(contents.lines):,} epochs", cells)


def division(contents: Contents) -> Html:
    """The sizes of the divisions, and the flow of images from one to the next."""
    if contents.config.model.num_learners == 1:
        return element("p", "One learner has all images: nothing is divided.")
    if contents.config.train.divide_by == "none":
        return element("p", "Every learner trains its subspace on all images: nothing is divided (divide_by is none).")
    lines = [line for line in contents.lines if line["redivided"]]
    parts: list[Child] = []
    if len(contents.divisions) > 1:
        columns = [(f"epoch {epoch}", division) for epoch, division in contents.divisions]
        drawn, dropped = flow_chart(columns)
        some = f"{len(columns)} of {len(lines):,} divisions. " if len(columns) < len(lines) else ""
        few = f" The {dropped:,} smallest flows are not drawn." if dropped else ""
        key = "A column is a division, a block a learner (out: left out), a band the images from one to the next."
        parts.append(element("figure", drawn, element("figcaption", f"{some}{key}{few}")))
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
    head = (
        "epoch",
        "phase",
        "images of each learner",
        "left out",
        "pairs kept",
        "changed learner",
        "NMI to the previous",
    )
    parts.append(fold(f"Numbers of {len(lines):,} divisions", table("Divisions", head, rows, class_="numbers")))
    return joined(parts)


def sheet_indices(contents: Contents) -> list[np.ndarray]:
    """The images to show of each learner at the last division, drawn by the run's seed."""
    last = contents.last_divided
    if last is None:
        return []
    division = last[1]
    learners = min(division.num_learners, _MAX_LEARNERS)
    count = max(6, min(_MAX_OF_A_LEARNER, _MAX_IN_SHEETS // learners))
    seed = contents.config.train.seed
    return [sampled(division.indices(k), count, (seed, 0x5EE7, k)) for k in range(learners)]


def sheets(contents: Contents, images: LabeledSet, thumbnails: Thumbnails, shown: Sequence[np.ndarray]) -> Html:
    """Some images of each learner at the last division."""
    last = contents.last_divided
    assert last is not None
    epoch, division = last
    what = "images" if thumbnails.has_pictures else "vectors"

    def label(index: int) -> Child:
        return None if thumbnails.has_pictures else f" {images.label_name(index)}"

    parts: list[Child] = [element("p", f"Of the division of epoch {epoch}, drawn by the run's seed.")]
    for k, indices in enumerate(shown):
        members = division.indices(k)
        name = f"Learner {k}" if division.num_learners > 1 else "All together"
        classes = len(np.unique(images.labels[members]))
        items = (element("li", thumbnails.tag(i), label(i)) for i in indices.tolist())
        words = f": {len(members):,} {what} of {classes:,} classes"
        style = f"border-color:{learner_style(k)[0]}"
        kind = "sheet" if thumbnails.has_pictures else "words"
        parts.append(element("h3", element("span", name, class_="tag", style=style), words))
        parts.append(element("ul", items, class_=kind))
    if division.num_learners > len(shown):
        parts.append(element("p", f"{division.num_learners - len(shown):,} more learners are not shown."))
    return joined(parts)


@dataclass(frozen=True)
class Query:
    """An image searched among all others."""

    index: int
    map_at_r: float
    matches: int
    """The number of other images of its class."""
    neighbours: tuple[tuple[int, float], ...]
    """Index and euclidean distance, nearest first."""


def best_and_worst(
    images: LabeledSet, embeddings: np.ndarray, *, count: int = 6, neighbours: int = 6
) -> tuple[list[Query], list[Query]]:
    """The queries with the highest and with the lowest MAP@R, at most one a class in each list.

    Ties among the best are ordered by the number of matches, most first; among the worst by the distance of the nearest
    neighbour, closest first, since confident mistakes are the most informative.

    Args:
        embeddings: (N, D) float32 of the images. Each is searched among all others, but, where there are cameras or
            groups, not among those of its label and camera, or of its group.

    Raises:
        DataError: no two images are of one class.
    """
    scores = retrieval_metrics(
        embeddings, images.labels, recall_at=(1,), cameras=images.cameras, groups=images.groups, per_query=True
    )["per_query"]
    columns = {"labels": (images.labels, None), "cameras": (images.cameras, None), "groups": (images.groups, None)}
    exclude = Task.of(len(images), None, columns).exclude
    indices, distances = nearest(embeddings, embeddings, min(neighbours, len(images)), exclude=exclude)
    queries = np.flatnonzero(scores["num_matches"] > 0)
    score, matches = scores["map_at_r"][queries], scores["num_matches"][queries]

    def one_a_class(order: np.ndarray) -> list[Query]:
        chosen: list[Query] = []
        classes: set[int] = set()
        for place in order.tolist():
            index = int(queries[place])
            if int(images.labels[index]) in classes:
                continue
            classes.add(int(images.labels[index]))
            pairs = zip(indices[index].tolist(), distances[index].tolist(), strict=True)
            near = tuple((int(other), float(distance)) for other, distance in pairs if other >= 0)
            chosen.append(Query(index, float(score[place]), int(matches[place]), near))
            if len(chosen) == count:
                break
        return chosen

    best = one_a_class(np.lexsort((queries, -matches, -score)))
    worst = one_a_class(np.lexsort((queries, distances[queries, 0], score)))
    # With few classes the two lists would overlap.
    middle = float(np.median(score))
    return [q for q in best if q.map_at_r >= middle], [q for q in worst if q.map_at_r <= middle]


def query_rows(images: LabeledSet, thumbnails: Thumbnails, queries: Sequence[Query]) -> Html:
    """A row for each query: the query and its neighbours, nearest first."""
    rows = []
    for query in queries:
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


def settings(contents: Contents) -> Html:
    """The settings that are not at their defaults, and all settings, folded."""
    changed, all_settings = [], []
    for section in dataclasses.fields(RunConfig):
        config = getattr(contents.config, section.name)
        defaults = type(config)()
        for setting in dataclasses.fields(config):
            value, default = getattr(config, setting.name), getattr(defaults, setting.name)
            row = (element("code", setting.name), _value(value), _value(default))
            if value != default:
                changed.append(row)
            all_settings.append((section.name, *row))
    shown: Child = element("p", "Every setting is at its default.")
    if changed:
        shown = table("Settings that are not at their defaults", ("setting", "here", "default"), changed)
    every = table(
        "Every setting",
        ("setting", "section", "here", "default"),
        ((name, section, *rest) for section, name, *rest in all_settings),
    )
    return joined(shown, fold(f"All {len(all_settings)} settings", every))


def _value(value: object) -> Child:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, f"{value:g}" if isinstance(value, float) else None)
    return "none" if value is None else str(value)


def notes_of(contents: Contents, more: Iterable[str]) -> list[str]:
    """All warnings and notes: of the run, those of its epochs once with their epochs, and ``more``."""
    repeated = EpochNotes.of(contents.lines).all
    warnings = [f"{_spans(note.epochs)}{note.of_learners}: {note.text}" for note in repeated]
    kept = contents.kept
    one = None if kept is None else learners_are_one(contents.config.model, contents.lines, kept["epoch"])
    own = [*contents.selection_notes, *([] if one is None else [one])]
    return list(dict.fromkeys([*own, *more, *contents.problems, *warnings]))


def _spans(epochs: Sequence[int]) -> str:
    """``epoch 3``, or ``5 epochs, 0 to 3, 7``."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    shown = [f"{a}" if a == b else f"{a} to {b}" for a, b in spans[:6]] + ["..."] * (len(spans) > 6)
    return f"{len(epochs):,} epochs, {', '.join(shown)}" if len(epochs) > 1 else f"epoch {shown[0]}"


def warnings(notes: Sequence[str]) -> Html:
    """A list of the notes, at most `_MAX_NOTES`."""
    if not notes:
        return element("p", "None.")
    items: list[Child] = [element("li", note) for note in notes[:_MAX_NOTES]]
    if len(notes) > _MAX_NOTES:
        items.append(element("li", f"and {len(notes) - _MAX_NOTES:,} more; metrics.jsonl has those of each epoch"))
    return element("ul", items, class_="notes")
