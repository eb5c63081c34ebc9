"""Qdrant: addresses, and one process at a time where it is embedded; `uri` has the tests of all stores."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, StoreError
from divcon.runtime.lease import Lease
from divcon.search import open_store
from divcon.search.stores.qdrant import QdrantStore, _LockPoint

Vectors = Callable[..., LabeledSet]


def test_addresses(qdrant: str) -> None:
    assert open_store("qdrant://host/shop").uri == "qdrant://host:6333/shop"
    assert open_store("qdrants://host:443/shop").uri == "qdrants://host:443/shop"
    assert open_store(f"{qdrant}?collection=shop").uri == f"{qdrant}?collection=shop"
    for address in ("qdrant://host", "qdrant://host/a/b", "qdrant:///", "qdrant://host/a?colour=red"):
        with pytest.raises(ConfigError, match=r"write qdrant://HOST:PORT/COLLECTION") as caught:
            open_store(address)
        assert caught.value.field == "store"
    with pytest.raises(StoreError, match=r"^qdrant://127\.0\.0\.1:9/shop: the server cannot be reached") as caught:
        dc.Index.open("qdrant://127.0.0.1:9/shop")
    assert "\n" not in str(caught.value)


def test_it_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ConfigError, match=r'pip install "divcon\[qdrant\]"'):
        open_store("qdrant://host/shop")


SECOND = """
import sys, divcon as dc
try:
    print(len(dc.Index.open(sys.argv[1])))
except dc.DivconError as error:
    print(error)
"""


def test_collections_in_a_folder_that_one_process_has(qdrant: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    first = dc.Index.build(model, vectors(4), qdrant)
    second = dc.Index.build(model, vectors(6), f"{qdrant}?collection=other")
    assert (len(first), len(second)) == (4, 6)
    elsewhere = [sys.executable, "-c", SECOND, qdrant]
    assert "another process has it open" in subprocess.run(elsewhere, capture_output=True, text=True).stdout
    first.store.close()
    second.store.close()
    done = subprocess.run(elsewhere, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_the_lock_of_a_server_is_a_point(qdrant: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(4), qdrant)
    stores = [index.store, open_store(qdrant)]
    leases = []
    for store in stores:
        assert isinstance(store, QdrantStore)
        leases.append(Lease(store.uri, "writing to it", StoreError, _LockPoint(store)))
    with leases[0].held():
        with pytest.raises(StoreError, match="another process is writing"), leases[1].held():
            pass
        leases[0].check()
        _LockPoint(stores[1]).put({"token": "another"}, new=False)  # type: ignore[arg-type]
        with pytest.raises(StoreError, match="has taken over"):
            leases[0].check()
    _LockPoint(stores[1]).remove()  # type: ignore[arg-type]
    with leases[1].held():
        pass
    assert _LockPoint(stores[0]).get() is None  # type: ignore[arg-type]


def test_the_commands(
    qdrant: str,
    model: dc.EmbeddingModel,
    vectors: Vectors,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    model.save(tmp_path / "run" / "model")
    dc.Index.build(str(tmp_path / "run"), vectors(5), qdrant).store.close()
    code, out, _ = command("index", "--info", qdrant)
    assert code == 0 and "5 items" in out
    code, out, _ = command("search", qdrant, "item00003", "-k", 1)
    assert code == 0 and "item00003" in out
