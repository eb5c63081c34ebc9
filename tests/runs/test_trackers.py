"""Callbacks and trackers of a run; the trackers are real, and what they wrote is read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import divcon as dc
from divcon.errors import ConfigError, Stopped
from divcon.runs.callbacks import Callback
from divcon.runs.trackers import Tracker, flat, scalars

pytestmark = pytest.mark.heavy


@pytest.fixture
def data(image_folder: Path) -> dc.Benchmark:
    return dc.read(image_folder)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything stays below the test's folder, without a network."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def config(epochs: int = 3) -> dc.RunConfig:
    model = dc.ModelConfig(backbone="test_resnet", pretrained=False, embedding_dim=8, num_learners=2, image_size=32)
    train = dc.TrainConfig(epochs=epochs, batch_size=8, images_per_class=2, workers=0, redivide_every=1)
    return dc.RunConfig(model, train, dc.DataConfig(validation_fraction=0.4))


class Record(Callback):
    """What was called, in order."""

    def __init__(self, stop_at: int | None = None, error: BaseException | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.stop_at, self.error = stop_at, error

    def on_start(self, run: Path, config: Any, data: Any, lines: Any) -> None:
        self.calls.append(("start", (run.name, config.train.epochs, data.validation is not None, len(lines))))

    def on_division(self, epoch: int, division: dc.Division) -> None:
        self.calls.append(("division", (epoch, division.num_learners)))

    def on_epoch(self, line: dict[str, Any], model: dc.EmbeddingModel) -> None:
        self.calls.append(("epoch", (line["epoch"], line["kept"], model.training)))
        if line["epoch"] == self.stop_at:
            assert self.error is not None
            raise self.error

    def on_baselines(self, scores: dict[str, Any]) -> None:
        self.calls.append(("baselines", "pretrained_features" in scores["baselines"]))

    def on_end(self, model: dc.EmbeddingModel, kept_epoch: int | None) -> None:
        self.calls.append(("end", (model.training, kept_epoch)))

    def on_stop(self, error: BaseException) -> None:
        self.calls.append(("stop", type(error)))


def test_a_callback_is_called_in_order_and_once(data: dc.Benchmark, tmp_path: Path) -> None:
    record = Record()
    dc.run(data, tmp_path / "run", config(), callbacks=[record])
    kept = next(line["epoch"] for line in read_lines(tmp_path / "run")[::-1] if line["kept"])
    names = [name for name, _ in record.calls]
    assert names[0] == "start"
    assert record.calls[0][1] == ("run", 3, True, 0)
    assert next(call for call in record.calls if call[0] == "division") == ("division", (0, 2))
    epochs = [value for name, value in record.calls if name == "epoch"]
    assert [value[0] for value in epochs] == [0, 1, 2]
    assert not any(value[2] for value in epochs)  # the model is in evaluation mode
    assert names[-2:] == ["baselines", "end"]
    assert record.calls[-1][1] == (False, kept)
    assert "stop" not in names


@pytest.mark.parametrize(("error", "raised"), [(Stopped("stopped", 15), Stopped), (KeyError("mine"), KeyError)])
def test_an_error_of_a_callback_ends_the_run_which_resumes(
    data: dc.Benchmark, tmp_path: Path, error: BaseException, raised: type[BaseException]
) -> None:
    first, second = Record(1, error), Record()
    with pytest.raises(raised):
        dc.run(data, tmp_path / "run", config(), callbacks=[first])
    assert first.calls[-1] == ("stop", raised)
    dc.run(data, tmp_path / "run", config(), resume=True, callbacks=[second])
    done = second.calls[0][1][3]
    assert done in (1, 2)
    assert [value[0] for name, value in second.calls if name == "epoch"] == list(range(done, 3))


def test_trackers_have_what_the_run_has(data: dc.Benchmark, tmp_path: Path) -> None:
    """All at once, over a stop and a resume, which goes on by itself in the same records."""
    from mlflow import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, names = tmp_path / "runs" / "photos", ["tensorboard", "wandb", "mlflow"]
    with pytest.raises(Stopped):
        dc.run(data, run, config(), callbacks=[*names, Record(1, Stopped("stopped", 15))])
    known = json.loads((run / "trackers.json").read_text())
    client = MlflowClient()
    assert list(known) == names
    assert client.get_run(known["mlflow"]).info.status == "KILLED"
    dc.run(data, run, config(), resume=True)
    lines = read_lines(run)
    assert json.loads((run / "trackers.json").read_text()) == known

    expected = {line["epoch"]: scalars(line) for line in lines}
    assert {"train/loss", "validation/recall_at_1"} <= set(expected[2])
    assert "division/images_of_learner_1" in expected[0]

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    for name in ("train/loss", "validation/map_at_r"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged == {epoch: pytest.approx(values[name], rel=1e-5) for epoch, values in expected.items()}
    shown = {"division/flow", "division/learners", "validation/queries"}
    assert set(events.Tags()["images"]) == shown
    assert b"train.batch_size | 8" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]

    record = client.get_run(known["mlflow"])
    assert (record.info.status, record.info.run_name) == ("FINISHED", "runs/photos")
    assert record.data.params["train.batch_size"] == "8"
    assert record.data.params["split_hash"] == data.split_hash
    history = client.get_metric_history(known["mlflow"], "train/loss")
    assert {metric.step: metric.value for metric in history} == {e: v["train/loss"] for e, v in expected.items()}
    assert record.data.metrics["kept/epoch"] == max(line["epoch"] for line in lines if line["kept"])
    scores = json.loads((run / "baselines.json").read_text())
    assert record.data.metrics["kept/recall_at_1"] == scores["recall_at_1"]
    pooled = scores["baselines"]["pooled_features"]
    assert record.data.metrics["pooled_features/map_at_r"] == pooled["map_at_r"]
    pictures = {
        item.path for folder in ("division", "validation") for item in client.list_artifacts(known["mlflow"], folder)
    }
    assert pictures == {f"{name}.png" for name in shown}

    offline = sorted((run / "wandb").glob(f"offline-run-*-{known['wandb']}"))
    assert len(offline) == 2  # the first part, and the resumed one, of one run


def test_trackio_has_what_the_run_has(data: dc.Benchmark, tmp_path: Path) -> None:
    """It is not installed with the others, as it keeps Pillow below 13: pip install trackio."""
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run = tmp_path / "runs" / "photos"
    with pytest.raises(Stopped):
        dc.run(data, run, config(), callbacks=["trackio", Record(1, Stopped("stopped", 15))])
    dc.run(data, run, config(), resume=True)
    logs = SQLiteStorage.get_logs("divcon", json.loads((run / "trackers.json").read_text())["trackio"])
    logged = {log["step"]: log["train/loss"] for log in logs if "train/loss" in log}
    assert logged == {line["epoch"]: pytest.approx(line["loss"]) for line in read_lines(run)}


class Fails(Tracker):
    """Breaks in the middle."""

    name = "fails"

    def open(self, run: Path, settings: dict[str, Any], identity: str | None, epochs_done: int) -> str | None:
        return "mine"

    def log(self, values: Any, epoch: int) -> None:
        raise ConnectionError("no route to host\nand much more")

    def image(self, name: str, image: Image.Image, epoch: int) -> None:
        raise AssertionError("was called after it had failed")

    def close(self, status: str) -> None:
        raise ConnectionError("no route to host")


def test_a_tracker_that_fails_is_one_warning(data: dc.Benchmark, tmp_path: Path) -> None:
    warned: list[str] = []

    class Listen(Callback):
        def on_warning(self, message: str) -> None:
            warned.append(message)

    dc.run(data, tmp_path / "run", config(2), callbacks=[Fails(), Listen()])
    about = [message for message in warned if "tracker" in message]
    assert about == ["the tracker fails failed (no route to host); the run goes on without it"]
    assert len(read_lines(tmp_path / "run")) == 2


def test_what_is_no_tracker_is_refused_before_anything_is_trained(
    data: dc.Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'; did you mean 'tensorboard'\?"):
        dc.run(data, tmp_path / "run", config(), callbacks=["tensorbord"])
    with pytest.raises(ConfigError, match="neither the name of a tracker"):
        dc.run(data, tmp_path / "run", config(), callbacks=[print])  # type: ignore[list-item]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs the package mlflow: pip install "divcon\[mlflow\]"'):
        dc.run(data, tmp_path / "run", config(), callbacks=["mlflow"])
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://place")
    with pytest.raises(ConfigError, match="the tracker mlflow cannot begin"):
        dc.run(data, tmp_path / "run", config(), callbacks=["mlflow"])
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not read_lines(tmp_path / "run")


def test_the_command_passes_them_on(command: Any, image_folder: Path, tmp_path: Path) -> None:
    options = ["--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--epochs", 1, "--workers", 0, "--dim", 8]
    out = tmp_path / "run"
    code, _, err = command("train", image_folder, "--out", out, *options, "--tracker", "tensorboard,mlflow")
    assert code == 0, err
    assert list(json.loads((out / "trackers.json").read_text())) == ["tensorboard", "mlflow"]
    code, _, err = command("train", image_folder, "--out", tmp_path / "other", *options, "--tracker", "tensorbord")
    assert code == 2
    assert "unknown tracker 'tensorbord'" in err


def test_settings_are_flat_and_numbers_are_finite() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
    line = {
        "loss": 0.5,
        "lr": float("nan"),
        "seconds_training": 2.0,
        "sizes": [3, 4],
        "learner_similarity": 0.25,
        "observed": {"x": 1, "y": "no"},
    }
    assert scalars(line) == {
        "train/loss": 0.5,
        "seconds/training": 2.0,
        "division/images_of_learner_0": 3.0,
        "division/images_of_learner_1": 4.0,
        "division/similarity_of_learners": 0.25,
        "observed/x": 1.0,
    }


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
