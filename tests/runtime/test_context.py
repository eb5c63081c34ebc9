"""The context: one value for workers, progress, warnings and the process group."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.runtime.context import Progress
from divcon.runtime.distributed import ALONE, ProcessGroup


def test_a_context_reports_nothing_and_logs_warnings_by_default(caplog: pytest.LogCaptureFixture) -> None:
    context = dc.Context()
    context.progress("embed", 1, 2)
    with caplog.at_level(logging.WARNING, "divcon"):
        context.warn("left out: a.png")
    assert [record.message for record in caplog.records] == ["left out: a.png"]
    assert context.group is ALONE and context.workers == 0


def test_a_subtask_is_reported_as_part_of_the_whole() -> None:
    reported: list[Progress] = []
    context = dc.Context(on_progress=reported.append)
    half = context.subtask("evaluate", before=10, total=30, times=2, epoch=3)
    half.progress("embed", 4, 10)
    half.subtask(before=1).progress("embed", 1, 10)
    assert reported == [Progress("evaluate", 18, 30, epoch=3), Progress("evaluate", 14, 30, epoch=3)]
    context.silent().progress("embed", 4, 10)
    assert len(reported) == 2


def test_alone_leaves_the_group_and_keeps_the_rest() -> None:
    group = ProcessGroup(1, 2)
    context = dc.Context(workers=3, processes=group)
    assert context.group is group
    assert context.alone() == dc.Context(workers=3)


def test_one_callback_serves_every_function(few: Benchmark, tiny_model) -> None:
    reported: list[Progress] = []
    context = dc.Context(on_progress=reported.append)
    model = tiny_model()
    config = dc.TrainConfig(epochs=1, batch_size=16, images_per_class=2, workers=0)
    list(dc.train(model, few.train, config, context=context))
    dc.evaluate(model, few, clustering=False, context=context)
    model.encode(few.query, context=context)
    stages = list(dict.fromkeys(progress.stage for progress in reported))
    assert stages == ["divide", "train", "evaluate", "embed"]
    for stage in stages:
        last = [progress for progress in reported if progress.stage == stage][-1]
        assert last.done == last.total


def test_reading_does_not_import_pytorch() -> None:
    code = "import sys, divcon as dc; dc.read('demo'); dc.Context; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
