"""A trained run, an index of real images, and servers over it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.search import Index

CLASSES, EACH = 8, 5
TOKEN = "a-token-for-the-tests"


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, few: Benchmark) -> Path:
    """``items.csv`` of 8 classes with 5 images each, and the images."""
    root = tmp_path_factory.mktemp("photos")
    lines = ["path,label,split,colour,price"]
    classes = [c for c in few.train.classes if (few.train.labels == c).sum() >= EACH][:CLASSES]
    for number, label in enumerate(classes):
        for place, row in enumerate(np.flatnonzero(few.train.labels == label)[:EACH]):
            name = f"mug {number}" if number else "<b>mug</b> & 0"
            few.train.open(row).resize((48, 48)).save(root / f"{number}-{place}.png")
            split = "train" if number < 5 else "test"
            lines.append(f"{number}-{place}.png,{name},{split},{['red', 'blue'][place % 2]},{number + place / 10}")
    (root / "items.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A run on these images, of two learners and four divisions."""
    out = tmp_path_factory.mktemp("served") / "run"
    model = dc.ModelConfig(
        method="slices", num_learners=2, embedding_dim=16, backbone="test_resnet", pretrained=False, image_size=32
    )
    train = dc.TrainConfig(epochs=4, batch_size=8, images_per_class=2, redivide_every=1, workers=0)
    table = photos / "items.csv"
    config = dc.RunConfig(model, train, dc.DataConfig(validation=False))
    dc.run(dc.read(str(table)), out, config, source={"data": str(table), "root": None})
    return out


@pytest.fixture(scope="session")
def scores(run: Path, photos: Path) -> dict[str, Any]:
    """What ``divcon evaluate --json`` writes of the run."""
    return dc.evaluate(dc.EmbeddingModel.load(run), dc.read(str(photos / "items.csv")), per_query=True)


@pytest.fixture(scope="session")
def store(run: Path, photos: Path) -> Path:
    """A store of the images, where ``divcon index`` puts it."""
    with Index.create(run, run / "index") as index:
        index.update(photos / "items.csv", column_types={"price": "float"})
    return run / "index"


@pytest.fixture(scope="session")
def index(store: Path) -> Index:
    return Index.open(store)


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Index:
    """The same images by another model, which is not trained."""
    torch.manual_seed(1)
    model = dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, image_size=32)
    return Index.build(model, photos / "items.csv", tmp_path_factory.mktemp("other") / "untrained" / "index")


@dataclass
class Served:
    """A server in a thread of this process."""

    url: str
    index: Index
    token: str | None = None


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def served(index: Index, run: Path, scores: dict[str, Any]) -> Iterator[Served]:
    from divcon.serve import create_app

    with serving(create_app(index, run=run, scores=scores)) as url:
        yield Served(url, index)


@pytest.fixture
def locked(index: Index) -> Iterator[Served]:
    """One that asks for a token."""
    from divcon.serve import create_app

    with serving(create_app(index, token=TOKEN)) as url:
        yield Served(url, index, TOKEN)
