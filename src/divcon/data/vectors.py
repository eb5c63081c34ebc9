"""Embeddings as a parquet: path, label where there is one, embedding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.image_set import ImageSet
from divcon.files import written_whole


def write_vectors(path: str | Path, images: ImageSet, embeddings: np.ndarray) -> None:
    """Write the (N, D) float32 embeddings of N images, whole or not at all; paths as they can be opened from here.

    Raises:
        OutputError: the file cannot be written.
    """
    paths = images.paths
    if images.encoded is None and images.root:
        paths = pa.array([str(Path(images.root, path)) for path in paths.to_pylist()])
    columns = {"path": paths}
    if images.label_names != ("",):
        columns["label"] = pa.array(images.label_names).take(pa.array(images.labels))
    flat = pa.array(np.ascontiguousarray(embeddings, np.float32).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1])
    with written_whole(path) as beside:
        pq.write_table(pa.table(columns), beside)
