"""Maps in files: pictures and pages, of indexes and of runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import divcon as dc
from divcon.errors import ConfigError, DataError, OutputError
from divcon.maps.colours import PALETTE, colours_of
from divcon.maps.items import MapItems
from divcon.maps.picture import snapped
from divcon.search import Index
from divcon.search.layout import index_layout


@pytest.fixture
def model(tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path) -> Path:
    tiny_model().save(tmp_path / "birds")
    return tmp_path / "birds"


@pytest.fixture
def indexed(model: Path, image_folder: Path) -> Path:
    """A model with an index of 40 images of 8 classes, two of which are gone since."""
    with Index.create(model, model / "index") as index:
        index.update(image_folder)
    for path in sorted(image_folder.rglob("*.png"))[:2]:
        path.unlink()
    return model


def page_data(path: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_an_index_as_a_picture_and_as_a_page(indexed: Path, tmp_path: Path) -> None:
    index = Index.open(indexed)
    ids, layout = index_layout(index, "tsne")
    labels = [index.item(int(i)).label for i in ids]
    assert dc.draw_map(indexed, tmp_path / "map.png", by="tsne") == tmp_path / "map.png"
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width == 1680 and picture.height > 800
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert len({tuple(bytes.fromhex(hue[1:])) for hue in PALETTE[:8]} & colours) >= 5  # borders

    dc.draw_map(indexed, tmp_path / "map.svg", by="tsne")
    svg = ElementTree.parse(tmp_path / "map.svg").getroot()
    name = "{http://www.w3.org/2000/svg}"
    images, dots = (
        list(svg.iter(f"{name}image")),
        [c for c in svg.iter(f"{name}circle") if c.find(f"{name}title") is not None],
    )
    # A point for each item without a thumbnail, and one for each of the 8 entries of the legend.
    assert 8 <= len(images) <= 38 and len(images) + len(dots) == len(ids) + 8
    assert all(image.attrib["href"].startswith("data:image/webp") for image in images)
    corners = [(float(i.attrib["x"]), float(i.attrib["y"]), float(i.attrib["width"])) for i in images]
    for a, (x, y, wide) in enumerate(corners):
        for other_x, other_y, _ in corners[a + 1 :]:
            assert abs(x - other_x) >= wide or abs(y - other_y) >= wide  # none hides another
    assert "t-SNE of 40 items" in "".join(svg.itertext())

    dc.draw_map(index, tmp_path / "map.html", by="tsne")
    data = page_data(tmp_path / "map.html")
    (panel,) = data["panels"]
    np.testing.assert_allclose(np.array([panel["x"], panel["y"]]).T, layout.xy, atol=1e-5)
    assert [data["labels"]["names"][i] for i in data["labels"]["of"]] == labels
    assert len(data["images"]) == 38 and len(data["of"]) == 40
    text = (tmp_path / "map.html").read_text()
    assert "http:" not in text and "https:" not in text and "<!-- " not in text


def test_the_images_that_a_run_is_tested_on_beside_those_of_another(
    model: Path, image_folder: Path, tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path
) -> None:
    tiny_model(seed=1).save(tmp_path / "other")
    data = dc.read(str(image_folder))
    dc.draw_map(model, tmp_path / "map.html", data, by="pca", compare=tmp_path / "other")
    panels = page_data(tmp_path / "map.html")["panels"]
    assert [panel["title"] for panel in panels] == ["birds", "other"]
    for panel, folder in zip(panels, (model, tmp_path / "other"), strict=True):
        vectors = dc.EmbeddingModel.load(folder).encode(data.gallery).astype(np.float64)
        vectors -= vectors.mean(0)
        first = vectors @ np.linalg.svd(vectors, full_matrices=False)[2][0]
        assert abs(np.corrcoef(first, panel["x"])[0, 1]) > 0.999
    dc.draw_map(model, tmp_path / "map.png", data, by="pca", compare=tmp_path / "other", images=False)
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width == 2 * 1200 + 3 * 40


def test_before_and_after_training(demo: Any, subset: Any, tmp_path: Path) -> None:
    model = dc.EmbeddingModel("tf_efficientnet_lite0", 8, 1, image_size=32)
    model.save(tmp_path / "run")
    images = subset(demo.query, 2)
    dc.draw_map(tmp_path / "run", tmp_path / "map.html", images, by="pca", compare="pretrained")
    panels = page_data(tmp_path / "map.html")["panels"]
    assert [panel["title"] for panel in panels] == ["before training", "after training"]
    assert panels[0]["x"] != panels[1]["x"]


def test_vectors_are_points(tmp_path: Path) -> None:
    labels = np.arange(16) % 4
    vectors = np.eye(4, dtype=np.float32)[labels] + np.random.default_rng(0).normal(scale=0.1, size=(16, 4))
    data = dc.read({"embedding": list(vectors.astype(np.float32)), "label": [f"c{i} <&>" for i in labels]})
    dc.EmbeddingModel(vector_dim=4, embedding_dim=3, num_learners=1).save(tmp_path / "run")
    images = data.train.joined(data.query)
    dc.draw_map(tmp_path / "run", tmp_path / "map.svg", images)
    svg = ElementTree.parse(tmp_path / "map.svg").getroot()
    assert not list(svg.iter("{http://www.w3.org/2000/svg}image"))
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}circle"))) == len(images) + images.num_classes
    with pytest.raises(DataError, match="has 2 items; a map needs at least 3"):
        dc.draw_map(tmp_path / "run", tmp_path / "map.svg", images.subset(np.arange(2)))


def test_colours_by_number_learner_and_name() -> None:
    def of(colour: str, values: list[Any]) -> Any:
        return colours_of(MapItems([None] * len(values), [""] * len(values), values, colour, None))

    prices = of("price", [1.0, 3.0, None, 2.0])
    assert prices.of[0] == "#1f6fb4" and prices.of[1] == "#c4501b" and prices.of[2] not in prices.of[:2]
    assert [words for _, words in prices.legend] == ["price 1", "price 2", "price 3"]
    learners = of("learner", [2, 0, "left out", 2, None])
    assert [learners.of[i] for i in (0, 1)] == [PALETTE[2], PALETTE[0]] and learners.of[2] == learners.of[4]
    assert [words for _, words in learners.legend] == [
        "learner 0 (1)",
        "learner 2 (2)",
        "left out (1)",
        "no learner (1)",
    ]
    many = of("label", [f"c{i}" for i in range(40)] + ["c39"])
    assert many.of[39] == PALETTE[0] and len(set(many.of)) == 30
    assert many.more == "and 26 more; colours repeat"


def test_one_item_of_a_cell_stays() -> None:
    cells = snapped(np.array([1.0, 4.0, 17.0]), np.array([1.0, 4.0, 3.0]), 10.0)
    assert cells == {1: (5.0, 5.0), 2: (15.0, 5.0)}


def test_what_cannot_be_drawn_is_refused(indexed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"end it in \.png, \.svg or \.html"):
        dc.draw_map(indexed, tmp_path / "map.jpg")
    with pytest.raises(ConfigError, match="no such column; pass one of label, learner, split"):
        dc.draw_map(indexed, tmp_path / "map.png", colour="shade")
    with pytest.raises(ConfigError, match="`colour` learner: is not known"):
        dc.draw_map(indexed, tmp_path / "map.png", colour="learner")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        dc.draw_map(indexed, tmp_path / "file" / "map.png")
    with Index.open(indexed) as index:
        index.store.delete(index.store.ids()[2:])
    with pytest.raises(DataError, match="has 2 items; a map needs at least 3"):
        dc.draw_map(indexed, tmp_path / "map.png")


def test_the_command(indexed: Path, image_folder: Path, tmp_path: Path, command: Any, monkeypatch: Any) -> None:
    code, out, _ = command("map", indexed, "--out", tmp_path / "a.svg", "--by", "pca", "--no-images")
    assert code == 0 and out == f"map in {tmp_path / 'a.svg'}\n" and "<image" not in (tmp_path / "a.svg").read_text()
    code, out, _ = command("map", indexed, image_folder, "--out", tmp_path / "b.html", "--by", "pca", "--workers", "0")
    assert code == 0 and len(page_data(tmp_path / "b.html")["of"]) < 20  # its test classes alone
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = command("map", indexed, "--out", tmp_path / "c.png", "--by", "umap")
    assert code == 2 and 'pip install "divcon[map]"' in err


def test_a_mistake_is_refused_before_pytorch_is_imported(tmp_path: Path) -> None:
    program = f"""
import sys
from divcon.cli import main
for words in (["runs/none", "--out", "map.png"], [".", "--out", "map.jpg"], [".", "--out", "{tmp_path}"]):
    try:
        main(["map", *words])
    except SystemExit as stop:
        assert stop.code == 2, stop.code
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(errors) == 3 and "is not there" in errors[0] and "end it in" in errors[1]


def test_umap_waits_for_no_lock_that_a_killed_process_may_have_kept() -> None:
    from umap import layouts

    from divcon.evaluation.layout import _umap

    def keep() -> None:
        layouts.tqdm.get_lock().acquire()

    keeper = threading.Thread(target=keep)
    keeper.start()
    keeper.join()
    placed: list[np.ndarray] = []
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    drawing = threading.Thread(target=lambda: placed.append(_umap(unit, lambda step, done: None)), daemon=True)
    drawing.start()
    drawing.join(120)
    assert placed and placed[0].shape == (40, 2)
