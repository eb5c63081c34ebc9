"""All settings of a run. The flags of the command line, their help, settings files and a run's ``config.json`` are
generated from these dataclasses.

Settings form three sections: `ModelConfig`, `TrainConfig` and `DataConfig`, together a `RunConfig`. A docstring below a
setting is its help; it names other settings in backticks, which the command line shows as flags.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from divcon.config.augment import Augment, read_augment
from divcon.config.backbone_names import canonical
from divcon.config.fields import (
    Part,
    at_least,
    check_doors,
    check_types,
    differences,
    finite,
    restored,
    saved,
    setting,
)
from divcon.config.files import Where, as_yaml, placed, read_config_file, typed, typed_value, unknown_key
from divcon.config.image_size import MOST_PIXELS, ImageSize, height_width, read_size, saved_size
from divcon.config.memory_size import MemorySize, read_memory_size
from divcon.config.pixel_range import PixelRange, read_pixel_range, saved_pixel_range
from divcon.errors import ConfigError
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import Trust
from divcon.runtime.launchers import started_size
from divcon.runtime.places import place

__all__ = [
    "AUTO_MINERS",
    "OPTIONS_OF",
    "SECTIONS",
    "SECTION_OF",
    "SPLITTING",
    "TEST_FRACTION",
    "Augment",
    "DataConfig",
    "DataSource",
    "Device",
    "DivideBy",
    "DivideOn",
    "Embed",
    "Fit",
    "HeadInit",
    "ImageSize",
    "MemorySize",
    "ModelConfig",
    "OnBadImage",
    "Pooling",
    "Precision",
    "Protocol",
    "Rounds",
    "RunConfig",
    "SelectBy",
    "SmallClasses",
    "TrainConfig",
    "TrainOn",
    "check_splitting",
    "sections_in",
]

Pooling = Literal["auto", "avg", "max", "gem", "token"]
Embed = Literal["auto", "head", "features", "pca"]
HeadInit = Literal["auto", "random", "pca"]
Fit = Literal["auto", "crop", "squash", "pad"]

IMAGE_SIZE = 224
"""Height and width of the backbone's input where neither the user nor the data says more."""


