"""The model: images or vectors to embeddings, saved without pickle, used on files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from divcon.data.loading import Pixels
from divcon.data.transforms import EvalTransform
from divcon.errors import ConfigError, WeightsError
from divcon.models.backbone import (
    Preprocessing,
    create_backbone,
    create_vector_backbone,
    load_fitting,
    resolve_backbone,
)
from divcon.models.folding import computed
from divcon.models.heads import create_head, head_class
from divcon.models.inputs import Inputs, as_set, check_sees, input_batches
from divcon.models.pooling import create_pooling
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.files import atomic_write, checked_tensors, write_tensors

FORMAT = 1


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write both files, each whole or not at all.

    Raises:
        OutputError: a file cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_tensors(folder / "model.safetensors", save(tensors))
    with atomic_write(folder / "config.json") as beside:
        beside.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_model` was given as ``config``.

    Raises:
        WeightsError: no model there, a damaged one, or one of another version.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except FileNotFoundError:
        begun = "; its run has not kept an epoch yet: go on with --resume" if folder.name == "model" else ""
        raise WeightsError(f"{folder}: no model there (config.json is missing){begun}") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{folder / 'config.json'}: damaged ({error})") from None
    if not isinstance(config, dict) or config.pop("format", None) != FORMAT or "freeze_batch_norm" not in config:
        raise WeightsError(f"{folder / 'config.json'}: not a model of this version of divcon")
    return config


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, on the CPU.

    Raises:
        OSError, SafetensorError, DamagedTensorsError: they are missing or damaged.
    """
    return load(checked_tensors(folder / "model.safetensors"))


KEPT_WITH_HEAD = ("method", "head_options", "embedding_dim", "num_learners", "pooling")
"""What two models must be made with alike for the head of one to serve the other."""


