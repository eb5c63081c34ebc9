"""`Access`, who may use the server; and `Guard`, the middleware that checks it, limits requests and counts them."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from divcon.errors import ConfigError
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


@dataclass(frozen=True)
class Access:
    """Who may use a server, and the address that it has behind a proxy.

    Raises:
        ConfigError: a value has another form.
    """

    token: str | None = None
    """What requests must send; None: only requests to 127.0.0.1, localhost or ``allow_host`` are answered."""
    root_path: str = ""
    """The path that a proxy serves the server under, such as ``/tools/divcon``; the proxy may strip it or not."""
    allow_host: Sequence[str] = ()
    """Names of the server besides 127.0.0.1 and localhost, such as ``shop.example``: the Host of requests, and of the
    page that sends them. ``shop.example:8443`` is that port alone."""
    trust_proxy: Sequence[str] = ()
    """Addresses (``127.0.0.1``) or networks (``10.0.0.0/8``) of proxies whose ``X-Forwarded-Host`` and
    ``X-Forwarded-Proto`` are believed."""
    cors_origin: Sequence[str] = ()
    """Origins such as ``https://shop.example`` whose pages may call the API (CORS)."""

    def __post_init__(self) -> None:
        root = self.root_path.strip("/")
        if root and not all(re.fullmatch(r"(?!\.{1,2}$)[\w.~-]+", part, re.ASCII) for part in root.split("/")):
            raise ConfigError(
                f"`root_path` {self.root_path}: pass the path of the address alone, such as /tools/divcon",
                field="root_path",
            )
        for name in ("allow_host", "trust_proxy", "cors_origin"):
            value = getattr(self, name)
            if isinstance(value, str):
                raise ConfigError(f"`{name}` {value!r}: pass a list of them", field=name)
            object.__setattr__(self, name, tuple(value))
        for host in self.allow_host:
            if not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?", host, re.ASCII) or not _is_valid(host):
                raise ConfigError(
                    f"`allow_host` {host}: pass a name, with a port if it matters, such as shop.example or "
                    "shop.example:8443",
                    field="allow_host",
                )
        for address in self.trust_proxy:
            try:
                ipaddress.ip_network(address)
            except ValueError as error:
                raise ConfigError(
                    f"`trust_proxy` {address}: pass the address or network of the proxy, such as 127.0.0.1 or "
                    f"10.0.0.0/8 ({error})",
                    field="trust_proxy",
                ) from None
        object.__setattr__(self, "root_path", f"/{root}" if root else "")
        object.__setattr__(self, "allow_host", tuple(host.casefold() for host in self.allow_host))
        object.__setattr__(self, "cors_origin", tuple(map(_origin, self.cors_origin)))

    def is_own_name(self, host: str) -> bool:
        """Whether a Host header names this server."""
        if not _is_valid(host):
            return False
        parts = urlsplit(f"//{host}")
        name = parts.hostname or ""
        return is_loopback(name) or name in self.allow_host or host.casefold() in self.allow_host

    def trusts(self, scope: Scope) -> bool:
        """Whether a request comes from a trusted proxy."""
        if not self.trust_proxy:
            return False
        try:
            address = ipaddress.ip_address((scope.get("client") or ("",))[0])
        except ValueError:
            return False
        return any(address in ipaddress.ip_network(network) for network in self.trust_proxy)


def _origin(origin: str) -> str:
    parts = urlsplit(origin) if _is_valid(origin) else None
    if (
        parts is None
        or parts.scheme not in ("http", "https")
        or not re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d+)?", parts.netloc, re.ASCII)
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
    ):
        raise ConfigError(
            f"`cors_origin` {origin}: pass each origin by its scheme and name, such as https://shop.example",
            field="cors_origin",
        )
    # As a browser writes it.
    default = {"http": ":80", "https": ":443"}[parts.scheme]
    return f"{parts.scheme}://{parts.netloc.casefold().removesuffix(default)}"


def route_path(scope: Scope) -> str:
    """The path of a request below the root path, which a proxy may have stripped."""
    root, path = scope.get("root_path", ""), scope["path"]
    below = root and (path == root or path.startswith(f"{root}/"))
    return path[len(root) :] if below else path


