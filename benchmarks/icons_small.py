"""Make a folder of some classes of the demo's icons, with as many images as the small set of photographs: 43 classes to
train on and 45 to test on.

    python benchmarks/icons_small.py data/icons-small
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import divcon as dc

IMAGES = 280
"""Of each part, at least; the last class comes whole."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the folder")
    out = parser.parse_args().out
    images, written = dc.read("demo").train, 0
    for label in np.random.default_rng(0).permutation(images.classes):
        part = "train" if written < IMAGES else "test"
        for i in np.flatnonzero(images.labels == label):
            file = Path(out, part, images.label_name(int(i)).replace("/", "_"), f"{i}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images.content(int(i)))
            written += 1
        if written >= 2 * IMAGES:
            break


if __name__ == "__main__":
    main()
