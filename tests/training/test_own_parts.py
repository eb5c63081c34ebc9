"""Losses and miners of a user's own: by name, as a class, as an object, as a function; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import Tensor, nn
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.training.losses import SmoothAPLoss, create_objectives
from divcon.training.miners import DistanceWeightedMiner, TripletMiner
from divcon.training.proxies import ClusterProxies

MODULE = '''
import torch
from torch import nn
from pytorch_metric_learning.losses import ContrastiveLoss
from pytorch_metric_learning.miners import BaseMiner


class Pull(nn.Module):
    """Takes embeddings and labels alone."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = weight

    def forward(self, embeddings, labels):
        same = labels[:, None] == labels[None, :]
        return self.weight * (same.float() - embeddings @ embeddings.T).square().mean()


class Centres(nn.Module):
    """A centre for each class."""

    def __init__(self, num_classes, embedding_size, scale=8.0):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(num_classes, embedding_size))
        self.scale = scale

    def forward(self, embeddings, labels):
        return nn.functional.cross_entropy(self.scale * embeddings @ self.centres.T, labels)


class First(BaseMiner):
    """All triplets of the first anchor."""

    def mine(self, embeddings, labels, ref_emb, ref_labels):
        same = labels[0] == ref_labels
        p, n = torch.nonzero(same[1:]).flatten() + 1, torch.nonzero(~same).flatten()[:1]
        return torch.zeros_like(p), p, n.expand(len(p))


def pull(embeddings, labels):
    return Pull()(embeddings, labels)


soft = ContrastiveLoss(pos_margin=0.2)
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_parts_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import importlib

    return importlib.import_module("own_parts_for_tests")


def objectives(head: str = "slices", num_learners: int = 2, num_classes: int = 4, **config: Any) -> nn.ModuleList:
    config = {"batch_size": 16, "images_per_class": 4, "miner": "none", **config}
    return create_objectives(TrainConfig(**config), create_head(head, 5, 11, num_learners), num_classes)


def batch(dim: int = 6, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(4 * classes, dim, generator=generator), dim=1)
    return embeddings.requires_grad_(), torch.arange(classes).repeat_interleave(4)


def value(objective: nn.Module, dim: int = 6) -> Tensor:
    torch.manual_seed(3)
    loss = objective(*batch(dim))
    loss.backward()
    return loss.detach()


def test_a_loss_of_embeddings_and_labels_in_every_form(mine: Any) -> None:
    expected = mine.pull(*batch()).detach()
    named = "own_parts_for_tests:"
    for loss in (f"{named}Pull", f"{named}pull", mine.Pull, mine.Pull(), mine.pull):
        torch.testing.assert_close(value(objectives(loss=loss)[0]), expected)
    for loss in (f"{named}Pull", mine.Pull):
        torch.testing.assert_close(value(objectives(loss=loss, loss_options={"weight": 3.0})[0]), 3 * expected)


def test_an_object_of_the_library_equals_its_name_and_options() -> None:
    for loss, name, options in (
        (pml_losses.TripletMarginLoss(margin=0.1), "TripletMarginLoss", {"margin": 0.1}),
        (pml_losses.MarginLoss(margin=0.3, learn_beta=True), "MarginLoss", {"margin": 0.3, "learn_beta": True}),
        (pml_losses.TupletMarginLoss(), "TupletMarginLoss", {}),
        (pml_losses.SmoothAPLoss(temperature=0.1), "SmoothAPLoss", {"temperature": 0.1}),
        (pml_losses.DynamicSoftMarginLoss(), "DynamicSoftMarginLoss", {}),
        (pml_losses.CircleLoss, "CircleLoss", {}),
        ("pytorch_metric_learning.losses:CircleLoss", "CircleLoss", {}),
    ):
        created = objectives(loss=loss)
        by_name = objectives(loss=name, loss_options=options)
        for k, dim in ((0, 6), (2, 11)):
            assert torch.equal(value(created[k], dim), value(by_name[k], dim))
    assert isinstance(objectives(loss=pml_losses.SmoothAPLoss())[0].loss, SmoothAPLoss)


def test_each_learner_has_a_copy_of_an_object_and_the_object_stays_as_it_is() -> None:
    loss = pml_losses.MarginLoss(learn_beta=True)
    created = objectives(loss=loss)
    assert len({id(o.loss) for o in created} | {id(loss)}) == 4
    assert len({p.data_ptr() for p in (*created.parameters(), *loss.parameters())}) == 4


