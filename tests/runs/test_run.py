"""A run's folder: what is in it, what is kept, and that kills, stops and mistakes lose nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError, DataError, ImageError, OutputError, RunError
from divcon.models import with_embedding
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runtime.environment import not_repeatable

pytestmark = pytest.mark.heavy

MODEL = dc.ModelConfig(
    num_learners=2,
    embedding_dim=16,
    backbone="test_resnet",
    pretrained=False,
    image_size=32,
    fit="crop",
    pixel_range="full",
    embed="head",
)
TRAIN = dc.TrainConfig(epochs=3, batch_size=16, images_per_class=2, workers=0, ema_decay=0.0)
CONFIG = dc.RunConfig(MODEL, TRAIN, dc.DataConfig(validation_fraction=0.1))
WITHOUT = replace(CONFIG, data=replace(CONFIG.data, validation=False))


def lines_of(out: Path) -> list[dict]:
    return RunFolder(out).lines()


def timeless(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in lines]


class Stop(NullDisplay):
    """Stops a run in the middle of an epoch, as Ctrl-C does."""

    def __init__(self, epoch: int, stage: str = "train") -> None:
        self.at = (epoch, stage)

    def progress(self, progress: object) -> None:
        if (progress.epoch, progress.stage) == self.at and progress.done > 0:  # type: ignore[attr-defined]
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def straight(few: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    dc.run(few, out, CONFIG, source={"data": "few", "root": None})
    return out


def test_the_folder_holds_what_the_run_was_and_gave(straight: Path, few: Benchmark) -> None:
    expected = [
        "baselines.json",
        "checkpoint",
        "classes.json",
        "config.json",
        "divisions",
        "last",
        "metrics.jsonl",
        "model",
        "report.html",
    ]
    assert sorted(p.name for p in straight.iterdir()) == expected
    record = json.loads((straight / "config.json").read_text())
    assert record["split_hash"] == few.split_hash
    assert record["protocol"] == "leave-one-out"
    assert record["versions"]["timm"] == timm.__version__
    assert dc.RunConfig.from_dict({k: record[k] for k in ("model", "train", "data")}) == CONFIG
    assert record["source"] == {"data": "few", "root": None}
    lines = lines_of(straight)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [p.name for p in sorted((straight / "divisions").iterdir())] == [
        f"epoch_{line['epoch']:04d}.safetensors" for line in lines if line["redivided"]
    ]
    division = dc.Division.load(straight / "divisions" / "epoch_0000.safetensors")
    assert list(division.sizes) == lines[0]["sizes"]
    for line in lines:
        names = {"loss", "learner_loss", "sizes", "classes", "left_out", "kept_pairs", "distinct_images", "changed"}
        names |= {"nmi_previous", "seconds_dividing", "seconds_training", "seconds_evaluating"}
        assert names <= line.keys()
        assert line["validation"]["num_queries"] > 0


def test_the_kept_model_is_compared_with_what_needs_no_training(straight: Path, few: Benchmark, tmp_path: Path) -> None:
    scores = json.loads((straight / "baselines.json").read_text())
    lines = lines_of(straight)
    kept = kept_epoch(lines)
    assert scores["epoch"] == kept
    assert scores["recall_at_1"] == pytest.approx(lines[kept]["validation"]["recall_at_1"], abs=1e-6)
    assert scores["baselines"]["pooled_features"]["of"] == "this network, without its head"
    assert scores["baselines"]["note"].endswith("training started from random weights")
    assert RunFolder(straight).baselines_of(kept) == scores
    assert RunFolder(straight).baselines_of(kept + 1) is None
    # A run that starts from this one's model has a baseline: that model.
    dc.run(few, tmp_path / "next", CONFIG, init=straight)
    pretrained = json.loads((tmp_path / "next/baselines.json").read_text())["baselines"]["pretrained_features"]
    assert pretrained["of"] == "the model that training started from"
    assert pretrained["map_at_r"] == pytest.approx(scores["baselines"]["pooled_features"]["map_at_r"], abs=1e-6)


def test_a_comparison_that_fails_loses_no_run(few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory")

    warned: list[str] = []

    class Warned(NullDisplay):
        def warn(self, message: str) -> None:
            warned.append(message)

    monkeypatch.setattr("divcon.runs.run._Run._compare_with_baselines", fails)
    out = tmp_path / "run"
    dc.run(few, out, replace(CONFIG, train=replace(TRAIN, epochs=1)), display=Warned())
    assert not (out / "baselines.json").exists()
    assert (out / "report.html").exists()
    assert any("not compared with untrained features" in message for message in warned)


@pytest.mark.parametrize("config", [CONFIG, WITHOUT])
def test_each_epoch_says_how_alike_the_learners_are_and_nothing_else_changes(
    few: Benchmark, tmp_path: Path, config: dc.RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []

    class Warned(NullDisplay):
        def warn(self, message: str) -> None:
            warned.append(message)

    model = dc.run(few, tmp_path / "with", config, display=Warned(), report=False)
    lines = lines_of(tmp_path / "with")
    assert all(-1 <= line["learner_similarity"] <= 1 for line in lines)
    one = lines[kept_epoch(lines)]["learner_similarity"] > 0.95
    assert any("learners are one" in message and "`method=slices`" in message for message in warned) == one
    monkeypatch.setattr("divcon.runs.run.learner_similarity", lambda *_: None)
    monkeypatch.setattr("divcon.evaluation.protocol.learner_similarity", lambda *_: None)
    again = dc.run(few, tmp_path / "without", config, report=False)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])


def test_the_model_of_the_epoch_that_is_kept_is_saved(straight: Path, few: Benchmark) -> None:
    lines = lines_of(straight)
    assert [line["kept"] for line in lines] == [True, True, True]  # 12 queries are too few to choose by
    assert kept_epoch(lines) == 2
    held = few.with_validation(0.1, 0).validation
    model = with_embedding(dc.EmbeddingModel.load(straight), "head")
    scores = dc.evaluate(model, held, clustering=False)
    assert scores["recall_at_1"] == pytest.approx(lines[2]["validation"]["recall_at_1"], abs=1e-6)
    assert not set(few.query.labels) & set(held.labels)


def test_without_validation_all_classes_train_and_the_last_epoch_is_kept(few: Benchmark, tmp_path: Path) -> None:
    model = dc.run(few, tmp_path / "run", WITHOUT)
    lines = lines_of(tmp_path / "run")
    assert all("validation" not in line for line in lines)
    assert lines[0]["sizes"] != []
    assert sum(lines[0]["sizes"]) + lines[0]["left_out"] == len(few.train)
    last = torch.load(tmp_path / "run" / "checkpoint", weights_only=True)["model"]
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("epoch", "stage"), [(0, "divide"), (0, "train"), (1, "train"), (1, "evaluate"), (2, "train")])
def test_stopped_and_resumed_it_is_as_if_never_stopped(
    straight: Path, few: Benchmark, tmp_path: Path, epoch: int, stage: str
) -> None:
    out = tmp_path / "run"
    stop = Stop(epoch, stage)
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=stop)
    dc.run(few, out, replace(CONFIG, train=replace(TRAIN, workers=2)), resume=True)
    assert timeless(lines_of(out)) == timeless(lines_of(straight))
    for name in ("model/model.safetensors", "divisions/epoch_0000.safetensors"):
        assert (out / name).read_bytes() == (straight / name).read_bytes()
    mine, theirs = (torch.load(p / "checkpoint", weights_only=True) for p in (out, straight))
    for part in ("model", "objectives"):
        assert all(torch.equal(value, theirs[part][name]) for name, value in mine[part].items())


def test_a_run_begun_before_there_was_a_full_loss_goes_on_without_one(few: Benchmark, tmp_path: Path) -> None:
    out, config = tmp_path / "run", replace(CONFIG, train=replace(TRAIN, full_weight=0.0))
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, config, display=Stop(1, "train"))
    record = json.loads((out / "config.json").read_text())
    del record["train"]["full_weight"]
    (out / "config.json").write_text(json.dumps(record))
    checkpoint = torch.load(out / "checkpoint", weights_only=True)
    del checkpoint["config"]["full_weight"], checkpoint["config"]["optimizer"], checkpoint["inside"]
    checkpoint["format"] = 2
    torch.save(checkpoint, out / "checkpoint")
    dc.run(few, out, RunFolder(out).resumed(dc.RunConfig())[0], resume=True)
    assert all(line["full_loss"] is None for line in lines_of(out))


def test_a_line_that_a_stop_cut_short_is_dropped_and_written_again(
    straight: Path, few: Benchmark, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=Stop(2))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss"')
    dc.run(few, out, CONFIG, resume=True)
    assert timeless(lines_of(out)) == timeless(lines_of(straight))


def test_what_would_overwrite_or_mix_runs_is_refused(straight: Path, few: Benchmark, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}
    with pytest.raises(RunError, match="holds a run already; resume it"):
        dc.run(few, straight, CONFIG)
    with pytest.raises(RunError, match="`validation` is True in the run, False now"):
        dc.run(few, straight, WITHOUT, resume=True)
    with pytest.raises(RunError, match="`batch_size` is 16 in the run, 8 now"):
        dc.run(few, straight, replace(CONFIG, train=replace(TRAIN, batch_size=8)), resume=True)
    other = few.query.of_classes(few.query.classes[:12])
    with pytest.raises(RunError, match="the data has changed"):
        dc.run(Benchmark("few", few.train, other, other), straight, CONFIG, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        dc.run(few, tmp_path, CONFIG)
    assert before == {p: p.read_bytes() for p in straight.rglob("*") if p.is_file()}


def test_a_resume_takes_the_run_s_settings_and_refuses_others(straight: Path, tmp_path: Path) -> None:
    folder = RunFolder(straight)
    resumed, record = folder.resumed(dc.RunConfig())
    assert resumed == CONFIG
    assert record["source"] == {"data": "few", "root": None}
    resumed, _ = folder.resumed(replace(dc.RunConfig(), train=dc.TrainConfig(workers=3)))
    assert resumed.train.workers == 3
    with pytest.raises(RunError, match=r"`embedding_dim` is 16 in the run, 64 now"):
        folder.resumed(dc.RunConfig(dc.ModelConfig(embedding_dim=64)))
    # A setting that is passed counts, at its default, too.
    with pytest.raises(RunError, match=r"`embedding_dim` is 16 in the run, 512 now"):
        folder.resumed(dc.RunConfig(), explicit={"embedding_dim"})
    assert folder.resumed(dc.RunConfig(), explicit={"workers"})[0].train.workers == dc.TrainConfig().workers
    with pytest.raises(RunError, match="no run here to resume"):
        RunFolder(tmp_path).resumed(dc.RunConfig())
    (tmp_path / "config.json").write_text('{"model": 3')
    with pytest.raises(RunError, match="damaged"):
        RunFolder(tmp_path).resumed(dc.RunConfig())


def test_before_the_first_epoch_is_done_a_folder_may_be_begun_anew(
    few: Benchmark, tmp_path: Path, straight: Path
) -> None:
    out = tmp_path / "run"
    wrong = replace(CONFIG, train=replace(TRAIN, loss="MarginLos"))
    with pytest.raises(ConfigError, match="did you mean 'MarginLoss'"):
        dc.run(few, out, wrong)
    assert not out.exists()
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, replace(CONFIG, train=replace(TRAIN, lr=1.0)), display=Stop(0))
    dc.run(few, out, CONFIG)
    assert timeless(lines_of(out)) == timeless(lines_of(straight))
    assert RunFolder(out).read()[0] == CONFIG


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_that_began_from_a_model_is_resumed_as_such(
    straight: Path, few: Benchmark, tmp_path: Path, epoch: int
) -> None:
    dc.run(few, tmp_path / "whole", CONFIG, init=straight)
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, tmp_path / "parts", CONFIG, init=straight, display=Stop(epoch))
    dc.run(few, tmp_path / "parts", CONFIG, resume=True)
    assert timeless(lines_of(tmp_path / "parts")) == timeless(lines_of(tmp_path / "whole"))
    mine, theirs = (torch.load(tmp_path / p / "checkpoint", weights_only=True)["model"] for p in ("parts", "whole"))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_changed_labels_are_noticed(few: Benchmark, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=Stop(1))
    labels = few.train.labels.copy()
    held = few.with_validation(0.1, 0).validation.labels
    first, second = (np.flatnonzero(~np.isin(labels, held))[i] for i in (0, -1))
    labels[first], labels[second] = labels[second], labels[first]
    with pytest.raises(RunError, match="images or their labels have changed"):
        dc.run(Benchmark("few", replace(few.train, labels=labels), few.query, few.query), out, CONFIG, resume=True)


def test_a_damaged_checkpoint_is_reported(straight: Path, few: Benchmark, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    whole = (straight / "checkpoint").read_bytes()
    for content in (whole[:1000], whole[: len(whole) // 2], b"", b"text"):
        (tmp_path / "run" / "checkpoint").write_bytes(content)
        with pytest.raises(RunError, match="the checkpoint is damaged"):
            dc.run(few, tmp_path / "run", CONFIG, resume=True)


def test_a_full_disk_is_an_error_and_keeps_the_last_checkpoint(
    few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=Stop(1))
    before = (out / "checkpoint").read_bytes()
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == "checkpoint.new":
            write(path, bytes(content)[:1000])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"checkpoint: cannot be written \(No space left"):
        dc.run(few, out, CONFIG, resume=True)
    assert (out / "checkpoint").read_bytes() == before
    assert not (out / "checkpoint.new").exists()


def test_scores_of_classes_that_were_trained_on_are_doubted(straight: Path, few: Benchmark, demo: Benchmark) -> None:
    folder = RunFolder(straight)
    assert folder.check_test_classes(few, own=True) is None
    overlapping = Benchmark("seen", few.query, few.train, few.train)
    with pytest.raises(RunError, match="its data has changed since it was trained"):
        folder.check_test_classes(overlapping, own=True)
    assert "24 of the test classes have names of classes that" in str(folder.check_test_classes(overlapping, own=False))


def test_validation_classes_have_pairs_and_no_validation_takes_them_all(few: Benchmark, tmp_path: Path) -> None:
    images = few.train
    singles = [int(np.flatnonzero(images.labels == c)[0]) for c in images.classes[:15]]
    rest = np.flatnonzero(~np.isin(images.labels, images.classes[:15]))
    mixed = Benchmark("mixed", images.subset(np.r_[singles, rest]), few.query, few.query)
    for seed in range(10):
        held = mixed.with_validation(0.1, seed).validation
        assert all((held.labels == c).sum() >= 2 for c in held.classes)
    named = few.with_validation(0.2, 3)
    assert named.with_validation(0.5, 9) is named
    joined = named.without_validation()
    assert joined.validation is None
    assert sorted(joined.train.rows.tolist()) == sorted(images.rows.tolist())
    labels = dict(zip(joined.train.rows.tolist(), joined.train.labels.tolist(), strict=True))
    assert labels == dict(zip(images.rows.tolist(), images.labels.tolist(), strict=True))


def test_images_that_do_not_decode_are_skipped_and_named_where_asked(
    image_folder: Path, broken_png: Callable[[Path], None], tmp_path: Path
) -> None:
    data = dc.read(image_folder)
    broken_png(image_folder / "class0" / "0.png")
    warned: list[str] = []

    class Hears(NullDisplay):
        def warn(self, message: str) -> None:
            warned.append(message)

    config = replace(
        WITHOUT, train=replace(TRAIN, epochs=1, batch_size=8), data=replace(WITHOUT.data, on_bad_image="skip")
    )
    dc.run(data, tmp_path / "run", config, display=Hears())
    warned = [message for message in warned if "learners are one" not in message]
    assert len(warned) == 1
    assert "class0/0.png" in warned[0]
    line = lines_of(tmp_path / "run")[0]
    assert sum(line["sizes"]) + line["left_out"] == len(data.train) - 1


def test_init_goes_on_from_a_model_on_other_classes(
    straight: Path, few: Benchmark, tmp_path: Path, demo: Benchmark
) -> None:
    new = demo.train.of_classes(demo.train.classes[30:50])
    other = Benchmark("other", new, few.query, few.query)
    frozen = replace(WITHOUT, train=replace(TRAIN, epochs=1, lr=0.0, head_lr=0.0))
    model = dc.run(other, tmp_path / "run", frozen, init=straight / "model")
    begun = with_embedding(dc.EmbeddingModel.load(straight), "head")
    for name, value in begun.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_data_without_train_images_is_refused(few: Benchmark, tmp_path: Path) -> None:
    nothing = Benchmark("test only", few.train.subset(np.empty(0, np.int64)), few.query, few.query)
    with pytest.raises(DataError, match="no train images; it can be evaluated on"):
        dc.run(nothing, tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_too_few_classes_for_validation_say_what_to_do(few: Benchmark, tmp_path: Path) -> None:
    three = few.train.of_classes(few.train.classes[:3])
    with pytest.raises(DataError, match=r"`validation=False`"):
        dc.run(Benchmark("three", three, few.query, few.query), tmp_path / "run", CONFIG)


def short() -> dc.RunConfig:
    train = replace(TRAIN, epochs=2, batch_size=8, redivide_every=1, finetune_epoch=2)
    return replace(WITHOUT, train=train)


def test_an_image_that_is_gone_is_named_and_what_was_trained_is_kept(image_folder: Path, tmp_path: Path) -> None:
    data, out = dc.read(image_folder), tmp_path / "run"
    config = short()
    dc.run(data, tmp_path / "whole", config)
    gone = Path(data.train.where(3))
    content = gone.read_bytes()

    class Deletes(NullDisplay):
        def progress(self, progress: object) -> None:
            if (progress.epoch, progress.stage) == (1, "divide"):  # type: ignore[attr-defined]
                gone.unlink(missing_ok=True)

    with pytest.raises(ImageError, match=gone.name):
        dc.run(data, out, config, display=Deletes())
    assert not (out / "divcon.lock").exists()
    with pytest.raises(ImageError, match=gone.name):
        dc.run(data, out, config, resume=True)
    gone.write_bytes(content)
    dc.run(data, out, config, resume=True)
    assert timeless(lines_of(out)) == timeless(lines_of(tmp_path / "whole"))


def test_an_image_that_became_another_one_is_noticed_by_a_resume(image_folder: Path, tmp_path: Path) -> None:
    data, out = dc.read(image_folder), tmp_path / "run"
    config = short()
    with pytest.raises(KeyboardInterrupt):
        dc.run(data, out, config, display=Stop(1))
    paths = [Path(data.train.where(i)) for i in (3, 11)]
    paths[0].write_bytes(paths[1].read_bytes())
    dc.run(data, out, config, resume=True)
    warnings = lines_of(out)[1]["warnings"]
    assert [
        w for w in warnings if "the files of 1 training images have changed since the stop" in w and paths[0].name in w
    ]
    assert not any("when the training began" in w for w in warnings)


def test_images_that_became_others_while_it_trained_are_reported_in_the_end(image_folder: Path, tmp_path: Path) -> None:
    data, out = dc.read(image_folder), tmp_path / "run"
    paths = [Path(data.train.where(i)) for i in (3, 11, 5)]

    def replace(model: object, epoch: object) -> dict[str, object]:
        paths[0].write_bytes(paths[1].read_bytes())
        paths[2].write_bytes(paths[1].read_bytes())
        return {}

    dc.run(data, out, short(), observe=replace)
    warned = ["the files of 2 training images have changed since training began" in str(line) for line in lines_of(out)]
    assert warned == [*[False] * (len(warned) - 1), True]
    assert paths[0].name in str(lines_of(out)[-1]["warnings"])


def test_a_line_that_is_damaged_in_the_middle_is_reported_and_none_is_dropped(straight: Path, tmp_path: Path) -> None:
    shutil.copytree(straight, tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    whole = file.read_bytes()
    second = whole.index(b"\n") + 1
    for wrong in (b"\xff", b"}", b"["):
        file.write_bytes(whole[:second] + wrong + whole[second + 1 :])
        with pytest.raises(RunError, match=r"metrics.jsonl: line 2 is damaged .*; correct or delete it"):
            lines_of(tmp_path / "run")
    file.write_bytes(whole + b'{"epoch": 3, "loss"')
    assert lines_of(tmp_path / "run") == lines_of(straight)


def test_a_run_that_goes_on_elsewhere_says_that_it_is_not_the_same(few: Benchmark, tmp_path: Path) -> None:
    out, warnings = tmp_path / "run", []

    class Hears(NullDisplay):
        def warn(self, message: str) -> None:
            warnings.append(message)

    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=Stop(2))
    record = json.loads((out / "config.json").read_text())
    record["versions"]["torch"] = "1.0"
    record["machine"] = "an abacus"
    (out / "config.json").write_text(json.dumps(record))
    dc.run(few, out, CONFIG, resume=True, display=Hears())
    (message,) = [warning for warning in warnings if "of this machine" in warning or "torch" in warning]
    assert message.startswith("the run goes on, but not bit for bit as it began: torch 1.0 then, 2")
    assert "an abacus then, " in message
    assert "on cuda two runs with the same seed" in not_repeatable("cuda", None)[0]
    assert not_repeatable("cpu", None) == []


def test_a_run_records_its_threads_and_says_where_another_number_goes_on(few: Benchmark, tmp_path: Path) -> None:
    class Hears(Stop):
        def __init__(self, epoch: int) -> None:
            super().__init__(epoch)
            self.warnings: list[str] = []

        def warn(self, message: str) -> None:
            self.warnings.append(message)

    def threads(number: int | None, stop: int, **options: object) -> tuple[list[int], list[str]]:
        used: list[int] = []
        display = Hears(stop)
        config = replace(CONFIG, train=replace(TRAIN, num_threads=number))
        observe = lambda model, epoch: used.append(torch.get_num_threads()) or {}  # noqa: E731
        with suppress(KeyboardInterrupt):
            dc.run(few, tmp_path / "run", config, display=display, observe=observe, report=False, **options)
        return used, [text for text in display.warnings if "bit for bit" in text]

    before = torch.get_num_threads()
    assert threads(before + 2, 1) == ([before + 2], [])
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["train"]["num_threads"] == before + 2
    assert record["machine"].endswith(f", {before + 2} threads")
    assert threads(before + 2, 2, resume=True) == ([before + 2], [])
    used, (message,) = threads(before + 1, 9, resume=True)
    assert used == [before + 1]
    assert f"{before + 2} threads then, " in message and message.endswith(f"{before + 1} threads now")
    assert torch.get_num_threads() == before


def test_a_run_from_before_threads_were_a_setting_is_resumed(few: Benchmark, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        dc.run(few, out, CONFIG, display=Stop(1))
    record = json.loads((out / "config.json").read_text())
    del record["train"]["num_threads"]
    (out / "config.json").write_text(json.dumps(record))
    dc.run(few, out, CONFIG, resume=True)
    assert len(lines_of(out)) == 3
    with pytest.raises(ConfigError, match="`num_threads` 0: must be at least 1"):
        replace(TRAIN, num_threads=0)
