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
    from divcon.ablation.study import ablate
    from divcon.compare import compare
    from divcon.config import DataConfig, ModelConfig, RunConfig, TrainConfig
    from divcon.data.image_set import Benchmark, ImageSet
    from divcon.data.pack import pack
    from divcon.data.read import read
    from divcon.divide.division import Division, divide
    from divcon.errors import DivconError
    from divcon.evaluate.protocol import evaluate
    from divcon.evaluate.retrieval import retrieval_metrics
    from divcon.export import export
    from divcon.models import EmbeddingModel
    from divcon.prune import prune
    from divcon.report import report
    from divcon.reproduce import reproduce
    from divcon.run import run
    from divcon.search.index import Index
    from divcon.train.loop import train

__version__ = "0.1.0"

# Imported at first use: PyTorch takes seconds, and `divcon --help` does not need it.
_HOME = {
    "Benchmark": "divcon.data.image_set",
    "DataConfig": "divcon.config",
    "Division": "divcon.divide.division",
    "DivconError": "divcon.errors",
    "EmbeddingModel": "divcon.models",
    "ImageSet": "divcon.data.image_set",
    "Index": "divcon.search.index",
    "ModelConfig": "divcon.config",
    "RunConfig": "divcon.config",
    "TrainConfig": "divcon.config",
    "ablate": "divcon.ablation.study",
    "pack": "divcon.data.pack",
    "read": "divcon.data.read",
    "retrieval_metrics": "divcon.evaluate.retrieval",
}
# Rooms that are called like the function they hold (see callable_module).
_ROOMS = ("compare", "divide", "evaluate", "export", "prune", "report", "reproduce", "run", "train")

__all__ = [
    "Benchmark",
    "DataConfig",
    "DivconError",
    "Division",
    "EmbeddingModel",
    "ImageSet",
    "Index",
    "ModelConfig",
    "RunConfig",
    "TrainConfig",
    "ablate",
    "compare",
    "divide",
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
    if name in _ROOMS:
        return importlib.import_module(f"divcon.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'divcon' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
