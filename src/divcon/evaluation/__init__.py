"""Evaluation: embeddings in, scores out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.evaluation.bootstrap import (
        bootstrap_difference,
        bootstrap_interval,
        bootstrap_runs_difference,
        share_interval,
        wilson_interval,
    )
    from divcon.evaluation.clustering import clustering_metrics
    from divcon.evaluation.in_loop import RetrievalMetrics
    from divcon.evaluation.metrics import METRICS, Metric, Ranking, metric
    from divcon.evaluation.per_class import class_scores
    from divcon.evaluation.protocol import evaluate
    from divcon.evaluation.reranking import ReRanking, reranked_distances
    from divcon.evaluation.retrieval import random_gallery_metrics, retrieval_metrics
    from divcon.evaluation.subspaces import learner_similarity, similarity_correlations, subspace_order
    from divcon.evaluation.tables import ScoreTable, score_table

__all__ = [
    "METRICS",
    "Metric",
    "Ranking",
    "ReRanking",
    "RetrievalMetrics",
    "ScoreTable",
    "bootstrap_difference",
    "bootstrap_interval",
    "bootstrap_runs_difference",
    "class_scores",
    "clustering_metrics",
    "evaluate",
    "learner_similarity",
    "metric",
    "random_gallery_metrics",
    "reranked_distances",
    "retrieval_metrics",
    "score_table",
    "share_interval",
    "similarity_correlations",
    "subspace_order",
    "wilson_interval",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "METRICS": "metrics",
        "Metric": "metrics",
        "Ranking": "metrics",
        "ReRanking": "reranking",
        "RetrievalMetrics": "in_loop",
        "ScoreTable": "tables",
        "bootstrap_difference": "bootstrap",
        "bootstrap_interval": "bootstrap",
        "bootstrap_runs_difference": "bootstrap",
        "class_scores": "per_class",
        "clustering_metrics": "clustering",
        "evaluate": "protocol",
        "learner_similarity": "subspaces",
        "metric": "metrics",
        "random_gallery_metrics": "retrieval",
        "reranked_distances": "reranking",
        "retrieval_metrics": "retrieval",
        "score_table": "tables",
        "share_interval": "bootstrap",
        "similarity_correlations": "subspaces",
        "subspace_order": "subspaces",
        "wilson_interval": "bootstrap",
    },
)
