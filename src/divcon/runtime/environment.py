"""The machine and the versions that a number was made with."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """What seconds and scores depend on beside the settings: versions, processor, threads, accelerator."""
    return {
        "versions": _versions("divcon", "torch", "timm", "pytorch-metric-learning", "faiss-cpu", "numpy"),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine() -> str:
    """The environment in words, as each run has it: seconds of two machines do not compare."""
    found = environment()
    return f"{found['accelerator'] or found['processor']}, {found['threads']} threads"


def run_versions() -> dict[str, str]:
    """What a run records of the packages that it is trained with."""
    return _versions("divcon", "torch", "torchvision", "timm", "pytorch-metric-learning", "numpy")


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def not_repeatable(device: str, record: Mapping[str, Any] | None) -> list[str]:
    """Why a run does not end bit for bit as another of its seed, in words; empty where it does.

    Args:
        device: where it computes: cpu, cuda or mps.
        record: the ``config.json`` of the run, where it goes on.
    """
    told = []
    if device != "cpu":
        told.append(
            f"on {device} two runs of one seed may differ in the last bits, which PyTorch adds up in no fixed order "
            "there; so may a run that is resumed. --device cpu repeats bit for bit"
        )
    if record is None:
        return told
    then, now = record.get("versions") or {}, run_versions()
    changed = [f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]
    if record.get("machine", machine()) != machine():
        changed.append(f"{record['machine']} then, {machine()} now")
    if changed:
        told.append(f"the run goes on, but not bit for bit as it began: {'; '.join(changed)}")
    return told


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def started_by_torchrun() -> int | None:
    """How many processes torchrun has started, of which this is one; None where it has not started this one."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else None
