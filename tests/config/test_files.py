"""Settings in files: three formats that say the same, lines that are the right ones, mistakes that are named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from divcon.config.augment import read_augment
from divcon.config.files import as_yaml, read_config_file
from divcon.config.image_size import height_width
from divcon.config.memory_size import read_memory_size
from divcon.config.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from divcon.errors import ConfigError

YAML = """\
source: {data: photos, root: null}
model:
  weights: ../w.safetensors  # below the folder above this file's
  head_options:
    kind: fixed
train:
  epochs: 12
  lr: 1e-4
  head_lr: 1
  finetune_epoch: null
  loss_options: {margin: 0.1, n: 3, f: 3.0, on: true, text: "3", word: yes}
  flip: false
data:
"""
TOML = """\
[source]
data = "photos"

[model]
weights = "../w.safetensors"
head_options.kind = 'fixed'

[train]
epochs = 12
lr = 1e-4
head_lr = 1
flip = false
  [train.loss_options]  # a table of its own
  margin = 0.1
  n = 3
  f = 3.0
  on = true
  text = "3"
  "word" = "yes"
"""
AS_JSON = {
    "source": {"data": "photos", "root": None},
    "model": {"weights": "../w.safetensors", "head_options": {"kind": "fixed"}},
    "train": {
        "epochs": 12,
        "lr": 0.0001,
        "head_lr": 1,
        "finetune_epoch": None,
        "loss_options": {"margin": 0.1, "n": 3, "f": 3.0, "on": True, "text": "3", "word": "yes"},
        "flip": False,
    },
}

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
option_values = st.one_of(
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False),
    any_text,
    st.sampled_from(["1e-4", "yes"]),
)
options = st.dictionaries(any_text, option_values, max_size=3)
positive = st.floats(0, 1e6)


@st.composite
def run_configs(draw: st.DrawFn) -> RunConfig:
    """Any settings that keep the bounds."""
    learners, per_class, epochs = draw(st.integers(1, 8)), draw(st.integers(2, 5)), draw(st.integers(1, 50))
    finetune = draw(st.none() | st.integers(epochs, epochs + 5))
    return RunConfig(
        ModelConfig(
            method=draw(any_text),
            num_learners=learners,
            embedding_dim=learners + draw(st.integers(0, 9)),
            head_options=draw(options),
            backbone=draw(any_text),
            pretrained=draw(st.booleans()),
            weights=draw(st.none() | any_text.filter(lambda text: "\0" not in text).map(Path)),
            dropout=draw(st.floats(0, 0.99)),
        ),
        TrainConfig(
            epochs=epochs,
            images_per_class=per_class,
            batch_size=per_class * draw(st.integers(2, 9)),
            divide_by=draw(st.sampled_from(["image", "class", "random", "random-class", "none"])),
            joint_epoch=draw(st.none() | st.integers(0, round(epochs * 2 / 3))),
            finetune_epoch=finetune,
            loss=draw(any_text),
            loss_options=draw(options),
            lr=draw(positive),
            mask_lr=draw(st.none() | positive),
            warmup_epochs=draw(positive),
            flip=draw(st.none() | st.booleans()),
            precision=draw(st.sampled_from(["fp32", "bf16", "fp16"])),
            seed=draw(st.integers(0, 2**63)),
        ),
        DataConfig(validation=draw(st.booleans()), validation_fraction=draw(st.floats(0.01, 0.99))),
    )


def exact(value: object) -> object:
    """With the types spelled out: 3, 3.0 and True are equal, and are not the same setting."""
    if isinstance(value, dict):
        return {key: exact(inner) for key, inner in value.items()}
    return type(value).__name__, value


@pytest.mark.heavy
@given(config=run_configs())
@settings(deadline=None, max_examples=30)
def test_what_is_written_as_yaml_or_json_reads_back_the_same(
    config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tree = config.to_dict()
    comments = {(part, key): f"default: {value} # of {part}" for part in tree for key, value in tree[part].items()}
    comments = {keys: "".join(c if c.isprintable() else "?" for c in text) for keys, text in comments.items()}
    for name, text in (("written.yaml", as_yaml(tree, comments)), ("written.json", json.dumps(tree, indent=2))):
        path = tmp_path_factory.getbasetemp() / name
        path.write_text(text, encoding="utf-8")
        back = RunConfig.load(path, trust=True)
        assert back == config
        assert exact(back.to_dict()) == exact(tree)


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.yml"])
def test_saved_it_is_loaded(name: str, tmp_path: Path) -> None:
    config = RunConfig(ModelConfig(head_options={"kind": "fixed"}), TrainConfig(epochs=3, mask_lr=1e-7))
    config.save(tmp_path / name, versions={"divcon": "0"}, split_hash="x", source=None, init=None)
    assert RunConfig.load(tmp_path / name) == config
    assert read_config_file(tmp_path / name).values["split_hash"] == "x"


def test_the_three_formats_say_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    (folder / "a.yaml").write_text(YAML)
    (folder / "a.toml").write_text(TOML)
    (folder / "a.json").write_text(json.dumps(AS_JSON))
    expected = RunConfig(
        ModelConfig(weights=folder / "../w.safetensors", head_options={"kind": "fixed"}),
        TrainConfig(epochs=12, lr=1e-4, head_lr=1.0, loss_options=AS_JSON["train"]["loss_options"], flip=False),
    )
    for name in ("a.yaml", "a.toml", "a.json"):
        loaded = RunConfig.load(folder / name)
        assert exact(loaded.to_dict()) == exact(expected.to_dict()), name
        assert read_config_file(folder / name).values["source"]["data"] == "photos"


def test_lines_are_those_of_the_keys(tmp_path: Path) -> None:
    for name, text in (("a.yaml", YAML), ("a.toml", TOML), ("a.json", json.dumps(AS_JSON, indent=1))):
        path = tmp_path / name
        path.write_text(text)
        file = read_config_file(path)
        rows = text.splitlines()
        assert len(file.lines) > 12
        for keys, number in file.lines.items():
            assert keys[-1] in rows[number - 1], (name, keys)
        assert rows[file.lines[("train", "epochs")] - 1].strip(" ,") in ("epochs: 12", "epochs = 12", '"epochs": 12')
        assert file.where("train", "loss_options", "unheard") == f"{path} line {file.lines['train', 'loss_options']}"
        assert file.where("unheard") == str(path)


@pytest.mark.parametrize("written", ["1e-4", "1E-4", ".0001", "0.0001", "1.0e-4"])
def test_numbers_are_written_as_people_write_them(written: str, tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text(f"train: {{lr: {written}}}")
    assert RunConfig.load(path).train.lr == pytest.approx(1e-4)


WRONG = [
    (".yaml", "train:\n  epochs: twelve", "line 2: train.epochs: expected a whole number, not the text 'twelve'"),
    (".yaml", "train:\n  epochs: '12'", "line 2: train.epochs: expected a whole number, not the text '12'"),
    (".yaml", "train:\n  epochs: true", "line 2: train.epochs: expected a whole number, not true"),
    (".yaml", "train:\n  epochs: 12.0", "line 2: train.epochs: expected a whole number, not 12.0"),
    (".yaml", "train:\n  epochs:", "line 2: train.epochs: expected a whole number, not null"),
    (".yaml", "train:\n  seed: 1\n  lr: [1]", "line 3: train.lr: expected a number, not [1]"),
    (".yaml", "train:\n  lr: true", "line 2: train.lr: expected a number, not true"),
    (".yaml", "train:\n  lr: 2020-01-01", "line 2: train.lr: expected a number, not 2020-01-01"),
    (".yaml", "train:\n  flip: yes", "line 2: train.flip: expected true or false or null, not the text 'yes'"),
    (".yaml", "model:\n  pretrained: 1", "line 2: model.pretrained: expected true or false, not 1"),
    (".yaml", "model:\n  weights: 3", "line 2: model.weights: expected a path or null, not 3"),
    (".yaml", "model:\n  backbone: 3", "line 2: model.backbone: expected text, not 3"),
    (
        ".yaml",
        "train:\n  divide_by: imge",
        "expected one of image, class, random, random-class, none, not the text 'imge'; did you mean 'im",
    ),
    (
        ".yaml",
        "train:\n  loss_options:\n    a: [1]",
        "line 3: train.loss_options.a: expected a number, true or false or",
    ),
    (".yaml", "train:\n  loss_options: 3", "line 2: train.loss_options: expected a mapping of names to values"),
    (".yaml", "train:\n  loss_options: {1: 3}", "line 2: train.loss_options.1: expected text, not 1"),
    (".yaml", "train:\n  epoch: 3", "line 2: unknown setting 'epoch'; did you mean 'epochs'"),
    (".yaml", "train:\n  batch-size: 8", "line 2: unknown setting 'batch-size'; it is called 'batch_size' in a file"),
    (".yaml", "model:\n  learners: 8", "line 2: unknown setting 'learners'; it is called 'num_learners' in a file"),
    (".yaml", "model:\n  dim: 8", "line 2: unknown setting 'dim'; it is called 'embedding_dim' in a file"),
    (".yaml", "model:\n  epochs: 8", "line 2: 'epochs' is a setting of train"),
    (".yaml", "train: {seed: 1}\nsize: 8", "line 2: 'size' is a setting of model: move it into that section; it is ca"),
    (".yaml", "\ntrian: {}", "line 2: unknown section 'trian'; did you mean 'train'"),
    (".yaml", "train: 3", "line 1: train: expected a mapping of names to values, not 3"),
    (".yaml", "source: {dta: x}", "line 1: unknown setting 'dta'; did you mean 'data'"),
    (".yaml", "source: {root: x}", "line 1: source: data is missing"),
    (".yaml", "init: 3", "line 1: init: expected a path or null, not 3"),
    (".yaml", "train:\n  epochs: 3\n  epochs: 4", "line 3: 'epochs' is set here a second time"),
    (".yaml", "train:\n  epochs: -1", "line 2: epochs -1: must be at least 0"),
    (".yaml", "train:\n  lr: -1", "line 2: lr -1.0: must not be negative"),
    (".yaml", "train:\n  lr: .inf", "line 2: lr inf: must be finite"),
    (".yaml", "model:\n  num_learners: 4\n  embedding_dim: 3", "cannot be divided among"),
    (".yaml", "train:\n  epochs: [3\n", "line 3: is not YAML"),
    (".yaml", "train:\n\tepochs: 3", "line 2: is not YAML"),
    (".yaml", "a: 1\n---\nb: 2", "line 2: is not YAML"),
    (".yaml", "a: !!python/object:os.system x", "line 1: is not YAML"),
    (".yaml", "train: *nowhere", "line 1: is not YAML"),
    (".yaml", "", "is empty"),
    (".toml", " \n", "is empty"),
    (".json", "", "is empty"),
    (".yaml", "# nothing yet\n", "is empty"),
    (".yaml", "- train", "should map sections to settings"),
    (".json", "[1]", "should map sections to settings"),
    (".yaml", "train", "should map sections to settings"),
    (".toml", "[train]\nepochs = 'x'", "line 2: train.epochs: expected a whole number, not the text 'x'"),
    (".toml", "train.epochs = 1.5", "line 1: train.epochs: expected a whole number, not 1.5"),
    (".toml", "\n[trian]\nepochs = 3", "line 2: unknown section 'trian'; did you mean 'train'"),
    (".toml", "[train]\nepochs = 3\nepochs = 4", "is not TOML"),
    (".toml", "[train]\nepochs = three", "line 2: is not TOML"),
    (".json", '{"train":\n {"epochs": true}}', "line 2: train.epochs: expected a whole number, not true"),
    (".json", '{"train": {"epochs": 1,\n "epochs": 2}}', "line 2: 'epochs' is set here a second time"),
    (".json", '{\n"train": {"epochs": 1,}}', "line 2: is not JSON"),
    (".json", '{"format": "x"}', "describes a model, not a run; start from that model with `init="),
    (".txt", "train: {}", "settings are read from .yaml, .yml, .toml, .json"),
]


@pytest.mark.parametrize(("suffix", "text", "expected"), WRONG)
def test_mistakes_name_file_line_key_and_what_is_expected(
    tmp_path: Path, suffix: str, text: str, expected: str
) -> None:
    path = tmp_path / f"settings{suffix}"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        RunConfig.load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file"):
        RunConfig.load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        RunConfig.load(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="is a folder; pass a file"):
        RunConfig.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"is a folder; pass .*config\.json"):
        RunConfig.load(tmp_path)
    with pytest.raises(ConfigError, match=r"settings are written as \.json or \.yaml"):
        RunConfig().save(tmp_path / "a.toml")


IMAGE_SIZE = [field.name for field in dataclasses.fields(ModelConfig)].index("image_size")
PIXEL_RANGE = [field.name for field in dataclasses.fields(ModelConfig)].index("pixel_range")
AUGMENT, MEMORY = (
    [field.name for field in dataclasses.fields(TrainConfig)].index(name) for name in ("augment", "division_memory")
)
READ_FROM_TEXT = {"augment": read_augment, "division_memory": read_memory_size}
"""Settings that several forms of a value say, by what reads them."""


@given(
    part=st.sampled_from(["model", "train", "data"]),
    place=st.integers(0, 100),
    value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text, st.lists(st.integers())),
)
@example(part="model", place=IMAGE_SIZE, value=[0])
@example(part="model", place=IMAGE_SIZE, value=[0, 0])
@example(part="model", place=IMAGE_SIZE, value=[64])
@example(part="model", place=IMAGE_SIZE, value=[64, 64])
@example(part="model", place=IMAGE_SIZE, value=[64, 32])
@example(part="model", place=IMAGE_SIZE, value=[64, 0])
@example(part="model", place=PIXEL_RANGE, value=[0, 1])
@example(part="train", place=AUGMENT, value="")  # nothing is none
@example(part="train", place=AUGMENT, value=[])
@example(part="train", place=MEMORY, value="0.25")
@example(part="train", place=MEMORY, value=1e7)
@example(part="train", place=MEMORY, value=-1)
@settings(deadline=None, max_examples=100)
def test_any_value_is_taken_as_it_is_or_refused_by_name(part: str, place: int, value: object) -> None:
    kinds = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
    fields = dataclasses.fields(kinds[part])
    name = fields[place % len(fields)].name
    try:
        config = RunConfig.from_dict({part: {name: value}}, "here")
    except (ConfigError, ValueError) as error:
        assert isinstance(error, ConfigError) or "null" in str(error)
        assert str(error).startswith("here: ")
        assert name in str(error)
        return
    kept = getattr(getattr(config, part), name)
    if value is None and name in ("devices", "learners_per_step"):
        assert kept == 1  # as many as torchrun has started
    elif name == "image_size" and isinstance(value, list):
        assert height_width(kept) == tuple(value)
        assert min(value) >= 1
    elif name == "pixel_range" and isinstance(value, list):
        assert kept == tuple(value) and len(value) == 2
    elif name in READ_FROM_TEXT:
        assert kept == READ_FROM_TEXT[name](value)
    elif name != "weights":
        assert kept == value or (name == "num_learners" and kept == 1)
        assert type(kept) is type(value) or (type(kept), type(value)) == (float, int)


def test_a_config_of_an_earlier_version_loads() -> None:
    """As version 0.1.0 wrote it: without the settings that came later, and with what it holds beside settings."""
    old = {
        "model": {
            "method": "slices",
            "num_learners": 2,
            "embedding_dim": 16,
            "backbone": "test_resnet",
            "pretrained": False,
            "weights": None,
            "image_size": 32,
            "dropout": 0.01,
        },
        "train": {"epochs": 3, "batch_size": 16, "images_per_class": 2, "loss_options": {}, "flip": None},
        "data": {"validation": True},
        "source": None,
        "init": None,
        "benchmark": "few",
        "protocol": "leave-one-out",
        "split_hash": "0123",
        "versions": {"divcon": "0.1.0"},
    }
    config = RunConfig.from_dict(old)
    then = {"head_init": "random", "embed": "head", "fit": "crop", "pixel_range": "full"}
    expected = ModelConfig("slices", 2, 16, backbone="test_resnet", pretrained=False, image_size=32, **then)
    assert config.model == expected
    off = {"full_weight": 0.0, "distill_weight": 0.0, "ema_decay": 0.0, "division_memory": 0}
    assert config.train == TrainConfig(epochs=3, batch_size=16, images_per_class=2, **off)
    then = {"test_fraction": None, "validation_fraction": 0.1, "validation_queries": 0}
    assert config.data == DataConfig(select_by="recall_at_1", **then)


def test_weights_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunConfig(ModelConfig(weights=Path("w.pth"))).to_dict()["model"]["weights"] == str(tmp_path / "w.pth")
