"""``divcon export``, as a user types it: of a run, of a pruned model, with scores, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

import divcon as dc
from divcon.config.settings import RunConfig
from divcon.runs.folder import RunFolder, kept_epoch

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]
DIM = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``vectors.parquet``, ``run`` that was trained on it, and its ``scores.json``."""
    from divcon.cli import main

    folder = tmp_path_factory.mktemp("export")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 8)
    vectors = (rng.normal(size=(40, DIM))[labels] + rng.normal(size=(len(labels), DIM))).astype(np.float32)
    table = pa.table({"embedding": list(vectors), "label": [f"c{label:02}" for label in labels]})
    pq.write_table(table, folder / "vectors.parquet")
    how = ["--method", "slices", "--learners", "4", "--dim", "16", "--epochs", "2", "--batch-size", "16"]
    how += ["--embed", "head"]
    commands = [
        ["train", folder / "vectors.parquet", *how, "--workers", "0", "--out", folder / "run"],
        ["evaluate", folder / "run", "--parts", "--json", folder / "scores.json", "--workers", "0"],
        ["prune", folder / "run", "--dims", "6", "--out", folder / "small", "--workers", "0"],
    ]
    for arguments in commands:
        with pytest.raises(SystemExit, match="0"):
            main([str(argument) for argument in arguments])
            raise SystemExit(0)
    return folder


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "config.json").read_text())


