"""Losses by name: the margin loss against loops, one objective a learner, and every name's error or first step."""

from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from torch.nn import functional as F

from divcon.config import TrainConfig
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.train.losses import create_objectives, loss_names, miner_names
from divcon.train.miner import DistanceWeightedMiner


def objectives(num_learners: int = 2, **config: object) -> torch.nn.ModuleList:
    head = create_head("slices", 5, 10, num_learners)
    return create_objectives(TrainConfig(**config), head, num_classes=4)  # type: ignore[arg-type]


def batch(dim: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(16, dim, generator=generator), dim=1)
    return embeddings.requires_grad_(), torch.arange(4).repeat_interleave(4)


def test_the_default_is_the_margin_loss_of_the_paper() -> None:
    embeddings, labels = batch(10)
    objective = objectives()[-1]
    torch.manual_seed(1)
    loss = objective(embeddings, labels)
    torch.manual_seed(1)
    anchors, positives, negatives = DistanceWeightedMiner()(embeddings.detach(), labels)
    points = embeddings.detach()
    terms = []
    for a, p, n in zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        terms.append(max(0.0, float((points[a] - points[p]).norm()) - 1.2 + 0.2))
        terms.append(max(0.0, 1.2 - float((points[a] - points[n]).norm()) + 0.2))
    expected = sum(terms) / sum(term > 0 for term in terms)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert not list(objective.parameters())


def test_one_objective_a_learner_and_one_for_the_full_embedding() -> None:
    made = objectives(3, loss="ProxyAnchorLoss")
    assert [tuple(o.loss.proxies.shape) for o in made] == [(4, 4), (4, 3), (4, 3), (4, 10)]
    assert len({o.loss.proxies.data_ptr() for o in made}) == 4


def test_margin_loss_has_no_beta_for_each_class_unless_asked() -> None:
    assert objectives()[0].loss.beta.numel() == 1
    assert objectives(loss_options={"margin": 0.1, "beta": 1.0})[0].loss.margin == 0.1


def test_options_reach_loss_and_miner() -> None:
    made = objectives(loss="TripletMarginLoss", loss_options={"margin": 0.3}, miner_options={"cutoff": 0.4})
    assert made[0].loss.margin == 0.3
    assert made[0].miner.cutoff == 0.4
    assert objectives(loss="TripletMarginLoss", miner="none")[0].miner is None
    assert objectives(loss="TripletMarginLoss", miner="MultiSimilarityMiner")[0].miner is not None


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_by_name_gives_a_gradient(name: str) -> None:
    # These two have no defaults for what they need.
    options = {"HistogramLoss": {"n_bins": 10}, "RankedListLoss": {"margin": 0.4, "Tn": 10}}.get(name, {})
    objective = objectives(loss=name, loss_options=options)[0]
    embeddings, labels = batch()
    loss = objective(embeddings, labels)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(embeddings.grad).all()


def test_no_loss_of_the_library_is_forgotten() -> None:
    named = {
        name
        for name, value in vars(pml_losses).items()
        if isinstance(value, type) and issubclass(value, torch.nn.Module) and name.endswith("Loss")
    }
    without_labels = {"ManifoldLoss", "VICRegLoss", "SelfSupervisedLoss", "GenericPairLoss"}
    assert named - set(loss_names()) == without_labels
    for name in without_labels:
        with pytest.raises(ConfigError, match="losses of embeddings and labels"):
            objectives(loss=name)


@pytest.mark.parametrize("name", [n for n in miner_names() if n not in ("auto", "none")])
def test_every_miner_by_name_feeds_a_loss(name: str) -> None:
    embeddings, labels = batch()
    loss = objectives(loss="TripletMarginLoss", miner=name)[0](embeddings, labels)
    loss.backward()
    assert torch.isfinite(embeddings.grad).all()


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown loss 'TripletLoss'; did you mean .*'TripletMarginLoss'"):
        objectives(loss="TripletLoss")
    with pytest.raises(ConfigError, match=r"unknown miner 'MultiSimilarity'; did you mean 'MultiSimilarityMiner'"):
        objectives(miner="MultiSimilarity")
    with pytest.raises(ConfigError, match="unknown argument of MarginLoss 'margn'; did you mean 'margin'"):
        objectives(loss_options={"margn": 1})
    with pytest.raises(ConfigError, match=r"missing 2 .* --loss-options\.NAME VALUE"):
        objectives(loss="RankedListLoss")
    with pytest.raises(ConfigError, match="has no miner"):
        objectives(loss="ProxyAnchorLoss", miner_options={"cutoff": 1})


def test_under_autocast_distances_are_full_precision() -> None:
    embeddings, labels = batch()
    torch.manual_seed(0)
    plain = objectives()[0](embeddings, labels)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = objectives()[0](embeddings, labels)
    assert under.dtype == torch.float32
    assert torch.equal(plain, under)
