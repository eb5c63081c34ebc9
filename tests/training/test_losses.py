"""Losses and miners by name: the margin loss against loops, every name trained or refused with its reason, options."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, regularizers
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch.nn import functional as F

from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError
from divcon.models import create_head
from divcon.training.losses import SmoothAPLoss, create_objectives, loss_names
from divcon.training.miners import DistanceWeightedMiner, NearestNegativesMiner, miner_names
from divcon.training.proxies import ClusterProxies

NEEDED = {"RankedListLoss": {"margin": 0.4, "Tn": 10}}
"""Arguments that a loss requires."""
TAKES_NO_MINER = ("InstanceLoss", "P2SGradLoss", "PNPLoss", "RankedListLoss")


def objectives(num_learners: int = 2, num_classes: int = 4, head: str = "slices", **config: Any) -> torch.nn.ModuleList:
    if "loss" in config:
        config["loss_options"] = {**NEEDED.get(config["loss"], {}), **config.get("loss_options", {})}
    config = {"batch_size": 16, "images_per_class": 4, **config}
    return create_objectives(TrainConfig(**config), create_head(head, 5, 11, num_learners), num_classes)


def batch(dim: int = 6, classes: int = 4, each: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(classes * each, dim, generator=generator), dim=1)
    return embeddings.requires_grad_(), torch.arange(classes).repeat_interleave(each)


def test_the_default_is_the_margin_loss_of_the_paper() -> None:
    embeddings, labels = batch(11)
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
    built = objectives(3, loss="ProxyAnchorLoss")
    assert [tuple(p.shape) for p in built.parameters()] == [(4, 4), (4, 4), (4, 3), (4, 11)]
    assert len({p.data_ptr() for p in built.parameters()}) == 4
    first, second = list(built.parameters())[:2]
    assert not torch.equal(first, second)


def test_a_growing_hierarchy_has_objectives_for_all_its_learners() -> None:
    head = create_head("masks", 5, 11, 4)
    head.start_with_one()
    assert head.num_learners == 1
    assert len(create_objectives(TrainConfig(), head, 4)) == 5


def test_the_seed_decides_how_a_loss_s_parameters_begin_and_nothing_else_does() -> None:
    head = create_head("slices", 5, 11, 2)

    def proxies(seed: int) -> list[torch.Tensor]:
        built = create_objectives(TrainConfig(loss="SoftTripleLoss", seed=seed), head, 4)
        return [p.detach() for p in built.parameters()]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = proxies(0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert all(torch.equal(a, b) for a, b in zip(first, proxies(0), strict=True))
    assert not torch.equal(first[0], proxies(1)[0])


@pytest.mark.heavy
@pytest.mark.parametrize("name", loss_names())
def test_every_loss_by_name_brings_classes_together(name: str) -> None:
    """Real steps of a linear map, for each of the K + 1 objectives, in random order of the batch."""
    for number, objective in enumerate(objectives(num_classes=6, loss=name)):
        generator = torch.Generator().manual_seed(number)
        labels = torch.arange(6).repeat_interleave(4)
        signal = torch.randn(6, 8, generator=generator)[labels]
        dim = [6, 5, 11][number]
        layer = torch.nn.Linear(20, dim)
        with torch.no_grad():
            layer.weight.copy_(0.2 * torch.randn(dim, 20, generator=generator))
            layer.bias.zero_()
        optimizer = torch.optim.Adam([*layer.parameters(), *objective.parameters()], lr=0.03)
        fixed = torch.cat([signal, 2 * torch.randn(24, 12, generator=generator)], dim=1)
        before = _together(F.normalize(layer(fixed), dim=1), labels)
        for _ in range(30):
            images = torch.cat([signal, 2 * torch.randn(24, 12, generator=generator)], dim=1)
            order = torch.randperm(24, generator=generator)
            loss = objective(F.normalize(layer(images[order]), dim=1), labels[order])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
        assert _together(F.normalize(layer(fixed), dim=1), labels) > before + 0.05


@pytest.mark.parametrize("name", loss_names())
def test_every_loss_by_name_trains_masks_over_the_whole_embedding(name: str) -> None:
    embeddings, labels = batch(11)
    for objective in objectives(head="masks", loss=name):
        loss = objective(embeddings, labels)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        assert torch.isfinite(gradient).all()
        assert (gradient != 0).any()


def _together(embeddings: torch.Tensor, labels: torch.Tensor) -> float:
    """How much more alike images of a class are than images of two."""
    cosines = (embeddings @ embeddings.T).detach()
    same = labels[:, None] == labels[None, :]
    return float(cosines[same & ~torch.eye(len(labels), dtype=torch.bool)].mean() - cosines[~same].mean())


def test_every_loss_and_miner_of_the_library_is_listed() -> None:
    for module, named, option in ((pml_losses, loss_names(), "loss"), (pml_miners, miner_names(), "miner")):
        for name, value in vars(module).items():
            if inspect.isclass(value) and issubclass(value, torch.nn.Module) and name not in named:
                with pytest.raises(ConfigError) as refused:
                    objectives(**{option: name})
                # A loss is refused with its reason; the bases of miners are no names.
                assert option == "miner" or not str(refused.value).startswith("unknown")


def test_refused_losses_say_why() -> None:
    with pytest.raises(ConfigError, match="losses of embeddings and labels"):
        objectives(loss="VICRegLoss")
    with pytest.raises(ConfigError, match=r"'CrossBatchMemory' wraps another loss: .*`memory_size`"):
        objectives(loss="CrossBatchMemory")
    for name in ("InstanceLoss", "IntraPairVarianceLoss"):
        with pytest.raises(ConfigError, match=r"unlike images together|without telling classes apart"):
            objectives(loss=name)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("InstanceLoss", 0, 0.3), ("IntraPairVarianceLoss", 0, 0.3), ("NTXentLoss", 0.9, 1)]
)
def test_the_two_refused_losses_do_not_bring_classes_together(name: str, least: float, most: float) -> None:
    embeddings, labels = batch(16, classes=6)
    free = embeddings.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([free], lr=0.03)
    for _ in range(100):
        loss = getattr(pml_losses, name)()(F.normalize(free, dim=1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    cosines = F.normalize(free, dim=1).detach()
    nearest = (cosines @ cosines.T).fill_diagonal_(-2).argmax(dim=1)
    assert least <= float((labels[nearest] == labels).float().mean()) <= most


@pytest.mark.parametrize("loss", ["ContrastiveLoss", "TripletMarginLoss", "ProxyAnchorLoss"])
@pytest.mark.parametrize("name", [n for n in miner_names() if n != "auto"])
def test_every_miner_by_name_feeds_a_pair_a_triplet_and_a_proxy_loss(name: str, loss: str) -> None:
    embeddings, labels = batch()
    objective = objectives(loss=loss, miner=name)[0]
    value = objective(embeddings, labels)
    value.backward()
    assert torch.isfinite(embeddings.grad).all()
    if loss == "ContrastiveLoss":
        # What the miner leaves out, the loss does not see.
        torch.manual_seed(0)
        pairs = objective.miner(embeddings, labels) if objective.miner is not None else None
        torch.manual_seed(0)
        assert torch.equal(objective(embeddings, labels), pml_losses.ContrastiveLoss()(embeddings, labels, pairs))


@pytest.mark.parametrize("name", loss_names())
def test_a_loss_that_picks_its_own_pairs_says_so_to_a_miner(name: str) -> None:
    if name in TAKES_NO_MINER:
        with pytest.raises(ConfigError, match=f"{name} with miner PairMarginMiner .*this loss picks.*`miner=none`"):
            objectives(loss=name, miner="PairMarginMiner")
    else:
        embeddings, labels = batch()
        assert torch.isfinite(objectives(loss=name, miner="PairMarginMiner")[0](embeddings, labels))


def test_auto_is_the_miner_that_the_loss_s_paper_has() -> None:
    kinds = {
        "MarginLoss": DistanceWeightedMiner,
        "TripletMarginLoss": DistanceWeightedMiner,
        "MultiSimilarityLoss": pml_miners.MultiSimilarityMiner,
    }
    for name in loss_names():
        assert type(objectives(loss=name)[0].miner) is kinds.get(name, type(None))
    assert type(objectives(miner="nearest-negatives")[0].miner) is NearestNegativesMiner


def test_options_reach_loss_and_miner() -> None:
    assert objectives(loss_options={"margin": 0.1, "beta": 1.0})[0].loss.margin == 0.1
    built = objectives(loss="TripletMarginLoss", loss_options={"margin": 0.3}, miner_options={"cutoff": 0.4})
    assert built[0].loss.margin == 0.3
    assert built[0].miner.cutoff == 0.4
    assert objectives(miner="nearest-negatives", miner_options={"cutoff": 0.3})[0].miner.cutoff == 0.3
    hard = {"pos_strategy": "hard", "allowed_neg_range": "0.2,0.8"}
    built = objectives(loss="TripletMarginLoss", miner="BatchEasyHardMiner", miner_options=hard)
    assert built[0].miner.allowed_neg_range == (0.2, 0.8)


def test_numbers_from_a_command_line() -> None:
    built = objectives(loss="SoftTripleLoss", loss_options={"centers_per_class": 3.0})
    assert next(built.parameters()).shape == (6, 12)
    built = objectives(loss="MarginLoss", loss_options={"triplets_per_anchor": 5.0}, miner="none")
    assert torch.isfinite(built[0](*batch()))


def test_objects_are_created_by_the_name_of_their_class() -> None:
    built = objectives(
        loss="ContrastiveLoss",
        loss_options={
            "distance": "CosineSimilarity",
            "pos_margin": 1,
            "neg_margin": 0,
            "reducer": "MeanReducer",
            "embedding_regularizer": "ZeroMeanRegularizer",
            "embedding_reg_weight": 0.5,
        },
        miner="PairMarginMiner",
        miner_options={"distance": "CosineSimilarity", "pos_margin": 2, "neg_margin": -2},
    )[0]
    assert isinstance(built.miner.distance, distances.CosineSimilarity)
    embeddings, labels = batch()
    value = built(embeddings, labels)
    cosines, same = embeddings @ embeddings.T, labels[:, None] == labels[None, :]
    others = ~torch.eye(16, dtype=torch.bool)
    expected = (1 - cosines[same & others]).relu().mean() + cosines[~same].relu().mean()
    expected = expected + 0.5 * embeddings.sum(dim=1).abs().mean()
    torch.testing.assert_close(value, expected)

    soft = {"weight_regularizer": "SparseCentersRegularizer", "centers_per_class": 2, "weight_init_func": "ones_"}
    built = objectives(loss="SoftTripleLoss", loss_options=soft)[0]
    assert isinstance(built.loss.loss.weight_regularizer, regularizers.SparseCentersRegularizer)
    assert (next(built.parameters()) == 1).all()
    built.set_classes(torch.tensor([1, 3]))
    embeddings, labels = batch(classes=2)
    assert torch.isfinite(built(embeddings, 1 + 2 * labels))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "TripletLoss"}, r"unknown loss 'TripletLoss'; did you mean .*'TripletMarginLoss'"),
        ({"miner": "MultiSimilarity"}, "unknown miner 'MultiSimilarity'; did you mean 'MultiSimilarityMiner'"),
        ({"loss_options": {"margn": 1}}, "unknown argument of MarginLoss 'margn'; did you mean 'margin'"),
        ({"loss": "ProxyAnchorLoss", "miner_options": {"cutoff": 1}}, "there is no miner"),
        (
            {"loss": "ContrastiveLoss", "loss_options": {"distance": "Cosine"}},
            r"`loss_options` distance of ContrastiveLoss: unknown class 'Cosine'; did you mean 'CosineSimilarity'",
        ),
        (
            {"loss": "ContrastiveLoss", "loss_options": {"distance": 1.0}},
            r"unknown class '1.0'; known: CosineSimilarity",
        ),
        ({"loss": "CircleLoss", "loss_options": {"distance": "LpDistance"}}, "requires the distance metric to be"),
        ({"loss_options": {"reducer": "ClassWeightedReducer"}}, "ClassWeightedReducer needs a tensor of weights"),
        ({"loss_options": {"reducer": "DoNothingReducer"}}, "does not reduce a loss to one number"),
        ({"loss_options": {"reducer": "ThresholdReducer"}}, "ThresholdReducer cannot be created with its defaults"),
        ({"loss_options": {"reducer": "PerAnchorReducer"}}, "MarginLoss.* cannot compute.*Triplet reduction"),
        ({"loss": "NTXentLoss", "loss_options": {"reducer": "DivisorReducer"}}, "NTXentLoss cannot compute.*divisor"),
        ({"loss": "ProxyAnchorLoss", "loss_options": {"weight_init_func": "normal"}}, "did you mean 'normal_'"),
        ({"loss": "ProxyAnchorLoss", "loss_options": {"embedding_size": 3}}, "leave it out, it is the embedding's"),
        ({"loss": "ProxyAnchorLoss", "loss_options": {"num_classes": 3}}, "have 4 classes; pass as many or more"),
        ({"loss": "MarginLoss", "loss_options": {"num_classes": 4}}, "gives each class a beta, which is a constant"),
        ({"miner_options": {"cutoff": "near"}}, r"DistanceWeightedMiner cannot "),
        (
            {"miner": "BatchHardMiner", "miner_options": {"allowed_pos_range": 0.2}},
            "pass two numbers with a comma between",
        ),
        ({"loss": "NTXentLoss", "loss_options": {"temperature": 0}}, "NTXentLoss is nan for random embeddings"),
    ],
)
def test_a_wrong_loss_or_miner_says_why(config: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objectives(**config)


def test_an_argument_that_is_missing_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"missing 2 .* `loss_options`"):
        create_objectives(TrainConfig(loss="RankedListLoss"), create_head("slices", 5, 10, 2), 4)


def test_margin_loss_has_no_beta_for_each_class_unless_asked() -> None:
    assert objectives()[0].loss.beta.numel() == 1
    learned = objectives(loss_options={"learn_beta": True})
    assert [p.numel() for p in learned.parameters()] == [1, 1, 1]
    for count in (4, 7):
        learned = objectives(loss_options={"learn_beta": True, "num_classes": count})
        assert [p.numel() for p in learned.parameters()] == [count] * 3
        embeddings, labels = batch()
        learned[0](embeddings, labels).backward()
        gradient = next(learned.parameters()).grad
        assert (gradient[:4] != 0).any()
        assert (gradient[4:] == 0).all()
    assert isinstance(learned[0].loss, ClusterProxies)


def test_smooth_ap_equals_the_library_s_where_that_is_right_and_loops_elsewhere() -> None:
    embeddings, labels = batch(8, classes=4, each=4)
    ours, theirs = SmoothAPLoss()(embeddings, labels), pml_losses.SmoothAPLoss()(embeddings, labels)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, embeddings)[0], torch.autograd.grad(theirs, embeddings)[0], atol=1e-5, rtol=1e-4
    )

    embeddings, _ = batch(8, classes=4, each=3)
    labels = torch.tensor([2, 0, 0, 1, 2, 1, 1, 0, 2, 2, 7, 7])
    cosines = (embeddings @ embeddings.T).double()
    expected = []
    for q in range(12):
        positives = [r for r in range(12) if labels[r] == labels[q]]
        precision = 0.0
        for r in positives:
            before = [float(torch.sigmoid((cosines[q, j] - cosines[q, r]) / 0.1)) for j in range(12)]
            rank = 1 + sum(before[j] for j in range(12) if j != r)
            precision += (1 + sum(before[j] for j in positives if j != r)) / rank
        expected.append(1 - precision / len(positives))
    value = SmoothAPLoss(temperature=0.1)(embeddings, labels)
    assert float(value) == pytest.approx(sum(expected) / 12, rel=1e-4)


@pytest.mark.parametrize("apart", [False, True], ids=["some pairs have a loss", "no pair has"])
@pytest.mark.parametrize("options", [{}, {"learn_beta": True, "nu": 0.3}, {"learn_beta": True, "num_classes": 4}])
def test_the_margin_loss_is_the_library_s_bit_for_bit(options: dict, apart: bool) -> None:
    labels = torch.arange(16) // 4
    embeddings = F.one_hot(labels, 4).float() if apart else F.normalize(torch.randn(16, 4), dim=1)
    triplets = DistanceWeightedMiner()(embeddings, labels)
    built = objectives(1, head="single", loss="MarginLoss", loss_options=options)[-1].loss
    built = getattr(built, "loss", built)  # of one beta a class
    results = []
    for loss in (built, pml_losses.MarginLoss(**options)):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels, triplets)
        value.backward()
        # Without a loss the library gives beta no gradient at all.
        gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in loss.parameters())
        results.append((value.detach(), leaf.grad, *gradients))
    assert bool(results[0][1].any()) != apart  # the gradient of the embeddings
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)