def test_an_onnx_file_says_what_it_was_trained_on(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    code, printed, err = command("export", folder / "run", "--out", out)
    assert code == 0, err
    assert f"onnx model in {out}: vectors (N, {DIM}) float32 to embeddings (N, 16) float32" in printed
    assert f"against the original with ONNX Runtime {onnxruntime.__version__}: embeddings differ by at most" in printed
    session = onnxruntime.InferenceSession(out)
    about = json.loads(session.get_modelmeta().custom_metadata_map["divcon"])
    record = record_of(folder)
    assert record["split_hash"]
    for name in ("benchmark", "protocol", "split_hash"):
        assert about[name] == record[name]
    images = dc.read(folder / "vectors.parquet").query
    (outputs,) = session.run(None, {"vectors": images.vectors})
    np.testing.assert_allclose(outputs, dc.EmbeddingModel.load(folder / "run").encode(images), atol=1e-4)


def test_int8_has_the_runs_recall_beside_its_own(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    code, printed, err = command("export", folder / "run", "--precision", "int8", "--out", out)
    assert code == 0, err
    assert "test images: cosine to the original 0.99" in printed.replace("1.00", "0.99"), printed
    about = json.loads(onnxruntime.InferenceSession(out).get_modelmeta().custom_metadata_map["divcon"])
    now, then = (100 * about["compared"][name] for name in ("recall_at_1", "original_recall_at_1"))
    assert f"Recall@1 {now:.1f}, original {then:.1f}" in printed
    scores = json.loads((folder / "scores.json").read_text())
    assert then == pytest.approx(100 * scores["recall_at_1"])
    assert f"{out}: " in printed and "MB; the model's weights take" in printed
    code, _, err = command("export", folder / "run", "--precision", "fp16", "--format", "hf", "--out", tmp_path / "hf")
    assert (code, "--precision fp16: is for onnx and openvino" in err) == (2, True), err


def test_a_card_is_filled_in_from_the_run(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    code, printed, err = command(
        "export", folder / "run", "--format", "hf", "--scores", folder / "scores.json", "--out", out
    )
    assert code == 0, err
    card = ModelCard.load(out / "README.md")
    marks = (out / "README.md").read_text().count("TO FILL IN")
    assert f"{out}/README.md: {marks} places are marked TO FILL IN" in printed
    scores, record = json.loads((folder / "scores.json").read_text()), record_of(folder)
    trained_on = dc.read(folder / "vectors.parquet").with_validation(0.1, 0)
    assert trained_on.validation is not None
    train, validation = trained_on.train.num_classes, trained_on.validation.num_classes
    assert card.data.eval_results is not None
    metrics = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert metrics["recall_at_1"] == scores["recall_at_1"]
    low, high = scores["recall_at_1_interval"]
    assert {"map_at_r", "nmi"} < set(metrics)
    for said in (
        "|  | embedding | 95 % interval | pretrained features |",
        f"| Recall@1 | {100 * scores['recall_at_1']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | "
        f"{100 * scores['baselines']['pretrained_features']['recall_at_1']:.1f} % |",
        "Pretrained features: the vectors themselves.",
        f"split `{scores['split_hash']}`, that of its run: {scores['num_queries']} queries of "
        f"{scores['num_classes']} classes",
        f"| trained on | {train} train classes, {validation} validation classes |",
        f"| hash of the test split | `{record['split_hash']}` |",
        "| `num_learners` | `4` |\n| `embedding_dim` | `16` |",
        f"Epoch {kept_epoch(RunFolder(folder / 'run').lines())} was kept, of 2 that ran, 0 to 1: ",
        f"torch {record['versions']['torch']}",
        "which model computed the vectors",
    ):
        assert said in card.content, said
    # The settings are a file that trains, and nothing says where things lie.
    (tmp_path / "again.yaml").write_text(card.content.partition("```yaml\n")[2].partition("```")[0])
    settings = {name: record[name] for name in ("model", "train", "data")}
    assert RunConfig.load(tmp_path / "again.yaml") == RunConfig.from_dict(settings)
    for path in out.iterdir():
        assert str(folder).encode() not in path.read_bytes(), path
    code, printed, err = command("encode", out, folder / "vectors.parquet", "--out", tmp_path / "a.parquet")
    assert code == 0, err
    assert "320 embeddings of 16 dimensions" in printed


def test_a_learners_card_has_its_own_scores(command: Command, folder: Path, tmp_path: Path) -> None:
    hf = ("export", folder / "run", "--format", "hf", "--learner", 2)
    code, _, err = command(*hf, "--scores", folder / "scores.json", "--out", tmp_path / "two")
    assert code == 0, err
    card = (tmp_path / "two" / "README.md").read_text()
    scores = json.loads((folder / "scores.json").read_text())
    assert f"| Recall@1 | {100 * scores['learners'][2]['recall_at_1']:.1f} % |" in card
    assert "the subspace of learner 2 alone" in card
    assert "Embeds vectors of 12 dimensions in 4 dimensions" in card
    assert "was kept" not in card  # which is a score of the whole embedding

    del scores["learners"]
    (tmp_path / "whole.json").write_text(json.dumps(scores | {"split_hash": "another"}))
    code, _, err = command(*hf, "--scores", tmp_path / "whole.json", "--out", tmp_path / "three")
    assert (code, "no scores of learner 2 alone" in err) == (2, True)
    hf = ("export", folder / "run", "--format", "hf", "--scores", tmp_path / "whole.json")
    assert command(*hf, "--out", tmp_path / "other")[0] == 0
    card = (tmp_path / "other" / "README.md").read_text()
    assert f"split `another`, which is not its run's ({record_of(folder)['split_hash']})" in card


def test_of_a_pruned_model_and_of_one_without_a_run(command: Command, folder: Path, tmp_path: Path) -> None:
    code, _, err = command("export", folder / "small", "--format", "hf", "--out", tmp_path / "small")
    assert code == 0, err
    card = (tmp_path / "small" / "README.md").read_text()
    assert "Then pruned to 6 dimensions (pca)." in card
    assert f"`{record_of(folder)['split_hash']}`" in card
    assert "was kept" not in card  # of the model before
    code, _, err = command("export", folder / "run" / "model", "--format", "hf", "--out", tmp_path / "model")
    assert code == 0, err
    card = (tmp_path / "model" / "README.md").read_text()
    assert "the data it was trained on." in card
    assert "how it was trained." in card


def test_wrong_options_are_reported_before_any_work(command: Command, folder: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        code, printed, err = command("export", *arguments)
        assert (code, printed) == (2, "")
        return " ".join(err.split())

    assert "no model there (config.json is missing)" in refused(tmp_path, "--out", tmp_path / "a.onnx")
    assert "no model there (there is no such folder)" in refused(tmp_path / "nothing", "--out", tmp_path / "a.onnx")
    assert "ends in .onnx" in refused(tmp_path / "nothing", "--out", tmp_path / "a")
    assert "format torch is one file" in refused(tmp_path, "--format", "torch", "--out", tmp_path / "a.onnx")
    assert "--scores" in refused(folder / "run", "--out", tmp_path / "a.onnx", "--scores", folder / "scores.json")
    (tmp_path / "a.onnx").touch()
    assert "exists already; choose another name" in refused(folder / "run", "--out", tmp_path / "a.onnx")
    assert "learners 0 to 3" in refused(folder / "run", "--learner", 4, "--out", tmp_path / "b.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    code, _, _ = command("export", folder / "run", "--format", "tflite", "--out", tmp_path / "a.tflite")
    assert code != 0
