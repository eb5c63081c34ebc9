"""The API: what it answers, and what it says to what it cannot."""

from __future__ import annotations

import io
import math
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.evaluation.threshold import write_threshold
from divcon.search import Index, Store
from divcon.serve import Limits, create_app
from divcon.serve.items import _in_rotation
from divcon.serve.search_request import agreement_of

LOCAL = "http://127.0.0.1"


def client_of(index: Index, **options: Any) -> TestClient:
    return TestClient(create_app(index, **options), base_url=LOCAL, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[TestClient]:
    with client_of(index) as client:
        yield client


def upload(client: TestClient, content: bytes, name: str = "query.png", **fields: Any) -> Any:
    return client.post("/search", files={"image": (name, content)}, data=fields)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that says it has so many pixels."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    parts = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.heavy
def test_an_upload_finds_what_the_index_finds(client: TestClient, index: Index, photos: Path) -> None:
    content = (photos / "3-1.png").read_bytes()
    answer = upload(client, content, k=7).json()
    expected = index.search(content, 7)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in expected], atol=1e-6)
    first = answer["hits"][0]
    assert first["label"] == "mug 3" and first["path"] == str(photos / "3-1.png")
    assert first["metadata"]["colour"] == "blue"
    assert answer["learners"] == []


def test_id_path_vector_and_upload_are_the_same_query(client: TestClient, index: Index, photos: Path) -> None:
    of_upload = upload(client, (photos / "2-2.png").read_bytes(), k=5).json()
    item = index.item(photos / "2-2.png").id
    asked = [{"id": item}, {"path": str(photos / "2-2.png")}, {"vector": of_upload["embedding"]}]
    for query in asked:
        answer = client.post("/search", json={**query, "k": 5})
        assert answer.status_code == 200, answer.text
        assert [hit["id"] for hit in answer.json()["hits"]] == [hit["id"] for hit in of_upload["hits"]]


@pytest.mark.heavy
def test_over_postgresql_it_answers_as_over_a_folder(
    client: TestClient, run: Path, photos: Path, postgres: str, tmp_path: Path
) -> None:
    uri = f"{postgres}{'&' if '?' in postgres else '?'}table=served_{os.getpid()}"
    content = (photos / "3-1.png").read_bytes()

    def answers(client: TestClient) -> list[Any]:
        responses = [
            upload(client, content, k=6, learner="each", where='{"colour": "red"}').json(),
            client.post("/search", json={"path": str(photos / "2-2.png"), "k": 4}).json(),
            client.get("/items?limit=50").json(),
        ]
        paths = [[hit["path"] for hit in answer["hits"]] for answer in responses[:2]]
        each = [[hit["path"] for hit in learner["hits"]] for learner in responses[0]["learners"]]
        return [paths, each, sorted(item["path"] for item in responses[2]["items"])]

    with Index.create(run, uri) as made:
        made.update(photos / "items.csv")
        labels = tmp_path / "labels.csv"
        with client_of(made) as other:
            assert "--labels FILE" in other.get("/labels").json()["problem"]  # there is no folder to keep them in
        with client_of(made, labels=labels) as other:
            assert other.post("/labels", json={"ids": [3], "label": "new"}).json()["counts"]["given"]["images"] == 1
            assert labels.is_file()
            mixed = [item["id"] for item in other.get("/items?sample=0&limit=50").json()["items"]]
            assert sorted(mixed) == made.store.ids().tolist() != mixed
            assert answers(other) == answers(client)
            picture = other.get(f"/items/{made.item(photos / '2-2.png').id}/image")
            assert picture.status_code == 200


def test_each_learner_has_neighbours_of_its_own(client: TestClient, index: Index) -> None:
    answer = client.post("/search", json={"id": 4, "learner": "each", "each_k": 3, "where": {"split": "train"}}).json()
    assert [row["learner"] for row in answer["learners"]] == [0, 1]
    for row in answer["learners"]:
        expected = index.search(4, 3, learner=row["learner"], where={"split": "train"})
        assert [hit["id"] for hit in row["hits"]] == [hit.id for hit in expected]
        one = client.post("/search", json={"id": 4, "learner": row["learner"], "k": 3, "where": ["split=train"]})
        assert [hit["id"] for hit in one.json()["hits"]] == [hit.id for hit in expected]


