"""divcon: deep metric learning by divide and conquer.

import divcon as dc

data = dc.read("demo")
model = dc.EmbeddingModel("tf_efficientnet_lite0", embedding_dim=128, num_learners=4, image_size=64)
for epoch in dc.train(model, data.train, dc.TrainConfig(epochs=12)):
    print(epoch.number, epoch.phase, epoch.loss, epoch.division.sizes)
print(dc.evaluate(model, data))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from divcon.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
    from divcon.data.benchmark import Benchmark
    from divcon.data.labeled_set import LabeledSet
    from divcon.data.labeled_set import LabeledSet as ImageSet
    from divcon.data.pack import pack
    from divcon.data.read import read
    from divcon.division.division import Division, divide
    from divcon.errors import DivconError
    from divcon.evaluation.compare import compare
    from divcon.evaluation.protocol import evaluate
    from divcon.evaluation.retrieval import retrieval_metrics
    from divcon.experiments.ablation import ablate
    from divcon.experiments.reproduce import reproduce
    from divcon.exports import export
    from divcon.maps.draw import draw_map
    from divcon.models.embedding_model import EmbeddingModel
    from divcon.runs.prune import prune
    from divcon.runs.report import report
    from divcon.runs.run import run
    from divcon.runtime.context import Context
    from divcon.search.encode import encode
    from divcon.search.index import Index
    from divcon.training.estimator import DivideAndConquer
    from divcon.training.loop import train

__version__ = "0.1.0"

__all__ = [
    "Benchmark",
    "Context",
    "DataConfig",
    "DivconError",
    "DivideAndConquer",
    "Division",
    "EmbeddingModel",
    "ImageSet",
    "Index",
    "LabeledSet",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "ablate",
    "compare",
    "divide",
    "draw_map",
    "encode",
    "evaluate",
    "export",
    "pack",
    "prune",
    "read",
    "report",
    "reproduce",
    "retrieval_metrics",
    "run",
    "train",
]

# Imported at first use: PyTorch takes seconds, and `divcon --help` does not need it.
__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Benchmark": "data.benchmark",
        "Context": "runtime.context",
        "DataConfig": "config.settings",
        "Division": "division.division",
        "DivconError": "errors",
        "DivideAndConquer": "training.estimator",
        "EmbeddingModel": "models.embedding_model",
        "ImageSet": "data.labeled_set:LabeledSet",
        "Index": "search.index",
        "LabeledSet": "data.labeled_set",
        "ModelConfig": "config.settings",
        "RunConfig": "config.settings",
        "TrainConfig": "config.settings",
        "ablate": "experiments.ablation",
        "compare": "evaluation.compare",
        "divide": "division.division",
        "draw_map": "maps.draw",
        "encode": "search.encode",
        "evaluate": "evaluation.protocol",
        "export": "exports",
        "pack": "data.pack",
        "prune": "runs.prune",
        "read": "data.read",
        "report": "runs.report",
        "reproduce": "experiments.reproduce",
        "retrieval_metrics": "evaluation.retrieval",
        "run": "runs.run",
        "train": "training.loop",
    },
)
