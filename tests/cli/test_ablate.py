"""``divcon ablate`` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from divcon.experiments import ARMS, ablation

pytestmark = pytest.mark.heavy

Run = Callable[..., tuple[int, str, str]]

SETTINGS = (
    *("--learners", 2, "--dim", 4, "--epochs", 2, "--batch-size", 8, "--images-per-class", 2),
    *("--redivide-every", 1, "--workers", 0),
)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 6)
    table = rng.normal(size=(24, 8))[labels] + 0.7 * rng.normal(size=(144, 8))
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    names = [f"c{label:02d}" for label in labels]
    pq.write_table(pa.table({"embedding": list(table.astype(np.float32)), "label": names}), path)
    return path


def test_from_data_to_table_and_again_without_data(command: Run, vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(
        "arms:\n  quick: {like: slices, train: {lr: 0.01}}\nspace:\n  train: {head_lr: [1.0e-3, 1.0e-2]}\n"
    )
    out = tmp_path / "out"
    asked = ("ablate", vectors, "--methods", "single, quick", "--seeds", "0,1", "--trials", 2, "--folds", 2)
    code, printed, err = command(*asked, "--space", tmp_path / "space.yaml", *SETTINGS, "--out", out)
    assert code == 0, err
    assert printed == (out / "table.md").read_text()
    assert "| quick |" in printed
    assert "run 1 of 12: trial 0 of single (head_lr 0.001), fold 0" in err
    assert "run 12 of 12: quick, seed 1" in err
    assert {path.name for path in out.iterdir()} == {
        *("results.json", "choices.json", "table.md", "recall.svg", "recall.png"),
        *("trials", "runs"),
    }
    (out / "table.md").unlink()
    code, again, err = command("ablate", "--out", out)
    assert (code, again) == (0, printed), err
    assert (out / "table.md").exists()

    code, _, err = command("ablate", "--out", out, "--seeds", "0,7")
    assert code == 2
    assert "DATA is missing: 2 of 4 runs are not done (single with seed 7, for one)" in err
    code, shown, err = command("ablate", "--out", out, "--methods", "quick,single", "--reference", "quick")
    assert code == 0, err
    assert "difference from quick" in shown


def test_a_preset_is_the_base_and_tables_are_written(command: Run, vectors: Path, tmp_path: Path) -> None:
    small = ("--backbone", "none", "--dim", 4, "--learners", 2, "--batch-size", 8, "--workers", 0)
    short = ("--epochs", 4, "--joint-epoch", 3, "--finetune-epoch", 4, "--rounds", "epoch")
    asked = ("ablate", vectors, "--preset", "tpami2021-fixed", "--methods", "single,masks", "--seeds", "0,1")
    files = {kind: tmp_path / f"table.{kind}" for kind in ("tex", "csv", "md")}
    tables = [word for file in files.values() for word in ("--table", file)]
    out = tmp_path / "out"
    code, printed, err = command(*asked, *small, *short, "--out", out, *tables)
    assert code == 0, err
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["base"]["train"]["lr"] == 1e-5 and settings["base"]["train"]["small_classes"] == "fill"
    assert settings["arms"]["masks"]["settings"]["model"]["head_options"] == {"kind": "fixed"}
    rows = files["csv"].read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [["pretrained features", "1"], ["single", "2"], ["masks", "2"]]
    for column in ("recall_at_1", "recall_at_8", "r_precision", "map_at_r", "nmi", "map_at_r_std", "map_at_r_low"):
        assert column in rows[0].split(",")
    assert files["tex"].read_text().count(r"\textbf") >= 6
    assert "no equal budget" not in printed

    texts = {kind: file.read_text() for kind, file in files.items()}
    for file in files.values():
        file.unlink()
    code, _, err = command("ablate", "--out", out, *tables)  # again, without the data
    assert code == 0, err
    assert {kind: file.read_text() for kind, file in files.items()} == texts
    code, _, err = command("ablate", "--out", out, "--table", tmp_path / "table.pdf")
    assert code == 2 and "tables are written as .tex, .csv, .md" in err
    code, _, err = command("ablate", vectors, "--preset", "cvpr2091", "--out", tmp_path / "other")
    assert code == 2 and "did you mean 'cvpr2019'" in err


def test_the_base_may_be_a_file(command: Run, vectors: Path, tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(
        f"source: {{data: {vectors}}}\nmodel: {{num_learners: 2, embedding_dim: 4, method: masks}}\n"
        "train: {epochs: 1, batch_size: 8, images_per_class: 2, workers: 0, seed: 5}\n"
    )
    out = tmp_path / "out"
    code, _, err = command("ablate", "--config", file, "--methods", "slices", "--seeds", 0, "--lr", 0.5, "--out", out)
    assert code == 0, err
    settings = json.loads((out / "results.json").read_text())["settings"]
    assert settings["base"]["model"]["embedding_dim"] == 4
    assert settings["base"]["train"]["lr"] == 0.5
    assert settings["seeds"] == [0]
    file.write_text("init: runs/first\n")
    code, _, err = command("ablate", vectors, "--config", file, "--out", tmp_path / "other")
    assert code == 2
    assert "base.yaml line 1: this command takes no init; leave it out of the file" in err


def test_a_stop_says_how_to_resume(
    command: Run, vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    asked = ("ablate", vectors, "--methods", "single", "--seeds", "0", *SETTINGS, "--out", tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(ablation, "run", stops)
        code, _, err = command(*asked)
    assert code == 130
    assert f"stopped; finished runs are kept in {tmp_path / 'out'}. Run the same command again to resume" in err
    code, printed, err = command(*asked)
    assert code == 0, err
    assert "| single |" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "slcies"), "--methods: unknown arm 'slcies'; did you mean 'slices'"),
        (("--methods", ","), "--methods: is empty"),
        (("--seeds", "0,x"), "--seeds 0,x: expected whole numbers"),
        (("--seeds", "1,1"), "--seeds 1,1: list each seed once"),
        (("--method", "masks"), "--method is not a setting of the base: use --methods"),
        (("--seed", "3"), "--seed is not a setting of the base"),
        (("--no-validation",), "--validation is not a setting of the base"),
        (("--space", "none.yaml"), "none.yaml: there is no such file"),
        (("--folds", "13"), "too few for 13 folds"),
    ],
)
def test_what_cannot_be_is_one_line(
    command: Run, vectors: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    (tmp_path / "s.yaml").write_text("space:\n  train: {lr: [0.1]}\n")
    space = () if "--space" in arguments else ("--space", tmp_path / "s.yaml")
    code, printed, err = command("ablate", vectors, *SETTINGS, *space, *arguments, "--out", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert said in err
    assert not (tmp_path / "out").exists()


def test_out_and_results_are_needed(command: Run, vectors: Path, tmp_path: Path) -> None:
    code, _, err = command("ablate", vectors)
    assert code == 2
    assert "--out is missing" in err
    code, _, err = command("ablate", "--out", tmp_path)
    assert code == 2
    assert "there are no results of an ablation; pass data to start one" in err


def test_the_help_names_every_arm(command: Run) -> None:
    code, printed, _ = command("ablate", "--help")
    assert code == 0
    words = " ".join(printed.split())
    assert all(name in words for name in ARMS)


def test_a_setting_is_varied_by_its_flag_s_name(command: Run, vectors: Path, tmp_path: Path) -> None:
    asked = ("ablate", vectors, "--vary", "learners=1,2", "--seeds", "0", *SETTINGS, "--out", tmp_path / "out")
    code, printed, err = command(*asked)
    assert code == 0, err
    rows = [line.split(" | ")[0] for line in printed.splitlines() if line.startswith("| num_learners")]
    assert rows == ["| num_learners-1", "| num_learners-2"]
    assert "difference from num_learners-1" in printed
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert [run["method"] for run in runs] == ["num_learners-1", "num_learners-2"]
    assert command("ablate", "--out", tmp_path / "out") == (0, printed, "")
    for words, why in (("learners", "as in learners=1,2,4"), ("nothing=1,2", "unknown setting 'nothing'")):
        code, _, err = command("ablate", vectors, "--vary", words, "--out", tmp_path / "other")
        assert (code, "--vary" in err, why in err) == (2, True, True), err
