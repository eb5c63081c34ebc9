"""Real processes of divcon that are killed, and what a run is, to be compared with one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch


@dataclass
class Ended:
    """How a process ended: its exit code (-9: by SIGKILL), what it printed, and its events by stage."""

    code: int
    text: str
    events: Counter[str] = field(default_factory=Counter)
    last: str = ""
    """The stage of the last event."""


class Zygote:
    """Runs commands in processes that are forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def begin(
        self, *arguments: object, kill: tuple[str, int, float] | None = None, victim: str = "", clock: bool = False
    ) -> int:
        """The number of the process that runs ``divcon ...``."""
        self._number += 1
        self._output, self._events = (self._folder / f"{kind}{self._number}" for kind in ("output", "events"))
        order = {
            "arguments": [str(a) for a in arguments],
            "output": str(self._output),
            "events": str(self._events),
            "kill": kill,
            "victim": victim,
            "clock": clock,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def printed(self) -> str:
        """What the process that runs has printed so far."""
        return self._output.read_text() if self._output.exists() else ""

    def end(self) -> Ended:
        """Wait for the end of the process that was begun."""
        assert self._process.stdout is not None
        code = int(self._process.stdout.readline())
        listed = self._events.read_text().split()
        last = next((stage for stage in reversed(listed) if stage != "killed"), "")
        return Ended(code, self._output.read_text(), Counter(listed), last)

    def run(self, *arguments: object, **options: Any) -> Ended:
        self.begin(*arguments, **options)
        return self.end()

    def killed(
        self, arguments: Sequence[object], kills: int, stages: Sequence[str], most: Mapping[str, int], seed: int
    ) -> Counter[str]:
        """Runs a command that is killed up to ``kills`` times, and each time run again, until it ends by itself, which
        must be well.

        Args:
            stages: in whose turn it is killed.
            most: the number of events of a stage within which that is.

        Returns:
            What it was doing when it was killed, counted.
        """
        rng, counts = np.random.default_rng(seed), Counter[str]()
        while True:
            killed = counts.total()
            stage = stages[killed % len(stages)]
            # At once, or within some milliseconds of the event.
            at = (stage, int(rng.integers(1, max(2, most[stage]))), float(rng.choice([0.0, rng.uniform(0, 0.02)])))
            ended = self.run(*arguments, kill=at if killed < kills else None)
            if ended.code != -9:
                assert ended.code == 0, ended.text
                return counts
            counts[ended.last] += 1

    def close(self) -> None:
        self._process.kill()
        self._process.wait(60)


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()


@pytest.fixture(scope="session")
def kills() -> int:
    """How many kills of each kind: DIVCON_KILLS, which `make torture` sets; 5 without."""
    return int(os.environ.get("DIVCON_KILLS", "5"))


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parquet of 480 vectors of 16 dimensions, 24 classes in 3 groups."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 20)
    centres = rng.normal(size=(24, 16)) + 3 * rng.normal(size=(3, 16))[np.arange(24) % 3]
    values = (centres[labels] + 0.7 * rng.normal(size=(480, 16))).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "vectors.parquet"
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 16)
    pq.write_table(pa.table({"embedding": embedding, "label": [f"class {c:02d}" for c in labels]}), path)
    return path


@pytest.fixture
def photos(tmp_path: Path, photos_in: Callable[[Path, int], Path]) -> Path:
    """``root/CLASS/*.png``: 16 classes with 5 real images each, 8 to train on."""
    return photos_in(tmp_path / "photos", 16)


@dataclass(frozen=True)
class Run:
    """All that a run's folder holds but seconds and what a report looks like."""

    names: list[str]
    files: dict[str, bytes]
    lines: list[dict[str, Any]]
    state: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Run:
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
        kept = [name for name in names if name.startswith(("divisions/", "model/")) or name == "classes.json"]
        texts = (folder / "metrics.jsonl").read_text().splitlines()
        lines = [{k: v for k, v in json.loads(t).items() if not k.startswith("seconds")} for t in texts]
        state = torch.load(folder / "checkpoint", weights_only=True)
        for name in ("checkpoint_minutes", "workers", "devices", "across"):
            del state["config"][name]
        return cls(names, {name: (folder / name).read_bytes() for name in kept}, lines, state)

    def check_same(self, other: Run) -> None:
        assert self.names == other.names
        assert self.lines == other.lines
        for name, content in self.files.items():
            assert other.files[name] == content, name
        assert same(self.state, other.state)


def same(a: Any, b: Any) -> bool:
    """Bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def run_of() -> type[Run]:
    return Run