def test_a_class_with_parameters_for_each_class_compares_with_the_cluster_alone(mine: Any) -> None:
    created = objectives(loss=mine.Centres, loss_options={"scale": 4.0})
    assert [tuple(p.shape) for p in created.parameters()] == [(4, 6), (4, 5), (4, 11)]
    assert isinstance(created[0].loss, ClusterProxies)
    created[0].set_classes(torch.tensor([1, 3]))
    embeddings, labels = batch(classes=2)
    loss = created[0](embeddings, 2 * labels + 1)
    centres = created[0].loss.loss.loss.centres[[1, 3]]
    torch.testing.assert_close(loss, F.cross_entropy(4 * embeddings @ centres.T, labels))
    state = created.state_dict()
    again = objectives(loss="own_parts_for_tests:Centres", loss_options={"scale": 4.0}, seed=1)
    again.load_state_dict(state)
    assert torch.equal(value(again[1], 5), value(objectives(loss=mine.Centres, loss_options={"scale": 4.0})[1], 5))


def test_an_object_with_parameters_of_another_size_says_to_pass_the_class(mine: Any) -> None:
    with pytest.raises(ConfigError, match=r"embeddings of 5 dimensions.*pass the class .*`loss=Linear.*`loss_options`"):
        objectives(loss=Linear(11))
    with pytest.raises(ConfigError, match=r"parameters for each class \(centres.*pass the class .*`loss=Centres"):
        objectives("masks", loss=mine.Centres(4, 11))
    # One learner compares with all classes.
    assert torch.isfinite(value(objectives("single", 1, loss=mine.Centres(4, 11))[-1], 11))
    assert torch.isfinite(value(objectives("masks", loss=Linear(11))[0], 11))
    for loss in (Linear(11), pml_losses.ProxyAnchorLoss(4, 11)):
        with pytest.raises(ConfigError) as refused:
            objectives(loss=loss)
        assert refused.value.field == "loss"


