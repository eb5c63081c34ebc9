"""``report.html``: what is in it, that it is true, and that it needs nothing beside itself."""

from __future__ import annotations

import base64
import io
import itertools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.errors import DataError, OutputError, RunError
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder, kept_epoch
from divcon.runs.report import add_test_scores, sections
from divcon.runs.report.html import page as page_of
from divcon.runs.report.sections import Contents, Note

Parse = Callable[[Path], Any]
TINY = dc.RunConfig(
    dc.ModelConfig(num_learners=2, embedding_dim=8, backbone="test_resnet", pretrained=False, image_size=32),
    dc.TrainConfig(epochs=1, batch_size=16, images_per_class=2, workers=0, finetune_epoch=1),
)


def lines_of(run: Path) -> list[dict]:
    return RunFolder(run).lines()


def name_of(cell: Any) -> str:
    """The key in JSON of the score of a row."""
    return cell.all("span")[0].attributes["title"]


def test_it_fetches_nothing_and_runs_nothing(report_run: Path, report_of: Any) -> None:
    for node in report_of.all():
        assert node.name not in {"script", "link", "iframe", "object", "embed", "base", "form", "use", "image"}
        for name, value in node.attributes.items():
            assert not name.startswith("on"), (node.name, name)
            if name in {"src", "href", "srcset", "action", "data", "poster", "background"}:
                assert value.startswith(("data:image/webp;base64,", "#")), value
    text = (report_run / "report.html").read_text()
    assert not re.search(r"https?:|url\(|@import", text)
    (policy,) = (node for node in report_of.all("meta") if "http-equiv" in node.attributes)
    assert policy.attributes["content"].startswith("default-src 'none'")
    assert len(text) < 1_000_000


def test_names_and_paths_that_are_html_are_text(report_of: Any, hostile: str) -> None:
    title = report_of.all("head")[0].all("title")[0]
    assert title.text == "Run the <b>run" == report_of.all("h1")[0].text
    assert not report_of.all("b")
    alts = [image.attributes["alt"] for image in report_of.section("learners").all("img")]
    assert alts
    assert all(alt.startswith(hostile) for alt in alts)
    assert all(image.attributes["title"].startswith(hostile) for image in report_of.section("learners").all("img"))
    assert all(label.text.startswith(hostile) for label in report_of.section("queries").all("span", class_="label"))


