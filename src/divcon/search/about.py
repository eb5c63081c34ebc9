"""`About`: what a store keeps about an index: its model, its columns, and how it is searched."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from divcon.errors import DataError, StoreError
from divcon.models import EmbeddingModel

FORMAT = 1
METRIC = "cosine"
ANN_FROM = 100_000
"""The number of rows from which an approximate index is built and used."""

KINDS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
"""The kinds of columns, as Arrow types."""


@dataclass(frozen=True)
class Column:
    """One of the user's columns."""

    name: str
    """Its name in the user's table."""
    stored: str
    """Its name in the store: ``meta_`` and letters, digits and underscores."""
    kind: str
    """One of `KINDS`."""


@dataclass(frozen=True)
class About:
    """The model, the columns and the search settings of an index."""

    fingerprint: str
    """The `fingerprint` of the model that computed the embeddings."""
    dims: int
    """The dimension D of the embeddings."""
    model: str | None = None
    """The folder of the model, or of its run, when the index was built; None: the model was passed as an object."""
    vector_dim: int | None = None
    """The dimension of the model's input, if its input is vectors; None: its input is images."""
    columns: tuple[Column, ...] = ()
    ann_from: int = ANN_FROM
    """The number of rows from which an approximate index is built and used."""
    effort: int | None = None
    """How much of the approximate index a search visits, in the store's unit; None: there is no such index."""
    recall: float | None = None
    """Recall@10 against exact search, measured when the effort was chosen."""
    created: str = field(default_factory=lambda: secrets.token_hex(8))
    """A random text that tells this index from a later one in the same place."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        values = dataclasses.asdict(self)
        return {"format": FORMAT, "metric": METRIC, "made": values.pop("created"), **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str) -> About:
        """The inverse of `to_dict`.

        Args:
            where: the store, for messages.

        Raises:
            StoreError: another version of divcon wrote it, or it is damaged.
        """
        try:
            values = dict(values)
            known = values.pop("format") == FORMAT and values.pop("metric") == METRIC
            columns = tuple(Column(**column) for column in values.pop("columns"))
            about = cls(columns=columns, created=values.pop("made"), **values)
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{where}: damaged, or not an index of divcon ({error})") from None
        if not known:
            raise StoreError(f"{where}: another version of divcon built it; index again into another `store`")
        return about

    def column(self, name: str) -> Column | None:
        """The user's column of this name."""
        return next((column for column in self.columns if column.name == name), None)

    def with_columns(self, schema: pa.Schema) -> About:
        """A copy with those columns of a table added that are not there yet.

        Raises:
            DataError: a column is there with another kind, which cannot hold the values.
        """
        columns = list(self.columns)
        for added in schema:
            kind = next(name for name, type_ in KINDS.items() if type_ == added.type)
            old = self.column(added.name)
            if old is None:
                columns.append(Column(added.name, _stored_name(added.name, [c.stored for c in columns]), kind))
            elif old.kind not in (kind, "text") and (old.kind, kind) != ("number", "integer"):
                raise DataError(
                    f"column {added.name!r} holds {old.kind} values in the index, and {kind} values here; rename it, "
                    "or index again into another `store`"
                )
        return dataclasses.replace(self, columns=tuple(columns))

    def check_same_model(self, other: About, where: str) -> None:
        """Raise StoreError unless the other index is of the same model."""
        if other.fingerprint != self.fingerprint:
            of = f", {self.model}" if self.model else ""
            raise StoreError(
                f"{where}: holds embeddings of another model ({self.dims} dimensions, fingerprint {self.fingerprint}"
                f"{of}) than the one passed ({other.dims} dimensions, fingerprint {other.fingerprint}), and the two "
                "cannot be compared: pass the model that built it, or index again into another `store`"
            )

    def check_model(self, model: EmbeddingModel, where: str) -> None:
        """Raise StoreError unless this model computed the embeddings of the index."""
        self.check_same_model(about_of(model), where)


def fingerprint(model: EmbeddingModel) -> str:
    """16 hexadecimal digits of all that decides a model's embeddings: its config and its weights."""
    digest = hashlib.sha256(repr(sorted(model.config.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def about_of(model: EmbeddingModel, folder: str | None = None, ann_from: int = ANN_FROM) -> About:
    """What a new index of this model, which lies in this folder, is to say."""
    return About(fingerprint(model), model.embedding_dim, folder, model.vector_dim, ann_from=ann_from)


def _stored_name(name: str, taken: list[str]) -> str:
    """A name that every database takes as it is; numbered where another column has it."""
    plain = f"meta_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')[:40]}"
    stored, number = plain, 2
    while stored in taken:
        stored, number = f"{plain}_{number}", number + 1
    return stored
