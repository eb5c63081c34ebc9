"""The sections of a report, in the order of the page."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from divcon.config.image_size import saved_size
from divcon.config.settings import RunConfig, TrainConfig
from divcon.data.labeled_set import LabeledSet
from divcon.division import Division
from divcon.errors import DataError, DivconError
from divcon.evaluation.baselines import METRICS
from divcon.evaluation.metrics import MARP, Score, clustered_in_words, queries_in_words, score_title, scores_in
from divcon.evaluation.neighbours import nearest
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.evaluation.subspaces import normalized
from divcon.evaluation.task import Task
from divcon.evaluation.threshold import in_words, read_threshold
from divcon.models.names import EMBEDDING_NAMES
from divcon.runs.embedding import read_record
from divcon.runs.folder import RunFolder, begun, kept_epoch
from divcon.runs.notes import EpochNotes, learners_are_one, template
from divcon.runs.report.charts import MAX_COLUMNS, Line, flow_chart, learner_style, line_chart, thinned
from divcon.runs.report.html import Child, Html, element, fold, joined, number, numbers, percent, short, table
from divcon.runs.report.thumbnails import Thumbnails, as_tag, image_words, sampled
from divcon.runs.selection import ended_by_patience, last_epoch, notes, patience_note, reason

_FINETUNE = "finetune"
_SECONDS = ("dividing", "training", "evaluating")
_FULL = "var(--ink)"
"""The color of the full embedding."""
_METRIC_OF = {title: name for name, title in METRICS.items()}
_MAX_LEARNERS = 40
_MAX_OPEN = 8
"""Learners whose images are shown without a click."""
_MAX_OF_A_LEARNER, _MIN_OF_A_LEARNER = 20, 6
_MAX_IN_SHEETS = 40
"""Images of all learners, unless that is below `_MIN_OF_A_LEARNER` of each."""
_MAX_NOTES = 40
_MAX_QUERIES = 3
"""Best queries, and worst, that are shown without a click."""


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
    def validated(self) -> dict[str, Any] | None:
        """The scores of the kept model on validation classes: with baselines where the run has them, and as the model
        embeds in the end; else those of its epoch."""
        kept = self.kept
        if kept is None or "validation" not in kept:
            return None
        known = {**kept["validation"], "benchmark": self.record["benchmark"]}
        return {**known, **(self.folder.baselines_of(kept["epoch"]) or {}), "benchmark": known["benchmark"]}

    @property
    def test(self) -> dict[str, Any] | None:
        """The scores of the kept model on test classes, where it was evaluated on them."""
        kept, record = self.kept, read_record(self.folder.model)
        if kept is None:
            return None
        return self.folder.test_scores_of(kept["epoch"], None if record is None else record["chosen"])

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


def lead(contents: Contents, notes: Sequence[Note], test: Mapping[str, Any] | None = None) -> Html:
    """The summary under the title: method, data, and Recall@1 beside that of the pretrained features.

    Args:
        test: the scores on test classes, where there are any.
    """
    what = (
        f"{contents.config.model.method}, {_count_of_learners(contents.config)}, on {contents.record.get('benchmark')}."
    )
    count = "1 warning or note" if len(notes) == 1 else f"{len(notes):,} warnings and notes"
    link = [" ", element("a", count, href="#warnings"), "."] if notes else None
    words: list[Child] = [element("p", what, link, class_="about")]
    words.append(headlines(contents, test))
    lines = contents.lines
    if ended_by_patience(lines, contents.config):
        note = patience_note(lines, contents.config).replace("`", "")
        words.append(element("p", f"{note[0].upper()}{note[1:]}.", role="note"))
    elif not contents.complete:
        words.append(element("p", f"Not done: {len(lines):,} of {contents.config.train.epochs:,} epochs.", role="note"))
    return joined(words)


def headlines(contents: Contents, test: Mapping[str, Any] | None = None) -> Html:
    """Recall@1 on validation and on test classes, as far as they were scored."""
    items = []
    if (validation := contents.validated) is not None:
        kept = contents.kept
        of = "" if kept is None else f", epoch {kept['epoch']}, which is kept"
        items.append(_headline("validation", validation, of))
    if test is not None:
        items.append(_headline("test", test))
    return element("ul", items, class_="headlines")


def _headline(split: str, scores: Mapping[str, Any], of: str = "") -> Html:
    """Recall@1 with its queries, classes and interval, and beside it that of the pretrained features."""
    low, high = scores["recall_at_1_interval"]
    baselines = _baselines_in(scores)
    pretrained = baselines.get("pretrained_features")
    if pretrained is not None:
        beside: Child = [
            "Pretrained features, before training: ",
            percent(pretrained["recall_at_1"]),
            "; training adds ",
            _points_with_interval(pretrained["difference"]["recall_at_1"]),
            " points",
        ]
    else:
        beside = _no_baseline(baselines, split)
    return element(
        "li",
        element(
            "p",
            element("strong", percent(scores["recall_at_1"]), class_="big"),
            " Recall@1 of ",
            number(scores["num_queries"], queries_in_words(scores)),
            f" {split} queries in ",
            number(scores["num_classes"]),
            " classes",
        ),
        element("p", "95 % interval ", percent(low), " to ", percent(high), of, class_="dim"),
        element("p", beside, class_="dim"),
    )


def _no_baseline(baselines: Mapping[str, Any], split: str) -> str:
    note = baselines.get("note")
    return f"{note[0].upper()}{note[1:]}" if note else f"The pretrained features were not scored on {split} classes"


def _baselines_in(scores: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The baselines of what `divcon.evaluate` returned; empty where there are none."""
    baselines = {} if scores is None else scores.get("baselines")
    return baselines if isinstance(baselines, Mapping) else {}


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
            [
                number(validation["num_queries"], queries_in_words(validation)),
                f" {what} of ",
                number(validation["num_classes"]),
                " classes held out",
            ]
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
        ("Epochs", [number(len(lines)), " of ", number(config.train.epochs), f": {_phases(lines)}"]),
        ("Started from", record.get("init")),
        ("Time", ", ".join(f"{_duration(value)} {name}" for name, value in seconds.items())),
        ("Machine", record.get("machine") or "not recorded"),
        ("Versions", versions or None),
    ]
    shown = [(name, value, _WIDE.get(name)) for name, value in facts if value is not None]
    return element(
        "dl", ([element("dt", name, class_=of), element("dd", value, class_=of)] for name, value, of in shown)
    )