def test_it_can_be_read_without_seeing_it(report_of: Any) -> None:
    assert report_of.all("html")[0].attributes["lang"] == "en"
    assert len(report_of.all("h1")) == 1
    levels = [int(node.name[1]) for node in report_of.all() if re.fullmatch(r"h[1-6]", node.name)]
    assert all(deeper <= level + 1 for level, deeper in itertools.pairwise(levels))
    assert all(image.attributes["alt"].strip() for image in report_of.all("img"))
    for drawing in report_of.all("svg"):
        hidden = drawing.attributes.get("aria-hidden") == "true"
        assert hidden or (drawing.attributes["role"] == "img" and len(drawing.attributes["aria-label"]) > 20)
    for table in report_of.all("table"):
        assert table.all("caption")[0].text
        assert all(head.attributes["scope"] in {"col", "row"} for head in table.all("th"))
    for region in report_of.all(role="region"):
        assert region.attributes["aria-label"]
        assert region.attributes["tabindex"] == "0"
    ids = [node.attributes["id"] for node in report_of.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for link in report_of.all("a"):
        assert link.attributes["href"].removeprefix("#") in ids


def test_the_numbers_of_each_epoch_are_those_of_the_metrics(report_run: Path, report_of: Any) -> None:
    lines = lines_of(report_run)
    rows = report_of.rows("Numbers of each epoch")
    assert len(rows) == len(lines) == 5
    for row, line in zip(rows, lines, strict=True):
        epoch, phase, loss, each, full, recall, precision, pairs, *seconds = row
        assert epoch.numbers == [line["epoch"]]
        assert ("kept" in epoch.text) == (line["epoch"] == kept_epoch(lines))
        assert phase.text == line["phase"]
        assert loss.numbers == [line["loss"]]
        assert each.numbers == [value for value in line["learner_loss"] if value is not None]
        assert full.numbers == ([] if line["full_loss"] is None else [line["full_loss"]])
        assert recall.numbers == [line["validation"]["recall_at_1"]]
        assert recall.text == f"{100 * line['validation']['recall_at_1']:.1f}\u00a0%"
        assert precision.numbers == [line["validation"]["map_at_r"]]
        assert pairs.numbers == [line["kept_pairs"]]
        names = ("seconds_dividing", "seconds_training", "seconds_evaluating")
        assert [cell.numbers for cell in seconds] == [[line[name]] for name in names]
    assert {line["phase"] for line in lines} == {"subspace", "joint", "finetune"}


def test_scores_are_of_the_kept_model_with_protocol_and_hash(report_run: Path, report_of: Any) -> None:
    scores = json.loads((report_run / "baselines.json").read_text())  # as the kept model embeds
    rows = {name_of(row[0]): row[1:] for row in report_of.rows("Scores on validation classes")}
    assert set(rows) == {name for name, value in scores.items() if isinstance(value, float)}
    for name, (value, *_) in rows.items():
        assert value.numbers == [scores[name]]
        assert re.fullmatch(r"\d+\.\d\u00a0%", value.text)
    assert rows["recall_at_1"][-1].numbers == scores["recall_at_1_interval"]
    text = report_of.section("scores").text
    assert f"leave-one-out, split {scores['split_hash']}" in text
    assert "The run has not used the test classes" in text
    assert "divcon.report(run, data, scores=divcon.evaluate(model, data))" in text  # its data was passed from Python
    (headline,) = report_of.all("header")[0].all("li")[: len(report_of.all("ul", class_="headlines")[0].all("li"))]
    queries = [scores["num_queries"], scores["num_classes"]]
    assert headline.numbers == [scores["recall_at_1"], *queries, *scores["recall_at_1_interval"]]
    assert f"Recall@1 of {queries[0]} validation queries in {queries[1]} classes" in headline.text
    assert "training started from random weights" in headline.text  # so that there is nothing beside it
    assert "training started from random weights" in text


def test_it_says_what_the_run_was(report_run: Path, report_of: Any) -> None:
    record = json.loads((report_run / "config.json").read_text())
    section = report_of.section("run")
    facts = dict(zip([node.text for node in section.all("dt")], list(section.all("dd")), strict=True))
    first = lines_of(report_run)[0]
    held = first["validation"]
    classes = json.loads((report_run / "classes.json").read_text())
    assert facts["Trained on"].numbers == [sum(first["sizes"]) + first["left_out"], len(classes["train"])]
    assert facts["Validation"].numbers == [held["num_queries"], len(classes["validation"])]
    assert record["split_hash"] in facts["Test split"].text
    assert facts["Method"].text == "masks"
    assert facts["Learners (K)"].text == "3"
    assert facts["Dimensions (D)"].text == "18"
    assert facts["Backbone"].text == "test_resnet at 32 px, fit crop, pooling auto"
    assert facts["Epochs"].text == "5 of 5: 3 subspace, 1 joint, 1 finetune"
    assert facts["Machine"].text == record["machine"]
    assert all(f"{name} {number}" in facts["Versions"].text for name, number in record["versions"].items())


def test_settings_off_their_defaults_come_first_and_all_are_behind_a_fold(report_run: Path, report_of: Any) -> None:
    config = RunFolder(report_run).read()[0]
    changed, count = set(), 0
    for part in fields(config):
        ours = getattr(config, part.name)
        for setting in fields(ours):
            count += 1
            if getattr(ours, setting.name) != getattr(type(ours)(), setting.name):
                changed.add(setting.name)
    rows = report_of.rows("Settings that are not at their defaults")
    assert {row[0].text for row in rows} == changed
    assert {"num_learners", "image_size", "validation_fraction"} <= changed
    assert [cell.text for row in rows for cell in row if row[0].text == "num_learners"] == ["num_learners", "3", "0"]
    (folded,) = report_of.section("settings").all("details")
    assert len(folded.all("tbody")[0].all("tr")) == count


def test_divisions_and_the_flow_between_them(report_run: Path, report_of: Any) -> None:
    lines = [line for line in lines_of(report_run) if line["redivided"]]
    rows = report_of.rows("Divisions")
    assert [row[0].numbers for row in rows] == [[0], [2], [4]]
    for row, line in zip(rows, lines, strict=True):
        assert row[2].numbers == line["sizes"]
        assert row[3].numbers == [line["left_out"]]
        assert row[4].numbers == [line["kept_pairs"]]
        assert row[5].numbers == ([] if line["changed"] is None else [line["changed"]])
    first, second = (
        dc.Division.load(report_run / "divisions" / f"epoch_{epoch:04d}.safetensors").learner.tolist()
        for epoch in (0, 2)
    )
    names = ["learner 0", "learner 1", "learner 2", "left out"]
    expected = {
        f"epoch 0 {names[k]} to epoch 2 {names[j]}: {n:,} images"
        for k in range(-1, 3)
        for j in range(-1, 3)
        if (n := sum(a == k and b == j for a, b in zip(first, second, strict=True)))
    }
    titles = {band.text for band in report_of.section("division").all("path", class_="ribbon")}
    assert expected == {title for title in titles if title.startswith("epoch 0")}
    assert any(title.startswith("epoch 2 learner 0 to epoch 4 all together") for title in titles)


def test_sheets_show_images_of_the_learner(report_run: Path, report_of: Any, report_data: Benchmark) -> None:
    train = report_data.with_validation(0.3, 0).train
    division = dc.Division.load(report_run / "divisions" / "epoch_0002.safetensors")
    sheets = report_of.section("learners").all("ul", class_="sheet")
    assert len(sheets) == 3
    for learner, sheet in enumerate(sheets):
        shown = sheet.all("img")
        members = {train.path(i): i for i in division.indices(learner)}
        assert len(shown) == min(13, len(members)) == len({image.attributes["title"] for image in shown})
        for image in shown:
            index = members[image.attributes["title"]]
            assert image.attributes["alt"] == train.label_name(index)
        # The picture is that image: nearer to it than to any other of the sheet.
        decoded = [_pixels(image.attributes["src"]) for image in shown[:6]]
        originals = [_small(train.open(members[image.attributes["title"]])) for image in shown[:6]]
        apart = np.array([[np.abs(a - b).mean() for b in originals] for a in decoded])
        assert (np.diag(apart) < 6).all()
        assert (np.diag(apart) <= apart.min(axis=1) + 1e-9).all()


def _small(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((24, 24), Image.Resampling.BOX), np.float64)


def _pixels(source: str) -> np.ndarray:
    return _small(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))


