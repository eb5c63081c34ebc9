"""What a step of divide and conquer costs over a plain step of pytorch-metric-learning on the same batch.

    python benchmarks/step.py                                 # 20 steps of tf_efficientnet_lite0 at 64 px
    python benchmarks/step.py --backbone resnet50.tv_in1k --size 224 --steps 5

`plain` is what its documentation shows: a timm backbone, one linear layer, MarginLoss with its DistanceWeightedMiner,
Adam. The others are divcon's network, objectives and optimiser, stepped as divcon/train/loop.py does, on the same
batches in memory: `single`, `slices` and `masks` with the learner's loss alone (as in both papers), and `masks` with
the second loss on the full embedding (divcon's default), with the memory of features beside it. None of them decodes or
divides. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from turns import Contender, compare

import divcon as dc

OURS = {
    "single": ("single", 1, 0.0, "fresh"),
    "slices": ("slices", 4, 0.0, "fresh"),
    "masks-alone": ("masks", 4, 0.0, "fresh"),
    "masks": ("masks", 4, 1.0, "fresh"),
    "masks-memory": ("masks", 4, 1.0, "memory"),
}
CONTENDERS = {
    "plain": Contender(
        "pytorch-metric-learning", "a plain step: one linear layer, MarginLoss, one loss", "masks-alone"
    ),
    "single": Contender("divcon", "a step of single", "masks"),
    "slices": Contender("divcon", "a step of slices, full weight 0", "masks"),
    "masks-alone": Contender("divcon", "a step of masks, full weight 0", "masks"),
    "masks": Contender("divcon", "a step of masks, full weight 1", "masks"),
    "masks-memory": Contender("divcon", "a step of masks, full weight 1, features remembered", "masks"),
}


def batches_of(steps: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 80 images, 20 classes of 4, normalised noise; the same for all."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(80, 3, size, size, generator=generator) for _ in range(min(steps, 4))]
    labels = torch.arange(20).repeat_interleave(4)
    return [(images[step % len(images)].contiguous(memory_format=torch.channels_last), labels) for step in range(steps)]


def plain(backbone: str, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], dict[str, float]]:
    from pytorch_metric_learning.losses import MarginLoss
    from pytorch_metric_learning.miners import DistanceWeightedMiner

    ours = dc.EmbeddingModel(backbone, 128, 1, image_size=batches[0][0].shape[-1])
    model = nn.Sequential(ours.backbone, ours.pooling, nn.Linear(ours.num_features, 128))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    for module in ours.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # as divcon's are, which begin from pretrained weights
    miner, loss = DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.4), MarginLoss(margin=0.2, beta=1.2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def work() -> dict[str, float]:
        for images, labels in batches:
            embeddings = model(images)
            value = loss(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            value.item()
        return {"loss": value.item()}

    return work


def ours(name: str, backbone: str, batches: list[tuple[Tensor, Tensor]]) -> Callable[[], dict[str, float]]:
    from lightning.fabric import Fabric

    from divcon.train.feature_memory import FeatureMemory
    from divcon.train.losses import create_objectives
    from divcon.train.setup import seed_batch, set_up

    method, learners, full_weight, divide_on = OURS[name]
    model = dc.EmbeddingModel(backbone, 128, learners, method=method, image_size=batches[0][0].shape[-1])
    config = dc.TrainConfig(full_weight=full_weight, divide_on=divide_on)  # type: ignore[arg-type]
    fabric = Fabric(accelerator="cpu", devices=1)
    network, optimizer, objectives = set_up(fabric, model, create_objectives(config, model.head, 20), config)
    memory = FeatureMemory(1000, model.num_features, fabric.device, kept=divide_on == "memory")
    model.train()

    def work() -> dict[str, float]:
        for step, (images, labels) in enumerate(batches):
            seed_batch(0, 0, step)
            own, full, features = network(images, learner=step % learners, with_all=True)
            loss = objectives[step % learners](own, labels)
            if config.full_weight:
                loss = loss + config.full_weight * objectives[-1](full, labels)
            loss = loss + config.mask_penalty * model.head.penalty()
            memory.saw(np.arange(80) + 80 * (step % 12), features)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            loss.item()
        return {"loss": loss.item()}

    return work


def prepare(contender: str, backbone: str, size: int, steps: int) -> Callable[[], dict[str, float]]:
    torch.manual_seed(0)

    def made(batches: list[tuple[Tensor, Tensor]]) -> Callable[[], dict[str, float]]:
        return plain(backbone, batches) if contender == "plain" else ours(contender, backbone, batches)

    made(batches_of(3, size))()  # what is allocated once, and the libraries' first calls
    return made(batches_of(steps, size))


SIZES = {
    "backbone": ("tf_efficientnet_lite0", "the network"),
    "size": (64, "of images, in pixels"),
    "steps": (20, "steps that are timed together"),
}

if __name__ == "__main__":
    title = "{steps} training steps of {backbone} at {size} px, batch 80"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare)
