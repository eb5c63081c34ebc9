"""Storage for tests of addresses: an S3 server (moto) in a process of its own, and a web server with faults."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_SERVER = """
import logging, sys, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
_buckets = itertools.count()


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of an S3 server that ends with the tests."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    port = process.stdout.readline().strip()
    yield f"http://127.0.0.1:{port}"
    process.stdin.close()
    process.wait(10)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, as another machine has it; and no network but this machine's."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DIVCON_CACHE_DIR", str(folder))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return folder


@dataclass(frozen=True)
class Bucket:
    """A bucket of the S3 server."""

    name: str
    system: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            self.system.pipe_file(f"{self.name}/{name}", content)

    def upload(self, folder: Path, below: str = "") -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.write({f"{below}{path.relative_to(folder).as_posix()}": path.read_bytes()})

    def names(self) -> list[str]:
        return sorted(name.removeprefix(f"{self.name}/") for name in self.system.find(self.name))

    def read(self, name: str) -> bytes:
        return self.system.cat_file(f"{self.name}/{name}")


@pytest.fixture
def s3(s3_server: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, and the variables with which it is reached."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(use_listings_cache=False)
    name = f"bucket-{os.getpid()}-{next(_buckets)}"
    system.mkdir(name)
    return Bucket(name, system)


@dataclass
class Web:
    """A web server: its files, and what is wrong with it."""

    files: dict[str, bytes]
    ranges: bool = True
    faults: list[str] = field(default_factory=list)
    """What happens to the next requests for content: ``500``, ``drop`` (in the middle), ``403``; then all is well."""
    asked: list[str] = field(default_factory=list)
    """The requests for content, as ``NAME bytes=0-9``."""
    url: str = ""


@pytest.fixture
def web(cache: Path) -> Iterator[Web]:
    state = Web({})

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, *, body: bool) -> None:
            content = state.files.get(self.path)
            fault = state.faults.pop(0) if body and state.faults else ""
            wanted = self.headers.get("Range", "")
            if body:
                state.asked.append(f"{self.path} {wanted}".strip())
            if content is None or fault in ("500", "403"):
                self.send_response(404 if content is None else int(fault))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size, part = len(content), content
            if wanted and state.ranges:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1 if last else size]
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{int(first) + len(part) - 1}/{size}")
            else:
                self.send_response(200)
            self.send_header("Accept-Ranges", "bytes" if state.ranges else "none")
            self.send_header("ETag", f'"{hash(content)}"')
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            with contextlib.suppress(OSError):
                if body and fault == "drop":
                    self.wfile.write(part[: len(part) // 2])
                    self.wfile.flush()
                    self.close_connection = True
                    self.connection.shutdown(2)
                elif body:
                    self.wfile.write(part)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
