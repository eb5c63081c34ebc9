"""The model: images or vectors to embeddings, saved without pickle, used on files."""

from __future__ import annotations

import copy
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float, Float32, UInt8
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from divcon.config.fields import saved_value
from divcon.config.image_size import MOST_PIXELS, ImageSize, height_width, read_size, saved_size
from divcon.config.pixel_range import PixelRange, read_pixel_range, saved_pixel_range
from divcon.data.in_memory import arrays_as_files
from divcon.data.labeled_set import LabeledSet
from divcon.data.loading import OnBad, Pixels, needed_pixels
from divcon.data.transforms import FITS, EvalTransform, Fit, Own, OwnTransform, Transform, create_transform
from divcon.errors import ConfigError, WeightsError, unknown
from divcon.models.backbone import (
    Backbone,
    Preprocessing,
    backbone_name,
    create_backbone,
    create_own_backbone,
    create_vector_backbone,
    is_own,
    load_fitting,
    output_of,
    preprocessing_of,
    recompute,
    resolve_backbone,
)
from divcon.models.batches import input_batches
from divcon.models.card import model_card
from divcon.models.folder import FORMAT, WEIGHTS, model_folder, read_config
from divcon.models.folding import computed
from divcon.models.heads import SubspaceHead, create_head, head_class, is_imported
from divcon.models.inputs import Inputs, as_set, check_input
from divcon.models.names import own_parts
from divcon.models.pooling import create_pooling, create_pooling_of
from divcon.models.pretrained import CARD, FILES, extra_config, write_extras
from divcon.models.sources import is_sourced, read_source
from divcon.models.start import Start
from divcon.runtime import hub
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import forget
from divcon.runtime.exchange import from_main
from divcon.runtime.files import DamagedTensorsError, atomic_write, checked_tensors, write_tensors
from divcon.runtime.importing import Trust, check_trusted
from divcon.runtime.places import is_url, place

if TYPE_CHECKING:
    from divcon.runtime.distributed import ProcessGroup


