"""divcon: deep metric learning by divide and conquer.

import divcon as dc

data = dc.read("demo")
model = dc.EmbeddingModel("tf_efficientnet_lite0", embedding_dim=128, num_learners=4, image_size=64)
for epoch in dc.train(model, data.train, dc.TrainConfig(epochs=12)):
    print(epoch.number, epoch.phase, epoch.loss, epoch.division.sizes)
print(dc.evaluate(model, data))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    from divcon.search.index import Index
    from divcon.training.loop import train

__version__ = "0.1.0"

# Imported at first use: PyTorch takes seconds, and `divcon --help` does not need it.
_HOME = {
    "Benchmark": "data.benchmark:Benchmark",
    "Context": "runtime.context:Context",
    "DataConfig": "config.settings:DataConfig",
    "Division": "division.division:Division",
    "DivconError": "errors:DivconError",
    "EmbeddingModel": "models.embedding_model:EmbeddingModel",
    "ImageSet": "data.labeled_set:LabeledSet",
    "Index": "search.index:Index",
    "LabeledSet": "data.labeled_set:LabeledSet",
    "ModelConfig": "config.settings:ModelConfig",
    "RunConfig": "config.settings:RunConfig",
    "TrainConfig": "config.settings:TrainConfig",
    "ablate": "experiments.ablation:ablate",
    "compare": "evaluation.compare:compare",
    "divide": "division.division:divide",
    "draw_map": "maps.draw:draw_map",
    "evaluate": "evaluation.protocol:evaluate",
    "export": "exports:export",
    "pack": "data.pack:pack",
    "prune": "runs.prune:prune",
    "read": "data.read:read",
    "report": "runs.report:report",
    "reproduce": "experiments.reproduce:reproduce",
    "retrieval_metrics": "evaluation.retrieval:retrieval_metrics",
    "run": "runs.run:run",
    "train": "training.loop:train",
}

__all__ = [
    "Benchmark",
    "Context",
    "DataConfig",
    "DivconError",
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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'divcon' has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    value = getattr(importlib.import_module(f"divcon.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
