"""Addresses such as ``s3://bucket/runs/x``, and the place on this machine that stands for each.

Programs below this room work on paths. So each address has a path in a cache folder, from which the address can be
read back: ``CACHE/at/s3/bucket/runs/x``. What is there is a copy (`divcon.runtime.copies`); a file that
`divcon.runtime.files.atomic_write` writes there is uploaded. Paths without an address are themselves. Nothing here
opens a connection, or imports what does.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from divcon import errors

CACHE_DIR = "DIVCON_CACHE_DIR"
"""The variable that names the cache folder. Default: ``divcon`` in XDG_CACHE_HOME, or in ``~/.cache``."""
CACHE_SIZE = "DIVCON_CACHE_SIZE"
"""The variable that limits the size of the cache folder: ``50GB``."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://(?P<rest>.*)", re.DOTALL)
_COLLAPSED = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/(?P<rest>[^/].*)", re.DOTALL)
_AT = "at"
_LONG = 180
"""The longest part of an address, quoted, that is the name of a file; most file systems take 255 bytes."""


def is_url(text: object) -> bool:
    """Whether a text is an address, of another kind than ``file://``."""
    match = _URL.match(text) if isinstance(text, str) else None
    return match is not None and match["scheme"].lower() not in ("file", "local")


def cache_folder() -> Path:
    """The folder of copies and blocks of remote files; it need not exist."""
    if named := os.environ.get(CACHE_DIR):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser(), "divcon")


def place(text: str | os.PathLike[str]) -> Path:
    """The path that stands for a path or an address; a path stands for itself. ``Path("s3://bucket/x")``, which has
    lost a slash, is understood too."""
    name = os.fspath(text)
    if (match := _URL.match(name)) is None and isinstance(text, os.PathLike):
        match = _COLLAPSED.match(name)
    if match is None:
        return Path(text)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme in ("file", "local"):
        return Path(unquote(urlsplit(name).path) if scheme == "file" else rest)
    return Path(_root(), scheme, *map(_quoted, rest.rstrip("/").split("/")))


def url_of(path: str | os.PathLike[str]) -> str | None:
    """The address that a path stands for; None: it is a path and no more. An address stands for itself."""
    name = os.fspath(path)
    if is_url(name):
        return name
    root = _root() + os.sep
    if not name.startswith(root):
        return None
    scheme, *parts = name[len(root) :].split(os.sep)  # noqa: PTH206 - a path would lose its empty parts
    return f"{scheme}://{'/'.join(map(_unquoted, parts))}"


def text_of(path: str | os.PathLike[str]) -> str:
    """The address or path to record, and to show: the address that a path stands for, or the path as it is."""
    return url_of(path) or os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """As `text_of`; a path is made absolute."""
    return url_of(path) or str(place(path).absolute())


def exists_here(text: str | os.PathLike[str]) -> bool:
    """Whether a text is a path of this machine that exists; an address is none."""
    return not is_url(text) and Path(text).exists()


def joined(root: str | os.PathLike[str], path: str) -> str | Path:
    """The file of a path that starts from a folder or address: a path, or the text of an address."""
    if is_url(path):
        return path
    folder = os.fspath(root)
    if is_url(folder) and not path.startswith("/"):
        return f"{folder.rstrip('/')}/{path}"
    return Path(folder, path)


def shown(text: str) -> str:
    """A message with addresses in place of the paths that stand for them."""
    root = _root() + os.sep
    if root not in text:
        return text
    pattern = re.escape(root) + r"[^\s'\"`,;()]+"

    def address(match: re.Match[str]) -> str:
        name = match[0]
        end = name.rstrip(".:")
        return (url_of(end) or end) + name[len(end) :]

    return re.sub(pattern, address, text)


errors.names.append(shown)


def without_secrets(url: str) -> str:
    """An address for messages: without the password and the query, which may be a signature."""
    before, sign, _ = url.partition("?")
    before = re.sub(r"^([A-Za-z0-9+.-]+://)[^/@]*@", r"\1", before)
    return before + ("?..." if sign else "")


def _root() -> str:
    named = os.environ.get(CACHE_DIR)
    if named and not os.path.isabs(named):  # noqa: PTH117 - a path is made for each of many millions of rows
        return str(cache_folder() / _AT)
    return _root_for(named, os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME"))


@lru_cache(maxsize=8)
def _root_for(*variables: str | None) -> str:
    """The folder while the environment has these ``variables``."""
    return str(cache_folder() / _AT)


def _quoted(part: str) -> str:
    """A part of an address as the name of a file."""
    name = quote(part, safe=" +=,@!~^&[]{}-_.") if part not in ("", ".", "..") else part.replace(".", "%2E") or "%"
    if len(name) <= _LONG and "?" not in part:
        return name
    # A signed address: the name of the file is its end, so that the ending says what it is; the rest is in a file.
    digest = hashlib.sha256(part.encode()).hexdigest()
    known = cache_folder() / "names" / digest
    if not known.exists():
        known.parent.mkdir(parents=True, exist_ok=True)
        beside = known.with_name(f"{digest}.{os.getpid()}")
        beside.write_bytes(part.encode())
        beside.replace(known)
    stem = part.partition("?")[0]
    return f"%~{digest}~{quote(stem, safe='-_.')[-60:]}"


def _unquoted(name: str) -> str:
    if name == "%":
        return ""
    if name.startswith("%~"):
        try:
            return (cache_folder() / "names" / name[2:66]).read_bytes().decode()
        except OSError:
            return name
    return unquote(name)
