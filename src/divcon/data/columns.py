"""Which column of a table is what: image, label, split, vector. Chosen by name, or guessed from the usual names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from divcon.errors import ConfigError, DataError

BOX_COLUMNS = ("x_1", "y_1", "x_2", "y_2")
"""Left, top, right, bottom, under open-metric-learning's names."""
COLUMNS = ("path", "label", "split", "is_query", "is_gallery", "camera", "sequence", *BOX_COLUMNS)
"""The columns that are read, beside images and vectors; a table may have more."""
FILE_NAME = "file_name"
"""The name of the column path in Hugging Face's metadata files."""
IMAGE_COLUMN = "image"
"""The usual column of encoded images."""
VECTOR_COLUMN = "embedding"
"""The usual column of vectors."""

Kind = Literal["text", "plain", "bytes", "vector", "null", "other"]
"""Of a column: text; numbers, truth values or times; encoded images; vectors; empty; anything else."""

_PATHS = (
    *("image_path", "img_path", "filename", "filepath", "file_path", "image_file", "img_file", "image_filename"),
    *("image_name", "img_name", "image", "img", "file", "picture", "photo", "images", "imgs", "pic", "fname", "fn"),
    *("relative_path", "rel_path", "relpath", "full_path", "abs_path", "picture_path", "photo_path", "paths", "files"),
    *("filenames", "file_names", "image_paths", "local_path", "image_id"),
)
_IMAGES = (
    *("img", "images", "picture", "photo", "image_bytes", "img_bytes", "bytes", "content", "jpg", "jpeg", "png"),
    *("webp", "pixels", "pixel_values", "data"),
)
_LABELS = (
    *("labels", "class", "class_name", "classname", "class_label", "category", "category_name", "target", "targets"),
    *("y", "fine_label", "fine_labels", "label_name", "label_id", "class_id", "class_idx", "category_id", "classes"),
    *("product_id", "item_id", "identity", "person_id", "pid", "individual_id", "individual", "landmark_id"),
    *("vehicle_id", "instance_id", "group_id", "label_group", "species", "breed", "variety", "cls", "tag"),
    *("coarse_label", "coarse_labels", "super_class", "superclass", "family", "genus", "brand"),
)
_SPLITS = (
    "splits",
    "subset",
    "set",
    "partition",
    "fold",
    "phase",
    "usage",
    "data_split",
    "train_test",
    "dataset_split",
)
_FLAGS = {
    **dict.fromkeys(("is_train", "is_training", "is_training_image"), ("train", "test")),
    **dict.fromkeys(("is_valid", "is_val", "is_validation"), ("validation", "train")),
    **dict.fromkeys(("is_test", "is_testing"), ("test", "train")),
}
"""Columns of truth values that stand for a split, and the split where they are true and false."""
_VECTORS = (
    *("embeddings", "vector", "vectors", "emb", "embs", "embed", "feature", "features", "feat", "feats", "encoding"),
    *("representation", "image_embedding", "image_embeddings", "clip_embedding", "text_embedding", "hidden_state", "x"),
)


_IMAGE_NAME = re.compile(r"(?is)\s*\S.*\.(jpe?g|png|gif|bmp|webp|tiff?|jfif|avif)\s*")


def is_image_name(value: Any) -> bool:
    """Whether a value is a text that ends as the names of images do."""
    return isinstance(value, str) and _IMAGE_NAME.fullmatch(value) is not None


@dataclass(frozen=True)
class Columns:
    """The names that a user chose; None: guess."""

    image: str | None = None
    """Of the paths of images, or of encoded images."""
    label: str | None = None
    split: str | None = None
    vector: str | None = None

    def items(self) -> Iterable[tuple[str, str | None]]:
        """The names by the setting that chooses them."""
        return ((f"{role}_column", getattr(self, role)) for role in ("image", "label", "split", "vector"))


