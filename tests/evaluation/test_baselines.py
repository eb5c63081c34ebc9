"""What no training gives, beside the scores of a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import ConfigError
from divcon.evaluation import bootstrap_difference, clustering_metrics, learner_similarity, retrieval_metrics
from divcon.evaluation.baselines import untrained_model
from divcon.models.start import Start

Make = Callable[..., dc.EmbeddingModel]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dc.EmbeddingModel, Path, Path]:
    """A model that was trained from a file of weights, the file, and the folder of its run."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)
    before = dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32)
    torch.save(before.backbone.state_dict(), folder / "w.pth")
    model = dc.EmbeddingModel("test_resnet", 8, 2, weights=folder / "w.pth", image_size=32)
    with torch.no_grad():
        for parameter in model.backbone.parameters():  # as training would
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save(folder / "run" / "model")
    config = dc.RunConfig(
        dc.ModelConfig(
            num_learners=2, embedding_dim=8, backbone="test_resnet", image_size=32, weights=folder / "w.pth"
        ),
    )
    config.save(folder / "run" / "config.json", init=None)
    return before, folder / "w.pth", folder / "run"


def test_the_baselines_are_the_metrics_of_their_features(trained: tuple, few: Benchmark) -> None:
    before, file, run = trained
    model = dc.EmbeddingModel.load(run)
    assert model.start == Start(True, file)
    state = torch.random.get_rng_state()
    untrained_model(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    result = dc.evaluate(run, few, baselines=True, clustering=False, per_query=True, parts=True)
    labels = few.query.labels
    for name, network, of in (
        ("pooled_features", model, "this network, without its head"),
        ("pretrained_features", before, "w.pth"),
    ):
        mine = retrieval_metrics(unit(network.features(few.query)), labels, per_query=True)
        scores = result["baselines"][name]
        assert scores["of"] == of
        for metric in ("recall_at_1", "map_at_r"):
            assert scores[metric] == pytest.approx(mine[metric], abs=1e-6)
            difference = scores["difference"][metric]
            assert difference["value"] == pytest.approx(result[metric] - mine[metric], abs=1e-6)
            each = np.array(result["per_query"][metric], float)
            interval = bootstrap_difference(each, mine["per_query"][metric], labels)
            assert difference["interval"] == pytest.approx(list(interval), abs=1e-6)
    assert result["features"]["map_at_r"] == pytest.approx(result["baselines"]["pooled_features"]["map_at_r"])
    assert str(file.parent) not in json.dumps(result["baselines"])


def test_an_embedding_below_its_features_is_reported_with_what_to_do(trained: tuple, few: Benchmark) -> None:
    model = dc.EmbeddingModel.load(trained[2])
    with torch.no_grad():  # a head that forgets almost everything
        model.head.linear.weight[1:] = 0
    result = dc.evaluate(model, few, baselines=True, clustering=False)
    pooled, pretrained = result["advice"]
    assert "points of MAP@R below its own pooled features" in pooled
    assert "`embed=features`" in pooled
    assert (
        "below the pretrained features: training has not helped; try more images a class, a smaller `lr`" in pretrained
    )
    low, high = result["baselines"]["pooled_features"]["difference"]["map_at_r"]["interval"]
    assert f"[{-100 * high:.1f}, {-100 * low:.1f}]" in pooled
    assert high < 0


@pytest.mark.parametrize(
    ("start", "why"),
    [
        (Start(False), "training started from random weights"),
        (Start(False, recorded=False), "are not recorded"),
        (Start(True, Path("gone.pth")), "there is no such file of weights"),
        (Start(True, init=Path("gone")), "no model there"),
        (Start(True), "could not be downloaded|has no pretrained weights"),
    ],
)
def test_without_pretrained_weights_a_note_says_why(tiny_model: Make, few: Benchmark, start: Start, why: str) -> None:
    model = tiny_model()
    model.start = start
    result = dc.evaluate(model, few, baselines=True, clustering=False)["baselines"]
    assert set(result) == {"note", "pooled_features"}
    assert re.search(why, result["note"])


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def test_weights_of_a_backbone_of_your_own_are_not_kept(few: Benchmark) -> None:
    model = dc.EmbeddingModel(Own(), 8, image_size=32)
    result = dc.evaluate(model, few, baselines=True, clustering=False)["baselines"]
    assert "the backbone is your own" in result["note"]


def test_bundled_weights_are_the_pretrained_features(few: Benchmark) -> None:
    model = dc.EmbeddingModel("tf_efficientnet_lite0", 8, image_size=32)
    features = model.features(few.query)
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1)
    np.testing.assert_allclose(untrained_model(model).features(few.query), features, atol=1e-5)


