"""Evaluate: arrays in, numbers out. ``divcon.evaluate(...)`` is the function `evaluate`, of a model on a benchmark."""

from divcon.callable_module import make_callable
from divcon.evaluate.clustering import clustering_metrics
from divcon.evaluate.intervals import bootstrap_difference, bootstrap_interval, bootstrap_runs_difference
from divcon.evaluate.protocol import evaluate
from divcon.evaluate.random_gallery import random_gallery_metrics
from divcon.evaluate.reranking import ReRanking, reranked_distances
from divcon.evaluate.retrieval import retrieval_metrics
from divcon.evaluate.subspaces import similarity_correlations, subspace_order

__all__ = [
    "ReRanking",
    "bootstrap_difference",
    "bootstrap_interval",
    "bootstrap_runs_difference",
    "clustering_metrics",
    "evaluate",
    "random_gallery_metrics",
    "reranked_distances",
    "retrieval_metrics",
    "similarity_correlations",
    "subspace_order",
]

make_callable(__name__)