class Linear(nn.Module):
    """A loss with parameters for one size of embeddings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(dim, 3)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return self.layer(embeddings).square().mean()


def test_several_losses_as_one(mine: Any) -> None:
    both = pml_losses.MultipleLosses([pml_losses.ContrastiveLoss(), mine.Pull()], weights=[1, 0.5])
    with pytest.raises(ConfigError, match="pass the object"):
        objectives(loss="MultipleLosses")
    embeddings, labels = batch()
    expected = pml_losses.ContrastiveLoss()(embeddings, labels) + 0.5 * mine.pull(embeddings, labels)
    with pytest.raises(ConfigError, match="positional argument"):  # Pull has no `indices_tuple`
        objectives(loss=both)
    both = pml_losses.MultipleLosses([pml_losses.ContrastiveLoss(), pml_losses.CircleLoss()], weights=[1, 0.5])
    expected = pml_losses.ContrastiveLoss()(embeddings, labels) + 0.5 * pml_losses.CircleLoss()(embeddings, labels)
    torch.testing.assert_close(value(objectives(loss=both)[0]), expected.detach())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (pml_losses.CrossBatchMemory(pml_losses.ContrastiveLoss(), 11), "set `loss` to that one, and `memory_size`"),
        (pml_losses.SelfSupervisedLoss(pml_losses.NTXentLoss()), "compares two views"),
        (pml_losses.VICRegLoss, "compares two views"),
        ("no_such_module_at_all:Loss", "the module 'no_such_module_at_all' cannot be imported"),
        ("divcon.errors:__doc__", r"pass the name of a loss"),
        (lambda embeddings, labels: torch.ones(()), "it has no gradient"),
        (lambda embeddings, labels: embeddings, "look at their arguments"),
        (lambda embeddings: embeddings.sum(), "positional argument"),
    ],
)
def test_what_is_no_loss_says_why(loss: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        objectives(loss=loss)
    assert refused.value.field == "loss"


def test_options_are_a_class_s() -> None:
    with pytest.raises(ConfigError, match="`loss_options` are the arguments of a class"):
        objectives(loss=pml_losses.CircleLoss(), loss_options={"m": 0.3})
    with pytest.raises(ConfigError, match="`miner_options` are the arguments of a class"):
        objectives(miner=pml_miners.BatchHardMiner(), loss="TripletMarginLoss", miner_options={"x": 1})
    with pytest.raises(ConfigError, match="unknown argument of Pull 'wight'; did you mean 'weight'"):
        objectives(loss=_pull(), loss_options={"wight": 1})


def _pull() -> type[nn.Module]:
    class Pull(nn.Module):
        def __init__(self, weight: float = 1.0) -> None:
            super().__init__()

        def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
            return embeddings.sum()

    return Pull


def test_a_batch_without_a_loss_trains_nothing() -> None:
    def hinge(embeddings: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(())

    embeddings, labels = batch()
    objectives(loss=hinge)[0](embeddings, labels).backward()
    assert (embeddings.grad == 0).all()


def test_an_argument_may_be_an_object() -> None:
    from pytorch_metric_learning.distances import CosineSimilarity

    created = objectives(loss="ContrastiveLoss", loss_options={"distance": CosineSimilarity(), "pos_margin": 1.0})
    named = objectives(loss="ContrastiveLoss", loss_options={"distance": "CosineSimilarity", "pos_margin": 1.0})
    assert torch.equal(value(created[0]), value(named[0]))


def all_triplets(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    same = labels[:, None] == labels[None, :]
    off = ~torch.eye(len(labels), dtype=torch.bool)
    a, p, n = torch.nonzero((same & off)[:, :, None] & ~same[:, None, :], as_tuple=True)
    return a, p, n


def test_a_miner_in_every_form(mine: Any) -> None:
    first = "own_parts_for_tests:First"
    for miner in (first, mine.First, mine.First()):
        torch.testing.assert_close(
            value(objectives(loss="TripletMarginLoss", miner=miner)[0]),
            value(objectives(loss="TripletMarginLoss", miner=mine.First())[0]),
        )
    every = value(objectives(loss="TripletMarginLoss", miner="none")[0])
    torch.testing.assert_close(value(objectives(loss="TripletMarginLoss", miner=all_triplets)[0]), every)
    hard = objectives(loss="TripletMarginLoss", miner=pml_miners.TripletMarginMiner(margin=0.1))[0]
    named = objectives(loss="TripletMarginLoss", miner="TripletMarginMiner", miner_options={"margin": 0.1})[0]
    assert torch.equal(value(hard), value(named))
    assert isinstance(objectives(miner=DistanceWeightedMiner(cutoff=0.4))[0].miner, TripletMiner)


def test_auto_is_the_miner_of_a_loss_passed_as_a_class_or_an_object() -> None:
    for loss in (pml_losses.TripletMarginLoss, pml_losses.TripletMarginLoss(margin=0.1)):
        assert isinstance(objectives(loss=loss, miner="auto")[0].miner, DistanceWeightedMiner)
    assert objectives(loss=all_pairs, miner="auto")[0].miner is None


def all_pairs(embeddings: Tensor, labels: Tensor) -> Tensor:
    return embeddings.sum()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": all_pairs, "miner": all_triplets}, "takes no argument `indices_tuple`"),
        ({"miner": lambda embeddings, labels: labels}, "must return triplets"),
        ({"miner": "divcon.errors:__doc__"}, "pass the name of a miner"),
        ({"miner": "divcon.errors:Miner"}, "unknown name in divcon.errors 'Miner'"),
    ],
)
def test_what_is_no_miner_says_why(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objectives(**settings)


def test_a_cross_batch_memory_around_a_loss_of_one_s_own() -> None:
    class Pairs(pml_losses.ContrastiveLoss):
        pass

    memory = {"memory_size": 32, "loss": Pairs}
    plain = {"memory_size": 32, "loss": "ContrastiveLoss"}
    assert torch.equal(value(objectives(**memory)[0]), value(objectives(**plain)[0]))
    assert torch.equal(value(objectives(**{**memory, "loss": Pairs()})[0]), value(objectives(**plain)[0]))
    with pytest.raises(ConfigError, match="takes no `ref_emb`"):
        objectives(memory_size=32, loss=all_pairs)
    with pytest.raises(ConfigError, match="takes no `ref_emb`"):
        objectives(**memory, miner=all_triplets)
    with pytest.raises(ConfigError, match="compares the batch with itself, or with proxies"):
        objectives(memory_size=32, loss=pml_losses.ProxyAnchorLoss)
