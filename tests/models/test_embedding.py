"""What a model embeds by: its head, its pooled features or their PCA; and heads that start as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import divcon as dc
from divcon.data.inputs import as_labeled_set
from divcon.errors import ConfigError
from divcon.models import SubspaceHead, keep_components, keep_learner, keep_subspaces, start_as_pca, with_embedding
from divcon.models.pca import Components, principal_components, sample_to_fit

DIM = 12
METHODS: list[dict[str, Any]] = [
    {"method": "slices"},
    {"method": "masks"},
    {"method": "masks", "head_options": {"kind": "fixed", "full": "masked"}},
    {"method": "single", "num_learners": 1},
]
each_method = pytest.mark.parametrize("options", METHODS, ids=["slices", "masks", "fixed masks", "single"])


def model_of(num_learners: int = 4, embedding_dim: int = 8, **options: Any) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    model = dc.EmbeddingModel("mlp", embedding_dim, num_learners, vector_dim=DIM, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    scales = np.linspace(3, 0.3, DIM)
    return (np.random.default_rng(0).normal(size=(60, DIM)) * scales + 1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def whitened(train: np.ndarray, features: np.ndarray, dims: int) -> np.ndarray:
    """By scikit-learn, whose signs differ by solver."""
    fitted = PCA(dims, whiten=True, svd_solver="full").fit(unit(train.astype(np.float64)))
    return unit(fitted.transform(unit(features.astype(np.float64))))


@each_method
def test_features_and_pca_are_what_they_say_and_learners_stay(
    options: dict[str, Any], vectors: np.ndarray, tmp_path: Path
) -> None:
    model = model_of(**options)
    pooled = model.features(vectors)
    by_features, by_pca = with_embedding(model, "features"), with_embedding(model, "pca", pooled[:40])
    assert (by_features.embedding_dim, by_pca.embedding_dim) == (DIM, 8)
    np.testing.assert_allclose(by_features.encode(vectors), unit(pooled), atol=1e-6)
    expected = whitened(pooled[:40], pooled, 8)
    np.testing.assert_allclose(np.abs(by_pca.encode(vectors)), np.abs(expected), atol=1e-4)
    np.testing.assert_allclose(by_pca.encode(vectors) @ by_pca.encode(vectors).T, expected @ expected.T, atol=1e-4)
    for changed in (by_features, by_pca):
        assert changed.num_learners == model.num_learners
        for learner in range(model.num_learners):
            np.testing.assert_array_equal(
                changed.encode(vectors, learner=learner), model.encode(vectors, learner=learner)
            )
            kept = keep_learner(changed, learner)
            np.testing.assert_allclose(kept.encode(vectors), model.encode(vectors, learner=learner), atol=1e-6)
        changed.save(tmp_path / changed.head.embedding)
        again = dc.EmbeddingModel.load(tmp_path / changed.head.embedding)
        np.testing.assert_array_equal(again.encode(vectors), changed.encode(vectors))
        assert again.config["head_options"]["of"] == model.head.config
        # And back, or to the other: what is changed is always the head that was trained.
        np.testing.assert_array_equal(with_embedding(again, "head").encode(vectors), model.encode(vectors))
        assert with_embedding(again, "head").config == model.config
        other = with_embedding(again, "features")
        assert other.config["head_options"]["of"] == model.head.config
        np.testing.assert_array_equal(other.encode(vectors), by_features.encode(vectors))


def test_a_copy_shares_nothing_unless_it_is_asked_to_and_draws_no_random_number(vectors: np.ndarray) -> None:
    model = model_of()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    copied = with_embedding(model, "pca", model.features(vectors))
    assert torch.equal(torch.rand(2), expected)
    before = model.encode(vectors)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(model.encode(vectors), before)
    assert model.with_head(model.head.as_features(), shared=True).backbone is model.backbone


def test_masks_of_a_hierarchy_that_still_grows_are_kept(vectors: np.ndarray, tmp_path: Path) -> None:
    model = model_of(method="masks")
    model.head.start_with_one()
    model.head.double()
    changed = with_embedding(model, "features")
    changed.save(tmp_path)
    assert (model.num_learners, changed.num_learners) == (2, 2)
    assert dc.EmbeddingModel.load(tmp_path).num_learners == 2


def test_a_pca_says_what_it_cannot_do(vectors: np.ndarray) -> None:
    model = model_of()
    features = model.features(vectors)
    with pytest.raises(ConfigError, match="`features`: a PCA is fitted to"):
        with_embedding(model, "pca")
    with pytest.raises(ConfigError, match=r"`embed=pca` with `embedding_dim` 8: .* at most 7 dimensions .*of 8 images"):
        with_embedding(model, "pca", features[:8])
    with pytest.raises(ConfigError, match=r"`dims` 13: a PCA has at most 12 dimensions here .*12 features"):
        with_embedding(model, "pca", features, dims=13)
    assert with_embedding(model, "pca", features, dims=12).embedding_dim == 12


def test_constant_features_are_left_at_zero(vectors: np.ndarray) -> None:
    flat = np.concatenate([vectors, np.ones((60, 3), np.float32)], axis=1)
    weight, bias = principal_components(flat, 15).whitening()
    outputs = flat @ weight.numpy().T + bias.numpy()
    assert np.isfinite(outputs).all()
    np.testing.assert_allclose(outputs[:, :DIM].std(axis=0, ddof=1), 1, atol=1e-3)
    np.testing.assert_allclose(outputs[:, DIM:], 0, atol=1e-5)


def test_components_are_the_same_by_either_solver(vectors: np.ndarray) -> None:
    few, wide = vectors[:10], principal_components(np.concatenate([vectors[:10]] * 2), 5)  # 20 > 12: the covariance
    narrow = principal_components(few, 5)  # 10 < 12: by SVD
    np.testing.assert_allclose(wide.axes, narrow.axes, atol=1e-6)


def test_pruning_and_parts_go_on_from_the_features(vectors: np.ndarray) -> None:
    model = model_of(method="slices")
    features = model.features(vectors)
    changed = with_embedding(model, "features")
    small = keep_components(changed, features, 4)
    assert (small.embedding_dim, small.config["method"]) == (4, "single")
    basis = np.linalg.svd(unit(features), full_matrices=False)[2][:4]
    expected = unit(unit(features) @ basis.T)
    np.testing.assert_allclose(small.encode(vectors) @ small.encode(vectors).T, expected @ expected.T, atol=1e-5)
    by_pca = keep_components(with_embedding(model, "pca", features), features, 4)
    assert by_pca.encode(vectors).shape == (60, 4)
    with pytest.raises(ConfigError, match="`by=subspaces`: the model embeds by the pooled features"):
        keep_subspaces(changed, [0])


@each_method
def test_a_head_that_starts_as_a_pca(options: dict[str, Any], vectors: np.ndarray) -> None:
    model = model_of(**{**options, "embedding_dim": 8})
    data = as_labeled_set((vectors, np.arange(60) % 6))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    start_as_pca(model, data, seed=1)
    assert torch.equal(torch.rand(2), expected)
    features = model.features(vectors).astype(np.float64)
    weight, bias = (value.detach().double().numpy() for value in (model.head.linear.weight, model.head.linear.bias))
    outputs = features @ weight.T + bias
    np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(weight @ weight.T, np.eye(8), atol=1e-5)  # a rotation of orthonormal axes
    components = PCA(8).fit_transform(features)
    np.testing.assert_allclose(outputs @ outputs.T, components @ components.T, atol=1e-2)
    first = weight.copy()
    start_as_pca(model, data, seed=1)
    np.testing.assert_array_equal(model.head.linear.weight.detach().numpy(), first.astype(np.float32))
    start_as_pca(model, data, seed=2)
    assert not np.allclose(model.head.linear.weight.detach().numpy(), first, atol=1e-2)


def test_a_rotation_makes_slices_vary_alike() -> None:
    dims, features = 64, 128
    variances = np.linspace(4, 0.01, dims) ** 2
    weight, _ = Components(np.zeros(features), np.eye(dims, features), variances).rotated(0)
    spread = (weight[:, :dims].double().numpy() ** 2) @ variances
    slices = spread.reshape(4, 16).sum(axis=1)
    assert slices.max() / slices.min() < 1.5
    assert variances.reshape(4, 16).sum(axis=1).max() > 20 * variances.reshape(4, 16).sum(axis=1).min()


class NoLinear(SubspaceHead):
    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.linear = torch.nn.Linear(self.num_features, self.embedding_dim, bias=False)

    def full(self, features: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.linear(features), dim=1)

    def subspace(self, features: torch.Tensor, learner: int) -> torch.Tensor:
        return self.full(features)

    def subspace_dim(self, learner: int) -> int:
        return self.embedding_dim


class OwnStart(NoLinear):
    def start_from(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        with torch.no_grad():
            self.linear.weight.copy_(weight)


def test_a_head_of_one_s_own_says_how_it_starts(vectors: np.ndarray) -> None:
    data = as_labeled_set((vectors, np.arange(60) % 6))
    with pytest.raises(ConfigError, match=r"`head_init`: the head of method .*NoLinear has no `linear`"):
        start_as_pca(model_of(method=NoLinear), data)
    model = model_of(method=OwnStart)
    start_as_pca(model, data)
    weight = model.head.linear.weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"`head_init=pca` with `embedding_dim` 16: .* at most 12"):
        start_as_pca(model_of(embedding_dim=16), data)


def test_a_pca_is_fitted_to_twenty_thousand_images_at_most() -> None:
    many = as_labeled_set((np.zeros((20_005, 1), np.float32) + 1, np.arange(20_005) % 2))
    sample = sample_to_fit(many, 0)
    assert len(sample) == 20_000
    np.testing.assert_array_equal(sample.rows, sample_to_fit(many, 0).rows)
    assert not np.array_equal(sample.rows, sample_to_fit(many, 1).rows)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["features", "pca"])
@pytest.mark.parametrize(("format", "name"), [("onnx", "m.onnx"), ("torch", "m.pt2"), ("hf", "m")])
def test_it_is_exported(kind: Any, format: Any, name: str, vectors: np.ndarray, tmp_path: Path) -> None:
    model = model_of()
    changed = with_embedding(model, kind, model.features(vectors))
    for learner in (None, 1):
        assert dc.export(changed, tmp_path / f"{learner}{name}", format, learner=learner).difference <= 1e-4
    if format == "hf":
        card = (tmp_path / "Nonem" / "README.md").read_text()
        assert "method masks" in card and "it embeds by the " in card


def test_an_index_of_it_is_searched_and_search_by_learner_says_what_to_do(vectors: np.ndarray, tmp_path: Path) -> None:
    model = with_embedding(model_of(method="slices"), "features")
    index = dc.Index.build(model, vectors, tmp_path / "index")
    cosines = model.encode(vectors) @ model.encode(vectors[3:4])[0]
    assert [hit.id for hit in index.search(vectors[3], k=5)] == np.argsort(-cosines)[:5].tolist()
    with pytest.raises(ConfigError, match=r"embeds by the pooled features.*`embed=head`.*keep_learner\(model, 1\)"):
        index.search(vectors[3], learner=1)


def test_each_learner_of_it_is_evaluated(vectors: np.ndarray) -> None:
    model = model_of(method="slices")
    changed = with_embedding(model, "features")
    labels = np.arange(60) % 6
    scores, before = (dc.evaluate(m, (vectors, labels), parts=True, clustering=False) for m in (changed, model))
    assert scores["learners"] == before["learners"]
    assert scores["map_at_r"] == pytest.approx(scores["features"]["map_at_r"])
    assert "by_size" not in scores
