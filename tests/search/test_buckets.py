"""LanceDB in object storage: a real S3 server (moto) on loopback."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fastapi.testclient import TestClient

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, StoreError
from divcon.runtime import lease, remote
from divcon.search import Changes, open_store
from divcon.search.layout import index_layout
from divcon.search.stores import places
from divcon.search.stores.lance import LanceStore

Vectors = Callable[..., LabeledSet]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a server of S3 with a bucket ``shop``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="shop")
    yield url
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """``s3("index")``: an address in the bucket that no other test has; the environment names the server."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("DIVCON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "FRESH_SECONDS", 0.0)
    fsspec.filesystem("s3").clear_instance_cache()
    return lambda name: f"s3://shop/{tmp_path.name}/{name}"


def test_an_index_in_a_bucket_is_one_in_a_folder(
    s3: Callable[[str], str], model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    data, columns = vectors(60), {"price": list(range(60))}
    indexes = [
        dc.Index.build(model, data.subset(np.arange(40)), at, columns={"price": columns["price"][:40]})
        for at in (s3("index"), tmp_path / "index")
    ]
    data.vectors[5] += 1
    for index in indexes:
        assert index.update(data, columns=columns) == Changes(added=20, changed=1, embedded=21, kept=39)
    bucket, folder = indexes
    assert bucket.uri == s3("index")
    for how in ({}, {"where": "price<10"}, {"learner": 1}, {"min_score": 0.5}):
        assert bucket.search(data.vectors[:5], k=6, **how) == folder.search(data.vectors[:5], k=6, **how)
    for index in indexes:
        assert index.update(data.subset(np.arange(30)), delete_missing=True, columns={"price": range(30)}).removed == 30
        index.change_types({"price": "float"})
    again = dc.Index.open(s3("index"), model)
    assert again.search(3, k=30) == folder.search(3, k=30)
    assert again.search(3, where="price>=7.5", k=2) == folder.search(3, where="price>=7.5", k=2)
    store = again.store
    assert isinstance(store, LanceStore) and store.folder is None
    assert store._place.names() == {"items.lance", "divcon.json"}  # the lock is gone


def test_a_map_is_kept_in_the_cache(
    s3: Callable[[str], str], model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    index = dc.Index.build(model, vectors(30), s3("index"))
    _, layout = index_layout(index, "pca")
    (file,) = (tmp_path / "cache").rglob("map-pca.npz")
    stamp = file.stat().st_mtime_ns
    np.testing.assert_array_equal(index_layout(index, "pca")[1].xy, layout.xy)
    index.update(vectors(31))
    assert len(index_layout(index, "pca")[0]) == 31
    assert file.stat().st_mtime_ns > stamp


def test_one_writer(
    s3: Callable[[str], str], model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = dc.Index.build(model, vectors(10), s3("index"))
    other = dc.Index.open(s3("index"), model)
    with index.store.writing(), pytest.raises(StoreError, match=r"another process is writing to it \(\d+ on "):
        other.update(vectors(12))
    assert other.update(vectors(12)).added == 2

    # One that is killed leaves its lock; it ends when it has not been renewed for a while.
    place = index.store._place
    owner = {"pid": 1, "host": "gone", "since": "then", "token": "its"}
    assert place._lease._note.put(owner, new=True)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.2)
    assert other.update(vectors(13)).added == 1

    # Should that one come back, it commits nothing.
    with index.store.writing():
        other.store._place._lease._note.put({**owner, "token": "another"}, new=False)
        rows = index.store.rows(np.array([0]))
        with pytest.raises(StoreError, match="has taken over the lock"):
            index.store.append(rows)
        with pytest.raises(StoreError, match="has taken over the lock"):
            index.store.delete(np.array([0]))
        with pytest.raises(StoreError, match="has taken over the lock"):
            index.store.append_all(iter([next(index.store.read(index.store.schema().names))]))
    assert place._lease._note.get()["token"] == "another"  # not removed by who has lost it
    assert len(index) == 13


def test_a_lock_is_renewed(s3: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    place = places.BucketPlace(s3("index"))
    with place.lock():
        first = place._lease._note.get()
        deadline = time.monotonic() + 20
        while place._lease._note.get()["renewed"] == first["renewed"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        place.check_lock()
    assert place.names() == set()


def test_what_is_wrong_is_one_line(
    s3: Callable[[str], str], model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreError, match=r"^s3://shop/.*: there is no index here"):
        dc.Index.open(s3("nothing"))
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/x\S*: there is no such bucket$"):
        dc.Index.build(model, vectors(3), "s3://no-such-bucket/x")
    remote.put_bytes(b"mine", s3("other/file.txt"))
    with pytest.raises(StoreError, match="there are other files"):
        dc.Index.build(model, vectors(3), s3("other"))
    for address in ("s3://", "hf://a/b", "memory://x", "http://host/x"):
        with pytest.raises(ConfigError, match="write a folder, s3://"):
            open_store(address)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 cannot be reached") as caught:
        dc.Index.open("s3://elsewhere/index")
    assert "\n" not in str(caught.value)


def test_the_commands_and_the_page(
    s3: Callable[[str], str],
    model: dc.EmbeddingModel,
    vectors: Vectors,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    from divcon.serve import create_app

    model.save(tmp_path / "run" / "model")
    data = vectors(12)
    np.savez(tmp_path / "v.npz", embeddings=data.vectors)
    index = dc.Index.build(str(tmp_path / "run"), data, s3("run/index"))
    code, out, _ = command("index", "--info", s3("run"))  # the folder of a run stands for its index
    assert code == 0 and "12 items" in out
    code, out, _ = command("search", s3("run/index"), "item00003", "-k", 2, "--json")
    assert code == 0 and json.loads(out.splitlines()[0])["path"] == "item00003"
    code, _, err = command("index", tmp_path / "run", tmp_path / "v.npz", "--store", "s3://no-such-bucket/x")
    assert code != 0 and "s3://no-such-bucket/x" in err and "there is no such bucket" in err
    with TestClient(create_app(index), base_url="http://127.0.0.1") as client:
        assert client.get("/items").status_code == 200
        assert "--labels FILE" in client.get("/labels").text
