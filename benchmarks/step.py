"""What a step of divide and conquer costs over a plain step of pytorch-metric-learning on the same batch.

    python benchmarks/step.py                                 # tf_efficientnet_lite0 at 64 px
    python benchmarks/step.py --backbone resnet50.tv_in1k --size 224 --turns 10

`plain` is what its documentation shows: a timm backbone, one linear layer, MarginLoss with its DistanceWeightedMiner,
Adam. The others are divcon's network, objectives and optimiser, stepped as divcon/training/loop.py does, on the same
batches in memory: `single`, `slices` and `masks` with the learner's loss alone (as in both papers), and `masks` with
the second loss on the full embedding (divcon's default); then that with one more option. None of them decodes or
divides. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from turns import Contender, compare

import divcon as dc

OURS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "single": ("single", 1, {"full_weight": 0.0}),
    "slices": ("slices", 4, {"full_weight": 0.0}),
    "masks-alone": ("masks", 4, {"full_weight": 0.0}),
    "masks": ("masks", 4, {}),
    "masks-memory": ("masks", 4, {"divide_on": "bank"}),
    "channels-first": ("masks", 4, {"channels_last": False}),
    "fused": ("masks", 4, {"fused": True}),
    "bf16": ("masks", 4, {"precision": "bf16"}),
    "compile": ("masks", 4, {"compile": True}),
}
CONTENDERS = {
    "plain": Contender(
        "pytorch-metric-learning", "a plain step: one linear layer, MarginLoss, one loss", "masks-alone"
    ),
    "single": Contender("divcon", "a step of single", "masks"),
    "slices": Contender("divcon", "a step of slices, full weight 0", "masks"),
    "masks-alone": Contender("divcon", "a step of masks, full weight 0", "masks"),
    "masks": Contender("divcon", "a step of masks, full weight 1", "masks"),
    "masks-memory": Contender("divcon", "that with features remembered", "masks"),
    "channels-first": Contender("divcon", "that without channels_last", "masks"),
    "fused": Contender("divcon", "that with the fused optimizer", "masks"),
    "bf16": Contender("divcon", "that in bf16", "masks"),
    "compile": Contender("divcon", "that with the backbone compiled", "masks"),
    "plain-fused": Contender("pytorch-metric-learning", "the plain step with a fused optimizer", "fused"),
}


def batches_of(steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 80 images, 20 classes of 4, normalised noise; the same for all."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(80, 3, size, size, generator=generator) for _ in range(min(steps, 4))]
    labels = torch.arange(20).repeat_interleave(4)
    return [(images[step % len(images)].contiguous(memory_format=torch.channels_last), labels) for step in range(steps)]


Batches = list[tuple[Tensor, Tensor]]


def plain(backbone: str, size: int, fused: bool) -> Callable[[Batches], dict[str, float]]:
    from pytorch_metric_learning.losses import MarginLoss
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    ours = dc.EmbeddingModel(backbone, 128, 1, image_size=size)
    model = nn.Sequential(ours.backbone, ours.pooling, nn.Linear(ours.num_features, 128))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    for module in ours.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # as divcon's are, which begin from pretrained weights
    miner, loss = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), MarginLoss(margin=0.2, beta=1.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4, fused=fused or None)

    def steps(batches: Batches) -> dict[str, float]:
        for images, labels in batches:
            embeddings = model(images)
            value = loss(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            value.item()
        return {"loss": value.item()}

    return steps


def ours(name: str, backbone: str, size: int) -> Callable[[Batches], dict[str, float]]:
    from divcon.training.feature_bank import FeatureBank
    from divcon.training.losses import create_objectives
    from divcon.training.precision import Precision
    from divcon.training.setup import seed_batch, set_up

    method, learners, more = OURS[name]
    model = dc.EmbeddingModel(backbone, 128, learners, method=method, image_size=size)
    config = dc.TrainConfig(**more)
    device = torch.device("cpu")
    precision = Precision(config.precision, device)
    objectives = create_objectives(config, model.head, 20)
    optimizer = set_up(model, objectives, config, device)
    bank = FeatureBank(1000, model.num_features, device, enabled=config.divide_on == "bank")
    model.train()

    def steps(batches: Batches) -> dict[str, float]:
        for step, (images, labels) in enumerate(batches):
            if not config.channels_last:
                images = images.contiguous()
            seed_batch(0, 0, step)
            optimizer.zero_grad()
            own, full, features = precision.forward(model, images, learner=step % learners, with_all=True)
            loss = objectives[step % learners](own, labels)
            if config.full_weight:
                loss = loss + config.full_weight * objectives[-1](full, labels)
            loss = loss + config.mask_penalty * model.head.penalty()
            bank.update(np.arange(80) + 80 * (step % 12), features)
            precision.backward(loss)
            precision.step(optimizer)
            loss.item()
        return {"loss": loss.item()}

    return steps


def prepare(contender: str, backbone: str, size: int, steps: int) -> Callable[[], dict[str, float]]:
    torch.manual_seed(0)
    if contender.startswith("plain"):
        run = plain(backbone, size, contender == "plain-fused")
    else:
        run = ours(contender, backbone, size)
    run(batches_of(3, size))  # what is allocated once, and what is compiled
    batches = batches_of(steps, size)
    return lambda: run(batches)


SIZES = {
    "backbone": ("tf_efficientnet_lite0", "the network"),
    "size": (64, "of images, in pixels"),
    "steps": (2, "steps that are timed together"),
}

if __name__ == "__main__":
    title = "{steps} training steps of {backbone} at {size} px, batch 80"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare, turns=40, closely=True)
