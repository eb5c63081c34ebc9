"""A real server in a process of its own: many clients, uploads that end early or never, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest

from divcon.serve.labels import read_marks

pytestmark = pytest.mark.heavy


class Started(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    said: str
    token: str
    labels: Path | None = None

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(*arguments: object) -> Started:
    port = free_port()
    command = [sys.executable, "-m", "divcon", "serve", *map(str, arguments), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while True:
        try:
            httpx2.get(f"{url}/health")
            break
        except httpx2.TransportError:
            assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
            time.sleep(0.1)
    assert process.stdout is not None
    said = process.stdout.readline()
    token = process.stdout.readline().removeprefix("token: ").strip() if "--host" in arguments else ""
    return Started(process, url, said, token)


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Bound beyond loopback, so that a token is asked for."""
    labels = tmp_path_factory.mktemp("labels") / "labels.csv"
    started = start(store.parent, "--device", "cpu", "--waiting", "40", "--host", "0.0.0.0", "--labels", labels)
    yield started._replace(labels=labels)
    started.process.kill()
    started.process.wait()


def test_200_clients_at_once_are_all_answered(server: Started, photos: Path) -> None:
    content = (photos / "1-1.png").read_bytes()

    async def ask(client: httpx2.AsyncClient, number: int) -> httpx2.Response:
        if number % 2:
            return await client.post(f"{server.url}/search", json={"id": number % 40})
        return await client.post(f"{server.url}/search", files={"image": ("a.png", content)})

    async def all_at_once() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(limits=limits, timeout=60, headers=server.bearer) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(200)))

    answers = asyncio.run(all_at_once())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 503} and statuses[200] >= 44, statuses
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
    assert all(answer.json()["hits"] for answer in answers if answer.status_code == 200)
    assert httpx2.post(f"{server.url}/search", json={"id": 1}, headers=server.bearer).status_code == 200


def test_100_people_label_at_once_and_lose_nothing(server: Started) -> None:
    async def label(client: httpx2.AsyncClient, number: int) -> httpx2.Response:
        while True:
            change = {"ids": [number % 40], "label": f"label {number % 40}"}
            answer = await client.post(f"{server.url}/labels", json=change)
            if answer.status_code != 503:
                return answer
            await asyncio.sleep(0.1)

    async def all_at_once() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(timeout=60, headers=server.bearer) as client:
            return await asyncio.gather(*(label(client, number) for number in range(100)))

    assert {answer.status_code for answer in asyncio.run(all_at_once())} == {200}
    assert server.labels is not None
    assert {mark.label for mark in read_marks(server.labels).values()} == {f"label {i}" for i in range(40)}
    rows = httpx2.get(f"{server.url}/labels.csv", headers=server.bearer).text.splitlines()
    assert rows[0] == "path,label" and len(rows) == 41


def test_200_megabytes_are_refused(server: Started) -> None:
    large = {"image": ("a.png", bytes(200_000_000))}
    answer = httpx2.post(f"{server.url}/search", files=large, headers=server.bearer, timeout=60)
    assert answer.status_code == 413 and "20 MB" in answer.json()["error"]
    assert httpx2.get(f"{server.url}/health").status_code == 200


def test_an_upload_that_ends_early_does_no_harm(server: Started) -> None:
    port = int(server.url.rpartition(":")[2])
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = f"POST /search HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 100000\r\n"
            head += f"Authorization: Bearer {server.token}\r\n\r\n"
            connection.sendall(head.encode() + b"{" * 1000)
    assert httpx2.post(f"{server.url}/search", json={"id": 1}, headers=server.bearer).status_code == 200


def test_clients_that_never_end_their_headers_are_disconnected(store: Path) -> None:
    """200 connections that send a letter every second; others are answered meanwhile, and these are closed."""
    started = start(store.parent, "--device", "cpu", "--seconds", "3", "--root-path", "tools/divcon")
    assert started.said.rstrip().endswith(f"{started.url}/tools/divcon/")
    port = int(started.url.rpartition(":")[2])
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(200)]
    try:
        slow[0].sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())  # and then is slow, too
        assert slow[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
        closed: set[int] = set()
        until = time.monotonic() + 60
        while len(closed) < len(slow):
            assert time.monotonic() < until, f"{len(slow) - len(closed)} are still open"
            for number, connection in enumerate(slow):
                if number not in closed:
                    try:
                        connection.sendall(b"G")
                        connection.setblocking(False)
                        if connection.recv(1) == b"":
                            closed.add(number)
                    except BlockingIOError:
                        pass
                    except OSError:
                        closed.add(number)
            answer = httpx2.post(f"{started.url}/search", json={"id": 1})
            assert answer.status_code == 200 and answer.json()["hits"]
            time.sleep(0.5)
    finally:
        for connection in slow:
            connection.close()
        started.process.kill()
        started.process.wait()


def test_a_signal_stops_it(server: Started) -> None:
    """The last test of this server."""
    assert "40 items" in server.said and len(server.token) >= 32
    assert httpx2.post(f"{server.url}/search", json={"id": 1}).status_code == 401
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert server.process.stdout is not None and server.process.stdout.read().endswith("stopped\n")


def test_what_cannot_be_served_is_reported(command, tmp_path: Path, store: Path) -> None:
    code, _, said = command("serve", tmp_path / "nothing")
    assert code == 2 and "there is no index here" in said
    code, _, said = command("serve", store, "--token", "short")
    assert code == 2 and "16" in said
    (tmp_path / "labels.csv").write_text("damaged")
    code, _, said = command("serve", store, "--labels", tmp_path / "labels.csv")
    assert code == 2 and "labels.csv, line 1" in said
    code, _, said = command("serve", store, "--host", "0.0.0.0", "--upload-mb", "0")
    assert code == 2 and "--upload-mb" in said
    code, _, said = command("serve", store, "--compare", tmp_path / "nothing")
    assert code == 2 and "there is no index here" in said
    code, _, said = command("serve", store, "--compare", store)
    assert code == 2 and "--compare: the same index twice" in said
    for option, value in (("root-path", "/items"), ("allow-host", "*"), ("trust-proxy", "me"), ("cors-origin", "*")):
        code, _, said = command("serve", store, f"--{option}", value)
        assert code == 2 and f"--{option} {value}: " in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, said = command("serve", store, "--port", taken.getsockname()[1])
        assert code == 2 and "cannot listen" in said
