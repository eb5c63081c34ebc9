"""Vectors in place of images, all the way: trained on, judged, encoded, resumed, gone on from, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from divcon.data.readers.vectors import write_benchmark_vectors
from divcon.errors import ConfigError, DataError, RunError, WeightsError
from divcon.runs.display import NullDisplay
from divcon.runs.folder import RunFolder
from divcon.training import Phase

DIM = 12
TRAIN = dc.TrainConfig(epochs=5, batch_size=16, images_per_class=2, joint_epoch=3, finetune_epoch=4, workers=0)
CONFIG = dc.RunConfig(dc.ModelConfig(num_learners=2, embedding_dim=8), TRAIN, dc.DataConfig(validation_fraction=0.2))

Command = Callable[..., tuple[int, str, str]]


def clusters(classes: range, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten vectors a class: where the class is lies in a third of the dimensions, and noise as large in the others."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.array(classes), 10)
    centres = np.zeros((len(classes), DIM))
    centres[:, : DIM // 3] = rng.normal(size=(len(classes), DIM // 3))
    noise = rng.normal(size=(len(labels), DIM)) * np.where(np.arange(DIM) < DIM // 3, 0.3, 1.2)
    return (centres[labels - labels.min()] + noise).astype(np.float32), labels


@pytest.fixture(scope="module")
def data(few: Benchmark) -> Benchmark:
    """Vectors of 24 train and 24 test classes."""

    def of(images: LabeledSet, classes: range, seed: int) -> LabeledSet:
        vectors, labels = clusters(classes, seed)
        n = len(labels)
        rows = np.arange(n) + 1000 * seed
        paths = [f"{seed}/{i}.png" for i in range(n)]
        names = tuple(f"c{i:02d}" for i in range(48))
        return LabeledSet(labels, names, pa.array(paths), rows, "made", vectors=vectors)

    test = of(few.query, range(24, 48), 2)
    return Benchmark("made", of(few.train, range(24), 1), test, test)


@pytest.fixture(scope="module")
def parquet(data: Benchmark, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vectors") / "vectors.parquet"
    parts = {"train": data.train.vectors, "query": data.query.vectors}
    write_benchmark_vectors(path, data, parts)  # type: ignore[arg-type]
    return path


def model_of(seed: int = 0, backbone: str = "auto", **options: object) -> dc.EmbeddingModel:
    torch.manual_seed(seed)
    return dc.EmbeddingModel(backbone, 8, 2, vector_dim=DIM, **options)  # type: ignore[arg-type]


def weights(model: dc.EmbeddingModel) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def timeless(out: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in RunFolder(out).lines()]


# The model.


@pytest.mark.parametrize("backbone", ["none", "mlp"])
def test_features_are_the_vectors_at_scale_one_until_they_are_trained(data: Benchmark, backbone: str) -> None:
    model = model_of(backbone=backbone)
    assert model.num_features == DIM
    vectors = data.query.vectors
    assert vectors is not None
    expected = vectors / np.sqrt((vectors.astype(np.float64) ** 2).mean(1, keepdims=True))
    np.testing.assert_allclose(model.features(data.query, batch_size=7), expected, rtol=1e-5, atol=1e-6)


def test_an_array_a_set_and_any_scale_of_the_vectors_give_the_same_embeddings(data: Benchmark) -> None:
    model = model_of(method="slices")
    embeddings = model.encode(data.query)
    assert embeddings.shape == (240, 8)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    vectors = data.query.vectors
    assert vectors is not None
    np.testing.assert_array_equal(model.encode(vectors), embeddings)
    np.testing.assert_allclose(model.encode(vectors.astype(np.float64) * 1000), embeddings, atol=1e-5)
    parts = [model.encode(vectors, learner=k) for k in range(2)]
    np.testing.assert_allclose(np.concatenate(parts, 1) / np.sqrt(2), embeddings, atol=1e-5)


def test_the_embedding_may_be_longer_than_the_vectors(data: Benchmark) -> None:
    model = dc.EmbeddingModel(embedding_dim=3 * DIM, num_learners=3, vector_dim=DIM)
    report = next(dc.train(model, data.train, TRAIN))
    assert report.division.num_learners == 3
    assert model.encode(data.query).shape == (240, 3 * DIM)


@pytest.mark.parametrize("backbone", ["none", "mlp"])
def test_saved_and_loaded_it_is_the_same(data: Benchmark, tmp_path: Path, backbone: str) -> None:
    model = model_of(backbone=backbone)
    list(dc.train(model, data.train, replace(TRAIN, epochs=1, joint_epoch=None, finetune_epoch=0)))
    model.save(tmp_path)
    again = dc.EmbeddingModel.load(tmp_path)
    assert (again.vector_dim, again.config) == (DIM, model.config)
    assert again.config["backbone"] == backbone
    assert "image_size" not in json.loads((tmp_path / "config.json").read_text())
    np.testing.assert_array_equal(again.encode(data.query), model.eval().encode(data.query))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vector_dim": 5}))
    with pytest.raises(WeightsError):
        dc.EmbeddingModel.load(tmp_path)


def test_going_on_from_another_model(data: Benchmark, tiny_model: Callable[..., dc.EmbeddingModel]) -> None:
    for backbone in ("none", "mlp"):
        other, mine = model_of(1, backbone), model_of(2, backbone)
        assert not same(weights(other), weights(mine))
        assert mine.warm_start(other)
        assert same(weights(other), weights(mine))
    with pytest.raises(ConfigError, match=r"backbone mlp, and this run none: use `backbone=mlp`"):
        model_of(backbone="none").warm_start(model_of(backbone="mlp"))
    with pytest.raises(ConfigError, match=r"takes vectors of 7 dimensions, and this data holds vectors of 12 dimen"):
        model_of().warm_start(dc.EmbeddingModel(vector_dim=7))
    with pytest.raises(ConfigError, match=r"takes images, and this data holds vectors of 12 dimensions"):
        model_of().warm_start(tiny_model())


def test_what_a_model_does_not_see_is_said_with_both_numbers(
    data: Benchmark, few: Benchmark, tiny_model: Callable[..., dc.EmbeddingModel]
) -> None:
    longer = dc.EmbeddingModel(vector_dim=DIM + 1, embedding_dim=8, num_learners=2)
    both = r"vectors have 12 dimensions, and the model takes vectors of 13"
    for use in (longer.features, longer.encode, lambda d: dc.evaluate(longer, d)):
        with pytest.raises(DataError, match=f"made: its {both}"):
            use(data.query)
    with pytest.raises(DataError, match=both):
        next(dc.train(longer, data.train, TRAIN))
    with pytest.raises(DataError, match="holds images, and the model takes vectors of 13"):
        longer.features(few.query)
    with pytest.raises(DataError, match="holds images, and the model takes vectors of 13"):
        next(dc.train(longer, few.train, TRAIN))
    images = tiny_model()
    with pytest.raises(DataError, match="holds vectors of 12 dimensions, and the model takes images"):
        images.features(data.query)
    with pytest.raises(DataError, match="holds vectors of 12 dimensions, and the model takes images"):
        next(dc.train(images, data.train, TRAIN))


def test_arrays_that_are_no_vectors_are_refused() -> None:
    model = model_of()
    for wrong in (np.zeros(DIM), np.zeros((2, 3, 5)), np.full((2, DIM), "a")):
        with pytest.raises(DataError, match=r"vectors come as \(N, F\) numbers"):
            model.encode(wrong)
    hole = np.zeros((3, DIM))
    hole[1, 4] = np.nan
    with pytest.raises(DataError, match=r"row 1: the vector has nan"):
        model.encode(hole)
    assert model.encode(np.zeros((0, DIM))).shape == (0, 8)


# Training.


@pytest.fixture(scope="module", params=[("none", "masks"), ("mlp", "masks"), ("none", "slices")], ids="-".join)
def straight(request: pytest.FixtureRequest, data: Benchmark) -> tuple[dict, dict[str, torch.Tensor], list]:
    made = dict(zip(("backbone", "method"), request.param, strict=True))
    model = model_of(**made)
    reports = list(dc.train(model, data.train, TRAIN))
    return made, weights(model), reports


def test_every_phase_trains(straight: tuple, data: Benchmark) -> None:
    made, after, reports = straight
    assert [r.phase for r in reports] == [*[Phase.SUBSPACE] * 3, Phase.JOINT, Phase.FINETUNE]
    assert [r.redivided for r in reports] == [True, False, True, False, True]
    for report in reports:
        assert sum(report.division.sizes) + report.division.num_left_out == len(data.train)
    before = weights(model_of(**made))
    unchanged = {name for name, value in after.items() if torch.equal(before[name], value)}
    assert unchanged == ({"head._extra_state"} if made["method"] == "masks" else set())  # the number of learners


@pytest.mark.heavy
def test_stopped_after_any_epoch_and_resumed_it_is_the_same_bit_for_bit(
    straight: tuple, data: Benchmark, tmp_path: Path
) -> None:
    made, expected, reports = straight
    for stop in (1, 2, 4):
        file = tmp_path / f"checkpoint{stop}"
        for _ in islice(dc.train(model_of(**made), data.train, TRAIN, checkpoint=file), stop + 1):
            pass
        again = model_of(7, **made)
        rest = list(dc.train(again, data.train, TRAIN, checkpoint=file))
        assert [r.number for r in rest] == list(range(stop, 5))
        assert same(weights(again), expected)
        assert [r.loss for r in rest] == [r.loss for r in reports[stop:]]


def test_other_vectors_are_other_data_to_a_checkpoint(data: Benchmark, tmp_path: Path) -> None:
    for _ in islice(dc.train(model_of(), data.train, TRAIN, checkpoint=tmp_path / "c"), 2):
        pass
    vectors = data.train.vectors
    assert vectors is not None
    changed = vectors.copy()
    changed[3, 5] += 0.25
    with pytest.raises(RunError, match="have changed since"):
        next(dc.train(model_of(), replace(data.train, vectors=changed), TRAIN, checkpoint=tmp_path / "c"))


def test_what_means_nothing_to_vectors_changes_nothing(straight: tuple, data: Benchmark) -> None:
    made, expected, _ = straight
    model = model_of(**made, image_size=17, pretrained=False)
    list(dc.train(model, data.train, replace(TRAIN, workers=2, crop_scale=0.5, flip=True, channels_last=False)))
    assert same(weights(model), expected)


@pytest.mark.parametrize("divide_by", ["image", "class", "random", "random-class"])
def test_every_way_to_divide_trains(data: Benchmark, divide_by: str) -> None:
    report = next(dc.train(model_of(), data.train, replace(TRAIN, divide_by=divide_by)))  # type: ignore[arg-type]
    assert len(report.division.sizes) == 2
    assert (report.kept_pairs == 1.0) == divide_by.endswith("class")


@pytest.mark.heavy
@pytest.mark.parametrize(("learners", "backbone"), [(1, "none"), (2, "none"), (2, "mlp")])
def test_it_learns_what_holds_for_classes_never_seen(data: Benchmark, learners: int, backbone: str) -> None:
    """Which dimensions tell classes apart is the same in train and test."""
    torch.manual_seed(0)
    model = dc.EmbeddingModel(backbone, 8, learners, vector_dim=DIM)
    list(dc.train(model, data.train, dc.TrainConfig(epochs=40, batch_size=40, head_lr=1e-2)))
    scores = dc.evaluate(model, data, clustering=False, parts=True)
    assert scores["recall_at_1"] > scores["features"]["recall_at_1"] + 0.05


def test_the_untrained_vectors_are_scored_by_their_cosines(data: Benchmark) -> None:
    vectors = data.query.vectors
    assert vectors is not None
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -2)
    expected = np.mean(data.query.labels[cosines.argmax(1)] == data.query.labels)
    for backbone in ("none", "mlp"):
        scores = dc.evaluate(model_of(backbone=backbone), data, parts=True)
        assert scores["features"]["recall_at_1"] == pytest.approx(expected)
        assert len(scores["learners"]) == 2
        assert scores["split_hash"] == data.split_hash


def test_nothing_has_to_be_decoded(data: Benchmark) -> None:
    from divcon.data.loading import only_decodable

    warned: list[str] = []
    kept = only_decodable(data, ("train", "query", "gallery"), dc.Context(on_warning=warned.append))
    assert kept.train is data.train
    assert kept.query is kept.gallery is data.query
    assert not warned


# Runs and the command line.


@pytest.mark.heavy
def test_a_run_keeps_the_backbone_s_real_name_and_goes_on_with_it(data: Benchmark, tmp_path: Path) -> None:
    class Stop(NullDisplay):
        def epoch(self, line: dict) -> None:
            if line["epoch"] == 2:
                raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        dc.run(data, out, CONFIG, display=Stop())
    record = json.loads((out / "config.json").read_text())
    assert record["model"]["backbone"] == "none"
    dc.run(data, out, CONFIG, resume=True)
    dc.run(data, tmp_path / "whole", replace(CONFIG, data=replace(CONFIG.data, on_bad_image="stop")))
    assert timeless(out) == timeless(tmp_path / "whole")
    mine, theirs = (dc.EmbeddingModel.load(path).state_dict() for path in (out, tmp_path / "whole"))
    assert same(mine, theirs)
    assert all("validation" in line for line in timeless(out))
    # Asked for by its own name, or by auto, it is the same run; another one is not.
    folder = RunFolder(out)
    for name in ("none", "auto"):
        asked = dc.RunConfig(dc.ModelConfig(backbone=name))
        assert folder.resumed(asked, explicit={"backbone"})[0].model.backbone == "none"
    with pytest.raises(RunError, match="`backbone` is none in the run, mlp now"):
        folder.resumed(dc.RunConfig(dc.ModelConfig(backbone="mlp")), explicit={"backbone"})
    with pytest.raises(RunError, match="`backbone` is none in the run, mlp now"):
        dc.run(data, out, replace(CONFIG, model=replace(CONFIG.model, backbone="mlp")), resume=True)


def test_skipping_bad_images_skips_no_vector(data: Benchmark, tmp_path: Path) -> None:
    config = replace(CONFIG, data=dc.DataConfig(validation=False, on_bad_image="skip"))
    dc.run(data, tmp_path / "run", replace(config, train=replace(TRAIN, epochs=1, joint_epoch=0, finetune_epoch=0)))
    line = timeless(tmp_path / "run")[0]
    assert sum(line["sizes"]) + line["left_out"] == len(data.train)


def test_backbones_and_weights_that_do_not_go_with_the_data_are_refused_before_anything_is_written(
    data: Benchmark, few: Benchmark, tmp_path: Path
) -> None:
    def run(benchmark: Benchmark, **model: object) -> None:
        dc.run(benchmark, tmp_path / "run", replace(CONFIG, model=replace(CONFIG.model, **model)))

    with pytest.raises(
        ConfigError, match=r"a timm model takes images, and the data holds vectors of 12 dim.*use none, mlp"
    ):
        run(data, backbone="test_resnet")
    for name in ("none", "mlp"):
        with pytest.raises(ConfigError, match=f"`backbone` {name} is for vectors, and the data holds images"):
            run(few, backbone=name)
    with pytest.raises(ConfigError, match=r"`weights`.*leave it out"):
        run(data, weights=Path("w.pth"))
    with pytest.raises(ConfigError, match=r"`embedding_dim` 2 cannot be divided among `num_learners` 3"):
        run(data, embedding_dim=2, num_learners=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.heavy
def test_from_the_command_line(parquet: Path, data: Benchmark, command: Command, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = [
        "--learners",
        2,
        "--dim",
        8,
        "--batch-size",
        16,
        "--images-per-class",
        2,
        "--epochs",
        3,
        "--embed",
        "head",
    ]
    code, _, err = command("train", parquet, "--out", out, *settings)
    assert code == 0, err
    assert "220 vectors (12 dimensions) of 22 classes to train on, 2 classes held out" in err
    assert "backbone none" in err
    code, _, err = command("train", "--out", out, "--resume", "--backbone", "auto")
    assert code == 0, err
    code, printed, err = command("evaluate", out, "--parts", "--json", tmp_path / "scores.json")
    assert code == 0, err
    assert "pooled features" in printed
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["split_hash"] == data.split_hash
    assert scores["num_queries"] == 240

    code, printed, err = command("encode", out, parquet, "--out", tmp_path / "encoded.parquet")
    assert code == 0, err
    table = pq.read_table(tmp_path / "encoded.parquet")
    assert len(table) == 480
    model = dc.EmbeddingModel.load(out)
    # Paths as they can be opened from here: below the parquet's folder.
    place = {"/".join(path.split("/")[-2:]): i for i, path in enumerate(table["path"].to_pylist())}
    rows = [place[path] for path in data.query.paths.to_pylist()]
    found = np.stack(table["embedding"].to_numpy())[rows]
    np.testing.assert_allclose(found, model.encode(data.query), atol=1e-6)
    labels = [table["label"][i].as_py() for i in rows]
    assert labels == [data.query.label_name(i) for i in range(len(rows))]

    # What was encoded are vectors too, of another length.
    code, _, err = command("encode", out, tmp_path / "encoded.parquet", "--out", tmp_path / "twice.parquet")
    assert code == 2
    assert "its vectors have 8 dimensions, and the model takes vectors of 12" in err
    code, _, err = command("evaluate", out, "demo")
    assert code == 2
    assert "holds images, and the model takes vectors of 12" in err
    code, _, err = command("train", parquet, "--out", tmp_path / "begun", "--init", out, *settings[4:8], *settings[8:])
    assert code == 0, err
    assert dc.EmbeddingModel.load(tmp_path / "begun").config == model.config


# divcon features.


@pytest.mark.heavy
def test_vectors_of_a_data_set_are_the_same_benchmark(image_folder: Path, command: Command, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = dc.EmbeddingModel("test_resnet", 8, 2, pretrained=False, image_size=32)
    torch.save(trained.backbone.state_dict(), tmp_path / "weights.pth")
    trained.save(tmp_path / "model")
    images = dc.read(image_folder)
    ways = (
        ["--backbone", "test_resnet", "--weights", tmp_path / "weights.pth", "--size", 32],
        ["--run", tmp_path / "model"],
    )
    for way in ways:
        out = tmp_path / "vectors.parquet"
        code, printed, err = command("features", image_folder, *way, "--out", out, "--workers", 0)
        assert code == 0, err
        assert "40 vectors of 96 dimensions" in printed
        assert f"divcon train {out}" in printed
        read = dc.read(out)
        assert read.split_hash == images.split_hash
        for mine, theirs in ((read.train, images.train), (read.query, images.query)):
            assert mine.paths.to_pylist() == theirs.paths.to_pylist()
            np.testing.assert_allclose(mine.vectors, trained.features(theirs), rtol=1e-4, atol=1e-5)
        assert read.query is read.gallery
        out.unlink()


def test_features_that_cannot_be_made_say_why_and_leave_nothing(
    image_folder: Path, parquet: Path, broken_png: Callable[[Path], None], command: Command, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    dc.EmbeddingModel("test_resnet", 8, pretrained=False, image_size=32).save(tmp_path / "model")
    out, model = tmp_path / "vectors.parquet", ["--run", tmp_path / "model", "--workers", 0]
    for arguments, message in (
        ([image_folder, *model, "--size", 32], "--size 32 does not go with --run"),
        ([image_folder, *model, "--backbone", "test_vit"], "--backbone test_vit does not go with --run"),
        ([image_folder, "--backbone", "mlp"], "--backbone mlp is for vectors"),
        ([image_folder, "--backbone", "test_resnt"], "did you mean"),
        ([parquet, *model], "holds vectors of 12 dimensions, and the model takes images"),
        ([tmp_path / "nothing", *model], "there is no such file or folder"),
    ):
        code, _, err = command("features", *arguments, "--out", out)
        assert (code, message in err) == (2, True), err
    code, _, err = command("features", image_folder, *model, "--out", tmp_path / "vectors.csv")
    assert code == 2
    assert "name that ends in .parquet" in err
    broken_png(image_folder / "class5" / "1.png")
    code, _, err = command("features", image_folder, *model, "--out", out)
    assert code == 2
    assert "class5/1.png" in err
    assert not list(tmp_path.glob("vectors*"))
    code, printed, err = command("features", image_folder, *model, "--out", out, "--on-bad-image", "skip")
    assert code == 0, err
    assert "39 vectors" in printed