class EmbeddingModel(nn.Module):
    """Backbone, pooled features (F), and a head that K learners share (D).

    Args:
        backbone: any timm model by name; the papers' ResNet-50 is ``resnet50.tv_in1k``. For vectors ``none`` (the head
            alone) or ``mlp`` (a residual network before it). ``auto``: that ResNet-50 for images, ``none`` for vectors.
        embedding_dim: D.
        num_learners: K.
        method: ``single``, ``slices``, ``masks``, or a `divcon.models.SubspaceHead` of your own by its ``method``;
            None: ``masks`` where there are several learners, ``single`` where there is one.
        head_options: arguments of the method's head (see `divcon.models.heads`).
        pretrained: start from timm's weights; then BatchNorm's running statistics stay as they are.
        weights: a file of backbone weights to start from in their place.
        image_size: height and width of what the backbone sees, in pixels; a vision transformer's position embeddings
            are resampled to it.
        pooling: how the backbone's features become one vector: ``auto`` (its own), ``avg``, ``max``, ``gem``, or
            ``token`` (see `divcon.models.pooling`).
        dropout: share of the pooled features that is dropped in training.
        vector_dim: F0, where the model sees vectors in place of images: those of CLIP, DINO or a model of texts, say.
            Its features are the vectors, each divided by its root mean square; ``pretrained`` and ``image_size`` mean
            nothing to it.

    Raises:
        ConfigError: an unknown backbone (nearest names are suggested), one that does not see what ``vector_dim`` says
            or cannot be pooled so, or sizes that do not go together.
        WeightsError: the weights cannot be had; the message says what can be done without network.
    """

    preprocessing: Preprocessing
    """What the backbone wants to see; of models of images, as are ``image_size`` and `eval_transform`."""
    image_size: int
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: str = "auto",
        embedding_dim: int = 128,
        num_learners: int = 1,
        *,
        method: str | None = None,
        head_options: Mapping[str, Any] | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        image_size: int = 224,
        pooling: str = "auto",
        dropout: float = 0.01,
        vector_dim: int | None = None,
    ) -> None:
        super().__init__()
        method = method or ("single" if num_learners == 1 else "masks")
        head_class(method, num_learners, head_options)  # before weights are fetched for what cannot be
        backbone = resolve_backbone(backbone, vector_dim, weights)
        self.vector_dim = vector_dim
        if vector_dim is None:
            self.backbone, self.preprocessing = create_backbone(
                backbone, pretrained=pretrained, weights=weights, image_size=image_size
            )
            self.pooling, self._num_features = create_pooling(
                self.backbone, pooling, name=backbone, image_size=image_size
            )
            self.image_size = image_size
            channels = (1, -1, 1, 1)
            self.register_buffer("_mean", torch.tensor(self.preprocessing.mean).view(channels), persistent=False)
            self.register_buffer("_std", torch.tensor(self.preprocessing.std).view(channels), persistent=False)
            seen: dict[str, Any] = {"image_size": image_size, "pooling": pooling}
        else:
            if pooling != "auto":
                raise ConfigError(f"--pooling {pooling}: vectors are pooled already, and are taken whole; leave it out")
            self.backbone = create_vector_backbone(backbone, vector_dim)
            self.pooling = nn.Identity()
            self._num_features = vector_dim
            seen = {"vector_dim": vector_dim}
        self.head = create_head(method, self._num_features, embedding_dim, num_learners, dropout, head_options)
        self.freeze_batch_norm = vector_dim is None and (pretrained or weights is not None)
        self.config = {
            "backbone": backbone,
            "embedding_dim": embedding_dim,
            "num_learners": num_learners,
            "method": method,
            "head_options": dict(head_options or {}),
            **seen,
            "dropout": dropout,
        }

    @property
    def num_learners(self) -> int:
        return self.head.num_learners

    @property
    def embedding_dim(self) -> int:
        return self.head.embedding_dim

    @property
    def num_features(self) -> int:
        """F."""
        return self._num_features

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def eval_transform(self) -> EvalTransform:
        return EvalTransform(self.image_size, interpolation=self.preprocessing.interpolation)

    def forward(
        self, images: Float[Tensor, "b *seen"], learner: int | None = None, *, with_all: bool = False
    ) -> Float[Tensor, "B d"] | tuple[Float[Tensor, "B d"], Float[Tensor, "B D"], Float[Tensor, "B F"]]:
        """(B, 3, H, W) normalised images, or (B, F0) vectors, to embeddings of length one: (B, D), or learner k's
        (B, d_k); ``with_all`` gives that, the full embedding, and the pooled features that both are of. (Where several
        processes train on one batch, b of its B images come in, and the features of all are gathered.)"""
        features = self.pooling(self.backbone(images))
        if not with_all:
            return self.head(features, learner=learner)
        return *self.head(features, learner=learner, with_full=True), features

    def train(self, mode: bool = True) -> EmbeddingModel:
        """As in PyTorch; BatchNorm's running statistics stay frozen where training began from pretrained weights."""
        super().train(mode)
        if self.freeze_batch_norm:
            for module in self.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def normalize(self, pixels: UInt8[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """(B, 3, H, W) uint8 pixels to what the backbone was trained on, float32."""
        return (pixels.float() / 255 - self._mean) / self._std

    @torch.inference_mode()
    def pool(self, batches: Iterable[Pixels], features: np.ndarray) -> np.ndarray:
        """Writes the pooled features of batches of pixels (or vectors) into the rows of ``features``, (N, F) float32,
        that come with them, and returns it; sets eval mode."""
        self.eval()
        prepared = ((self._prepared(seen), indices) for seen, indices in batches)
        for pooled, indices in computed(self.backbone, self.pooling, prepared):
            features[indices.numpy()] = pooled.float().cpu().numpy()
        return features

    def _prepared(self, seen: Tensor) -> Tensor:
        seen = seen.to(self.device, non_blocking=True)
        return self.normalize(seen) if self.vector_dim is None else seen

    def features(
        self,
        images: Inputs,
        *,
        batch_size: int = 128,
        context: Context = DEFAULT,
    ) -> np.ndarray:
        """The pooled features of images or vectors, (N, F) float32: what is divided, and what the head sees.

        Raises:
            ImageError: an image does not decode; the message names it.
            DataError: they are not what the model sees.
        """
        images = as_set(images)
        check_sees(images, self.vector_dim)
        batches = input_batches(
            images,
            self.eval_transform if self.vector_dim is None else None,
            batch_size=batch_size,
            context=context,
            pin_memory=self.device.type == "cuda",
        )
        return self.pool(batches, np.empty((len(images), self.num_features), np.float32))

    @torch.inference_mode()
    def embed(self, features: Float32[np.ndarray, "N F"], learner: int | None = None) -> Float32[np.ndarray, "N d"]:
        """The embeddings of pooled features: (N, F) to (N, D), or learner k's (N, d_k), float32 of length one."""
        self.head.eval()
        parts = [
            self.head(torch.from_numpy(features[i : i + 8192]).to(self.device), learner=learner).cpu().numpy()
            for i in range(0, len(features), 8192)
        ]
        width = self.embedding_dim if learner is None else self.head.subspace_dim(learner)
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def encode(
        self,
        images: Inputs,
        *,
        learner: int | None = None,
        batch_size: int = 128,
        context: Context = DEFAULT,
    ) -> np.ndarray:
        """The embeddings of images or vectors: files, folders (walked), an (N, F0) array of vectors, or a `LabeledSet`.

        Args:
            learner: k for its subspace alone; None for the full embedding.

        Returns:
            (N, D) float32, each row of length one, in the order given.

        Raises:
            DataError: no images there, or not what the model sees.
            ImageError: an image does not decode; the message names it.
        """
        pooled = self.features(images, batch_size=batch_size, context=context)
        return self.embed(pooled, learner)

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, each whole or not at all.

        Raises:
            OutputError: a file cannot be written.
        """
        write_model(Path(folder), {**self.config, "freeze_batch_norm": self.freeze_batch_norm}, self.state_dict())

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu") -> EmbeddingModel:
        """A model that `save` wrote, in evaluation mode; a run's folder will do for its ``model/``.

        Raises:
            WeightsError: no model there, or a damaged one.
        """
        folder = Path(folder)
        if (folder / "model").is_dir() or (folder / "metrics.jsonl").exists():
            folder = folder / "model"
        config = read_config(folder)
        frozen = config.pop("freeze_batch_norm")
        try:
            model = cls(**config, pretrained=False)
            model.load_state_dict(read_weights(folder))
        except (TypeError, ValueError, ConfigError, SafetensorError, RuntimeError, OSError) as error:
            raise WeightsError(f"{folder}: the model is damaged or of another version ({error})") from None
        model.freeze_batch_norm = frozen
        return model.to(device).eval()

    def warm_start(self, other: EmbeddingModel) -> bool:
        """Go on from another model of the same backbone: its backbone (position embeddings resampled where it saw
        another image size), and its pooling and head where method, sizes and pooling agree.

        Returns:
            Whether the head was taken too.

        Raises:
            ConfigError: the other's backbone is another one, or was made for other vectors, or for an image size whose
                weights cannot be used at this one.
        """
        mine, theirs = self.config, other.config
        if self.vector_dim != other.vector_dim:
            here, there = (
                "images" if m.vector_dim is None else f"vectors of {m.vector_dim} dimensions" for m in (self, other)
            )
            raise ConfigError(f"the model to start from sees {there}, and this data holds {here}")
        if mine["backbone"] != theirs["backbone"]:
            raise ConfigError(
                f"the model to start from has backbone {theirs['backbone']}, and this run {mine['backbone']}: "
                f"give --backbone {theirs['backbone']}"
            )
        if wrong := load_fitting(self.backbone, other.backbone.state_dict()):
            raise ConfigError(
                f"the backbone of the model to start from does not fit this one ({wrong}): give what it was made with, "
                f"--size {theirs['image_size']} --pooling {theirs['pooling']}"
            )
        same = all(mine.get(name) == theirs.get(name) for name in KEPT_WITH_HEAD)
        same = same and self.num_learners == other.num_learners  # a hierarchy may not have been grown up
        if same:
            self.pooling.load_state_dict(other.pooling.state_dict())
            self.head.load_state_dict(other.head.state_dict())
        self.freeze_batch_norm = self.vector_dim is None
        return same
