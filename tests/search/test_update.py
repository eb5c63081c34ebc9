"""Shards: parquet parts that several processes write, loaded into a store; and listings of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import divcon as dc
from divcon.data.labeled_set import LabeledSet
from divcon.errors import DataError, ImageError, StoreError
from divcon.search import Changes
from divcon.search.about import about_of
from divcon.search.items import CHUNK, Items, chunks_of, items_of, listed_sets
from divcon.search.parts import read_shards, write_shard
from divcon.search.update import Embedder


def chunks(data: LabeledSet) -> Iterator[Items]:
    return chunks_of(items_of(data, {"price": data.rows})[0], 10)


def test_shards_equal_one_process(
    uri: str, model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet], tmp_path: Path
) -> None:
    data, about, embedder, folder = vectors(95), about_of(model), Embedder(model), tmp_path / "parts"
    written = [write_shard(embedder, about, chunks(data), folder, shard, 3) for shard in (1, 2, 3)]
    assert written == [(35, 0), (30, 0), (30, 0)]
    stored, total, parts = read_shards(folder)
    assert (stored.fingerprint, total) == (about.fingerprint, 95)
    index = dc.Index.for_about(stored, uri, model)
    assert index.load(parts) == Changes(added=95)
    alone = dc.Index.build(model, data, tmp_path / "alone", columns={"price": data.rows})
    assert index.search(data.vectors[:20], k=8) == alone.search(data.vectors[:20], k=8)
    assert index.load(read_shards(folder)[2]) == Changes(kept=95)


def test_a_shard_resumes(
    model: dc.EmbeddingModel, vectors: Callable[..., LabeledSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, about, embedder = vectors(60), about_of(model), Embedder(model)
    write_shard(embedder, about, chunks(data), tmp_path)

    # Interrupted at the fourth chunk, another one damaged, one image another one.
    def until_the_fourth() -> Iterator[Items]:
        for number, chunk in enumerate(chunks(data)):
            if number == 3:
                raise KeyboardInterrupt
            yield chunk

    (tmp_path / "part-00000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(KeyboardInterrupt):
        write_shard(embedder, about, until_the_fourth(), tmp_path)
    with pytest.raises(StoreError, match="no complete shard"):
        read_shards(tmp_path)
    data.vectors[55] += 1
    assert write_shard(embedder, about, chunks(data), tmp_path) == (10, 50)

    # Of fewer images, what is over is taken away.
    few = data.subset(np.arange(25))
    assert write_shard(embedder, about, chunks(few), tmp_path) == (5, 20)
    assert read_shards(tmp_path)[1] == 25


def test_parts_that_do_not_belong_together(
    model: dc.EmbeddingModel,
    make_model: Callable[..., dc.EmbeddingModel],
    vectors: Callable[..., LabeledSet],
    tmp_path: Path,
) -> None:
    data, about, embedder = vectors(60), about_of(model), Embedder(model)
    write_shard(embedder, about, chunks(data), tmp_path, 1, 2)
    with pytest.raises(StoreError, match="shard 2 of 2 is not complete"):
        read_shards(tmp_path)
    other = make_model("masks", seed=1)
    with pytest.raises(StoreError, match=r"part-00000000\.parquet: holds embeddings of another model"):
        write_shard(Embedder(other), about_of(other), chunks(data), tmp_path, 1, 2)
    write_shard(embedder, about, chunks(data), tmp_path, 1, 2)
    write_shard(Embedder(other), about_of(other), chunks(data), tmp_path, 2, 2)
    with pytest.raises(StoreError, match="another model"):
        read_shards(tmp_path)
    for part in tmp_path.glob("part-*"):
        part.unlink()
    write_shard(embedder, about, chunks(data), tmp_path, 1, 2)
    write_shard(embedder, about, chunks(vectors(30)), tmp_path, 2, 2)
    with pytest.raises(StoreError, match="run the shards again"):
        read_shards(tmp_path)
    (tmp_path / "part-00000002.parquet").write_bytes(b"?")
    write_shard(embedder, about, chunks(data), tmp_path, 2, 2)
    with pytest.raises(StoreError, match=r"part-00000002\.parquet: damaged"):
        read_shards(tmp_path)


def test_a_listing_is_read_lazily(tmp_path: Path, image_folder: Path) -> None:
    listing = tmp_path / "paths.txt"
    images = sorted(image_folder.rglob("*.png"))
    lines = [str(path.relative_to(image_folder)) for path in images]
    listing.write_text("\ufeff" + "\r\n".join([*lines[:20], "", *lines[20:], lines[0]]) + "\n", encoding="utf-8")
    (images_of_listing,) = listed_sets(str(listing), str(image_folder))
    chunk = items_of(images_of_listing)[0]
    assert chunk.paths() == [str(path) for path in images]  # the repeated one is left out
    assert chunk.labels == [path.parent.name for path in images]

    with listing.open("w") as file:
        for number in range(3 * CHUNK):
            file.write(f"none/{number}.png\n")
        file.write("\xff" * 10)
    reading = listed_sets(str(listing))
    assert [len(next(reading)) for _ in range(3)] == [CHUNK] * 3
    with pytest.raises(ImageError, match=r"none/0\.png: this image cannot be read \(No such file"):
        items_of(next(listed_sets(str(listing))))[0].content(0)
    listing.write_bytes(b"a.png\n\xff\xfe\n")
    with pytest.raises(DataError, match="not a listing of paths in UTF-8"):
        list(listed_sets(str(listing)))
    with pytest.raises(DataError, match=r"gone\.txt: cannot be read"):
        list(listed_sets(str(tmp_path / "gone.txt")))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_does_not_decode_is_left_out_in_the_one_pass_and_progress_comes_by_batch(
    tiny_model: Callable[..., dc.EmbeddingModel],
    image_folder: Path,
    broken_png: Callable[[Path], None],
    tmp_path: Path,
    workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = sorted(image_folder.rglob("*.png"))
    whole = tiny_model().encode(images)
    for i in (3, *range(8, 16)):  # one in a batch, and all of a batch
        broken_png(images[i])
    decoded: list[int] = []
    opened = LabeledSet.open

    def counted(self: LabeledSet, index: int, *arguments: object, **options: object) -> object:
        decoded.append(int(self.rows[index]))
        return opened(self, index, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(LabeledSet, "open", counted)
    warned: list[str] = []
    steps: list[tuple[str, int, int | None]] = []
    context = dc.Context(
        workers=workers,
        on_warning=warned.append,
        on_progress=lambda p: steps.append((p.stage, p.done, p.total)),
    )
    options = {"batch_size": 8, "on_bad_image": "skip", "context": context}
    with dc.Index.build(tiny_model(), images, tmp_path / "store", **options) as index:
        assert len(index) == 31
        assert sorted(warned) == [w for w in warned if w.startswith("left out: ")] and len(warned) == 9
        assert all(str(images[i]) in warned[place] for place, i in enumerate((3, *range(8, 16))))
        for i in (0, 4, 20, 39):
            hit = index.search(str(images[i]), 1)[0]
            assert hit.path == str(images[i])
            stored = index.store.embeddings(np.array([hit.id]))[1][0]
            np.testing.assert_allclose(stored, whole[i], atol=1e-5)
    if not workers:  # other processes count for themselves
        assert sorted(decoded) == list(range(40))
    assert {stage for stage, _, _ in steps} == {"index"} and {total for _, _, total in steps} == {40}
    done = [count for _, count, _ in steps]
    assert done == sorted(done) and done[0] == 7 and done[-1] == 40 and len(done) > 4
