"""Masks against loops; doubling; a kind of subspace of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import divcon as dc
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.models.heads import MaskHead, SubspaceHead


def masks_of(head: SubspaceHead, masks: torch.Tensor) -> MaskHead:
    assert isinstance(head, MaskHead)
    with torch.no_grad():
        head.masks.copy_(masks)
    return head.eval()


@given(st.integers(2, 12), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_masked_embeddings_equal_loops(dim: int, num_learners: int, masked: bool, relu: bool, seed: int) -> None:
    num_learners = min(num_learners, dim)
    generator = torch.Generator().manual_seed(seed)
    masks = torch.randn(num_learners, dim, generator=generator)
    options = {"full": "masked" if masked else "plain", "relu": relu}
    head = masks_of(create_head("masks", 5, dim, num_learners, options=options), masks)
    features = torch.randn(3, 5, generator=generator)
    plain = features.numpy() @ head.linear.weight.detach().numpy().T + head.linear.bias.detach().numpy()
    total = np.zeros(dim)
    for k in range(num_learners):
        mask = np.array([max(0.0, float(v)) if relu else float(v) for v in masks[k]])
        total += mask
        expected = plain * mask
        expected = expected / np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-12)
        np.testing.assert_allclose(head(features, learner=k).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
        assert head.subspace_dim(k) == dim
    full = plain * total if masked else plain
    full = full / np.maximum(np.linalg.norm(full, axis=1, keepdims=True), 1e-12)
    np.testing.assert_allclose(head(features).detach().numpy(), full, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 5), st.integers(5, 9), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_penalty_is_the_mean_cosine_of_all_pairs(num_learners: int, dim: int, seed: int) -> None:
    masks = torch.randn(num_learners, dim, generator=torch.Generator().manual_seed(seed))
    head = masks_of(create_head("masks", 3, dim, num_learners), masks)
    cosines = []
    for k in range(num_learners):
        for other in range(num_learners):
            if k != other:
                a, b = masks[k].clamp(min=0).numpy(), masks[other].clamp(min=0).numpy()
                cosines.append(a @ b / max(1e-12, np.linalg.norm(a) * np.linalg.norm(b)))
    assert float(head.penalty().detach()) == pytest.approx(np.mean(cosines) if cosines else 0.0, abs=1e-5)


def test_learned_masks_start_at_one_and_the_head_as_pytorch_does() -> None:
    torch.manual_seed(3)
    head = create_head("masks", 7, 6, 3)
    torch.manual_seed(3)
    linear = torch.nn.Linear(7, 6)
    assert torch.equal(head.linear.weight, linear.weight)
    assert torch.equal(head.linear.bias, linear.bias)
    assert [tuple(p.shape) for p in head.subspace_parameters()] == [(3, 6)]
    assert bool((head.subspace_parameters()[0] == 1).all())
    assert float(head.penalty().detach()) == pytest.approx(1.0)


def test_masks_without_relu_are_penalised_by_their_positive_part_and_searched_as_they_are() -> None:
    masks = torch.tensor([[1.0, -2, 3], [-1, 2, 3]])
    plain = masks_of(create_head("masks", 5, 3, 2, options={"relu": False}), masks)
    relu = masks_of(create_head("masks", 5, 3, 2), masks)
    assert torch.equal(plain.penalty(), relu.penalty())  # as in the released code
    assert torch.equal(plain.subspace_weights(0), masks[0])
    features = torch.randn(4, 5)
    weight, bias = plain.as_linear(0) or pytest.fail("it is linear")
    linear = torch.nn.functional.normalize(features.double() @ weight.T + bias, dim=1)
    torch.testing.assert_close(linear.float(), plain(features, learner=0))
    assert plain.dead_learners() == []
    assert masks_of(create_head("masks", 5, 3, 1), -torch.ones(1, 3)).dead_learners() == [0]
    # Divided by the sum of the masks where that is what the full embedding is multiplied by.
    masked = masks_of(create_head("masks", 5, 3, 2, options={"relu": False, "full": "masked"}), masks)
    again = torch.nn.functional.normalize(masked(features) * masked.subspace_weights(1), dim=1)
    total = masks.sum(dim=0)
    assert total.tolist() == [0, 0, 6]  # what is not in the full embedding cannot be searched
    assert again[:, :2].abs().max() == 0


def test_a_normal_start_is_one_draw_that_a_hierarchy_goes_on_from() -> None:
    torch.manual_seed(0)
    head = create_head("masks", 5, 4000, 4, options={"start": "normal"})
    assert isinstance(head, MaskHead)
    start = head.masks.detach()[0].clone()
    assert float(start.mean()) == pytest.approx(0.9, abs=0.05)
    assert float(start.std()) == pytest.approx(0.7, abs=0.05)
    assert (head.masks == start).all()
    head.start_with_one()
    head.double()
    assert (head.masks == start).all()
    assert head.num_learners == 2
    for options, words in (
        ({"kind": "fixed", "start": "normal"}, "`head_options.start`.*fixed masks are zeros and ones"),
        ({"kind": "fixed", "relu": False}, "`head_options.relu`.*fixed masks are zeros and ones"),
        ({"start": "norm"}, "unknown value 'norm'.*normal"),
        ({"relu": "no"}, "unknown value 'no'"),
    ):
        with pytest.raises(ConfigError, match=words):
            create_head("masks", 5, 8, 2, options=options)


def test_a_learner_s_loss_reaches_its_own_mask_and_its_dimensions_alone() -> None:
    masks = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    head = masks_of(create_head("masks", 5, 4, 2), masks)
    (head(torch.randn(6, 5), learner=1) * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert (head.linear.weight.grad.abs().sum(dim=1) > 0).tolist() == [False, False, True, True]
    assert (head.masks.grad[0] == 0).all()
    assert (head.masks.grad[1, 2:] != 0).all()


@pytest.mark.parametrize(("dim", "learners"), [(8, 4), (7, 4), (13, 8), (6, 3)])
def test_fixed_masks_are_consecutive_parts_and_learn_nothing(dim: int, learners: int) -> None:
    head = create_head("masks", 5, dim, learners, options={"kind": "fixed"})
    assert isinstance(head, MaskHead)
    assert head.subspace_parameters() == []
    slices = create_head("slices", 5, dim, learners)
    sizes = [slices.subspace_dim(k) for k in range(learners)]
    assert head.masks.sum(dim=1).tolist() == sizes
    assert head.masks.sum(dim=0).tolist() == [1] * dim
    assert [int(torch.nonzero(row).min()) for row in head.masks] == [sum(sizes[:k]) for k in range(learners)]
    assert float(head.penalty().detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dim", [8, 9, 15])
def test_fixed_masks_double_into_halves(dim: int) -> None:
    head = create_head("masks", 5, dim, 8, options={"kind": "fixed"})
    assert isinstance(head, MaskHead)
    head.start_with_one()
    assert head.num_learners == 1
    assert head.masks[0].tolist() == [1] * dim
    while head.num_learners < 8:
        parents = head.masks[: head.num_learners].clone()
        head.double()
        for k, parent in enumerate(parents):
            first, second = head.masks[2 * k], head.masks[2 * k + 1]
            assert torch.equal(first + second, parent)
            assert int(first.sum()) - int(second.sum()) in (0, 1)
            # The first half is the first: its last one stands before the second's first.
            assert int(torch.nonzero(first).max()) < int(torch.nonzero(second).min())
    with pytest.raises(ValueError, match="8 learners cannot double"):
        head.double()


def test_learned_masks_double_into_copies_with_their_moments() -> None:
    head = create_head("masks", 5, 4, 4)
    assert isinstance(head, MaskHead)
    head.start_with_one()
    head.double()
    with torch.no_grad():
        head.masks[:2] = torch.tensor([[1.0, 2, 3, 0], [4, 5, 6, 0]])
    moments = torch.zeros(4, 4)
    moments[:2] = torch.tensor([[7.0, 8, 9, 0], [10, 11, 12, 0]])
    with pytest.raises(IndexError, match="learner 2: there are 2"):
        head(torch.randn(2, 5), learner=2)
    head.double([moments])
    assert head.num_learners == 4
    assert head.masks.tolist() == [[1, 2, 3, 0], [1, 2, 3, 0], [4, 5, 6, 0], [4, 5, 6, 0]]
    assert moments.tolist() == [[7, 8, 9, 0], [7, 8, 9, 0], [10, 11, 12, 0], [10, 11, 12, 0]]


def test_a_model_saved_while_it_grows_knows_how_many_learners_it_has(tmp_path: Path) -> None:
    model = dc.EmbeddingModel("test_resnet", 8, 4, method="masks", pretrained=False, image_size=32)
    model.head.start_with_one()
    model.head.double()
    model.save(tmp_path)
    loaded = dc.EmbeddingModel.load(tmp_path)
    assert (loaded.num_learners, loaded.head.max_learners) == (2, 4)
    features = np.random.default_rng(0).normal(size=(3, model.num_features)).astype(np.float32)
    np.testing.assert_array_equal(loaded.embed(features, learner=1), model.embed(features, learner=1))


def test_a_dead_mask_is_reported_and_its_embeddings_are_zero() -> None:
    head = masks_of(create_head("masks", 5, 4, 3), torch.tensor([[1.0, 0, 0, 0], [-1, -2, 0, -3], [1, 1, 1, 1]]))
    assert head.dead_learners() == [1]
    embeddings = head(torch.randn(2, 5), learner=1)
    assert not embeddings.any()
    embeddings.sum().backward()
    assert torch.isfinite(head.linear.weight.grad).all()
    assert create_head("slices", 5, 4, 2).dead_learners() == []


def test_options_and_sizes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`head_options.kind` of method masks.*'fixd'; did you mean 'fixed'"):
        create_head("masks", 5, 4, 2, options={"kind": "fixd"})
    with pytest.raises(ConfigError, match=r"option of method masks 'ful'; did you mean 'full'"):
        create_head("masks", 5, 4, 2, options={"ful": "plain"})
    with pytest.raises(ConfigError, match="method slices takes no options; leave 'kind' out of `head_options`"):
        create_head("slices", 5, 4, 2, options={"kind": "fixed"})
    with pytest.raises(ConfigError, match="4 dimensions cannot be divided among 5 learners"):
        create_head("masks", 5, 4, 5)
    assert not create_head("slices", 5, 4, 2).can_double
