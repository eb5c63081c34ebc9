"""Every setting of a run: the one source of command-line flags, of files of settings, of the run's ``config.json``, and
of their help. They stand in `divcon.config.settings`, `divcon.config.settings` and `divcon.config.settings`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from divcon.config.files import (
    Option,
    Where,
    as_yaml,
    at_least,
    finite,
    flag,
    placed,
    read_config_file,
    stranger,
    typed,
    typed_value,
)
from divcon.errors import ConfigError
from divcon.runtime.environment import started_by_torchrun
from divcon.runtime.files import atomic_write

Pooling = Literal["auto", "avg", "max", "gem", "token"]


@Parameter(name="*", group=Group("Model", sort_key=1))
@dataclass(frozen=True)
class ModelConfig:
    """What is trained: a backbone and a head (see `divcon.EmbeddingModel`)."""

    method: str = "masks"
    """How the embedding is divided among learners: single (one learner: ordinary metric learning, the baseline),
    slices (CVPR 2019: K consecutive parts of the one embedding), or masks (TPAMI 2021: K masks over all of it)."""
    num_learners: Annotated[int, Parameter(name=("--learners", "--num-learners"))] = 4
    """K, the number of learners, and of clusters that the training images are divided into; 1 under single."""
    embedding_dim: Annotated[int, Parameter(name=("--dim", "--embedding-dim"))] = 128
    """D, the length of the embedding."""
    head_options: dict[str, Option] = field(default_factory=dict)
    """Arguments of the method's head. Of masks: kind (learned, or fixed: consecutive parts) and full (plain, or masked:
    the full embedding is multiplied with the sum of the masks), as in --head-options.kind fixed."""
    backbone: str = "auto"
    """The network before the head: any timm model by name; for vectors none (the head alone) or mlp (a small residual
    network). auto: resnet50.tv_in1k for images, none for vectors."""
    pretrained: bool = True
    """Start from the backbone's pretrained weights."""
    weights: Path | None = None
    """Start the backbone from this file (.safetensors, or .pth of tensors only) in place of timm's weights."""
    image_size: Annotated[int, Parameter(name=("--size", "--image-size"))] = 224
    """Height and width, in pixels, of what the backbone sees; not for vectors. For a vision transformer a multiple of
    its patch size (14 or 16, say); its position embeddings are resampled to it."""
    pooling: Pooling = "auto"
    """How the backbone's features of all places become one vector, before the head: auto (as the backbone does), avg,
    max, gem (Radenovic et al., TPAMI 2018: a mean of p-th powers, where p is learned and starts at 3; what is negative
    counts as zero), or token (a vision transformer's class token). In a vision transformer avg, max and gem are over
    the tokens of the patches alone. Not for vectors."""
    dropout: float = 0.01
    """Share of the pooled features that is dropped before the head in training."""

    def __post_init__(self) -> None:
        if self.method == "single" and self.num_learners != 1:
            object.__setattr__(self, "num_learners", 1)
        if self.weights is not None:  # so that it is found from another working directory, too
            object.__setattr__(self, "weights", Path(self.weights).absolute())
        at_least(self, num_learners=1, embedding_dim=1, image_size=1)
        if self.embedding_dim < self.num_learners:
            raise ConfigError(
                f"--dim {self.embedding_dim} cannot be divided among --learners {self.num_learners}: each learner "
                "needs at least one dimension; give a larger --dim or fewer --learners"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"--dropout {self.dropout}: must be at least 0 and below 1")


