"""The value of the learners' subspaces: scores without each, the best few of them, and how similar they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.runtime.context import DEFAULT, Context

if TYPE_CHECKING:
    import torch

    from divcon.models import EmbeddingModel

MAX_IMAGES = 3000
"""Images by which subspaces are chosen, at most: each step of the choice searches among all of them."""
_MIN_OF_A_CLASS = 16
MAX_COMPARED = 1000
"""Images whose pairs are compared, at most: half a million pairs."""
MAX_MONITORED = 400
"""The same at each evaluated epoch of a training, where it must cost next to nothing: 80,000 pairs."""
ONE = 0.95
"""Mean similarity of learners from which they count as one."""


def subspace_scores(
    dimensions: Sequence[Sequence[int]],
    sides: Sequence[np.ndarray],
    scores: Callable[[list[np.ndarray]], dict[str, Any]],
    order: Sequence[int] | None,
) -> dict[str, Any]:
    """Scores of an embedding without each learner's dimensions, and of the best few learners'.

    Args:
        dimensions: which dimensions each of K learners owns.
        sides: (N, D) float32 embeddings of the queries, and of the gallery where it is another set.
        scores: of the sides, cut to fewer dimensions.
        order: the learners in the order of `subspace_order`, for ``by_size``; None leaves it out.

    Returns:
        ``without``: K scores, each of the embedding without one learner's subspace. ``by_size``: K scores, of the first
        1, 2 ... K subspaces of ``order``, each with its ``learners`` and ``dims``. Empty where K is 1.
    """

    def of(learners: Sequence[int]) -> dict[str, Any]:
        return scores([kept_part(side, [dimensions[k] for k in learners]) for side in sides])

    count = len(dimensions)
    if count < 2:
        return {}
    result: dict[str, Any] = {"without": [of([k for k in range(count) if k != left]) for left in range(count)]}
    if order is not None:
        result["by_size"] = [
            {"learners": list(order[:n]), "dims": sum(len(dimensions[k]) for k in order[:n]), **of(order[:n])}
            for n in range(1, count + 1)
        ]
    return result


def kept_part(embeddings: np.ndarray, dimensions: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, D) embeddings cut to some subspaces' dimensions, in the embedding's order: (N, d) of length one."""
    kept = embeddings[:, sorted(d for subspace in dimensions for d in subspace)]
    return normalized(kept)


def normalized(features: np.ndarray) -> np.ndarray:
    """(N, F) features, each row of length one."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def subspace_order(
    model: EmbeddingModel,
    images: LabeledSet,
    dims: int | None = None,
    *,
    features: np.ndarray | None = None,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> list[int]:
    """The learners whose subspaces score best when combined, the most useful first.

    Each step adds the subspace with which Recall@1 among ``images`` is highest; MAP@R decides where Recall@1 is equal,
    the lower number where both are. That is not always the best set of a size, but costs K searches a step.

    Args:
        images: images to choose by. They must not be of the classes that scores are reported on.
        dims: only as many subspaces as fit into this many dimensions; None: all K.
        features: the pooled features of ``images``, (N, F) float32, where they are computed already.

    Raises:
        ValueError: the model's learners share dimensions, or none of their subspaces fits.
        DataError: no image has another of its class.
    """
    subspaces = model.head.dimensions()
    if not subspaces:
        raise ValueError("the model's learners share dimensions, so that there are no subspaces to choose from")
    if features is None:
        features = model.features(images, batch_size=batch_size, context=context)
    embeddings = model.embed(features)

    def score(learners: list[int]) -> tuple[float, float]:
        scores = scores_among(kept_part(embeddings, [subspaces[k] for k in learners]), images, model.device)
        return scores["recall_at_1"], scores["map_at_r"]

    return greedy_order([len(subspace) for subspace in subspaces], score, dims)


def scores_among(
    embeddings: np.ndarray,
    images: LabeledSet,
    device: str | torch.device = "cpu",
    gallery: tuple[LabeledSet, np.ndarray] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Leave-one-out retrieval metrics of images, from their (N, d) embeddings; or of their search in a gallery of other
    images of the same source, with its embeddings. More arguments are those of
    `divcon.evaluation.retrieval_metrics`."""
    columns: dict[str, Any] = {"cameras": images.cameras, "groups": images.groups}
    if gallery is not None:
        items, of_items = gallery
        columns = {name: values for name, values in columns.items() if getattr(items, name) is not None}
        columns |= {f"gallery_{name}": getattr(items, name) for name in columns}
        columns |= {"gallery_embeddings": of_items, "gallery_labels": items.labels}
    from divcon.evaluation.retrieval import retrieval_metrics

    return retrieval_metrics(embeddings, images.labels, recall_at=(1,), device=device, **columns, **more)


