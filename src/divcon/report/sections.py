"""The parts of a report that are words and numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from divcon.config import RunConfig, flag
from divcon.errors import DataError
from divcon.report.charts import thinned
from divcon.report.contents import Contents
from divcon.report.html import Child, Html, element, fold, joined, number, numbers, percent, short, table

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
        told = "1 thing" if len(notes) == 1 else f"{len(notes):,} things"
        words.append(element("p", element("a", f"{told} to know", href="#warnings"), "."))
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
        ("Trained on", [number(trained), f" {what} of ", number(_classes(contents, "train")), " classes"]),
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
            row = (element("code", flag(setting.name)), _value(value), _value(default))
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
        name = contents.folder.path.name
        command = f"divcon report {name} --evaluate"
        words = ("The test classes were not looked at. ", element("code", command), " puts their scores here.")
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
        names = ("recall_at_1", "r_precision", "map_at_r")
        cells = ((name, *(percent(each[score]) for score in names)) for name, each in rows)
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
        raise DataError(f"--scores: no {' and no '.join(missing)} in it; give what divcon evaluate --json wrote")


def _scored(caption: str, found: Mapping[str, Any]) -> Html:
    rows = []
    for name, value in found.items():
        if not isinstance(value, float) or name.endswith("_std"):
            continue
        spread: Child = None
        if f"{name}_std" in found:
            spread = ["± ", percent(found[f"{name}_std"])]
        elif f"{name}_interval" in found:
            low, high = found[f"{name}_interval"]
            spread = [percent(low), " to ", percent(high), " (95 %, bootstrap over classes)"]
        rows.append((element("code", name), percent(value), spread))
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
    """The warnings of the run, each once with its epochs, and what else is to be known."""
    found: dict[str, list[int]] = {}
    for line in contents.lines:
        for warning in line["warnings"]:
            found.setdefault(warning, []).append(line["epoch"])
    told = [f"{_spans(epochs)}: {warning}" for warning, epochs in found.items()]
    return list(dict.fromkeys([*more, *contents.problems, *told]))


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


def _classes(contents: Contents, part: str) -> int:
    return len(contents.folder.classes_of(part))


def _value(value: object) -> Child:
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items()) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value, f"{value:g}" if isinstance(value, float) else None)
    return "none" if value is None else str(value)
