"""No command imports what it does not need: PyTorch alone takes longer than all that a mistake or a look-up needs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm

import divcon as dc
from divcon.cli.app import app
from divcon.errors import ConfigError
from divcon.models import names as model_names
from divcon.models.heads import methods
from divcon.training import names as training_names
from divcon.training.losses import loss_names
from divcon.training.miners import OWN_MINERS, miner_names

pytestmark = pytest.mark.heavy

SLOW = [
    *("torch", "torchvision", "timm", "pytorch_metric_learning", "sklearn", "scipy", "faiss", "lancedb", "psycopg"),
    *("fsspec", "s3fs", "aiohttp", "botocore"),
    *("matplotlib", "fastapi", "uvicorn", "onnxruntime", "onnxscript", "tensorboard"),
]
"""Packages that take long to import, and that neither help nor mistakes need."""
NEVER_FOR_HELP = [*SLOW, "numpy", "pyarrow"]

PROGRAM = """
import json, os, sys
from divcon.cli import main
results = []
for words in json.load(sys.stdin):
    code = 0
    try:
        main(words)
    except SystemExit as error:
        code = error.code
    results.append([code, sorted({name.partition(".")[0] for name in sys.modules})])
json.dump(results, open(sys.argv[1], "w"))
"""

WRONG = {
    "train": [
        "",
        "/nope --out OUT",
        "PHOTOS",
        "PHOTOS --out PHOTOS",
        "PHOTOS --out OUT --epochs -1",
        "PHOTOS --out OUT --epochs many",
        "PHOTOS --out OUT --nope",
        "PHOTOS --out OUT --method slcies",
        "PHOTOS --out OUT --backbone rensnet50",
        "PHOTOS --out OUT --loss TripletLoss",
        "PHOTOS --out OUT --miner HardMiner",
        "PHOTOS --out OUT --weights /nope.pth",
        "PHOTOS --out OUT --init /nope",
        "PHOTOS --out OUT --config /nope.yaml",
        "PHOTOS --out OUT --preset nope",
        "PHOTOS --out OUT --like /nope",
        "PHOTOS --out OUT --label-column nope",
        "--out OUT --resume",
    ],
    "evaluate": [
        "",
        "/nope",
        "RUN",
        "RUN /nope",
        "RUN PHOTOS --json /dev/null/scores.json",
        "RUN PHOTOS --per-class OUT.txt",
        "RUN PHOTOS --rerank-k1 3",
        "RUN PHOTOS --rerank --rerank-weight 2",
        "RUN PHOTOS --metric nope",
        "RUN PHOTOS --device gpu",
        "RUN PHOTOS --on-bad-image ignore",
    ],
    "encode": [
        "/nope PHOTOS --out OUT.parquet",
        "RUN /nope --out OUT.parquet",
        "RUN PHOTOS",
        "RUN PHOTOS --out OUT.txt",
        "RUN PHOTOS --out OUT.parquet --learner 9",
    ],
    "compare": [
        "/nope /nowhere",
        "RUN",
        "RUN RUN",
        "RUN /nope",
        "RUN /nope --metric nope",
        "RUN /nope --json /dev/null/x",
        "RUN /nope --table OUT.pdf",
    ],
    "curves": [
        "",
        "/nope --out OUT.png",
        "RUN --out OUT.txt",
        "RUN RUN --out OUT.png",
        "RUN --out /dev/null/curves.png",
    ],
    "report": [
        "/nope",
        "RUN",
        "RUN --scores /nope",
        "RUN --scores /nope --evaluate",
        "RUN --metric nope",
        "RUN --out /dev/null/report.html",
    ],
    "map": [
        "",
        "/nope --out OUT.png",
        "RUN --out OUT.txt",
        "RUN --out OUT.png --by nope",
        "RUN --out OUT.png --colour nope",
        "RUN --out OUT.png --compare /nope",
        "RUN --out /dev/null/map.png",
        "RUN /nope --out OUT.png",
    ],
    "export": [
        "/nope --out OUT.onnx",
        "RUN --out OUT.txt",
        "RUN --out OUT --format tf",
        "RUN --out OUT.onnx --learner 9",
        "RUN --out OUT --format hf --scores /nope",
        "RUN --out RUN --format hf",
    ],
    "prune": [
        "/nope --dims 2 --out OUT",
        "RUN --dims 2 --out RUN",
        "RUN --out OUT",
        "RUN --dims 0 --out OUT",
        "RUN --dims 999 --out OUT",
        "RUN --dims 2 --out OUT --by nope",
        "RUN --dims 2 --out OUT --by features",
        "RUN /nope --dims 2 --out OUT",
    ],
    "index": [
        "",
        "/nope PHOTOS",
        "RUN",
        "RUN /nope",
        "RUN --stream /nope",
        "RUN PHOTOS --store mysql://here/there",
        "RUN PHOTOS --column-type price",
        "RUN PHOTOS --column-type price=euros",
        "RUN PHOTOS --shard 1/2",
        "RUN PHOTOS --parts OUT --shard 3/2",
        "RUN PHOTOS --parts OUT --delete-missing",
        "RUN PHOTOS --ann-from 0",
        "/nope --backbone test_resnet",
        "PHOTOS --backbone rensnet50 --store OUT",
        "--info /nope",
        "--check /nope",
        "--info RUN --store OUT",
        "--change-types /nope --column-type price=int",
        "--change-types RUN",
        "--load /nope --store OUT",
        "--load /nope",
    ],
    "similar": [
        "",
        "/nope",
        "PHOTOS --store OUT --backbone rensnet50",
        "PHOTOS --store OUT --weights /nope.pth",
        "PHOTOS --store OUT --size x",
        "PHOTOS --store OUT --query /nope.png",
    ],
    "search": [
        "",
        "/nope QUERY",
        "RUN /nope.png",
        "RUN QUERY --k 0",
        "RUN QUERY --min-score 3",
        "RUN QUERY --where nope=1",
        "RUN QUERY --model /nope",
    ],
    "serve": [
        "/nope",
        "RUN --scores /nope",
        "RUN --run /nope",
        "RUN --token short",
        "RUN --port 0",
        "RUN --upload-mb 0",
        "RUN --compare /nope",
        "RUN --model /nope",
    ],
    "check": [
        "/nope",
        "PHOTOS --size 32",
        "PHOTOS --json /dev/null/x.json",
        "PHOTOS --fix OUT.txt",
        "PHOTOS --show-augmented OUT.txt",
        "PHOTOS --show-augmented OUT.png --config /nope.yaml",
        "PHOTOS --show-augmented OUT.png --size -1",
    ],
    "features": [
        "/nope --out OUT.parquet",
        "PHOTOS --out OUT.txt",
        "PHOTOS --out OUT.parquet --backbone rensnet50",
        "PHOTOS --out OUT.parquet --run /nope",
        "PHOTOS --out OUT.parquet --run RUN --size 32",
        "PHOTOS --out OUT.parquet --weights /nope.pth",
        "PHOTOS --out OUT.parquet --size x",
        "PHOTOS --out OUT.parquet --text-model all-MiniLM-L6-v2",
        "PHOTOS --out OUT.parquet --text title --size 32",
    ],
    "pack": [
        "/nope --out OUT",
        "PHOTOS",
        "PHOTOS --out QUERY",
        "PHOTOS --out OUT --quality 0",
        "PHOTOS --out OUT --short-side 0",
    ],
    "ablate": [
        "PHOTOS --out OUT --table OUT.pdf",
        "PHOTOS --out OUT --preset nope",
        "PHOTOS",
        "--out OUT",
        "/nope --out OUT",
        "PHOTOS --out QUERY",
        "PHOTOS --out OUT --methods nope",
        "PHOTOS --out OUT --space /nope.yaml",
        "PHOTOS --out OUT --trials 0",
        "PHOTOS --out OUT --folds 1",
        "PHOTOS --out OUT --seeds one",
        "PHOTOS --out OUT --reference nope",
        "PHOTOS --out OUT --backbone rensnet50",
    ],
    "reproduce": [
        "cub /nope --out OUT",
        "nope /nope --out OUT",
        "cub PHOTOS --out OUT",
        "cub PHOTOS --out PHOTOS",
        "cub PHOTOS --out OUT --fraction 2",
        "cub PHOTOS --out OUT --preset nope",
        "cub PHOTOS --out OUT --json /dev/null/x.json",
    ],
    "demo": ["--epochs -1", "--out QUERY"],
    "completion": ["", "powershell"],
}
"""Mistyped paths, wrong values and arguments that do not go together, by command; a new command adds its own."""

FINE = {
    "index --info RUN": [],
    "index --check RUN": [],
    "search RUN INDEXED": [],
    "search RUN INDEXED --k 3 --json --where label!=nope": [],
    "search RUN 3.png INDEXED": [],
}
"""What is answered from the store alone, and what of `SLOW` it needs."""


def commands() -> list[str]:
    return [name for name in app.resolved_commands() if not name.startswith("-")]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, few: dc.Benchmark) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("speed")
    for i in range(12):
        path = folder / "photos" / f"class {i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        few.train.open(i).save(path)
    few.train.open(12).save(folder / "query.png")
    model = dc.EmbeddingModel("test_resnet", embedding_dim=8, num_learners=2, pretrained=False, image_size=32)
    model.save(folder / "run")
    dc.Index.build(folder / "run", folder / "photos")
    names = {"RUN": "run", "PHOTOS": "photos", "QUERY": "query.png", "OUT": "out", "INDEXED": "photos/class 0/3.png"}
    return {name: str(folder / path) for name, path in names.items()}


def outcomes(lines: list[str], paths: dict[str, str], folder: Path) -> list[tuple[int, set[str]]]:
    """The exit code of each command line, run one after the other in one process, and the packages imported by then."""

    def put(word: str) -> str:
        name = word.partition(".")[0]
        return paths[name] + word.removeprefix(name) if name in paths else word

    words = [[put(word) for word in line.split()] for line in lines]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder / "outcomes.json")],
        input=json.dumps(words),
        cwd=Path(paths["INDEXED"]).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [(code, set(modules)) for code, modules in json.loads((folder / "outcomes.json").read_text())]


def test_help_and_mistakes_and_look_ups_import_no_pytorch(paths: dict[str, str], tmp_path: Path) -> None:
    assert sorted(WRONG) == sorted(commands())
    helps = ["--help", *(f"{name} --help" for name in commands())]
    mistakes = [f"{name} {rest}" for name, lines in WRONG.items() for rest in lines]
    lines = [*helps, *mistakes, *FINE]
    imported: set[str] = set()
    problems = []
    for line, (code, modules) in zip(lines, outcomes(lines, paths, tmp_path), strict=True):
        new = modules - imported
        imported |= modules
        # A missing command line word is cyclopts' error, whose code is 1.
        right = code == 0 if line in helps or line in FINE else code in (1, 2)
        slow = new.intersection(NEVER_FOR_HELP if line in helps else SLOW)
        if slow or not right:
            problems.append((line, code, sorted(slow)))
    assert not problems


def test_what_does_need_pytorch_is_seen_to(paths: dict[str, str], tmp_path: Path) -> None:
    (code, modules), *_ = outcomes(["search RUN QUERY"], paths, tmp_path)
    assert code == 0
    assert {"torch", "timm"} <= modules
    assert not modules.intersection({"lancedb", "sklearn", "pytorch_metric_learning", "fastapi", "matplotlib"})


def test_a_vector_model_needs_neither_timm_nor_torchvision(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np, divcon as dc\n"
        "model = dc.EmbeddingModel('none', 4, vector_dim=6)\n"
        "model.encode(np.ones((3, 6), np.float32))\n"
        "assert 'torch' in sys.modules\n"
        "assert not {'timm', 'torchvision', 'torch._dynamo', 'sklearn', 'lancedb'}.intersection(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_names_that_are_known_without_an_import_are_those_of_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    in_source, old, _ = model_names._backbones_in_source()
    assert in_source == set(timm.list_models())
    assert old
    assert all(timm.is_model(name) for name in old)
    assert training_names._exported("losses") - training_names.REFUSED.keys() == set(loss_names())
    miners = training_names._exported("miners") - training_names.NO_MINERS
    assert miners | {"auto", "none", *training_names.OWN_MINERS} == set(miner_names())
    assert tuple(OWN_MINERS) == training_names.OWN_MINERS
    built_in = {name for name, kind in methods().items() if kind.__module__.startswith("divcon.")}
    assert built_in == set(model_names.METHODS)
    # Names that other packages' sources do not show are left to their own registry.
    monkeypatch.setattr(model_names, "_backbones_in_source", lambda: (frozenset(), frozenset(), ()))
    without = {name: module for name, module in sys.modules.items() if name != "timm"}
    monkeypatch.setattr(model_names.sys, "modules", without)
    model_names.check_backbone_name("of_another_version")


@pytest.mark.parametrize(
    ("model", "train", "field"),
    [
        ({"method": "slcies"}, {}, "method"),
        ({"backbone": "rensnet50"}, {}, "backbone"),
        ({}, {"loss": "TripletLoss"}, "loss"),
        ({}, {"loss": "ManifoldLoss"}, "loss"),
        ({}, {"miner": "HardMiner"}, "miner"),
    ],
)
def test_a_name_is_refused_as_where_it_is_used(model: dict[str, Any], train: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as refused:
        training_names.check_names(dc.ModelConfig(**model), dc.TrainConfig(**train))
    assert refused.value.field == field
    use: dict[str, Callable[[], Any]] = {
        "method": lambda: dc.EmbeddingModel("none", 4, 2, vector_dim=3, **model),
        "backbone": lambda: dc.EmbeddingModel(**model),
    }
    if field in use:
        with pytest.raises(ConfigError) as used:
            use[field]()
        assert str(used.value) == str(refused.value)
