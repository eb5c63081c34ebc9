"""What an update knows of a store: digests as numbers, keys in a hash table, rows that wait for a commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import StoreError
from divcon.search import Changes, Store, commits
from divcon.search.digests import digests_of, key_of, keys_of, numbers_of
from divcon.search.items import Items, chunks_of, details_of, items_of
from divcon.search.known import KnownItems, first_of_each
from divcon.search.stores.lance import LanceStore
from divcon.search.update import EmbeddedItems, with_embeddings

Vectors = Callable[..., LabeledSet]


def test_digests_are_numbers_whatever_their_form() -> None:
    texts = keys_of([str(i) for i in range(50)])
    assert (
        texts.to_pylist()
        == [key_of(str(i)) for i in range(50)]
        == digests_of(str(i).encode() for i in range(50)).to_pylist()
    )
    numbers = numbers_of(texts)
    assert [row.tobytes().hex() for row in numbers] == texts.to_pylist()
    assert (numbers_of(pa.chunked_array([texts[:7], texts[7:7], texts[7:]])) == numbers).all()
    mixed = pa.array(["short", None, texts[3].as_py(), texts[3].as_py().upper(), "é" * 16])
    other = numbers_of(mixed)
    assert (other[2] == numbers[3]).all()
    assert len(np.unique(other, axis=0)) == 5
    assert (numbers_of(mixed[1:4]) == other[1:4]).all()
    assert numbers_of(texts[:0]).shape == numbers_of(pa.chunked_array([], pa.string())).shape == (0, 2)


def test_details_are_those_of_json() -> None:
    labels = ["a", None, 'b"é', "a"]
    columns = pa.table({"z": [0.0, -0.0, None, 1e300], "i": [1, None, -(2**63), 1], "t": [None, True, False, True]})
    expected = [
        '["a", [["i", 1], ["t", null], ["z", 0.0]]]',
        '[null, [["i", null], ["t", true], ["z", -0.0]]]',
        '["b\\"\\u00e9", [["i", -9223372036854775808], ["t", false], ["z", null]]]',
        '["a", [["i", 1], ["t", true], ["z", 1e+300]]]',
    ]
    assert details_of(labels, columns).to_pylist() == [key_of(text) for text in expected]
    assert details_of(labels[:1], None).to_pylist() == [key_of('["a", []]')]


def rows_of(keys: list[str], first: int, content: str = "c") -> pa.Table:
    n = len(keys)
    return pa.table({"id": np.arange(first, first + n), "key": keys, "content": [content] * n, "details": ["d"] * n})


@pytest.mark.parametrize("whole", [True, False])
def test_a_hash_table_is_a_dict(
    dict_store: type[Store], model: dc.EmbeddingModel, vectors: Vectors, whole: bool
) -> None:
    index = dc.Index.build(model, vectors(3000), dict_store)
    known = KnownItems(index.store, 2 if not whole else None, whole)
    stored = keys_of([f"item{i:05}" for i in range(2990, 3000)])
    added: dict[str, int] = {}
    rng = np.random.default_rng(0)
    for _ in range(40):
        keys = keys_of([str(i) for i in rng.integers(0, 10_000, 200)])
        numbers = numbers_of(keys)
        first = first_of_each(numbers)
        keys, numbers = (keys, numbers) if first is None else (keys.take(pa.array(first)), numbers[first])
        found = known.find(keys, numbers)
        ids = known.ids[found]
        assert [added.get(key, -1) for key in keys.to_pylist()] == np.where(found < 0, -1, ids).tolist()
        new = keys.filter(pa.array(found < 0)).to_pylist()
        known.add(rows_of(new, 3000 + len(added)), numbers[found < 0])
        added |= {key: 3000 + len(added) + i for i, key in enumerate(new)}
    assert len(added) > 5000
    found = known.find(stored, numbers_of(stored))
    assert known.ids[found].tolist() == list(range(2990, 3000))
    assert known.next_id == 3000
    known.in_data[found] = True
    assert known.num_missing() == 2990
    if whole:
        assert sorted(known.missing().tolist()) == list(range(2990))
    else:
        assert len(known) == len(added) + 10  # the others were never read


def test_the_first_of_each() -> None:
    keys = numbers_of(keys_of(["a", "b", "a", "c", "b"]))
    assert first_of_each(keys).tolist() == [0, 1, 3]
    assert first_of_each(keys[:2]) is None
    same_half = keys[:2].copy()
    same_half[1, 0] = same_half[0, 0]
    assert first_of_each(same_half) is None


def test_many_chunks_are_few_changes(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    index = dc.Index.create(model, tmp_path / "store")
    assert isinstance(index.store, LanceStore)
    before = index.store._table().version
    data = vectors(500)
    assert index.update(chunks_of(items_of(data)[0], 20)) == Changes(added=500, embedded=500)
    assert index.store._table().version == before + 1
    assert index.store._table().stats()["fragment_stats"]["num_fragments"] == 1
    data.vectors[::5] += 1
    chunks = chunks_of(items_of(data)[0], 20)
    assert index.update(chunks) == Changes(changed=100, embedded=100, kept=400)
    assert index.store._table().version == before + 2


def twice(data: LabeledSet, model: dc.EmbeddingModel) -> Iterator[EmbeddedItems]:
    """All items, then all again with other labels, then all as the first time."""
    items, _ = items_of(data)
    for labels in (items.labels, ["other"] * len(items), items.labels):
        again = Items(items.images, items.names, labels)
        yield with_embeddings(again, again.contents(), model.encode(data))


def test_items_that_come_again_before_they_are_written(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    data = vectors(30)
    index = dc.Index.create(model, uri)
    assert index.load(twice(data, model)) == Changes(added=30, changed=60)
    assert [index.item(i).label for i in range(6)] == ["a", "b", "c", "d", "e", "a"]
    items, _ = items_of(data)
    both = pa.concat_tables([with_embeddings(items, items.contents(), model.encode(data)).rows] * 2)
    assert index.load([EmbeddedItems(both)]) == Changes(kept=60)
    assert len(index) == 30


def test_an_error_of_the_thread_that_writes_is_raised(
    model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = dc.Index.create(model, tmp_path / "store")

    def fails(self: LanceStore, tables: Iterable[pa.Table]) -> None:
        next(iter(tables))
        assert threading.current_thread() is not threading.main_thread()
        raise StoreError("the disk is full")

    monkeypatch.setattr(LanceStore, "append_all", fails)
    with pytest.raises(StoreError, match="the disk is full"):
        index.update(chunks_of(items_of(vectors(500))[0], 20))
    monkeypatch.undo()
    assert len(index) == 0
    assert index.update(vectors(500)).added == 500


def test_a_store_is_written_at_the_latest_after_some_time(
    uri: str, model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "COMMIT_SECONDS", 0.0)
    index = dc.Index.create(model, uri)
    counts: list[int] = []
    context = dc.Context(on_progress=lambda step: counts.append(len(index)))
    index.update(chunks_of(items_of(vectors(60))[0], 20), context=context)
    assert counts == [20, 40, 60]