DivideBy = Literal["image", "class", "random", "random-class", "none"]
DivideOn = Literal["memory", "fresh"]
Optimizer = Literal["adam", "adamw"]
Precision = Literal["fp32", "bf16", "fp16"]
LrSchedule = Literal["constant", "cosine", "step"]
SmallClasses = Literal["repeat", "fill"]
Rounds = Literal["epoch", "longest", "shortest"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Across = Literal["learners", "batch"]

AUTO_MINERS = {
    "MarginLoss": "distance-weighted",
    "TripletMarginLoss": "distance-weighted",
    "MultiSimilarityLoss": "MultiSimilarityMiner",
}
"""What miner ``auto`` is: the one that the loss's paper (Wu et al., ICCV 2017; Wang et al., CVPR 2019) has."""


@Parameter(name="*", group=Group("Training", sort_key=2))
@dataclass(frozen=True)
class TrainConfig:
    """How it is trained (see `divcon.train`)."""

    epochs: int = 60
    """Epochs; each is N // batch-size batches (N: training images), whatever the method and the number of learners."""
    batch_size: int = 80
    """B, images a batch; a multiple of images-per-class."""
    images_per_class: int = 4
    """M, images of each class in a batch; a batch has B // M classes."""
    redivide_every: int = 2
    """T, epochs between divisions of the training images."""
    divide_by: DivideBy = "image"
    """What k-means clusters: image (both papers), or class (class means, so that a class stays whole). Or a control:
    random (images at random), random-class (whole classes at random), none (every learner has all images)."""
    divide_on: DivideOn = "fresh"
    """What features are divided on: fresh (all training images are embedded at each division; both papers), or memory
    (those that training has seen since the last division are taken from there, and the others embedded)."""
    division_tries: int = 30
    """Seeds of k-means that are tried until each cluster has two classes with a positive pair (2021)."""
    rounds: Rounds = "epoch"
    """How many batches an epoch has: epoch: N // batch-size, whatever the method; or as many rounds, of one batch a
    learner, as the largest cluster has batches (longest: the others start over; 2019), or the smallest (shortest)."""
    learners_per_step: int | None = None
    """Batches, of as many learners in turn, that one step of the optimizer is on: the mean of their losses; an epoch
    has as many batches, and fewer steps. None: 1 (both papers), or --devices where these share out learners."""
    hierarchy: bool = False
    """Begin with one learner and double their number at each division, up to --learners, each cluster split in two
    (2021; method masks)."""
    small_classes: SmallClasses = "repeat"
    """A class with fewer than images-per-class images in its cluster: repeat them (2019), or fill its places in the
    batch with other images of the cluster (2021)."""
    full_weight: float = 1.0
    """Until the joint phase: weight of a loss on the full embedding beside the learner's, on the same batch (ours);
    0: the learner's alone, as in both papers."""
    joint_epoch: int | None = None
    """First epoch of the joint phase: the loss sees the full embedding, batches still come from one cluster at a time.
    None: no joint phase."""
    finetune_epoch: int | None = None
    """First epoch of the finetune phase: full embedding, batches from all data. None: two thirds of the epochs."""
    loss: str = "MarginLoss"
    """Any loss of pytorch-metric-learning that takes embeddings and labels, by its class's name. One of each a learner
    and one for the full embedding; one with proxies compares with those of the cluster's classes alone."""
    loss_options: dict[str, Option] = field(default_factory=dict)
    """Arguments of the loss, as in --loss-options.margin 0.1; objects by the name of their class, made with its
    defaults, as in --loss-options.distance CosineSimilarity."""
    miner: str = "auto"
    """What picks the pairs or triplets: distance-weighted (ours), nearest-negatives (of the 2019 code), none, or a
    miner of pytorch-metric-learning by its class's name. auto: distance-weighted for MarginLoss and
    TripletMarginLoss, MultiSimilarityMiner for MultiSimilarityLoss, none for the rest."""
    miner_options: dict[str, Option] = field(default_factory=dict)
    """Arguments of the miner, as in --miner-options.cutoff 0.4."""
    memory_size: int = 0
    """Embeddings of past batches that each learner's loss compares with (cross-batch memory, emptied at each division);
    0: none. At least batch-size; losses of pairs and triplets have it, losses with proxies do not."""
    optimizer: Optimizer = "adam"
    """adam (both papers; weight decay is an L2 penalty), or adamw (weight decay apart from the gradient)."""
    lr: float = 1e-4
    """Learning rate of the backbone."""
    head_lr: float = 1e-3
    """Learning rate of the head, of a loss's own parameters, and of the p of --pooling gem."""
    weight_decay: float = 1e-4
    """Under adam, an L2 penalty on all weights. Under adamw, what a step takes off, times the learning rate, of weights
    of two or more dimensions: not of biases and norms, nor of what timm leaves out of a backbone (position embeddings,
    class tokens). Never on the p of --pooling gem. Its size means another thing under each: 0.05 is usual of adamw."""
    freeze_backbone_epochs: int = 0
    """Epochs after each division, until finetune, in which the backbone's learning rate is 0 (2021: 1)."""
    mask_lr: float | None = None
    """Learning rate of learned masks, until the joint phase; 0 from then on. None: 100 times --lr (2021)."""
    mask_weight_decay: float = 1e-4
    """Weight decay of learned masks, of the optimizer's kind."""
    mask_penalty: float = 0.01
    """What the mean cosine of pairs of learned masks is multiplied with and added to the loss, until the joint phase
    (2021)."""
    lr_schedule: LrSchedule = "constant"
    """constant, cosine (to zero at the last epoch), or step (times lr-gamma every lr-step-epochs)."""
    lr_step_epochs: int = 30
    """Epochs between two steps of --lr-schedule step."""
    lr_gamma: float = 0.1
    """What the learning rates are multiplied with at each step of --lr-schedule step."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rates rise linearly from zero."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random training crop keeps; not for vectors, which are taken as they
    are."""
    flip: bool | None = None
    """Mirror half of the training images. None: as the data set says (icons: no; others: yes)."""
    precision: Precision = "fp32"
    """Arithmetic of the network: fp32, bf16 or fp16 (mixed; fp16 on CUDA only). Distances and losses stay in fp32."""
    channels_last: bool = True
    """Keep images in channels-last memory order, which most convolutions run faster in."""
    fused: bool = False
    """Let the optimizer step on all weights at once, in PyTorch's fused kernels; the same but for rounding."""
    compile: bool = False
    """Compile the backbone with torch.compile, which takes a minute or more at first; the same but for rounding.
    Whether steps then take less time depends on device and backbone."""
    workers: int = 2
    """Processes that decode and augment images; the result does not depend on it. 0: none beside the main one."""
    devices: int | None = None
    """Processes that train together, each on a device of its own, or on its share of the processor's cores. What they
    train is decided by the other settings, whatever their number. None: as many as torchrun has started, or 1."""
    across: Across = "learners"
    """What --devices share out: learners (the --learners-per-step batches of a step, so that different learners train
    at once), or batch (the images of each batch; the losses see all of it)."""
    checkpoint_minutes: float = 10.0
    """Minutes after which what is trained is kept inside of an epoch too, so that a kill loses no more than these; 0:
    after each epoch, and at a stop, alone."""
    device: Device = "auto"
    """Where to compute: auto takes cuda, then mps, then cpu."""
    seed: int = 0
    """Decides the head's initial weights, the validation classes, divisions, batches and augmentation."""

    def __post_init__(self) -> None:
        if self.devices is None:
            object.__setattr__(self, "devices", started_by_torchrun() or 1)
        apart = self.num_devices if self.across == "learners" else 1
        if self.learners_per_step is None:
            object.__setattr__(self, "learners_per_step", apart)
        at_least(
            self,
            devices=1,
            epochs=1,
            batch_size=4,
            images_per_class=2,
            redivide_every=1,
            learners_per_step=1,
            division_tries=1,
            freeze_backbone_epochs=0,
            memory_size=0,
            lr_step_epochs=1,
            workers=0,
            seed=0,
        )
        if self.batches_per_step < apart:
            raise ConfigError(
                f"--devices {self.devices} share out the batches of a step, and --learners-per-step is "
                f"{self.batches_per_step}: give --learners-per-step {self.devices}, or a multiple of it, or share out "
                "the images of each batch (--across batch)"
            )
        if self.batch_size < 2 * self.images_per_class:
            raise ConfigError(
                f"--batch-size {self.batch_size} holds fewer than two classes of --images-per-class "
                f"{self.images_per_class}: a batch without two classes has no negatives"
            )
        if self.batch_size % self.images_per_class:
            raise ConfigError(
                f"--batch-size {self.batch_size} is not a multiple of --images-per-class {self.images_per_class}"
            )
        finite(self, "lr", "head_lr", "weight_decay", "warmup_epochs", "lr_gamma")
        finite(self, "checkpoint_minutes", "full_weight", "mask_lr", "mask_weight_decay", "mask_penalty")
        if self.freeze_backbone_epochs >= self.redivide_every > 0 and self.freeze_backbone_epochs:
            raise ConfigError(
                f"--freeze-backbone-epochs {self.freeze_backbone_epochs} of every --redivide-every "
                f"{self.redivide_every} epochs leaves the backbone none to train in; give fewer"
            )
        if not 0 < self.crop_scale <= 1:
            raise ConfigError(f"--crop-scale {self.crop_scale}: must be above 0 and at most 1")
        for name in ("joint_epoch", "finetune_epoch"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"{flag(name)} {getattr(self, name)}: must not be negative")
        joint, finetune = self.phase_starts
        if joint > finetune:
            raise ConfigError(
                f"--joint-epoch {joint} comes after --finetune-epoch {finetune}: the phases are subspace, joint, "
                "finetune"
            )

    @property
    def num_devices(self) -> int:
        """``devices``, with None resolved."""
        return self.devices or 1

    @property
    def batches_per_step(self) -> int:
        """``learners_per_step``, with None resolved."""
        return self.learners_per_step or 1

    @property
    def phase_starts(self) -> tuple[int, int]:
        """The first epochs of the joint and of the finetune phase; equal where there is no joint phase."""
        finetune = round(self.epochs * 2 / 3) if self.finetune_epoch is None else self.finetune_epoch
        return (finetune if self.joint_epoch is None else self.joint_epoch), finetune

    @property
    def chosen_miner(self) -> str:
        """The miner, with ``auto`` resolved."""
        return AUTO_MINERS.get(self.loss, "none") if self.miner == "auto" else self.miner

    @property
    def chosen_mask_lr(self) -> float:
        """The learning rate of learned masks, with None resolved."""
        return 100 * self.lr if self.mask_lr is None else self.mask_lr


OnBadImage = Literal["stop", "skip"]


@Parameter(name="*", group=Group("Data and validation", sort_key=3))
@dataclass(frozen=True)
class DataConfig:
    """What it is trained and judged on."""

    validation: bool = True
    """Hold validation classes out of the training classes and keep the best epoch by their Recall@1.
    --no-validation trains on all of them, those that the data names for validation too, and keeps the last epoch, as
    the papers do."""
    validation_fraction: float = 0.1
    """Share of the training classes that is held out, where the data does not name validation classes."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation classes (the last epoch is always evaluated)."""
    on_bad_image: OnBadImage = "stop"
    """An image that does not decode: stop with its name; or skip: decode all images once before training, and leave
    those out that fail, listing them."""

    def __post_init__(self) -> None:
        at_least(self, evaluate_every=1)
        if not 0 < self.validation_fraction < 1:
            raise ConfigError(f"--validation-fraction {self.validation_fraction}: must be between 0 and 1")


__all__ = [
    "DataConfig",
    "Device",
    "DivideBy",
    "DivideOn",
    "LrSchedule",
    "ModelConfig",
    "OnBadImage",
    "Optimizer",
    "Pooling",
    "Precision",
    "Rounds",
    "RunConfig",
    "SmallClasses",
    "Source",
    "TrainConfig",
    "flag",
    "settings_in",
]


@dataclass(frozen=True)
class Source:
    """What a run trains on, as its ``config.json`` holds it beside the settings: what `divcon.read` takes."""

    data: str
    root: Path | None = None
    fingerprint: str | None = None
    """Of what there was to train on, so that a run is repeated on the same."""


@Parameter(name="*")
@dataclass(frozen=True)
class RunConfig:
    """A whole run, as its ``config.json`` holds it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def to_dict(self) -> dict[str, Any]:
        return {
            part.name: {k: str(v) if isinstance(v, Path) else v for k, v in vars(getattr(self, part.name)).items()}
            for part in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config") -> RunConfig:
        """The inverse of `to_dict`; what is left out is at its default, what a run's ``config.json`` holds beside the
        settings is passed over.

        Raises:
            ConfigError: a part or setting is unknown (the message suggests the nearest names), of another type, or out
                of bounds.
        """
        return cls._checked(values, lambda *keys: source)

    @classmethod
    def load(cls, path: str | Path) -> RunConfig:
        """The settings in a YAML, TOML or JSON file: one of your own, or a run's ``config.json``.

        Relative paths start from the file's folder. What the file says to train on is `read_config_file`'s to tell.

        Raises:
            ConfigError: as of `from_dict` and `divcon.config.files.read_config_file`; with the file and, where it is
                known, the line.
        """
        file = read_config_file(path)
        return cls._checked(file.values, file.where, file.path.absolute().parent)

    @classmethod
    def _checked(cls, values: Mapping[str, Any], where: Where, folder: Path | None = None) -> RunConfig:
        found = settings_in(values, where, folder)
        made = {}
        for name, kind in PARTS.items():
            try:
                made[name] = kind(**found.get(name, {}))
            except ConfigError as error:
                raise placed(error, {key: where(name, key) for key in found.get(name, {})}) from None
        return cls(**made)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write as JSON, or as YAML where the name ends in .yaml or .yml, with ``more`` beside the settings (what the
        run read, say).

        Raises:
            ConfigError: the name ends in something else.
            OutputError: the file cannot be written.
        """
        path, tree = Path(path), {**self.to_dict(), **more}
        if path.suffix.lower() not in (".json", ".yaml", ".yml"):
            raise ConfigError(f"{path}: settings are written as .json or .yaml")
        with atomic_write(path) as beside:
            text = json.dumps(tree, indent=2) + "\n" if path.suffix.lower() == ".json" else as_yaml(tree)
            beside.write_text(text, encoding="utf-8")


PARTS = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
RECORDED = ("benchmark", "protocol", "split_hash", "packed", "versions", "machine")
"""What a run's ``config.json`` holds beside settings, source and init."""


def settings_in(values: Mapping[str, Any], where: Where, folder: Path | None = None) -> dict[str, Any]:
    """What a file of settings holds, each value of its type: ``{"train": {"epochs": 60}, "init": Path(...)}``.

    Raises:
        ConfigError: as of `RunConfig.from_dict`, without the bounds: other values may yet go over these.
    """
    if "format" in values:
        raise ConfigError(f"{where()}: describes a model, not a run; start from it with --init {Path(where()).parent}")
    part_of = {f.name: part for part, kind in PARTS.items() for f in dataclasses.fields(kind)}
    kinds = {**PARTS, "source": Source}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "init":
            found[name] = typed_value(Path | None, value, (name,), where, folder)
        elif name in kinds and (value is not None or name != "source"):
            found[name] = typed(name, kinds[name], value, where, folder, part_of)
        elif name not in (*RECORDED, "source"):
            words = stranger(str(name), "", [*kinds, "init"], part_of)
            raise ConfigError(f"{where(str(name))}: {words}")
    return found