_WIDE = {"Versions": "wide"}
"""Facts that take a row of their own."""


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
    """Scores on validation classes and on test classes side by side, each beside that of the pretrained features."""
    kept, validated = contents.kept, contents.validated
    left: list[Child] = [element("h3", "Validation classes")]
    if validated is not None:
        left.append(_scored("Scores on validation classes", validated, "validation"))
    elif contents.over_folds is None:
        left.append(element("p", "No validation classes were scored in this run."))
    else:
        folds = contents.over_folds
        point = next(point for point in folds["curve"] if point["epoch"] == folds["epoch"])
        scored = [[f"{title} ", percent(point[name]), "; "] for name, title in METRICS.items() if name in point]
        where = f"Mean over {folds['folds']} folds of the train classes, {folds['num_queries']:,} queries: "
        left.append(element("p", where, scored, _no_baseline({}, "the folds'"), "."))
    right: list[Child] = [element("h3", "Test classes")]
    if test is not None:
        right += _on_test(contents, test)
    elif contents.config.data.train_on == "all":
        right.append(element("p", "The run has trained on the test classes, so that it has no test score of its own."))
    else:
        right.append(
            element("p", "The run has not used the test classes. To evaluate on them and add the scores here:")
        )
        in_python = "divcon.report(run, data, scores=divcon.evaluate(model, data))"
        command = contents.folder.command("evaluate") if contents.record.get("source") else in_python
        right.append(element("pre", element("code", command)))
    below: list[Child] = []
    if kept is not None:
        below.append(element("p", f"Epoch {kept['epoch']} is kept: ", coded(contents.reason), "."))
    try:
        threshold = read_threshold(contents.folder.model)
    except DivconError:
        threshold = None
    if threshold is not None:
        words = in_words(threshold).replace("threshold ", "Threshold: similarity ", 1)
        below.append(element("p", f"{words} ({threshold.get('chosen_on', 'validation')} classes)."))
    halves = element("div", element("div", left), element("div", right), class_="pair")
    return joined(halves, element("div", below, _embedding(contents), class_="about-scores"))


