"""The table and the picture, from invented results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from divcon.errors import ConfigError, RunError
from divcon.evaluation import bootstrap_runs_difference
from divcon.experiments import picture, score_table, table
from divcon.experiments.drawing import style
from divcon.experiments.results import _figure
from tests.experiments.conftest import texts_of


def run(arm: str, seed: int, scores: list[float], hits: list[int], **more: Any) -> dict[str, Any]:
    speed = {"single": 10, "slices": 20}.get(arm, 40)
    curve = [
        {"epoch": i, "images_seen": 100 * (i + 1), "seconds": float(speed * (i + 1)), "recall_at_1": score}
        for i, score in enumerate(scores)
    ]
    return {
        "method": arm,
        "seed": seed,
        "data": "made",
        "protocol": "leave-one-out",
        "split_hash": "0123",
        "machine": "one",
        "epochs": len(scores),
        "seconds": curve[-1]["seconds"],
        "seconds_dividing": 0.0 if arm == "single" else 5.0,
        "recall_at_1": sum(hits) / len(hits),
        "recall_at_1_last": scores[-1],
        "curve": curve,
        "hits": hits,
        "classes": [0, 0, 1, 1],
        **more,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    return {
        "settings": {"arms": {"slices": {}, "single": {}, "masks": {}}, "trials": 0, "folds": 0, "seeds": [0, 1]},
        "trials": [],
        "choices": {},
        "runs": [
            run("single", 0, [0.2, 0.5], [1, 0, 1, 0]),
            run("single", 1, [0.4, 0.5], [1, 1, 0, 0]),
            run("slices", 0, [0.5, 0.75], [1, 1, 1, 0]),
            run("slices", 1, [0.5, 0.75], [1, 1, 0, 1]),
            run("masks", 0, [0.1, 0.25], [1, 0, 0, 0]),
        ],
    }


def rows(text: str) -> dict[str, dict[str, str]]:
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}


def test_a_row_is_an_arm_against_the_reference(results: dict[str, Any]) -> None:
    text = table(results)
    cells = rows(text)
    assert list(cells) == ["slices", "single", "masks"]
    assert cells["single"] == {
        "arm": "single",
        "seed 0": "50.0",
        "seed 1": "50.0",
        "mean ± std": "50.0 ± 0.0",
        "difference from single [95 % interval]": "–",
        "after 20 s": "50.0",
        "images to single's end": "100 %",
        "seconds": "20",
        "of them dividing": "0 %",
    }
    assert cells["slices"]["mean ± std"] == "75.0 ± 0.0"
    assert cells["slices"]["difference from single [95 % interval]"].startswith("+25.0 [")
    assert cells["slices"]["after 20 s"] == "50.0"  # its first epoch
    assert cells["slices"]["images to single's end"] == "50 %"
    assert cells["slices"]["of them dividing"] == "12 %"
    assert cells["masks"]["seed 1"] == "–"  # still to come
    assert cells["masks"]["mean ± std"] == "25.0"
    assert cells["masks"]["difference from single [95 % interval]"].startswith("-25.0 [")
    assert cells["masks"]["after 20 s"] == "–"
    assert cells["masks"]["images to single's end"] == "–"
    assert "made (leave-one-out, split 0123, 4 queries of 2 classes), at the last epoch" in text


def test_what_no_training_gives_is_a_row_and_what_the_head_gives_a_column(results: dict[str, Any]) -> None:
    assert "pooled features" not in rows(table(results))["single"]
    results["untrained"] = {"of": "timm's resnet18", "recall_at_1": 0.125, "map_at_r": 0.1}
    for each, pooled in zip(results["runs"], (0.5, 0.75, 0.25, 0.5), strict=False):
        each["pooled_recall_at_1"] = pooled
    shown = rows(table(results))
    assert shown["pretrained features"]["mean ± std"] == "12.5"
    assert [shown[arm]["pooled features"] for arm in ("single", "slices", "masks")] == ["62.5", "37.5", "–"]


def test_arms_seeds_and_reference_are_what_is_asked_for(results: dict[str, Any]) -> None:
    cells = rows(table(results, arms=["masks", "slices"], seeds=[0], reference="slices"))
    assert list(cells) == ["masks", "slices"]
    assert "seed 1" not in cells["masks"]
    assert cells["masks"]["difference from slices [95 % interval]"].startswith("-50.0 [")


def test_chosen_epochs_are_shown_beside_the_last_one(results: dict[str, Any]) -> None:
    results["settings"] |= {"trials": 3, "folds": 2}
    results["runs"][2]["epochs"] = 1
    results["choices"] = {
        "slices": {"trial": 1, "settings": {"train": {"lr": 0.1, "loss": "MarginLoss"}}, "epochs": 1},
        "single": {"trial": 0, "settings": {}, "epochs": 2},
    }
    text = table(results)
    cells = rows(text)
    assert cells["slices"]["chosen"] == "lr 0.1, loss MarginLoss, 1 epoch"
    assert cells["single"]["chosen"] == "2 epochs"
    assert cells["slices"]["last epoch"] == "75.0"
    assert "at the chosen epoch" in text
    assert "up to 3 trials an arm on 2 folds" in text


def test_the_table_for_papers_has_all_scores_over_the_seeds(results: dict[str, Any]) -> None:
    for each in results["runs"]:
        hits = np.array(each["hits"]).reshape(2, 2).mean(1)
        each["scores"] = {"recall_at_1": each["recall_at_1"], "map_at_r": each["recall_at_1"] / 2, "nmi": 0.5}
        each["per_class"] = {"num": [2, 2], "recall_at_1": hits.tolist(), "map_at_r": (hits / 2).tolist()}
        each["images_seen"] = 200 if each["method"] == "single" else 300
    del results["runs"][-1]["scores"], results["runs"][-1]["per_class"]  # of an earlier version
    results["untrained"] = {"of": "x", "recall_at_1": 0.25, "map_at_r": 0.125}
    shown = score_table(results)
    assert [row.name for row in shown.rows] == ["pretrained features", "slices", "single", "masks"]
    assert [column.name for column in shown.columns] == ["recall_at_1", "map_at_r", "nmi"]
    untrained, slices, _, masks = shown.rows
    assert {name: cell.mean for name, cell in untrained.cells.items()} == {"recall_at_1": 0.25, "map_at_r": 0.125}
    assert list(masks.cells) == ["recall_at_1"] and masks.cells["recall_at_1"].mean == 0.25
    assert slices.cells["nmi"].interval is None and slices.num_runs == 2
    of_slices = [each["hits"] for each in results["runs"] if each["method"] == "slices"]
    expected = bootstrap_runs_difference(of_slices, np.zeros((2, 4)), [0, 0, 1, 1])
    assert slices.cells["recall_at_1"].interval == pytest.approx(expected)
    assert slices.cells["map_at_r"].interval == pytest.approx(np.array(expected) / 2)
    assert "The arms trained on 200 to 300 images" in shown.caption
    assert "4 queries of 2 classes" in shown.caption
    assert [row.name for row in score_table(results, arms=["masks"], seeds=[0]).rows[1:]] == ["masks"]


def test_runs_of_two_machines_are_reported_to_be(results: dict[str, Any]) -> None:
    assert "machines" not in table(results)
    results["runs"][0]["machine"] = "another"
    assert "2 machines, whose seconds do not compare: another; one" in table(results)


def test_nothing_to_tabulate_is_reported(results: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="none of the runs is done yet"):
        table(results, seeds=[7])


def test_the_picture_is_the_same_each_time_and_has_every_arm(results: dict[str, Any], tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png"):
        picture(results, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {arm} " in text for arm in ("slices", "single", "masks"))
    assert all(
        f"<!-- {word} -->" in text for word in ("images trained on, in thousands", "seconds of training and dividing")
    )


def test_lines_are_labelled_at_their_ends_with_their_scores_and_do_not_cover_each_other(
    results: dict[str, Any], tmp_path: Path
) -> None:
    # Twelve arms that end within a point of each other, and two that end at one score.
    arms = [f"an-arm-of-the-study-{i}" for i in range(12)]
    results["settings"]["arms"] = {name: {} for name in arms}
    scores = [0.5 + i / 1000 for i in range(11)] + [0.505]
    results["runs"] = [
        run(arm, seed, [0.2, score], [1, 0, 1, 0]) for arm, score in zip(arms, scores, strict=True) for seed in (0, 1)
    ]
    results["untrained"] = {"recall_at_1": 0.1, "of": "made"}
    texts = texts_of(_figure(results, None, None))
    for arm, score in zip(arms, scores, strict=True):
        assert texts.count(f"{arm} {100 * score:.1f}") == 2  # by images and by time
    assert "Recall@1 on the test classes, %" in texts
    assert {"images trained on, in thousands", "seconds of training and dividing"} <= set(texts)
    assert any(text.startswith("Recall@1 on test classes of made") for text in texts)
    about = next(text for text in texts if "4 queries in 2 classes" in text)
    assert "mean of 2 seeds; a band spans the seeds" in about.replace("\n", " ")
    assert texts.count("pretrained features: 10.0") == 2
    results["untrained"]["recall_at_1"] = 0.01
    for of in results["runs"]:
        of["curve"][0]["recall_at_1"] = 0.49
    assert texts_of(_figure(results, None, None)).count("pretrained features: 1.0, below this chart") == 2


def test_lines_differ_without_colors() -> None:
    styles = [style(i) for i in range(35)]
    assert len({(str(s["linestyle"]), s["marker"]) for s in styles}) == 35


def test_without_matplotlib_it_is_reported(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="pip install"):
        picture(results, tmp_path / "a.png")