def greedy_order(
    sizes: Sequence[int], score: Callable[[list[int]], tuple[float, ...]], dims: int | None = None
) -> list[int]:
    """Choose greedily as many subspaces as fit into ``dims``: each adds the most to those before it.

    Args:
        sizes: dimensions of each of K subspaces.
        score: the score of a list of subspaces; higher is better.

    Raises:
        ValueError: no subspace fits.
    """
    available = sum(sizes) if dims is None else dims
    number = int(np.searchsorted(np.cumsum(sorted(sizes)), available, side="right"))
    if not number:
        raise ValueError(f"the smallest subspace has {min(sizes)} dimensions, more than {available}")
    order: list[int] = []
    while len(order) < number:
        left = [k for k in range(len(sizes)) if k not in order]

        def fits(k: int, left: list[int] = left) -> bool:
            # A large subspace must not take the dimensions of two small ones.
            smallest = sorted(sizes[other] for other in left if other != k)[: number - len(order) - 1]
            return sum(sizes[chosen] for chosen in order) + sizes[k] + sum(smallest) <= available

        order.append(max((k for k in left if fits(k)), key=lambda k: (score([*order, k]), -k)))
    return order


def ordering_split(data: Benchmark) -> tuple[str, LabeledSet] | None:
    """The images of a benchmark to choose by, never of its test classes: ``("validation", images)``, or of ``"train"``
    where it has no validation classes; at most `MAX_IMAGES`, see `sample_of`. None where no two are of one class."""
    for name, images in (("validation", data.validation), ("train", data.train)):
        if images is not None and len(sample := sample_of(images)):
            return name, sample
    return None


def sample_of(images: LabeledSet, most: int = MAX_IMAGES, seed: int = 0) -> LabeledSet:
    """A sample of the images of classes with at least two, in their order: up to ``most`` images (and at least one
    class), drawn by ``seed``; an equal share of each class, but no fewer than 16."""
    rng = np.random.default_rng([seed, 0x0DE5])
    shuffled = rng.permutation(len(images))
    labels = images.labels[shuffled]
    classes = rng.permutation(np.flatnonzero(np.bincount(labels) >= 2))
    if not len(classes):
        return images.subset(np.empty(0, np.int64))
    share = max(_MIN_OF_A_CLASS, most // len(classes))
    drawn, total = [], 0
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    for label in classes:
        of_class = shuffled[by_class[label][:share]]
        if drawn and total + len(of_class) > most:
            break
        drawn.append(of_class)
        total += len(of_class)
    return images.subset(np.sort(np.concatenate(drawn)))


def similarity_correlations(embeddings: Sequence[np.ndarray]) -> list[list[float | None]]:
    """How similar K subspaces are: Pearson's correlation between the cosines of all pairs of images in one subspace and
    in another.

    1: both rank the same images near, so that the second adds nothing; 0: they are unrelated.

    Args:
        embeddings: K arrays, (N, d_k) float of length one. It takes memory for K N² numbers: a thousand images will do.

    Returns:
        (K, K); None where all pairs are equally similar in a subspace.
    """
    pairs = np.triu_indices(len(embeddings[0]), 1)
    cosines = np.stack([(subspace @ subspace.T)[pairs] for subspace in embeddings]).astype(np.float64)
    cosines -= cosines.mean(axis=1, keepdims=True) if cosines.shape[1] else 0
    lengths = np.linalg.norm(cosines, axis=1)
    # A variation no larger than rounding counts as none.
    constant = lengths < 1e-5 * max(1, cosines.shape[1]) ** 0.5
    products = cosines @ cosines.T / np.where(constant, 1, lengths)[:, None] / np.where(constant, 1, lengths)
    return [
        [None if constant[i] or constant[j] else float(np.clip(products[i, j], -1, 1)) for j in range(len(embeddings))]
        for i in range(len(embeddings))
    ]


def learner_similarity(model: EmbeddingModel, features: np.ndarray) -> float | None:
    """How alike a model's learners are: the mean of `similarity_correlations` over pairs of their subspaces.

    1: all learners rank the same images near, so that there is one learner in fact; 0: they are unrelated.

    Args:
        features: (N, F) float32 pooled features, of which at most `MAX_MONITORED` are used, drawn with a fixed seed.

    Returns:
        None of one learner, or where fewer than two subspaces tell images apart.
    """
    if model.num_learners < 2:
        return None
    some = features[some_rows(len(features), MAX_MONITORED)]
    correlations = similarity_correlations([model.embed(some, k) for k in range(model.num_learners)])
    return mean_over_pairs(correlations)


def some_rows(size: int, most: int) -> np.ndarray:
    """(n,) int64: at most so many rows of ``size``, drawn with a fixed seed."""
    return np.random.default_rng(0).permutation(size)[:most]


def mean_over_pairs(correlations: Sequence[Sequence[float | None]]) -> float | None:
    """The mean of `similarity_correlations` over the pairs of learners; None where no pair has one."""
    pairs = [value for k, row in enumerate(correlations) for value in row[k + 1 :] if value is not None]
    return sum(pairs) / len(pairs) if pairs else None
