"""Search before any training: an index by a pretrained backbone, whose model lies in a folder beside it.

The folder is like that of a run: ``model/``, ``index/`` (unless the store is elsewhere), and ``untrained.json``, which
says where the images are. It stands for a run where an index is made, searched or served.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from divcon.config.backbone_names import SOURCES, canonical
from divcon.data.decode import image_endings
from divcon.data.image_files import INDEX
from divcon.errors import ConfigError, StoreError
from divcon.runtime.context import DEFAULT, Context
from divcon.runtime.copies import here
from divcon.runtime.files import atomic_write
from divcon.runtime.importing import Trust, is_named
from divcon.runtime.places import absolute, exists_here, is_url, place, text_of, url_of

if TYPE_CHECKING:
    from divcon.config.image_size import ImageSize
    from divcon.data.labeled_set import LabeledSet
    from divcon.models import EmbeddingModel
    from divcon.search.index import Index

BACKBONE = "tf_efficientnet_lite0"
"""The backbone of images where none is named: it is fast on a CPU, and its weights come with the extra ``demo``,
without network."""
RECORD = "untrained.json"

CLASSES, IMAGES = 6, 2
"""The fewest classes, and images of each, that `divcon train` takes as it is: train, validation and test need two
classes each, of a pair."""


@dataclass(frozen=True)
class Untrained:
    """The settings of an index by a pretrained backbone, and where its images are."""

    backbone: str
    """The name; for vectors ``none``."""
    weights: str | None = None
    image_size: int | str = 0
    """0 and ``auto``: it was chosen from the images."""
    fit: str = "auto"
    data: tuple[str, ...] = ()
    """The files, folders or tables, with absolute paths, or the name of a data set; empty: images in memory."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of `divcon.read` for the data: the columns of a table."""

    @classmethod
    def read(cls, folder: str | Path) -> Untrained | None:
        """What `write` wrote; None: the folder is not of such an index.

        Raises:
            StoreError: the file is damaged.
        """
        path = here(place(folder) / RECORD)
        try:
            values = json.loads(path.read_text())
            return cls(**{**values, "data": tuple(values["data"])})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise StoreError(f"{path}: damaged ({error}); delete the folder, and index again") from None

    def write(self, folder: Path) -> None:
        """
        Raises:
            OutputError: the folder cannot be written.
        """
        with atomic_write(folder / RECORD) as beside:
            beside.write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def is_backbone(model: object) -> bool:
    """Whether it is the name of a backbone, and no folder: a timm model, one of your own as ``module:Name``, or
    ``none``, for vectors."""
    if not isinstance(model, str) or is_url(model) or Path(model).exists():
        return False
    import timm

    name = canonical(model)
    return name == "none" or is_named(name) or name.startswith(SOURCES) or timm.is_model(name.partition(".")[0])


def default_folder(data: Sequence[str | os.PathLike[str]]) -> Path:
    """The folder of the index of these images, beside the first of them: ``photos.divcon`` for ``photos/``, and for the
    images in it; ``products.csv.divcon`` for a table.

    Raises:
        ConfigError: it has no name.
    """
    if data and url_of(data[0]) is not None:
        raise ConfigError("pass `store`: the images are at an address, and the index needs a folder", field="store")
    first = Path(os.path.abspath(data[0])) if data else Path()  # noqa: PTH100 - a link keeps its own name
    if first.is_file() and first.suffix.lower() in image_endings():
        first = first.parent
    if not first.name:
        raise ConfigError("pass `store`: the folder that the index is to be in", field="store")
    return first.with_name(first.name + INDEX)


def place_of(store: Any, data: Sequence[str | os.PathLike[str]]) -> tuple[Path, Any]:
    """The folder of the model, and the store.

    Args:
        store: None: `default_folder`. A folder: that of model and index. Another address (see
            `divcon.search.stores.open_store`): the index is there, and the model in `default_folder`.

    Raises:
        ConfigError: there is no default.
    """
    if store is None:
        folder = default_folder(data)
        return folder, folder / "index"
    text = os.fspath(store) if isinstance(store, (str, os.PathLike)) else ""
    if not text or "://" in text or (is_named(text.partition("?")[0]) and not Path(text).exists()):
        return default_folder(data), store
    return Path(text), Path(text) / "index"


