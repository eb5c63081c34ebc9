"""A training step of two processes on gloo, with gradients in buckets while the backward pass goes on, or all at once.

    python benchmarks/gradients.py
    python benchmarks/gradients.py --turns 20 --processes 2

Both do the same forward pass, backward pass and step of Adam, on the same batch in memory. `buckets` is what training
does (divcon.training.gradients, PyTorch's DistributedDataParallel); `at once` concatenates all gradients after the
backward pass and reduces them in one all-reduce. Steps take turns in the same processes. Each process computes with one
thread; on a machine with as many cores as processes, what gloo sends and adds up takes its time from the same cores.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

import divcon as dc
from divcon.runtime.distributed import ProcessGroup
from divcon.runtime.launch import launch
from divcon.training.gradients import Gradients

WAYS = ("buckets", "at once")


def networks() -> dict[str, tuple[dict[str, Any], tuple[int, ...]]]:
    """Arguments of the model, and the shape of a batch."""
    return {
        "resnet18, 16 images of 64 px": (
            {"backbone": "resnet18", "pretrained": False, "image_size": 64},
            (16, 3, 64, 64),
        ),
        "mlp, 64 vectors of 2,048": ({"backbone": "mlp", "vector_dim": 2048}, (64, 2048)),
    }


def timed(group: ProcessGroup, turns: int) -> dict[str, dict[str, list[float]]]:
    """Seconds a step, by network and way."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for name, (options, shape) in networks().items():
        torch.manual_seed(0)
        model = dc.EmbeddingModel(embedding_dim=512, num_learners=1, method="single", **options).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-4)
        inputs, gradients = torch.randn(shape), Gradients(model, group)
        backbone = nn.ModuleList([model.backbone, model.pooling])
        step = range(group.world_size)
        seconds[name] = {way: [] for way in WAYS}
        for turn in range(-2, turns):  # two to warm up
            for way in WAYS:
                optimizer.zero_grad()
                group.barrier()
                started = time.perf_counter()
                network = gradients.network(step, group.rank) if way == "buckets" else model
                (network(inputs).sum() / len(step)).backward()
                if way == "buckets":
                    gradients.all_reduce(optimizer)
                else:
                    group.all_reduce_gradients(optimizer, backbone)
                optimizer.step()
                group.barrier()
                if turn >= 0:
                    seconds[name][way].append(time.perf_counter() - started)
        count = sum(p.numel() for p in model.parameters())
        seconds[f"{name}, {count / 1e6:.1f} M weights"] = seconds.pop(name)
    return seconds


def worker(group: ProcessGroup, turns: int) -> None:
    torch.set_num_threads(1)
    timed(group, turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20, help="steps of each")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with launch(arguments.processes, "learners", "cpu", worker, arguments.turns) as group:
        torch.set_num_threads(1)
        seconds = timed(group, arguments.turns)
    print(f"{arguments.processes} processes, one thread each, gloo on loopback, {arguments.turns} turns\n")
    print("| network | buckets, s a step | at once, s a step | buckets / at once |")
    print("|---|---|---|---|")
    for name, of_way in seconds.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(*of_way.values(), strict=True))
        medians = [statistics.median(of_way[way]) for way in WAYS]
        print(f"| {name} | {medians[0]:.3f} | {medians[1]:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