def test_hits_and_misses_are_marked_by_word_and_by_class(report_of: Any) -> None:
    rows = report_of.section("queries").all("ol", class_="row")
    assert 2 <= len(rows) <= 12
    kinds = set()
    text = report_of.section("queries").text
    assert "cosine similarities" in text
    assert "distance" not in text
    assert len(re.findall(r"MAP@R \d+\.\d\u00a0%, \d+ to find", text)) == len(rows)
    for row in rows:
        query, *others = row.all("figure", class_="tile")
        label = query.all("span", class_="label")[0].text
        assert len(others) == 6
        similarities = [tile.numbers[0] for tile in others]
        assert similarities == sorted(similarities, reverse=True)
        assert -1 <= min(similarities) <= max(similarities) <= 1.001
        for tile in others:
            kind = tile.attributes["class"].removeprefix("tile ")
            kinds.add(kind)
            own = tile.all("span", class_="label")[0].text
            assert kind == ("hit" if own == label else "miss")
            assert tile.all("span", class_="mark")[0].text.startswith({"hit": "✓ hit", "miss": "✗ miss"}[kind])
            assert tile.all("img")[0].attributes["alt"] == f"{kind}: {own}"
    assert kinds == {"hit", "miss"}


def test_training_opens_no_test_image(few: Benchmark, tmp_path: Path, no_test_images: None) -> None:
    dc.run(few, tmp_path / "run", TINY)
    assert (tmp_path / "run" / "report.html").exists()
    with pytest.raises(AssertionError, match="a test image was opened"):
        dc.evaluate(dc.EmbeddingModel.load(tmp_path / "run"), few, clustering=False)


