"""Models on the Hugging Face Hub: their addresses, ``hf://USER/MODEL[@REVISION][/FOLDER]``, the Hub's own cache on this
machine, and pushing a folder.

huggingface_hub is imported when the first of them is used. Data sets (``hf://datasets/...``) are read by fsspec alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from divcon import errors
from divcon.errors import ConfigError, RemoteDeniedError, RemoteError, RemoteMissingError

SCHEME = "hf://"
SECONDS = 15
"""The time in which the Hub has to answer for what a repository holds."""
_OTHERS = ("datasets", "spaces", "buckets", "kernels")
"""What `hf://` addresses begin with where they are of no model."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOGIN = "set HF_TOKEN, or run `hf auth login`"
_LINKED = ".safetensors"
"""Files that are no copies of those in the Hub's cache, but links: they are large, and never written in place."""


@dataclass(frozen=True)
class Address:
    """A model's repository, or a file or folder in it."""

    repo_id: str
    """``USER/MODEL``."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the main branch."""
    path: str = ""
    """The file or folder in it."""

    def __str__(self) -> str:
        return hub_url(self.repo_id, self.revision, self.path)


def hub_url(repo_id: str, revision: str | None = None, path: str = "") -> str:
    """``hf://USER/MODEL@REVISION/PATH``."""
    at = "" if revision is None else f"@{revision.replace('/', '%2F')}"
    return f"{SCHEME}{repo_id}{at}" + (f"/{path}" if path else "")


def address_of(url: str) -> Address | None:
    """What an address names on the Hub; None: another kind of address, or no model's."""
    if not url.lower().startswith(SCHEME):
        return None
    user, _, rest = url[len(SCHEME) :].strip("/").partition("/")
    if user in _OTHERS:
        return None
    match = re.match(r"(?P<name>[^/@]*)(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.*))?$", rest)
    if match is None or not _NAME.fullmatch(repo_id := f"{user}/{match['name']}"):
        raise RemoteError(url, "is no address of a model: write hf://USER/MODEL, hf://USER/MODEL@REVISION, or either "
                          "with /FOLDER")  # fmt: skip
    revision = None if match["revision"] is None else unquote(match["revision"])
    return Address(repo_id, revision, (match["path"] or "").strip("/"))


@dataclass(frozen=True)
class _Tree:
    """The files of one commit, by their paths: size and version."""

    commit: str
    files: Mapping[str, tuple[int | None, str]]


_pinned: ContextVar[dict[tuple[str, str | None], _Tree] | None] = ContextVar("pinned", default=None)


@contextmanager
def pinned() -> Iterator[None]:
    """Within the block, all files of a repository are of one commit, which is asked for once."""
    before = _pinned.set({})
    try:
        yield
    finally:
        _pinned.reset(before)


class HubSystem:
    """The part of an fsspec file system that reads models: through the Hub's own cache, from which it answers too where
    the Hub cannot be reached. The rest is huggingface_hub's file system.

    Args:
        system: huggingface_hub's ``HfFileSystem``.
    """

    def __init__(self, system: Any) -> None:
        self._system = system

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def info(self, url: str) -> dict[str, Any]:
        address = _address(url)
        tree = _tree(address)
        if address.path in tree.files:
            return self._entry(url, *tree.files[address.path])
        if address.path and not any(name.startswith(f"{address.path}/") for name in tree.files):
            raise FileNotFoundError(url)
        return {"name": self._system._strip_protocol(url), "size": 0, "type": "directory"}

    def find(self, url: str, *, detail: bool = True) -> Any:
        address = _address(url)
        start = f"{address.path}/" if address.path else ""
        files = {
            name.removeprefix(start): each for name, each in _tree(address).files.items() if name.startswith(start)
        }
        found = [self._entry(f"{url.rstrip('/')}/{name}", *each) for name, each in files.items()]
        return {each["name"]: each for each in found} if detail else [each["name"] for each in found]

    def ls(self, url: str, *, detail: bool = False) -> list[str]:
        start = self._system._strip_protocol(url).rstrip("/") + "/"
        inside = self.find(url, detail=False)
        if not inside:
            raise FileNotFoundError(url)
        return sorted({start + name.removeprefix(start).partition("/")[0] for name in inside})

    def get_file(self, url: str, path: str) -> None:
        cached = _download(_address(url))
        if cached.suffix == _LINKED:
            try:
                Path(path).symlink_to(cached.resolve())
                return
            except OSError:  # a file system without links
                pass
        shutil.copyfile(cached, path)

    def _entry(self, url: str, size: int | None, version: str) -> dict[str, Any]:
        return {"name": self._system._strip_protocol(url), "size": size, "type": "file", "blob_id": version}


