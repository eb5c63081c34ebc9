"""Presets: the recipes of the papers, and ours, for each data set. A preset sets everything that decides the result.

    divcon train cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub
    divcon reproduce cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub

A preset is a function of the data set's name; any other data set gets the settings of Stanford Online Products. Seed,
workers, device and the source of the weights are left to you.

GPU memory and hours in the docstrings are estimates, not measured: batches of 80 images of 224 pixels, 400 images per
second for a ResNet-50 in fp32 (about a V100), and 800 for the small modern networks in bf16. Dividing, evaluating after
every epoch, and the batches that small clusters repeat come on top.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from divcon.config.image_size import ImageSize, height_width
from divcon.config.settings import DataConfig, ModelConfig, Pooling, RunConfig, TrainConfig
from divcon.errors import ConfigError, unknown

FINE_GRAINED = ("cub", "cars")
"""Data sets of few classes with many images each; the papers use fewer learners for them."""

YOURS = frozenset(
    {
        "pretrained",
        "weights",
        "channels_last",
        "workers",
        "num_threads",
        "device",
        "seed",
        "validation_fraction",
        "evaluate_every",
        "on_bad_image",
        "test_fraction",
        "group",
        "protocol",
        "ignore_split",
        "train_on",
        "end_epoch",
    }
)
"""Settings that no preset decides."""


def cvpr2019(data: str) -> RunConfig:
    """CVPR 2019 as the paper describes it (section 4): ResNet-50, D 128 in K 8 slices (CUB and Cars: 4), margin loss
    with distance-weighted sampling, 200 epochs at a learning rate of 1e-5, the last 10 of them on the full embedding.
    The sampler is not in the code of 2019: the one of the 2021 code, which draws without replacement, stands for it.

        divcon reproduce cub data/CUB_200_2011 --preset cvpr2019 --out runs/cub

    Estimated: 10 GB of GPU memory. Published Recall@1 (in the paper), with estimated hours: CUB 65.9 (0.8 h),
    Cars 84.6 (1.1 h), SOP 75.9 (8 h), In-shop 85.7 (4 h); VehicleID (16 h) is unknown to us.
    """
    return RunConfig(
        ModelConfig(
            method="slices",
            num_learners=4 if data in FINE_GRAINED else 8,
            embedding_dim=128,
            backbone="resnet50.tv_in1k",
            image_size=224,
            fit="crop",
            dropout=0.01,
            head_init="random",
            embed="head",
        ),
        TrainConfig(
            epochs=200,
            batch_size=80,
            images_per_class=4,
            redivide_every=2,
            divide_by="image",
            rounds="longest",
            small_classes="repeat",
            finetune_epoch=190,
            full_weight=0.0,
            distill_weight=0.0,
            ema_decay=0.0,
            loss="MarginLoss",
            miner="distance-weighted",
            miner_options={"replacement": False},
            optimizer="adam",
            lr=1e-5,
            head_lr=1e-5,
            weight_decay=1e-4,
            lr_schedule="constant",
        ),
        DataConfig(validation=False),
    )


def cvpr2019_released(data: str) -> RunConfig:
    """CVPR 2019 as the released code trains: as `cvpr2019`, but the loss is on the full embedding from epoch 80 on,
    while batches still come from one cluster, and the miner is the simpler `nearest-negatives`. The code knows SOP,
    In-shop and VehicleID; Cars gets the same with K 4, and CUB what the authors advise for it (issue 6 of their
    repository): D 256, distance-weighted sampling, as many rounds as the smallest cluster has batches, finetuning from
    epoch 60 (the loss is on the full embedding from 60 x 8 / 19 on, that is, from epoch 26) and a learning rate that
    falls every 30 epochs (to a third, which is ours).

        divcon reproduce sop data/Stanford_Online_Products --preset cvpr2019-released --out runs/sop

    Estimated: 10 GB of GPU memory. Published Recall@1 (in the repository's README; that of CUB is a user's in issue 6,
    before the advice), with estimated hours: CUB 62.01 (0.8 h), SOP 76.40 (8 h), In-shop 87.36 (4 h), VehicleID large
    91.54 (16 h); Cars (1.1 h) is unknown to us.
    """
    written = cvpr2019(data)
    if data == "cub":
        return dataclasses.replace(
            written,
            model=dataclasses.replace(written.model, embedding_dim=256),
            train=dataclasses.replace(
                written.train,
                rounds="shortest",
                joint_epoch=26,
                finetune_epoch=60,
                lr_schedule="step",
                lr_step_epochs=30,
                lr_gamma=0.3,
            ),
        )
    return dataclasses.replace(
        written,
        train=dataclasses.replace(written.train, joint_epoch=80, miner="nearest-negatives", miner_options={}),
    )


def tpami2021_learned(data: str) -> RunConfig:
    """TPAMI 2021 with learned masks: D 512, a hierarchy that doubles its learners to K 32, 2 images a class, 180
    epochs; the loss is on the full embedding from epoch 80 on, on batches of one cluster to the end; the backbone is
    frozen in every other epoch. These are the settings in the repository's README for SOP; those of the others
    are only in the paper. In-shop and VehicleID get them as they are, CUB and Cars with K 4; their K 4 and 2 images a
    class are ours. One loss for all learners there, one each here: without parameters of its own, margin loss is the
    same either way.

        divcon reproduce sop data/Stanford_Online_Products --preset tpami2021-learned --out runs/sop

    Estimated: 10 GB of GPU memory. Published Recall@1 (in the repository's README), with estimated hours: CUB
    67.71 (0.7 h), Cars 86.90 (1 h), SOP 79.80 (7 h), In-shop 90.49 (3 h), VehicleID large 93.93 (14 h).
    """
    return _tpami2021(data, "learned")


def tpami2021_fixed(data: str) -> RunConfig:
    """TPAMI 2021 with fixed masks: as `tpami2021_learned`, but each of two children has half of its parent's
    dimensions.

        divcon reproduce cars data/cars196 --preset tpami2021-fixed --out runs/cars

    Estimated: 10 GB of GPU memory. Published Recall@1 (in the repository's README), with estimated hours: CUB
    67.39 (0.7 h), Cars 87.22 (1 h), SOP 79.50 (7 h), In-shop 89.84 (3 h), VehicleID large 94.01 (14 h).
    """
    return _tpami2021(data, "fixed")


def _tpami2021(data: str, kind: str) -> RunConfig:
    return RunConfig(
        ModelConfig(
            method="masks",
            num_learners=4 if data in FINE_GRAINED else 32,
            embedding_dim=512,
            head_options={"kind": kind},
            backbone="resnet50.tv_in1k",
            image_size=224,
            fit="crop",
            dropout=0.01,
            head_init="random",
            embed="head",
        ),
        TrainConfig(
            epochs=180,
            batch_size=80,
            images_per_class=2,
            redivide_every=2,
            divide_by="image",
            rounds="longest",
            hierarchy=True,
            small_classes="fill",
            joint_epoch=80,
            finetune_epoch=180,
            full_weight=0.0,
            distill_weight=0.0,
            ema_decay=0.0,
            loss="MarginLoss",
            miner="distance-weighted",
            miner_options={"replacement": False},
            optimizer="adam",
            lr=1e-5,
            head_lr=1e-5,
            weight_decay=1e-4,
            freeze_backbone_epochs=1,
            mask_lr=1e-3,
            mask_weight_decay=1e-4,
            mask_penalty=0.01,
            lr_schedule="constant",
        ),
        DataConfig(validation=False),
    )


def single(data: str) -> RunConfig:
    """One metric at the budget of `cvpr2019`: the same backbone, D, batches, loss and epochs, and no division.

        divcon reproduce cub data/CUB_200_2011 --preset single --out runs/cub

    Estimated: 10 GB of GPU memory and the hours of `cvpr2019`. Nothing is published for exactly this; the
    difference from it is what dividing adds.
    """
    divided = cvpr2019(data)
    return dataclasses.replace(
        divided,
        model=dataclasses.replace(divided.model, method="single"),
        train=dataclasses.replace(divided.train, rounds="epoch"),
    )


def modern_vit(data: str) -> RunConfig:
    """Ours, and unmeasured: learned masks over a ViT-S/16 with ImageNet-21k weights; AdamW, a warmup and a cosine
    schedule, bf16, 60 epochs, the last 20 of them on the full embedding.

        divcon reproduce cub data/CUB_200_2011 --preset modern-vit --out runs/cub

    Estimated: 6 GB of GPU memory, and CUB 0.1 h, Cars 0.2 h, SOP 1.2 h, In-shop 0.5 h, VehicleID 2.4 h.
    """
    return _modern("vit_small_patch16_224.augreg_in21k", lr=1e-5)


def modern_dinov2(data: str) -> RunConfig:
    """Ours, and unmeasured: as `modern_vit`, over a DINOv2-S/14 at 224 pixels.

        divcon reproduce sop data/Stanford_Online_Products --preset modern-dinov2 --out runs/sop

    Estimated: 8 GB of GPU memory, and the hours of `modern_vit` and a third more.
    """
    return _modern("vit_small_patch14_dinov2.lvd142m", lr=1e-5)


def modern_convnext(data: str) -> RunConfig:
    """Ours, and unmeasured: as `modern_vit`, over a ConvNeXt-T whose features are pooled by GeM, at a learning rate of
    5e-5.

        divcon reproduce inshop data/inshop --preset modern-convnext --out runs/inshop

    Estimated: 8 GB of GPU memory, and the hours of `modern_vit`.
    """
    return _modern("convnext_tiny.in12k_ft_in1k", lr=5e-5, pooling="gem")


def _modern(backbone: str, lr: float, pooling: Pooling = "auto") -> RunConfig:
    return RunConfig(
        ModelConfig(
            method="masks",
            num_learners=4,
            embedding_dim=384,
            backbone=backbone,
            image_size=224,
            fit="crop",
            pooling=pooling,
            head_init="random",
            embed="head",
        ),
        TrainConfig(
            epochs=60,
            batch_size=80,
            images_per_class=4,
            finetune_epoch=40,
            full_weight=1.0,
            distill_weight=0.0,
            ema_decay=0.0,
            optimizer="adamw",
            lr=lr,
            head_lr=1e-3,
            weight_decay=0.05,
            mask_lr=1e-2,
            lr_schedule="cosine",
            warmup_epochs=1.0,
            precision="bf16",
        ),
        DataConfig(validation=False),
    )


def people(data: str) -> RunConfig:
    """Ours, and unmeasured: people in surveillance photographs, with the common practice of re-identification and our
    defaults for the rest.

        divcon train market1501 data/Market-1501 --preset people --out runs/people

    From the practice (Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification", CVPR
    workshops 2019, and its code; the same in fast-reid and the AGW baseline): ResNet-50; whole images at 256 x 128;
    batches of 16 people with 4 images each; mirroring, shifts by up to 10 pixels, and one rectangle of the mean colour
    over half of the images; a warmup of 10 epochs. Not taken: the identity loss with its BNNeck, and the last stride
    of 1, which timm's ResNet does not have without dilation. The rest is ours: the method, margin loss, learning rates,
    60 epochs.

    Estimated: 6 GB of GPU memory, and Market-1501 0.4 h.
    """
    return _reidentification((256, 128))


def vehicles(data: str) -> RunConfig:
    """Ours, and unmeasured: as `people`, for vehicles: whole images at 256 x 256, as fast-reid has them for VeRi and
    VehicleID.

        divcon train vehicleid-small data/VehicleID --preset vehicles --out runs/vehicles

    Estimated: 11 GB of GPU memory, and VehicleID 6 h.
    """
    return _reidentification(256)


def _reidentification(size: ImageSize) -> RunConfig:
    height, width = height_width(size)
    shifts = {"degrees": 0, "translate": [round(10 / width, 3), round(10 / height, 3)], "scale": [1.0, 1.0]}
    return RunConfig(
        ModelConfig(
            method="slices",
            num_learners=4,
            embedding_dim=512,
            backbone="resnet50.tv_in1k",
            image_size=size,
            fit="squash",
            head_init="auto",
            embed="head",
        ),
        TrainConfig(
            epochs=60,
            batch_size=64,
            images_per_class=4,
            finetune_epoch=40,
            full_weight=1.0,
            distill_weight=50.0,
            ema_decay=0.8,
            lr=1e-4,
            head_lr=1e-3,
            lr_schedule="cosine",
            warmup_epochs=10.0,
            crop_scale=1.0,
            flip=True,
            augment={"affine": shifts, "erasing": {"p": 0.5, "scale": [0.02, 0.4], "ratio": [0.3, 3.33]}},
        ),
        DataConfig(validation=False),
    )


RE_IDENTIFICATION = ("people", "vehicles")
"""The presets that are for one kind of images, and not for the papers' benchmarks."""

PRESETS: Mapping[str, Callable[[str], RunConfig]] = MappingProxyType(
    {
        function.__name__.replace("_", "-"): function
        for function in (
            cvpr2019,
            cvpr2019_released,
            tpami2021_fixed,
            tpami2021_learned,
            single,
            modern_vit,
            modern_dinov2,
            modern_convnext,
            people,
            vehicles,
        )
    }
)
"""Presets by name."""


def preset(name: str, data: str) -> RunConfig:
    """The settings of a preset for a data set.

    Raises:
        ConfigError: there is no such preset; the message suggests the nearest names.
    """
    if name not in PRESETS:
        raise ConfigError(f"`preset`: {unknown('preset', name, PRESETS)}", field="preset")
    return PRESETS[name](data)


def decided(config: RunConfig) -> dict[str, object]:
    """The settings that a preset decides, by name, as files keep them."""
    sections = config.to_dict().values()
    return {name: value for section in sections for name, value in section.items() if name not in YOURS}


def changed(config: RunConfig, name: str, data: str) -> dict[str, tuple[object, object]]:
    """The settings of ``config`` that differ from the preset: by name, the preset's value and the one in ``config``."""
    theirs = decided(preset(name, data))
    return {key: (theirs[key], value) for key, value in decided(config).items() if value != theirs[key]}


@dataclass(frozen=True)
class PublishedResult:
    """A published result."""

    scores: Mapping[str, float]
    """Each published column by its name in results (``recall_at_1``, ``nmi``, ``marp``), 0 to 1; of the best epoch on
    the test classes, which both papers report."""
    source: str

    @property
    def recall_at_1(self) -> float:
        return self.scores["recall_at_1"]


_REPOSITORY = "CompVis/metric-learning-divide-and-conquer"
_RECALL_AT = {"cub": (1, 2, 4, 8), "cars": (1, 2, 4, 8), "sop": (1, 10, 100), "inshop": (1, 10, 20, 30)}
_RECALL_AT |= {"vehicleid-large": (1, 5)}


def _published(data: str, recall: tuple[float, ...], source: str, **more: float) -> PublishedResult:
    """Of percentages: Recall@k at the first of `_RECALL_AT`, and other scores."""
    named = {f"recall_at_{k}": value for k, value in zip(_RECALL_AT[data], recall, strict=False)} | more
    return PublishedResult(MappingProxyType({name: round(value / 100, 6) for name, value in named.items()}), source)


def _paper_2019(data: str, *recall: float, **more: float) -> tuple[str, PublishedResult]:
    return data, _published(data, recall, "CVPR 2019", **more)


def _readme_2019(data: str, recall: float) -> tuple[str, PublishedResult]:
    return data, _published(data, (recall,), f"README of {_REPOSITORY}")


def _readme_2021(data: str, nmi: float, marp: float, *recall: float) -> tuple[str, PublishedResult]:
    return data, _published(data, recall, f"README of {_REPOSITORY}-improved", nmi=nmi, marp=marp)


PUBLISHED_RESULTS: Mapping[str, Mapping[str, PublishedResult]] = MappingProxyType(
    {
        name: MappingProxyType(dict(results))
        for name, results in (
            (
                "cvpr2019",
                (
                    _paper_2019("cub", 65.9, 76.6, 84.4, 90.6, nmi=69.6),
                    _paper_2019("cars", 84.6, 90.7, 94.1, 96.5),
                    _paper_2019("sop", 75.9, 88.4, 94.9),
                    _paper_2019("inshop", 85.7, 95.5, 96.9, 97.5),
                ),
            ),
            (
                "cvpr2019-released",
                (
                    ("cub", _published("cub", (62.01,), f"issue 6 of {_REPOSITORY}, before its advice", nmi=66.91)),
                    _readme_2019("sop", 76.40),
                    _readme_2019("inshop", 87.36),
                    _readme_2019("vehicleid-large", 91.54),
                ),
            ),
            (
                "tpami2021-fixed",
                (
                    _readme_2021("cub", 68.60, 54.98, 67.39, 77.43, 84.82, 90.83),
                    _readme_2021("cars", 70.57, 65.89, 87.22, 92.19, 95.39, 97.43),
                    _readme_2021("sop", 89.59, 79.32, 79.50, 90.44, 95.08),
                    _readme_2021("inshop", 89.76, 87.86, 89.84, 97.56, 98.21, 98.51),
                    _readme_2021("vehicleid-large", 90.78, 92.89, 94.01, 96.18),
                ),
            ),
            (
                "tpami2021-learned",
                (
                    _readme_2021("cub", 69.84, 55.11, 67.71, 78.14, 85.80, 91.46),
                    _readme_2021("cars", 70.10, 65.54, 86.90, 92.34, 95.41, 97.45),
                    _readme_2021("sop", 89.68, 79.60, 79.80, 90.46, 95.26),
                    _readme_2021("inshop", 89.88, 88.50, 90.49, 97.48, 98.23, 98.51),
                    _readme_2021("vehicleid-large", 90.70, 92.68, 93.93, 95.99),
                ),
            ),
        )
    }
)
"""Published results, by preset and data set, with every column that we could read.

Of the 2019 paper, Recall@k beyond 1 is as a survey of that year's papers quotes it, and NMI on CUB as issue 6 of the
repository does; its other columns (NMI elsewhere, SOP's Recall@1000, In-shop's Recall@50, VehicleID) are not here."""