def test_written_again_it_is_the_same(report_run: Path, report_data: Benchmark, tmp_path: Path) -> None:
    path = dc.report(report_run, report_data, out=tmp_path / "again.html")
    assert path == tmp_path / "again.html"
    assert path.read_bytes() == (report_run / "report.html").read_bytes()


def test_scores_of_test_classes_are_in_it_where_they_are_passed(
    report_run: Path, report_data: Benchmark, few: Benchmark, tmp_path: Path, parse: Parse
) -> None:
    scores = dc.evaluate(dc.EmbeddingModel.load(report_run), few, parts=True)
    page = parse(dc.report(report_run, report_data, scores=scores, out=tmp_path / "r.html"))
    rows = {name_of(row[0]): row[1:] for row in page.rows("Scores on test classes")}
    means = {name for name, value in scores.items() if isinstance(value, float) and not name.endswith("_std")}
    assert set(rows) == means
    assert {name: cells[0].numbers[0] for name, cells in rows.items()} == {name: scores[name] for name in means}
    assert rows["nmi"][-1].numbers == [scores["nmi_std"]]
    alone = page.rows("Each learner alone, on test classes")
    assert [row[1].numbers[0] for row in alone[:3]] == [each["recall_at_1"] for each in scores["learners"]]
    assert [row[0].text for row in alone[3:]] == ["pooled features", "full embedding"]
    text = page.section("scores").text
    assert f"leave-one-out, split {few.split_hash}" in text
    assert "another split" not in text
    assert "The pretrained features were not scored on test classes" in text
    headline = page.all("header")[0].text
    assert f"Recall@1 of {scores['num_queries']} test queries in {scores['num_classes']} classes" in headline
    other = {**scores, "split_hash": "0" * 16}
    page = parse(dc.report(report_run, report_data, scores=other, out=tmp_path / "o.html"))
    assert "These scores are of another split than the run's own" in page.section("scores").text
    with pytest.raises(DataError, match=r"holds no split_hash; pass what divcon\.evaluate returned"):
        dc.report(report_run, report_data, scores={k: v for k, v in scores.items() if k != "split_hash"})


def test_vectors_are_reported_in_words(vectors_data: Benchmark, tmp_path: Path, parse: Parse) -> None:
    config = replace(TINY, model=dc.ModelConfig(num_learners=2, embedding_dim=8))
    dc.run(vectors_data, tmp_path / "run", config)
    page = parse(tmp_path / "run" / "report.html")
    assert not page.all("img")
    assert "vectors of" in page.section("run").text
    assert set(re.findall(r"sheet/\d+\.png", page.section("learners").text))
    assert page.section("queries").all("figure", class_="miss")


def test_a_report_that_cannot_be_written_loses_no_run(few: Benchmark, tmp_path: Path) -> None:
    warned: list[str] = []
    ended: list[int | None] = []

    class Hears(NullDisplay):
        def warn(self, message: str) -> None:
            warned.append(message)

        def epoch(self, line: dict[str, Any]) -> None:
            (tmp_path / "run" / "report.html").mkdir()  # where the file is to be

        def end(self, out: Path, kept_epoch: int | None) -> None:
            ended.append(kept_epoch)

    model = dc.run(few, tmp_path / "run", TINY, display=Hears())
    assert model.embedding_dim == 8
    assert ended == [0]
    (message,) = [message for message in warned if "no report" in message]
    assert re.match(r"no report was written \(OutputError\(.*report.html: .*the run is complete", message)
    assert len(lines_of(tmp_path / "run")) == 1
    dc.EmbeddingModel.load(tmp_path / "run")