class EmbeddingModel(nn.Module, ModelHubMixin, library_name="divcon"):
    """Backbone, pooled features (F), and a head that K learners share (D).

    Args:
        backbone: any timm model by name, or as others call it (``timm/resnet18.a1_in1k``, ``facebook/dinov2-base``,
            ``open_clip:ViT-B-32/openai``; see `divcon.config.backbone_names.canonical`); the papers' ResNet-50 is
            ``resnet50.tv_in1k``. ``hf-hub:user/model``: a repository of the Hugging Face hub that timm wrote. For
            vectors ``none`` (the head alone) or ``mlp`` (a residual network before it). ``auto``: that ResNet-50 for
            images, ``none`` for vectors. One of your own: a module, a class or function that returns one, or its
            ``module:Name``; its output is (B, F), a map (B, F, H, W) or tokens (B, N, F), and its BatchNorm trains,
            unless ``weights`` are loaded.
        embedding_dim: D.
        num_learners: K.
        method: ``single``, ``slices``, ``masks``, or a subclass of `divcon.models.SubspaceHead`, itself or as
            ``module:Name``; None: ``masks`` with several learners, ``single`` with one.
        head_options: arguments of the method's head (see `divcon.models.heads`).
        pretrained: start from timm's weights; then BatchNorm's running statistics stay fixed. Nothing is loaded into a
            backbone of your own.
        weights: a file of backbone weights to start from instead.
        image_size: of the backbone's input, in pixels: height and width both, or (height, width); a vision
            transformer's position embeddings are resampled to it.
        fit: how an image comes into that size: ``crop`` (the middle of it), ``squash`` (all of it, resized to exactly
            that height and width) or ``pad`` (all of it in its own shape, with a border in the backbone's mean colour).
            The model's files keep it. `divcon.run` chooses it from the training images.
        pixel_range: of images with more than 8 bits a channel, the values that become black and white: ``full`` (0 and
            65,535), ``own`` (the lowest and highest of each image), or two numbers.
        channels: C of the images: 3 (colours), 1 (grey), or another, of ``.npy`` files, for example; timm adapts its
            weights to it, and the mean and deviation of the colours stand for those of each channel.
        pooling: how the backbone's features become one vector: ``auto`` (its own), ``avg``, ``max``, ``gem``, or
            ``token`` (see `divcon.models.pooling`).
        dropout: share of the pooled features that is dropped in training.
        vector_dim: F0, for a model of vectors instead of images: those of CLIP, DINO or a model of texts, say. The
            features are the vectors, each divided by its root mean square, or what a backbone of your own makes of
            them; ``pretrained`` and ``image_size`` have no effect.
        eval_transform: a transform of your own for the images that are embedded, in place of resizing and centre crop:
            any callable on a PIL image, a pipeline of torchvision or albumentations, or its ``module:Name``, which the
            model's files keep (see `divcon.data.transforms`).
        backbone_config: of a repository or folder as backbone, what `divcon.models.sources.read_source` has read; the
            model's files keep it, so that loading them needs no hub. None: it is read.

    Raises:
        ConfigError: the backbone is unknown (the message suggests the nearest names), does not take the input that
            ``vector_dim`` says or cannot be pooled so; or sizes do not go together.
        WeightsError: the weights cannot be downloaded or read; the message says what can be done without network.
    """

    config: dict[str, Any]
    """The arguments that create a model like this one, as its files hold them."""
    preprocessing: Preprocessing
    """The input that the backbone was trained on; only of models of images, as ``image_size`` and `eval_transform`."""
    image_size: ImageSize
    fit: Fit
    pixel_range: PixelRange
    channels: int
    start: Start
    """The weights that its training started from."""
    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        backbone: Backbone = "auto",
        embedding_dim: int = 128,
        num_learners: int = 1,
        *,
        method: str | type[SubspaceHead] | None = None,
        head_options: Mapping[str, Any] | None = None,
        pretrained: bool = True,
        weights: str | Path | None = None,
        image_size: ImageSize | str = 224,
        fit: str = "crop",
        pixel_range: PixelRange | str = "full",
        channels: int = 3,
        pooling: str = "auto",
        dropout: float = 0.01,
        vector_dim: int | None = None,
        eval_transform: Own | None = None,
        backbone_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        image_size = _checked_size(image_size)
        if channels < 1:
            raise ConfigError(f"`channels` {channels}: must be at least 1", field="channels")
        if channels != 3 and eval_transform is not None:
            raise ConfigError(
                f"`channels` {channels}: a transform of your own takes colour images; leave out one of the two",
                field=("channels", "eval_transform"),
            )
        if fit not in FITS:
            raise ConfigError(unknown("`fit`", fit, FITS), field="fit")
        method = method or ("single" if num_learners == 1 else "masks")
        head_class(method, num_learners, head_options)  # before weights are downloaded for nothing
        backbone = resolve_backbone(backbone, vector_dim, weights)
        own, name = is_own(backbone), backbone_name(backbone)
        self.vector_dim = vector_dim
        if vector_dim is not None and pooling != "auto":
            raise ConfigError(f"`pooling` {pooling}: vectors are pooled already; leave it out", field="pooling")
        if own:
            images = {"image_size": image_size, "channels": channels}
            sizes: Any = images if vector_dim is None else {"vector_dim": vector_dim}
            self.backbone = create_own_backbone(backbone, weights=weights, **sizes)
            pixels = height_width(image_size)
            example = torch.zeros(1, channels, *pixels) if vector_dim is None else torch.zeros(1, vector_dim)
            output = output_of(self.backbone, example, name=name)
            self.pooling, self._num_features = create_pooling_of(output, self.backbone, pooling, name=name)
        elif vector_dim is None:
            if is_sourced(name):
                backbone_config = read_source(name) if backbone_config is None else backbone_config
            self.backbone, self.preprocessing = create_backbone(
                name,
                pretrained=pretrained,
                weights=weights,
                image_size=image_size,
                channels=channels,
                config=backbone_config,
            )
            self.pooling, self._num_features = create_pooling(
                self.backbone, pooling, name=name, image_size=image_size, channels=channels
            )
        else:
            self.backbone = create_vector_backbone(name, vector_dim)
            self.pooling, self._num_features = nn.Identity(), vector_dim
        if vector_dim is None:
            if own:
                self.preprocessing = preprocessing_of(self.backbone, name=name, channels=channels)
            self.channels = channels
            self.image_size, self.fit, self.pixel_range = image_size, cast("Fit", fit), _checked_range(pixel_range)
            of_channels = (1, -1, 1, 1)
            self.register_buffer("_mean", torch.tensor(self.preprocessing.mean).view(of_channels), persistent=False)
            self.register_buffer("_std", torch.tensor(self.preprocessing.std).view(of_channels), persistent=False)
        self._own_transform: OwnTransform | None = None
        if eval_transform is not None:
            if vector_dim is not None:
                raise ConfigError("`eval_transform`: vectors are not transformed; leave it out", field="eval_transform")
            self._own_transform = create_transform(eval_transform, image_size, "eval_transform", self.pixel_range)
        self.head = create_head(method, self._num_features, embedding_dim, num_learners, dropout, head_options)
        self._recomputes = False
        self.freeze_batch_norm = weights is not None or (pretrained and vector_dim is None and not own)
        self.start = Start(pretrained, None if weights is None else place(weights))
        self.config = {
            "backbone": name,
            **self.head.config,
            **(
                {"image_size": saved_size(image_size), "fit": fit, "pooling": pooling}
                if vector_dim is None
                else {"vector_dim": vector_dim}
            ),
            "dropout": dropout,
        }
        if is_sourced(name):
            self.config["backbone_config"] = backbone_config
        if vector_dim is None and channels != 3:
            self.config["channels"] = channels
        if vector_dim is None and self.pixel_range != "full":
            self.config["pixel_range"] = saved_pixel_range(self.pixel_range)
        if eval_transform is not None:
            self.config["eval_transform"] = saved_value(eval_transform)
        if own and (parameter := next(self.backbone.parameters(), None)) is not None:
            self.to(parameter.device)

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
    def eval_transform(self) -> Transform:
        """From a decoded image to (3, H, W) uint8 pixels."""
        return self._own_transform or EvalTransform(
            self.image_size,
            interpolation=self.preprocessing.interpolation,
            fit=self.fit,
            fill=self.preprocessing.fill,
            pixel_range=self.pixel_range,
            channels=self.channels,
        )

    def forward(
        self, images: Float[Tensor, "b *input"], learner: int | None = None, *, with_all: bool = False
    ) -> Float[Tensor, "B d"] | tuple[Float[Tensor, "B d"], Float[Tensor, "B D"], Float[Tensor, "B F"]]:
        """(B, 3, H, W) normalised images, or (B, F0) vectors, to embeddings of length one: (B, D), or learner k's
        (B, d_k). ``with_all`` returns three: that, the full embedding, and the pooled features. (If several processes
        train on one batch, each passes b of its B images, and the features of all are gathered.)"""
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
        if self._recomputes:
            recompute(self.backbone, mode)
        return self

    def recompute_activations(self, enable: bool) -> None:
        """Whether training keeps only the activations between the backbone's blocks, and computes the others again in
        the backward pass (gradient checkpointing). It is no part of what is saved.

        Raises:
            ConfigError: the backbone cannot; or it trains BatchNorm, whose running statistics would count each batch
                twice.
        """
        if enable:
            trains_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.backbone.modules())
            if trains_norm and not self.freeze_batch_norm:
                raise ConfigError(
                    "`grad_checkpointing`: the backbone trains BatchNorm, whose running statistics would count each "
                    "batch twice; start from pretrained weights (`pretrained`, `weights`), which freezes them, or "
                    "choose a backbone without BatchNorm, such as a vision transformer",
                    field="grad_checkpointing",
                )
        if enable or self._recomputes:
            recompute(self.backbone, enable and self.training)
        self._recomputes = enable

    def normalize(self, pixels: UInt8[Tensor, "B C H W"]) -> Float32[Tensor, "B C H W"]:
        """(B, 3, H, W) uint8 pixels as float32, normalised as the backbone's training images were."""
        return (pixels.float() / 255 - self._mean) / self._std

    @torch.inference_mode()
    def pool(self, batches: Iterable[Pixels], features: np.ndarray) -> np.ndarray:
        """Write the pooled features of batches of pixels or vectors into their rows of ``features``, (N, F) float32,
        and return it; sets evaluation mode."""
        for pooled, rows in self.pooled(batches):
            features[rows] = pooled
        return features

    def pooled(self, batches: Iterable[Pixels]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The pooled features of each of these batches of pixels or vectors, (b, F) float32, with their (b,) int64
        rows; sets evaluation mode."""
        self.eval()
        prepared = ((self._prepare(inputs), indices) for inputs, indices in batches)
        computing = computed(self.backbone, self.pooling, prepared)
        while True:
            with torch.inference_mode():  # not while the caller has a batch
                batch = next(computing, None)
                pooled = None if batch is None else batch[0].float().cpu().numpy()
            if batch is None or pooled is None:
                return
            yield pooled, batch[1].numpy()

    def _prepare(self, inputs: Tensor) -> Tensor:
        inputs = inputs.to(self.device, non_blocking=True)
        return self.normalize(inputs) if self.vector_dim is None else inputs

    def features(
        self,
        images: Inputs,
        *,
        batch_size: int = 128,
        on_bad_image: OnBad | None = None,
        context: Context = DEFAULT,
    ) -> np.ndarray:
        """The pooled features of images or vectors, (N, F) float32: the input of division, and of the head.

        Args:
            on_bad_image: called with the index and the message of each image that does not decode, whose row is zero;
                None: it is an error.

        Raises:
            ImageError: an image does not decode; the message names it.
            DataError: the model takes other input.
        """
        if self.vector_dim is None and self.channels != 3 and not isinstance(images, LabeledSet):
            images = arrays_as_files(images)
        images = as_set(images, None if self.vector_dim is not None else needed_pixels(self.eval_transform), context)
        check_input(images, self.vector_dim)
        batches = input_batches(
            images,
            self.eval_transform if self.vector_dim is None else None,
            batch_size=batch_size,
            context=context,
            pin_memory=self.device.type == "cuda",
            on_bad_image=on_bad_image,
        )
        return self.pool(batches, np.zeros((len(images), self.num_features), np.float32))

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
        """The embeddings of images or vectors: files, folders (walked), images in memory (PIL images, arrays (H, W, 3)
        of uint8, bytes of files), an (N, F0) array of vectors, or a `LabeledSet`.

        Args:
            learner: k for its subspace alone; None for the full embedding.

        Returns:
            (N, D) float32, each row of length one, in the order of the inputs.

        Raises:
            DataError: there are no images, or the model takes other input.
            ImageError: an image does not decode; the message names it.
        """
        pooled = self.features(images, batch_size=batch_size, context=context)
        return self.embed(pooled, learner)

    def with_head(self, head: SubspaceHead, *, shared: bool = False) -> EmbeddingModel:
        """A copy of this model, in evaluation mode, with another head for the same features.

        Args:
            shared: the copy has this model's own backbone and pooling, not copies of them.
        """
        kept = [self.backbone, self.pooling] if shared else []
        copied = copy.deepcopy(self, {id(self.head): head, **{id(module): module for module in kept}})
        copied.config |= head.config
        return copied.to(self.device).eval()

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, each atomically.

        Raises:
            OutputError: a file cannot be written.
        """
        write_model(place(folder), {**self.config, "freeze_batch_norm": self.freeze_batch_norm}, self.state_dict())

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        trust: Trust = (),
        backbone: nn.Module | None = None,
        eval_transform: Own | None = None,
    ) -> EmbeddingModel:
        """A model that `save` wrote, in evaluation mode.

        Args:
            folder: of the model, or of the run that it is of.
            trust: modules of your own that the folder may import code from: their names, or True for all.
            backbone: of a model whose backbone is your own: the module to load the weights into, where its class cannot
                be created without arguments.
            eval_transform: of a model whose evaluation transform was passed as an object: the object.

        Raises:
            WeightsError: there is no model, or it is damaged, or it cannot be created here.
            TrustError: the folder names code of your own that ``trust`` does not allow.
        """
        forget(folder)  # a model at an address may have been trained on since
        folder = model_folder(folder)
        config = read_config(folder)
        frozen = config.pop("freeze_batch_norm")
        own = {"backbone": backbone, "eval_transform": eval_transform}
        model = cls.from_config(config, folder / "config.json", trust=trust, **own)
        try:
            weights = read_weights(folder)
        except (OSError, SafetensorError, DamagedTensorsError) as error:
            raise WeightsError(f"{folder}: the weights are missing or damaged ({error})") from None
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise WeightsError(f"{folder}: the weights do not fit the model of config.json ({error})") from None
        model.freeze_batch_norm = frozen
        model.start = Start.of(folder, config, frozen=frozen)
        return model.to(device).eval()

    @classmethod
    def from_pretrained(  # type: ignore[override] - with the arguments of `load`
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        device: str | torch.device = "cpu",
        trust: Trust = (),
        backbone: nn.Module | None = None,
        eval_transform: Own | None = None,
    ) -> EmbeddingModel:
        """A model from the Hugging Face Hub, or from a folder, in evaluation mode.

        Args:
            pretrained_model_name_or_path: ``USER/MODEL`` on the Hub; or a folder or address, as `load` takes it.
            revision: a branch, a tag or a commit; None: the main branch.
            subfolder: of the repository or folder.
            token: of a Hugging Face account; None: that of HF_TOKEN or of ``hf auth login``; False: none.
            cache_dir: in place of the Hub's cache.
            local_files_only: ask nobody; what is in the cache counts.
            force_download: download again what is in the cache.
            device, trust, backbone, eval_transform: see `load`.

        Raises:
            WeightsError, TrustError: as `load`.
            ConfigError: it is neither a folder nor the name of a repository.
            RemoteError: the Hub cannot be reached, and the model is not in the cache. RemoteMissingError,
                RemoteDeniedError: there is no such repository or revision, or the token does not allow it.
        """
        name = os.fspath(pretrained_model_name_or_path)
        if is_url(name) or place(name).exists():
            folder = place(name) / subfolder
        else:
            folder = hub.download(
                name,
                revision=revision,
                subfolder=subfolder,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                force_download=force_download,
            )
        return cls.load(folder, device=device, trust=trust, backbone=backbone, eval_transform=eval_transform)

    def save_pretrained(  # type: ignore[override] - no configuration: the model has its own
        self,
        save_directory: str | Path,
        *,
        card: str | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """As `save`, and what lets others load the folder: a model card, and what sentence-transformers and
        transformers read.

        Args:
            card: the text of ``README.md``; None: one that says what the model is, unless there is one already. Of a
                run, `divcon.export` writes one with data, scores and settings.
            repo_id: of the repository, ``USER/MODEL``, for the card and for ``push_to_hub``; None: the folder's name.
            push_to_hub: push the model too, with ``options`` of `push_to_hub`.

        Returns:
            The address of the commit, where it was pushed.

        Raises:
            OutputError: a file cannot be written.
            ConfigError, RemoteError: as `push_to_hub`.
        """
        folder = place(save_directory)
        if card is None and not (folder / CARD).exists():
            card = model_card((repo_id or folder.absolute().name).rpartition("/")[2], self, repo_id=repo_id)
        write_extras(folder, self, card)
        config = {**self.config, "freeze_batch_norm": self.freeze_batch_norm, **extra_config(self)}
        write_model(folder, config, self.state_dict())
        return self.push_to_hub(repo_id or folder.name, card=card, **options) if push_to_hub else None

    def generate_model_card(self, **options: Any) -> ModelCard:
        """The card of the model, of which no run is known. ``options`` are those of `divcon.models.card.model_card`."""
        return ModelCard(model_card(**{"name": "model", "model": self, **options}))

    def push_to_hub(  # type: ignore[override] - no configuration: the model has its own
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        card: str | None = None,
        keep_card: bool = False,
    ) -> str:
        """Push the model to the Hugging Face Hub, in one commit: what `save_pretrained` writes. Of a run,
        `divcon.export` with ``push`` writes a card with data, scores and settings.

        Args:
            repo_id: ``USER/MODEL``; the repository is created if it is not there.
            private: whether a repository that is created is private; None: as the account creates them.
            revision: the branch, created if it is not there; None: the main branch.
            commit_message: of the commit.
            token: see `from_pretrained`.
            card: the text of ``README.md``; None: one that says what the model is.
            keep_card: leave the card that the repository has.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: that is no name of a repository; or it is there, and not as ``private`` says.
            RemoteError: the Hub cannot be reached, or refuses. RemoteDeniedError: there is no token, or it does not
                allow it. The repository is as it was then, or new and empty.
        """
        hub.check_push(repo_id, private=private, token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, repo_id=repo_id)
            return hub.push(
                Path(folder),
                repo_id,
                private=private,
                revision=revision,
                message=commit_message,
                token=token,
                without=[CARD] if keep_card else (),
                replaced=FILES,
            )

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        where: str | Path,
        *,
        trust: Trust = (),
        backbone: nn.Module | None = None,
        eval_transform: Own | None = None,
    ) -> EmbeddingModel:
        """An untrained model like the one whose `config` a file holds.

        Args:
            where: the file, for messages.
            trust, backbone, eval_transform: see `load`.

        Raises:
            WeightsError: the model cannot be created here; the message says what is missing.
            TrustError: as `load`.
        """
        objects = {"backbone": backbone, "eval_transform": eval_transform}
        objects = {name: value for name, value in objects.items() if value is not None}
        _check_trusted({**config, **dict.fromkeys(objects)}, str(where), trust)
        named = config.get("backbone", "auto")
        if unknown := sorted(set(config) - set(inspect.signature(cls).parameters)):
            raise WeightsError(f"{where}: written by another version of divcon (it has {', '.join(unknown)})")
        if backbone is not None and not is_own(named):
            raise WeightsError(f"{where}: the backbone is {named}, and no module of your own; leave `backbone` out")
        try:
            model = cls(**{**config, **objects}, pretrained=False)
        except ConfigError as error:
            name = "eval_transform" if error.field == "eval_transform" else "backbone" if is_own(named) else ""
            advice = f"; or pass the object itself: EmbeddingModel.load(folder, {name}=...)" if name else ""
            raise WeightsError(f"{where}: {error}{'' if name in objects else advice}") from None
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) and error.args else error
            raise WeightsError(f"{where}: the model cannot be created from this file ({reason})") from None
        model.config |= config
        return model

    def warm_start(self, other: EmbeddingModel) -> bool:
        """Start from the weights of another model of the same backbone: those of its backbone (position embeddings
        resampled to this image size), and of its pooling and head where method, sizes and pooling are the same.

        Returns:
            Whether the head's weights were taken too.

        Raises:
            ConfigError: the other model has another backbone, or other vectors, or an image size whose weights cannot
                be used at this one.
        """
        mine, theirs = self.config, other.config
        if self.vector_dim != other.vector_dim:
            here, there = (
                "images" if m.vector_dim is None else f"vectors of {m.vector_dim} dimensions" for m in (self, other)
            )
            raise ConfigError(f"the model to start from takes {there}, and this data holds {here}", field="init")
        if mine["backbone"] != theirs["backbone"]:
            raise ConfigError(
                f"the model to start from has backbone {theirs['backbone']}, and this run {mine['backbone']}: "
                f"use `backbone={theirs['backbone']}`",
                field=("backbone", "init"),
            )
        if wrong := load_fitting(self.backbone, other.backbone.state_dict()):
            raise ConfigError(
                f"the backbone of the model to start from does not fit this one ({wrong}): use its "
                f"`image_size={theirs['image_size']}` and `pooling={theirs['pooling']}`",
                field=("image_size", "pooling", "init"),
            )
        head = other.head.trained
        same = self.head.config == head.config and mine.get("pooling") == theirs.get("pooling")
        same = same and self.num_learners == head.num_learners  # a hierarchy may still have been growing
        if same:
            self.pooling.load_state_dict(other.pooling.state_dict())
            self.head.load_state_dict(head.state_dict())
        self.freeze_batch_norm = self.vector_dim is None
        self.start = Start(False, recorded=False)
        return same