def _on_test(contents: Contents, test: Mapping[str, Any]) -> list[Child]:
    check_scores(test)
    parts: list[Child] = []
    if (test["protocol"], test["split_hash"]) != (contents.record.get("protocol"), contents.record.get("split_hash")):
        parts.append(element("p", "These scores are of another split than the run's own.", role="note"))
    parts.append(_scored("Scores on test classes", test, "test"))
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (f"learner {k}", scores) for k, scores in enumerate(test.get("learners", []))
    ]
    if rows:
        rows += [("pooled features", test["features"]), ("full embedding", test)]
        if "pretrained_features" in _baselines_in(test):
            rows.append(("pretrained features", test["baselines"]["pretrained_features"]))
        names = ("recall_at_1", "r_precision", "map_at_r", *test.get("metrics", ()))
        cells = [
            (name, *(_score(by_name[score], by_name[score].value) if score in by_name else None for score in names))
            for name, by_name in ((name, {score.name: score for score in scores_in(each)}) for name, each in rows)
        ]
        alone = "Each learner alone, on test classes"
        parts.append(fold(alone, table(alone, ("", *map(score_title, names)), cells)))
    parts += _merged(contents.lines)
    return parts


def _merged(lines: Sequence[Mapping[str, Any]]) -> list[Child]:
    """Recall@1 of each learner alone before and after the learners were merged, where `divcon.reproduce` scored it."""
    apart = [line for line in lines if "alone" in (line.get("observed") or {})]
    if len(apart) < 2:
        return []
    before, after = apart[0]["observed"], apart[-1]["observed"]
    pairs = itertools.zip_longest(before["alone"], after["alone"])
    rows: list[Sequence[Child]] = [
        (f"learner {k}", *(None if value is None else percent(value) for value in pair)) for k, pair in enumerate(pairs)
    ]
    rows.append(("full embedding", percent(before["recall_at_1"]), percent(after["recall_at_1"])))
    heads = (f"before, epoch {apart[0]['epoch']}", f"after, epoch {apart[-1]['epoch']}")
    title = "Recall@1 of each learner before and after they are merged"
    return [fold(title, table(title, ("", *heads), rows))]


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
            number(record["num_queries"], queries_in_words(record)),
            " validation queries; the head, unless another is better by more than 0.1 points. The scores by epoch are "
            "those of the head.",
        ]
    elif chosen == "pca":
        words.append(" The scores by epoch are those of the head.")
    if record["left_out"]:
        words.append([" The PCA was left out: ", coded(record["left_out"]), "."])
    rows: list[tuple[Child, ...]] = [
        (EMBEDDING_NAMES[name], number(each["dims"]), percent(each["map_at_r"]), percent(each["recall_at_1"]))
        for name, each in compared.items()
    ]
    if rows and (pretrained := _baselines_in(contents.validated).get("pretrained_features")):
        scored = (percent(pretrained["map_at_r"]), percent(pretrained["recall_at_1"]))
        rows.append(("pretrained features", None, *scored))
    compared_on = "Embeddings on validation classes"
    scored = fold(compared_on, table(compared_on, ("", "dimensions", "MAP@R", "Recall@1"), rows))
    return joined(element("p", words), scored if rows else None)


def _points(difference: float) -> Child:
    return number(difference, f"{100 * difference:+.1f}")


def _points_with_interval(difference: Mapping[str, Any]) -> Child:
    low, high = difference["interval"]
    return [_points(difference["value"]), " [", _points(low), ", ", _points(high), "]"]


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


