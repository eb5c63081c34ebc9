"""Trains for many divisions and prints, as JSON, what the process holds after each: memory, open files, children.

python tests/torture/long_run.py vectors|images DIVISIONS LEARNERS
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import divcon as dc
from divcon.data.labeled_set import LabeledSet


def resident() -> float:
    """MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class _MallInfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def allocated() -> float:
    """MiB that the program has allocated through glibc and not freed, without the gaps between."""
    look = ctypes.CDLL(None).mallinfo2
    look.restype = _MallInfo
    usage = look()
    return (usage.uordblks + usage.hblkhd) / 2**20


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def data(kind: str, learners: int) -> LabeledSet:
    if kind == "images":
        train = dc.read("demo").train
        return train.of_classes(train.classes[: max(40, 2 * learners)])
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(400), 10)
    vectors = (rng.normal(size=(400, 64))[labels] + rng.normal(size=(4000, 64))).astype(np.float32)
    names = tuple(str(c) for c in range(400))
    rows = np.arange(4000)
    return LabeledSet(labels, names, pa.array([f"row {i}" for i in rows]), rows, source="", vectors=vectors)


def main(kind: str, divisions: int, learners: int) -> None:
    torch.set_num_threads(1)
    images = data(kind, learners)
    config = dc.TrainConfig(
        epochs=divisions,
        finetune_epoch=divisions,
        redivide_every=1,
        batch_size=40,
        divide_on="bank",
        division_tries=1,
        memory_size=80,
        workers=2 if kind == "images" else 0,
        checkpoint_minutes=0.02,
    )
    if kind == "images":
        model = dc.EmbeddingModel("test_resnet", 64, learners, pretrained=False, image_size=32)
    else:
        model = dc.EmbeddingModel("mlp", 64, learners, vector_dim=64)
    held = []
    for _ in dc.train(model, images, config, checkpoint=sys.argv[4] if len(sys.argv) > 4 else None):
        gc.collect()
        held.append((resident(), allocated(), open_files(), len(active_children())))
    gc.collect()
    memory, in_use, files, children = (list(column) for column in zip(*held, strict=True))
    after = {"files_after": open_files(), "children_after": len(active_children())}
    print(json.dumps({"memory": memory, "allocated": in_use, "files": files, "children": children, **after}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