def _checked_size(size: ImageSize | str) -> ImageSize:
    """
    Raises:
        ConfigError: it is no size.
    """
    try:
        read = read_size(size)
    except ValueError as error:
        raise ConfigError(f"`image_size`: {error}", field="image_size") from None
    if not 1 <= min(sides := height_width(read)) <= max(sides) <= MOST_PIXELS:
        raise ConfigError(
            f"`image_size` {saved_size(read)}: height and width must be from 1 to {MOST_PIXELS:,}", field="image_size"
        )
    return read


def _checked_range(pixel_range: PixelRange | str) -> PixelRange:
    """
    Raises:
        ConfigError: it is no range, or none that a model can use.
    """
    try:
        read = read_pixel_range(pixel_range)
    except ValueError as error:
        raise ConfigError(f"`pixel_range`: {error}", field="pixel_range") from None
    if read == "auto":
        raise ConfigError(
            "`pixel_range` auto: a model has no data to choose by; use full, own or two numbers", field="pixel_range"
        )
    return read


def as_model(model: object) -> EmbeddingModel:
    """The model itself, or the one in the folder of a run or model.

    Raises:
        ConfigError: it is neither.
        WeightsError: there is no model in the folder, or a damaged one.
    """
    if isinstance(model, EmbeddingModel):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise ConfigError(
            f"`model` is of type {type(model).__name__}: pass a divcon.EmbeddingModel, or the folder of a run or model",
            field="model",
        )
    return EmbeddingModel.load(place(model))


