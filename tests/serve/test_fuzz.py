"""Requests of every shape: each is answered with what was asked for, or with what is wrong, and never with a 500."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from divcon.search import Index
from divcon.serve import create_app

pytestmark = pytest.mark.heavy

EXAMPLES = int(os.environ.get("DIVCON_FUZZ_EXAMPLES", "0"))
FUZZ = settings(
    max_examples=EXAMPLES or 60,
    deadline=None,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUMBERS = st.integers(-(10**30), 10**30) | st.floats() | st.sampled_from([0, 1, 3, -1, 2**31, 2**63, 1e400])
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "0", "NaN", "1e999", "../../etc/passwd", "label = 'x'", "' OR 1=1 --"]
)
PLAIN = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(PLAIN, lambda v: st.lists(v, max_size=5) | st.dictionaries(TEXTS, v, max_size=3), max_leaves=12)
NAMES = ["id", "path", "vector", "k", "where", "learner", "each_k", "image", "against"]
FIELDS = st.dictionaries(st.sampled_from(NAMES) | TEXTS, VALUES, max_size=5)
PATHS = [
    "/items",
    "/items/{}",
    "/items/{}/image",
    "/about",
    "/compare",
    "/compare/{}/items/3/image",
    "/map",
    "/map/column",
    "/failures",
    "/failures/queries",
    "/divisions",
    "/labels",
    "/labels/names",
    "/labels.csv",
    "/{}",
    "/docs",
    "/metrics",
]


@pytest.fixture(scope="module")
def client(index: Index, other: Index, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """With all options, behind a trusted proxy."""
    labels = tmp_path_factory.mktemp("fuzz") / "labels.csv"
    options: Any = {"trust_proxy": ["127.0.0.1"], "cors_origin": ["https://shop.example"]}
    app = create_app(index, compare=other, labels=labels, **options)
    near: Any = {"client": ("127.0.0.1", 1), "raise_server_exceptions": False}
    with TestClient(app, base_url="http://127.0.0.1", **near) as client:
        yield client


def check(client: TestClient, answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.headers["content-type"].startswith("application/json"):
        assert answer.json()["error"]
    assert client.get("/health").status_code == 200


@FUZZ
@given(FIELDS)
def test_searches_as_json(client: TestClient, fields: dict[str, Any]) -> None:
    import json

    content = json.dumps(fields).encode("utf-8", "surrogatepass")
    for path in ("/search", "/compare"):
        check(client, client.post(path, content=content, headers={"content-type": "application/json"}))


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(["ids", "label", "hidden", "change"]) | TEXTS,
        VALUES | st.lists(st.integers(0, 40), max_size=4),
        max_size=4,
    )
)
def test_changes_of_labels(client: TestClient, fields: dict[str, Any]) -> None:
    import json

    content = json.dumps(fields).encode("utf-8", "surrogatepass")
    for path in ("/labels", "/labels/undo"):
        check(client, client.post(path, content=content, headers={"content-type": "application/json"}))
    check(client, client.get("/labels.csv"))


@FUZZ
@given(
    st.binary(max_size=300), st.sampled_from(["application/json", "multipart/form-data; boundary=x", "text/plain", ""])
)
def test_bodies_of_any_bytes(client: TestClient, content: bytes, kind: str) -> None:
    check(client, client.post("/search", content=content, headers={"content-type": kind}))
    check(client, client.post("/compare", content=content, headers={"content-type": kind}))
    check(client, client.post("/login", content=content, headers={"content-type": kind}))


@FUZZ
@given(
    st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=8),
    st.integers(0, 1 << 14),
    st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=3),
)
def test_uploads_that_are_broken(
    client: TestClient, photos: Path, edits: list[tuple[int, int]], end: int, fields: dict[str, str]
) -> None:
    content = bytearray((photos / "1-1.png").read_bytes())
    for place, value in edits:
        content[place % len(content)] = value
    content = content[: end or None]
    fields.pop("image", None)
    for path in ("/search", "/compare"):
        check(client, client.post(path, files={"image": ("a.png", bytes(content))}, data=fields))


@FUZZ
@given(
    st.sampled_from(PATHS),
    TEXTS | st.integers().map(str),
    st.dictionaries(
        st.sampled_from(
            ["offset", "limit", "where", "learner", "size", "k", "epoch", "against", "sample", "ids", "text", "own"]
        ),
        TEXTS | st.integers().map(str),
        max_size=3,
    ),
)
def test_pages_of_any_name_and_query(client: TestClient, path: str, name: str, query: dict[str, str]) -> None:
    from urllib.parse import quote

    address = path.format(quote(name, safe="", errors="replace"))
    check(client, client.get(address, params=query))
    assert client.head(address, params=query).content == b""


@FUZZ
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "host",
                "origin",
                "authorization",
                "cookie",
                "range",
                "accept",
                "if-none-match",
                "x-forwarded-host",
                "x-forwarded-proto",
            ]
        ),
        st.binary(max_size=40),
        max_size=3,
    )
)
def test_headers_of_any_bytes(client: TestClient, headers: dict[str, bytes]) -> None:
    for answer in (client.get("/about", headers=dict(headers)), client.options("/search", headers=dict(headers))):
        assert answer.status_code < 500
    assert client.get("/page.css", headers=dict(headers)).status_code < 500
    assert client.get("/health").status_code == 200
