"""Files at addresses (``s3://``, ``gs://``, ``hf://``, ``https://``, ``memory://`` ...): fsspec behind a small
interface, with a limit on retries and errors in words.

fsspec and its parts are imported when the first address is used. A forked process opens connections of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from divcon.errors import RemoteDeniedError, RemoteError, RemoteMissingError
from divcon.runtime import hub
from divcon.runtime.places import without_secrets

T = TypeVar("T")

CONNECT_SECONDS = 5
"""The time in which a server has to accept a connection."""
READ_SECONDS = 60
"""The time in which it has to send the next bytes."""
_TRIES_AT_FIRST = 2
"""Tries of a server that has not answered yet: without a network, a command ends soon."""
_TRIES = 7
"""Tries of one that has: a pause of half a second, then twice as long, half a minute in all."""

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "hf", "memory", "oci", "oss", "r2"}
"""Kinds of storage where a file appears at once, whole."""
_VERSIONS = ("ETag", "etag", "generation", "blob_id", "md5Hash", "Content-MD5", "Digest", "sha256")
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "created", "updated")


@dataclass(frozen=True)
class Info:
    """What the storage says of a file."""

    size: int | None
    """Bytes; None: the server does not say."""
    version: str
    """Changes when the content does: the ETag, or else the size and time; "": the server says nothing."""
    folder: bool = False


def info(url: str) -> Info | None:
    """What is at an address; None: nothing.

    Raises:
        RemoteError: the storage cannot be reached, or refuses.
    """
    try:
        return _info(_call(url, lambda system, path: system.info(path)))
    except RemoteMissingError as error:
        if error.bucket:
            raise
        return None


def exists(url: str) -> bool:
    """Whether there is a file or folder.

    Raises:
        RemoteError: as of `info`.
    """
    return info(url) is not None


def listing(url: str) -> dict[str, Info]:
    """The files below a folder, by their paths from it, sorted; empty where there is no such folder.

    Raises:
        RemoteError: as of `info`.
    """

    def files(system: Any, path: str) -> dict[str, Info]:
        found: dict[str, Any] = system.find(path, detail=True)
        start = system._strip_protocol(path).rstrip("/") + "/"
        inside = {name.removeprefix(start): about for name, about in found.items() if name.startswith(start)}
        return {name: _info(about) for name, about in sorted(inside.items()) if name}

    try:
        return _call(url.rstrip("/") + ("/" if _scheme(url) in ("http", "https") else ""), files)
    except RemoteMissingError as error:
        if error.bucket:
            raise
        return {}


def names(url: str) -> set[str]:
    """The names of what is in a folder, without what is below; empty where there is no such folder.

    Raises:
        RemoteError: as of `info`.
    """

    def inside(system: Any, path: str) -> set[str]:
        return {name.rstrip("/").rpartition("/")[2] for name in system.ls(path, detail=False)}

    try:
        return _call(url.rstrip("/"), inside)
    except RemoteMissingError as error:
        if error.bucket:
            raise
        return set()


def read(url: str) -> bytes:
    """The content of a file.

    Raises:
        RemoteError: it cannot be read; RemoteMissingError, RemoteDeniedError: it is not there, or not allowed.
    """
    if (ahead := _ahead.get(url)) is not None:
        return ahead
    return _call(url, lambda system, path: system.cat_file(path))


def read_range(url: str, start: int, stop: int) -> bytes:
    """The bytes from ``start`` to ``stop`` of a file; or all of it, where the server knows no ranges.

    Raises:
        RemoteError: as of `read`.
    """

    def part(system: Any, path: str) -> bytes:
        content = system.cat_file(path, start=start, end=stop)
        if len(content) < stop - start:
            raise ConnectionResetError("the answer was cut off")
        return content

    return _call(url, part)


@contextmanager
def read_ahead(urls: Sequence[str]) -> Iterator[None]:
    """Read some files at once; within the block, `read` returns those that could be read from memory."""
    global _ahead
    before = _ahead
    _ahead = {}
    try:
        if len(urls) > 1:
            system, _ = _system(urls[0])
            names = {system._strip_protocol(url): url for url in urls if _scheme(url) == _scheme(urls[0])}
            found = system.cat(list(names), on_error="return")
            found = found if isinstance(found, dict) else {}
            _ahead = {names[name]: content for name, content in found.items() if isinstance(content, bytes)}
    except Exception:  # each file is read again, with retries and words for what is wrong
        _ahead = {}
    try:
        yield
    finally:
        _ahead = before


_ahead: dict[str, bytes] = {}


def get(url: str, path: Path) -> None:
    """Download a file.

    Raises:
        RemoteError: as of `read`.
    """
    _call(url, lambda system, name: system.get_file(name, str(path)))


def put(path: Path, url: str) -> None:
    """Upload a file: it appears at the address whole, or not at all.

    Raises:
        RemoteError: it cannot be written there.
    """

    def upload(system: Any, name: str) -> None:
        if _scheme(url) in _WHOLE:
            system.put_file(str(path), name)
            return
        system.makedirs(system._parent(name), exist_ok=True)
        beside = f"{name}.new"
        system.put_file(str(path), beside)
        system.mv(beside, name)

    if _scheme(url) in ("http", "https"):
        raise RemoteError(without_secrets(url), "nothing can be written to a web server")
    _call(url, upload)


def put_bytes(content: bytes, url: str, *, new: bool = False) -> bool:
    """Write a small file; with ``new`` only where there is none. Returns whether it was written.

    Raises:
        RemoteError: it cannot be written there.
    """

    def write(system: Any, name: str) -> bool:
        if _scheme(url) not in _WHOLE:
            system.makedirs(system._parent(name), exist_ok=True)
        try:
            system.pipe_file(name, content, mode="create" if new else "overwrite")
        except FileExistsError:
            return False
        except NotImplementedError:
            if system.exists(name):
                return False
            system.pipe_file(name, content)
        return True

    return _call(url, write)


def remove(url: str) -> None:
    """Remove a file; it is no error if there is none.

    Raises:
        RemoteError: it cannot be removed.
    """
    try:
        _call(url, lambda system, path: system.rm_file(path))
    except RemoteMissingError:
        return


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and its name for the file. fsspec keeps one for each process."""
    import fsspec
    from fsspec.config import conf
    from fsspec.core import url_to_fs

    scheme = _scheme(url)
    options: dict[str, Any] = {}
    if scheme in ("s3", "s3a"):
        # Listings are not kept: other processes write to the same folder.
        limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"max_attempts": 0}}
        options = {"use_listings_cache": False, "config_kwargs": limits}
    elif scheme in ("gs", "gcs"):
        options = {"use_listings_cache": False}
    elif scheme in ("http", "https"):
        import aiohttp

        seconds = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
        options = {"use_listings_cache": False, "client_kwargs": {"timeout": seconds, "trust_env": True}}
    options = {name: value for name, value in options.items() if name not in conf.get(scheme, {})}
    if "::" in url:
        return url_to_fs(url)
    system = fsspec.filesystem(scheme, **options)
    if scheme in ("s3", "s3a"):
        system.retries = 1  # `_call` does, within its own limit
    if scheme == "hf":
        system.invalidate_cache()
        if hub.address_of(url) is not None:
            return hub.HubSystem(system), url
    return system, url


