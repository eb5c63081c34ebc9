"""Images a second for training, decoded, cropped and stacked in one process: from photos, and from a pack of them.

    python benchmarks/decode.py                          # 200 JPEGs of 4,000 × 3,000 pixels
    python benchmarks/decode.py --width 640 --height 480

`imagefolder` is torchvision's, with its RandomResizedCrop and flip, as most training scripts have it: it decodes each
photo whole. The photos are noise, blurred and enlarged, which compresses as photos do; they are written once, to a
folder beside the results. The timed work is an epoch, all crops of 224 pixels. How runs are timed: benchmarks/turns.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from turns import Contender, compare

SIZE, BATCH = 224, 20
CONTENDERS = {
    "imagefolder": Contender("torchvision", "ImageFolder, RandomResizedCrop, flip", "packed"),
    "files": Contender("divcon", "from the files", "files"),
    "packed": Contender("divcon", "from a pack, shorter side 256, JPEG", "packed"),
}


def photos(n: int, width: int, height: int) -> Path:
    """A folder of n JPEGs of ten classes."""
    root = Path(f"build/photos-{n}-{width}-{height}")
    if (root / "whole").exists():
        return root
    for number in range(n):
        rough = np.random.default_rng(number).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
        picture = Image.fromarray(rough).filter(ImageFilter.GaussianBlur(2)).resize((width, height))
        path = root / "photos" / f"class {number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    (root / "whole").touch()
    return root


def prepare(contender: str, n: int, width: int, height: int) -> Callable[[], dict[str, float]]:
    import torch
    from torch.utils.data import DataLoader

    root = photos(n, width, height)
    if contender == "imagefolder":
        from torchvision.datasets import ImageFolder
        from torchvision.transforms import v2

        steps = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        loader = DataLoader(ImageFolder(root / "photos", v2.Compose(steps)), BATCH, shuffle=True)
        return lambda: {"mean": float(np.mean([pixels.float().mean() for pixels, _ in loader]))}
    import divcon as dc
    from divcon.data.loading import Decoded, batches_of, collate
    from divcon.data.transforms import EvalTransform, TrainTransform

    data = dc.read(root / "photos")
    if contender == "packed":
        data = dc.read(dc.pack(data, root / "packed"))
    images = data.without_validation().train
    keys = [(int(i) % len(images), 0, place) for place, i in enumerate(torch.randperm(n).tolist())]
    batches = [keys[start : start + BATCH] for start in range(0, n, BATCH)]
    dataset = Decoded(images, EvalTransform(SIZE), TrainTransform(SIZE))
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)  # type: ignore[arg-type]
    return lambda: {"mean": float(np.mean([pixels.float().mean() for pixels, _ in batches_of(loader)]))}


SIZES = {"n": (200, "photos"), "width": (4000, "in pixels"), "height": (3000, "in pixels")}

if __name__ == "__main__":
    title = "Decoding {n} JPEGs of {width:,} × {height:,} for crops of 224"
    compare(__file__, __doc__, CONTENDERS, SIZES, title, prepare)
