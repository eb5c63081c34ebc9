"""`About`: what a store keeps about an index: its model, its columns, and how it is searched."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from divcon.errors import DataError, StoreError
from divcon.search.columns import UNTYPED, type_of

if TYPE_CHECKING:
    from divcon.models import EmbeddingModel

FORMAT = 1
METRIC = "cosine"
ANN_FROM = 100_000
"""The number of rows from which an approximate index is built and used."""

_KINDS = {"integer": "int", "number": "float", "boolean": "bool", "text": "text"}
"""The types of columns that versions before `Column.guessed` saved, and their names today."""


@dataclass(frozen=True)
class Column:
    """One of the user's columns."""

    name: str
    """Its name in the user's table."""
    stored: str
    """Its name in the store: ``meta_`` and letters, digits and underscores."""
    type: str
    """One of `divcon.search.columns.TYPES`."""
    guessed: bool = False
    """Whether an earlier version guessed the type from the values of a CSV."""
    unfinished: bool = False
    """Whether it is a column of another type that is still being written (see `divcon.search.retype`)."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary for JSON."""
        if self.guessed:
            kinds = {today: kind for kind, today in _KINDS.items()}
            return {"name": self.name, "stored": self.stored, "kind": kinds[self.type]}
        unfinished = {"unfinished": True} if self.unfinished else {}
        return {"name": self.name, "stored": self.stored, "type": self.type, **unfinished}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Column:
        """The inverse of `to_dict`."""
        if "kind" in values:
            return cls(values["name"], values["stored"], _KINDS[values["kind"]], guessed=True)
        return cls(**values)


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
    """All columns that the store has; `user_columns` are those that the user sees."""
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
        values = dataclasses.asdict(self) | {"columns": [column.to_dict() for column in self.columns]}
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
            columns = tuple(Column.from_dict(column) for column in values.pop("columns"))
            about = cls(columns=columns, created=values.pop("made"), **values)
        except (TypeError, KeyError, ValueError) as error:
            raise StoreError(f"{where}: damaged, or not an index of divcon ({error})") from None
        if not known:
            raise StoreError(f"{where}: another version of divcon built it; index again into another `store`")
        return about

    @property
    def user_columns(self) -> tuple[Column, ...]:
        """The columns without those that are unfinished."""
        return tuple(column for column in self.columns if not column.unfinished)

    @property
    def types(self) -> dict[str, tuple[str, bool]]:
        """The type of each column, and whether it was guessed; see `divcon.search.columns.as_in_index`."""
        return {column.name: (column.type, column.guessed) for column in self.user_columns}

    def column(self, name: str) -> Column | None:
        """The user's column of this name."""
        return next((column for column in self.user_columns if column.name == name), None)

    def with_columns(self, schema: pa.Schema) -> About:
        """A copy with those columns of a table added that are not there yet.

        Args:
            schema: the user's columns, of Arrow's types or as `divcon.search.columns.typed` marks them.

        Raises:
            DataError: a column is there with another type.
        """
        columns = list(self.columns)
        for added in schema:
            type_, old = type_of(added), self.column(added.name)
            if old is None:
                new = "text" if type_ == UNTYPED else type_
                columns.append(Column(added.name, self.free_name(added.name, columns), new))
            elif not takes(old, type_):
                raise DataError(
                    f"the column {added.name!r} is {old.type} in the index, and {type_} in this data: either read it "
                    f"as the index has it (`column_types` {added.name}={old.type}), or change the index first "
                    f"(`change_types`, `column_types` {added.name}={type_}), or rename the column"
                )
        return dataclasses.replace(self, columns=tuple(columns))

    def free_name(self, name: str, columns: Sequence[Column] | None = None) -> str:
        """A name in the store for a column of the user's, which no other column has."""
        return _stored_name(name, [column.stored for column in (self.columns if columns is None else columns)])

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


def takes(column: Column, type_: str) -> bool:
    """Whether a column takes values of a type, if each of them fits. Text without a type becomes what the column holds,
    and integers become floats; a text column of an earlier version takes dates and decimals, which were text then."""
    return (
        type_ in (column.type, UNTYPED)
        or (column.type, type_) == ("float", "int")
        or (column.guessed and column.type == "text" and type_ in ("date", "datetime", "datetime-utc", "decimal"))
    )


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
