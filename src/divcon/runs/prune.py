"""Prune a trained model to fewer dimensions, or change what it embeds by, without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from divcon.data.benchmark import Benchmark
from divcon.data.inputs import LabeledData, as_benchmark, as_labeled_set
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError
from divcon.evaluation.subspaces import ordering_split, sample_of, scores_among, subspace_order
from divcon.models.names import Embedding
from divcon.runtime.context import DEFAULT, Context

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel

By = Literal["subspaces", "pca", "features", "whitening", "head"]
EMBEDDINGS: dict[str, Embedding] = {"features": "features", "whitening": "pca", "head": "head"}
"""Of each ``by`` that changes what the model embeds by, the embedding (see `divcon.models.with_embedding`)."""


@dataclass(frozen=True)
class Pruning:
    """The result of `prune`."""

    by: By
    dims: int
    """Dimensions of the new model."""
    learners: list[int] | None
    """The learners that the new model keeps, the most useful first; None but for ``subspaces``."""
    evaluated_on: str
    """The images of the two numbers below: ``validation``, ``train``, or ``given`` for a set of images."""
    num_images: int
    num_classes: int
    recall_before: float
    """Recall@1 of the model; each image is a query, all others are its gallery."""
    recall_after: float
    """Recall@1 of the new model. With ``subspaces`` it was chosen on these images, and is a little lower on others."""


def prune(
    model: EmbeddingModel | str | Path,
    data: LabeledData,
    dims: int | None = None,
    *,
    by: By = "pca",
    batch_size: int = 128,
    context: Context = DEFAULT,
    on_done: Callable[[Pruning], None] = lambda about: None,
) -> EmbeddingModel:
    """Reduce a model to at most ``dims`` dimensions, or change what it embeds by, without training.

    Args:
        model: a model, or the folder of a run or model.
        data: images to choose by, of classes that the model is not evaluated on. Of a benchmark, ``subspaces`` uses
            the validation classes, or the train classes if it has none, and ``pca`` the train classes; at most 3,000
            images, drawn with a fixed seed. ``whitening`` uses up to 20,000 images of the train classes.
        dims: dimensions of the new model. Required for ``pca`` and ``subspaces``; for ``whitening`` None means those of
            the head that was trained; ``features`` and ``head`` have theirs.
        by: ``pca``: exactly ``dims`` dimensions and one learner, the embeddings' principal components (see
            `divcon.models.keep_components`). ``subspaces``: as many learners' subspaces as fit into ``dims``,
            those that retrieve best together (see `divcon.evaluation.subspace_order`), with their learners; fewer
            dimensions if subspaces do not add up to ``dims``. ``features``: the pooled features, L2-normalised.
            ``whitening``: their first ``dims`` principal components, whitened. ``head``: the embedding that was
            trained, where the run or a call of this has changed it (see `divcon.models.with_embedding`).
        on_done: called with the learners kept, and Recall@1 before and after.

    Raises:
        ConfigError: ``dims`` is missing, below 1 or not below the model's, or not of this ``by``; it holds no whole
            subspace; the images have fewer principal components; or learners share dimensions, and ``by`` is
            ``subspaces``.
        DataError: there are no two images of one class to choose by, or the model does not take them.
        ImageError: an image does not decode; the message names it.
    """
    check_arguments(dims, by, None)  # before PyTorch is imported
    from divcon.models import as_model, keep_components, keep_subspaces, with_embedding
    from divcon.models.pca import sample_to_fit

    model = as_model(model)
    if not isinstance(data, LabeledSet):
        data = as_benchmark(data, context) if not isinstance(data, (tuple, list)) else as_labeled_set(data, context)
    check_prunable(model, dims, by)
    evaluated_on, images = _images_to_choose_by(data)
    features = model.features(images, batch_size=batch_size, context=context)
    learners = None
    if by in EMBEDDINGS:
        analysed = None
        if by == "whitening":
            sample = sample_to_fit(data.train if isinstance(data, Benchmark) else data, 0)
            analysed = model.features(sample, batch_size=batch_size, context=context)
        small = with_embedding(model, EMBEDDINGS[by], analysed, dims=dims)
    elif dims is None:
        raise _dims_missing(by)  # checked above
    elif by == "subspaces":
        learners = subspace_order(model, images, dims, features=features)
        small = keep_subspaces(model, learners)
    else:
        analysed = features
        if isinstance(data, Benchmark) and evaluated_on == "validation":
            analysed = model.features(sample_of(data.train), batch_size=batch_size, context=context)
        small = keep_components(model, analysed, dims)
    before, after = (scores_among(each.embed(features), images, model.device)["recall_at_1"] for each in (model, small))
    on_done(Pruning(by, small.embedding_dim, learners, evaluated_on, len(images), images.num_classes, before, after))
    return small


def check_prunable(model: EmbeddingModel, dims: int | None, by: By) -> None:
    """Check the arguments before any image is read.

    Raises:
        ConfigError: as `prune`.
    """
    from divcon.models.pca import MAX_IMAGES, check_dims
    from divcon.models.pruning import no_subspaces

    check_arguments(dims, by, model.embedding_dim)
    if by == "whitening":
        check_dims(model.head.trained.embedding_dim if dims is None else dims, model.num_features, MAX_IMAGES)
        return
    if by == "pca" or by in EMBEDDINGS or dims is None:
        return
    if model.head.embedding != "head":
        raise no_subspaces(model)
    parts = model.head.dimensions()
    if len(parts) < 2:
        why = (
            "one learner has all dimensions"
            if model.num_learners == 1
            else "its learners share dimensions (a learned mask covers all), so that none has dimensions of its own"
        )
        method = model.config["method"]
        raise ConfigError(f"`by=subspaces`: the model is of method {method}, and {why}; use `by=pca`", field="by")
    sizes = sorted({len(part) for part in parts})
    if dims < sizes[0]:
        raise ConfigError(
            f"`dims` {dims} holds no whole subspace: the model's {len(parts)} learners have "
            f"{' or '.join(map(str, sizes))} dimensions each; choose more, or use `by=pca`",
            field=("dims", "by"),
        )


def check_arguments(dims: int | None, by: By, embedding_dim: int | None) -> None:
    """Check what can be checked without the model itself, and without PyTorch.

    Args:
        embedding_dim: the dimensions of the model's embedding; None: not known.

    Raises:
        ConfigError: as `prune`.
    """
    if by not in ("subspaces", "pca", *EMBEDDINGS):
        raise ConfigError(f"`by` {by}: must be subspaces, pca, {', '.join(EMBEDDINGS)}", field="by")
    if by == "whitening":
        return
    if by in EMBEDDINGS:
        if dims is not None:
            raise ConfigError(f"`dims` {dims}: `by={by}` has its own number; leave it out", field=("dims", "by"))
        return
    if dims is None:
        raise _dims_missing(by)
    if embedding_dim is not None and not 1 <= dims < embedding_dim:
        raise ConfigError(
            f"`dims` {dims}: the model has {embedding_dim} dimensions; choose at least 1 and fewer than it has",
            field="dims",
        )


def _dims_missing(by: By) -> ConfigError:
    return ConfigError(f"`dims` is missing: `by={by}` needs the number of dimensions", field="dims")


def _images_to_choose_by(data: Benchmark | LabeledSet) -> tuple[str, LabeledSet]:
    if isinstance(data, Benchmark):
        name, split = data.name, ordering_split(data)
    else:
        name, split = data.source, ("given", sample_of(data))
    if split is None or not len(split[1]):
        raise DataError(f"{name}: no two images to choose by are of one class; use data with train classes")
    return split