class Guard:
    """ASGI middleware: checks Host, Origin and token, reads the body within the limits, counts requests, answers HEAD
    as GET without the body, and sets security headers.

    Without a token, only requests to 127.0.0.1, localhost or the names of ``access`` are answered; other names that
    resolve to 127.0.0.1 (DNS rebinding) are refused. With a token, every path but ``open_paths`` needs it.
    """

    def __init__(
        self, app: Any, *, limits: Limits, metrics: Metrics, access: Access, open_paths: tuple[str, ...]
    ) -> None:
        self.app = app
        self.limits = limits
        self.metrics = metrics
        self.access = access
        self.open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = time.monotonic()
        status, complete, responded = 500, False, False
        is_head = scope["method"] == "HEAD"
        scope = {
            **scope,
            "method": "GET" if is_head else scope["method"],
            "root_path": self.access.root_path or scope.get("root_path", ""),
        }

        async def received() -> dict[str, Any]:
            nonlocal complete
            message = await receive()
            complete = message["type"] != "http.request" or not message.get("more_body")
            return message

        async def send_with(message: dict[str, Any]) -> None:
            nonlocal status, responded
            if message["type"] == "http.response.start":
                status, responded = message["status"], True
                have = {name.lower() for name, _ in message["headers"]}
                more = [(n.encode(), v.encode()) for n, v in SECURITY.items() if n.encode() not in have]
                message = {**message, "headers": [*message["headers"], *more]}
            elif is_head and "body" in message:
                message = {**message, "body": b""}
            await send(message)

        self.metrics.in_progress += 1
        try:
            try:
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
                try:
                    forwarded = self._forwarded(scope, headers)
                    self._check(scope, headers, forwarded)
                    body = await self._body(headers, received)
                except Refusal:
                    if not complete and headers.keys() & {"content-length", "transfer-encoding"}:
                        await _drain(receive)
                    raise
                if body is None:
                    return
                if scope["method"] == "GET" and route_path(scope) == "":
                    # The page's addresses start from its own, which must end with a slash.
                    await redirect(send_with, scope, "/")
                    return
                if headers.get("x-forwarded-proto") in ("http", "https") and self.access.trusts(scope):
                    scope["scheme"] = headers["x-forwarded-proto"]
                await self.app(scope, _replayed(body, receive), send_with)
            except Refusal as refusal:
                await answer(send_with, refusal)
            except Exception:
                if not responded:
                    await answer(send_with, Refusal(500, "internal server error; see the log of the server"))
                raise
        finally:
            self.metrics.in_progress -= 1
            self.metrics.count(scope, status, time.monotonic() - started)

    def _forwarded(self, scope: Scope, headers: dict[str, str]) -> str | None:
        """The Host that the client sent to a trusted proxy."""
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        return forwarded if forwarded and self.access.trusts(scope) else None

    def _check(self, scope: Scope, headers: dict[str, str], forwarded: str | None) -> None:
        path = route_path(scope)
        if self.metrics.in_progress > self.limits.at_once + self.limits.waiting and path != "/health":
            raise Refusal.busy("the server is busy; try again in a second")
        host, token = headers.get("host", ""), self.access.token
        # A page that reaches 127.0.0.1 under a name of its own (DNS rebinding) can send any X-Forwarded-Host, so that
        # this never replaces Host.
        hosts = {"Host": host} if forwarded is None else {"Host": host, "X-Forwarded-Host": forwarded}
        for header, name in hosts.items():
            if token is None and not self.access.is_own_name(name):
                raise Refusal(403, _unknown_host(header, name))
        origin = headers.get("origin")
        is_own = origin is None or self._is_own(origin, list(hosts.values()))
        if not is_own and origin not in self.access.cors_origin:
            raise Refusal(403, _unknown_origin(str(origin)))
        # A page of another origin has no part in the cookie of this one.
        if token is not None and path not in self.open_paths and not _has_token(headers, token, cookie=is_own):
            raise Refusal(401, "send the token as Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    def _is_own(self, origin: str, hosts: list[str]) -> bool:
        """Whether the page of an origin is this server's."""
        if not _is_valid(origin):
            return False
        name = urlsplit(origin).netloc.casefold()
        return name in [host.casefold() for host in hosts] or name in self.access.allow_host

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


def _has_token(headers: dict[str, str], token: str, *, cookie: bool) -> bool:
    kind, _, sent = headers.get("authorization", "").partition(" ")
    tokens = [sent] if kind.casefold() == "bearer" else _cookies(headers.get("cookie", "")) if cookie else []
    return any(hmac.compare_digest(one.strip().encode(), token.encode()) for one in tokens)


def _cookies(header: str) -> list[str]:
    """The tokens in a Cookie header: there is one for each server on the same host."""
    tokens = []
    for pair in header.split(";"):
        try:
            cookie = SimpleCookie(pair).get(COOKIE)
        except CookieError:
            continue
        tokens += [cookie.value] if cookie else []
    return tokens


def _unknown_host(header: str, host: str) -> str:
    message = f"{header} {host!r}: this server only answers requests to 127.0.0.1 or localhost"
    name = urlsplit(f"//{host}").hostname if _is_valid(host) else None
    if name is None:
        return message
    return f'{message}; if its proxy is called that, start it with "divcon serve ... --allow-host {name}"'


def _unknown_origin(origin: str) -> str:
    message = f"Origin {origin!r}: requests from other sites are refused"
    try:
        own = _origin(origin)
    except ConfigError:
        return message
    return (
        f'{message}; if this is the address of the server behind a proxy, start it with "divcon serve ... --allow-host '
        f'{urlsplit(own).netloc}", and if it is another site that may use the API, with "--cors-origin {own}"'
    )


def location(scope: Scope, path: str) -> str:
    """The address of a path of the server with the request's query, for a redirect: without the host, which a proxy may
    have changed."""
    query = scope.get("query_string", b"").decode("latin-1")
    return quote(scope.get("root_path", "") + path) + (f"?{query}" if query else "")


async def redirect(send: Send, scope: Scope, path: str) -> None:
    """Send the client to another path of the server."""
    headers = [(b"location", location(scope, path).encode("latin-1")), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 307, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


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