def test_any_mistake_in_it_is_a_warning(few: Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr("divcon.runs.report.sections.curves", broken)
    dc.run(few, tmp_path / "run", TINY)
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.heavy
def test_where_the_data_is_gone_it_goes_on_without_pictures(
    image_folder: Path, tmp_path: Path, command: Callable, parse: Parse
) -> None:
    run = tmp_path / "run"
    small = ["--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--learners", 2, "--dim", 8]
    more = ["--batch-size", 8, "--epochs", 1, "--validation-fraction", 0.5, "--workers", 0, "--images-per-class", 2]
    code, _, err = command("train", image_folder, *small, *more, "--out", run)
    assert code == 0, err
    assert f"report in {run / 'report.html'}" in err
    whole = (run / "report.html").read_bytes()
    code, out, err = command("report", run, "--workers", 0)
    assert (code, out.strip()) == (0, f"report in {run / 'report.html'}"), err
    assert (run / "report.html").read_bytes() == whole

    code, _, err = command("report", run, "--evaluate", "--workers", 0)
    assert code == 0, err
    evaluated = {name_of(row[0]): row[1].numbers for row in parse(run / "report.html").rows("Scores on test classes")}
    in_page = (run / "report.html").read_bytes()
    code, _, err = command("evaluate", run, "--json", tmp_path / "scores.json", "--workers", 0)
    assert code == 0, err
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert evaluated["recall_at_1"] == [scores["recall_at_1"]]

    # What evaluate has put into the report is what the report shows when it is written again.
    assert f"the scores are in {run / 'report.html'} too" in err
    put = (run / "report.html").read_bytes()
    assert {name_of(row[0]) for row in parse(run / "report.html").rows("Scores on test classes")} >= {"nmi", "map_at_r"}
    assert put != in_page
    assert command("report", run, "--workers", 0)[0] == 0
    assert (run / "report.html").read_bytes() == put
    assert "per_query" not in json.loads((run / "test.json").read_text())

    moved = image_folder.rename(tmp_path / "moved")
    code, _, err = command("report", run, "--scores", tmp_path / "scores.json")
    assert code == 0
    assert "this report has no pictures" in err
    page = parse(run / "report.html")
    assert not page.all("img")
    assert "this report has no pictures" in page.section("warnings").text
    assert page.rows("Numbers of each epoch")
    assert page.rows("Scores on test classes")

    (run / "test.json").unlink()
    code, _, err = command("report", run, moved, "--workers", 0)
    assert code == 0, err
    assert (run / "report.html").read_bytes() == whole

    shutil.rmtree(moved / "class0")
    code, _, err = command("report", run, moved)
    assert code == 2
    assert "is not what" in err
    assert command("report", run, "--evaluate", "--scores", tmp_path / "scores.json")[0] == 2
    (tmp_path / "scores.json").write_text("[]")
    assert command("report", run, "--scores", tmp_path / "scores.json")[0] == 2


def test_what_is_no_run_is_reported(few: Benchmark, report_run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        dc.report(report_run / "model")
    with pytest.raises(RunError, match="holds no run"):
        dc.report(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="is a folder"):
        dc.report(report_run, out=tmp_path)
    shutil.copytree(report_run, tmp_path / "begun")
    (tmp_path / "begun" / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no epoch of this run is done yet"):
        dc.report(tmp_path / "begun")


def test_a_run_that_was_stopped_is_reported_as_far_as_it_is(
    report_run: Path, report_data: Benchmark, tmp_path: Path, parse: Parse
) -> None:
    out = tmp_path / "run"
    shutil.copytree(report_run, out)
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:2]))
    (out / "divisions" / "epoch_0000.safetensors").write_bytes(b"broken")
    shutil.rmtree(out / "model")
    page = parse(dc.report(out, report_data))
    assert "Not done: 2 of 5 epochs." in page.all("header")[0].text
    warnings = page.section("warnings").text
    assert "epoch_0000.safetensors: this division cannot be read" in warnings
    assert "the best and worst queries are left out" in warnings
    assert len(page.rows("Numbers of each epoch")) == 2


def test_images_left_out_are_in_the_notes(
    image_folder: Path, broken_png: Callable[[Path], None], tmp_path: Path, parse: Parse
) -> None:
    broken_png(image_folder / "class0" / "0.png")
    config = replace(TINY, data=dc.DataConfig(validation=False, on_bad_image="skip"))
    dc.run(dc.read(image_folder), tmp_path / "run", config)
    page = parse(tmp_path / "run" / "report.html")
    assert "class0/0.png" in page.section("warnings").text
    assert "No validation classes were scored" in page.section("scores").text