def test_filters_are_columns_and_values(client: TestClient, photos: Path) -> None:
    content = (photos / "0-0.png").read_bytes()
    for where in (["colour=red", "price<3"], '{"colour": "red", "label": ["mug 1", "mug 2"]}'):
        hits = upload(client, content, k=40, where=where).json()["hits"]
        assert hits and all(hit["metadata"]["colour"] == "red" and hit["metadata"]["price"] < 3 for hit in hits)
    query = {"id": 1, "k": 40, "where": {"price": {">=": 2.2}, "colour": {"!=": "red"}}}
    hits = client.post("/search", json=query).json()["hits"]
    assert hits and all(hit["metadata"]["colour"] == "blue" and hit["metadata"]["price"] >= 2.2 for hit in hits)
    assert client.get("/items", params={"where": '{"price": {">=": 2.2}}'}).json()["total"] == 28
    listed = client.get("/items", params={"where": ["label=<b>mug</b> & 0"], "limit": 2}).json()
    assert listed["total"] == 5 and [item["id"] for item in listed["items"]] == [0, 1]


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"colour": 3}, "3 cannot be a value of column 'colour', which holds text values"),
        ({"price": "3"}, "'3' cannot be a value of column 'price', which holds float values"),
        (["colour<3"], "column 'colour' holds text values"),
        ({"label": {"<": 3.5}}, "which holds text values"),
    ],
)
def test_a_comparison_of_unlike_types_is_refused(client: TestClient, where: Any, said: str) -> None:
    answer = client.post("/search", json={"id": 1, "where": where})
    assert answer.status_code == 400 and said in answer.json()["error"]


def test_hits_below_the_smallest_score_are_left_out(client: TestClient, index: Index, photos: Path) -> None:
    hits = index.search(4, 40)
    least = (hits[6].score + hits[7].score) / 2
    query = {"id": 4, "k": 40, "min_score": least, "learner": "each", "each_k": 40}
    answer = client.post("/search", json=query).json()
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in hits[:7]]
    for row in answer["learners"]:
        expected = [hit.id for hit in index.search(4, 40, learner=row["learner"]) if hit.score >= least]
        assert [hit["id"] for hit in row["hits"]] == expected
    content = (photos / "3-1.png").read_bytes()
    assert [hit["path"] for hit in upload(client, content, min_score=0.9999).json()["hits"]] == [
        str(photos / "3-1.png")
    ]
    for wrong in (1.5, -2, "high", "nan"):
        assert client.post("/search", json={"id": 4, "min_score": wrong}).status_code == 422
    assert "min_score" in client.get("/openapi.json").json()["components"]["schemas"]["SearchRequest"]["properties"]


def test_values_that_json_has_no_type_for(index: Index, photos: Path, tmp_path: Path) -> None:
    columns = {
        "day": [date(2024, 5, 1 + i % 28) for i in range(40)],
        "price": [Decimal("1.10") if i else None for i in range(40)],
        "tags": [["a", {"b": i}] for i in range(40)],
        "share": [math.inf if i == 3 else 0.5 for i in range(40)],
    }
    own = Index.build(index.model, photos, tmp_path / "store", columns=columns)
    with client_of(own) as client:
        text = client.get("/items/3").text
        assert '"metadata":{"day":"2024-05-04","price":"1.10","tags":["a",{"b":3}],"share":"inf"}' in text
        assert client.get("/items/0").json()["metadata"]["price"] is None
        for where in ({"day": {"<": "2024-05-03"}, "price": {">": 1}}, {"day": "2024-05-02", "price": "1.1"}):
            answer = client.post("/search", json={"id": 3, "where": where, "k": 40})
            assert {hit["id"] for hit in answer.json()["hits"]} <= {1, 28, 29}
            assert 1 in {hit["id"] for hit in answer.json()["hits"]}


def test_items_come_a_page_at_a_time(client: TestClient, index: Index) -> None:
    pages = [client.get("/items", params={"offset": at, "limit": 15}).json() for at in (0, 15, 30, 45)]
    assert [page["total"] for page in pages] == [40] * 4
    assert [item["id"] for page in pages for item in page["items"]] == index.store.ids().tolist()
    assert client.get("/items/7").json()["path"] == index.item(7).path


