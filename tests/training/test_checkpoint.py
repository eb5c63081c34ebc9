"""What is kept inside of an epoch: stopped after any batch and resumed, a training is as if it had never stopped."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import RunError, Stopped
from divcon.runtime.signals import SignalHandler
from divcon.training.checkpoint_file import previous_of, read_checkpoint, restore_previous, write_checkpoint

CONFIG = dc.TrainConfig(epochs=6, batch_size=8, images_per_class=2, redivide_every=2, joint_epoch=4, finetune_epoch=5)
KINDS = {
    "plain": {},
    "two learners a step": {"learners_per_step": 2},
    "cross-batch memory": {"memory_size": 16},
    "feature bank": {"divide_on": "bank"},
    "proxies": {"loss": "ProxyAnchorLoss"},
    "hierarchy": {"hierarchy": True, "redivide_every": 1},
    "its own state": {"loss": "DynamicSoftMarginLoss", "miner": "none"},
    "half": {"precision": "bf16", "optimizer": "adamw", "lr_schedule": "cosine", "warmup_epochs": 0.5},
}
OLD = Path(__file__).parent.parent / "torture" / "data" / "checkpoint_format_2"


@pytest.fixture(scope="module")
def images() -> LabeledSet:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(6), 8)
    return LabeledSet(
        labels=labels,
        label_names=tuple("abcdef"),
        paths=pa.array([f"row {i}" for i in range(48)]),
        rows=np.arange(48),
        source="",
        vectors=(np.eye(6, 8)[labels] + 0.1 * rng.normal(size=(48, 8))).astype(np.float32),
    )


def model(seed: int = 0) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    return dc.EmbeddingModel("mlp", 8, 2, vector_dim=8, dropout=0.1)


def plain(report: Any) -> dict[str, Any]:
    return {k: v for k, v in report.to_dict().items() if not k.startswith("seconds")}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


@pytest.mark.heavy
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_after_every_third_batch(kind: str, images: LabeledSet, tmp_path: Path) -> None:
    config = replace(CONFIG, **KINDS[kind])
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    expected = [plain(report) for report in dc.train(model(), images, config, checkpoint=whole)]
    reports: dict[int, dict[str, Any]] = {}
    for attempt in itertools.count():
        stop, batches = SignalHandler(), itertools.count(1)

        def ask(progress: Any, stop: SignalHandler = stop, batches: Any = batches) -> None:
            if progress.stage == "train" and next(batches) == 3:
                stop.asked = signal.SIGTERM

        epochs = dc.train(
            model(attempt), images, config, checkpoint=parts, stop=stop, context=dc.Context(on_progress=ask)
        )
        try:
            for report in epochs:
                reports[report.number] = plain(report)
            break
        except Stopped as stopped:
            assert str(stopped).startswith("stopped in epoch ")
            assert stopped.exit_code == 143
    assert attempt >= 6
    assert [reports[n] for n in sorted(reports)] == expected
    mine, theirs = read_checkpoint(parts), read_checkpoint(whole)
    assert same(mine, theirs)


def test_a_stop_after_the_last_batch_of_an_epoch_keeps_it(images: LabeledSet, tmp_path: Path) -> None:
    expected = [plain(report) for report in dc.train(model(), images, CONFIG)]
    epochs: Any = dc.train(model(), images, CONFIG, checkpoint=tmp_path / "c", stop=SignalHandler())
    next(epochs)
    with pytest.raises(Stopped, match="stopped in epoch 0 after 6 of 6 batches"):
        epochs.throw(Stopped("", signal.SIGINT))
    assert read_checkpoint(tmp_path / "c")["inside"]["batches"] == 6
    assert [plain(r) for r in dc.train(model(5), images, CONFIG, checkpoint=tmp_path / "c")] == expected


def test_minutes_inside_of_an_epoch(images: LabeledSet, tmp_path: Path) -> None:
    inside: list[tuple[int, int]] = []

    def look(progress: Any) -> None:
        if (tmp_path / "c").exists():
            content = read_checkpoint(tmp_path / "c")
            inside.append((content["epochs_done"], (content["inside"] or {"batches": 0})["batches"]))

    config = replace(CONFIG, epochs=2, joint_epoch=None, finetune_epoch=2)
    list(
        dc.train(
            model(),
            images,
            replace(config, checkpoint_minutes=1e-9),
            checkpoint=tmp_path / "c",
            context=dc.Context(on_progress=look),
        )
    )
    assert {(0, batches) for batches in range(1, 6)} <= set(inside)
    (tmp_path / "c").unlink()  # who deletes it begins anew
    inside.clear()
    list(
        dc.train(
            model(),
            images,
            replace(config, checkpoint_minutes=0),
            checkpoint=tmp_path / "c",
            context=dc.Context(on_progress=look),
        )
    )
    assert set(inside) == {(1, 0)}


def test_a_checkpoint_of_an_earlier_version_goes_on(images: LabeledSet, tmp_path: Path) -> None:
    """Written by divcon when its format was 2, before there were checksums and states inside of an epoch."""
    path = tmp_path / "checkpoint"
    path.write_bytes(OLD.read_bytes())
    config = dc.TrainConfig(
        epochs=4,
        batch_size=8,
        images_per_class=2,
        memory_size=8,
        redivide_every=1,
        finetune_epoch=3,
        distill_weight=0.0,
        ema_decay=0.0,
        division_memory=0,
    )
    begun = dc.EmbeddingModel("none", 8, 2, vector_dim=8)
    assert [report.number for report in dc.train(begun, images, config, checkpoint=path)] == [2, 3]
    assert read_checkpoint(path)["format"] == 3
    assert read_checkpoint(previous_of(path))["epochs_done"] == 3


def test_a_checkpoint_of_an_unknown_format_says_what_to_do(tmp_path: Path) -> None:
    torch.save({"format": 9}, tmp_path / "c")
    with pytest.raises(RunError, match="format 9, and this version of divcon reads 2 to 3; resume with the version"):
        read_checkpoint(tmp_path / "c")
    torch.save([1], tmp_path / "c")
    with pytest.raises(RunError, match="is no checkpoint of divcon"):
        read_checkpoint(tmp_path / "c")


@pytest.mark.heavy
def test_every_flipped_bit_and_every_length_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, {"epochs_done": 1, "weights": torch.arange(6.0)})
    whole = path.read_bytes()
    assert torch.load(path, weights_only=True)["epochs_done"] == 1
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(RunError, match="the checkpoint is damaged"):
            read_checkpoint(path)
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match="the checkpoint is damaged"):
            read_checkpoint(path)


def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "c"
    assert restore_previous(path) is None
    for epoch in (1, 2):
        write_checkpoint(path, {"epochs_done": epoch})
    assert restore_previous(path) is None
    assert read_checkpoint(previous_of(path))["epochs_done"] == 1
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    assert "resumes from the one before it, after 1 epochs" in (restore_previous(path) or "")
    assert read_checkpoint(path)["epochs_done"] == 1
    assert not previous_of(path).exists()
    # A file of another format is not a damaged one: nothing takes its place.
    write_checkpoint(path, {"epochs_done": 3})
    torch.save({"format": 9}, path)
    assert restore_previous(path) is None
    with pytest.raises(RunError, match="format 9"):
        read_checkpoint(path)


def test_a_training_says_so_where_it_takes_the_one_before(images: LabeledSet, tmp_path: Path) -> None:
    expected = list(dc.train(model(), images, CONFIG, checkpoint=tmp_path / "c"))
    (tmp_path / "c").write_bytes(b"")
    warned: list[str] = []
    context = dc.Context(on_warning=warned.append)
    again = list(dc.train(model(1), images, CONFIG, checkpoint=tmp_path / "c", context=context))
    assert len(warned) == 1 and "resumes from the one before it, after 5 epochs" in warned[0]
    assert [plain(r) for r in again] == [plain(r) for r in expected[5:]]
