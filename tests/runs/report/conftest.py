"""Runs to report, and a report taken apart by a parser that does not know the code that wrote it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.runs.folder import RunFolder

HOSTILE = '<script>alert(1)</script> & "it\'s" '
VOID = {"img", "meta"}


@dataclass
class Node:
    """An element of a page."""

    name: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def all(self, name: str | None = None, **attributes: str) -> list[Node]:
        """The elements below, in order; with ``class_``, those that have it among their classes."""
        nodes = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
                kept = all(value in child.attributes.get(key, "").split(" ") for key, value in wanted.items())
                nodes += [child] if (name in (None, child.name)) and kept else []
                nodes += child.all(name, **attributes)
        return nodes

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def numbers(self) -> list[float]:
        """The values of the numbers below, with all their digits."""
        return [float(node.attributes["value"]) for node in self.all("data")]

    def section(self, anchor: str) -> Node:
        (section,) = [node for node in self.all("section") if node.attributes["id"] == anchor]
        return section

    def rows(self, caption: str) -> list[list[Node]]:
        """The cells of the rows of a table's body."""
        (table,) = [node for node in self.all("table") if node.all("caption")[0].text == caption]
        return [[cell for cell in row.children if isinstance(cell, Node)] for row in table.all("tbody")[0].all("tr")]


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].name == tag, f"</{tag}> closes <{self.open[-1].name}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parsed(path: Path) -> Node:
    """The page in a file; an element that is not closed where it should be is an error."""
    parser = _Parser()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert len(parser.open) == 1
    return parser.open[0]


@pytest.fixture(scope="session")
def parse() -> Callable[[Path], Node]:
    return parsed


@pytest.fixture(scope="session")
def hostile() -> str:
    """What is before the name of every class and in the path of every image that is trained on."""
    return HOSTILE


@pytest.fixture(scope="session")
def report_data(few: Benchmark) -> Benchmark:
    """Real images of 24 train classes whose names and paths are HTML."""
    names = tuple(f"{HOSTILE}{name}" for name in few.train.label_names)
    paths = pa.array([f"{HOSTILE}{few.train.path(i)}" for i in range(len(few.train))])
    return replace(few, train=replace(few.train, label_names=names, paths=paths))


REPORT_CONFIG = dc.RunConfig(
    dc.ModelConfig(
        method="masks", num_learners=3, embedding_dim=18, backbone="test_resnet", pretrained=False, image_size=32
    ),
    dc.TrainConfig(epochs=5, batch_size=16, images_per_class=2, workers=0, joint_epoch=3, finetune_epoch=4),
    dc.DataConfig(validation_fraction=0.3),
)


@pytest.fixture(scope="session")
def report_run(report_data: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three learners, divided at epochs 0 and 2, together at 4; with validation classes."""
    out = tmp_path_factory.mktemp("reported") / "the <b>run"
    dc.run(report_data, out, REPORT_CONFIG)
    return out


@pytest.fixture(scope="session")
def long_run(report_data: Benchmark, few: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four learners whose metrics were lengthened to 60 epochs, divided every second one, with warnings in
    each and pretrained features in its scores, and evaluated on the test classes."""
    out = tmp_path_factory.mktemp("long") / "run"
    train = replace(REPORT_CONFIG.train, epochs=3, joint_epoch=None, finetune_epoch=2, redivide_every=1)
    config = replace(REPORT_CONFIG, model=replace(REPORT_CONFIG.model, num_learners=4, embedding_dim=16), train=train)
    dc.run(report_data, out, config)
    record = json.loads((out / "config.json").read_text())
    record["train"] |= {"epochs": 60, "finetune_epoch": 40, "redivide_every": 2}
    (out / "config.json").write_text(json.dumps(record))
    first, second, last = RunFolder(out).lines()
    rng = np.random.default_rng(0)
    with (out / "metrics.jsonl").open("w") as file:
        for epoch in range(60):
            line = last if epoch >= 40 else (first, second)[epoch // 2 % 2]
            like = RunFolder(out).division(line["epoch"])
            line = {**line, "epoch": epoch, "redivided": epoch in range(0, 41, 2), "kept": epoch == 59}
            if line["learner_loss"]:
                line["learner_loss"] = rng.uniform(0.1, 0.3, len(line["learner_loss"])).tolist()
            file.write(json.dumps(line) + "\n")
            if line["redivided"] and epoch > 2:
                shutil.copy(like, RunFolder(out).division(epoch))
    scores = json.loads((out / "baselines.json").read_text())
    difference = {name: {"value": 0.1, "interval": [-0.1, 0.3]} for name in ("recall_at_1", "map_at_r")}
    baseline = {name: value / 2 for name, value in scores.items() if isinstance(value, float)}
    baseline |= {"of": "timm's made", "difference": difference}
    scores |= {"epoch": 59, "baselines": {**scores["baselines"], "pretrained_features": baseline}}
    (out / "baselines.json").write_text(json.dumps(scores))
    test = dc.evaluate(dc.EmbeddingModel.load(out), few, parts=True)
    dc.report(out, report_data, scores={**test, "baselines": scores["baselines"]})
    return out


@pytest.fixture(scope="session")
def report_of(report_run: Path) -> Node:
    """What training left of that run."""
    return parsed(report_run / "report.html")


@pytest.fixture(scope="session")
def vectors_data() -> Benchmark:
    """Eight vectors each of 20 train and 10 test classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), 8)
    vectors = (rng.normal(size=(30, 12))[labels] + rng.normal(size=(240, 12))).astype(np.float32)
    names = tuple(f"c{i:02}" for i in range(30))

    def of(some: np.ndarray) -> LabeledSet:
        rows = np.flatnonzero(some)
        paths = pa.array([f"sheet/{row}.png" for row in rows])
        return LabeledSet(labels[some], names, paths, rows, "made", vectors=vectors[some])

    test = of(labels >= 20)
    return Benchmark("made", of(labels < 20), test, test)


@pytest.fixture
def no_test_images(monkeypatch: pytest.MonkeyPatch, few: Benchmark) -> Iterator[None]:
    """An error for whoever opens an image of a test class."""
    tested = set(few.query.rows.tolist())
    opened = LabeledSet.open

    def refusing(images: LabeledSet, i: int, *options: Any, **more: Any) -> object:
        assert int(images.rows[i]) not in tested, "a test image was opened"
        return opened(images, i, *options, **more)

    monkeypatch.setattr(LabeledSet, "open", refusing)
    yield
