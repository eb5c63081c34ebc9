"""What embedding images costs beside timm's own forward, the images decoded and in memory.

    python benchmarks/embed.py                                  # tf_efficientnet_lite0 at 64 px
    python benchmarks/embed.py --backbone resnet50 --size 224 --images 320 --turns 5

`timm` is a backbone in eval and inference mode, called on batches of normalised images; `timm-channels-last` is the
same in that memory format. `divcon` is `EmbeddingModel.pool`, what divides, evaluates and indexes, with its folding of
the network. All have the same weights (random, for any backbone but the default), and give the same features. How
runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from turns import Contender, compare

import divcon as dc

BATCH = 160
CONTENDERS = {
    "divcon": Contender("divcon", "EmbeddingModel.pool", "divcon"),
    "timm": Contender("timm", "the backbone's forward", "divcon"),
    "timm-channels-last": Contender("timm", "that with channels_last", "divcon"),
}


def prepare(contender: str, backbone: str, size: int, images: int) -> Callable[[], dict[str, float]]:
    torch.manual_seed(0)
    model = dc.EmbeddingModel(backbone, image_size=size, pretrained=backbone == "tf_efficientnet_lite0").eval()
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    batches = list(zip(pixels.split(BATCH), torch.arange(images).split(BATCH), strict=True))
    features = np.empty((images, model.num_features), np.float32)
    if contender != "timm":  # training has it so by default
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def forward() -> None:
        for pixels, indices in batches:
            images = model.normalize(pixels)
            if contender != "timm":
                images = images.contiguous(memory_format=torch.channels_last)
            features[indices.numpy()] = model.backbone(images).numpy()

    def work() -> dict[str, float]:
        if contender == "divcon":
            model.pool(batches, features)
        else:
            forward()
        return {"mean": float(features.mean()), "std": float(features.std())}

    work()
    return work


SIZES = {
    "backbone": ("tf_efficientnet_lite0", "the network"),
    "size": (64, "of images, in pixels"),
    "images": (640, "how many"),
}

if __name__ == "__main__":
    title = "Embedding {images} images by {backbone} at {size} px, batches of 160"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare, turns=20, closely=True)
