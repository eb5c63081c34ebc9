"""``divcon index`` and ``divcon search``, as a user types them."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import divcon as dc
from divcon.cli.app import progress_bar, shard_of
from divcon.errors import ConfigError
from divcon.runtime.context import Progress

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path) -> Path:
    """A model's folder, which does for a run's."""
    tiny_model().save(tmp_path / "run")
    return tmp_path / "run"


def index(command: Command, *arguments: object) -> tuple[int, str, str]:
    return command("index", *arguments, "--workers", 0)


def test_from_photos_to_hits(command: Command, run: Path, image_folder: Path) -> None:
    images = sorted(image_folder.rglob("*.png"))
    code, out, err = index(command, run, image_folder)
    assert (code, out, err) == (0, f"40 added, 0 changed, 0 removed, 0 kept: 40 items in {run / 'index'}\n", "")
    images[0].write_bytes(images[7].read_bytes())
    images[1].unlink()
    code, out, err = index(command, run, image_folder)
    assert out.startswith("0 added, 1 changed, 0 removed, 38 kept: 40 items")
    assert "1 items in the store are not among these images; --delete-missing removes them" in err
    code, out, err = index(command, run, image_folder, "--delete-missing")
    assert out.startswith("0 added, 0 changed, 1 removed, 39 kept: 39 items")

    code, out, err = command("search", run, images[7], "-k", 2)
    assert code == 0, err
    assert [line.split("  ") for line in out.splitlines()] == [
        [" 1.0000", images[0].parent.name, str(images[0])],
        [" 1.0000", images[7].parent.name, str(images[7])],
    ]
    label = images[20].parent.name
    how = ("-k", 3, "--where", f"label={label}", "--learner", 1, "--json")
    code, out, err = command("search", run / "index", images[20], images[21], *how)
    hits = [json.loads(line) for line in out.splitlines()]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 1, 2, 3]
    assert {hit["label"] for hit in hits} == {label}
    assert hits[0]["path"] == hits[0]["query"] == str(images[20])
    code, out, err = command("search", run, images[20], "-k", 1, "--model", run, "--exact")
    assert code == 0, err
    code, out, err = index(command, "--check", run / "index")
    assert "39 items, searched exactly (its approximate index begins at 100,000)" in out
    code, out, err = index(command, run, image_folder, "--ann-from", 30)
    assert "approximate index: recall@10" in out
    code, out, err = command("index", "--check", run / "index")
    assert "approximate index against exact search on 39 items as queries: recall@10" in out


def test_a_table_s_columns_are_kept(command: Command, run: Path, image_folder: Path, tmp_path: Path) -> None:
    images = sorted(image_folder.rglob("*.png"))[:6]
    lines = [f"{path.relative_to(image_folder)},l{i % 2},{i},a{i}" for i, path in enumerate(images)]
    (tmp_path / "t.csv").write_text("path,label,price,colour\n" + "\n".join(lines) + "\n")
    options = ["--root", image_folder, "--store", tmp_path / "store", "--column-type", "price=int"]
    code, _, err = index(command, run, tmp_path / "t.csv", *options)
    assert code == 0, err
    output = command("search", tmp_path / "store", images[0], "--where", "price>=2", "--where", "label=l0", "--json")
    hits = [json.loads(line) for line in output[1].splitlines()]
    assert sorted(hit["metadata"]["price"] for hit in hits) == [2, 4]
    code, _, err = command("search", tmp_path / "store", images[0], "--where", "price>=2 OR 1=1")
    assert (code, err) == (2, err)
    assert "'2 OR 1=1' cannot be a value of column 'price'" in err


def test_vectors_and_a_named_data_set(command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    dc.EmbeddingModel(vector_dim=6, embedding_dim=4).save(tmp_path / "vectors")
    rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    pq.write_table(pa.table({"embedding": list(rows), "shop": ["x"] * 9}), tmp_path / "v.parquet")
    code, out, err = index(command, tmp_path / "vectors", tmp_path / "v.parquet", "--store", tmp_path / "store")
    assert code == 0, err
    assert out.startswith("9 added")
    code, out, err = command(
        "search", tmp_path / "store", f"{tmp_path / 'v.parquet'} row 3", "-k", 1, "--where", "shop=x"
    )
    assert out == f" 1.0000  -  {tmp_path / 'v.parquet'} row 3\n"
    code, out, err = index(command, tmp_path / "vectors", "demo", "--store", tmp_path / "demo")
    assert code == 2
    assert "holds images, and the model takes vectors of 6 dimensions" in err


def test_types_of_columns_are_declared_shown_and_changed(
    command: Command, run: Path, image_folder: Path, tmp_path: Path
) -> None:
    images, store, table = sorted(image_folder.rglob("*.png"))[:4], tmp_path / "store", tmp_path / "t.csv"
    rows = [("00003", "NA", "1.50"), ("00004", "", "10"), ("x", '""', "9"), ("5", "null", "")]
    lines = [f"{path},{','.join(row)}" for path, row in zip(images, rows, strict=True)]
    table.write_text("path,sku,country,price\n" + "\n".join(lines) + "\n")
    assert index(command, run, table, "--store", store)[0] == 0
    code, out, err = command("index", "--info", store)
    assert code == 0, err
    assert out.splitlines()[0] == f"{store}: 4 items, 16 dimensions"
    assert [line.split() for line in out.splitlines()[3:]] == [
        ["path", "text"],
        ["label", "text"],
        ["sku", "text", "0"],
        ["country", "text", "1"],
        ["price", "text", "1"],
    ]
    found = command("search", store, images[0], "--json")[1].splitlines()
    values = {json.loads(line)["id"]: json.loads(line)["metadata"] for line in found}
    assert [values[i]["sku"] for i in range(4)] == ["00003", "00004", "x", "5"]
    assert [values[i]["country"] for i in range(4)] == ["NA", None, "", "null"]
    code, out, err = command("search", store, images[0], "--where", "price<10")
    assert (code, out) == (2, "")
    assert "column 'price' holds text values" in err
    assert "(--change-types, --column-type price=float)" in err

    code, out, err = command("index", "--change-types", store, "--column-type", "sku=int")
    assert (code, out) == (2, "")
    assert f"{images[0]} (id 0): '00003' would become 3; {images[1]} (id 1): '00004' would become 4" in err
    assert "3 of 4 rows" in err
    code, out, err = command("index", "--change-types", store, "--column-type", "price=float")
    assert (code, out) == (0, f"4 items rewritten in {store}\n"), err
    assert command("index", "--change-types", store, "--column-type", "price=float")[1] == (
        "the columns have these types\n"
    )
    found = command("search", store, images[0], "--where", "price<10", "--json")[1].splitlines()
    assert sorted(json.loads(line)["metadata"]["price"] for line in found) == [1.5, 9.0]
    assert index(command, run, table, "--store", store)[1].startswith("0 added, 0 changed, 0 removed, 4 kept")

    code, out, err = index(command, run, table, "--store", store, "--column-type", "price=text")
    assert (code, out) == (2, "")
    assert "'price' is float in the index, and text in this data" in err
    assert "(--column-type price=float), or change the index first (--change-types, --column-type price=text)" in err
    code, out, err = index(command, run, table, "--store", tmp_path / "new", "--column-type", "sku=float")
    assert code == 2
    assert f"{table} line 4: the column 'sku': 'x' is no float" in err
    code, out, err = index(command, run, table, "--store", tmp_path / "new", "--column-type", "price=decimal")
    assert code == 0, err
    assert ["price", "decimal", "1"] in [
        row.split() for row in command("index", "--info", tmp_path / "new")[1].splitlines()
    ]


def test_types_go_into_shards(command: Command, run: Path, image_folder: Path, tmp_path: Path) -> None:
    images, table = sorted(image_folder.rglob("*.png"))[:2], tmp_path / "t.csv"
    table.write_text(f"path,day\n{images[0]},2024-05-01\n{images[1]},\n")
    options = ["--parts", tmp_path / "parts", "--column-type", "day=date"]
    assert index(command, run, table, *options)[0] == 0
    assert command("index", "--load", tmp_path / "parts", "--store", tmp_path / "store")[0] == 0
    out = command("index", "--info", tmp_path / "store")[1]
    assert out.splitlines()[-1].split() == ["day", "date", "1"]
    hits = command("search", tmp_path / "store", images[0], "--where", "day<2025-01-01", "--json")[1]
    assert json.loads(hits)["metadata"] == {"day": "2024-05-01"}


def test_a_search_shows_what_is_similar_enough(command: Command, run: Path, image_folder: Path) -> None:
    assert index(command, run, image_folder)[0] == 0
    image = sorted(image_folder.rglob("*.png"))[3]
    scores = [float(line.split()[0]) for line in command("search", run, image, "-k", 40)[1].splitlines()]
    least = (scores[4] + scores[5]) / 2
    code, out, err = command("search", run, image, "-k", 40, "--min-score", least)
    assert (code, len(out.splitlines()), err) == (0, 5, "")
    code, out, err = command("search", run, image, "--min-score", "1", "--where", "label=nobody")
    assert (code, out) == (0, "")
    assert f"{image}: no item fits label=nobody and has a cosine similarity of 1 or more" in err
    code, out, err = command("search", run, image, "--where", "label=nobody")
    assert (code, out) == (0, "") and f"{image}: no item fits label=nobody" in err
    code, out, err = command("search", run, image, "--min-score", "80")
    assert (code, out) == (2, "")
    assert "--min-score 80.0: pass a cosine similarity, -1 to 1" in err


def test_shards_a_listing_and_what_is_loaded(
    command: Command, run: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, listing = tmp_path / "parts", tmp_path / "paths.txt"
    images = sorted(image_folder.rglob("*.png"))
    listing.write_text("\n".join(map(str, images)) + "\n")
    code, out, err = index(command, run, "--stream", listing, "--parts", parts, "--shard", "1/2")
    assert (code, out) == (0, f"shard 1 of 2: 40 embedded, 0 already there, in {parts}\n")
    code, out, err = index(command, "--load", parts, "--store", tmp_path / "store")
    assert (code, out) == (2, "")
    assert "shard 2 of 2 is not complete" in err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = index(command, run, "--stream", listing, "--parts", parts)
    assert out.startswith("shard 2 of 2: 0 embedded")
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    code, out, err = index(command, "--load", parts, "--store", tmp_path / "store", "--ann-from", 7_000)
    assert code == 0, err
    assert out.startswith("40 added")
    assert dc.Index.open(tmp_path / "store").about.ann_from == 7_000
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{images[3]}\n"))
    code, out, err = index(command, run, "--stream", "-", "--store", tmp_path / "store")
    assert out.startswith("0 added, 0 changed, 0 removed, 1 kept: 40 items")


def test_a_table_that_is_read_as_it_is_indexed(command: Command, run: Path, image_folder: Path, tmp_path: Path) -> None:
    """The store is the one of the table as a whole."""
    table, store = tmp_path / "items.csv", tmp_path / "store"
    images = sorted(image_folder.rglob("*.png"))
    rows = [f"{image},{image.parent.name},2024-05-{1 + i % 28:02}" for i, image in enumerate(images)]
    table.write_text("path,label,day\n" + "\n".join(rows) + "\n")
    options = ("--store", store, "--column-type", "day=date")
    code, out, err = index(command, run, "--stream", table, *options)
    assert code == 0, err
    assert out.startswith("40 added")
    code, out, err = index(command, run, table, *options)
    assert out.startswith("0 added, 0 changed, 0 removed, 40 kept")
    code, out, err = index(command, run, "--stream", table, "--store", store, "--column-type", "price=float")
    assert (code, out) == (2, "")
    assert "there are: day" in err or "'price'" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN is missing"),
        (["RUN"], "give either IMAGES after RUN"),
        (["RUN", "PHOTOS", "--stream", "x"], "give either IMAGES after RUN"),
        (["RUN", "PHOTOS", "--shard", "1/2"], "--shard 1/2 needs --parts"),
        (["RUN", "PHOTOS", "--parts", "P", "--store", "S"], "--parts writes to no store"),
        (["RUN", "PHOTOS", "--parts", "P", "--shard", "3/2"], "--shard 3/2: write NUMBER/SHARDS"),
        (["--load", "P"], "add --store"),
        (["--load", "P", "--store", "S"], "there is no complete shard"),
        (["RUN", "--check", "S"], "--check S does not go with RUN"),
        (["--check", "S"], "S: there is no index here"),
        (["--info", "S", "--check", "S"], "--check S does not go with --info"),
        (["RUN", "--info", "S"], "--info S does not go with RUN"),
        (["--info", "S", "--column-type", "a=int"], "--info S does not go with --column-type"),
        (["--info", "S"], "S: there is no index here"),
        (["--change-types", "S"], "add --column-type NAME=TYPE"),
        (["--change-types", "S", "--store", "T"], "--change-types S does not go with --store"),
        (["--change-types", "S", "--column-type", "price"], "--column-type price: write NAME=TYPE"),
        (["RUN", "PHOTOS", "--column-type", "a=int"], "--column-type: this data has no columns"),
        (["RUN", "PHOTOS", "--column-type", "a=int", "--column-type", "a=text"], "a is int and text"),
        (["RUN", "--stream", "x", "--column-type", "a=int"], "a listing of paths (--stream) has no columns"),
        (["--load", "P", "--store", "S", "--column-type", "a=int"], "--load P does not go with --column-type"),
        (["RUN", "gone/"], "there is no such file or folder"),
        (["RUN", "PHOTOS", "--ann-from", "0"], "Must be >= 1"),
    ],
)
def test_what_does_not_go_together(
    command: Command,
    run: Path,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = command("index", *({"RUN": run, "PHOTOS": image_folder}.get(word, word) for word in arguments))
    assert code != 0
    assert said in out + err
    assert not (tmp_path / "S").exists()


def test_search_reports_wrong_options(command: Command, run: Path, image_folder: Path, tmp_path: Path) -> None:
    assert index(command, run, image_folder)[0] == 0
    image = next(image_folder.rglob("*.png"))
    (tmp_path / "fake.jpg").write_text("no image")
    for arguments, said in (
        ([tmp_path / "nothing", image], "there is no index here"),
        ([run, tmp_path / "fake.jpg"], "it looks like text"),
        ([run, "../nothing.png"], "there is no such file"),
        ([run, image, "-k", 10**9], "a search returns 1 to 10,000 items"),
        ([run, image, "--learner", 2], "learners 0 to 1"),
        ([run, image, "--where", "colour=red"], "unknown column 'colour'"),
    ):
        code, out, err = command("search", *arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err


def test_which_shard_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert shard_of(None) == (1, 1)
    assert shard_of("8/8") == (8, 8)
    for wrong in ("0/8", "9/8", "8", "a/b", "1/2/3"):
        with pytest.raises(ConfigError, match="write NUMBER/SHARDS"):
            shard_of(wrong)


def test_a_terminal_shows_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    screen = io.StringIO()
    monkeypatch.setattr(sys.modules["divcon.cli.app"], "notes", Console(file=screen, force_terminal=True, width=120))
    with progress_bar("items", 100) as advance:
        for done in range(0, 100, 10):
            advance(Progress("index", done, None))
            time.sleep(0.03)  # drawn ten times a second
    assert "indexing" in screen.getvalue()
    assert "items/s" in screen.getvalue()
    assert "/100" in screen.getvalue()
