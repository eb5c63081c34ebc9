"""The report of a run put together and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DataError, DivconError, RunError
from divcon.evaluation.subspaces import sample_of
from divcon.models import EmbeddingModel
from divcon.runs.folder import RunFolder, own_benchmark
from divcon.runs.report import sections
from divcon.runs.report.html import Child, element, joined, page
from divcon.runs.report.sections import Contents, best_and_worst
from divcon.runs.report.thumbnails import Thumbnails
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import atomic_write, check_writable
from divcon.runtime.importing import Trust

MOST_SEARCHED = 1000
"""Validation images, at most, among which the best and the worst queries are looked for."""


def report(
    run: str | Path,
    data: Benchmark | None = None,
    *,
    out: str | Path | None = None,
    scores: Mapping[str, Any] | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    trust: Trust = (),
    context: Context = DEFAULT,
) -> Path:
    """Write the report of a run again: one HTML file that needs nothing beside itself.

    Args:
        run: the run's folder. A run that was stopped is reported as far as it is.
        data: what `divcon.read` gave of the data that the run was trained on; None: it is read again. Where it cannot
            be, the report says so, and has no pictures.
        out: the file; None: ``report.html`` in the run's folder.
        scores: what `divcon.evaluate` gave on the test classes; the report itself never looks at them.
        device: where the model embeds the validation images.
        trust: modules of your own that the run's model may import code from (see `EmbeddingModel.load`).
        context: a warning names what is missing from the report.

    Returns:
        The file.

    Raises:
        RunError: there is no run, none of its epochs is done, or ``data`` is not what it was trained on.
        DataError: ``scores`` are none.
        OutputError: the file cannot be written.
    """
    folder = RunFolder(run)
    contents = Contents.of(folder)
    if scores is not None:
        sections.check_scores(scores)
    path = folder.report if out is None else Path(out)
    check_writable(path)
    notes: list[str] = []

    def told(message: str) -> None:
        notes.append(message)
        context.warn(message)

    given, own, model = data, None, None
    try:
        own = own_benchmark(run, given, must_be_own=True, whole=True, context=replace(context, on_warning=notes.append))
    except DivconError as error:
        if given is not None:
            raise
        told(f"this report has no pictures: {error}")
    if own is not None:
        notes = [*own.notes, *notes]
        if contents.kept is not None and own.validation is not None:
            try:
                model = EmbeddingModel.load(run, device=device, trust=trust)
            except DivconError as error:
                told(f"the best and worst queries are left out: {error}")
    return _write(contents, own, model, path, scores, notes, batch_size, context)


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
        data: what it was trained on, without what did not decode, its validation classes held out.
        model: the one that is kept.
        notes: what the run told, beside the warnings of its epochs.
        context: reports the validation images embedded.

    Raises:
        RunError, OutputError: as `report`.
    """
    return _write(Contents.of(folder), data, model, folder.report, None, list(notes), 128, context)


def _write(
    contents: Contents,
    data: Benchmark | None,
    model: EmbeddingModel | None,
    path: Path,
    scores: Mapping[str, Any] | None,
    notes: list[str],
    batch_size: int,
    context: Context,
) -> Path:
    def embed(images: LabeledSet) -> np.ndarray:
        assert model is not None
        return model.encode(images, batch_size=batch_size, context=context)

    searched = None if data is None or model is None else data.validation
    pictures: list[tuple[str, str, Child]] = []
    if data is not None:
        for anchor, heading, make in (
            ("learners", "What each learner has", lambda: _sheets(contents, data.train, context)),
            ("queries", "Best and worst queries", lambda: _queries(searched, embed, context)),
        ):
            try:
                found = make()
            except DivconError as error:
                notes.append(f"{heading}: left out: {error}")
                continue
            if found is not None:
                pictures.append((anchor, heading, found))
    notes = sections.notes_of(contents, notes)
    parts: list[tuple[str, str, Child]] = [
        ("run", "What it is", sections.what_it_is(contents)),
        ("scores", "Scores", sections.scores(contents, scores)),
        ("curves", "Curves", joined(sections.curves(contents), sections.epochs(contents))),
        ("division", "The division through time", sections.division(contents)),
        *pictures,
        ("settings", "Settings", sections.settings(contents)),
        ("warnings", "Warnings and notes", sections.warnings(notes)),
    ]
    text = page(f"Run {contents.folder.path.absolute().name}", parts, sections.lead(contents, notes))
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8", errors="replace")  # a folder's name may be no text at all
    return path


def _sheets(contents: Contents, images: LabeledSet, context: Context) -> Child:
    last = contents.last_divided
    if last is None:
        return None
    if len(last[1].learner) != len(images):
        raise RunError(f"the division is of {len(last[1].learner):,} images, and the data has {len(images):,} to train")
    indices = sections.sheet_indices(contents)
    thumbnails = Thumbnails(images, np.concatenate(indices).tolist(), context=context)
    return sections.sheets(contents, images, thumbnails, indices)


def _queries(images: LabeledSet | None, embed: Callable[[LabeledSet], np.ndarray], context: Context) -> Child:
    if images is None:
        return None
    searched = images if len(images) <= MOST_SEARCHED else sample_of(images, MOST_SEARCHED)
    if not len(searched):
        raise DataError("none of the validation images drawn has another of its class")
    best, worst = best_and_worst(searched, embed(searched))
    needed = [index for query in [*best, *worst] for index in (query.index, *(near for near, _ in query.neighbours))]
    thumbnails = Thumbnails(searched, needed, context=context)
    what = "images" if thumbnails.has_pictures else "vectors"
    some = f"drawn from {len(images):,}, " if len(searched) < len(images) else ""
    words = (
        f"Each of {len(searched):,} validation {what}, {some}searched among the others, by the epoch that is kept. The "
        "query stands first, then what is nearest, with its distance; one query a class, by MAP@R."
    )
    lists = (
        element("div", element("h3", name), sections.query_rows(searched, thumbnails, found))
        for name, found in (("Worst", worst), ("Best", best))
    )
    return joined(element("p", words), element("div", lists, class_="pair"))
