"""What a store says of itself: whose embeddings it holds, which columns, and how it is searched."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from divcon.errors import DataError, StoreError
from divcon.models import EmbeddingModel

FORMAT = 1
METRIC = "cosine"
ANN_FROM = 100_000
"""Rows from which a store is searched with its own approximate index."""

KINDS: dict[str, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
}
"""The kinds of columns that a store has."""


@dataclass(frozen=True)
class Column:
    """A column of the user's."""

    name: str
    """As the user calls it."""
    stored: str
    """As the store calls it: ``meta_`` and letters, digits and underscores."""
    kind: str
    """One of `KINDS`."""


@dataclass(frozen=True)
class About:
    """What a store says of itself."""

    fingerprint: str
    """Of the model that made its embeddings: see `fingerprint`."""
    dims: int
    """D."""
    model: str | None = None
    """The folder of that model, or of its run, when the store was made; None: it had none."""
    vector_dim: int | None = None
    """F0, where that model sees vectors in place of images."""
    columns: tuple[Column, ...] = ()
    ann_from: int = ANN_FROM
    """Rows from which its approximate index is made and used."""
    effort: int | None = None
    """How much of the approximate index a search looks at, as the store counts it; None: there is no such index."""
    recall: float | None = None
    """Recall@10 against exact search, when that effort was chosen."""
    made: str = field(default_factory=lambda: secrets.token_hex(8))
    """Tells this store from one that was made anew in its place."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format": FORMAT, "metric": METRIC, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: Any, where: str) -> About:
        """What `to_dict` gave.

        Raises:
            StoreError: it is of another version of divcon, or damaged.
        """
        try:
            values = dict(values)
            known = values.pop("format") == FORMAT and values.pop("metric") == METRIC
            columns = tuple(Column(**column) for column in values.pop("columns"))
            about = cls(columns=columns, **values)
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{where}: damaged, or not a store of divcon ({error})") from None
        if not known:
            raise StoreError(f"{where}: made by another version of divcon; index again into another --store")
        return about

    def column(self, name: str) -> Column | None:
        """The user's column of that name."""
        return next((column for column in self.columns if column.name == name), None)

    def with_columns(self, schema: pa.Schema) -> About:
        """The same with the columns of a plain table that it has not.

        Raises:
            DataError: a column is there with another kind that cannot hold the values.
        """
        columns = list(self.columns)
        for own in schema:
            kind = next(name for name, type_ in KINDS.items() if type_ == own.type)
            old = self.column(own.name)
            if old is None:
                columns.append(Column(own.name, _stored_name(own.name, [c.stored for c in columns]), kind))
            elif old.kind not in (kind, "text") and (old.kind, kind) != ("number", "integer"):
                raise DataError(
                    f"column {own.name!r} holds {old.kind} values in the store, and {kind} values here; rename it, "
                    "or index again into another --store"
                )
        return dataclasses.replace(self, columns=tuple(columns))

    def check_same(self, other: About, where: str) -> None:
        """Raise StoreError unless the other is of the model whose embeddings the store holds."""
        if other.fingerprint != self.fingerprint:
            made_by = f", made by {self.model}" if self.model else ""
            raise StoreError(
                f"{where}: holds embeddings of another model ({self.dims} dimensions, fingerprint {self.fingerprint}"
                f"{made_by}) than the one given ({other.dims} dimensions, fingerprint {other.fingerprint}), and these "
                "do not compare: give the model that it was made with, or index again into another --store"
            )

    def check_model(self, model: EmbeddingModel, where: str) -> None:
        """Raise StoreError unless the model is the one whose embeddings the store holds."""
        self.check_same(about_of(model), where)


def fingerprint(model: EmbeddingModel) -> str:
    """16 hexadecimal digits of what decides a model's embeddings: how it was made, and its weights."""
    digest = hashlib.sha256(repr(sorted(model.config.items())).encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]


def about_of(model: EmbeddingModel, folder: str | None = None, ann_from: int = ANN_FROM) -> About:
    """Of a store that this model, which lies in that folder, makes."""
    return About(fingerprint(model), model.embedding_dim, folder, model.vector_dim, ann_from=ann_from)


def _stored_name(name: str, taken: list[str]) -> str:
    """A name that every store takes as it is; numbered where another column has it."""
    plain = f"meta_{re.sub('[^a-z0-9]+', '_', name.lower()).strip('_')[:40]}"
    stored, number = plain, 2
    while stored in taken:
        stored, number = f"{plain}_{number}", number + 1
    return stored