def _address(url: str) -> Address:
    address = address_of(url)
    assert address is not None, url
    return address


def _tree(address: Address) -> _Tree:
    known = _pinned.get()
    key = address.repo_id, address.revision
    if known is not None and key in known:
        return known[key]
    tree = _asked(address)
    if known is not None:
        known[key] = tree
    return tree


def _asked(address: Address) -> _Tree:
    """The files that the Hub has; or, where it cannot be reached, those in its cache on this machine."""
    from huggingface_hub import HfApi

    try:
        about = HfApi().model_info(address.repo_id, revision=address.revision, files_metadata=True, timeout=SECONDS)
    except Exception as error:
        if _is_unreachable(error) and (cached := _cached(address)) is not None:
            return cached
        raise_in_words(error, address)
    files = {
        each.rfilename: (each.size, (each.lfs.sha256 if each.lfs is not None else each.blob_id) or "")
        for each in about.siblings or ()
    }
    return _Tree(about.sha or "", files)


def _cached(address: Address) -> _Tree | None:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=address.repo_id, repo_type="model"))
    commit = address.revision or constants.DEFAULT_REVISION
    if (reference := folder / "refs" / commit).is_file():
        commit = reference.read_text().strip()
    snapshot = folder / "snapshots" / commit
    if not snapshot.is_dir():
        return None
    files = {
        path.relative_to(snapshot).as_posix(): (path.stat().st_size, path.resolve().name)
        for path in sorted(snapshot.rglob("*"))
        if path.is_file()
    }
    return _Tree(commit, files)


