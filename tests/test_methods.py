"""Every method from the command line: trained, stopped and gone on with, judged by parts, used by one learner."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.training.checkpoint_file import read_checkpoint

pytestmark = pytest.mark.heavy

SIZES = {"--backbone": "test_resnet", "--size": 32, "--dim": 16, "--batch-size": 8, "--images-per-class": 2}
SMALL = [*(word for pair in SIZES.items() for word in pair), "--no-pretrained", "--no-validation", "--workers", 0]
METHODS = {
    "single": ["--method", "single"],
    "slices": ["--method", "slices", "--learners", 2, "--freeze-backbone-epochs", 1],
    "masks": ["--method", "masks", "--learners", 2, "--small-classes", "fill"],
    "fixed masks": ["--method", "masks", "--learners", 3, "--head-options.kind", "fixed"],
    "masks times their sum": ["--method", "masks", "--learners", 2, "--head-options.full", "masked"],
    "hierarchy": ["--method", "masks", "--learners", 4, "--hierarchy", "--divide-by", "random"],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_walk(
    command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    words = ["train", image_folder, *SMALL, *METHODS[method], "--epochs", 7, "--finetune-epoch", 6, "--out", out]
    code, _, err = command(*words)
    assert code == 0, err
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["phase"] == "finetune"
    learners = {"single": 1, "fixed masks": 3, "hierarchy": 4}.get(method, 2)
    assert [len(line["sizes"]) for line in lines] == (
        [1, 1, 2, 2, 4, 4, 1] if method == "hierarchy" else [*[learners] * 6, 1]
    )

    code, printed, err = command("evaluate", out, "--parts", "--json", tmp_path / "scores.json", "--workers", 0)
    assert code == 0, err
    assert f"learner {learners - 1}" in printed
    assert len(json.loads((tmp_path / "scores.json").read_text())["learners"]) == learners

    last = learners - 1
    code, _, err = command(
        "encode", out, image_folder, "--learner", last, "--out", tmp_path / "v.parquet", "--workers", 0
    )
    assert code == 0, err
    model = dc.EmbeddingModel.load(out)
    vectors = np.stack(pq.read_table(tmp_path / "v.parquet")["embedding"].to_numpy())
    assert vectors.shape[1] == model.head.subspace_dim(last)
    np.testing.assert_allclose(vectors, model.encode(image_folder, learner=last), atol=1e-6)
    code, _, err = command("encode", out, image_folder, "--learner", learners, "--out", tmp_path / "v.parquet")
    assert code == 2
    assert f"the model has learners 0 to {last}" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "slice"], "unknown method 'slice'; did you mean 'slices'"),
        (
            ["--method", "slices", "--hierarchy"],
            "learners of method slices cannot be split in two; use --method masks",
        ),
        (["--method", "masks", "--learners", 3, "--hierarchy"], "--learners must be 2, 4, 8, ..., not 3"),
        (["--method", "masks", "--learners", 32], "--dim 16 cannot be divided among --learners 32"),
        (["--method", "masks", "--head-options.kind", "fix"], "unknown value 'fix'; did you mean 'fixed'"),
        (
            ["--method", "slices", "--head-options.kind", "fixed"],
            "takes no options; leave 'kind' out of --head-options",
        ),
        (["--method", "masks", "--mask-penalty", -1], "--mask-penalty -1.0: must not be negative"),
        (["--full-weight", -1], "--full-weight -1.0: must not be negative"),
        (["--freeze-backbone-epochs", 2], "leaves no epoch in which the backbone trains"),
        (["--division-tries", 0], "--division-tries 0: must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path, words: list, message: str
) -> None:
    code, _, err = command("train", image_folder, *SMALL, *words, "--epochs", 9, "--out", tmp_path / "run")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_cannot_be_split_is_named_and_the_run_is_kept(
    command: Callable[..., tuple[int, str, str]], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # Four classes train: their halves have two each, which cannot be split again.
    words = ["--method", "masks", "--learners", 4, "--hierarchy", "--divide-by", "class", "--epochs", 9]
    code, _, err = command("train", image_folder, *SMALL, *words, "--out", out)
    assert code == 2
    assert "the hierarchy cannot split learner" in err
    assert "use --learners" in err
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 2
    assert not (out / "model").exists()
    # What the checkpoint holds is not lost: another run starts from it.
    words = ["--learners", 2, "--hierarchy", "--epochs", 4, "--init", out, "--out", tmp_path / "next"]
    code, _, err = command("train", image_folder, *SMALL, *words)
    assert code == 0, err
    assert "the head starts from new weights" in err
    assert read_checkpoint(tmp_path / "next" / "checkpoint")["made_with"]["method"] == "masks"
