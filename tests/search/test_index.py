"""`dc.Index` in every kind of store: what it finds, and how it is brought up to date."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.folder import images_of
from divcon.errors import ConfigError, DataError, ImageError, StoreError
from divcon.evaluation.neighbours import nearest
from divcon.search import Changes, Hit, Store, open_store
from divcon.search.items import chunks_of, items_of
from divcon.search.stores.qdrant import QdrantStore

Vectors = Callable[..., LabeledSet]


def ids(hits: list[Hit]) -> list[int]:
    return [hit.id for hit in hits]


@pytest.mark.heavy
def test_exact_answers_are_those_of_evaluate(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    data = vectors(600)
    data.vectors[300:] = data.vectors[:300]  # every image twice: each k-th place may be a tie
    data.vectors[100:180] = data.vectors[100]
    index = dc.Index.build(model, data, uri)
    embeddings = model.encode(data)
    results = index.search(embeddings, k=7, embedded=True)
    expected, cosines = nearest(embeddings, embeddings, 7, metric="cosine")
    np.testing.assert_array_equal([ids(hits) for hits in results], expected)
    np.testing.assert_array_equal(np.array([[hit.score for hit in hits] for hits in results], np.float32), cosines)
    assert results[3][0] == Hit(3, 1.0, "d", "item00003", {}, None)
    # Vectors are the model's input, unless embedded=True.
    assert ids(index.search(data.vectors[5], k=3)) == ids(results[5])[:3]
    assert index.search([], k=3) == []
    assert len(index.search(0, k=10_000)) == len(index) == 600


def test_a_search_block_by_block_returns_the_same(
    uri: str, model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("divcon.search.stores.lance.BLOCK", 64)
    monkeypatch.setattr("divcon.search.stores.postgres.BLOCK", 64)
    data = vectors(500)
    data.vectors[250:] = data.vectors[:250]
    index = dc.Index.build(model, data, uri)
    in_memory = index.search(data.vectors[:30], k=9)
    index.store.set_about(dataclasses.replace(index.about, ann_from=1))  # too large for memory, and no index yet
    blocks = dc.Index.open(uri, model)
    assert blocks.search(data.vectors[:30], k=9) == in_memory
    assert blocks.search(3, k=9, where={"label": "d"}) == index.search(3, k=9, where={"label": "d"})
    assert blocks.search(3, k=9, learner=1) == index.search(3, k=9, learner=1)


@pytest.mark.parametrize("method", ["slices", "masks", "masked", "single"])
def test_a_search_by_learner_equals_one_of_its_embeddings(
    method: str, make_model: Callable[..., dc.EmbeddingModel], vectors: Vectors, tmp_path: Path
) -> None:
    options = {"head_options": {"full": "masked"}} if method == "masked" else {}
    learners = 1 if method == "single" else 3
    model = make_model(method.replace("masked", "masks"), learners=learners, **options)
    data = vectors(200)
    index = dc.Index.build(model, data, tmp_path / "store")
    for learner in range(learners):
        embeddings = model.encode(data, learner=learner)
        expected, cosines = nearest(embeddings[:40], embeddings, 6, metric="cosine")
        results = index.search(data.vectors[:40], k=6, learner=learner)
        np.testing.assert_array_equal([ids(hits) for hits in results], expected)
        np.testing.assert_allclose([[hit.score for hit in hits] for hits in results], cosines, atol=2e-6)
    with pytest.raises(ConfigError, match=f"learners 0 to {learners - 1}"):
        index.search(0, learner=learners)


def test_only_what_changed_is_embedded(
    uri: str, model: dc.EmbeddingModel, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = vectors(50)
    index = dc.Index.build(model, data, uri, columns={"price": range(50)})
    embedded = []
    features = model.features
    monkeypatch.setattr(
        model, "features", lambda images, **how: embedded.append(len(images)) or features(images, **how)
    )
    assert index.update(data, columns={"price": range(50)}) == Changes(kept=50)

    # Another content, another label, another column, two new, three gone.
    changed = data.subset(np.arange(3, 50)).joined(
        dataclasses.replace(vectors(52), rows=np.arange(52)).subset([50, 51])
    )
    changed.vectors[0] += 1
    changed.labels[1] = 0
    prices = [*range(3, 50), None, 7]
    prices[2] = 1000
    assert index.update(changed, columns={"price": prices}) == Changes(
        added=2, changed=3, embedded=3, kept=44, missing=3
    )
    assert embedded == [3]
    by_path = {hit.path: hit for hit in index.search(changed.vectors[0], k=100)}
    assert len(by_path) == 52
    assert by_path["item00003"].id == 3
    assert by_path["item00003"].score == pytest.approx(1)
    assert by_path["item00004"].label == "a"
    assert [by_path[f"item{i:05}"].metadata["price"] for i in (0, 5, 6, 50, 51)] == [0, 1000, 6, None, 7]
    expected = model.encode(changed)
    ours = index.store.embeddings(np.arange(3, 52))
    np.testing.assert_array_equal(ours[1][np.argsort(ours[0])], expected)

    assert index.update(changed, columns={"price": prices}, delete_missing=True) == Changes(kept=49, removed=3)
    assert len(index) == 49
    with pytest.raises(DataError, match="no item 0"):
        index.search(0)


def test_an_interrupted_update_resumes(uri: str, image_folder: Path, tiny_model, broken_png) -> None:
    model = tiny_model()
    images = sorted(image_folder.rglob("*.png"))
    whole = images[25].read_bytes()
    broken_png(images[25])

    def chunks():
        return chunks_of(items_of(images_of(image_folder))[0], 10)

    index = dc.Index.create(model, uri)
    with pytest.raises(ImageError, match=str(images[25])):
        index.update(chunks())
    assert len(index) == 20
    said: list[str] = []
    assert index.update(chunks(), on_bad_image="skip", context=dc.Context(on_warning=said.append)) == Changes(
        added=19, embedded=19, kept=20, skipped=1
    )
    assert str(images[25]) in said[0]
    images[25].write_bytes(whole)
    reported = []
    changes = index.update(chunks(), context=dc.Context(on_progress=lambda p: reported.append(p.done)))
    assert (changes, reported) == (Changes(added=1, embedded=1, kept=39), [10, 20, 30, 40])
    hit = index.search(images[7], k=1)[0]
    assert (hit.path, hit.label) == (str(images[7]), images[7].parent.name)


def test_processes_that_decode_are_forked_from_one_with_a_store(
    tiny_model: Callable[..., dc.EmbeddingModel], image_folder: Path, tmp_path: Path
) -> None:
    model = tiny_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        index = dc.Index.create(model, tmp_path / "store")
        assert index.update(chunks_of(items_of(images_of(image_folder))[0], 20), context=dc.Context(2)).added == 40
    image = next(image_folder.rglob("*.png"))
    np.testing.assert_allclose(index.search(model.encode(image)[0], k=1)[0].score, 1, atol=1e-6)


def test_two_writers(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    index = dc.Index.build(model, vectors(20), uri)
    other = dc.Index.open(uri, model)
    with index.store.writing():
        with pytest.raises(StoreError, match="another process is writing"):
            other.update(vectors(30))
        assert len(other.search(0)) == 10
    assert other.update(vectors(30)).added == 10
    assert ids(index.search(25, k=1)) == [25]  # what another process wrote is visible

    refused: list[str] = []

    def write(seed: int) -> None:
        try:
            dc.Index.open(uri, model).update(vectors(200, seed))
        except StoreError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("another process is writing" in text for text in refused)
    assert len(index) == 200
    assert index.store.ids().tolist() == list(range(200))


def test_many_search_while_one_writes(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    data = vectors(120)
    index = dc.Index.build(model, data.subset(np.arange(60)), uri)
    wrong: list[object] = []

    def read() -> None:
        try:
            for i in range(8):
                if ids(index.search(i, k=1)) != [i]:
                    wrong.append(i)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    dc.Index.open(uri, model).update(chunks_of(items_of(data)[0], 20))
    for thread in threads:
        thread.join()
    assert not wrong
    assert ids(index.search(100, k=1)) == [100]


def test_another_models_vectors_are_refused(
    uri: str, model: dc.EmbeddingModel, make_model: Callable[..., dc.EmbeddingModel], vectors: Vectors
) -> None:
    dc.Index.build(model, vectors(5), uri)
    other = make_model("masks", seed=1)
    for act in (lambda: dc.Index.build(other, vectors(5), uri), lambda: dc.Index.open(uri, other)):
        with pytest.raises(StoreError, match=r"of another model .* index again into another `store`"):
            act()
    with torch.no_grad():
        model.head.linear.bias += 1
    with pytest.raises(StoreError, match="of another model"):
        dc.Index.open(uri, model)


def test_the_model_is_found_where_the_store_says(
    uri: str, model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path
) -> None:
    model.save(tmp_path / "model")
    data = vectors(20)
    dc.Index.build(tmp_path / "model", data, uri)
    index = dc.Index.open(uri)
    assert ids(index.search(data.vectors[4], k=1)) == [4]
    shutil.move(tmp_path / "model", tmp_path / "moved")
    assert ids(dc.Index.open(uri, tmp_path / "moved").search(data.vectors[4], k=1)) == [4]
    with pytest.raises(dc.DivconError, match="no model there"):
        dc.Index.open(uri).search(data.vectors[4])
    assert ids(dc.Index.open(uri).search(4, k=1)) == [4]
    named = dc.Index.build(model, data, uri)
    assert named.about.model == str(tmp_path / "model")


def test_a_store_that_is_deleted_or_built_again(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    with pytest.raises(StoreError, match="there is no index"):
        dc.Index.open(uri)
    index = dc.Index.build(model, vectors(20), uri)
    assert ids(index.search(3, k=1)) == [3]
    _remove(uri)
    for act in (lambda: index.search(3), lambda: index.update(vectors(20)), lambda: len(index), lambda: index.item(3)):
        with pytest.raises(StoreError, match=r"no index|no such folder|cannot be used"):
            act()
    _remove(uri)  # `update` may have made the folder for its lock
    dc.Index.build(model, vectors(20, seed=5), uri)
    np.testing.assert_allclose(index.search(vectors(20, seed=5).vectors[3], k=1)[0].score, 1, atol=1e-6)


def _remove(uri: str) -> None:
    if isinstance(uri, Store):
        uri.saved = None
        uri.items.clear()
        return
    if "://" not in uri:
        shutil.rmtree(uri, ignore_errors=True)
        return
    store = open_store(uri)
    if isinstance(store, QdrantStore):
        for name in ("divcon", "divcon_about"):
            store._run(lambda client, name=name: client.delete_collection(name))
        return
    with store._cursor() as cursor:
        cursor.execute(store._sql("DROP TABLE IF EXISTS {rows}, {about}"))


@pytest.mark.heavy
def test_the_approximate_index(uri: str, model: dc.EmbeddingModel, vectors: Vectors) -> None:
    data = vectors(700)
    index = dc.Index.build(model, data, uri)
    assert index.about.effort is None
    assert index.check() is None
    exact = index.search(data.vectors[:20], k=5)
    dc.Index.build(model, data, uri, ann_from=400)
    index = dc.Index.open(uri, model)
    about = index.about
    if isinstance(uri, Store) or uri.startswith("qdrant:///"):  # it has none, and compares every row
        assert about.effort is None
        assert index.search(data.vectors[:20], k=5) == exact
        return
    assert about.effort in index.store.efforts()
    assert about.recall >= 0.99
    result = index.check(queries=20)
    assert result.queries == 20
    assert result.recall >= 0.98
    shared = [len(set(ids(a)) & set(ids(b))) for a, b in zip(index.search(data.vectors[:20], k=5), exact, strict=True)]
    assert sum(shared) >= 0.98 * 100
    assert index.search(data.vectors[:20], k=5, exact=True) == exact
    assert all(hit.label == "b" for hit in index.search(1, k=5, where={"label": "b"}))
    assert len(index.search(1, k=5_000)) == 700
    # What is written later is found too.
    assert index.update(vectors(720)).added == 20
    assert ids(index.search(710, k=1)) == [710]


def test_other_files_are_left_alone(model: dc.EmbeddingModel, vectors: Vectors, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").touch()
    with pytest.raises(StoreError, match="other files"):
        dc.Index.build(model, vectors(3), tmp_path / "photos")
    assert [entry.name for entry in (tmp_path / "photos").iterdir()] == ["a.png"]


def test_an_unreachable_server_is_reported_without_the_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError) as caught:
        dc.Index.open("postgresql://me:secret@127.0.0.1:1/shop")
    assert "secret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_columns_that_come_later_and_types_that_do_not_fit(
    uri: str, model: dc.EmbeddingModel, vectors: Vectors
) -> None:
    data = vectors(4)
    index = dc.Index.build(model, data, uri, columns={"price (EUR)": [1, 2, 3, 4]})
    changes = index.update(data, columns={"price (EUR)": [1, 2, 3, 5], "price.eur": [0.5, None, float("nan"), 2]})
    assert (changes.changed, changes.embedded) == (4, 0)
    assert index.item(3).metadata == {"price (EUR)": 5, "price.eur": 2.0}
    assert index.item(2).metadata["price.eur"] is None
    assert ids(index.search(0, where={"price (EUR)": (">", 1), "price.eur": (">=", 1)})) == [3]
    with pytest.raises(DataError, match="'price \\(EUR\\)' is int in the index, and text in this data: either read"):
        index.update(data, columns={"price (EUR)": ["cheap"] * 4})
    with pytest.raises(DataError, match="`columns` has 2 rows for 4 images"):
        index.update(data, columns={"price": [1, 2]})
    assert index.update(data, columns=pa.table({"price.eur": pa.array([1, 2, 3, 4])})).changed == 4
    assert index.item(3).metadata == {"price (EUR)": None, "price.eur": 4.0}