def test_a_sample_is_mixed_stable_and_whole(client: TestClient, index: Index) -> None:
    def ids(**query: Any) -> list[int]:
        answer = client.get("/items", params={"limit": 200, **query}).json()
        assert answer["total"] == len(answer["items"])
        return [item["id"] for item in answer["items"]]

    first = ids(sample=0)
    assert sorted(first) == index.store.ids().tolist() and first != sorted(first)
    assert ids(sample=0) == first != ids(sample=1)
    pages = [client.get("/items", params={"sample": 0, "limit": 7, "offset": at}).json()["items"] for at in (0, 7, 14)]
    assert [item["id"] for page in pages for item in page] == first[:21]
    labels = [index.item(i).label for i in first]
    assert [len(set(labels[at : at + 8])) for at in range(0, 40, 8)] == [8] * 5
    red = ids(sample=0, where="colour=red")
    assert (
        len(set(red)) == 24 and [len({index.item(i).label for i in red[at : at + 8]}) for at in (0, 8, 16)] == [8] * 3
    )
    assert all(index.item(i).metadata["colour"] == "red" for i in red)
    assert client.get("/items", params={"sample": -1}).status_code == 422


def test_a_sample_shows_rare_labels_early_and_moves_little() -> None:
    ids = np.arange(10_000)
    codes = np.where(ids % 1000 == 7, ids // 1000, -1)  # ten items with a label each; the others have none
    order = _in_rotation(ids, codes, 0)
    assert sorted(order.tolist()) == ids.tolist()
    assert sorted(codes[order[:11]].tolist()) == [-1, *range(10)]
    assert 4000 < order[11:1011].mean() < 6000  # spread over the index
    fewer = _in_rotation(ids[:-1], codes[:-1], 0)
    assert fewer.tolist() == [i for i in order if i != ids[-1]]
    assert _in_rotation(ids[:0], codes[:0], 3).tolist() == []


def test_agreement_is_the_mean_correlation_of_the_learners(client: TestClient, index: Index) -> None:
    query = {"id": 4, "k": 12, "learner": "each", "each_k": 8}
    answer = client.post("/search", json=query).json()
    shown = {hit["id"] for hits in [answer, *answer["learners"]] for hit in hits["hits"]} - {4}
    each = [{hit.id: hit.score for hit in index.search(4, 40, learner=k)} for k in range(2)]
    expected = np.corrcoef([[scores[i] for i in shown] for scores in each])[0, 1]
    assert answer["agreement"] == pytest.approx(expected, abs=1e-3)
    assert client.post("/search", json={**query, "k": 1, "each_k": 1}).json()["agreement"] is None
    assert client.post("/search", json={"id": 4}).json()["agreement"] is None


def test_learners_that_are_alike_agree_and_others_do_not() -> None:
    one = np.random.default_rng(0).normal(size=(1, 30))
    assert agreement_of(np.repeat(one, 3, 0) * [[1.0], [2.0], [0.5]]) == pytest.approx(1)
    assert agreement_of(np.concatenate([one, -one])) == pytest.approx(-1)
    a, b, c = np.random.default_rng(1).normal(size=(3, 30))
    expected = (np.corrcoef(a, b)[0, 1] + np.corrcoef(a, c)[0, 1] + np.corrcoef(b, c)[0, 1]) / 3
    assert agreement_of(np.stack([a, b, c])) == pytest.approx(expected, abs=1e-4)
    for unknown in (one, one[:, :2].repeat(2, 0), np.stack([a, np.ones(30)]), np.stack([a, np.full(30, np.nan)])):
        assert agreement_of(unknown) is None


def test_the_threshold_of_the_run_is_named(index: Index, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("index"))
    write_threshold(copy / "model", {"min_score": 0.625})
    with client_of(index, run=copy) as client:
        assert client.get("/about").json()["threshold"] == 0.625
    (copy / "model" / "threshold.json").write_text("damaged")
    with client_of(index, run=copy) as client:
        assert client.get("/about").json()["threshold"] is None


def test_pictures_are_those_of_items(client: TestClient, photos: Path) -> None:
    for size, side in ((10, 48), (10_000, 48)):
        answer = client.get("/items/3/image", params={"size": size})
        assert answer.headers["content-type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as image:
            assert max(image.size) == side
    again = client.get("/items/3/image", headers={"If-None-Match": answer.headers["etag"]}, params={"size": 10_000})
    assert again.status_code == 304


@pytest.mark.parametrize("path", ["/items/99", "/items/-1", f"/items/{2**70}", "/items/99/image", "/nothing"])
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404 and answer.json()["error"]


@pytest.mark.parametrize("path", ["/items/..%2f..%2fetc%2fpasswd/image", "/..%2findex.html", "/page/../app.py"])
def test_a_path_out_of_the_index_gives_nothing(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in (404, 422) and answer.json()["error"]


def test_the_schema_and_what_it_is_about(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert {"/search", "/items", "/items/{item}", "/items/{item}/image", "/about", "/health"} <= schema["paths"].keys()
    body = schema["paths"]["/search"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    assert {"id", "path", "vector", "k", "where", "learner"} <= schema["components"]["schemas"]["SearchRequest"][
        "properties"
    ].keys()
    about = client.get("/about").json()
    assert (about["items"], about["dims"], about["learners"]) == (40, 16, 2)
    texts = [{"name": name, "type": "text"} for name in ("label", "path", "split", "colour")]
    assert about["columns"] == [*texts, {"name": "price", "type": "float"}]
    assert client.get("/health").json() == {"status": "ok"}


def test_metrics_count_by_route_and_status(index: Index) -> None:
    with client_of(index) as client:
        for path in ("/items/1", "/items/2", "/items/999", "/nothing", "/nothing/else"):
            client.get(path)
        text = client.get("/metrics").text
    assert 'divcon_requests_total{route="/items/{item}",status="200"} 2' in text
    assert 'divcon_requests_total{route="/items/{item}",status="404"} 1' in text
    assert 'divcon_requests_total{route="other",status="404"} 2' in text
    assert 'divcon_request_seconds_bucket{le="+Inf"} 5' in text and "divcon_requests_in_progress 1" in text


BAD_QUERIES = [
    ({}, 400, "one of id, path, vector or image"),
    ({"id": 1, "path": "a"}, 400, "one of id"),
    ({"id": 4000}, 404, "no item 4000"),
    ({"id": 2**70}, 404, "no item"),
    ({"id": 1, "k": 10**9}, 400, "the maximum is 200"),
    ({"id": 1, "k": 0}, 422, "k: "),
    ({"id": 1, "k": "many"}, 422, "k: "),
    ({"id": 1, "each_k": 10**9, "learner": "each"}, 400, "the maximum is 200"),
    ({"id": 1, "learner": 9}, 400, "learners 0 to 1"),
    ({"id": 1, "learner": "all"}, 422, "learner"),
    ({"id": 1, "where": ["lable='a' OR 1=1; DROP TABLE items"]}, 400, "unknown column 'lable'"),
    ({"id": 1, "where": "1=1"}, 422, "where"),
    ({"id": 1, "where": {"price": {"LIKE": "x"}}}, 422, "where"),
    ({"id": 1, "where": {"price": {"<": 1, ">": 0}}}, 422, "one comparison"),
    ({"id": 1, "where": {"label' OR '1'='1": "x"}}, 400, "unknown column"),
    ({"id": 1, "where": {"colr": "red"}}, 400, "did you mean"),
    ({"path": "../../../../etc/passwd"}, 400, "'..'"),
    ({"path": "..\\secret"}, 400, "'..'"),
    ({"path": "/etc/passwd"}, 404, "no item"),
    ({"path": "\ud800"}, 404, "no item"),
    ({"vector": [1.0] * 15}, 400, "15 numbers"),
    ({"vector": [0.0] * 16}, 400, "zeros"),
    ({"vector": [math.nan] * 16}, 400, "has nan in place 0"),
    ({"vector": [math.inf] * 16}, 400, "has inf in place 0"),
    ({"vector": "abc"}, 422, "vector"),
    ({"id": 1, "unknown": 2}, 422, "unknown"),
    ([1, 2], 422, "the body"),
]


@pytest.mark.parametrize(("query", "status", "says"), BAD_QUERIES, ids=lambda value: str(value)[:50])
def test_a_bad_query_is_refused_with_the_reason(client: TestClient, query: Any, status: int, says: str) -> None:
    import json

    answer = client.post("/search", content=json.dumps(query), headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]
    assert client.post("/search", json={"id": 1}).status_code == 200


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_what_is_not_json_is_refused(client: TestClient, body: bytes) -> None:
    answer = client.post("/search", content=body)
    assert answer.status_code in (400, 422) and answer.json()["error"]


def test_uploads_that_are_no_images(client: TestClient, photos: Path) -> None:
    whole = (photos / "1-1.png").read_bytes()
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PCX")
    pcx = file.getvalue()
    bad = {
        "photo.jpg": (b"hello, this is a text\n", 400, "text"),
        "empty.png": (b"", 400, "empty"),
        "cut.png": (whole[: len(whole) // 2], 400, "does not decode"),
        "huge.png": (png_header(40_000, 40_000), 413, "pixels"),
        "large.png": (png_header(8_000, 8_000), 413, "8,000 x 8,000 pixels"),
        "other.png": (pcx, 400, "images of this format are not accepted"),
        "page.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "SVG"),
    }
    for name, (content, status, says) in bad.items():
        answer = upload(client, content, name)
        assert answer.status_code == status, answer.text
        assert says in answer.json()["error"]
    assert upload(client, whole).status_code == 200


def test_forms_that_are_not_whole(client: TestClient, photos: Path) -> None:
    whole = (photos / "1-1.png").read_bytes()
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    start = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    for body in (b"", b"--x", start + whole[:200], start + whole):
        answer = client.post("/search", content=body, headers=kind)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]
    for fields in ({"k": "1e9"}, {"k": "-1"}, {"learner": "x"}, {"where": "{broken"}, {"more": "1"}):
        answer = upload(client, whole, **fields)
        assert answer.status_code in (400, 422) and answer.json()["error"], fields
    assert client.post("/search", files={"other": ("a.png", whole)}).status_code == 400
    assert client.post("/search", files={"image": ("a.png", whole), "k": ("k.txt", b"3")}).status_code == 400


def test_an_upload_beyond_the_limit(index: Index) -> None:
    with client_of(index, limits=Limits(upload_mb=0.01)) as client:
        answer = upload(client, b"\xff" * 20_000)
        assert answer.status_code == 413 and "0.01 MB" in answer.json()["error"]
        chunks = (b"\xff" * 1000 for _ in range(20))
        assert client.post("/search", content=chunks).status_code == 413
        assert client.post("/search", json={"id": 1}).status_code == 200


def test_only_this_machine_by_its_own_name(client: TestClient) -> None:
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1", ""):
        answer = client.get("/about", headers={"Host": host})
        assert answer.status_code == 403 and "Host" in answer.json()["error"], host
    for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert client.get("/about", headers={"Host": host}).status_code == 200, host
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9"):
        answer = client.post("/search", json={"id": 1}, headers={"Origin": origin})
        assert answer.status_code == 403 and "Origin" in answer.json()["error"]
    assert client.post("/search", json={"id": 1}, headers={"Origin": LOCAL}).status_code == 200


def test_a_token_is_required(index: Index) -> None:
    with client_of(index, token="a-token-of-24-characters") as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": "divcon_token=x"}, {"Authorization": "é"}):
            for path in ("/about", "/items", "/items/1/image", "/metrics", "/openapi.json"):
                answer = client.get(path, headers={k: v.encode() for k, v in headers.items()})
                assert answer.status_code == 401 and "token" in answer.json()["error"]
        assert client.get("/health").status_code == client.get("/").status_code == 200
        bearer = {"Authorization": "Bearer a-token-of-24-characters"}
        assert client.get("/about", headers=bearer).status_code == 200
        assert client.post("/login").status_code == 401
        assert "httponly" in client.post("/login", headers=bearer).headers["set-cookie"].lower()
        assert client.get("/items/1/image").status_code == 200  # by the cookie


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/page.css", "/page.js"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.status_code == 200


def test_a_busy_server_says_when_to_try_again(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    from divcon.serve import search_request

    go, begun = threading.Event(), threading.Event()

    def slow(*_: object) -> dict[str, Any]:
        begun.set()
        go.wait(20)
        return {"hits": [], "learners": [], "embedding": []}

    monkeypatch.setattr(search_request, "search", slow)
    with client_of(index, limits=Limits(at_once=1, waiting=0)) as client:
        first: list[Any] = []
        thread = threading.Thread(target=lambda: first.append(client.post("/search", json={"id": 1})))
        thread.start()
        begun.wait(20)
        answer = client.post("/search", json={"id": 1})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1" and "busy" in answer.json()["error"]
        go.set()
        thread.join()
        assert first[0].status_code == 200
    with client_of(index, limits=Limits(seconds=0.05)) as client:
        go.clear()
        answer = client.post("/search", json={"id": 1})
        go.set()
        assert answer.status_code == 503 and "0.05 seconds" in answer.json()["error"]


def test_a_store_that_is_gone_is_503(store: Path, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(store, tmp_path / "copy")
    with Index.open(copy) as index, client_of(index) as client:
        assert client.post("/search", json={"id": 1}).status_code == 200
        shutil.rmtree(copy)
        for answer in (
            client.post("/search", json={"id": 1}),
            client.get("/items"),
            client.get("/items/1"),
            client.get("/items/1/image"),
            client.get("/about"),
            client.get("/health"),
        ):
            assert answer.status_code == 503 and str(copy) in answer.json()["error"]
            assert answer.headers["retry-after"]
        shutil.copytree(store, copy)
        assert client.post("/search", json={"id": 1}).status_code == 200


def test_images_in_a_table_have_pictures(tmp_path: Path, few: Benchmark) -> None:
    """Those that the package brings lie in a parquet: what they are to the model, they are on the page."""
    demo = dc.read("demo")
    classes = [demo.query.label_names[c] for c in demo.query.classes[:6]]
    chosen = demo.query.of_classes(demo.query.classes[:6])
    config = dc.RunConfig(
        dc.ModelConfig(method="single", embedding_dim=8, backbone="test_resnet", pretrained=False, image_size=32),
        dc.TrainConfig(epochs=1, batch_size=16, workers=0),
        dc.DataConfig(validation=False),
    )
    dc.run(few, tmp_path / "run", config, source={"data": "demo", "root": None})
    with Index.create(tmp_path / "run", tmp_path / "store") as made:
        made.update(chosen)
        with client_of(made, run=tmp_path / "run") as client:
            items = client.get("/items?limit=100").json()["items"]
            assert {item["label"] for item in items} == set(classes) and len(items) == len(chosen)
            paths = [chosen.path(i) for i in range(len(chosen))]
            for item in items[:: len(items) // 4]:
                answer = client.get(item["image"], params={"size": 96})
                assert answer.status_code == 200, answer.text
                row = next(i for i, path in enumerate(paths) if item["path"].endswith(path))
                shown = Image.open(io.BytesIO(answer.content)).convert("RGB")
                drawn = chosen.open(row)
                drawn.thumbnail((96, 96), Image.Resampling.LANCZOS)
                assert shown.size == drawn.size
                assert np.abs(np.asarray(shown, np.int64) - np.asarray(drawn, np.int64)).mean() < 8
        with client_of(made) as client:  # without the run nobody knows where they lie
            answer = client.get(items[0]["image"])
            assert answer.status_code == 404 and "is not on this machine" in answer.json()["error"]


class _OwnStore(Store):
    """A store of one's own, with the five methods alone."""

    def __init__(self) -> None:
        self.about_, self.rows_ = None, {}

    def read_about(self) -> Any:
        return self.about_

    def write_about(self, about: dict[str, Any]) -> None:
        self.about_ = about

    def read(self, columns: Any) -> Any:
        yield pa.Table.from_pylist(list(self.rows_.values()))

    def write(self, rows: pa.Table) -> None:
        self.rows_ |= {row["id"]: row for row in rows.to_pylist()}

    def delete(self, ids: Any) -> None:
        for id_ in ids.tolist():
            self.rows_.pop(id_, None)


def test_a_store_of_ones_own_is_served(index: Index, photos: Path) -> None:
    own = Index.build(index.model, photos, _OwnStore(), columns={"price": range(40)})
    with client_of(own) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/about").json()["items"] == 40
        assert [item["id"] for item in client.get("/items?where=price<3").json()["items"]] == [0, 1, 2]
        hits = client.post("/search", json={"id": 5, "k": 4, "learner": "each"}).json()
        assert hits["hits"][0]["id"] == 5
        assert len(hits["learners"]) == 2
        content = (photos / "3-1.png").read_bytes()
        assert upload(client, content, "query.png").json()["hits"][0]["path"].endswith("3-1.png")
