"""The machine and the versions that a number was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """What seconds and scores depend on beside the settings: versions, processor, threads, accelerator."""
    packages = ("divcon", "torch", "timm", "pytorch-metric-learning", "faiss-cpu", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine() -> str:
    """The environment in words, as each run has it: seconds of two machines do not compare."""
    found = environment()
    return f"{found['accelerator'] or found['processor']}, {found['threads']} threads"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