def prepare(
    folder: Path,
    images: LabeledSet,
    backbone: str | None = None,
    *,
    image_size: ImageSize | str | None = None,
    fit: str | None = None,
    weights: str | Path | None = None,
    data: Sequence[str | os.PathLike[str]] = (),
    options: Mapping[str, Any] | None = None,
    trust: Trust = (),
    context: Context = DEFAULT,
) -> EmbeddingModel:
    """The model in a folder; one of a pretrained backbone is made, and saved, if there is none.

    Args:
        images: of the index; size and fit are chosen from them where they are left out.
        backbone: a timm model, or one of your own as ``module:Name``. None: that of the model that is there, or
            `BACKBONE`; for vectors ``none``, the vectors as they are.
        data, options: recorded, see `Untrained`.
        trust: modules of a backbone of your own that the folder may import, see `EmbeddingModel.load`.
        context: warned of what is chosen.

    Raises:
        StoreError: the folder is itself a store, of another model.
        ConfigError: the model that is there has other settings; or as `divcon.models.untrained.untrained_model`.
        WeightsError: the weights cannot be downloaded or read.
        OutputError: the folder cannot be written.
    """
    from divcon.config.image_size import read_size, saved_size
    from divcon.config.settings import ModelConfig
    from divcon.models import EmbeddingModel
    from divcon.models.untrained import untrained_model
    from divcon.search.stores.places import ABOUT_FILE

    if (folder / ABOUT_FILE).exists():
        raise StoreError(f"{folder}: has an index of another model; choose another `store`")
    try:
        size = 0 if image_size is None else saved_size(read_size(image_size))
    except ValueError as error:
        raise ConfigError(f"`image_size`: {error}", field="image_size") from None
    known = Untrained.read(folder)
    is_model = (folder / "model" / "config.json").exists()
    if is_model and known is None:
        raise ConfigError(
            f"{folder}: has a trained model, which needs no `backbone`; choose another `store`", field="backbone"
        )
    wanted = Untrained(
        (backbone and canonical(backbone))
        or (known.backbone if known else BACKBONE if images.vectors is None else "none"),
        None if weights is None else absolute(weights),
        size,
        fit or "auto",
        tuple(_absolute(path) for path in data),
        dict(options or {}),
    )
    if is_model and known is not None:
        _check_same(folder, known, wanted)
        kept = dataclasses.replace(known, data=wanted.data, options=wanted.options)
        if kept != known:
            kept.write(folder)
        return EmbeddingModel.load(folder / "model", trust=trust)
    settings = ModelConfig(
        backbone=wanted.backbone,
        weights=None if weights is None else place(weights),
        image_size=read_size(size),
        fit=wanted.fit,  # type: ignore[arg-type] - the settings check it
    )
    choices: list[str] = []
    model = untrained_model(settings, images, choices.append)
    if model.vector_dim is None and (model.fit, model.pixel_range) != ("crop", "full"):
        for text in choices:
            context.warn(text)
    wanted.write(folder)
    model.save(folder / "model")
    return EmbeddingModel.load(folder / "model", trust=trust)


def _check_same(folder: Path, known: Untrained, wanted: Untrained) -> None:
    """Raise ConfigError if settings that are passed are not those of the model in the folder."""
    for name, left_out in (("backbone", ""), ("weights", None), ("image_size", 0), ("fit", "auto")):
        then, now = getattr(known, name), getattr(wanted, name)
        if now not in (then, left_out):
            was = "chosen from the images" if then in (0, "auto", None) else then
            raise ConfigError(
                f"`{name}` {now}: {folder} has an index with another ({was}), and the two cannot be compared; choose "
                "another `store`, or delete that folder",
                field=name,
            )


def _absolute(path: str | os.PathLike[str]) -> str:
    return str(Path(path).absolute()) if exists_here(os.fspath(path)) else text_of(path)


def training_of(index: Index) -> str | None:
    """What training the model of an index would need, and the command that begins it; None: it was trained, or it is
    unknown."""
    model = index.about.model
    known = None if model is None else Untrained.read(model)
    if known is None:
        return None
    counts = Counter[str]()
    for rows in index.store.read(["label"]):
        counts.update(label for label in rows["label"].to_pylist() if label is not None)
    enough = sum(count >= IMAGES for count in counts.values())
    name = Path(known.data[0]).stem if known.data else "images"
    options = [] if known.backbone == "none" else ["--backbone", known.backbone]
    options += ["--weights", known.weights] if known.weights else []
    options += ["--out", f"runs/{name}"]
    items = "images" if index.about.vector_dim is None else "vectors"
    what = (
        f"Untrained: similarity is by the pretrained features of {known.backbone}"
        if items == "images"
        else "Untrained: similarity is by the vectors as they are"
    )
    have = f"Training needs labels, and these have them: {enough:,} classes of {IMAGES} or more {items}"
    if enough >= CLASSES and len(known.data) == 1:
        columns = [word for key, value in known.options.items() for word in (f"--{key.replace('_', '-')}", value)]
        command = shlex.join(["divcon", "train", known.data[0], *columns, *options])
        by = ", by their folders" if Path(known.data[0]).is_dir() else ""
        return f"{what}. {have}{by}. To train: {command}"
    command = shlex.join(["divcon", "train", "labels.csv", *options])
    if enough >= CLASSES:
        return f"{what}. {have}. To train, export them as a CSV (on the page: Label items), then: {command}"
    there = "" if not counts else f"there are {enough:,}; "
    return (
        f"{what}. To train, label at least {CLASSES} classes of {IMAGES} {items} each ({there}on the page: Label "
        f"items, then export the CSV), then: {command}"
    )
