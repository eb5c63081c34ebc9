"""`Guard`: the middleware that authenticates requests, limits their bodies, and counts them."""

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
    """Counters of requests by route and status, and a histogram of their durations."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    def count(self, scope: dict[str, Any], status: int, seconds: float) -> None:
        """Count an answered request."""
        # Paths without a route share a line: there is no end to them.
        path = getattr(scope.get("route"), "path", "other")
        self._requests[path, status] += 1
        self._seconds += seconds
        for bucket in _BUCKETS:
            self._buckets[bucket] += seconds <= bucket

    def text(self, **gauges: float) -> str:
        """The metrics in Prometheus's text format.

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
"""After a refusal, the rest of the body is read for so long, so that the client gets the response."""

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Whether a host name or address is reachable from this machine alone."""
    if host.casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware: checks Host, Origin and token, reads the body within the limits, counts requests, and sets
    security headers.

    Without a token, only requests to 127.0.0.1 or localhost are answered; other names that resolve to 127.0.0.1 (DNS
    rebinding) are refused. With a token, every path but ``open_paths`` needs it.
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
        status, complete = 500, False

        async def received() -> dict[str, Any]:
            nonlocal complete
            message = await receive()
            complete = message["type"] != "http.request" or not message.get("more_body")
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
                    if not complete and headers.keys() & {"content-length", "transfer-encoding"}:
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
        name = urlsplit(f"//{host}").hostname or "" if _is_valid(host) else ""
        if self.token is None and not is_loopback(name):
            raise Refusal(403, f"Host {host!r}: this server only answers requests to 127.0.0.1 or localhost")
        origin = headers.get("origin")
        if origin is not None and (not _is_valid(origin) or urlsplit(origin).netloc.casefold() != host.casefold()):
            raise Refusal(403, f"Origin {origin!r}: requests from other sites are refused")
        if self.token is not None and scope["path"] not in self.open_paths and not self._has_token(headers):
            raise Refusal(401, "send the token as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _has_token(self, headers: dict[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.casefold() != "bearer":
            try:
                cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
            except CookieError:
                return False
            token = cookie.value if cookie else ""
        return hmac.compare_digest(token.strip().encode(), (self.token or "").encode())

    async def _body(self, headers: dict[str, str], receive: Receive) -> bytes | None:
        """The body; None if the client disconnected before its end."""
        limit = self.limits.upload_bytes
        length = headers.get("content-length", "")
        try:
            async with asyncio.timeout(self.limits.seconds):
                if length.isdecimal() and int(length) > limit:
                    raise self._too_large()
                chunks, size = [], 0
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise self._too_large()
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refusal(408, f"the upload took longer than {self.limits.seconds:g} seconds") from None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the upload is larger than {self.limits.upload_mb:g} MB")


async def answer(send: Send, refusal: Refusal) -> None:
    """Send an error as JSON."""
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


def _is_valid(address: str) -> bool:
    """Whether it is a valid address."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        return parts.port is not None or bool(parts.hostname)
    except ValueError:
        return False


def _replayed(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def once() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _drain(receive: Receive) -> None:
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                pass
    except TimeoutError:
        pass