_answered: set[tuple[str, str]] = set()


def _call(url: str, function: Callable[[Any, str], T]) -> T:
    """Call a function with the file system and the name of the file, again where the network is to blame.

    Raises:
        RemoteError: it failed; the message says why.
    """
    server = (_scheme(url), urlsplit(url).netloc)
    attempt = 0
    while True:
        attempt += 1
        try:
            system, path = _system(url)
            result = function(system, path)
        except Exception as raised:
            error = _cause(raised)
            tries = _TRIES if server in _answered else _TRIES_AT_FIRST
            slow = server not in _answered and _is_slow(error)  # waited for long enough
            if attempt >= tries or slow or not _is_passing(error):
                raise _in_words(url, error, attempt) from raised
            time.sleep(0.5 * 2 ** (attempt - 1) if server in _answered else 0.2)
            continue
        _answered.add(server)
        return result


def _info(about: dict[str, Any]) -> Info:
    size = about.get("size")
    version = next((str(about[name]) for name in _VERSIONS if about.get(name)), "")
    if not version and (changed := next((about[name] for name in _TIMES if about.get(name)), None)) is not None:
        version = f"{size} {changed}"
    return Info(None if size is None else int(size), version, about.get("type") == "directory")


_BROKEN = {
    *("ClientPayloadError", "ServerDisconnectedError", "IncompleteReadError", "IncompleteRead", "ContentLengthError"),
    *(
        "ResponseStreamingError",
        "ConnectionClosedError",
        "ChunkedEncodingError",
        "ProtocolError",
        "RemoteProtocolError",
    ),
}
_UNREACHABLE = {
    *("EndpointConnectionError", "ClientConnectorError", "ClientOSError", "ConnectError", "NewConnectionError"),
    *("MaxRetryError", "HTTPClientError", "ConnectionError", "ClientConnectorDNSError", "OfflineModeIsEnabled"),
}
_SLOW = {"ReadTimeoutError", "ConnectTimeoutError", "ServerTimeoutError", "FSTimeoutError", "SocketTimeoutError"}


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def _kinds(error: BaseException) -> set[str]:
    return {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}