def _scored(caption: str, result: Mapping[str, Any], split: str) -> Html:
    """A row a score: of the embedding, with its spread, of the pretrained features, and the difference."""
    baselines = _baselines_in(result)
    columns = [name for name in ("pretrained_features", "pooled_features") if name in baselines]
    if all(name in result and baselines.get("pooled_features", {}).get(name) == result[name] for name in METRICS):
        columns.remove("pooled_features")  # what the model embeds by
    rows = []
    for score in scores_in(result):
        spread: Child = None
        if score.std is not None:
            spread = ["± ", _score(score, score.std)]
        elif score.interval is not None:
            low, high = score.interval
            first = number(low, f"{100 * low:.1f}") if score.percent else _score(score, low)
            spread = element("span", first, " to ", _score(score, high), title=f"95 %, {score.interval_method}")
        shown: list[Child] = []
        for name in columns:
            value = baselines[name].get(score.name)
            shown.append(number(None) if value is None else _score(score, value))
            if name == "pretrained_features":
                shown.append(_difference(score, value, baselines[name]["difference"].get(score.name)))
        title = score.title.replace(score.name, score_title(score.name), 1)
        rows.append((element("span", title, title=score.name), _score(score, score.value), *shown, spread))
    of = element(
        "p",
        f"{result['benchmark']}, {result['protocol']}, split ",
        element("code", str(result["split_hash"])),
        ": ",
        number(result["num_queries"], queries_in_words(result)),
        " queries of ",
        number(result["num_classes"]),
        " classes, gallery ",
        number(result["num_gallery"]),
        ".",
        class_="dim small",
    )
    heads = {"pretrained_features": ("pretrained", "training adds"), "pooled_features": ("pooled",)}
    head = ("score", "embedding", *(title for name in columns for title in heads[name]), "95 % interval")
    words: list[Child] = []
    if "pretrained_features" in baselines:
        words.append(f"Pretrained: features of {baselines['pretrained_features']['of']}, before training. ")
        if any(baselines["pretrained_features"].get(score.name) is None for score in scores_in(result)):
            words.append("–: not computed of them. ")
    else:
        words.append(f"{_no_baseline(baselines, split)}. ")
    if "pooled_features" in columns:
        words.append("Pooled: this network's features, without its head. ")
        own = baselines["pooled_features"]["difference"]
        words.append("The embedding less these: ")
        words += [[f"{METRICS[name]} ", _points_with_interval(own[name]), "; "] for name in list(METRICS)[:-1]]
        words += [[f"{METRICS[name]} ", _points_with_interval(own[name]), "."] for name in list(METRICS)[-1:]]
    if (clustered := clustered_in_words(result)) is not None:
        words.append(f" {clustered}.")
    if "marp" in result:
        words.append(f" {MARP}.")
    advice = [element("p", coded(line), role="note") for line in result.get("advice", [])]
    return joined(of, table(caption, head, rows, class_="scores"), element("p", words, class_="dim small"), advice)


def _difference(score: Score, baseline: float | None, known: Mapping[str, Any] | None) -> Child:
    """How much the embedding is above a baseline, with the interval where it is known."""
    if known is not None:
        return _points_with_interval(known)
    if baseline is None:
        return number(None)
    return number(score.value - baseline, score.difference(score.value - baseline))


def coded(text: str) -> Html:
    """Text in which what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return joined(text)
    return joined(element("code", part) if i % 2 else part for i, part in enumerate(parts))


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
    drawn = [_loss_chart(lines, marks), *_recall_chart(contents, marks), *_observed_chart(lines, marks)]
    drawn += _pairs_chart(lines, marks)
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
        Line(f"learner {k}", thinned(points), *learner_style(k), breaks=frozenset(grown), marker=k % 4)
        for k, points in sorted(learners.items())[:_MAX_LEARNERS]
    ]
    if full:
        drawn.append(Line("full", thinned(full), _FULL, "5 2" if drawn else None, marker=None if drawn else 0))
    first, last = lines[0], lines[-1]
    some = f" Of {len(learners):,} learners, the first {_MAX_LEARNERS}." if len(learners) > _MAX_LEARNERS else ""
    about = (
        f"Mean loss {first['loss']:.3f} in epoch {first['epoch']}, {last['loss']:.3f} in epoch {last['epoch']}.{some}"
    )
    subspaces = "of each learner in its subspace" if learners else ""
    whole = "of the full embedding" if full else ""
    caption = f"Mean of the batches, {', and '.join(filter(None, (subspaces, whole)))}.{some}"
    return line_chart("Loss", about, drawn, y_label="loss", caption=caption, marks=marks)


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
    title = "Recall@1"
    precisions = [(float(line["epoch"]), line["validation"].get("map_at_r")) for line in validated]
    if all(value is not None for _, value in precisions):
        values = [(epoch, 100 * value) for epoch, value in precisions]
        drawn.append(Line("MAP@R", values, "var(--c1)", "6 3", marker=1))
        title = "Recall@1 and MAP@R"
        about += (
            f" MAP@R: {drawn[1].points[0][1]:.1f} %, {100 * kept['validation']['map_at_r']:.1f} % and "
            f"{drawn[1].points[-1][1]:.1f} %."
        )
    embed = read_record(contents.folder.model)
    of_head = embed is not None and embed["chosen"] != "head" and contents.config.model.embed != embed["chosen"]
    caption = (
        f"{queries_in_words(kept['validation'])} validation queries in {kept['validation']['num_classes']:,} classes"
    )
    caption += ", by the head." if of_head else "."
    levels = []
    pretrained = _baselines_in(contents.validated).get("pretrained_features")
    if pretrained is not None:
        levels = [(f"{line.name} before", 100 * pretrained[_METRIC_OF[line.name]], line.color) for line in drawn]
        caption += " Dotted: pretrained features."
        about += f" Pretrained features: {', '.join(f'{name} {value:.1f} %' for name, value, _ in levels)}."
    number_of_kept = float(kept["epoch"])
    return [
        line_chart(title, about, drawn, y_label="%", caption=caption, marks=marks, kept=number_of_kept, levels=levels)
    ]


def is_observed(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the test classes were scored after epochs, as `divcon.reproduce` does."""
    return any("recall_at_1" in (line.get("observed") or {}) for line in lines)


