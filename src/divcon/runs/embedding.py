"""What a finished model embeds by: the head that was trained, its pooled features, or their principal components."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.config.settings import Embed, ModelConfig
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, OutputError, RunError
from divcon.evaluation.metrics import queries_in_words
from divcon.evaluation.subspaces import scores_among
from divcon.models.names import EMBEDDING_NAMES, Embedding
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import removed, uploaded
from divcon.runtime.files import atomic_write
from divcon.runtime.places import text_of

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel
    from divcon.models.heads import SubspaceHead

RECORD = "embedding.json"
"""In the folder of a model: the record of `choose_embedding`."""

TIE = 0.001
"""MAP@R by which the features or their PCA must be better than the head."""


def check_embedding(config: ModelConfig, model: EmbeddingModel, train: LabeledSet) -> None:
    """Check, before training, that the model can embed as ``config`` says in the end.

    Raises:
        ConfigError: a PCA of the training images has fewer dimensions than ``embedding_dim``.
    """
    from divcon.models.pca import MAX_IMAGES, check_dims

    if config.embed == "pca":
        check_dims(model.head.embedding_dim, model.num_features, min(len(train), MAX_IMAGES), "embed=pca")


def choose_embedding(
    model: EmbeddingModel,
    train: LabeledSet,
    validation: LabeledSet | Benchmark | None,
    kind: Embed = "auto",
    *,
    max_queries: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> tuple[EmbeddingModel, dict[str, Any]]:
    """The model with the embedding that ``kind`` says, and the record of the choice.

    A model whose embedding was chosen before is chosen for afresh, from the head that was trained: calling this twice
    changes nothing.

    Args:
        train: training images; the PCA is fitted to at most 20,000 of them.
        validation: images of other classes. ``auto`` chooses by MAP@R on them, each searching among all others: the
            head, unless the features or the PCA are better by more than 0.1 points. Without them it is the head. Or of
            a closed set, queries and a gallery of the train classes (`Benchmark.validation_task`).
        max_queries: as in `divcon.evaluate`.
        seed: draws the images of the PCA, and the queries.
        context: the processes of its group call this at once and share the images and the queries; all get the same.

    Returns:
        A copy of the model, in evaluation mode; and ``embed`` (``kind``), ``chosen`` (``head``, ``features`` or
        ``pca``), ``dims``, ``scores`` (of each that was compared: ``dims``, ``map_at_r``, ``recall_at_1``; empty where
        nothing was compared), ``num_queries`` (None where nothing was compared) and ``left_out`` (why no PCA was
        compared, or None); ``num_queries_total`` where ``max_queries`` left some out.

    Raises:
        ConfigError: ``pca``, and the training images have too few principal components.
        ImageError: an image does not decode; the message names it.
    """
    from divcon.models.embedding_model import shared_features
    from divcon.models.pca import check_dims, sample_to_fit
    from divcon.models.pruning import embedding_head

    if kind == "auto" and not (validation is not None and _has_matches(validation)):
        return _changed(model, kind, "head", {"head": embedding_head(model, "head")})
    context = context.subtask("evaluate")

    def features_of(images: LabeledSet) -> np.ndarray:
        return shared_features(model, images, batch_size=batch_size, context=context)

    heads: dict[Embedding, SubspaceHead] = {}
    left_out = None
    asked: tuple[Embedding, ...] = ("head", "features", "pca") if kind == "auto" else (kind,)
    for name in asked:
        if name == "pca":
            sample, trained = sample_to_fit(train, seed), model.head.trained
            try:
                check_dims(trained.embedding_dim, model.num_features, len(sample), "embed=pca")
            except ConfigError as error:
                if kind != "auto":
                    raise
                left_out = str(error)
                continue
            heads[name] = embedding_head(model, name, features_of(sample))
        else:
            heads[name] = embedding_head(model, name)
    if kind != "auto":
        return _changed(model, kind, kind, heads)

    assert validation is not None
    alone = isinstance(validation, LabeledSet)
    query, gallery = (validation, None) if alone else (validation.query, validation.gallery)
    features, of_gallery = features_of(query), None if gallery is None else features_of(gallery)
    scores: dict[Embedding, dict[str, Any]] = {}
    queries: dict[str, int] = {}
    for name, head in heads.items():
        embedder = model.with_head(head, shared=True)
        items = None if gallery is None or of_gallery is None else (gallery, embedder.embed(of_gallery))
        options: dict[str, Any] = {"max_queries": max_queries, "seed": seed, "context": context}
        scored = scores_among(embedder.embed(features), query, model.device, items, **options)
        scores[name] = {"dims": head.embedding_dim, **{key: scored[key] for key in ("map_at_r", "recall_at_1")}}
        queries = {name: scored[name] for name in ("num_queries", "num_queries_total") if name in scored}
    best = max(each["map_at_r"] for each in scores.values())
    chosen: Embedding = next(name for name in asked if name in scores and scores[name]["map_at_r"] >= best - TIE)
    return _changed(model, kind, chosen, heads, scores=scores, left_out=left_out, **queries)


def _has_matches(images: LabeledSet | Benchmark) -> bool:
    if isinstance(images, Benchmark):
        return bool(np.isin(images.query.labels, images.gallery.labels).any())
    return bool((np.bincount(images.labels) >= 2).any()) if len(images) else False


def _changed(
    model: EmbeddingModel, kind: Embed, chosen: Embedding, heads: dict[Embedding, SubspaceHead], **more: Any
) -> tuple[EmbeddingModel, dict[str, Any]]:
    record = {"embed": kind, "chosen": chosen, "dims": heads[chosen].embedding_dim}
    return model.with_head(heads[chosen]), {**record, "scores": {}, "num_queries": None, "left_out": None, **more}


def in_words(record: dict[str, Any]) -> str:
    """The record of `choose_embedding` on one line."""
    chosen, scores = record["chosen"], record["scores"]
    name = f"embedding: {EMBEDDING_NAMES[chosen]}, D {record['dims']:,}"
    if not scores:
        return name + (" (no validation classes to choose by)" if record["embed"] == "auto" else "")
    others = "".join(
        f"; {EMBEDDING_NAMES[other]}, D {each['dims']:,}: {100 * each['map_at_r']:.1f}"
        for other, each in scores.items()
        if other != chosen
    )
    best = f"MAP@R {100 * scores[chosen]['map_at_r']:.1f} on {queries_in_words(record)} validation queries"
    return f"{name} ({best}{others})" + ("" if chosen == "head" else "; `embed=head` keeps the head's")


def save_with_record(model: EmbeddingModel, folder: Path, record: dict[str, Any]) -> None:
    """Replace the model in a folder, and write the record of its embedding. A kill in between leaves a folder that
    `finish_replacing` completes.

    Raises:
        OutputError: a file cannot be written.
    """
    from divcon.models.embedding_model import write_model

    beside = _beside(folder)
    _remove(beside)
    beside.mkdir(parents=True)
    with atomic_write(beside / RECORD) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n")
    config = {**model.config, "freeze_batch_norm": model.freeze_batch_norm}
    write_model(beside, config, model.state_dict())
    finish_replacing(folder)


def finish_replacing(folder: Path) -> None:
    """Complete what `save_with_record` began, where a process was killed in it.

    Raises:
        OutputError: a file cannot be written.
    """
    beside = _beside(folder)
    try:
        # config.json is written last and moved last: while it is there, all others are, here or there.
        if (beside / "config.json").exists():
            for file in sorted(beside.iterdir(), key=lambda file: file.name == "config.json"):
                file.replace(folder / file.name)
                uploaded(folder / file.name)
        _remove(beside)
    except OSError as error:
        raise OutputError(f"{text_of(folder)}: cannot be written ({error.strerror})") from error


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.new")


def _remove(folder: Path) -> None:
    if folder.exists():
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of the embedding of the model in a folder; None where none was chosen.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        return {**json.loads(path.read_text())}
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}); delete it, and resume the run to choose again") from None


def forget_record(folder: Path) -> None:
    """Delete the record, as another model is to be saved in the folder."""
    removed(folder / RECORD)
