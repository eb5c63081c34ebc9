"""What is taken down of a run while it goes on and when it is over."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from divcon.config import RunConfig
from divcon.data.image_set import Benchmark
from divcon.display import Display
from divcon.evaluate.protocol import evaluate
from divcon.files import written_whole
from divcon.models import EmbeddingModel
from divcon.run_folder import RunFolder
from divcon.train.report import EpochReport, Progress


class Observer:
    """Looks at the test classes after the epochs that are judged, and keeps the hits of one epoch that was chosen
    before; notes which training images were drawn. Both lie in the run's folder, so that a run that was stopped goes
    on with them."""

    NAME = "observed.npz"

    def __init__(self, data: Benchmark, folder: Path, config: RunConfig, chosen_epoch: int, display: Display) -> None:
        self.chosen_epoch = chosen_epoch
        self._data = data
        self._path = folder / self.NAME
        self._config = config
        self._display = display

    def observe(self, model: EmbeddingModel, report: EpochReport) -> dict[str, Any]:
        """After an epoch; the result is for its line of ``metrics.jsonl``."""
        arrays = self.arrays() if report.number else {"drawn": np.zeros(len(self._data.train), bool)}
        arrays["drawn"][report.drawn] = True
        config, observed = self._config, {}
        last = report.number == config.train.epochs - 1
        if last or (report.number + 1) % config.data.evaluate_every == 0:
            result = evaluate(
                model,
                self._data,
                clustering=False,
                per_query=True,
                workers=config.train.workers,
                on_progress=self._display.stage("evaluate", report.number),
            )
            observed["recall_at_1"] = result["recall_at_1"]
            if report.number == self.chosen_epoch:
                hits = result["per_query"]["recall_at_1"]
                kept = [i for i, hit in enumerate(hits) if hit is not None]
                arrays["hits"] = np.array([hits[i] for i in kept], np.int64)
                arrays["classes"] = self._data.query.labels[kept]
        with written_whole(self._path) as beside, beside.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        return observed

    def arrays(self) -> dict[str, np.ndarray]:
        """``drawn`` (N,) bool, the training images drawn so far; ``hits`` (Q,) int64 0 or 1 and ``classes`` (Q,) int64
        of the queries that have a match, once the chosen epoch is done."""
        with np.load(self._path) as found:
            return {name: found[name] for name in found.files}


class Once(Display):
    """What another display shows of many runs: the bar, and once what would be said for each; no line an epoch."""

    def __init__(self, display: Display) -> None:
        self._display = display
        self._said: set[str] = set()

    def begin(self, config: RunConfig, data: Benchmark, epochs_done: int) -> None:
        self._display.begin(config, data, epochs_done)

    def progress(self, progress: Progress) -> None:
        self._display.progress(progress)

    def epoch(self, line: dict[str, Any]) -> None:
        for warning in line["warnings"]:
            self.warn(warning)

    def warn(self, message: str) -> None:
        # The same words of another epoch say nothing new.
        words = re.sub(r"\d+", "#", message)
        if words not in self._said:
            self._said.add(words)
            self._display.warn(message)

    def end(self, out: Path, kept_epoch: int | None) -> None:
        pass


def trial_record(folder: Path) -> dict[str, Any]:
    """The curve of a trial on its fold's validation classes, and its seconds."""
    lines = RunFolder(folder).lines()
    judged = [line for line in lines if "validation" in line]
    curve = [{"epoch": line["epoch"], "recall_at_1": line["validation"]["recall_at_1"]} for line in judged]
    return {"curve": curve, "seconds": sum(map(_seconds, lines))}


def run_record(folder: Path, observer: Observer) -> dict[str, Any]:
    """What a run has cost and what it gave. Its seconds are those of training and dividing."""
    lines = RunFolder(folder).lines()
    images, seconds = np.cumsum([line["images"] for line in lines]), np.cumsum([_seconds(line) for line in lines])
    curve = [
        {
            "epoch": line["epoch"],
            "images_seen": int(images[place]),
            "seconds": float(seconds[place]),
            "recall_at_1": line["observed"]["recall_at_1"],
        }
        for place, line in enumerate(lines)
        if line["observed"]
    ]
    found = observer.arrays()
    return {
        "batches": sum(line["batches"] for line in lines),
        "images_seen": int(images[-1]),
        "distinct_images_seen": int(found["drawn"].sum()),
        "seconds": float(seconds[-1]),
        "seconds_dividing": sum(line["seconds_dividing"] for line in lines),
        "kept_pairs": [line["kept_pairs"] for line in lines if line["redivided"] and len(line["sizes"]) > 1],
        "epochs": observer.chosen_epoch + 1,
        "recall_at_1": next(point["recall_at_1"] for point in curve if point["epoch"] == observer.chosen_epoch),
        "recall_at_1_last": curve[-1]["recall_at_1"],
        "curve": curve,
        "hits": found["hits"].tolist(),
        "classes": found["classes"].tolist(),
    }


def tidied(folder: Path, keep_models: bool) -> None:
    """Delete what a run that is recorded needs no more, and what takes most space."""
    if keep_models:
        return
    run = RunFolder(folder)
    shutil.rmtree(run.model, ignore_errors=True)
    run.checkpoint.unlink(missing_ok=True)
    run.previous.unlink(missing_ok=True)
    (folder / Observer.NAME).unlink(missing_ok=True)


def _seconds(line: dict[str, Any]) -> float:
    return line["seconds_dividing"] + line["seconds_training"]