def test_a_warning_of_several_epochs_is_reported_once(report_run: Path) -> None:
    contents = Contents.of(RunFolder(report_run))
    warnings = [["a", "b"], ["a"], ["a"], [], ["a"]]
    lines = [{**line, "warnings": words} for line, words in zip(contents.lines, warnings, strict=True)]
    notes = sections.notes_of(replace(contents, lines=lines), ["first", "first"])
    assert "learners are one" in notes.pop(len(contents.selection_notes)).text  # masks that start at one
    own = [Note(text) for text in contents.selection_notes]
    assert notes == [*own, Note("first", 2), Note("a", 4, "0 to 2, 4"), Note("b", 1, "0")]
    assert "validation queries are too few" in contents.selection_notes[0]
    many = sections.warnings([Note(f"note {i}") for i in range(100)])
    assert many.count("<tr>") == 41
    assert "And 60 more" in many


def test_a_note_of_63_epochs_is_one_row(report_run: Path, parse: Parse, tmp_path: Path) -> None:
    contents = Contents.of(RunFolder(report_run))
    said = [f"learner {k} has batches of {30 + epoch} images, `batch_size` 80" for epoch in range(63) for k in (0, 2)]
    lines = [{**contents.lines[0], "epoch": i, "warnings": said[2 * i - 2 : 2 * i]} for i in range(1, 64)]
    notes = sections.notes_of(replace(contents, lines=lines), [])
    (tmp_path / "n.html").write_text(page_of("t", [("w", "Notes", sections.warnings(notes))], ""))
    times, epochs, text = parse(tmp_path / "n.html").rows("Warnings and notes of the run")[-1]
    assert times.numbers == [126]
    assert times.text == "126\u00a0×"
    assert epochs.text == "1 to 63"
    assert text.text == "learner 0 has batches of 30 images, batch_size 80; of learners 0, 2"
    assert [code.text for code in text.all("code")] == ["batch_size"]