def own_backbone(model: EmbeddingModel) -> nn.Module | None:
    """The model's backbone where it is the user's own, for `EmbeddingModel.load`: its class may need arguments."""
    return model.backbone if is_own(model.config["backbone"]) else None


def own_transform(model: EmbeddingModel) -> Own | None:
    """The model's evaluation transform where it is the user's own, for `EmbeddingModel.load`."""
    return None if model._own_transform is None else model._own_transform.own


def model_of_main(
    group: ProcessGroup,
    load: Callable[[], EmbeddingModel],
    *,
    device: str | torch.device = "cpu",
    backbone: nn.Module | None = None,
    eval_transform: Own | None = None,
) -> EmbeddingModel:
    """The model that ``load`` loads in rank 0, for all ranks of a group, of which the others need no file of it.

    Args:
        device, backbone, eval_transform: as `EmbeddingModel.load` takes them, of the other ranks.
    """
    if group.alone:
        return load()
    loaded: list[EmbeddingModel] = []

    def parts() -> tuple[Any, ...]:
        model = load()
        loaded.append(model)
        return model.config, model.freeze_batch_norm, model.start, model.state_dict()

    config, frozen, start, weights = from_main(group, parts)
    if loaded:
        return loaded[0]
    own: dict[str, Any] = {"backbone": backbone, "eval_transform": eval_transform}
    model = EmbeddingModel.from_config(config, "rank 0", trust=True, **own)
    model.load_state_dict(weights)
    model.freeze_batch_norm, model.start = frozen, start
    return model.to(device).eval()