@dataclass(frozen=True)
class ModelConfig:
    """The model: a backbone and a head (see `divcon.EmbeddingModel`)."""

    method: Part = setting("slices", door=True)
    """How the embedding is divided among learners: single (one learner: ordinary metric learning, the baseline),
    slices (CVPR 2019: K consecutive slices of the one embedding), or masks (TPAMI 2021: K masks over all of it)."""
    num_learners: int = 0
    """K, the number of learners, and of clusters that the training images are divided into; 1 for single. 0: 4
    where the training has 3,000 batches or more, else 1 (see `divcon.config.from_data`)."""
    embedding_dim: int = 512
    """D, the length of the embedding."""
    head_options: dict[str, Any] = setting(default_factory=dict, options_of="method")
    """Arguments of the method's head. For masks: kind (learned, or fixed: consecutive blocks of dimensions), full
    (plain, or masked: the full embedding is multiplied by the sum of the masks), relu (False: masks may be negative)
    and start (ones, or normal: one draw with mean 0.9 and standard deviation 0.7), as in `head_options.kind=fixed`."""
    backbone: Part = setting("auto", door=True)
    """The network before the head: any timm model by name (DINOv2 and DINOv3, SigLIP, CLIP among them), or as others
    call it (timm/resnet18.a1_in1k, facebook/dinov2-base, open_clip:ViT-B-32/laion2b_s34b_b79k); hf-hub:user/model, a
    repository of the Hugging Face hub that timm wrote; for vectors none (the head alone) or mlp (a small residual
    network). auto: resnet50.tv_in1k for images, none for vectors."""
    pretrained: bool = True
    """Start from the backbone's pretrained weights."""
    weights: Path | None = None
    """Start the backbone from this file (.safetensors, or .pth with tensors only) instead of timm's weights."""
    image_size: ImageSize = setting(0, before=IMAGE_SIZE, read=read_size, write=saved_size)
    """Height and width, in pixels, of the backbone's input: one number for both, or height x width, as in
    `image_size=256x128` for people. For a vision transformer, multiples of its patch size (14 or 16, for example); its
    position embeddings are resampled to it. 0: 224, or what the name of a vision transformer says (384 of
    vit_base_patch16_siglip_384); or as many pixels in the shape of the training images, where these are tall or wide
    and the backbone takes any size (see `divcon.config.from_data`). Not used for vectors."""
    fit: Fit = setting("auto", before="crop")
    """How an image comes into `image_size`. crop: its middle, after resizing; what is outside is lost. squash: all of
    it, resized to exactly that height and width, whatever its shape. pad: all of it in its own shape, with a border in
    the mean colour. Training crops at random in the same way. auto: squash where `image_size` is not square, or half of
    the training images are more than 1.6 times as long as wide, else crop. It is saved with the model. Not used for
    vectors."""
    pixel_range: PixelRange = setting("auto", before="full", read=read_pixel_range, write=saved_pixel_range)
    """For images of more than 8 bits a channel (12-bit data in 16-bit files, floating-point TIFF), the values that
    become black and white: full (0 and 65535), own (the lowest and the highest value of each image), or two numbers, as
    in `pixel_range=0,4095`. auto: from the training images; 0,4095 where their values need 12 bits, for example. It is
    saved with the model. Other images are not changed by it."""
    channels: int = 3
    """Number of channels of the images: 3 (colours, of any file), 1 (grey, of any file), or another, of arrays in .npy
    files, of TIFF with several bands, or of images with alpha. timm adapts pretrained weights to it. Not used for
    vectors."""
    pooling: Pooling = "auto"
    """How the backbone's feature map becomes one vector: auto (the backbone's own pooling), avg, max, gem (generalised
    mean, Radenovic et al., TPAMI 2018: p is learned and starts at 3; negative values count as zero), or token (a vision
    transformer's class token). In a vision transformer avg, max and gem pool the patch tokens only. Not used for
    vectors."""
    dropout: float = 0.01
    """Dropout on the pooled features before the head, in training."""
    head_init: HeadInit = setting("auto", before="random")
    """Initial weights of the head: random; or pca, the first `embedding_dim` principal components of the training
    images' pooled features (of at most 20,000 images), rotated at random so that all dimensions vary alike. auto: pca
    where the backbone has so many features and there are more training images than dimensions, else random."""
    embed: Embed = setting("auto", before="head")
    """What the finished model embeds by; training is the same. head: the embedding that was trained. features: the
    pooled features before the head, L2-normalised, of as many dimensions as the backbone has features. pca: those
    features' first `embedding_dim` principal components, whitened. auto: the one of these with the highest MAP@R on the
    validation classes (the head, unless another is better by more than 0.1 points); the head without validation
    classes."""
    eval_transform: Part | None = setting(None, door=True)
    """A transform of your own for the images that are embedded, in place of resizing and centre crop; see
    `train_transform`. It belongs to the model: evaluation, encoding, search and serving use it. Not used for
    vectors."""

    def __post_init__(self) -> None:
        check_types(self)
        if isinstance(self.backbone, str):  # so that two names of one model are the same setting
            object.__setattr__(self, "backbone", canonical(self.backbone))
        if self.method == "single" and self.num_learners != 1:
            object.__setattr__(self, "num_learners", 1)
        if self.weights is not None:  # so that another working directory finds it too
            object.__setattr__(self, "weights", place(self.weights).absolute())
        at_least(self, num_learners=0, embedding_dim=1, channels=1)
        if self.image_size != 0 and not 1 <= min(sides := height_width(self.image_size)) <= max(sides) <= MOST_PIXELS:
            raise ConfigError(
                f"`image_size` {saved_size(self.image_size)}: height and width must be from 1 to {MOST_PIXELS:,}",
                field="image_size",
            )
        if self.embedding_dim < self.num_learners:
            raise ConfigError(
                f"`embedding_dim` {self.embedding_dim} cannot be divided among `num_learners` {self.num_learners}: "
                "each learner needs at least one dimension; use a larger `embedding_dim` or fewer `num_learners`",
                field=("embedding_dim", "num_learners"),
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` {self.dropout}: must be at least 0 and below 1", field="dropout")

    @property
    def network(self) -> dict[str, Any]:
        """The settings that are arguments of `divcon.EmbeddingModel`; the others say what a run does with it. A size
        and a fit that were not chosen from data are those of `divcon.EmbeddingModel`."""
        values = {name: value for name, value in vars(self).items() if name not in ("head_init", "embed")}
        fit = "crop" if self.fit == "auto" else self.fit
        pixel_range = "full" if self.pixel_range == "auto" else self.pixel_range
        return {**values, "image_size": self.image_size or IMAGE_SIZE, "fit": fit, "pixel_range": pixel_range}


DivideBy = Literal["image", "class", "random", "random-class", "none"]
DivideOn = Literal["bank", "fresh", "embedding"]
Precision = Literal["fp32", "bf16", "fp16"]
SmallClasses = Literal["repeat", "fill"]
Rounds = Literal["epoch", "longest", "shortest"]
Device = Literal["auto", "cpu", "cuda", "mps"]
Across = Literal["learners", "batch"]

AUTO_MINERS = {
    "MarginLoss": "distance-weighted",
    "TripletMarginLoss": "distance-weighted",
    "MultiSimilarityLoss": "MultiSimilarityMiner",
}
"""The miner that ``auto`` stands for, by loss: the one of the loss's paper (Wu et al., ICCV 2017; Wang et al., CVPR
2019)."""


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained (see `divcon.train`)."""

    epochs: int = 0
    """Number of epochs; each has N // `batch_size` batches (N: training images), for any method and number of
    learners. 0: from a budget of 10,000 batches, 20 to 60 epochs (see `divcon.config.from_data`)."""
    batch_size: int = 0
    """B, images per batch; a multiple of `images_per_class`. 0: 80, or fewer where there are few images."""
    images_per_class: int = 0
    """M, images of each class in a batch; a batch has B // M classes. 0: 4, or 2 where classes have fewer."""
    redivide_every: int = 2
    """T, epochs between divisions of the training images."""
    redivide_until: int | None = None
    """Epoch from which on the images are not divided again: the last division stays until the finetune phase, and the
    backbone trains in every epoch (an option of the 2021 code). None: they are divided again in all phases but
    finetune."""
    divide_by: DivideBy = "image"
    """What k-means clusters: image (both papers), or class (class means, so that a class stays whole). Or a control:
    random (images at random), random-class (whole classes at random), none (every learner has all images)."""
    divide_on: DivideOn = setting("fresh", old_values={"memory": "bank"})
    """Features that k-means clusters: fresh (embed all training images at each division; both papers), or bank (take
    the features that training has computed since the last division from a feature bank, and embed only the rest). Or
    embedding: the full embedding in place of the features (an option of the 2021 code)."""
    division_tries: int = 30
    """Number of k-means seeds to try until each cluster has two classes with a positive pair (2021)."""
    division_memory: MemorySize = setting(0.25, before=0, read=read_memory_size)
    """Memory that dividing may take in each process: a size, as in `division_memory=8GB`, or a share of the machine's
    memory, which the processes on it divide among them. Where the features of all training images take more, k-means
    is fitted on a sample of the images that fits, and each other image goes to the nearest centroid as it is embedded;
    the log says the size of the sample. By class it holds the classes' means. A run keeps the number of bytes that it
    started with, so that it resumes the same on another machine. 0: no limit."""
    rounds: Rounds = "epoch"
    """Number of batches in an epoch: epoch (N // `batch_size`, for any method); or as many rounds, of one batch per
    learner, as the largest cluster has batches (longest: smaller clusters start over; 2019) or the smallest
    (shortest)."""
    learners_per_step: int | None = setting(None, before=1)
    """Number of learners whose batches make one optimizer step, on the mean of their losses; an epoch keeps its number
    of batches and has fewer steps. None: 1 (both papers), or `devices` where these share out learners."""
    hierarchy: bool = False
    """Start with one learner and double their number at each division, up to `num_learners`, splitting each cluster in
    two (2021; for masks)."""
    small_classes: SmallClasses = "repeat"
    """For a class with fewer than `images_per_class` images in its cluster: repeat them (2019), or fill its places in
    the batch with other images of the cluster (2021). A cluster with too few classes for a batch has more images of
    each; fill shares the batch out evenly among them, as far as they have images."""
    full_weight: float = setting(1.0, before=0.0)
    """Weight, until the joint phase, of a loss on the full embedding added to the learner's, on the same batch (ours);
    0: the learner's loss alone, as in both papers."""
    distill_weight: float | None = 0.0
    """Weight of similarity distillation (S2SD, Roth et al., ICML 2021): on each batch the full embedding learns the
    similarities of the pooled features that it is computed from; 50 is usual, 0: none. null, in runs of earlier
    versions: 50 for images with several learners, else 0."""
    distill_temperature: float = setting(1.0, before=1.0)
    """Temperature of `distill_weight`: cosines are divided by it before the softmax."""
    joint_epoch: int | None = None
    """First epoch of the joint phase: the loss is on the full embedding, batches still come from one cluster at a time.
    None: no joint phase."""
    finetune_epoch: int | None = None
    """First epoch of the finetune phase: full embedding, batches from all data. None: two thirds of the epochs."""
    loss: Part = setting("MarginLoss", door=True)
    """Any loss of pytorch-metric-learning that takes embeddings and labels, by class name; or your own, module:Name.
    Each learner has its own instance, and the full embedding another; a loss with proxies compares with those of the
    cluster's classes only."""
    loss_options: dict[str, Any] = setting(default_factory=dict, options_of="loss")
    """Arguments of the loss, as in `loss_options.margin=0.1`; objects by class name, with its defaults, as in
    `loss_options.distance=CosineSimilarity`."""
    miner: Part = setting("auto", door=True)
    """How pairs or triplets are selected: distance-weighted (ours), nearest-negatives (of the 2019 code), none, a
    miner of pytorch-metric-learning by class name, or your own, module:Name. auto: distance-weighted for MarginLoss
    and TripletMarginLoss, MultiSimilarityMiner for MultiSimilarityLoss, none for the rest."""
    miner_options: dict[str, Any] = setting(default_factory=dict, options_of="miner")
    """Arguments of the miner, as in `miner_options.cutoff=0.4`."""
    memory_size: int = 0
    """Size of the cross-batch memory: embeddings of past batches that each learner's loss compares with, cleared at
    each division; 0: none. At least `batch_size`; works with losses of pairs and triplets, not with proxies."""
    optimizer: Part = setting("adam", door=True, known=("adam", "adamw"))
    """adam (both papers; weight decay is an L2 penalty), adamw (weight decay apart from the gradient), or another one,
    module:Name, as in torch.optim:SGD."""
    optimizer_options: dict[str, Any] = setting(default_factory=dict, options_of="optimizer")
    """Arguments of the optimizer, as in `optimizer_options.momentum=0.9`; several numbers as in
    `optimizer_options.betas=0.9,0.95`."""
    lr: float = 1e-4
    """Learning rate of the backbone."""
    head_lr: float = 1e-3
    """Learning rate of the head, of a loss's own parameters, and of the p of `pooling=gem`."""
    weight_decay: float = 1e-4
    """With adam, an L2 penalty on all weights. With adamw, each step shrinks weights of two or more dimensions by this
    times the learning rate; not biases and norms, nor what timm excludes for a backbone (position embeddings, class
    tokens). Never applied to the p of `pooling=gem`. The two need different sizes: 0.05 is usual for adamw."""
    freeze_backbone_epochs: int = 0
    """Number of epochs after each division, until finetune, in which the backbone's learning rate is 0 (2021: 1)."""
    mask_lr: float | None = None
    """Learning rate of learned masks, until the joint phase; 0 from then on. None: 100 times `lr` (2021)."""
    mask_weight_decay: float = 1e-4
    """Weight decay of learned masks; applied as the optimizer does."""
    mask_penalty: float = 0.01
    """Weight of the penalty on learned masks, the mean cosine of their pairs, until the joint phase (2021)."""
    lr_schedule: Part = setting("constant", door=True, known=("constant", "cosine", "step"))
    """constant, cosine (to zero at the last epoch), step (times `lr_gamma` every `lr_step_epochs`), or your own,
    module:Name, a function of the epochs done and the settings."""
    lr_step_epochs: int = 30
    """Epochs between two steps of `lr_schedule=step`."""
    lr_gamma: float = 0.1
    """Factor of the learning rates at each step of `lr_schedule=step`."""
    warmup_epochs: float = 0.0
    """Number of epochs over which the learning rates rise linearly from zero."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random training crop keeps; not used for vectors."""
    flip: bool | None = None
    """Mirror half of the training images. None: as the data set says (icons: no; all others: yes)."""
    augment: Augment = setting(default_factory=dict, read=read_augment)
    """More augmentation of training images, after the random crop and mirroring, by name and in this order, as in
    `augment=color_jitter,erasing`: color_jitter, photometric_distort, grayscale, autocontrast, equalize, invert,
    posterize, solarize, sharpness, gaussian_blur, gaussian_noise, jpeg, rotation, affine, perspective, elastic,
    vertical_flip, erasing, rand_augment, trivial_augment, auto_augment, augmix; none: no more. Each takes the
    arguments of its class of torchvision.transforms.v2, and p, the share of images that it is applied to, in
    parentheses, as in "rotation(degrees=10), erasing(p=0.3)"; in a file a mapping of names to arguments. Not used for
    vectors."""
    train_transform: Part | None = setting(None, door=True)
    """A transform of your own for training images, in place of the random crop, mirroring and `augment`: any callable
    on a PIL image, a pipeline of torchvision.transforms.v2 or of albumentations, or a class or function that creates
    one and may take image_size. It returns pixels of the height and width of `image_size`, which are not normalised.
    Not used for vectors."""
    ema_decay: float = setting(0.8, before=0.0)
    """Decay of an exponential moving average of the weights, updated after each epoch, which is evaluated and saved in
    place of the weights; training goes on from the weights themselves. 0: none, as in both papers."""
    precision: Precision = "fp32"
    """Precision of the network: fp32, bf16 or fp16 (mixed; fp16 on CUDA only). Distances and losses stay in fp32."""
    channels_last: bool = True
    """Keep images in channels-last memory order, in which most convolutions run faster."""
    fused: bool = False
    """Use PyTorch's fused optimizer kernels; results are the same but for rounding."""
    compile: bool = False
    """Compile the backbone with torch.compile, which takes a minute or more at the start; results are the same but for
    rounding. Whether steps then take less time depends on device and backbone."""
    grad_checkpointing: bool = False
    """Keep only the activations between the backbone's blocks, and compute those inside of a block again in the
    backward pass: a step takes up to a third more time and a fraction of the memory, so that larger backbones, images
    and batches fit. Results are the same. For timm's backbones without BatchNorm, or with pretrained weights."""
    workers: int = 2
    """Number of processes that decode and augment images; results do not depend on it. 0: decode in the main
    process."""
    num_threads: int | None = None
    """Number of CPU threads that PyTorch computes with; `devices` on the CPU share them. Another number sums in another
    order, so that weights differ in the last bits: a run records its number, and says so where it is resumed with
    another. None: PyTorch's own choice, one per core or OMP_NUM_THREADS."""
    devices: int | None = setting(None, before=1)
    """Number of processes that train together, each on a device of its own, or on its share of the CPU cores. It does
    not change what is computed; the other settings decide that. None: as many as torchrun, or another
    launcher that sets its variables, has started, or 1. Where a launcher has started some, their number counts."""
    across: Across = "learners"
    """How to use several `devices`: share out learners (the `learners_per_step` batches of a step, so that different
    learners train at once), or batch (the images of each batch; losses are still on the whole batch)."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch, so that a kill loses no more than these; 0: checkpoint only after
    each epoch and at a stop."""
    device: Device = "auto"
    """Where to compute: auto takes cuda, then mps, then cpu."""
    seed: int = 0
    """Seed of the head's initial weights, the validation classes, divisions, batches and augmentation."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.devices is None:
            object.__setattr__(self, "devices", started_size() or 1)
        sharing = self.num_devices if self.across == "learners" else 1
        if self.learners_per_step is None:
            object.__setattr__(self, "learners_per_step", sharing)
        at_least(
            self,
            devices=1,
            epochs=0,
            batch_size=0,
            images_per_class=0,
            redivide_every=1,
            learners_per_step=1,
            division_tries=1,
            freeze_backbone_epochs=0,
            memory_size=0,
            lr_step_epochs=1,
            workers=0,
            seed=0,
        )
        if self.redivide_until is not None:
            at_least(self, redivide_until=1)
        if self.num_threads is not None:
            at_least(self, num_threads=1)
        if self.distill_temperature == 0:
            raise ConfigError("`distill_temperature` 0: must be above 0", field="distill_temperature")
        if self.batches_per_step < sharing:
            raise ConfigError(
                f"`devices` {self.devices} share out the batches of a step, and `learners_per_step` is "
                f"{self.batches_per_step}: use `learners_per_step={self.devices}`, or a multiple of it, or share out "
                "the images of each batch (`across=batch`)",
                field=("learners_per_step", "devices"),
            )
        for name, least in (("batch_size", 4), ("images_per_class", 2)):
            if getattr(self, name):  # 0: from the data
                at_least(self, **{name: least})
        each = self.images_per_class or 2
        if self.batch_size and self.batch_size < 2 * each:
            raise ConfigError(
                f"`batch_size` {self.batch_size} holds fewer than two classes of `images_per_class` {each}: a batch "
                "without two classes has no negatives",
                field=("batch_size", "images_per_class"),
            )
        if self.images_per_class and self.batch_size % self.images_per_class:
            raise ConfigError(
                f"`batch_size` {self.batch_size} is not a multiple of `images_per_class` {self.images_per_class}",
                field=("batch_size", "images_per_class"),
            )
        finite(self, "lr", "head_lr", "weight_decay", "warmup_epochs", "lr_gamma")
        finite(
            self,
            "checkpoint_minutes",
            "full_weight",
            "distill_weight",
            "distill_temperature",
            "mask_lr",
            "mask_weight_decay",
            "mask_penalty",
        )
        if self.freeze_backbone_epochs >= self.redivide_every > 0 and self.freeze_backbone_epochs:
            raise ConfigError(
                f"`freeze_backbone_epochs` {self.freeze_backbone_epochs} of every `redivide_every` "
                f"{self.redivide_every} epochs leaves no epoch in which the backbone trains; use fewer",
                field=("freeze_backbone_epochs", "redivide_every"),
            )
        own = self.train_transform is not None
        if own and (self.flip is not None or self.crop_scale != type(self).crop_scale or self.augment):
            name = "augment" if self.augment else "crop_scale" if self.flip is None else "flip"
            value = ",".join(self.augment) if name == "augment" else getattr(self, name)
            raise ConfigError(
                f"`{name}` {value}: belongs to the built-in transform, and `train_transform` replaces "
                "it; leave one of them out",
                field=(name, "train_transform"),
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"`ema_decay` {self.ema_decay}: must be at least 0 and below 1", field="ema_decay")
        if not 0 < self.crop_scale <= 1:
            raise ConfigError(f"`crop_scale` {self.crop_scale}: must be above 0 and at most 1", field="crop_scale")
        for name in ("joint_epoch", "finetune_epoch"):
            if (getattr(self, name) or 0) < 0:
                raise ConfigError(f"`{name}` {getattr(self, name)}: must not be negative", field=name)
        joint, finetune = self.phase_starts
        if joint > finetune and (self.epochs or self.finetune_epoch is not None):
            raise ConfigError(
                f"`joint_epoch` {joint} comes after `finetune_epoch` {finetune}: the phases are subspace, joint, "
                "finetune",
                field=("joint_epoch", "finetune_epoch"),
            )

    @property
    def num_devices(self) -> int:
        """``devices``, with None resolved."""
        return self.devices or 1

    def chosen_distill_weight(self, num_learners: int, *, vectors: bool) -> float:
        """``distill_weight``, with None resolved; ``vectors``: the model is of vectors instead of images."""
        if self.distill_weight is not None:
            return self.distill_weight
        return 50.0 if num_learners > 1 and not vectors else 0.0

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
    def chosen_miner(self) -> Part:
        """The miner, with ``auto`` resolved."""
        if self.miner != "auto":
            return self.miner
        if isinstance(self.loss, str):
            return AUTO_MINERS.get(self.loss, "none")
        kind = self.loss if isinstance(self.loss, type) else type(self.loss)
        of_library = kind.__module__.startswith("pytorch_metric_learning.")
        return AUTO_MINERS.get(kind.__name__, "none") if of_library else "none"

    @property
    def chosen_mask_lr(self) -> float:
        """The learning rate of learned masks, with None resolved."""
        return 100 * self.lr if self.mask_lr is None else self.mask_lr


OnBadImage = Literal["stop", "skip"]
SelectBy = Literal["auto", "map_at_r", "recall_at_1", "last"]
Protocol = Literal["auto", "open", "closed"]
TrainOn = Literal["train", "all"]

TEST_FRACTION = 0.2
"""Share of the classes to test on, where neither the data nor the user says: enough for a test, and four of five
classes teach."""

SPLITTING = {"test_fraction": TEST_FRACTION, "group": None, "protocol": "auto", "ignore_split": False}
"""The settings of `DataConfig` that say how data is split when it is read, and their defaults."""


def check_splitting(test_fraction: float | None, group: str | None, protocol: str) -> None:
    """
    Raises:
        ConfigError: the fraction is out of bounds; or the settings do not go together.
    """
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ConfigError(f"`test_fraction` {test_fraction:g}: must be between 0 and 1", field="test_fraction")
    if protocol not in ("auto", "open", "closed"):
        raise ConfigError(f"`protocol` {protocol!r}: must be auto, open or closed", field="protocol")
    if protocol == "closed" and group is not None:
        raise ConfigError(
            f"`group` {group} with `protocol=closed`: a group keeps whole classes together, and a closed set divides "
            "the images of each class; leave out one of the two",
            field=("group", "protocol"),
        )
    if protocol == "closed" and test_fraction is None:
        raise ConfigError(
            "`test_fraction=None` with `protocol=closed`: the sorted halves are of classes, and a closed set divides "
            "the images of each class; give a number",
            field=("test_fraction", "protocol"),
        )


@dataclass(frozen=True)
class DataConfig:
    """How the training data is split and checked."""

    test_fraction: float | None = setting(TEST_FRACTION, before=None)
    """Share of the classes to test on, where the data has no split; drawn by a hash of each class's name, so that a
    class stays on its side when others are added. In a closed set (`protocol`), share of each class's images. None:
    the last half of the sorted classes."""
    group: str | None = None
    """A column of the table: classes that have a value of it in common, such as the variants of one product, stay on
    one side, in the draws of test and of validation classes."""
    protocol: Protocol = "auto"
    """open: test on classes that are not trained on; test images of classes that train are left out. closed: test on
    other images of the classes that train (queries are test images, the gallery is the training images). auto: closed
    where train has every test class, else open; where they share some of the classes, you choose."""
    ignore_split: bool = False
    """Draw a split of all images, as `test_fraction`, `group` and `protocol` say, though the data has one."""
    train_on: TrainOn = "train"
    """all: train on every class, the test classes too, without validation: a model for use, which has no test score of
    its own. `like` takes the settings and the length that validation has chosen, from a run with validation."""
    end_epoch: int | None = None
    """Last epoch to train, counted from 0: the run ends after it, on the schedule of all `epochs`, and without
    validation keeps it. None: the last of `epochs`."""
    validation: bool = True
    """Hold out validation classes from the training classes, and keep the epoch that is best on them (see
    `select_by`). `validation=False` trains on all classes, also on those that the data marks for validation, and keeps
    the last epoch, as the papers do."""
    validation_fraction: float = setting(0.0, before=0.1)
    """Share of the training classes to hold out, where the data does not mark validation classes; in a closed set, of
    the training images. 0: a tenth, or less where that would be more than 10,000 images (see
    `divcon.config.from_data`)."""
    validation_queries: int = setting(20_000, before=0)
    """Evaluate an epoch on at most so many of the validation queries that have a match, drawn once by `seed`, each
    searched among all validation images: beyond, the time of an evaluation would grow with their square. 20,000 is
    twice as many as are held out by default. 0: all."""
    evaluate_every: int = 1
    """Epochs between evaluations on the validation classes (the last epoch is always evaluated)."""
    select_by: SelectBy = setting("auto", before="recall_at_1")
    """Score on the validation classes by which the epoch to keep is chosen; of equal epochs, the later. map_at_r
    (MAP@R, which uses the whole ranking), recall_at_1, or last (the last epoch, whatever its score). auto: last for
    fewer than 300 validation queries, which are too few to rank epochs by; else map_at_r. The model of the last epoch
    is always saved too, in RUN/last."""
    patience: int | None = None
    """End the run after this many evaluations in a row without a higher score (that of `select_by`; for last,
    map_at_r). Evaluations of epochs in which the full embedding is not trained do not count. None: train all
    `epochs`."""
    validation_folds: int | None = None
    """Choose the epoch by cross-validation: divide the training classes into this many folds, train one run for each on
    the other folds, choose the epoch with the best mean score over the folds, then train on all training classes and
    keep that epoch. It costs as many trainings as folds, and one more. None: hold out `validation_fraction` once."""
    on_bad_image: OnBadImage = "stop"
    """What to do with an image that does not decode: stop and name it; or skip: decode all images once before training,
    leave out those that fail, and list them."""

    def __post_init__(self) -> None:
        check_types(self)
        check_splitting(self.test_fraction, self.group, self.protocol)
        at_least(self, evaluate_every=1, validation_queries=0)
        if self.end_epoch is not None:
            at_least(self, end_epoch=0)
        for name, bound in (("patience", 1), ("validation_folds", 2)):
            if (value := getattr(self, name)) is None:
                continue
            at_least(self, **{name: bound})
            if self.train_on == "all":
                raise ConfigError(
                    f"`{name}` {value} with `train_on=all`: all classes train, so that none are left to validate on; "
                    f"leave out `{name}`",
                    field=(name, "train_on"),
                )
            if not self.validation:
                raise ConfigError(
                    f"`{name}` {value}: needs validation classes; leave out `validation=False`, or `{name}`",
                    field=(name, "validation"),
                )
        if self.validation_folds is not None and self.patience is not None:
            raise ConfigError(
                f"`patience` {self.patience} with `validation_folds` {self.validation_folds}: the epochs of all folds "
                "are compared, so that each fold trains all of them; leave out one of the two",
                field=("patience", "validation_folds"),
            )
        if self.validation_folds is not None and self.select_by == "last":
            raise ConfigError(
                f"`validation_folds` {self.validation_folds} with `select_by=last`: folds serve to choose an epoch, "
                "and `select_by=last` chooses none; leave out one of the two",
                field=("validation_folds", "select_by"),
            )
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(
                f"`validation_fraction` {self.validation_fraction}: must be at least 0 and below 1",
                field="validation_fraction",
            )

    @property
    def splitting(self) -> dict[str, Any]:
        """The options of `divcon.read` that say how the data is split, those that are not at their defaults."""
        return {name: value for name, default in SPLITTING.items() if (value := getattr(self, name)) != default}

    @property
    def validates(self) -> bool:
        """Whether a run holds images out for validation, once, or those of folds."""
        return self.validation and self.train_on == "train"


SECTIONS: dict[str, type] = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
"""The sections of a `RunConfig`."""

SECTION_OF = {f.name: section for section, kind in SECTIONS.items() for f in dataclasses.fields(kind)}
"""The section of each setting; no two have a setting of one name."""

OPTIONS_OF = {
    f.name: f.metadata["options_of"]
    for kind in SECTIONS.values()
    for f in dataclasses.fields(kind)
    if f.metadata.get("options_of")
}
"""The settings that hold arguments, and the setting whose arguments they are."""


@dataclass(frozen=True)
class DataSource:
    """The data of a run, as in its ``config.json``: the arguments of `divcon.read`."""

    data: str
    root: Path | None = None
    fingerprint: str | None = None
    """The fingerprint of the training data, so that a run is repeated on the same data."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of `divcon.read`, such as ``label_column``."""


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run, as in its ``config.json``."""

    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        for name, kind in SECTIONS.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(
                    f"`{name}`: expected a {kind.__name__}, not {type(getattr(self, name)).__name__}", field=name
                )
        end, epochs = self.data.end_epoch, self.train.epochs
        if end is not None and epochs and end >= epochs:
            raise ConfigError(
                f"`end_epoch` {end}: the epochs are 0 to {epochs - 1} (`epochs` {epochs})",
                field=("end_epoch", "epochs"),
            )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, by section; parts of the user's own by name (see `divcon.config.fields`)."""
        return {name: saved(getattr(self, name)) for name in SECTIONS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "config", trust: Trust = True) -> RunConfig:
        """The inverse of `to_dict`. Missing settings have their defaults, those of a run's ``config.json`` the
        values that runs used before they existed; other content is ignored.

        Args:
            source: where the values come from, for messages.
            trust: modules that values may name, where the values come from a file that somebody else wrote.

        Raises:
            ConfigError: a section or setting is unknown (the message suggests the nearest names), has another type, or
                is out of bounds.
            TrustError: a setting names a part in a module that is not in ``trust``.
        """
        return cls._from_sections(values, lambda *keys: source, None, trust)

    @classmethod
    def load(cls, path: str | Path, trust: Trust = ()) -> RunConfig:
        """Read settings from a YAML, TOML or JSON file: your own, or a run's ``config.json``.

        Relative paths start from the file's folder. ``source`` and ``init``, which are no settings, are ignored; see
        `read_config_file`.

        Args:
            trust: modules of your own that the file may name, as in ``loss: my_losses:Loss``; True allows all.

        Raises:
            ConfigError: as in `from_dict` and `divcon.config.files.read_config_file`; with the file and, where it is
                known, the line.
            TrustError: as in `from_dict`.
        """
        file = read_config_file(path)
        return cls._from_sections(file.values, file.where, file.path.absolute().parent, trust)

    @classmethod
    def _from_sections(cls, values: Mapping[str, Any], where: Where, folder: Path | None, trust: Trust) -> RunConfig:
        sections = sections_in(values, where, folder, trust)
        configs = {}
        for name, kind in SECTIONS.items():
            settings = sections.get(name, {})
            try:
                configs[name] = kind(**settings)
            except ConfigError as error:
                raise placed(error, {key: where(name, key) for key in settings}) from None
        return cls(**configs)

    def save(self, path: str | Path, **more: Any) -> None:
        """Write as JSON, or as YAML where the name ends in .yaml or .yml.

        Args:
            more: more keys to write beside the settings.

        Raises:
            ConfigError: the name has another ending.
            OutputError: the file cannot be written.
        """
        path, tree = place(path), {**self.to_dict(), **more}
        if path.suffix.lower() not in (".json", ".yaml", ".yml"):
            raise ConfigError(f"{path}: settings are written as .json or .yaml")
        with atomic_write(path) as temporary:
            text = json.dumps(tree, indent=2) + "\n" if path.suffix.lower() == ".json" else as_yaml(tree)
            temporary.write_text(text, encoding="utf-8")

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """The settings whose values differ in ``other``: by name, the value here and there, as files keep them."""
        pairs = [differences(getattr(self, name), getattr(other, name)) for name in SECTIONS]
        return {name: values for section in pairs for name, values in section.items()}


RECORDED = ("benchmark", "protocol", "split_hash", "packed", "versions", "machine", "pinned", "like")
"""The keys of a run's ``config.json`` beside settings, source and init; a file with any of them is a run's."""


def sections_in(
    values: Mapping[str, Any], where: Where, folder: Path | None = None, trust: Trust = ()
) -> dict[str, Any]:
    """The sections in a settings file, each value of its type: ``{"train": {"epochs": 60}, "init": Path(...)}``.

    A run's ``config.json`` of any version is converted to today's names, and has every setting.

    Raises:
        ConfigError, TrustError: as in `RunConfig.from_dict`, but bounds are not checked: flags may replace the values.
    """
    if "format" in values:
        raise ConfigError(
            f"{where()}: describes a model, not a run; start from that model with `init={Path(where()).parent}`"
        )
    of_a_run = any(name in values for name in RECORDED)
    kinds = {**SECTIONS, "source": DataSource}
    sections: dict[str, Any] = {}
    for name, value in values.items():
        if name == "init":
            sections[name] = typed_value(Path | None, value, (name,), where, folder)
        elif name in kinds and (value is not None or name != "source"):
            if of_a_run and name in SECTIONS and isinstance(value, Mapping):
                value = restored(SECTIONS[name], value)
            sections[name] = typed(name, kinds[name], value, where, folder, SECTION_OF)
            check_doors(kinds[name], sections[name], where(name), trust)
        elif name not in (*RECORDED, "source"):
            words = unknown_key(str(name), "", [*kinds, "init"], SECTION_OF)
            raise ConfigError(f"{where(str(name))}: {words}")
    return sections
