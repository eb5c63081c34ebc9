"""Runs of the version before settings declared their history are read, and resumed to the same numbers.

`before/` holds runs of one small set of vectors, stopped in the middle of an epoch, between two, while they were
evaluated, or killed, and their results when that version resumed them (`expected.json`). The hierarchy was stopped
after its last doubling, so that its numbers stay, too: since then the moments of masks start afresh at a doubling, by
design, and a run of before that has yet to double goes on to other numbers.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import divcon as dc
from divcon.config.fields import restored, setting
from divcon.errors import RunError
from divcon.runs.folder import RunFolder, kept_epoch, own_benchmark
from divcon.training.checkpoint_file import read_checkpoint, write_checkpoint

BEFORE = Path(__file__).parent / "before"
EXPECTED = json.loads((BEFORE / "expected.json").read_text())
UNMARKED = {name: len((BEFORE / name / "metrics.jsonl").read_text().splitlines()) for name in EXPECTED}


def copy_of(name: str, tmp_path: Path) -> Path:
    out = tmp_path / name
    shutil.copytree(BEFORE / name, out)
    record = json.loads((out / "config.json").read_text())
    record["source"]["data"] = str(BEFORE / "data.parquet")
    (out / "config.json").write_text(json.dumps(record))
    return out


def resume(out: Path) -> list[dict]:
    config = RunFolder(out).read()[0]
    dc.run(dc.read(str(BEFORE / "data.parquet")), out, config, resume=True, report=False)
    return RunFolder(out).lines()


def check_lines(lines: list[dict], name: str) -> None:
    expected = EXPECTED[name]["lines"]
    assert len(lines) == len(expected)
    for line, known in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(known["loss"], rel=1e-4)
        assert {key: line[key] for key in ("epoch", "phase", "sizes", "left_out")} == {
            key: known[key] for key in ("epoch", "phase", "sizes", "left_out")
        }
        assert ("validation" in line) == ("validation" in known)
        if "validation" in known:
            assert line["validation"]["recall_at_1"] == pytest.approx(known["validation"]["recall_at_1"])


@pytest.mark.parametrize("name", EXPECTED)
def test_a_run_of_before_is_resumed_to_the_same_numbers(name: str, tmp_path: Path) -> None:
    out = copy_of(name, tmp_path)
    lines = resume(out)
    check_lines(lines, name)
    validated = [line for line in lines if "validation" in line]
    # The lines of that version have no mark; of equal epochs, that version kept the first, and this one the last.
    assert ["kept" in line for line in lines] == [line["epoch"] >= UNMARKED[name] for line in lines]
    kept, scores = kept_epoch(lines), [line["validation"]["recall_at_1"] for line in validated]
    assert (
        kept == (lines[-1] if not scores else [v for v in validated if scores[v["epoch"]] == max(scores)][-1])["epoch"]
    )
    if validated:
        model, held = dc.EmbeddingModel.load(out), own_benchmark(out, whole=True).validation
        score = dc.evaluate(model, held, clustering=False)["map_at_r"]
        assert score == pytest.approx(lines[kept]["validation"]["map_at_r"], abs=1e-6)
    if EXPECTED[name]["model_sha256"] == EXPECTED["run-stopped"]["model_sha256"]:
        # What the run had kept before it was stopped, which this version replaced by an equal one.
        weights, known = (
            load_file(BEFORE / name / "model/model.safetensors"),
            load_file(BEFORE / "run-stopped.safetensors"),
        )
        assert weights.keys() == known.keys()
        for key in known:
            torch.testing.assert_close(weights[key], known[key], rtol=1e-4, atol=1e-6)


def test_a_renamed_value_is_read_and_shown_by_its_name_of_today(tmp_path: Path) -> None:
    out = copy_of("run-stopped-memory", tmp_path)
    assert json.loads((out / "config.json").read_text())["train"]["divide_on"] == "memory"
    assert RunFolder(out).read()[0].train.divide_on == "bank"
    assert dc.RunConfig.load(out / "config.json").train.divide_on == "bank"


@dataclass(frozen=True)
class WithMore(dc.TrainConfig):
    """The settings of a later version."""

    patience: int = 0
    ema: float = setting(0.999, before=0.0)
    base_lr: float = setting(1e-4, old_names=("lr",))
    kernel: str = setting("fused", old_names=("fused",), old_values={"False": "loop", "True": "fused"})


def test_what_is_missing_has_the_value_that_it_had_then() -> None:
    values = restored(WithMore, {"lr": 1e-3, "fused": "False", "epochs": 3, "unheard": 1})
    assert values["patience"] == 0
    assert values["ema"] == 0.0
    assert values["base_lr"] == 1e-3
    assert values["kernel"] == "loop"
    assert values["full_weight"] == 0.0
    assert values["learners_per_step"] == 1
    assert values["unheard"] == 1
    assert values["epochs"] == 3


@dataclass(frozen=True)
class Later(dc.TrainConfig):
    """The settings of a later version, which has one more."""

    ema: float = setting(0.999, before=0.0)


def test_a_new_setting_does_not_break_the_resume_of_an_old_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dc.config.settings.SECTIONS, "train", Later)
    out = copy_of("run-stopped", tmp_path)
    saved = RunFolder(out).read()[0]
    assert isinstance(saved.train, Later)
    assert saved.train.ema == 0.0
    with pytest.raises(RunError, match=r"`ema` is 0\.0 in the run, 0\.5 now"):
        data = dc.read(str(BEFORE / "data.parquet"))
        dc.run(data, out, replace(saved, train=replace(saved.train, ema=0.5)), resume=True)
    check_lines(resume(out), "run-stopped")


@pytest.mark.parametrize("missing", ["fused", "compile", "full_weight", "learners_per_step", "optimizer", "hierarchy"])
def test_a_checkpoint_without_a_setting_is_resumed(missing: str, tmp_path: Path) -> None:
    out = copy_of("run-stopped", tmp_path)
    content = read_checkpoint(out / "checkpoint")
    del content["config"][missing], content["format"]
    write_checkpoint(out / "checkpoint", content)
    if missing != "full_weight":  # whose value then was 0, and this run has another
        check_lines(resume(out), "run-stopped")
        return
    with pytest.raises(RunError, match=r"`full_weight`: 0\.0 then, 1\.0 now"):
        resume(out)


def test_every_setting_says_what_it_was_before_or_has_a_default() -> None:
    for kind in (dc.ModelConfig, dc.TrainConfig, dc.DataConfig):
        assert kind(**restored(kind, {})) is not None
        for field in dataclasses.fields(kind):
            assert not set(field.metadata.get("old_names", ())) & {f.name for f in dataclasses.fields(kind)}
