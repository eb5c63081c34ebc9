"""Run the server until a signal stops it."""

from __future__ import annotations

from typing import Any

from divcon.errors import ConfigError

_STOP_SECONDS = 10
"""The time that running requests have to end when the server is stopped."""


def serve(app: Any, host: str, port: int, *, seconds: float) -> None:
    """Answer requests until SIGINT or SIGTERM; running requests are finished first.

    Args:
        seconds: a connection that sends no complete request line and headers in this time is closed.

    Raises:
        ConfigError: the server cannot listen on this host and port.
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
        raise ConfigError(
            f"`host` {host}, `port` {port}: cannot listen there ({error})", field=("port", "host")
        ) from None
    config = uvicorn.Config(
        app,
        http=_with_timeout(seconds),
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


def _with_timeout(seconds: float) -> Any:
    """uvicorn's protocol with a timeout for the headers of a request, which it would wait for without end."""
    from uvicorn.protocols.http.auto import AutoHTTPProtocol

    base: Any = AutoHTTPProtocol

    class WithTimeout(base):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._schedule()

        def connection_lost(self, exc: Exception | None) -> None:
            self._timer.cancel()
            super().connection_lost(exc)

        def _schedule(self) -> None:
            self._timer = self.loop.call_later(seconds, self._close_if_idle, self.cycle)

        def _close_if_idle(self, before: Any) -> None:
            if self.cycle is before and (before is None or before.response_complete):
                self.transport.close()
            else:
                self._schedule()

    return WithTimeout
