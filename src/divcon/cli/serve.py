"""``divcon serve``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from divcon.cli.app import SEARCH, DeviceOption, Place, app, console, note
from divcon.errors import ConfigError
from divcon.runtime.places import place

_PROXY = Group("Behind a proxy", sort_key=40)
_LIMITS = Group("Limits", sort_key=50)
_Repeated = Annotated[list[str] | None, Parameter(group=_PROXY, negative=())]


@app.command(group=SEARCH)
def serve(
    store: str,
    model: Place | None = None,
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 8000,
    scores: Place | None = None,
    run: Place | None = None,
    compare: Annotated[list[str] | None, Parameter(negative=())] = None,
    labels: Place | None = None,
    token: Annotated[str | None, Parameter(env_var="DIVCON_TOKEN")] = None,
    root_path: Annotated[str, Parameter(group=_PROXY)] = "",
    allow_host: _Repeated = None,
    trust_proxy: _Repeated = None,
    cors_origin: _Repeated = None,
    upload_mb: Annotated[float, Parameter(group=_LIMITS)] = 20,
    megapixels: Annotated[float, Parameter(group=_LIMITS)] = 50,
    most_k: Annotated[int, Parameter(group=_LIMITS)] = 200,
    at_once: Annotated[int, Parameter(group=_LIMITS)] = 4,
    waiting: Annotated[int, Parameter(group=_LIMITS)] = 64,
    seconds: Annotated[float, Parameter(group=_LIMITS)] = 30,
    device: DeviceOption = "auto",
) -> None:
    """Serve an index: a page to search it with images, and an API for programs.

    divcon serve runs/products

    divcon serve runs/products --scores scores.json

    divcon serve runs/products --compare runs/baseline

    divcon serve runs/products --host 0.0.0.0 --port 8080

    divcon serve runs/products --root-path /tools/divcon --allow-host shop.example

    The API is described in /openapi.json. If --host is not 127.0.0.1 or localhost, every request needs a token, which
    is created and printed unless you give one; the page asks for it, and programs send it as Authorization: Bearer
    TOKEN. The connection is plain HTTP: put a proxy with TLS in front on networks that others can read.

    Only indexed images can be downloaded. Ctrl-C or SIGTERM lets running requests finish, then stops the server.

    Parameters
    ----------
    store
        The run that was indexed, a store's folder or address (s3://BUCKET/PATH), postgresql://USER@HOST/DATABASE,
        qdrant://HOST:PORT/COLLECTION, or a store of your own
        (module:Name or module:Name?OPTION=VALUE).
    model
        The run or model folder, if it has moved since the index was built.
    host
        The address to listen on.
    port
        The port to listen on.
    scores
        Show the failures among these scores on the page: a file that evaluate --json wrote for the run.
    run
        The run whose data and divisions the page shows. Default: the one that the index names.
    compare
        Another run that was indexed, or another store: the page shows the results of both models for the same query
        side by side. Repeat it for several.
    labels
        The file that keeps the labels that are given on the page. Default: page-labels.csv in the store's folder.
    token
        At least 16 characters. Other users of this machine can see the options of a command; use the environment
        variable to hide it.
    root_path
        The path under which a proxy serves this server, such as /tools/divcon, whether it strips that path or not.
    allow_host
        A name of this server besides 127.0.0.1 and localhost, such as shop.example or shop.example:8443, which a proxy
        in front of it answers to. Repeat it for several. Without --token, everybody whom the proxy lets in can search
        and label.
    trust_proxy
        The address or network of a proxy, such as 127.0.0.1, whose X-Forwarded-Host and X-Forwarded-Proto are believed:
        for a proxy that changes Host. Repeat it for several.
    cors_origin
        Another site whose pages may call the API, such as https://shop.example. Repeat it for several.
    upload_mb
        Largest upload, in megabytes.
    megapixels
        Largest uploaded image, in millions of pixels; checked in its header before it is decoded.
    most_k
        Most neighbours per search.
    at_once
        Requests that are processed at the same time.
    waiting
        Requests that may wait for these; more get the answer 503, try again later.
    seconds
        Most seconds per request, upload included.
    """
    import importlib
    import secrets
    from contextlib import ExitStack

    from divcon.runs.folder import RunFolder
    from divcon.search import Index
    from divcon.serve.guard import is_loopback
    from divcon.serve.limits import Limits

    limits = Limits(upload_mb, megapixels, most_k, at_once, waiting, seconds)
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError("--token: use at least 16 letters, digits or signs without spaces, or leave it out")
    create_token = token is None and not is_loopback(host)
    token = secrets.token_urlsafe(24) if create_token else token
    scores_of_run = None
    if scores is not None:
        from divcon.serve.failures import read_scores

        scores_of_run = read_scores(scores)
    if run is not None and RunFolder(run).origin() is None:
        raise ConfigError(f"--run {run}: is not a run folder")
    with ExitStack() as opened:
        index = opened.enter_context(Index.open(store, model, device=device))
        others = [opened.enter_context(Index.open(other, device=device)) for other in compare or ()]
        from divcon.serve.app import create_app
        from divcon.serve.server import serve as run_server

        # Now, so that the first request does not wait seconds for PyTorch and timm.
        for module in ("divcon.models.embedding_model", *(() if index.about.vector_dim else ("timm",))):
            importlib.import_module(module)
        if run is None and index.about.model and RunFolder(index.about.model).origin() is not None:
            run = place(index.about.model)
        server = create_app(
            index,
            limits=limits,
            token=token,
            run=run,
            scores=scores_of_run,
            compare=others,
            root_path=root_path,
            allow_host=allow_host or (),
            trust_proxy=trust_proxy or (),
            cors_origin=cors_origin or (),
            labels=labels,
        )
        url_host, path = f"[{host}]" if ":" in host else host, root_path.strip("/")
        url = f"http://{url_host}:{port}/{path}{'/' if path else ''}"
        console.print(f"{len(index):,} items of {index.uri} at {url}")
        if create_token:
            console.print(f"token: {token}")
        if allow_host and token is None:
            note(
                f"everybody whom the proxy of {allow_host[0]} lets in can search and label; use --token to ask for one"
            )
        if not is_loopback(host):
            note("others on this network can read everything that is sent, the token too; use a proxy with TLS")
        run_server(server, host, port, seconds=limits.seconds)
    console.print("stopped")
