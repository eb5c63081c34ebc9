"""An index by a pretrained backbone: where it is, what it holds, and what training would need."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import divcon as dc
from divcon.errors import ConfigError, StoreError, WeightsError
from divcon.models.backbone import create_backbone
from divcon.search.untrained import Untrained, default_folder, is_backbone, place_of, training_of


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of weights of test_resnet, whose own would have to be downloaded."""
    torch.manual_seed(0)
    save_file(create_backbone("test_resnet", pretrained=False)[0].state_dict(), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_backbone_indexes_photos_and_the_index_finds_its_model_again(image_folder: Path, weights: Path) -> None:
    small: Any = {"image_size": 32, "weights": weights}
    with dc.Index.build("test_resnet", image_folder, **small) as index:
        assert index.uri == str(image_folder.with_name("photos.divcon") / "index")
        assert len(index) == 40
    images = sorted(image_folder.rglob("*.png"))
    backbone = dc.EmbeddingModel("test_resnet", 1, weights=weights, image_size=32)
    features = backbone.features(images)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    with dc.Index.open(image_folder.with_name("photos.divcon")) as index:
        query = images[7].read_bytes()  # bytes are embedded, a path would be looked up
        hits = index.search(query, 5)
        expected = unit @ unit[7]
        assert hits[0].path == str(images[7])
        assert [hit.score for hit in hits] == pytest.approx(sorted(expected, reverse=True)[:5], abs=1e-5)
        assert index.about.dims == backbone.num_features

    (image_folder / "new.png").write_bytes(images[0].read_bytes())
    with dc.Index.build("test_resnet", image_folder, image_size=32) as index:  # the weights are those in the folder
        assert len(index) == 41
        assert index.item(image_folder / "new.png").label is None
    with dc.Index.build("test_resnet", image_folder) as index:
        assert len(index) == 41
    wrong: list[dict[str, Any]] = [{"image_size": 64}, {"fit": "pad"}, {"weights": image_folder / "other.pth"}]
    for options in wrong:
        with pytest.raises(ConfigError, match=rf"`{next(iter(options))}` .*has an index with another"):
            dc.Index.build("test_resnet", image_folder, **options)
    with pytest.raises(ConfigError, match=r"`backbone` test_vit: .*photos\.divcon has an index with another \(test_r"):
        dc.Index.build("test_vit", image_folder)


def test_what_is_no_backbone(tiny_model: Callable[..., dc.EmbeddingModel], image_folder: Path, tmp_path: Path) -> None:
    assert is_backbone("resnet50") and is_backbone("resnet50.tv_in1k") and is_backbone("mine:Net")
    assert not is_backbone("runs/resnet50") and not is_backbone(Path("resnet50")) and not is_backbone("rsnet50")
    tiny_model().save(tmp_path / "run" / "model")
    with pytest.raises(ConfigError, match=r"`fit` pad: is of a backbone, and the model has its own"):
        dc.Index.build(tmp_path / "run", image_folder, fit="pad")
    with pytest.raises(ConfigError, match="has a trained model, which needs no `backbone`"):
        dc.Index.build("test_resnet", image_folder, tmp_path / "run")
    dc.Index.build(tiny_model(), image_folder, tmp_path / "store")
    with pytest.raises(StoreError, match="has an index of another model"):
        dc.Index.build("test_resnet", image_folder, tmp_path / "store")
    with pytest.raises(WeightsError, match="could not be downloaded"):
        dc.Index.build("test_resnet", image_folder, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_vectors_are_indexed_as_they_are(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    rows = {"embedding": list(vectors), "label": [f"c{i // 2}" for i in range(12)]}
    pq.write_table(pa.table(rows), tmp_path / "v.parquet")
    with dc.Index.build("none", tmp_path / "v.parquet") as index:
        assert index.uri == str(tmp_path / "v.parquet.divcon" / "index")
        scores = {hit.path: hit.score for hit in index.search(vectors[3], 12)}
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for row, score in enumerate(unit @ unit[3]):
            assert scores[f"{tmp_path / 'v.parquet'} row {row}"] == pytest.approx(score, abs=1e-5)
        training = training_of(index)
        assert training is not None
        assert "by the vectors as they are" in training
        assert training.endswith(f"To train: divcon train {tmp_path / 'v.parquet'} --out runs/v")


def test_where_the_index_is(tmp_path: Path) -> None:
    photos = tmp_path / "my photos"
    photos.mkdir()
    (photos / "a.jpg").touch()
    beside = tmp_path / "my photos.divcon"
    assert default_folder([photos]) == default_folder([photos / "a.jpg"]) == default_folder([f"{photos}/"]) == beside
    assert default_folder([tmp_path / "t.csv", photos]) == tmp_path / "t.csv.divcon"
    assert place_of(None, [photos]) == (beside, beside / "index")
    assert place_of(tmp_path / "x", [photos]) == (tmp_path / "x", tmp_path / "x" / "index")
    for elsewhere in ("postgresql://me@localhost/shop", "my_stores:Sqlite?path=a.db"):
        assert place_of(elsewhere, [photos]) == (beside, elsewhere)
    with pytest.raises(ConfigError, match="pass `store`"):
        default_folder(["/"])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "untrained.json").write_text("[")
    with pytest.raises(StoreError, match="damaged"):
        Untrained.read(tmp_path / "bad")
    assert Untrained.read(tmp_path) is None


def test_what_training_needs(
    image_folder: Path, weights: Path, tmp_path: Path, tiny_model: Callable[..., dc.EmbeddingModel]
) -> None:
    def said(data: object, store: str) -> str | None:
        with dc.Index.build("test_resnet", data, tmp_path / store, image_size=32, weights=weights) as index:
            return training_of(index)

    options = f"--backbone test_resnet --weights {weights} --out runs"
    text = said(image_folder, "labels")
    assert text is not None and "these have them: 8 classes of 2 or more images, by their folders. To train" in text
    command = f"divcon train {image_folder} {options}/photos"
    assert text.endswith(f"To train: {command}")
    assert len(dc.read(image_folder).train)  # the command reads it

    images = sorted(map(str, image_folder.rglob("*.png")))
    text = said(images, "none")
    assert text is not None and "To train, label at least 6 classes of 2 images each (on the page: Label items" in text
    assert text.endswith(f"then: divcon train labels.csv {options}/0")
    few = [image_folder / name for name in ("class0", "class1")]
    table = tmp_path / "few.csv"
    table.write_text("path,label\n" + "".join(f"{path},{path.parent.name}\n" for f in few for path in f.glob("*.png")))
    text = said(table, "few")
    assert text is not None and "(there are 2; on the page: " in text
    text = said(dc.read(image_folder).query, "memory")  # a set, which no command can read
    assert text is not None and "divcon train labels.csv" in text

    tiny_model().save(tmp_path / "run" / "model")
    with dc.Index.build(tmp_path / "run", image_folder) as index:
        assert training_of(index) is None
    record = json.loads((tmp_path / "labels" / "untrained.json").read_text())
    assert record["data"] == [str(image_folder)]