@dataclass(frozen=True)
class Roles:
    """What the columns of a table are."""

    names: Mapping[str, str]
    """The column's name for each of path, image, label, split, embedding, and the rest of COLUMNS."""
    guessed: tuple[str, ...] = ()
    """The roles whose column has another name than divcon's, and was not chosen."""
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each guessed role, the other columns that it could be."""

    @property
    def kind(self) -> Literal["files", "encoded", "vectors"]:
        """Whether rows name files, or hold encoded images or vectors."""
        return "vectors" if "embedding" in self.names else "encoded" if "image" in self.names else "files"

    def notes(self, used: Container[str]) -> list[str]:
        """Which of the columns that are ``used`` were guessed, and how to choose others; no note where none was."""
        guessed = [role for role in self.guessed if role in used]
        if not guessed:
            return []
        words = {"path": "image", "image": "image", "label": "label", "split": "split", "embedding": "vector"}
        parts = []
        for role in guessed:
            more = f" (not {' or '.join(map(repr, self.others[role][:3]))})" if self.others.get(role) else ""
            parts.append(f"{words[role]} {self.names[role]!r}{more}")
        settings = [f"`{word}_column`" for word in dict.fromkeys(words[role] for role in guessed)]
        choose = "chooses another" if len(settings) == 1 else "choose others"
        return [f"columns: {', '.join(parts)}, by their names; {', '.join(settings)} {choose}"]


GUESS = Columns()
"""No column chosen."""


def kinds_of(schema: pa.Schema) -> dict[str, Kind]:
    """The kind of each column."""
    return {name: kind_of(kind) for name, kind in zip(schema.names, schema.types, strict=True)}


def kind_of(kind: pa.DataType) -> Kind:
    """The kind of a column of an Arrow type."""
    if pa.types.is_dictionary(kind):
        return kind_of(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "text"
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return "bytes" if index >= 0 and kind_of(kind.field(index).type) in ("bytes", "null") else "other"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "bytes"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        value = kind.value_type
        return "vector" if pa.types.is_floating(value) or pa.types.is_integer(value) else "other"
    if pa.types.is_null(kind):
        return "null"
    return "other" if pa.types.is_nested(kind) else "plain"


def roles_of(
    where: str,
    kinds: Sequence[tuple[str, Kind]],
    chosen: Columns,
    *,
    text_alone: bool = False,
    first: Callable[[str], Any] = lambda _: None,
) -> Roles:
    """What each column of a table is.

    A column that the user chose comes first, then divcon's own name (``path`` or ``file_name``, ``image``, ``label``,
    ``split``, ``embedding``, in any case), then the usual names, in their order, and for paths the only column of text
    that begins with the name of an image.

    Args:
        where: the table, for messages.
        kinds: the names and kinds of all columns; a name may occur twice.
        text_alone: whether the format has text alone (CSV), so that a column's kind says nothing.
        first: the first value of a column.

    Raises:
        ConfigError: there is no column of a chosen name, or it holds something else.
        DataError: two columns of one name would be read.
    """
    kind_by_name = dict(reversed(kinds))
    present = [name for name, _ in kinds]
    names: dict[str, str] = {}
    guessed: list[str] = []
    others: dict[str, tuple[str, ...]] = {}

    def chosen_column(role: str, value: str) -> str:
        name = _named(value, present, where)
        if name is None:
            raise _no_column(where, f"{role}_column", value, present)
        return name

    def own(name: str) -> str | None:
        return _named(name, present, where)

    def guess(role: str, usual: Sequence[str], *wanted: Kind) -> None:
        by_fold: dict[str, list[str]] = {}
        for name in present:
            by_fold.setdefault(_folded(name), []).append(name)
        hits = [name for usual_name in usual for name in by_fold.get(usual_name, ())]
        hits = [name for name in hits if kind_by_name[name] in wanted and name not in names.values()]
        if hits:
            names[role], others[role] = hits[0], tuple(dict.fromkeys(hits[1:]))
            guessed.append(role)

    if chosen.label is not None:
        names["label"] = chosen_column("label", chosen.label)
    elif (name := own("label")) is not None:
        names["label"] = name
    if chosen.vector is not None:
        names["embedding"] = chosen_column("vector", chosen.vector)
    if chosen.image is not None:
        name = chosen_column("image", chosen.image)
        kind = kind_by_name[name]
        if kind in ("vector", "other"):
            raise ConfigError(
                f"{where}: the column {name!r} (`image_column`) holds neither paths nor encoded images",
                field="image_column",
            )
        names["image" if kind == "bytes" else "path"] = name
        if kind == "bytes" and (path := own("path") or own(FILE_NAME)) is not None:
            names["path"] = path
    else:
        path = own("path") or own(FILE_NAME)
        if path is not None:
            names["path"] = path
        image = own(IMAGE_COLUMN)
        if image is not None and not (text_alone or kind_by_name[image] in ("text", "null")):
            names["image"] = image
        if path is None:
            if "image" not in names:
                guess("image", _IMAGES, "bytes")
            guess("path", _PATHS, "text")
        if chosen.vector is None:
            if (vector := own(VECTOR_COLUMN)) is not None and (kind_by_name[vector] != "text" or not text_alone):
                names["embedding"] = vector
            elif vector is not None and path is None:
                names["embedding"] = vector  # a CSV may hold lists of numbers as text
            elif "image" not in names and path is None:
                guess("embedding", _VECTORS, "vector")
        if not names.keys() & {"path", "image", "embedding"} and not any(map(is_image_name, present)):
            texts = [name for name, kind in kinds if kind == "text" and name not in names.values()]
            named = [name for name in texts if is_image_name(first(name))]
            if len(named) == 1:
                names["path"] = named[0]
                guessed.append("path")
    if "label" not in names and chosen.label is None:
        guess("label", _LABELS, "text", "plain", "null")
    if chosen.split is not None:
        names["split"] = chosen_column("split", chosen.split)
    elif (name := own("split")) is not None:
        names["split"] = name
    else:
        guess("split", _SPLITS, "text")
        if "split" not in names:
            guess("split", tuple(_FLAGS), "text", "plain")
    for role in COLUMNS[3:]:
        if (name := own(role)) is not None:
            names[role] = name
    for role, name in names.items():
        if present.count(name) > 1:
            raise DataError(f"{where}: there are two columns {name!r}, and one is to be the {role}; keep one")
    return Roles(names, tuple(guessed), others)


def split_flag(name: str) -> tuple[str, str] | None:
    """The splits of the rows where a column of truth values is true, and where it is false; None: it is no such."""
    return _FLAGS.get(_folded(name))


def _named(name: str, present: Sequence[str], where: str) -> str | None:
    """The column of that name; in another case, or with spaces around it, where there is none."""
    if name in present:
        return name
    alike = [other for other in present if other.strip().casefold() == name.strip().casefold()]
    if len(set(alike)) > 1:
        raise DataError(
            f"{where}: the columns {' and '.join(map(repr, alike))} are both {name!r} but for case and spaces; keep one"
        )
    return alike[0] if alike else None


def _folded(name: str) -> str:
    """In small letters, words joined by underscores: ``imagePath``, ``Image Path`` and ``image-path`` are one."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[\s\-.]+", "_", name).casefold()


