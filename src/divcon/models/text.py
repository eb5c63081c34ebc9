"""Texts to vectors, by sentence-transformers; and the columns of a table that hold the texts."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32

from divcon.data.columns import VECTOR_COLUMN
from divcon.data.tables import is_plain_table, whole_table
from divcon.errors import ConfigError, DataError, WeightsError, first_line
from divcon.models.weights import check_answers

if TYPE_CHECKING:
    import torch

TEXT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The model of texts where none is named: 384 dimensions, of English, fast on a CPU."""


def check_text_package() -> None:
    """
    Raises:
        ConfigError: sentence-transformers is not installed.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ConfigError(
            'text features need the package sentence-transformers: pip install "divcon[text]"', field="text_model"
        )


class TextModel:
    """A model of sentence-transformers.

    Args:
        name: a model of the Hugging Face hub that sentence-transformers loads, or a folder of one. A model in the hub's
            cache is loaded from there, without network.
        device: where it computes.

    Raises:
        ConfigError: the package is missing.
        WeightsError: there is no such model, or it cannot be downloaded.
    """

    def __init__(self, name: str | Path = TEXT_MODEL, *, device: str | torch.device = "cpu") -> None:
        check_text_package()
        self.name = str(name)
        at_hand = Path(self.name).is_dir() or self._is_cached()
        if not at_hand:
            check_answers(self._repository, None, ("modules.json", "config.json"), self._failed)
        import sentence_transformers

        try:
            self._model: Any = sentence_transformers.SentenceTransformer(
                self.name, device=str(device), local_files_only=at_hand
            )
        except Exception as error:  # of any kind, by what is wrong with the files or the network
            raise self._failed(first_line(error)) from error

    @property
    def _repository(self) -> str:
        return self.name if "/" in self.name else f"sentence-transformers/{self.name}"

    def _is_cached(self) -> bool:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            return isinstance(try_to_load_from_cache(self._repository, "config.json"), str)
        except HFValidationError:
            raise self._failed("there is no such folder, and it is no name on the Hugging Face hub") from None

    def _failed(self, why: str) -> WeightsError:
        return WeightsError(
            f"text model {self.name!r}: cannot be loaded ({why}); name a model of sentence-transformers on the Hugging "
            "Face hub, or a folder of one (`text_model=FOLDER`); HF_HOME names a cache that has it"
        )

    def encode(self, texts: Sequence[str | None], *, batch_size: int = 128) -> Float32[np.ndarray, "N F"]:
        """The vectors of texts, each of length one; of an empty or missing text, zeros. A text that is longer than the
        model's window is cut."""
        there = [i for i, text in enumerate(texts) if text is not None and text.strip()]
        given = [str(texts[i]) for i in there] or ["a"]  # so that the width is known
        vectors = self._model.encode(
            given, batch_size=batch_size, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
        )
        encoded = np.zeros((len(texts), vectors.shape[1]), np.float32)
        if there:
            encoded[there] = vectors
        return encoded


def joined_texts(table: pa.Table, columns: Sequence[str], where: str) -> list[str | None]:
    """The text of each row: that of its columns, line by line; None where all are empty.

    Raises:
        DataError: there is no such column, it is not of text or numbers, or no row has a text.
    """
    parts = []
    for name in columns:
        if name not in table.column_names:
            raise DataError(
                f"{where}: there is no column {name!r} of texts; the columns are {', '.join(table.column_names)}"
            )
        column = table[name]
        if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
            raise DataError(f"{where}: the column {name!r} holds {column.type}, not texts")
        parts.append([None if value is None or not str(value).strip() else str(value) for value in column.to_pylist()])
    texts = ["\n".join(filter(None, row)) or None for row in zip(*parts, strict=True)]
    if not any(texts):
        raise DataError(f"{where}: no row has a text in {' or '.join(map(repr, columns))}")
    return texts


def as_vectors(path: str | Path, texts: Sequence[str], encode: Any) -> tuple[pa.Table, list[str | None]]:
    """A table with the vectors of its texts as the column ``embedding``, which `divcon.read` takes as it is, whether or
    not it names images; and the texts, row for row.

    Args:
        texts: columns.
        encode: from a list of N texts to (N, F) float32.

    Raises:
        DataError: it is no table in one file; or as `joined_texts`.
    """
    if not is_plain_table(path):
        raise DataError(
            f"{path}: is no table in one file, whose column could hold texts; name a CSV, parquet or JSON Lines file, "
            "or add `backbone`, for the features of its images beside those of its texts"
        )
    table = whole_table(Path(path))
    values = joined_texts(table, texts, str(path))
    vectors = encode(values)
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    if VECTOR_COLUMN in table.column_names:
        table = table.drop_columns([VECTOR_COLUMN])
    return table.append_column(VECTOR_COLUMN, pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])), values