def test_vectors_are_their_own_baseline(tiny_model: Make) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 6)
    vectors = (rng.normal(size=(10, 6))[labels] + rng.normal(size=(60, 6))).astype(np.float32)
    expected = retrieval_metrics(unit(vectors), labels)
    for backbone, names in (("none", {"pretrained_features"}), ("mlp", {"pretrained_features", "pooled_features"})):
        model = dc.EmbeddingModel(backbone, 4, vector_dim=6)
        result = dc.evaluate(model, (vectors, labels), baselines=True, clustering=False)["baselines"]
        assert set(result) == names
        assert result["pretrained_features"]["of"] == "the vectors themselves"
        assert result["pretrained_features"]["map_at_r"] == pytest.approx(expected["map_at_r"], abs=1e-6)
    names = dc.evaluate(model, (vectors, labels), baselines=["pooled_features"], clustering=False)["baselines"]
    assert set(names) == {"pooled_features"}
    with pytest.raises(ConfigError, match=r"'pooled'.*pooled_features"):
        dc.evaluate(model, (vectors, labels), baselines=["pooled"], clustering=False)


def test_a_query_and_a_gallery_are_compared_as_the_protocol_says(tiny_model: Make, few: Benchmark) -> None:
    data = replace(few, gallery=few.query.subset(np.arange(len(few.query))[::-1]))
    result = dc.evaluate(tiny_model(), data, baselines=True, clustering=False)
    assert result["baselines"]["pooled_features"]["recall_at_1"] < 1  # else each would retrieve itself


def test_learners_that_rank_alike_have_similarity_one(tiny_model: Make, few: Benchmark) -> None:
    alike, apart = tiny_model(3, method="masks"), tiny_model(4, method="slices")
    features = alike.features(few.query)
    assert learner_similarity(alike, features) == pytest.approx(1, abs=1e-3)  # all masks start at one
    assert learner_similarity(apart, features) < 0.95
    assert learner_similarity(tiny_model(1, method="single"), features) is None
    result = dc.evaluate(alike, few, clustering=False, similarity=True)
    assert result["learner_similarity"] == pytest.approx(1, abs=1e-3)


def test_the_command_shows_them_unless_it_should_not(
    trained: tuple, image_folder: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    code, printed, _ = command("evaluate", trained[2] / "model", image_folder, "--workers", 0, "--json", tmp_path / "a")
    assert code == 0
    assert "pooled features" in printed
    assert "pretrained features: w.pth" in printed
    assert set(json.loads((tmp_path / "a").read_text())["baselines"]) == {"pooled_features", "pretrained_features"}
    options = ("--workers", 0, "--no-baselines", "--json", tmp_path / "b")
    code, printed, _ = command("evaluate", trained[2] / "model", image_folder, *options)
    assert code == 0
    assert "pooled features" not in printed
    assert "baselines" not in json.loads((tmp_path / "b").read_text())


def test_clusters_of_the_baselines_too_where_all_are_asked_for() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(8), 6)
    vectors = rng.normal(size=(8, 5))[labels] + rng.normal(size=(48, 5))
    model = dc.EmbeddingModel("none", 4, vector_dim=5).eval()
    alone, both = (
        dc.evaluate(model, (vectors, labels), clustering=of, baselines=("pretrained_features",)) for of in (True, "all")
    )
    assert alone["nmi"] == both["nmi"]
    assert "nmi" not in alone["baselines"]["pretrained_features"]
    expected = clustering_metrics(unit(vectors).astype(np.float32), labels)
    assert both["baselines"]["pretrained_features"]["nmi"] == pytest.approx(expected["nmi"])