@pytest.fixture(scope="module")
def with_baselines(report_run: Path, report_data: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That run, as if it had started from pretrained weights."""
    out = tmp_path_factory.mktemp("baselines") / "run"
    shutil.copytree(report_run, out)
    scores = json.loads((out / "baselines.json").read_text())
    scores["baselines"] = {"pretrained_features": baseline_of(scores), **scores["baselines"]}
    (out / "baselines.json").write_text(json.dumps(scores))
    return out


def baseline_of(scores: dict[str, Any]) -> dict[str, Any]:
    lower = {name: value / 2 for name, value in scores.items() if isinstance(value, float)}
    difference = {name: {"value": lower[name], "interval": [-0.1, 0.9]} for name in ("recall_at_1", "map_at_r")}
    return {**lower, "of": "timm's made", "recall_at_1_interval": [0.0, 1.0], "difference": difference}


def test_the_pretrained_features_are_beside_every_score(
    with_baselines: Path, report_data: Benchmark, few: Benchmark, tmp_path: Path, parse: Parse
) -> None:
    test = dc.evaluate(dc.EmbeddingModel.load(with_baselines), few, parts=True)
    test["baselines"] = {"pretrained_features": {**baseline_of(test)}}
    del test["baselines"]["pretrained_features"]["nmi"]
    page = parse(dc.report(with_baselines, report_data, scores=test, out=tmp_path / "r.html"))
    validation = json.loads((with_baselines / "baselines.json").read_text())
    for caption, scores in (("Scores on validation classes", validation), ("Scores on test classes", test)):
        pretrained = scores["baselines"]["pretrained_features"]
        for row in page.rows(caption):
            name, cells = name_of(row[0]), row[1:]
            if name == "nmi":
                assert [cell.text for cell in cells[1:3]] == ["–", "–"]
                continue
            assert cells[0].numbers == [scores[name]]
            assert cells[1].numbers == [pretrained[name]]
            assert cells[2].numbers[0] == pytest.approx(scores[name] - pretrained[name])
            assert len(cells[2].numbers) == (3 if name in ("recall_at_1", "map_at_r") else 1)
    for headline, scores in zip(page.all("header")[0].all("li")[:2], (validation, test), strict=True):
        pretrained = f"{50 * scores['recall_at_1']:.1f}\u00a0%"
        assert f"Pretrained features, before training: {pretrained}; training adds +" in headline.text
    alone = page.rows("Each learner alone, on test classes")
    assert [row[0].text for row in alone[-2:]] == ["full embedding", "pretrained features"]
    assert page.rows("Embeddings on validation classes")[-1][0].text == "pretrained features"
    curves = page.section("curves")
    assert "Pretrained features, before training: Recall@1" in curves.text
    assert {"Recall@1 before", "MAP@R before"} <= {text.text for text in curves.all("text", class_="end")}


def test_scores_of_a_model_that_is_not_kept_any_more_are_not_shown(
    report_run: Path, report_data: Benchmark, few: Benchmark, tmp_path: Path, parse: Parse
) -> None:
    out = tmp_path / "run"
    shutil.copytree(report_run, out)
    scores = dc.evaluate(dc.EmbeddingModel.load(out), few, clustering=False, per_query=True)
    assert add_test_scores(out, {**scores, "split_hash": "0" * 16}) is None
    assert not (out / "test.json").exists()
    before = parse(out / "report.html")
    assert add_test_scores(out, scores) == out / "report.html"
    page = parse(out / "report.html")
    assert page.rows("Scores on test classes")
    for anchor in ("run", "curves", "division", "learners", "queries", "settings", "warnings"):
        assert page.section(anchor) == before.section(anchor)  # nothing else has changed
    again = parse(dc.report(out, report_data))
    assert again.section("scores") == page.section("scores")
    assert again.all("ul", class_="headlines") == page.all("ul", class_="headlines")
    kept = json.loads((out / "test.json").read_text())
    (out / "test.json").write_text(json.dumps({**kept, "epoch": kept["epoch"] + 1}))
    assert "The run has not used the test classes" in parse(dc.report(out, report_data)).section("scores").text
    # A report of another version is left as it is.
    (out / "report.html").write_text("<html></html>")
    assert add_test_scores(out, scores) is None
    assert (out / "report.html").read_text() == "<html></html>"


@pytest.mark.parametrize("name", ["run-stopped", "run-between", "run-stopped-hierarchy"])
def test_a_run_of_an_earlier_version_has_a_report(name: str, tmp_path: Path, parse: Parse) -> None:
    before = Path(__file__).parents[1] / "before"
    out = tmp_path / name
    shutil.copytree(before / name, out)
    record = json.loads((out / "config.json").read_text())
    record["source"]["data"] = str(before / "data.parquet")
    (out / "config.json").write_text(json.dumps(record))
    page = parse(dc.report(out))
    assert page.rows("Numbers of each epoch")
    text = page.section("scores").text
    assert "The pretrained features were not scored on validation classes" in text
    assert f"divcon evaluate {out}" in text


def test_a_run_that_chose_its_epoch_over_folds_has_the_scores_of_the_folds(
    report_run: Path, parse: Parse, tmp_path: Path
) -> None:
    contents = Contents.of(RunFolder(report_run))
    lines = [{**line, "kept": line["epoch"] == 3} for line in contents.lines]
    for line in lines:
        del line["validation"]
    curve = [{"epoch": e, "recall_at_1": 0.5 + e / 100, "map_at_r": 0.25, "trains_full": True} for e in range(5)]
    folds = {"epoch": 3, "select_by": "map_at_r", "folds": 4, "num_queries": 1234, "curve": curve}
    shown = sections.scores(replace(contents, lines=lines, over_folds=folds), None)
    (tmp_path / "f.html").write_text(page_of("t", [("scores", "Scores", shown)], ""))
    text = parse(tmp_path / "f.html").section("scores").text
    assert "Mean over 4 folds of the train classes, 1,234 queries: Recall@1 53.0\u00a0%; MAP@R 25.0\u00a0%" in text
    assert "Epoch 3 is kept" in text