def _status(error: BaseException) -> int | None:
    for each in _chain(error):
        response = getattr(each, "response", None)
        code = getattr(each, "status", None) or getattr(each, "code", None) or getattr(response, "status_code", None)
        if code is None and isinstance(response, dict):
            code = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if isinstance(code, str) and code.isdigit():
            code = int(code)
        if isinstance(code, int):
            return code
    return None


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed if it is made again."""
    if isinstance(
        error, (FileNotFoundError, PermissionError, ImportError, ValueError, NotImplementedError, ssl.SSLError)
    ):
        return False
    kinds, status = _kinds(error), _status(error)
    if "NoCredentialsError" in kinds:
        return False
    if kinds & _BROKEN:  # an error of aiohttp's about a cut answer has a status, 400
        return True
    if status is not None and status >= 400:
        return status >= 500 or status in (408, 429)
    network = (TimeoutError, asyncio.TimeoutError, ConnectionError, socket.gaierror)
    return isinstance(error, network) or bool(kinds & (_BROKEN | _UNREACHABLE | _SLOW)) or "SlowDown" in str(error)


def _cause(error: Exception) -> Exception:
    """The error itself; of fsspec's "not found" for whatever a web server did, what it did."""
    cause = error.__cause__
    if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and "ClientError" in _kinds(cause):
        return cause
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, TimeoutError) else error


def _is_slow(error: BaseException) -> bool:
    return isinstance(error, (TimeoutError, asyncio.TimeoutError)) or bool(_kinds(error) & _SLOW)


def _in_words(url: str, error: Exception, tries: int) -> RemoteError:
    """The error to raise for one of fsspec and its parts."""
    name, scheme = without_secrets(url), _scheme(url)
    kinds, status, text = _kinds(error), _status(error), _short(error)
    again = f", in {tries} tries" if tries > 1 else ""
    if isinstance(error, RemoteError):
        return error
    if isinstance(error, ImportError):
        if (extra := _EXTRAS.get(scheme)) is not None:
            return RemoteError(name, f'{scheme}:// needs a package: pip install "divcon[{extra}]"')
        return RemoteError(name, text)
    if isinstance(error, ValueError) and "rotocol not known" in str(error):
        return RemoteError(name, f"fsspec knows no addresses that begin with {scheme}://")
    if "NoCredentialsError" in kinds or "PartialCredentialsError" in kinds:
        return RemoteDeniedError(
            name, "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if "InvalidAccessKeyId" in text or "SignatureDoesNotMatch" in text or "does not exist in our records" in text:
        return RemoteDeniedError(name, f"the credentials are not valid here ({text})")
    if isinstance(error, FileNotFoundError) or status == 404:
        if "NoSuchBucket" in text or "bucket does not exist" in text:
            return RemoteMissingError(name, "there is no such bucket", bucket=True)
        return RemoteMissingError(name, "there is no such file")
    if isinstance(error, PermissionError) or status in (401, 403):
        return RemoteDeniedError(name, f"permission denied{f' ({text})' if text else ''}")
    if any(isinstance(each, socket.gaierror) for each in _chain(error)) or "ClientConnectorDNSError" in kinds:
        return RemoteError(name, f"{_server(url)} cannot be found: no network, or no name server")
    if any(isinstance(each, ssl.SSLError) for each in _chain(error)):
        return RemoteError(name, f"the connection is not trusted ({text})")
    if _is_slow(error):
        return RemoteError(name, f"{_server(url)} did not answer in time{again}")
    if kinds & _BROKEN or isinstance(error, ConnectionResetError):
        return RemoteError(name, f"the connection broke off{again}")
    if kinds & _UNREACHABLE:
        return RemoteError(name, f"{_server(url)} cannot be reached{again} ({text})")
    if status is not None:
        return RemoteError(name, f"the server answers with an error (HTTP {status}){again}")
    return RemoteError(name, f"{text or type(error).__name__}{again}")


def _server(url: str) -> str:
    """What answers for an address, in words."""
    scheme = _scheme(url)
    if scheme in ("http", "https"):
        return urlsplit(url).hostname or "the server"
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    endpoint = endpoint or os.environ.get("FSSPEC_S3_ENDPOINT_URL")
    return endpoint if scheme in ("s3", "s3a") and endpoint else f"the storage of {scheme}://"


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else ""
