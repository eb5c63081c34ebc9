"""The command line as a user types it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.evaluation import ReRanking

SIZES = {"--backbone": "test_resnet", "--size": 32, "--dim": 16, "--learners": 2, "--batch-size": 8}
SMALL = [*(word for pair in SIZES.items() for word in pair), "--images-per-class", 2, "--no-pretrained"]


@pytest.fixture
def run(command: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    return command


Run = Callable[..., tuple[int, str, str]]


def test_the_walk_from_a_folder_to_vectors(run: Run, image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    how = (*SMALL, "--method", "masks", "--epochs", 2, "--no-validation", "--workers", 0)
    code, _, err = run("train", image_folder, *how, "--out", out)
    assert code == 0, err
    assert "kept epoch 1" in err
    assert "photos: 30 images of 6 classes to train on" in err

    # Without DATA it is scored on what it was trained on.
    code, printed, err = run("evaluate", out, "--json", tmp_path / "scores.json", "--parts", "--map", "--workers", 0)
    assert code == 0, err
    assert "recall_at_1" in printed
    assert "learner 1" in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["protocol"] == "leave-one-out"
    assert scores["num_queries"] == 10
    hits = scores["per_query"]["recall_at_1"]
    assert np.mean(hits) == pytest.approx(scores["recall_at_1"])
    assert len(scores["per_query"]["path"]) == len(scores["per_query"]["label"]) == 10
    for name in ("recall_at_10", "precision_at_1", "r_precision", "map_at_r", "map", "nmi", "ami", "split_hash"):
        assert name in scores
    assert scores == {
        **scores,
        **json.loads(json.dumps(dc.evaluate(dc.EmbeddingModel.load(out), dc.read(image_folder), map=True))),
    }

    code, printed, err = run("encode", out, image_folder, "--out", tmp_path / "vectors.parquet", "--workers", 0)
    assert code == 0, err
    assert "40 embeddings of 16 dimensions" in printed
    table = pq.read_table(tmp_path / "vectors.parquet")
    vectors = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(vectors, dc.EmbeddingModel.load(out).encode(image_folder), atol=1e-6)
    code, _, _ = run("encode", out, image_folder, "--learner", 1, "--out", tmp_path / "one.parquet", "--workers", 0)
    one = np.stack(pq.read_table(tmp_path / "one.parquet")["embedding"].to_numpy())
    assert one.shape == (40, 16)  # a mask is over all of it
    np.testing.assert_allclose(one, dc.EmbeddingModel.load(out).encode(image_folder, learner=1), atol=1e-6)
    assert not np.allclose(one, vectors, atol=1e-6)

    code, _, err = run("train", "--out", out, "--resume")
    assert code == 0, err
    assert "already done: epochs" in err


def test_the_characteristic_and_re_ranked_scores_stand_beside_the_others(
    run: Run, image_folder: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "run", tmp_path / "scores.json"
    run("train", image_folder, *SMALL, "--epochs", 1, "--no-validation", "--workers", 0, "--out", out)
    asked = ("--cmc", 12, "--rerank", "--rerank-k1", 4, "--rerank-weight", 0, "--no-clustering", "--workers", 0)
    code, printed, err = run("evaluate", out, *asked, "--json", file)
    assert code == 0, err
    scores = json.loads(file.read_text())
    expected = dc.evaluate(
        dc.EmbeddingModel.load(out),
        dc.read(image_folder),
        clustering=False,
        cmc=12,
        rerank=ReRanking(k1=4, weight=0.0),
    )
    assert scores == {**scores, **expected}
    assert (scores["reranked"]["k1"], scores["reranked"]["k2"], scores["reranked"]["weight"]) == (4, 6, 0)
    before, after = printed.split("re-ranked, k1 4, k2 6, weight 0:")
    for text, these in ((before, scores), (after, scores["reranked"])):
        words = text.split()
        for name in ("recall_at_1", "map", "map_trapezoidal"):
            assert words[words.index(name) + 1] == f"{100 * these[name]:.1f}"
        assert "cmc, %, ranks 11 to 12: " + " ".join(f"{100 * share:5.1f}" for share in these["cmc"][10:]) in text


def test_a_csv_and_the_folder_it_names_train_the_same(run: Run, image_folder: Path, tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(8):
        split = "test" if number in (1, 3) else "train"  # as the hashes of their names say
        lines += [f"photos/class{number}/{place}.png,class{number},{split}" for place in range(5)]
    (tmp_path / "products.csv").write_text("\n".join(lines))
    options = [*SMALL, "--epochs", 1, "--no-validation", "--workers", 0, "--out"]
    assert run("train", tmp_path / "products.csv", *options, tmp_path / "a")[0] == 0
    assert run("train", image_folder, *options, tmp_path / "b")[0] == 0
    a, b = (tmp_path / name / "model" / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--backbone", "resnt50"], "did you mean .*'resnet50'"),
        (["--loss", "TripletLoss"], "did you mean .*'TripletMarginLoss'"),
        (["--loss-options.margn", "1"], "did you mean 'margin'"),
        (["--learners", "400"], "cannot be divided among --learners 400"),
        (["--batch-size", "9"], "--batch-size 9 is not a multiple of --images-per-class 2"),
        (["--loss-options.margin", "abc"], "MarginLoss cannot|MarginLoss with"),
        (["--finetune-epoch", "-1"], "--finetune-epoch -1: must not be negative"),
        (["--dim", "64", "--learners", "40"], "the 30 training images cannot be divided among 40 learners"),
        (["--batch-size", "8", "--images-per-class", "8"], "fewer than two classes"),
        (["--epochs", "-1"], "--epochs -1: must be at least 0"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 needs CUDA"),
        (["--crop-scale", "0"], "--crop-scale 0"),
        (["--validation-fraction", "2"], "--validation-fraction 2"),
        (["--backbone", "test_convnext"], "could not be downloaded"),
        (["--weights", "missing.pth"], "no such file of weights"),
    ],
)
def test_options_that_cannot_work_say_why(
    run: Run, image_folder: Path, tmp_path: Path, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    sizes = {"--images-per-class": 2, **SIZES, **dict(zip(arguments[::2], arguments[1::2], strict=True))}
    words = [word for pair in sizes.items() for word in pair]
    if "--weights" not in sizes and sizes["--backbone"] != "test_convnext":
        words.append("--no-pretrained")
    code, _, err = run("train", image_folder, *words, "--no-validation", "--workers", 0, "--out", tmp_path / "run")
    assert code != 0
    flat = " ".join(err.split())
    assert re.search(expected, flat), flat
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "prodcts.csv", "--out", "x"], "there is no such file"),
        (["train", "dmo", "--out", "x"], "did you mean 'demo'"),
        (["train", "--out", "x"], "DATA is missing"),
        (["train", "demo", "--out", "x", "--epoch", "3"], "Did you mean --epochs"),
        (["train", "demo", "--out", "x", "--method", "slice"], "did you mean 'slices'"),
        (["train", "demo", "--out", "x", "--epochs", "many"], "unable to convert"),
        (["trian", "demo"], "Did you mean"),
        (["evaluate", "missing", "demo"], "no model there"),
        (["evaluate", "missing", "demo", "--cmc", "0"], "--cmc"),
        (["evaluate", "missing", "demo", "--rerank-k2", "3"], "--rerank-k2 is an option of re-ranking: add --rerank"),
        (["evaluate", "missing", "demo", "--rerank", "--rerank-k1", "0"], "--rerank-k1"),
        (["evaluate", "missing", "demo", "--rerank", "--rerank-weight", "2"], "--rerank-weight"),
        (["evaluate", "missing", "demo", "--rerank", "--rerank-weight", "nan"], "--rerank-weight"),
        (["encode", "missing", "x.png", "--out", "v.csv"], "ends in .parquet"),
    ],
)
def test_mistakes_are_answered_in_a_line(
    run: Run, tmp_path: Path, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code != 0
    assert expected in " ".join((out + err).replace("│", " ").split())
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_bad_tables_name_file_and_line(run: Run, image_folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "products.csv"
    for text, expected in (
        ("path,lable\nphotos/class0/0.png,a\n", "'lable'"),
        ("path,label\nphotos/class0/0.png,a\nphotos/class0/9.png,a\n", "products.csv line 3"),
        ("path,label\nphotos/class0/0.png,a\nphotos/class0/1.png,\n", "products.csv line 3"),
        ("path\nphotos/class0/0.png\n", "label"),
    ):
        table.write_text(text)
        code, _, err = run("train", table, *SMALL, "--out", tmp_path / "run")
        assert code == 2
        assert expected in " ".join(err.split()), err
        assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_a_bad_image_stops_or_is_skipped(
    run: Run, image_folder: Path, tmp_path: Path, broken_png: Callable[[Path], None]
) -> None:
    broken_png(image_folder / "class0" / "3.png")
    broken_png(image_folder / "class3" / "3.png")
    options = [*SMALL, "--epochs", 1, "--no-validation", "--workers", 2]
    code, _, err = run("train", image_folder, *options, "--out", tmp_path / "a")
    assert code == 2
    assert "class0/3.png: this image does not decode" in " ".join(err.split())
    assert "--on-bad-image skip leaves such images out" in " ".join(err.split())
    code, _, err = run("train", image_folder, *options, "--on-bad-image", "skip", "--out", tmp_path / "b")
    assert code == 0, err
    assert "left out" in err
    assert run("evaluate", tmp_path / "b", "--workers", 0)[0] == 2
    code, out, err = run("evaluate", tmp_path / "b", "--on-bad-image", "skip", "--workers", 0)
    assert code == 0
    assert "9 queries" in out
    vectors = tmp_path / "v.parquet"
    assert run("encode", tmp_path / "b", image_folder, "--out", vectors)[0] == 2
    assert not vectors.exists()
    assert run("encode", tmp_path / "b", image_folder, "--out", vectors, "--on-bad-image", "skip")[0] == 0
    assert len(pq.read_table(vectors)) == 38


def test_a_class_with_one_image_is_noted(run: Run, image_folder: Path, tmp_path: Path) -> None:
    for place in range(1, 5):
        (image_folder / "class0" / f"{place}.png").unlink()
    code, _, err = run(
        "train", image_folder, *SMALL, "--epochs", 1, "--no-validation", "--workers", 0, "--out", tmp_path / "a"
    )
    assert code == 0, err
    assert "positive pair" in " ".join(err.split())
    code, out, _ = run("evaluate", tmp_path / "a", "--no-clustering", "--workers", 0)
    assert code == 0
    assert "nmi" not in out


def test_one_class_only_is_refused(run: Run, image_folder: Path, tmp_path: Path) -> None:
    for number in range(1, 8):
        shutil.rmtree(image_folder / f"class{number}")
    code, _, err = run("train", image_folder, *SMALL, "--out", tmp_path / "a")
    assert code == 2
    assert "class" in err


def test_help_teaches_without_loading_torch() -> None:
    program = """
import sys
from divcon.cli import main
try:
    main(["train", "--help"])
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    for word in ("--learners", "--dim", "--method", "--redivide-every", "--on-bad-image", "k-means"):
        assert word in done.stdout
