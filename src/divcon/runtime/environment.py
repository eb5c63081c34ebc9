"""The machine and the versions of packages that a result was computed with."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """What times and scores depend on beside the settings: versions, processor, threads, accelerator."""
    import torch  # here: the command line's help reads the settings, which read this module, and loads no torch

    return {
        "versions": _versions("divcon", "torch", "timm", "pytorch-metric-learning", "faiss-cpu", "numpy"),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def machine() -> str:
    """The processor or accelerator and the number of threads, as text; times of two machines do not compare."""
    here = environment()
    threads = here["threads"]
    return f"{here['accelerator'] or here['processor']}, {threads} thread{'' if threads == 1 else 's'}"


def run_versions() -> dict[str, str]:
    """The versions of packages that a run records."""
    return _versions("divcon", "torch", "torchvision", "timm", "pytorch-metric-learning", "numpy")


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def not_repeatable(device: str, record: Mapping[str, Any] | None) -> list[str]:
    """The reasons why a run is not repeatable bit for bit; empty where it is.

    Args:
        device: cpu, cuda or mps.
        record: the ``config.json`` of a run that is resumed; None for a new one.
    """
    reasons = []
    if device != "cpu":
        reasons.append(
            f"on {device} two runs with the same seed, and a run that is resumed, may differ in the last bits: PyTorch "
            "sums in no fixed order there. `device=cpu` repeats bit for bit"
        )
    if record is None:
        return reasons
    then, now = record.get("versions") or {}, run_versions()
    changed = [f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name, now[name]) != now[name]]
    if record.get("machine", machine()) != machine():
        changed.append(f"{record['machine']} then, {machine()} now")
    if changed:
        reasons.append(f"the run goes on, but not bit for bit as it began: {'; '.join(changed)}")
    return reasons


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
