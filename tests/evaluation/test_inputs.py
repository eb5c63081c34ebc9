"""What `divcon.evaluate` and the other functions of a model take: the model or its folder, and labelled data of any
kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.errors import ConfigError, DataError, WeightsError


@pytest.fixture
def model(tiny_model: Callable[..., dc.EmbeddingModel]) -> dc.EmbeddingModel:
    return tiny_model()


def test_a_folder_a_table_and_a_name(model: dc.EmbeddingModel, image_folder: Path, tmp_path: Path) -> None:
    data = dc.read(image_folder)
    scores = dc.evaluate(model, data, clustering=False)
    assert dc.evaluate(model, str(image_folder), clustering=False) == scores
    model.save(tmp_path / "model")
    assert dc.evaluate(str(tmp_path / "model"), image_folder, clustering=False) == scores
    table = tmp_path / "data.csv"
    rows = [f"{image_folder / data.query.path(i)},{data.query.label_name(i)},test" for i in range(len(data.query))]
    table.write_text("\n".join(["path,label,split", *rows]))
    of_table = dc.evaluate(model, table, clustering=False)
    assert of_table["recall_at_1"] == scores["recall_at_1"]
    assert of_table["num_queries"] == scores["num_queries"]


def test_vectors_and_labels() -> None:
    torch.manual_seed(0)
    model = dc.EmbeddingModel("none", 8, 2, vector_dim=6, pretrained=False)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 40)
    vectors = (rng.standard_normal((5, 6))[labels] + rng.standard_normal((40, 6))).astype(np.float32)
    expected = dc.retrieval_metrics(model.encode(vectors), labels)
    for x in (vectors, torch.from_numpy(vectors)):
        result = dc.evaluate(model, (x, labels), clustering=False)
        assert result["recall_at_1"] == expected["recall_at_1"]
    with pytest.raises(DataError, match="40 vectors need as many labels, and there are 3"):
        dc.evaluate(model, (vectors, labels[:3]))


@pytest.mark.parametrize(
    ("data", "message"),
    [("no/such/folder", "no such file or folder"), (None, "NoneType"), (3, "int")],
)
def test_what_is_no_data_is_refused(model: dc.EmbeddingModel, data: object, message: str, tmp_path: Path) -> None:
    for call in (
        lambda: dc.evaluate(model, data),  # type: ignore[arg-type]
        lambda: dc.prune(model, data, 4),  # type: ignore[arg-type]
        lambda: dc.run(data, tmp_path / "run"),  # type: ignore[arg-type]
        lambda: dc.ablate(data, tmp_path / "ablation"),  # type: ignore[arg-type]
        lambda: dc.reproduce(data, "cvpr2019", tmp_path / "reproduced"),  # type: ignore[arg-type]
    ):
        with pytest.raises(DataError, match=message):
            call()


def test_what_is_no_model_is_refused(image_folder: Path, tmp_path: Path) -> None:
    for model, error, message in (
        (tmp_path / "none", WeightsError, "none"),
        (torch.nn.Linear(2, 2), ConfigError, "`model`.* Linear.* pass a divcon.EmbeddingModel"),
    ):
        for call in (
            lambda: dc.evaluate(model, image_folder),  # noqa: B023
            lambda: dc.prune(model, image_folder, 4),  # noqa: B023
            lambda: dc.export(model, tmp_path / "model.pt2", "torch"),  # noqa: B023
            lambda: dc.Index.build(model, image_folder, tmp_path / "index"),  # noqa: B023
        ):
            with pytest.raises(error, match=message):
                call()


@pytest.mark.heavy
def test_from_paths_alone(image_folder: Path, tmp_path: Path) -> None:
    """A run, its report, its scores, a smaller model and an export, without `read` or `load`."""
    settings = dc.RunConfig(
        dc.ModelConfig(backbone="test_resnet", pretrained=False, image_size=32, embedding_dim=8, num_learners=2),
        dc.TrainConfig(epochs=1, batch_size=8, workers=0, device="cpu"),
    )
    run = str(tmp_path / "run")
    dc.run(str(image_folder), run, settings)
    scores = dc.evaluate(run, str(image_folder), clustering=False)
    assert 0 <= scores["recall_at_1"] <= 1
    assert dc.report(run) == tmp_path / "run" / "report.html"  # the run knows its data
    assert "has no pictures" not in (tmp_path / "run" / "report.html").read_text()
    dc.report(run, str(image_folder))
    assert dc.prune(run, str(image_folder), 4).embedding_dim == 4
    dc.export(run, str(tmp_path / "model.pt2"), "torch")
    resumed = dc.run(str(image_folder), run, settings, resume=True)
    assert resumed.embedding_dim == 8
