"""Errors in the user's input: what is wrong, where, and what to do.

A message names settings as Python does, in backticks (batch_size, divide_by=class); the command line shows them as
flags (see ``divcon.cli.messages``).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable


class DivconError(Exception):
    """Base of all errors that are the input's, not the program's; the command line prints them without a trace. The
    text names addresses in place of the paths on this machine that stand for them (`divcon.runtime.places`)."""

    elsewhere: bool = False
    """Whether another rank of a process group reports the error, so that this one need not."""

    def __str__(self) -> str:
        text = super().__str__()
        for rename in names:
            text = rename(text)
        return text


names: list[Callable[[str], str]] = []
"""What is done to the text of an error when it is shown."""


class DataError(DivconError):
    """The user's images, labels or tables cannot be used as they are."""


class ImageError(DataError):
    """One image does not decode."""


class ConfigError(DivconError):
    """A setting, or a combination of settings, cannot work.

    Args:
        message: says what is wrong and what to do; names settings in backticks.
        field: the settings that it is about, by their names in Python: the first is the one to change.
    """

    def __init__(self, message: str, *, field: str | Iterable[str] = ()) -> None:
        super().__init__(message)
        self.fields: tuple[str, ...] = (field,) if isinstance(field, str) else tuple(field)

    @property
    def field(self) -> str | None:
        """The setting to change; None where the error is about none."""
        return self.fields[0] if self.fields else None


class TrustError(DivconError):
    """A file names a part of somebody's own, whose module the user has not allowed to be imported."""

    def __init__(self, message: str, module: str) -> None:
        super().__init__(f"{message}; if you trust it, allow that: `trust={module}`")
        self.module = module


class WeightsError(DivconError):
    """Pretrained or saved weights cannot be had or do not fit."""


class RunError(DivconError):
    """A run folder cannot be used as asked."""


class RemoteError(DivconError, OSError):
    """A file at an address (``s3://...``) cannot be read or written.

    Args:
        url: its address, as it is shown.
        why: what is wrong, in words; also in ``strerror``, where other errors of files have it.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(url, why)
        self.url = url
        self.strerror = why

    def __str__(self) -> str:
        return f"{self.url}: {self.strerror}"


class RemoteMissingError(RemoteError, FileNotFoundError):
    """There is no such file at the address; or, with ``bucket``, no such bucket."""

    def __init__(self, url: str, why: str, *, bucket: bool = False) -> None:
        super().__init__(url, why)
        self.bucket = bucket


class RemoteDeniedError(RemoteError, PermissionError):
    """The storage does not allow it."""


class StoreError(DivconError):
    """A store of embeddings cannot be used as asked: it is gone, busy, or of another model."""


class OutputError(DivconError):
    """A file cannot be written."""


class WorkerError(DivconError):
    """A process that decodes images, or trains along, ended before its work was done."""


class Stopped(KeyboardInterrupt):
    """A run was asked to stop (SIGINT, SIGTERM), and has kept what it had done.

    A KeyboardInterrupt, so that nothing that catches exceptions goes on with the work.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal has ended: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.signal


class NonFiniteError(DivconError):
    """A loss, feature or vector is NaN or infinite."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The text for an unknown name: ``unknown loss 'Tripet'; did you mean 'TripletMarginLoss'?``"""
    known = sorted(known)
    by_fold = {candidate.casefold(): candidate for candidate in known}
    near = difflib.get_close_matches(name.casefold(), by_fold, n=3, cutoff=0.5)
    if near:
        return f"unknown {kind} {name!r}; did you mean {' or '.join(repr(by_fold[n]) for n in near)}?"
    if len(known) <= 20:
        return f"unknown {kind} {name!r}; known: {', '.join(known)}"
    return f"unknown {kind} {name!r}"


def as_text(error: DivconError) -> str:
    """An error as JSON, for `error_of` in another process."""
    fields = error.fields if isinstance(error, ConfigError) else None
    return json.dumps({"kind": type(error).__name__, "message": str(error), "fields": fields})


def error_of(text: str | bytes) -> DivconError:
    """The error that `as_text` has written, of its kind where that takes a message alone."""
    saved = json.loads(text)
    if saved["fields"] is not None:
        return ConfigError(saved["message"], field=saved["fields"])
    kind = globals().get(saved["kind"])
    if isinstance(kind, type) and issubclass(kind, DivconError) and kind.__init__ is Exception.__init__:
        return kind(saved["message"])
    return DivconError(saved["message"])


def first_line(error: BaseException) -> str:
    """The first line of another library's error, without the trace that may follow; its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
