"""The examples run as they stand, on less data."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

import divcon as dc

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent


def test_vectors_are_adapted_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = runpy.run_path(str(ROOT / "examples" / "adapt_vectors.py"))["main"]
    before, after = main(["--out", str(tmp_path), "--epochs", "12", "--classes", "40"])
    printed = capsys.readouterr().out
    assert f"on 40 classes never seen: {100 * before:.1f} % before, {100 * after:.1f} % after" in printed
    assert printed.count("loss") == 12
    data = dc.read(tmp_path / "vectors.parquet")
    model = dc.EmbeddingModel.load(tmp_path / "model")
    assert dc.evaluate(model, data, clustering=False)["recall_at_1"] == after
    # What was there before is the score of the backbone's features themselves.
    classes = dc.read("demo").query
    test = classes.of_classes(classes.classes[:40])
    features = dc.EmbeddingModel("tf_efficientnet_lite0", image_size=64).features(test)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert before == pytest.approx(dc.retrieval_metrics(unit, test.labels)["recall_at_1"])
    assert after > before + 0.01
