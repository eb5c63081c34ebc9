"""Stores: every kind behaves alike at the edges, addresses, stores of one's own, and indexes of earlier versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.errors import ConfigError, DataError, StoreError
from divcon.search import Store, open_store
from divcon.search.filters import conditions_of
from divcon.search.items import set_of
from divcon.search.stores.lance import LanceStore

Vectors = Callable[..., LabeledSet]


def test_nothing_is_read_written_and_deleted(uri: object, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.create(model, uri)
    store = index.store
    none = np.empty(0, np.int64)
    for count in (0, 3):
        if count:
            index.update(vectors(3), columns={"price": [1, 2, 3]})
        assert store.rows(none).num_rows == 0
        assert store.rows(none).column_names == store.rows(np.array([0])).column_names
        assert [part.shape for part in store.embeddings(none)] == [(0,), (0, 9)]
        assert [part.shape for part in store.embeddings(np.array([99]))] == [(0,), (0, 9)]
        assert store.lookup([]) == store.lookup(["nobody"]) == {}
        store.delete(none)
        store.delete(np.array([99]))
        empty = store.schema().empty_table()
        store.append(empty)
        store.write(empty)
        assert store.count() == len(store.ids()) == store.next_id() == count
        assert sum(len(ids) for ids, _ in store.scan(conditions_of("label=nobody", index.about))) == 0
        assert index.search([]) == []


def test_an_empty_index_is_searched(uri: object, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.create(model, uri)
    query = vectors(1).vectors[0]
    assert index.search(query) == []
    assert index.search(query, learner=1) == []
    assert index.search(query, where="label=a") == []
    assert index.search(query, exact=True, where={}) == []
    assert index.search([query, query]) == [[], []]


def test_written_rows_replace_those_with_their_ids(uri: object, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(3), uri)
    store = index.store
    rows = next(iter(store.read(store.schema().names))).select(store.schema().names).to_pylist()
    rows[0] |= {"label": "other"}
    rows.append(rows[1] | {"id": 7, "key": "k"})
    store.write(store.schema().empty_table().from_pylist(rows, schema=store.schema()))
    assert store.ids().tolist() == [0, 1, 2, 7]
    assert [index.item(i).label for i in (rows[0]["id"], 7)] == ["other", rows[1]["label"]]


def test_a_version_changes_with_every_change(uri: object, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(5), uri)
    versions = [index.store.version(), index.store.version()]
    index.update(vectors(6))
    versions.append(index.store.version())
    index.update(vectors(2), delete_missing=True)
    versions.append(index.store.version())
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


OWN = """
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa

from divcon.search import Store


class PickleStore(Store):
    def __init__(self, path):
        self.path = Path(path)

    def _load(self):
        return pickle.loads(self.path.read_bytes()) if self.path.exists() else (None, {})

    def read_about(self):
        return self._load()[0]

    def write_about(self, about):
        self.path.write_bytes(pickle.dumps((about, self._load()[1])))

    def read(self, columns):
        yield pa.Table.from_pylist(list(self._load()[1].values()))

    def write(self, rows):
        about, items = self._load()
        self.path.write_bytes(pickle.dumps((about, items | {row["id"]: row for row in rows.to_pylist()})))

    def delete(self, ids):
        about, items = self._load()
        self.path.write_bytes(pickle.dumps((about, {i: row for i, row in items.items() if i not in ids.tolist()})))


class Unfinished(Store):
    pass


def not_a_store():
    return 3


number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with a store."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "store_of_a_user.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "store_of_a_user", raising=False)
    return "store_of_a_user"


