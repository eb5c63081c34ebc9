"""A run whose data and folder are on S3 is the run on this machine, to the bit; killed, another machine goes on."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import divcon as dc
from divcon.errors import OutputError, RemoteError, RunError
from divcon.runs.folder import RunFolder
from divcon.runtime import copies, lease, remote
from divcon.runtime.context import Context

CONFIG = dc.RunConfig(
    model=dc.ModelConfig(backbone="test_resnet", pretrained=False, image_size=32, embedding_dim=8, num_learners=2),
    # One thread: two processes with different numbers of them differ in the last bits.
    train=dc.TrainConfig(epochs=3, batch_size=8, images_per_class=4, workers=0, num_threads=1),
    data=dc.DataConfig(validation=False),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, demo):
    root = tmp_path_factory.mktemp("data")
    rows = []
    for label in demo.train.classes[:10]:
        name = demo.train.label_names[label]
        for number, i in enumerate(np.flatnonzero(demo.train.labels == label)[:4]):
            path = root / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(demo.train.content(int(i)))
            rows.append((f"{name}/{number}.png", name))
    with (root / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return root


@pytest.fixture(scope="module")
def here(photos, tmp_path_factory):
    """The run on this machine."""
    out = tmp_path_factory.mktemp("runs") / "here"
    dc.run(photos / "t.csv", out, CONFIG, report=False)
    return RunFolder(out)


def weights(folder):
    return (folder.model / "model.safetensors").read_bytes()


def on_another_machine(monkeypatch, tmp_path, name="cache2"):
    monkeypatch.setenv("DIVCON_CACHE_DIR", str(tmp_path / name))
    copies._known.clear()


def test_data_and_run_on_s3(s3, photos, here, tmp_path, monkeypatch):
    s3.upload(photos)
    out = f"{s3.url}/runs/x"
    two = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, workers=2))
    dc.run(f"{s3.url}/t.csv", out, two, report=False)
    there = {name.removeprefix("runs/x/") for name in s3.names() if name.startswith("runs/x/")}
    mine = {path.relative_to(here.path).as_posix() for path in here.path.rglob("*") if path.is_file()}
    assert there == mine - {"checkpoint.previous"}
    assert s3.read("runs/x/model/model.safetensors") == weights(here)
    record = RunFolder(out).read()[1]
    assert record["source"]["data"] == f"{s3.url}/t.csv" and str(tmp_path) not in s3.read("runs/x/config.json").decode()

    on_another_machine(monkeypatch, tmp_path)
    model, data = dc.EmbeddingModel.load(out), dc.read(f"{s3.url}/t.csv")
    scores = dc.evaluate(model, data)
    local = dc.evaluate(dc.EmbeddingModel.load(here.path), dc.read(photos / "t.csv"))
    assert scores == local
    assert not any(path.name == "checkpoint" for path in (tmp_path / "cache2").rglob("*"))  # it was not needed
    model.save(f"{s3.url}/copy")
    assert s3.read("copy/model.safetensors") == weights(here)
    with pytest.raises(RunError, match=rf"^{out}: holds a run already"):
        dc.run(f"{s3.url}/t.csv", out, CONFIG)

    images = dc.read(f"{s3.url}/t.csv").query
    index = dc.Index.build(model, images, tmp_path / "index")
    hit = index.search(images.file(0), k=1)[0]
    assert hit.path == images.file(0) and hit.score > 0.999
    assert index.update(f"{s3.url}/t.csv").changed == 0  # the same content has the same digest


_TRAIN = """
import sys
import divcon as dc
from tests.runs.test_at_addresses import CONFIG
dc.run(sys.argv[1], sys.argv[2], CONFIG, report=False)
"""


def test_a_killed_run_goes_on_on_another_machine(s3, photos, here, tmp_path, monkeypatch):
    s3.upload(photos)
    out = f"{s3.url}/runs/x"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", _TRAIN, f"{s3.url}/t.csv", out], env=environment)
    try:
        while process.poll() is None and "runs/x/checkpoint" not in s3.names():
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    names = s3.names()
    assert {"runs/x/config.json", "runs/x/checkpoint", "runs/x/divcon.lock"} <= set(names)

    on_another_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    done = RunFolder(out).epochs_done()
    assert done < 3
    dc.run(f"{s3.url}/t.csv", out, CONFIG, resume=True, report=False)
    assert s3.read("runs/x/model/model.safetensors") == weights(here)
    assert [line["epoch"] for line in RunFolder(out).lines() if "loss" in line] == [0, 1, 2]
    assert "runs/x/divcon.lock" not in s3.names()


def test_when_the_storage_goes_away_nothing_is_lost(s3, photos, here, monkeypatch):
    """The run stops with an error that names the address; its folder on this machine is whole, and is sent later."""
    out = f"{s3.url}/runs/x"
    put, calls = remote.put, []

    def sometimes(path, url):
        calls.append(url)
        if sum(url.endswith("/checkpoint") for url in calls) > 1:
            raise RemoteError(url, "cannot be reached")
        put(path, url)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "put", sometimes)
        with pytest.raises(OutputError, match=rf"^{out}/checkpoint: cannot be written \(cannot be reached\)"):
            dc.run(photos / "t.csv", out, CONFIG, report=False)
    copies._known.clear()
    assert RunFolder(out).epochs_done() == 2  # one more than had been sent
    dc.run(photos / "t.csv", out, CONFIG, resume=True, report=False)
    assert s3.read("runs/x/model/model.safetensors") == weights(here)


def test_images_are_read_ahead(s3, photos, monkeypatch):
    s3.upload(photos)
    images = dc.read(f"{s3.url}/t.csv").train
    alone = []
    call = remote._call
    monkeypatch.setattr(remote, "_call", lambda url, function: (alone.append(url), call(url, function))[1])
    model = dc.EmbeddingModel("test_resnet", pretrained=False, embedding_dim=8, image_size=32)
    model.encode(images, batch_size=16, context=Context(0))
    assert not alone  # each batch came in one piece