def _no_column(where: str, setting: str, value: str, present: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(value.casefold(), [name.casefold() for name in present], n=1, cutoff=0.5)
    meant = next((name for name in present if near and name.casefold() == near[0]), None)
    advice = f"; did you mean {meant!r}?" if meant else ""
    shown = ", ".join(map(repr, present[:20])) + (", ..." if len(present) > 20 else "")
    return ConfigError(f"{where}: `{setting}` {value!r}: there is no such column among {shown}{advice}", field=setting)


_NUMBERED = re.compile(r"(.*?)[\W_]*(\d+)")


def _numbered(present: Sequence[str]) -> list[str]:
    """The columns that are one name and a number, as a vector has where each number has a column: f0, f1, f2."""
    by_stem: dict[str, list[str]] = {}
    for name in present:
        if numbered := _NUMBERED.fullmatch(name.strip()):
            by_stem.setdefault(numbered[1].casefold(), []).append(name)
    most = max(by_stem.values(), key=len, default=[])
    return most if len(most) > 2 else []


def missing_column(where: Any, role: str, present: Sequence[str], hint: str) -> DataError:
    """The error for a column that is neither there nor guessed, with the nearest names."""
    by_fold = {name.strip().casefold(): name for name in present}
    near = difflib.get_close_matches(role, by_fold, n=1, cutoff=0.5)
    setting = {"path": "image_column", "label": "label_column", "split": "split_column"}.get(role)
    if any(map(is_image_name, present)):
        advice = "the first line seems to be a row, not the names of the columns: put the line path,label above it"
    elif len(present) == 1 and len(present[0].split()) > 1:
        advice = "the columns seem to be separated by spaces: separate them by commas or tabs"
    elif role == "path" and (numbered := _numbered(present)):
        advice = (
            f"if {numbered[0]!r} to {numbered[-1]!r} are a vector, write it as one column embedding, a list of numbers "
            "a row, or as a .npy with a file of labels"
        )
    elif near:
        advice = f"rename {by_fold[near[0]]!r}, if that is it"
        advice += f", or choose it (`{setting}={by_fold[near[0]]}`)" if setting else ""
    else:
        advice = hint + (f", or choose another (`{setting}`)" if setting else "")
    shown = ", ".join(map(repr, present[:20])) + (", ..." if len(present) > 20 else "")
    return DataError(f"{where}: there is no column {role!r} among {shown}; {advice}")
