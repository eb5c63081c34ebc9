"""``divcon serve``: a server and a page over an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from divcon.cli.app import DeviceOption, app, console, note
from divcon.errors import ConfigError


@app.command
def serve(
    store: str,
    model: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 8000,
    scores: Path | None = None,
    run: Path | None = None,
    token: Annotated[str | None, Parameter(env_var="DIVCON_TOKEN")] = None,
    upload_mb: float = 20,
    megapixels: float = 50,
    most_k: int = 200,
    at_once: int = 4,
    waiting: int = 64,
    seconds: float = 30,
    device: DeviceOption = "auto",
) -> None:
    """Serve an index: a page to search it with images, and an API for programs.

    divcon serve runs/products

    divcon serve runs/products --scores scores.json

    divcon serve runs/products --host 0.0.0.0 --port 8080

    The API is described in /openapi.json. Beyond this machine (a --host other than 127.0.0.1 or localhost) every
    request needs a token, which is made and printed unless it is given; the page asks for it, and programs send it as
    Authorization: Bearer TOKEN. The connection is plain HTTP: across networks that others can read, put a proxy with
    TLS in front.

    Pictures are given of indexed items alone. Ctrl-C or SIGTERM ends requests under way, then the server.

    Parameters
    ----------
    store
        A run that was indexed, a store's folder, or postgresql://USER@HOST/DATABASE.
    model
        The run or model folder that the index was made with; left out, the one that the index names.
    scores
        What divcon evaluate --json wrote for the run: the page then shows its failures.
    run
        The run whose data and divisions the page shows; left out, the one that the index names.
    token
        At least 16 characters. As an option others on this machine can see it; the environment variable keeps it from
        them.
    upload_mb
        Megabytes that may be sent at most.
    megapixels
        Millions of pixels that a sent image may have, read from its header before it is decoded.
    most_k
        The most neighbours of a search.
    at_once
        Requests that are worked on at the same time.
    waiting
        Requests that may wait for these; further ones are told to try again (503).
    seconds
        Seconds that a request may take, its upload included.
    """
    import secrets

    from divcon.runs.folder import RunFolder
    from divcon.runtime.device import resolve_device
    from divcon.search import Index
    from divcon.serve.app import create_app
    from divcon.serve.failures import read_scores
    from divcon.serve.guard import is_loopback
    from divcon.serve.limits import Limits
    from divcon.serve.server import serve as run_server

    limits = Limits(upload_mb, megapixels, most_k, at_once, waiting, seconds)
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("--token: give at least 16 letters, digits or signs without spaces, or none to have one made")
    made = token is None and not is_loopback(host)
    token = secrets.token_urlsafe(24) if made else token
    read = None if scores is None else read_scores(scores)
    if run is not None and RunFolder(run).origin() is None:
        raise ConfigError(f"--run {run}: this is no run's folder")
    with Index.open(store, model, device=resolve_device(device)) as index:
        if run is None and index.about.model and RunFolder(index.about.model).origin() is not None:
            run = Path(index.about.model)
        server = create_app(index, limits=limits, token=token, run=run, scores=read)
        shown = f"[{host}]" if ":" in host else host
        console.print(f"{len(index):,} items of {index.uri} at http://{shown}:{port}/")
        if made:
            console.print(f"token: {token}")
        if not is_loopback(host):
            note("whoever can read this network can read what is sent, the token too; put TLS in front")
        run_server(server, host, port, seconds=limits.seconds)
    console.print("stopped")