def test_a_store_of_ones_own_by_name(own: str, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    address = f"{own}:PickleStore?path={tmp_path / 'a b.pickle'}"
    data = vectors(20)
    index = dc.Index.build(model, data, address, columns={"price": range(20)})
    assert index.uri == address
    again = dc.Index.open(address, model)
    expected = dc.Index.build(model, data, tmp_path / "lance", columns={"price": range(20)})
    how: dict[str, Any]
    for how in ({}, {"where": "price<10"}, {"learner": 2}):
        assert again.search(data.vectors[3], k=7, **how) == expected.search(data.vectors[3], k=7, **how)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("store_of_a_user:PickleStore", "missing a required argument: 'path'"),
        ("store_of_a_user:PickleStore?path=a&colour=red", "unexpected keyword argument 'colour'"),
        ("store_of_a_user:Pickel", "unknown name in store_of_a_user 'Pickel'; did you mean .*'PickleStore'"),
        ("store_of_a_user:not_a_store", "int is no divcon.search.Store"),
        ("store_of_a_user:number", "is no class of stores"),
        ("store_of_a_user:Unfinished", "does not implement delete, read, read_about, write, write_about"),
        ("no_such_module:Store", "the module 'no_such_module' cannot be imported"),
        ("hf://bucket/store", "write a folder, s3://"),
        ("postgresql://localhost/x?table=a;drop", "a table's name"),
        (3, "pass a folder, an address or a divcon.search.Store"),
        (None, "pass a folder, an address or a divcon.search.Store"),
    ],
)
def test_an_invalid_address(own: str, address: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        open_store(address)  # type: ignore[arg-type]
    assert caught.value.field == "store"


def test_a_folder_may_look_like_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs:index").mkdir()
    for address in ("runs:index", "./other:index", Path("other:index")):
        assert isinstance(open_store(address), LanceStore)


def test_a_class_of_stores_is_called(dict_store: type[Store], model: dc.EmbeddingModel, vectors: Vectors) -> None:
    assert len(dc.Index.build(model, vectors(4), dict_store)) == 4


def test_one_object_is_one_store(dict_store: type[Store], model: dc.EmbeddingModel, vectors: Vectors) -> None:
    store = dict_store()
    index = dc.Index.build(model, vectors(4), store)
    other = dc.Index.open(store, model)
    assert len(other) == 4
    assert index.search(2, k=2) == other.search(2, k=2)  # embeddings are in memory now
    index.update(vectors(6))
    assert [hit.id for hit in other.search(5, k=1)] == [5]
    assert store.uri == "DictStore"
    with pytest.raises(StoreError, match="DictStore: there is no index here"):
        dc.Index.open(dict_store())


def test_a_store_lacks_a_method() -> None:
    class ReadOnly(Store):
        def read(self, columns):
            return []

    with pytest.raises(TypeError, match="write_about"):
        ReadOnly()


def test_a_run_stands_for_its_index(tmp_path: Path, vectors: Vectors, model: dc.EmbeddingModel) -> None:
    run = tmp_path / "run"
    model.save(run / "model")
    with pytest.raises(StoreError, match="there is no index here"):
        dc.Index.open(run)
    data = vectors(20)
    built = dc.Index.build(str(run), data)
    assert built.uri == str(run / "index")
    for address in (run, str(run), run / "index"):
        with dc.Index.open(address) as index:
            assert index.uri == str(run / "index")
            assert index.search(data.vectors[4], k=3) == built.search(data.vectors[4], k=3)
    assert dc.Index.build(run, vectors(25), run).uri == str(run / "index")


@pytest.mark.parametrize("form", ["array", "tensor", "labels", "benchmark", "set"])
def test_vectors_in_every_form(form: str, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    data = vectors(12)
    test = Benchmark("mine", data.subset(np.arange(0)), data, data)
    forms: dict[str, Any] = {
        "array": data.vectors,
        "tensor": torch.from_numpy(data.vectors),
        "labels": (data.vectors, list("abcd" * 3)),
        "benchmark": test,
        "set": data,
    }
    index = dc.Index.build(model, forms[form], tmp_path / "store")
    hit = index.search(data.vectors[5], k=1)[0]
    assert hit.id == 5
    names = {"array": ("5", None), "tensor": ("5", None), "labels": ("5", "b")}
    assert (hit.path, hit.label) == names.get(form, ("item00005", "a"))


def test_a_named_data_set_is_its_gallery(tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path) -> None:
    gallery = dc.read("demo").gallery
    assert set_of("demo").paths.equals(gallery.paths)
    (tmp_path / "demo").mkdir()
    with pytest.raises(DataError, match="no image"):
        set_of(tmp_path / "demo")


@pytest.mark.parametrize("data", [3, None, {"a": 1}, [1, 2], object()])
def test_what_is_no_data(data: object, model: dc.EmbeddingModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is of type"):
        dc.Index.build(model, data, tmp_path / "store")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "field"), [((3, "photos", "s"), "model"), ((None, "photos", "s"), "model"), (("m", "photos"), None)]
)
def test_what_is_no_model(arguments: tuple[object, ...], field: str | None, tmp_path: Path) -> None:
    with pytest.raises(dc.DivconError) as caught:
        dc.Index.build(*arguments)  # type: ignore[arg-type]
    assert getattr(caught.value, "field", None) == field


def test_a_model_object_needs_an_address(model: dc.EmbeddingModel, vectors: Vectors) -> None:
    with pytest.raises(ConfigError, match="pass `store`"):
        dc.Index.build(model, vectors(3))
    with pytest.raises(ConfigError, match="`ann_from` 0"):
        dc.Index.build(model, vectors(3), "s", ann_from=0)


def test_an_index_of_an_earlier_version_is_read_and_updated(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(Path(__file__).parent / "data" / "index_format_1", folder)
    vectors = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
    index = dc.Index.open(folder / "index", folder / "model")
    searches = {
        "vector": index.search(vectors[5], k=5),
        "learner": index.search(7, k=5, learner=1),
        "where": index.search(7, k=5, where="price<10"),
    }
    for name, rows in json.loads((folder / "hits.json").read_text()).items():
        assert [(hit.id, hit.metadata) for hit in searches[name]] == [(row[0], row[2]) for row in rows]
        np.testing.assert_allclose([hit.score for hit in searches[name]], [row[1] for row in rows], atol=1e-6)
    assert index.update(vectors, columns={"price": range(30), "Colour (EU)": ["red", "blue", None] * 10}).kept == 30
    saved = json.loads((folder / "index" / "divcon.json").read_text())
    assert saved == json.loads((Path(__file__).parent / "data/index_format_1/index/divcon.json").read_text())


OWN_HEAD = """
from torch.nn import functional as F

from divcon.models import SubspaceHead


class Plain(SubspaceHead):
    def full(self, features):
        return F.normalize(self.linear(features), dim=1)

    def subspace(self, features, learner):
        return self.full(features)

    def subspace_dim(self, learner):
        return self.embedding_dim
"""


SEARCH = """
import sys
import numpy as np
import divcon as dc

vector, trusted = np.arange(12, dtype=np.float32), ["head_of_a_user"]
index = dc.Index.open("store")
assert index.search(2, k=3)[0].id == 2  # items are found without the model
for act in (lambda: index.search(vector), lambda: dc.Index.build("model", "photos", "other")):
    try:
        act()
        sys.exit("it was loaded")
    except dc.DivconError as error:
        assert type(error).__name__ == "TrustError", error
        print(error)
assert "head_of_a_user" not in sys.modules
hits = dc.Index.open("store", trust=trusted).search(vector, k=3)
assert dc.Index.open("store", "model", trust=True).search(vector, k=3) == hits
assert len(dc.Index.create("model", "store", trust=trusted)) == 8
"""


@pytest.mark.heavy
def test_an_index_imports_the_code_of_its_model_if_it_is_trusted(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "head_of_a_user.py").write_text(OWN_HEAD)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = dc.EmbeddingModel(vector_dim=12, embedding_dim=9, num_learners=2, method="head_of_a_user:Plain")
    model.save(tmp_path / "model")
    dc.Index.build(tmp_path / "model", vectors(8), tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", SEARCH], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("names head_of_a_user:Plain") == 2


class TestTheCopyOfAFolder:
    """`rows.arrow`, from which a small store in a folder is read without LanceDB."""

    @pytest.fixture
    def folder(self, tmp_path: Path, model: dc.EmbeddingModel, vectors: Vectors) -> Path:
        index = dc.Index.build(model, vectors(9), tmp_path / "index")
        index.update(vectors(12), columns={"price": [None, *range(11)]})
        return tmp_path / "index"

    @staticmethod
    def answers(store: Store) -> list[Any]:
        """What a store says, of all that a search asks."""
        where = conditions_of(["price>3", "label!=b"], store.about())
        ids = np.array([2, 5, 99])
        keys = [row["key"] for row in store.rows(np.arange(4)).to_pylist()]
        by_id = store.rows(ids).sort_by("id")
        scanned = sorted(
            (i, vector.tolist()) for ids, vectors in store.scan(where) for i, vector in zip(ids, vectors, strict=True)
        )
        vectors = sorted((i, vector.tolist()) for i, vector in zip(*store.embeddings(ids), strict=True))
        rows = sorted((row["id"], row["label"]) for block in store.read(["id", "label"]) for row in block.to_pylist())
        counted = [store.count(), store.ids().tolist(), store.ids(where).tolist(), store.version()]
        return [*counted, store.lookup([*keys, "nobody"]), by_id.to_pylist(), by_id.schema, scanned, vectors, rows]

    def test_it_answers_as_lancedb_does(self, folder: Path) -> None:
        copy, lance = LanceStore(folder), LanceStore(folder)
        lance._table()
        assert copy._copied() is not None
        assert lance._copied() is None
        assert self.answers(copy) == self.answers(lance)
        assert copy._open_table is None

    def test_it_is_used_only_while_it_has_what_lancedb_has(
        self, folder: Path, model: dc.EmbeddingModel, vectors: Vectors
    ) -> None:
        copy = LanceStore(folder)
        writer = LanceStore(folder)
        before = copy.version()
        writer.delete(np.array([0]))  # outside of `writing`, which would renew it
        assert copy._copied() is None
        assert copy.count() == 11
        assert copy.version() != before
        copy.close()
        with writer.writing():
            pass
        assert copy._copied() == {"of": copy._state(), "rows": 11, "version": writer._table().version}
        assert 0 not in copy.ids()
        with pytest.raises(KeyError), writer.writing():  # what is interrupted renews nothing, and loses nothing
            writer.delete(np.array([1]))
            raise KeyError
        assert copy._copied() is None
        assert copy.count() == 10

    def test_a_damaged_or_missing_copy_is_no_loss(self, folder: Path) -> None:
        file = folder / "rows.arrow"
        whole = self.answers(LanceStore(folder))
        for content in (file.read_bytes()[:-9], file.read_bytes()[: len(file.read_bytes()) // 2], b"", None):
            file.unlink() if content is None else file.write_bytes(content)
            assert self.answers(LanceStore(folder)) == whole

    def test_a_large_store_has_none(self, tmp_path: Path, model: dc.EmbeddingModel, vectors: Vectors) -> None:
        index = dc.Index.build(model, vectors(300), tmp_path / "index")
        assert (tmp_path / "index" / "rows.arrow").exists()
        dc.Index.build(model, vectors(301), tmp_path / "index", ann_from=280)
        assert not (tmp_path / "index" / "rows.arrow").exists()
        assert len(index) == 301

    def test_another_index_in_its_place_is_not_taken_for_it(
        self, folder: Path, model: dc.EmbeddingModel, vectors: Vectors
    ) -> None:
        kept = (folder / "rows.arrow").read_bytes()
        shutil.rmtree(folder)
        index = dc.Index.build(model, vectors(9), folder)
        index.update(vectors(12), columns={"price": [None, *range(11)]})
        (folder / "rows.arrow").write_bytes(kept)
        assert LanceStore(folder)._copied() is None
