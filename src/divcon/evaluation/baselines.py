"""What no training gives: the scores of a network's features before it was trained, and of its own pooled features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from divcon.data.labeled_set import LabeledSet
from divcon.errors import DivconError, WeightsError
from divcon.evaluation.bootstrap import bootstrap_difference, bootstrap_interval
from divcon.evaluation.subspaces import normalized
from divcon.runtime.context import DEFAULT, Context

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel

Baseline = Literal["pretrained_features", "pooled_features"]

BASELINES: dict[Baseline, str] = {
    "pooled_features": "pooled features",
    "pretrained_features": "pretrained features",
}
"""The baselines, with their titles in tables."""

METRICS = {"recall_at_1": "Recall@1", "map_at_r": "MAP@R"}
"""The metrics whose difference from the baselines has an interval."""


def untrained_model(model: EmbeddingModel) -> EmbeddingModel:
    """The network as it was before training, for its pooled features: the same backbone, image size and pooling, with
    the weights that training started from (`divcon.models.start.Start`), on the same device.

    Raises:
        WeightsError: it started from random weights, or they are not known, or cannot be loaded here; the message
            says which.
    """
    import torch

    from divcon.models.backbone import is_own
    from divcon.models.embedding_model import EmbeddingModel, own_transform

    config, start = model.config, model.start
    options: dict[str, Any] = {
        name: config[name]
        for name in ("backbone", "image_size", "fit", "pixel_range", "channels", "pooling", "vector_dim")
        if name in config
    }
    options |= {"method": "single", "eval_transform": own_transform(model)}
    started_from_file = start.weights is not None or start.init is not None
    try:
        with torch.random.fork_rng(devices=[]):  # evaluating must not change what is drawn after it
            if is_own(config["backbone"]) and not started_from_file:
                raise WeightsError("the backbone is your own, and its weights from before training are not kept")
            if not start.pretrained and not started_from_file:
                raise WeightsError(
                    "training started from random weights"
                    if start.recorded
                    else "the weights that training started from are not recorded"
                )
            if start.init is None:
                fresh = EmbeddingModel(**options, embedding_dim=1, pretrained=start.pretrained, weights=start.weights)
            else:
                fresh = EmbeddingModel(**options, embedding_dim=1, pretrained=False)
                other = EmbeddingModel.load(start.init)
                fresh.warm_start(other)
                if config.get("pooling") == other.config.get("pooling"):
                    fresh.pooling.load_state_dict(other.pooling.state_dict())
    except DivconError as error:
        raise WeightsError(str(error)) from error
    return fresh.to(model.device).eval()


def starting_weights(model: EmbeddingModel) -> str:
    """What the pretrained features are of, in words and without paths."""
    start = model.start
    if start.init is not None:
        return "the model that training started from"
    if model.vector_dim is not None:
        return "the vectors themselves"
    if start.weights is not None:
        return start.weights.name
    return f"timm's {model.config['backbone']}" + ("" if start.recorded else ", which training probably started from")


def pretrained_features(
    model: EmbeddingModel, sides: Sequence[LabeledSet], *, batch_size: int = 128, context: Context = DEFAULT
) -> list[np.ndarray]:
    """The features of each set before training, (N, F) float32: the vectors themselves, of a model of vectors that did
    not start from another.

    Args:
        context: the processes of its group call this at once and share the images; each gets all features.

    Raises:
        WeightsError: as `untrained_model`, of any of the processes.
        ImageError: an image does not decode.
    """
    if model.vector_dim is not None and model.start.init is None:
        return [np.asarray(side.vectors, np.float32) for side in sides]
    from divcon.models.embedding_model import shared_features

    untrained, failed = None, None
    try:
        untrained = untrained_model(model)
    except WeightsError as error:
        failed = error
    # All or none: one that goes on alone would wait for the others for ever.
    if context.group.all_reduce(np.array([failed is not None]))[0] or untrained is None:
        raise failed or WeightsError("another process cannot load the weights that training started from")
    done, features = 0, []
    for side in sides:
        within = context.subtask("evaluate", before=done, total=sum(map(len, sides)))
        features.append(shared_features(untrained, side, batch_size=batch_size, context=within))
        done += len(side)
    return features


def baseline_scores(
    model: EmbeddingModel,
    sides: Sequence[LabeledSet],
    pooled: Callable[[], Sequence[np.ndarray]],
    each: Mapping[str, np.ndarray],
    labels: np.ndarray,
    scores: Callable[..., dict[str, Any]],
    wanted: Sequence[Baseline],
    *,
    batch_size: int = 128,
    context: Context = DEFAULT,
) -> tuple[dict[str, Any], list[str]]:
    """The scores of the baselines, and what they advise.

    Args:
        sides: the queries, and the gallery where it is another set.
        pooled: returns the model's pooled features of each side, (N, F) float32.
        each: the embedding's values of each query, by metric.
        labels: (Q,) int64, those queries' labels.
        scores: the scores of the embeddings of the sides, with ``per_query=True`` those of each query too.
        wanted: which baselines.

    Returns:
        By baseline its scores with ``recall_at_1_interval`` and ``map_at_r_interval``; ``of``, what the features are
        of; and ``difference``, by metric (Recall@1, MAP@R) the embedding's mean minus the baseline's as ``value``, with
        its 95 % ``interval`` (by bootstrap over classes, paired). ``note`` where there are no pretrained features. And
        a line for each baseline
        that the embedding is below by more than the interval.
    """
    of: dict[Baseline, str] = {}
    result: dict[str, Any] = {}
    advice: list[str] = []
    compared: dict[Baseline, Sequence[np.ndarray]] = {}
    if "pooled_features" in wanted:
        compared["pooled_features"], of["pooled_features"] = pooled(), "this network, without its head"
    if "pretrained_features" in wanted:
        try:
            compared["pretrained_features"] = pretrained_features(model, sides, batch_size=batch_size, context=context)
            of["pretrained_features"] = starting_weights(model)
        except WeightsError as error:
            result["note"] = f"no scores of pretrained features: {error}"
    if len(compared) == 2 and model.config["backbone"] == "none":
        del compared["pooled_features"]  # the same vectors
    for name, vectors in compared.items():
        own = scores([normalized(side) for side in vectors], per_query=True)
        each_own = own.pop("per_query")
        own["of"] = of[name]
        for metric in METRICS:
            own[f"{metric}_interval"] = list(bootstrap_interval(each_own[metric], labels))
        own["difference"] = {
            metric: {
                "value": float(np.nanmean(each[metric]) - np.nanmean(each_own[metric])),
                "interval": list(bootstrap_difference(each[metric], each_own[metric], labels)),
            }
            for metric in METRICS
        }
        result[name] = own
        advice += _advice(name, own, of_vectors=of[name] == "the vectors themselves")
    return result, advice


def _advice(name: Baseline, scores: Mapping[str, Any], *, of_vectors: bool) -> list[str]:
    """A line where the embedding is below the baseline by more than the interval, on MAP@R or else on Recall@1."""
    for metric in ("map_at_r", "recall_at_1"):
        value, (low, high) = scores["difference"][metric]["value"], scores["difference"][metric]["interval"]
        if not high < 0:
            continue
        by = f"{-100 * value:.1f} [{-100 * high:.1f}, {-100 * low:.1f}] points of {METRICS[metric]}"
        if name == "pooled_features":
            return [
                f"the embedding is {by} below its own pooled features: use these in its place (`embed=features`, or "
                "`embed=pca` for as few dimensions)"
            ]
        than = "the vectors that it was trained on" if of_vectors else "the pretrained features"
        instead = "search the vectors as they are" if of_vectors else "use the pretrained features (divcon features)"
        return [
            f"the embedding is {by} below {than}: training has not helped; try more images a class, a smaller `lr` or "
            f"more `epochs`, or {instead}"
        ]
    return []
