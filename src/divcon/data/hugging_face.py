"""What Hugging Face's ``datasets`` writes beside a table: the names of its labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from divcon.errors import DataError

pc: Any = pyarrow.compute
"""Any, because its functions are made at import and type checkers see none."""

METADATA = b"huggingface"
"""The key of the schema's metadata: JSON, of which ``info.features`` describes the columns."""


def named_labels(path: Path, schema: pa.Schema, table: pa.Table) -> pa.Table:
    """The table with names in place of the numbers of its column ``label``, where the schema gives them
    (``ClassLabel``); any other table as it is.

    Raises:
        DataError: with the row, a number that has no name (-1 is how ``datasets`` puts an unknown label).
    """
    names = _names_of(schema)
    if names is None or "label" not in table.column_names or not pa.types.is_integer(table["label"].type):
        return table
    labels = table["label"]
    inside = pc.and_(pc.greater_equal(labels, 0), pc.less(labels, len(names)))
    bad = ~pc.fill_null(inside, True).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        more = f" (in {bad.sum():,} rows)" if bad.sum() > 1 else ""
        raise DataError(
            f"{path} row {row}: the label is {labels[row].as_py()}, and the file's metadata names 0 to "
            f"{len(names) - 1}{more}; take such rows out, or give them a label"
        )
    indices = pa.chunked_array([chunk.cast(pa.int32()) for chunk in labels.chunks], pa.int32())
    values = pa.array(names, pa.string())
    chunks = [pa.DictionaryArray.from_arrays(chunk, values) for chunk in indices.chunks]
    column = pa.chunked_array(chunks, pa.dictionary(pa.int32(), pa.string()))
    return table.set_column(table.column_names.index("label"), "label", column)


def _names_of(schema: pa.Schema) -> list[str] | None:
    try:
        feature = json.loads((schema.metadata or {})[METADATA])["info"]["features"]["label"]
        return [str(name) for name in feature["names"]] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError):
        return None
