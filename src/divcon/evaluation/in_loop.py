"""Retrieval metrics in a training loop of your own: embeddings are added batch by batch, and scored at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from divcon.evaluation.metrics import Metric
from divcon.evaluation.retrieval import retrieval_metrics
from divcon.runtime.context import Context
from divcon.runtime.distributed import ProcessGroup


class RetrievalMetrics:
    """`divcon.retrieval_metrics` with the interface of torchmetrics: ``update`` with each batch, ``compute`` at the
    end, ``reset`` for the next epoch. It needs neither torchmetrics nor Lightning, and works with Lightning's
    ``self.log_dict(metrics.compute())``.

    In a process group that PyTorch is initialised with, `compute` gathers the items of all ranks, shares out the
    queries, and returns the same scores on each rank.

    Memory: N x D x 4 bytes on the CPU, for N items of D dimensions, half of that with ``half``; in `compute` each rank
    has the items of all ranks, and the search takes ``memory_mb`` more. To bound the time, which grows with N squared,
    set ``max_queries``.

    Args:
        recall_at: each k of Recall@k.
        metrics: more metrics, as of `divcon.retrieval_metrics`: ``"map"``, ``"recall_at_100"``, or your own.
        metric: ``cosine``, ``euclidean`` or ``inner``: how items are compared.
        prefix: before each name that `compute` returns, as in ``val/``.
        max_queries: search for at most so many queries, drawn at random, among all items; None: all.
        seed: of that draw.
        half: keep embeddings in float16.
        device: where to search, such as ``cuda``.
        memory_mb: a limit on the memory of the search beyond the items.
    """

    def __init__(
        self,
        recall_at: Sequence[int] = (1, 2, 4, 8),
        *,
        metrics: Sequence[str | Metric] = (),
        metric: str = "cosine",
        prefix: str = "",
        max_queries: int | None = None,
        seed: int = 0,
        half: bool = False,
        device: str | torch.device = "cpu",
        memory_mb: float = 1024,
    ) -> None:
        self.prefix = prefix
        self._dtype = np.float16 if half else np.float32
        self._options: dict[str, Any] = {"recall_at": tuple(recall_at), "metrics": tuple(metrics), "metric": metric}
        self._options |= {"max_queries": max_queries, "seed": seed, "device": device, "memory_mb": memory_mb}
        self.reset()

    def reset(self) -> None:
        """Forget all items."""
        self._sides: dict[bool, _Items] = {False: _Items(), True: _Items()}

    def __len__(self) -> int:
        """The number of items of this rank, with those of the gallery."""
        return sum(side.count for side in self._sides.values())

    def update(self, embeddings: object, labels: object, ids: object = None, *, gallery: bool = False) -> None:
        """Add a batch.

        Args:
            embeddings: (B, D) numbers, array or tensor on any device.
            labels: (B,) ints or strings.
            ids: (B,) ints or strings, such as the positions in the data set. An item whose id was added before counts
                once: samplers for several processes repeat items to fill the last batch, and a copy would be found as a
                match. An item of the gallery with the id of a query is the query itself. Pass ids always or never.
            gallery: add to the gallery. While it is empty, each item is a query and searches among all others; else the
                items that were added without ``gallery`` are queries, and search in the gallery.

        Raises:
            ValueError: shapes that do not fit, or that differ from those before; or ids in some calls alone.
        """
        vectors = _array(embeddings)
        names, keys = _array(labels), None if ids is None else _array(ids)
        if vectors.ndim != 2 or names.shape != vectors.shape[:1] or (keys is not None and keys.shape != names.shape):
            of_ids = "" if keys is None else f" and ids of shape {keys.shape}"
            raise ValueError(
                f"embeddings of shape {vectors.shape} with labels of shape {names.shape}{of_ids}: pass (B, D) and (B,)"
            )
        for side in self._sides.values():
            if side.count and (side.dim != vectors.shape[1] or (side.ids is None) != (keys is None)):
                had, has = (f"{'with' if of is not None else 'without'} ids" for of in (side.ids, keys))
                raise ValueError(
                    f"embeddings of {side.dim} dimensions {had} were added before, and now of {vectors.shape[1]} "
                    f"{has}; call reset() to start again"
                )
        self._sides[gallery].add(vectors.astype(self._dtype), names, keys)

    def compute(self) -> dict[str, float]:
        """The scores of all items: ``recall_at_k``, ``r_precision``, ``map_at_r`` and those of ``metrics``, each with
        the prefix. The items stay; call `reset` before the next epoch.

        Raises:
            ValueError: no item was added.
            DataError: no query has a match.
            NonFiniteError: an embedding holds NaN or infinite values.
        """
        # torch.distributed is missing in some builds of PyTorch.
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        sides = {of: side.gathered() if distributed else side.all() for of, side in self._sides.items()}
        (vectors, labels, ids), gallery = sides[False], sides[True]
        if not len(vectors):
            what = "no query" if len(gallery[0]) else "no item"
            raise ValueError(f"{what} was added; call update() with each batch before compute()")
        options: dict[str, Any] = dict(self._options)
        if len(gallery[0]):
            options |= {"gallery_embeddings": gallery[0].astype(np.float32), "gallery_labels": gallery[1]}
            options |= {} if ids is None else {"ids": ids, "gallery_ids": gallery[2]}
        if distributed:
            group = ProcessGroup(dist.get_rank(), dist.get_world_size(), cpu_group=_cpu_group())
            options["context"] = Context(processes=group)
        result = retrieval_metrics(vectors.astype(np.float32), labels, precision_at=(), **options)
        return {f"{self.prefix}{name}": value for name, value in result.items() if isinstance(value, float)}


class _Items:
    """Items of this rank, a batch each."""

    def __init__(self) -> None:
        self._batches: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []

    @property
    def count(self) -> int:
        return sum(len(labels) for _, labels, _ in self._batches)

    @property
    def dim(self) -> int:
        return self._batches[0][0].shape[1]

    @property
    def ids(self) -> np.ndarray | None:
        return self._batches[0][2]

    def add(self, vectors: np.ndarray, labels: np.ndarray, ids: np.ndarray | None) -> None:
        if len(labels):
            self._batches.append((vectors, labels, ids))

    def all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """All items, each id once, in the order in which they were added."""
        if not self._batches:
            return np.zeros((0, 0), np.float32), np.zeros(0, np.int64), None
        return _joined(self._batches)

    def gathered(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """The items of all ranks, in the order of ranks."""
        vectors, labels, ids = self.all()
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, (vectors.shape, vectors.dtype.str, labels, ids))
        ranks = [rank for rank in ranks if rank is not None]
        dims = {shape[1] for shape, *_ in ranks if shape[0]}
        if not dims:
            return vectors, labels, ids
        most, dim = max(shape[0] for shape, *_ in ranks), dims.pop()
        shard = np.zeros((most, dim), next(np.dtype(dtype) for shape, dtype, *_ in ranks if shape[0]))
        shard[: len(vectors)] = vectors if len(vectors) else 0
        padded = torch.from_numpy(shard).to(_device())
        every = [torch.empty_like(padded) for _ in ranks]
        dist.all_gather(every, padded)
        filled = [(part.cpu().numpy()[: rank[0][0]], *rank[2:]) for part, rank in zip(every, ranks, strict=True)]
        return _joined([part for part in filled if len(part[0])])


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> tuple[Any, Any, Any]:
    """The items of all parts, each id once: the first of its copies."""
    vectors, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    if parts[0][2] is None:
        return vectors, labels, None
    ids = np.concatenate([np.asarray(part[2]) for part in parts])
    first = np.sort(np.unique(ids, return_index=True)[1])
    return vectors[first], labels[first], ids[first]


def _device() -> torch.device:
    """Where the default process group takes tensors."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


_GROUPS: dict[Any, Any] = {}


def _cpu_group() -> Any:
    """A group of all ranks for tensors on the CPU; None: the default one takes them."""
    if dist.get_backend() != "nccl":
        return None
    default = dist.group.WORLD
    if default not in _GROUPS:
        _GROUPS[default] = dist.new_group(backend="gloo")
    return _GROUPS[default]


def _array(values: object) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach()
        return (values.float() if values.is_floating_point() else values).cpu().numpy()
    return np.asarray(values)