def _observed_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> list[Html]:
    """Recall@1 on the test classes after each epoch, of a run that scored them."""
    if not is_observed(lines):
        return []
    scored = [line for line in lines if "recall_at_1" in (line.get("observed") or {})]
    points = [(float(line["epoch"]), 100 * line["observed"]["recall_at_1"]) for line in thinned(scored)]
    best = max(points, key=lambda point: point[1])
    about = (
        f"{points[0][1]:.1f} % in epoch {points[0][0]:g}, {points[-1][1]:.1f} % in epoch {points[-1][0]:g}; "
        f"{best[1]:.1f} % in epoch {best[0]:g}, the best."
    )
    caption = "After each epoch, as the papers do. Nothing was chosen by it."
    line = Line("Recall@1", points, "var(--c0)")
    return [line_chart("Recall@1 on test classes", about, [line], y_label="%", caption=caption, marks=marks)]


def _pairs_chart(lines: Sequence[dict[str, Any]], marks: list[tuple[float, str]]) -> list[Html]:
    if all(len(line["sizes"]) == 1 for line in lines):
        return []
    kept = Line(
        "pairs kept", thinned([(float(line["epoch"]), 100 * line["kept_pairs"]) for line in lines]), "var(--c0)"
    )
    moved = [(float(line["epoch"]), 100 * line["changed"]) for line in lines if line.get("changed") is not None]
    drawn = [kept] + ([Line("moved", thinned(moved), "var(--c1)", "6 3", marker=1)] if moved else [])
    about = f"{kept.points[0][1]:.1f} % of positive pairs at first, {kept.points[-1][1]:.1f} % at last."
    caption = "Positive pairs whose images have one learner"
    caption += ", and images that changed learner." if moved else "."
    return [line_chart("What the divisions keep", about, drawn, y_label="%", caption=caption, marks=marks)]


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
    caption = "Correlation of their similarities of images. 1: they are one learner; 0: unrelated."
    title = "How alike the learners are"
    return [line_chart(title, about, [line], y_label="correlation", caption=caption, marks=marks)]


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
    pretrained = _baselines_in(contents.validated).get("pretrained_features")
    beside: Child = None
    if pretrained is not None:
        scores = [[f"{title} ", percent(pretrained[name]), " "] for name, title in METRICS.items()]
        beside = element("p", "Pretrained features, before training: ", scores)
    return fold(f"Numbers of {some}{len(contents.lines):,} epochs", beside, cells)


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
            percent(line.get("nmi_previous")),
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
    if sample := next((line.get("division_sample") for line in reversed(lines) if line.get("division_sample")), None):
        what = "classes" if contents.config.train.divide_by == "class" else "images"
        words = (
            f"k-means was fitted on {sample:,} {what} drawn at random (division_memory); each other one went to the "
        )
        parts.append(element("p", f"{words}nearest centroid."))
    return joined(parts)


