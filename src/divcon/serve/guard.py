"""What every request passes first: who may ask, how much may be sent, and what is counted."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from divcon.serve.limits import Limits, Refusal

_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Seconds."""


class Metrics:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    def count(self, scope: dict[str, Any], status: int, seconds: float) -> None:
        """Count a request that was answered."""
        # A path that no route has could be anything, and each would be a line.
        path = getattr(scope.get("route"), "path", "other")
        self._requests[path, status] += 1
        self._seconds += seconds
        for bucket in _BUCKETS:
            self._buckets[bucket] += seconds <= bucket

    def text(self, **gauges: float) -> str:
        """All counts in Prometheus's text format.

        Args:
            gauges: further numbers, by name.
        """
        total = sum(self._requests.values())
        lines = ["# TYPE divcon_requests_total counter"]
        for (path, status), number in sorted(self._requests.items()):
            lines.append(f'divcon_requests_total{{route="{path}",status="{status}"}} {number}')
        lines.append("# TYPE divcon_request_seconds histogram")
        lines += [f'divcon_request_seconds_bucket{{le="{b:g}"}} {self._buckets[b]}' for b in _BUCKETS]
        lines.append(f'divcon_request_seconds_bucket{{le="+Inf"}} {total}')
        lines += [f"divcon_request_seconds_sum {self._seconds:.6f}", f"divcon_request_seconds_count {total}"]
        for name, value in {"requests_in_progress": self.in_progress, **gauges}.items():
            lines += [f"# TYPE divcon_{name} gauge", f"divcon_{name} {value:g}"]
        return "\n".join(lines) + "\n"


COOKIE = "divcon_token"
SECURITY = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
_DRAINED_SECONDS = 5
"""How long what comes after a refusal is read and dropped, so that the sender sees the refusal."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether a host's name or address reaches this machine alone."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI: checks Host, Origin and token, reads the body within its limits, counts, and sets headers.

    Without a token only this machine may ask, and only by a name of its own: a page of another name that resolves to
    127.0.0.1 (DNS rebinding) is refused. With one, ``open_paths`` are given without it.
    """

    def __init__(
        self, app: Any, *, limits: Limits, metrics: Metrics, token: str | None, open_paths: tuple[str, ...]
    ) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.token = token
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status, whole = 500, False

        async def received() -> dict[str, Any]:
            nonlocal whole
            message = await receive()
            whole = message["type"] != "http.request" or not message.get("more_body")
            return message

        async def send_with(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                have = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in SECURITY.items() if n.encode() not in have]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        self.metrics.in_progress += 1
        try:
            try:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                try:
                    self._check(scope, headers)
                    body = await self._body(headers, received)
                except Refusal:
                    if not whole and headers.keys() & {"content-length", "transfer-encoding"}:
                        await _drain(receive)
                    raise
            except Refusal as refusal:
                await answer(send_with, refusal)
                return
            if body is not None:
                await self.app(scope, _replayed(body, receive), send_with)
        finally:
            self.metrics.in_progress -= 1
            self.metrics.count(scope, status, time.monotonic() - started)

    def _check(self, scope: Scope, headers: dict[str, str]) -> None:
        if self.metrics.in_progress > self.limits.at_once + self.limits.waiting and scope["path"] != "/health":
            raise Refusal.busy("the server is busy; try again in a second")
        host = headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or "" if _sound(host) else ""
        if self.token is None and not is_loopback(name):
            raise Refusal(403, f"Host {host!r}: this server answers to 127.0.0.1 and localhost alone")
        origin = headers.get("origin")
        if origin is not None and (not _sound(origin) or urlsplit(origin).netloc.casefold() != host.casefold()):
            raise Refusal(403, f"Origin {origin!r}: only this server's own page may ask")
        if self.token is not None and scope["path"] not in self.open_paths and not self._has_token(headers):
            raise Refusal(401, "give the token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _has_token(self, headers: dict[str, str]) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.casefold() != "bearer":
            try:
                cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            except CookieError:
                return False
            given = cookie.value if cookie else ""
        return hmac.compare_digest(given.strip().encode(), (self.token or "").encode())

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The whole body; None where the sender went away before its end."""
        most = self.limits.upload_bytes
        length = headers.get("content-length", "")
        try:
            async with asyncio.timeout(self.limits.seconds):
                if length.isdecimal() and int(length) > most:
                    raise self._too_large()
                parts, size = [], 0
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > most:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Refusal(408, f"the upload took longer than {self.limits.seconds:g} seconds") from None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the upload is larger than {self.limits.upload_mb:g} MB")


async def answer(send: Send, refusal: Refusal) -> None:
    """Answer with what is wrong."""
    body = json.dumps({"error": str(refusal)}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})


def _sound(address: str) -> bool:
    """Whether it is an address that can be taken apart."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        return parts.port is not None or bool(parts.hostname)
    except ValueError:
        return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def once() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _drain(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
