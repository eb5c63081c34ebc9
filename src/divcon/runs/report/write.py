"""Write the report of a run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.inputs import as_benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DataError, DivconError, RunError
from divcon.evaluation.compare import read_scores
from divcon.evaluation.subspaces import sample_of
from divcon.models import EmbeddingModel
from divcon.runs.embedding import read_record
from divcon.runs.folder import RunFolder, own_benchmark
from divcon.runs.report import sections
from divcon.runs.report.html import Child, element, joined, page, section, style
from divcon.runs.report.sections import Contents, best_and_worst
from divcon.runs.report.thumbnails import Thumbnails
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.importing import Trust, check_trusted
from divcon.runtime.places import place
from divcon.training.sheet import augmented_sheet

MAX_SEARCHED = 1000
"""Validation images, or test images, at most, that are searched for the best and worst queries."""
_OF_EACH = ("per_query", "per_class")
"""The parts of scores that are of each query and each class: too long to keep with a run."""
_AUGMENTED = 3
"""Training images that are shown as they are augmented."""


def report(
    run: str | Path,
    data: Benchmark | str | os.PathLike[str] | None = None,
    *,
    out: str | Path | None = None,
    scores: Mapping[str, Any] | str | Path | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    trust: Trust = (),
    context: Context = DEFAULT,
) -> Path:
    """Write the report of a run again: one HTML file without external resources.

    Args:
        run: the folder of the run. Of a run that was stopped, the report covers the epochs that are done.
        data: the data that the run was trained on: what `divcon.read` returned, or a path or name that it takes; None:
            read it from where the run read it. Where it cannot be read, the report says so and has no pictures.
        out: the file; None: ``report.html`` in the folder of the run.
        scores: what `divcon.evaluate` returned on the test classes, or the file that ``divcon evaluate --json`` wrote.
            None: those that `add_test_scores` kept, where there are any. The report itself uses the test classes only
            for the best and worst queries of a run without validation classes that was scored on them after each epoch
            (`divcon.reproduce`).
        batch_size: validation images that are embedded at once.
        device: where the model embeds them.
        trust: modules of your own that the run's model may import code from (see `divcon.EmbeddingModel.load`).
        context: warns of each part that is missing from the report.

    Returns:
        The file.

    Raises:
        RunError: there is no run, none of its epochs is done, or ``data`` is not what it was trained on.
        DataError: ``scores`` holds no scores of `divcon.evaluate`, or ``data`` cannot be read.
        OutputError: the file cannot be written.
    """
    if not isinstance(run, (str, os.PathLike)):
        raise RunError(f"`run` is of type {type(run).__name__}: pass the folder of the run")
    if isinstance(scores, (str, os.PathLike)):
        scores = read_scores(scores)
    folder = RunFolder(run)
    contents = Contents.of(folder)
    if scores is not None:
        sections.check_scores(scores)
    path = folder.report if out is None else place(out)
    check_writable(path)
    notes: list[str] = []

    def warn(message: str) -> None:
        notes.append(message)
        context.warn(message)

    passed = None if data is None else as_benchmark(data, context)
    own, model = None, None
    try:
        within = replace(context, on_warning=notes.append)
        own = own_benchmark(run, passed, must_be_own=True, whole=True, context=within)
    except DivconError as error:
        if passed is not None:
            raise
        warn(f"this report has no pictures: {error}")
    if own is not None:
        notes = [*own.notes, *notes]
        shown = own.validation is not None or sections.is_observed(contents.lines) or own.train.vectors is None
        if contents.kept is not None and shown:
            try:
                model = EmbeddingModel.load(run, device=device, trust=trust)
            except DivconError as error:
                warn(f"the best and worst queries are left out: {error}")
    return _write(contents, own, model, path, scores, notes, batch_size, trust, context)


def write_report(
    folder: RunFolder,
    data: Benchmark,
    model: EmbeddingModel,
    *,
    notes: Sequence[str] = (),
    context: Context = DEFAULT,
) -> Path:
    """Write ``report.html`` into the folder of a run that has just ended.

    Args:
        data: the data that it was trained on, without images that do not decode, with its validation classes.
        model: the model that the run keeps.
        notes: the warnings of the run, beside those of its epochs.
        context: reports progress on the validation images that are embedded.

    Raises:
        RunError, OutputError: as `report`.
    """
    return _write(Contents.of(folder), data, model, folder.report, None, list(notes), 128, True, context)


def _write(
    contents: Contents,
    data: Benchmark | None,
    model: EmbeddingModel | None,
    path: Path,
    scores: Mapping[str, Any] | None,
    notes: list[str],
    batch_size: int,
    trust: Trust,
    context: Context,
) -> Path:
    def embed(images: LabeledSet) -> np.ndarray:
        assert model is not None
        return model.encode(images, batch_size=batch_size, context=context)

    searched, split = None if data is None or model is None else data.validation, "validation"
    if data is not None and model is not None and searched is None and sections.is_observed(contents.lines):
        # Without validation classes those of the test, on which the run was scored after each epoch anyway.
        searched, split = data.query, "test"
    pictures: list[tuple[str, str, Child]] = []
    if data is not None:
        for anchor, heading, write in (
            ("learners", "Images of each learner", lambda: _sheets(contents, data.train, context)),
            ("queries", "Best and worst queries", lambda: _queries(searched, split, embed, context)),
            ("augmented", "What the network sees", lambda: _augmented(contents, data.train, model, trust)),
        ):
            try:
                content = write()
            except DivconError as error:
                notes.append(f"{heading}: left out: {error}")
                continue
            if content is not None:
                pictures.append((anchor, heading, content))
    notes_shown = sections.notes_of(contents, notes)
    test = contents.test if scores is None else scores
    parts: list[tuple[str, str, Child]] = [
        ("run", "Overview", sections.overview(contents)),
        _scores(contents, test),
        ("curves", "Curves", joined(sections.curves(contents), sections.epochs(contents))),
        ("division", "Divisions over time", sections.division(contents)),
        *pictures,
        ("settings", "Settings", sections.settings(contents)),
        ("warnings", "Warnings and notes", sections.warnings(notes_shown)),
    ]
    text = page(f"Run {contents.folder.path.absolute().name}", parts, sections.lead(contents, notes_shown, test))
    _write_text(path, text)
    return path


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may not be valid Unicode


def add_test_scores(run: str | Path, scores: Mapping[str, Any]) -> Path | None:
    """Keep scores of a run's model on its own test classes in ``test.json``, and put them into its ``report.html``,
    whose other parts stay as they are.

    Args:
        run: the folder of the run.
        scores: what `divcon.evaluate` returned; ``per_query`` and ``per_class`` are left out.

    Returns:
        The report; None where the scores are of other data, the run has trained on its test classes, ``run`` is no run
        (the folder of a model), or there is no report of this version to put them into.

    Raises:
        OutputError: a file cannot be written.
    """
    folder = RunFolder(run)
    if folder.read() is None or not folder.lines():
        return None
    contents = Contents.of(folder)
    own = (contents.record.get("protocol"), contents.record.get("split_hash"))
    kept = contents.kept
    if (scores["protocol"], scores["split_hash"]) != own or contents.config.data.train_on == "all" or kept is None:
        return None
    record = read_record(folder.model)
    embed = None if record is None else record["chosen"]
    about = {"epoch": kept["epoch"], "embed": embed}
    folder.write_test_scores({**about, **{name: value for name, value in scores.items() if name not in _OF_EACH}})
    text = folder.report.read_text(encoding="utf-8") if folder.report.exists() else ""
    if style() not in text:  # none, or of another version
        return None
    _, heading, content = _scores(contents, scores)
    for new, pattern in (
        (sections.headlines(contents, scores), r'<ul class="headlines">.*?</ul>'),
        (section("scores", heading, content), r'<section id="scores".*?</section>'),
    ):
        text = re.sub(pattern, lambda _, new=new: new, text, count=1, flags=re.DOTALL)
    _write_text(folder.report, text)
    return folder.report


def _scores(contents: Contents, test: Mapping[str, Any] | None) -> tuple[str, str, Child]:
    return "scores", "Scores", sections.scores(contents, test)


def _sheets(contents: Contents, images: LabeledSet, context: Context) -> Child:
    last = contents.last_divided
    if last is None:
        return None
    if len(last[1].learner) != len(images):
        raise RunError(
            f"the division is of {len(last[1].learner):,} images, and the data has {len(images):,} train images"
        )
    indices = sections.sheet_indices(contents)
    thumbnails = Thumbnails(images, np.concatenate(indices).tolist(), context=context)
    return sections.sheets(contents, images, thumbnails, indices)


def _augmented(contents: Contents, images: LabeledSet, model: EmbeddingModel | None, trust: Trust) -> Child:
    """Some training images as they are embedded and as they were augmented; None for vectors, and where the transform
    was an object that files do not keep."""
    config = contents.config.train
    own = str(config.train_transform or "")
    if images.vectors is not None or model is None or own.endswith("()"):
        return None
    check_trusted(own, str(contents.folder.config), trust)
    return sections.augmented(config, augmented_sheet(model, images, config, rows=_AUGMENTED, gaps=None))


def _queries(
    images: LabeledSet | None, split: str, embed: Callable[[LabeledSet], np.ndarray], context: Context
) -> Child:
    if images is None:
        return None
    searched = images if len(images) <= MAX_SEARCHED else sample_of(images, MAX_SEARCHED)
    if not len(searched):
        raise DataError(f"no two of the {split} images drawn are of one class")
    best, worst = best_and_worst(searched, embed(searched))
    needed = [index for query in [*best, *worst] for index in (query.index, *(near for near, _ in query.neighbours))]
    thumbnails = Thumbnails(searched, needed, context=context)
    what = "images" if thumbnails.has_pictures else "vectors"
    some = f"drawn from {len(images):,}, " if len(searched) < len(images) else ""
    words = (
        f"Each of {len(searched):,} {split} {what}, {some}searched among the others. The query comes first, then "
        "its nearest neighbours with their cosine similarities; one query a class, by MAP@R."
    )
    lists = (
        element("div", element("h3", name), sections.query_rows(searched, thumbnails, queries))
        for name, queries in (("Worst", worst), ("Best", best))
    )
    return joined(element("p", words), element("div", lists, class_="pair"))
