"""What the scripts in ``benchmarks/`` stand on. Their results are in docs/results."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

import divcon as dc
from divcon.division import Division

pytestmark = pytest.mark.heavy

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def beyond() -> ModuleType:
    return script("beyond")


def vectors() -> dc.LabeledSet:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(24), 8)
    made = rng.normal(size=(24, 12))[labels] + rng.normal(size=(len(labels), 12))
    rows = np.arange(len(labels))
    names, paths = tuple(map(str, range(24))), pa.array([str(row) for row in rows])
    return dc.LabeledSet(labels, names, paths, rows, "made", vectors=made.astype(np.float32))


@pytest.mark.parametrize("method", ["single", "slices", "masks"])
@pytest.mark.parametrize("by", ["image", "class", "none"])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_beyond_trains_what_divcon_trains_where_nothing_is_added(
    beyond: ModuleType, method: str, by: str, weight: float
) -> None:
    images = vectors()
    config = dc.TrainConfig(
        epochs=3,
        divide_by=by,
        joint_epoch=1,
        finetune_epoch=2,
        full_weight=weight,
        workers=0,
        **beyond.PLAIN | {"batch_size": 16},
    )
    states = []
    for train in (lambda m: dc.train(m, images, config), lambda m: beyond.train(m, images, config, beyond.Idea())):
        torch.manual_seed(0)
        learners = 1 if method == "single" else 4
        model = dc.EmbeddingModel("none", vector_dim=12, embedding_dim=8, method=method, num_learners=learners)
        list(train(model))
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_beyond_each_idea_changes_what_is_learned(beyond: ModuleType) -> None:
    images = vectors()
    config = dc.TrainConfig(epochs=3, finetune_epoch=2, workers=0, **beyond.PLAIN | {"batch_size": 32})
    ideas = {
        "none": {},
        "several": {"learners_per_step": 4},
        "two": {"clusters_each": 2},
        "beside": {"learners_weight": 1.0},
        "distilled": {"distil_weight": 10.0},
    }
    weights = {}
    for name, idea in ideas.items():
        torch.manual_seed(0)
        model = dc.EmbeddingModel("none", vector_dim=12, embedding_dim=8, method="slices", num_learners=4)
        list(beyond.train(model, images, config, beyond.Idea(**idea)))
        weights[name] = model.head.linear.weight.detach().numpy().tobytes()
    assert len(set(weights.values())) == len(ideas)


def test_beyond_two_nearest_clusters(beyond: ModuleType) -> None:
    features = np.array([[1, 0], [0.9, 0.5], [0, 1], [-1, 0.1]], np.float32)
    division = Division(np.array([0, 0, 1, 2]), np.array([[1, 0], [0, 1], [-1, 0]], np.float32))
    found = beyond.Overlapping.of(division, features, np.array([0, 0, 1, 2]), "image")
    assert [found.indices(k).tolist() for k in range(3)] == [[0, 1, 2], [0, 1, 2, 3], [3]]


def test_beyond_batches_of_several_learners(beyond: ModuleType) -> None:
    labels = np.repeat(np.arange(16), 4)
    division = Division(np.repeat([0, 1], 32), np.zeros((2, 1), np.float32))
    plan = beyond.plan_epoch(division, labels, batch_size=8, images_per_class=4, seed=0, epoch=0)
    joined, owners = beyond.parted(plan, 2)
    assert [len(batch.indices) for batch in joined.batches] == [16] * 4
    for batch, parts in zip(joined.batches, owners, strict=True):
        for learner, part in parts:
            assert np.isin(batch.indices[part], division.indices(learner)).all()


def test_characters_leaves_out_what_looks_like_an_earlier_one() -> None:
    pytest.importorskip("fontTools")
    same_looks = script("characters").same_looks
    fonts = [{"o": b"1", "ο": b"1", "a": b"2"}, {"o": b"3", "ο": b"3"}, {"o": b"4", "ο": b"5", "a": b"4"}, {"a": b"6"}]
    assert same_looks(fonts) == {"ο"}


def test_hardness_of_a_batch_is_that_of_its_pairs_one_by_one() -> None:
    hardness = script("hardness")
    labels = np.repeat(np.arange(20), 4)
    embeddings = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(1).normal(size=(80, 3))), dim=1)
    found = hardness.of_batches(embeddings, labels, Division.whole(labels), 0)  # one batch, of all images

    nearest, active, negatives, positives = [], 0, 0, []
    for i in range(80):
        cosines = [float(embeddings[i] @ embeddings[j]) for j in range(80)]
        others = [cosine for j, cosine in enumerate(cosines) if labels[j] != labels[i]]
        nearest.append(max(others))
        negatives += len(others)
        active += sum((2 - 2 * cosine) ** 0.5 < 1.2 + 0.2 for cosine in others)
        positives += [cosine for j, cosine in enumerate(cosines) if labels[j] == labels[i] and j != i]
    expected = {"nearest_negative": np.mean(nearest), "active": active / negatives, "positive": np.mean(positives)}
    assert found == pytest.approx(expected)


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return script("turns")


def test_contenders_take_turns_and_ratios_are_of_the_same_turn(turns: ModuleType, tmp_path: Path) -> None:
    """A script that says it took longer each time, and our contender twice as long as the other's first turn."""
    fake, log = tmp_path / "fake.py", tmp_path / "log"
    fake.write_text(
        "import json, sys\n"
        f"log = open({str(log)!r}, 'a+'); name = sys.argv[2]; print(name, *sys.argv[3:], file=log, flush=True)\n"
        "log.seek(0); turn = sum(line.split()[0] == name for line in log)\n"
        "seconds = {'ours': [2, 9, 3], 'theirs': [1, 3, 6]}[name][turn - 1]\n"
        "print('noise'); print(json.dumps(dict(seconds=seconds, peak_mb=turn, added_mb=0, found={'turn': turn})))\n"
    )
    contenders = {
        "ours": turns.Contender("divcon", "it", "ours"),
        "theirs": turns.Contender("numpy", "the same", "ours"),
    }
    runs = turns.alternate(str(fake), contenders, {"n": 7, "what": "x"}, 3)
    ours, theirs = turns.summed_up(contenders, runs)
    assert log.read_text().split("\n")[:-1] == ["ours --n 7 --what x", "theirs --n 7 --what x"] * 3
    assert (ours["median_seconds"], theirs["median_seconds"]) == (3, 3)
    assert (ours["ours_to_this"], theirs["ours_to_this"]) == (1, 2)  # of 2 / 1, 9 / 3 and 3 / 6
    assert theirs["peak_mb"] == 3
    assert f"| numpy {np.__version__} | the same | 3.00 | 1.00 – 6.00 | 2.00 | 3 | 0 |" in turns.table([ours, theirs])