def shared_features(
    model: EmbeddingModel, images: LabeledSet, *, batch_size: int = 128, context: Context = DEFAULT
) -> Float32[np.ndarray, "N F"]:
    """`EmbeddingModel.features`; the processes of the context's group share the images, and each gets all features."""
    group = context.group
    if group.alone:
        return model.features(images, batch_size=batch_size, context=context)
    shard = group.shard(len(images))
    own = model.features(
        images.subset(np.arange(shard.start, shard.stop)),
        batch_size=batch_size,
        context=context.subtask(total=len(images), times=group.world_size),
    )
    return group.all_gather(torch.from_numpy(own), len(images)).numpy()


def write_model(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Write ``config.json`` and ``model.safetensors``, each atomically.

    Raises:
        OutputError: a file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    written: set[int] = set()  # addresses of memory
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        # Weights that a backbone uses twice are two tensors in the file.
        shared = tensor.numel() > 0 and tensor.untyped_storage().data_ptr() in written
        tensors[name] = tensor.clone() if shared else tensor
        written.add(tensor.untyped_storage().data_ptr())
    write_tensors(folder / WEIGHTS, save(tensors))
    with atomic_write(folder / "config.json") as beside:
        beside.write_text(json.dumps({"format": FORMAT, **config}, indent=2) + "\n")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights, on the CPU.

    Raises:
        OSError, SafetensorError, DamagedTensorsError: they are missing or damaged.
    """
    return load(checked_tensors(folder / WEIGHTS))


def _check_trusted(config: Mapping[str, Any], where: str, trust: Trust) -> None:
    """Raise TrustError if the file names code of the user's own that is neither imported yet nor allowed."""
    for name in own_parts(config):
        if not is_imported(name):
            check_trusted(name, where, trust)
