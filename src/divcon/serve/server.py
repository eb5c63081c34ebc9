"""Serving until a signal stops it."""

from __future__ import annotations

from typing import Any

from divcon.errors import ConfigError

_STOP_SECONDS = 10
"""For requests that are under way when the server is stopped."""


def serve(app: Any, host: str, port: int) -> None:
    """Answer on host and port until SIGINT or SIGTERM; requests under way are then finished first.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    import signal
    import socket
    import threading

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({error})") from None
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=1024,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )
    server = uvicorn.Server(config)
    before = None
    if threading.current_thread() is threading.main_thread():
        # uvicorn raises the signal again once it has stopped, which would end the process before its caller.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass  # uvicorn raises it again once it has stopped
    finally:
        listener.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
