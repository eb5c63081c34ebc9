"""``hf://`` wherever a command takes a model, and ``divcon export --push``, on a Hub of this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

import divcon as dc
from tests.hub import READS, WRITES, Hub

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vectors.parquet``, and ``run``, trained on it and evaluated."""
    from divcon.cli import main

    folder = tmp_path_factory.mktemp("hub")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    vectors = (rng.normal(size=(40, 12))[labels] + rng.normal(size=(len(labels), 12))).astype(np.float32)
    table = pa.table({"embedding": list(vectors), "label": [f"c{label:02}" for label in labels]})
    pq.write_table(table, folder / "vectors.parquet")
    how = ["--method", "slices", "--learners", "2", "--dim", "8", "--epochs", "3", "--batch-size", "16"]
    for arguments in (
        ["train", folder / "vectors.parquet", *how, "--workers", "0", "--out", folder / "run"],
        ["evaluate", folder / "run", "--workers", "0"],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([str(argument) for argument in arguments])
            raise SystemExit(0)
    return folder


def test_a_run_is_pushed_with_its_card_and_used_by_its_address(
    hub: Hub, command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", WRITES)
    code, out, err = command("export", folder / "run", "--push", "me/shapes", "--private", "--message", "of vectors")
    assert code == 0, err
    repo = hub.repos["me/shapes"]
    assert f"pushed to {hub.address}/me/shapes/commit/{repo.branches['main']}" in out
    assert "hf model in hf://me/shapes" in out
    assert (repo.private, repo.messages[-1]) == (True, "of vectors")
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "hub-cache"}  # nothing is left in the folder
    scores = json.loads((folder / "run" / "test.json").read_text())  # of divcon evaluate
    card = ModelCard(repo.files()["README.md"].decode())
    assert card.data.eval_results is not None
    metrics = {each.metric_type: each.metric_value for each in card.data.eval_results}
    assert metrics["map_at_r"] == scores["map_at_r"]
    low, high = (100 * value for value in scores["recall_at_1_interval"])
    pretrained = scores["baselines"]["pretrained_features"]["recall_at_1"]
    assert f"| Recall@1 | {100 * scores['recall_at_1']:.1f} % | {low:.1f} to {high:.1f} % |" in card.content
    assert f"{100 * pretrained:.1f} % |\n| Recall@2" in card.content
    assert f"{scores['num_queries']} queries of {scores['num_classes']} classes" in card.content
    assert ", of 3 that ran, 0 to 2: " in card.content
    assert 'from_pretrained("me/shapes")' in card.content

    # Everywhere by its address, as by its folder.
    data, address = folder / "vectors.parquet", "hf://me/shapes"
    own = dc.EmbeddingModel.load(folder / "run")
    expected = own.encode(np.stack(pq.read_table(data)["embedding"].to_numpy()))
    code, out, err = command("encode", address, data, "--out", "vectors-of.parquet", "--workers", "0")
    assert code == 0, err
    np.testing.assert_allclose(
        np.stack(pq.read_table("vectors-of.parquet")["embedding"].to_numpy()), expected, atol=1e-6
    )
    code, out, err = command("evaluate", address, data, "--workers", "0", "--json", "scores.json")
    assert code == 0, err
    assert json.loads(Path("scores.json").read_text())["map_at_r"] == pytest.approx(scores["map_at_r"])
    how = ("--method", "slices", "--learners", 2, "--dim", 8, "--epochs", 1, "--batch-size", 16)
    for words in (
        ("prune", address, data, "--dims", 4, "--out", "small", "--workers", 0),
        ("export", address, "--format", "torch", "--out", "shapes.pt2"),
        ("index", address, data, "--store", "store", "--workers", 0),
        ("index", "--check", "store"),
        ("train", data, "--init", address, *how, "--workers", 0, "--out", "again"),
        ("compare", "again", address, "--workers", 0),
    ):
        code, _, err = command(*words)
        assert code == 0, (words, err)
    assert dc.EmbeddingModel.load("small").embedding_dim == 4
    assert json.loads(Path("again/config.json").read_text())["init"] == address
    index = dc.Index.open("store")
    assert index.model.embedding_dim == own.embedding_dim  # loaded from the address that it names
    # The Hub is down: what was downloaded goes on working.
    hub.refuse = 503
    code, _, err = command("encode", address, data, "--out", "later.parquet", "--workers", "0")
    assert code == 0, err


def test_what_is_wrong_with_a_push(
    hub: Hub, command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = folder / "run"
    for words, says in (
        (("--push", "me/x"), "hf://me/x: pushing needs a token of a Hugging Face account: set HF_TOKEN"),
        (("--push", "x"), "--push x: is no name of a repository; write USER/MODEL"),
        (("--private", "--out", "a"), "add --push USER/MODEL"),
        (("--keep-card", "--out", "a"), "add --push USER/MODEL"),
        ((), "--out is missing"),
        (("--push", "me/x", "--format", "onnx"), "--push me/x: pushes the folder of --format hf"),
    ):
        code, _, err = command("export", run, *words)
        assert (code, says in err, err.count("\n")) == (2, True, 1), err
    monkeypatch.setenv("HF_TOKEN", READS)
    code, _, err = command("export", run, "--push", "me/x", "--out", "kept")
    assert (code, "the token is not allowed to write to it (HTTP 403)" in err) == (2, True), err
    assert not hub.repos
    assert dc.EmbeddingModel.load("kept").vector_dim == 12  # the folder is whole, and can be pushed by hand
    code, _, err = command("encode", "hf://me/none", folder / "vectors.parquet", "--out", "a.parquet")
    assert (code, "no model me/none on the Hub" in err, err.count("\n")) == (2, True, 1), err
    code, _, err = command("encode", "me/none", folder / "vectors.parquet", "--out", "a.parquet")
    assert (code, "hf://me/none" in err, err.count("\n")) == (2, True, 1), err
    hub.add("me/shapes", Path("kept"))
    code, _, err = command("index", "hf://me/shapes", folder / "vectors.parquet", "--workers", 0)
    assert (code, "--store" in err, err.count("\n")) == (2, True, 1), err
