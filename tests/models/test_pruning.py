"""Fewer dimensions: the very embeddings of the parts that stay, and the best projection of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.errors import ConfigError
from divcon.models import MaskHead, keep_components, keep_learner, keep_subspaces

DIM = 12
FIXED = {"method": "masks", "head_options": {"kind": "fixed"}}


def model_of(
    num_learners: int = 4, embedding_dim: int = 10, backbone: str = "mlp", **options: Any
) -> dc.EmbeddingModel:
    torch.manual_seed(0)
    model = dc.EmbeddingModel(backbone, embedding_dim, num_learners, vector_dim=DIM, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "options",
    [{"method": "slices"}, FIXED, {"method": "masks", "head_options": {"kind": "fixed", "full": "masked"}}],
)
@pytest.mark.parametrize("learners", [[0], [3], [2, 0], [1, 2], [3, 1, 0], [0, 1, 2, 3]])
def test_kept_subspaces_are_the_parents_embedding_cut(
    vectors: np.ndarray, tmp_path: Path, options: dict[str, Any], learners: list[int]
) -> None:
    model = model_of(**options)
    small = keep_subspaces(model, learners)
    parts = [model.head.dimensions()[k] for k in sorted(learners)]
    kept = [d for part in parts for d in part]
    assert (small.embedding_dim, small.num_learners) == (len(kept), len(learners))
    assert small.config["method"] == model.config["method"]
    expected = unit(model.encode(vectors)[:, kept])
    np.testing.assert_allclose(small.encode(vectors), expected, atol=1e-6)
    for new, old in enumerate(sorted(learners)):
        theirs = model.encode(vectors, learner=old)
        if options["method"] == "masks":
            theirs = theirs[:, kept]
        np.testing.assert_allclose(small.encode(vectors, learner=new), theirs, atol=1e-6)
    small.save(tmp_path)
    again = dc.EmbeddingModel.load(tmp_path)
    assert again.head.dimensions() == small.head.dimensions()
    np.testing.assert_array_equal(again.encode(vectors), small.encode(vectors))


@pytest.mark.parametrize(
    "options",
    [{"method": "slices"}, {"method": "masks"}, {"method": "masks", "head_options": {"full": "masked"}}, FIXED],
)
def test_a_kept_learner_embeds_as_it_did(vectors: np.ndarray, options: dict[str, Any]) -> None:
    model = model_of(**options)
    for learner in range(4):
        small = keep_learner(model, learner)
        expected = model.encode(vectors, learner=learner)
        assert (small.num_learners, small.embedding_dim) == (1, expected.shape[1])
        np.testing.assert_allclose(small.encode(vectors), expected, atol=1e-6)


@pytest.mark.parametrize("grown", [1, 2])
def test_masks_of_a_hierarchy_are_kept_as_they_were_divided(vectors: np.ndarray, tmp_path: Path, grown: int) -> None:
    model = model_of(**FIXED)
    assert isinstance(model.head, MaskHead)
    model.head.start_with_one()
    assert model.head.dimensions() == [list(range(10))]
    for _ in range(grown):
        model.head.double()
    parts = model.head.dimensions()
    assert sorted(d for part in parts for d in part) == list(range(10))
    kept = [1] if grown == 1 else [1, 2]  # of 5 and 5, and of 3, 2, 3 and 2: not in the order that a new head has
    small = keep_subspaces(model, kept)
    small.save(tmp_path)
    rows = sorted(d for k in kept for d in parts[k])
    for pruned in (small, dc.EmbeddingModel.load(tmp_path)):
        np.testing.assert_allclose(pruned.encode(vectors), unit(model.encode(vectors)[:, rows]), atol=1e-6)
        assert [len(part) for part in pruned.head.dimensions()] == [len(parts[k]) for k in kept]


def test_the_parent_stays_as_it_was_and_the_backbone_goes_along(vectors: np.ndarray) -> None:
    model = model_of(method="slices")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for small in (keep_subspaces(model, [1]), keep_components(model, model.features(vectors), 3)):
        np.testing.assert_allclose(small.features(vectors), model.features(vectors))
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.zero_()
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        assert (small.training, small.freeze_batch_norm) == (False, model.freeze_batch_norm)


@pytest.mark.parametrize(
    "options",
    [
        {"num_learners": 1},
        FIXED,
        {"method": "masks"},
        {"method": "masks", "head_options": {"full": "masked"}},
    ],
)
@pytest.mark.parametrize("dims", [1, 4, 9])
def test_components_are_the_projection_that_keeps_inner_products_best(
    vectors: np.ndarray, options: dict[str, Any], dims: int
) -> None:
    model = model_of(**options)
    embeddings = model.encode(vectors).astype(np.float64)
    small = keep_components(model, model.features(vectors), dims)
    assert (small.embedding_dim, small.num_learners, small.config["method"]) == (dims, 1, "single")
    # As the singular value decomposition has it, whatever the signs.
    basis = np.linalg.svd(embeddings, full_matrices=False)[2][:dims]
    expected = unit(embeddings @ basis.T)
    embeddings = small.encode(vectors)
    np.testing.assert_allclose(embeddings @ embeddings.T, expected @ expected.T, atol=1e-4)


def test_slices_of_one_length_are_rotated_as_they_are(vectors: np.ndarray) -> None:
    model = model_of(2, 4, "none", method="slices")
    with torch.no_grad():
        # Each slice is as long for every vector, so that nothing is lost by a mean length.
        model.head.linear.weight.zero_()
        model.head.linear.bias.copy_(torch.tensor([3.0, 4.0, 0.6, 0.8]))
    small = keep_components(model, model.features(vectors), 1)
    np.testing.assert_allclose(np.abs(small.encode(vectors)), 1, atol=1e-6)
    direction = small.head.linear.bias.item()
    assert direction == pytest.approx(2**0.5, abs=1e-5)  # two slices of length one, along their own direction


def test_components_of_slices_are_near_the_embedding(vectors: np.ndarray) -> None:
    model = model_of(2, 10, "none", method="slices")
    small = keep_components(model, model.features(vectors), 9)
    cosines, theirs = (m.encode(vectors) @ m.encode(vectors).T for m in (small, model))
    assert np.corrcoef(cosines.ravel(), theirs.ravel())[0, 1] > 0.95


def test_what_cannot_be_pruned_is_refused(vectors: np.ndarray) -> None:
    masks = model_of(method="masks")
    with pytest.raises(ConfigError, match="share the dimensions"):
        keep_subspaces(masks, [0])
    for learner in (4, -1):
        with pytest.raises(ConfigError, match="learners 0 to 3"):
            keep_learner(masks, learner)
    for learners in ([], [4], [-1]):
        with pytest.raises(ConfigError, match="0 to 3"):
            keep_subspaces(model_of(method="slices"), learners)
    for dims in (0, 10, 11):
        with pytest.raises(ConfigError, match="the model has 10"):
            keep_components(masks, masks.features(vectors), dims)