def test_short_work_takes_its_turns_in_one_process(turns: ModuleType) -> None:
    contenders = {name: turns.Contender("divcon", name, "ours") for name in ("ours", "theirs")}
    done: list[str] = []
    works = {name: lambda name=name: done.append(name) for name in contenders}
    apart = {name: [{"seconds": 99.0, "peak_mb": 3, "added_mb": 1, "found": {}}] for name in contenders}
    runs = turns.alternate_closely(works, apart, 8)
    assert all(sorted(done[i : i + 2]) == ["ours", "theirs"] for i in range(0, 16, 2))
    assert len({tuple(done[i : i + 2]) for i in range(0, 16, 2)}) == 2
    rows = turns.summed_up(contenders, runs)
    assert [len(row["seconds"]) for row in rows] == [8, 8]
    assert max(rows[0]["seconds"]) < 99 and [row["peak_mb"] for row in rows] == [3, 3]


def test_what_is_not_installed_takes_no_part(turns: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert turns.installed(turns.Contender("numpy", "", ""))
    assert not turns.installed(turns.Contender("no-such-package", "", ""))
    assert "without no-such-package, which is not installed" in capsys.readouterr().err


def test_the_contenders_of_k_means_find_clusters_as_good(turns: ModuleType) -> None:
    kmeans = script("kmeans")
    inertias = [kmeans.prepare(name, n=600, dim=16, clusters=6, groups=6)()["inertia"] for name in kmeans.CONTENDERS]
    assert min(inertias) > 0.75 * max(inertias)


@pytest.mark.parametrize("queries", [0, 50])
def test_loops_in_python_recall_what_divcon_does(turns: ModuleType, queries: int) -> None:
    evaluate = script("evaluate")
    sizes = {"n": 400, "dim": 64, "classes": 80, "queries": queries}
    ours, loops = (evaluate.prepare(name, **sizes)() for name in ("divcon", "loops"))
    assert 0.1 < loops["recall@1"] < loops["recall@10"] < 1
    assert loops == {f"recall@{k}": pytest.approx(ours[f"recall_at_{k}"]) for k in (1, 10, 100)}


def test_all_who_embed_give_the_same_features(turns: ModuleType) -> None:
    embed = script("embed")
    found = {name: embed.prepare(name, "resnet18", 32, embed.BATCH + 40)() for name in embed.CONTENDERS}
    assert found["timm"]["std"] > 0
    for name, numbers in found.items():
        assert numbers == pytest.approx(found["timm"], rel=1e-3), name


def test_the_tables_of_speed_are_of_what_was_measured(turns: ModuleType, tmp_path: Path) -> None:
    speed = script("speed")
    assert speed.tables(tmp_path) == ""
    row = {"package": "p", "version": "1", "what": "it", "median_seconds": 2, "seconds": [1, 3], "ours_to_this": 0.5}
    turns.write(tmp_path / "speed-kmeans-32.json", "k-means", {}, 2, [{**row, "peak_mb": 7, "added_mb": 3}])
    told = speed.tables(tmp_path)
    assert told.startswith("    python benchmarks/kmeans.py --clusters 32\n\nk-means; ")
    assert "| p 1 | it | 2.00 | 1.00 – 3.00 | 0.50 | 7 | 3 |" in told


def test_the_panel_has_every_seed_of_every_arm() -> None:
    jobs = script("panel").panel(["demo", "tall"], ["single", "default"], [0, 2])
    assert jobs == [
        (name, arm, seed)
        for seed in (0, 2)
        for name in ("demo", "tall")
        for arm in ("pretrained", "single", "default")
        if seed == 0 or arm != "pretrained"
    ]
