"""What rank 0 alone knows, from its folders, for all ranks of a group; and a check that all have the same.

Other machines need none of rank 0's folders: what stands in these is sent through the process group.
"""

from __future__ import annotations

import io
import pickle
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from divcon.errors import DataError

if TYPE_CHECKING:
    from divcon.runtime.distributed import ProcessGroup

T = TypeVar("T")

_CHUNK = 1 << 28
"""Bytes that are sent at once: Gloo counts in 32 bits."""


def from_main(group: ProcessGroup, work: Callable[[], T]) -> T:
    """What ``work`` returns in rank 0, which alone calls it; all ranks must call this at the same place. The result can
    be pickled; its tensors arrive on the CPU. Where ``work`` fails, the other ranks learn of it as of any other failure
    (see `divcon.runtime.launch.join`)."""
    if group.alone:
        return work()
    import torch

    value = work() if group.is_main else None
    tensors: list[Any] = []
    skeleton = io.BytesIO()
    if group.is_main:
        _Pickler(skeleton, tensors).dump(value)
    size = int(group.broadcast(torch.tensor([skeleton.tell()]).numpy())[0])
    sent = torch.frombuffer(bytearray(skeleton.getvalue() or bytes(size)), dtype=torch.uint8)
    _broadcast(group, sent)
    if group.is_main:
        for tensor in tensors:
            _broadcast(group, _as_bytes(tensor.detach().cpu().contiguous()))
        return value  # type: ignore[return-value]
    return _Unpickler(io.BytesIO(sent.numpy().tobytes()), group).load()


class _Pickler(pickle.Pickler):
    """Leaves tensors out, which are sent as they are: of a checkpoint there is no second copy in memory."""

    def __init__(self, file: Any, tensors: list[Any]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_id(self, obj: Any) -> Any:
        import torch

        if type(obj) is not torch.Tensor:
            return None
        self._tensors.append(obj)
        return tuple(obj.shape), obj.dtype


class _Unpickler(pickle.Unpickler):
    """Receives each tensor where it belongs; they come in the order in which they were left out."""

    def __init__(self, file: Any, group: ProcessGroup) -> None:
        super().__init__(file)
        self._group = group

    def persistent_load(self, pid: Any) -> Any:
        import torch

        shape, dtype = pid
        tensor = torch.empty(shape, dtype=dtype)
        _broadcast(self._group, _as_bytes(tensor))
        return tensor


def _as_bytes(tensor: Any) -> Any:
    import torch

    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def _broadcast(group: ProcessGroup, values: Any) -> None:
    import torch.distributed as dist

    for start in range(0, len(values), _CHUNK):
        dist.broadcast(values[start : start + _CHUNK], 0, group=group.cpu_group)


def check_alike(group: ProcessGroup, what: str, value: str, advice: str) -> None:
    """Check that all ranks have the same; all must call this at the same place.

    Args:
        what: what it is of, for the message: ``the training images``.
        value: a fingerprint.
        advice: what to do where they differ.

    Raises:
        DataError: in all ranks: some have another value than rank 0; the message names them and their machines.
    """
    if group.alone:
        return
    import torch.distributed as dist

    of: list[Any] = [None] * group.world_size
    dist.all_gather_object(of, (socket.gethostname(), value), group=group.cpu_group)
    others = [(rank, host, theirs) for rank, (host, theirs) in enumerate(of) if theirs != of[0][1]]
    if not others:
        return
    ranks = ", ".join(f"rank {rank} on {host} ({theirs})" for rank, host, theirs in others[:4])
    more = f" and {len(others) - 4} more" if len(others) > 4 else ""
    error = DataError(f"{what}: {ranks}{more} read other data than rank 0 on {of[0][0]} ({of[0][1]}); {advice}")
    error.elsewhere = not group.is_main
    raise error