def sheet_indices(contents: Contents) -> list[np.ndarray]:
    """The images to show of each learner at the last division, drawn by the run's seed."""
    last = contents.last_divided
    if last is None:
        return []
    division = last[1]
    learners = min(division.num_learners, _MAX_LEARNERS)
    count = max(_MIN_OF_A_LEARNER, min(_MAX_OF_A_LEARNER, _MAX_IN_SHEETS // learners))
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

    each: list[Child] = []
    for k, indices in enumerate(shown):
        members = division.indices(k)
        name = f"Learner {k}" if division.num_learners > 1 else "All together"
        classes = len(np.unique(images.labels[members]))
        items = (element("li", thumbnails.tag(i), label(i)) for i in indices.tolist())
        words = f": {len(members):,} {what} of {classes:,} classes"
        style = f"border-color:{learner_style(k)[0]}"
        kind = "sheet" if thumbnails.has_pictures else "words"
        heading = element("h3", element("span", name, class_="tag", style=style), words)
        each.append(element("div", heading, element("ul", items, class_=kind)))
    parts: list[Child] = [element("p", f"Of the division of epoch {epoch}, drawn by the run's seed.")]
    parts.append(element("div", each[:_MAX_OPEN], class_="learners"))
    if rest := each[_MAX_OPEN:]:
        parts.append(fold(f"{len(rest):,} more learners", element("div", rest, class_="learners")))
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
    """Index and cosine similarity, nearest first."""


def best_and_worst(
    images: LabeledSet, embeddings: np.ndarray, *, count: int = 6, neighbours: int = 6
) -> tuple[list[Query], list[Query]]:
    """The queries with the highest and with the lowest MAP@R, at most one a class in each list.

    Ties among the best are ordered by the number of matches, most first; among the worst by the similarity of the
    nearest neighbour, most similar first, since confident mistakes are the most informative.

    Args:
        embeddings: (N, D) float32 of the images, of any length. Each is searched among all others, but, where there are
            cameras or groups, not among those of its label and camera, or of its group.

    Raises:
        DataError: no two images are of one class.
    """
    embeddings = normalized(embeddings)
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
            near = tuple((int(other), 1 - float(distance) ** 2 / 2) for other, distance in pairs if other >= 0)
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
        for index, similarity in query.neighbours:
            hit = images.labels[index] == images.labels[query.index]
            cells.append(_tile(images, thumbnails, index, "hit" if hit else "miss", similarity))
        about = ["MAP@R ", percent(query.map_at_r), f", {query.matches:,} to find"]
        items = (element("li", cell) for cell in cells)
        rows.append(element("li", element("p", about, class_="dim"), element("ol", items, class_="row")))
    shown = element("ol", rows[:_MAX_QUERIES], class_="queries")
    if rest := rows[_MAX_QUERIES:]:
        return joined(shown, fold(f"{len(rest)} more", element("ol", rest, class_="queries", start=_MAX_QUERIES + 1)))
    return shown


def _tile(images: LabeledSet, thumbnails: Thumbnails, index: int, kind: str, similarity: float | None = None) -> Html:
    mark = {"query": "query", "hit": "✓ hit", "miss": "✗ miss"}[kind]
    near = None if similarity is None else [" ", number(similarity, f"{similarity:.2f}")]
    return element(
        "figure",
        thumbnails.tag(index, f"{kind}: "),
        element(
            "figcaption",
            element("span", mark, near, class_="mark"),
            element(
                "span",
                images.label_name(index),
                class_="label",
                title=f"{images.label_name(index)}, {image_words(images, index)}",
            ),
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


@dataclass(frozen=True)
class Note:
    """A warning or note of a run."""

    text: str
    times: int = 1
    """How often it came."""
    epochs: str = ""
    """In which epochs, as ``0 to 39``; empty where it is of none."""


def notes_of(contents: Contents, more: Iterable[str]) -> list[Note]:
    """All warnings and notes, each kind once: of the run, ``more``, and those of its epochs."""
    kept = contents.kept
    one = None if kept is None else learners_are_one(contents.config.model, contents.lines, kept["epoch"])
    own = list(dict.fromkeys([*contents.selection_notes, *([] if one is None else [one])]))
    said = [*own, *(text for text in more if text not in own)]
    times = Counter([*said, *contents.problems])
    of_epochs = Counter(template(text) for line in contents.lines for text in line["warnings"])
    repeated = [
        Note(f"{note.text}{note.of_learners}", of_epochs[template(note.text)], _spans(note.epochs))
        for note in EpochNotes.of(contents.lines).all
    ]
    return [*(Note(text, count) for text, count in times.items()), *repeated]


def _spans(epochs: Sequence[int]) -> str:
    """``3``, or ``0 to 3, 7``."""
    spans: list[list[int]] = []
    for epoch in epochs:
        if spans and epoch == spans[-1][1] + 1:
            spans[-1][1] = epoch
        else:
            spans.append([epoch, epoch])
    return ", ".join([f"{a}" if a == b else f"{a} to {b}" for a, b in spans[:6]] + ["..."] * (len(spans) > 6))


def warnings(notes: Sequence[Note]) -> Html:
    """A table of the notes, at most `_MAX_NOTES`, with how often each came."""
    if not notes:
        return element("p", "None.")
    rows = [
        (number(note.times, f"{note.times:,}\u00a0×"), note.epochs or "–", coded(note.text))
        for note in notes[:_MAX_NOTES]
    ]
    shown = table("Warnings and notes of the run", ("times", "epochs", "note"), rows, class_="notes")
    if len(notes) <= _MAX_NOTES:
        return shown
    more = f"And {len(notes) - _MAX_NOTES:,} more; metrics.jsonl has those of each epoch."
    return joined(shown, element("p", more))