def _download(address: Address) -> Path:
    """A file in the Hub's cache, of the commit that is pinned."""
    from huggingface_hub import hf_hub_download

    commit = _tree(address).commit
    try:
        # By the name of the revision, so that the cache knows later, without network, which commit that is.
        path = hf_hub_download(address.repo_id, address.path, revision=address.revision)
        if commit and commit not in Path(path).parts:  # pushed to meanwhile
            path = hf_hub_download(address.repo_id, address.path, revision=commit)
    except Exception as error:
        raise_in_words(error, address)
    return Path(path)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The folder of a model in the Hub's cache, after what is missing there has been downloaded.

    Args:
        revision: a branch, a tag or a commit; None: the main branch.
        subfolder: of the repository.
        token: of the account; None: that of HF_TOKEN or of ``hf auth login``; False: none.
        cache_dir: in place of the Hub's cache.
        local_files_only: ask nobody; what is in the cache counts.
        force_download: download again what is in the cache.

    Raises:
        ConfigError: that is no name of a repository.
        RemoteError: the Hub cannot be reached, and the model is not in the cache. RemoteMissingError,
            RemoteDeniedError: there is no such repository or revision, or the token does not allow it.
    """
    from huggingface_hub import snapshot_download

    check_name(repo_id)
    start = f"{subfolder.strip('/')}/" if subfolder else ""
    wanted = [f"{start}{name}" for name in ("*.json", "model.safetensors", "model/*")]
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=wanted,
        )
    except Exception as error:
        raise_in_words(error, Address(repo_id, revision, subfolder))
    place = Path(folder, subfolder)
    _names[str(place)] = str(Address(repo_id, revision, subfolder))
    return place


_names: dict[str, str] = {}
"""The addresses of the folders that `download` has returned, for messages."""


def _shown(text: str) -> str:
    for folder, url in _names.items():
        text = text.replace(folder, url)
    return text


errors.names.append(_shown)


def is_name(repo_id: str) -> bool:
    """Whether it could be the name of a repository."""
    wrong = ".." in repo_id or "--" in repo_id or repo_id.endswith((".", "-", ".git"))
    return _NAME.fullmatch(repo_id) is not None and not wrong


def check_name(repo_id: str, field: str = "repo_id") -> None:
    """
    Raises:
        ConfigError: it is no name of a repository.
    """
    if not is_name(repo_id):
        raise ConfigError(
            f"`{field}` {repo_id}: is no name of a repository; write USER/MODEL, of letters, digits, - _ and .",
            field=field,
        )


def check_push(
    repo_id: str, *, private: bool | None = None, token: str | bool | None = None, field: str = "repo_id"
) -> None:
    """Check, before any work, that an account is logged in and that the repository may be pushed to.

    Raises:
        ConfigError: that is no name of a repository; or it is there, and ``private`` is not what it is.
        RemoteError: the Hub cannot be reached. RemoteDeniedError: there is no token, or it is not valid.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    check_name(repo_id, field)
    address = Address(repo_id)
    if token is False or (token in (None, True) and get_token() is None):
        raise RemoteDeniedError(str(address), f"pushing needs a token of a Hugging Face account: {_LOGIN}")
    api = HfApi(token=token)
    try:
        api.whoami()
        there = api.model_info(repo_id, timeout=SECONDS)
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise_in_words(error, address, pushing=True)
    if private is not None and there.private is not None and private != there.private:
        is_now = "private" if there.private else "public"
        raise ConfigError(
            f"`private` {private}: the repository {repo_id} is there already, and {is_now}; leave it out, or change "
            "that in its settings on the Hub",
            field="private",
        )


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
    without: Sequence[str] = (),
    replaced: Sequence[str] = (),
) -> str:
    """Push the files of a folder to a repository in one commit: all of them, or none. The repository is created if it
    is not there. `check_push` comes before.

    Args:
        private: of a repository that is created; None: as the account creates them.
        revision: the branch, created if it is not there; None: the main branch.
        message: of the commit.
        token: see `download`.
        without: names of files that are not pushed.
        replaced: names of files that are removed from the repository where the folder does not have them.

    Returns:
        The address of the commit.

    Raises:
        RemoteError: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    address = Address(repo_id, revision)
    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            revision=revision,
            commit_message=message or "Push a model of divcon",
            ignore_patterns=list(without) or None,
            delete_patterns=list(replaced) or None,
        )
    except Exception as error:
        raise_in_words(error, address, pushing=True)
    return done.commit_url


def raise_in_words(error: Exception, address: Address, *, pushing: bool = False) -> NoReturn:
    """Raise an error of huggingface_hub's as one of ours, which says what to do.

    Raises:
        RemoteError: always; or the error itself, where it is none of the Hub's.
    """
    from huggingface_hub import errors as hub_errors

    if isinstance(error, RemoteError | ConfigError):
        raise error
    url, repo_id = str(address), address.repo_id
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub_errors.GatedRepoError):
        why = f"its author gives access on request: ask for it on the page of {repo_id}, and {_LOGIN}"
        raise RemoteDeniedError(url, why) from error
    if isinstance(error, hub_errors.RepositoryNotFoundError):
        why = f"there is no model {repo_id} on the Hub, or it is private and no token allows it: {_LOGIN}"
        raise RemoteMissingError(url, why, bucket=True) from error
    if isinstance(error, hub_errors.RevisionNotFoundError):
        why = f"{repo_id} has no revision {address.revision}"
        raise RemoteMissingError(url, why, bucket=True) from error
    if isinstance(error, hub_errors.LocalTokenNotFoundError) or status == 401:
        raise RemoteDeniedError(url, f"the Hub does not accept the token (HTTP 401): {_LOGIN}") from error
    if status == 403:
        what = "write to it" if pushing else "read it"
        raise RemoteDeniedError(url, f"the token is not allowed to {what} (HTTP 403)") from error
    if isinstance(error, hub_errors.RemoteEntryNotFoundError):
        raise RemoteMissingError(url, "there is no such file") from error
    missing = isinstance(error, hub_errors.LocalEntryNotFoundError)
    if missing or _is_unreachable(error):
        from huggingface_hub import constants

        cached = "" if pushing else ", and it is not in the Hub's cache on this machine"
        if constants.HF_HUB_OFFLINE:
            raise RemoteError(url, f"HF_HUB_OFFLINE is set{cached}") from error
        if missing and error.__cause__ is None:  # local_files_only
            raise RemoteError(url, "it is not in the Hub's cache on this machine") from error
        raise RemoteError(url, f"the Hub ({constants.ENDPOINT}) cannot be reached{cached}") from error
    if isinstance(error, ValueError) and pushing:  # the lines above the title of the card
        raise RemoteError(url, f"the Hub does not accept the files: {' '.join(str(error).split())[:300]}") from error
    if status is not None:
        raise RemoteError(url, f"the Hub answers with an error (HTTP {status}){_said(error)}") from error
    raise error


def _is_unreachable(error: BaseException) -> bool:
    """Whether the Hub was not reached, or is down."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    return bool(kinds & {"TransportError", "OfflineModeIsEnabled", "ConnectionError", "TimeoutError"}) or (
        isinstance(status, int) and status >= 500
    )


def _said(error: Exception) -> str:
    text = getattr(error, "server_message", None)
    return f": {' '.join(str(text).split())[:200]}" if text else ""
