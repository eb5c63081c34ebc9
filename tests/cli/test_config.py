"""Settings from the command line, a file, a run and a model: which goes over which, and what is said of each."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import divcon as dc
from divcon.cli.completion import completion_script
from divcon.cli.messages import flag
from divcon.cli.settings import as_file, current_origins
from divcon.config.settings import RunConfig
from divcon.models.names import AUTO

Run = Callable[..., tuple[int, str, str]]

SETTINGS = """\
model:
  backbone: test_resnet
  pretrained: false
  image_size: 32
  embedding_dim: 16
  num_learners: 2
train:
  epochs: 2
  finetune_epoch: 1
  lr: 1e-4
  batch_size: 8
  images_per_class: 2
  workers: 0
  loss: MarginLoss
  loss_options: {margin: 0.1, nu: 0}
data:
  validation: false
"""


@pytest.fixture
def run(command: Run) -> Run:
    return command


@pytest.fixture
def file(tmp_path: Path, image_folder: Path) -> Path:
    """Settings, and to train on the folder beside the file."""
    path = tmp_path / "settings.yaml"
    path.write_text("source: {data: photos}\n" + SETTINGS)
    return path


def shown(run: Run, *arguments: object) -> tuple[dict[str, str], dict[str, str]]:
    """What ``--show-config`` prints: by setting, its value and where it comes from."""
    code, out, err = run("train", "--show-config", *arguments)
    assert code == 0, err
    values, places = {}, {}
    for line in out.splitlines():
        match = re.fullmatch(r" *([\w]+):(.*?)(?: +# (.*))?", line)
        assert match, line
        values[match[1]], places[match[1]] = match[2].strip(), match[3] or ""
    return values, places


def test_flags_go_over_the_file_and_the_file_over_defaults(run: Run, file: Path) -> None:
    values, places = shown(
        run, "--config", file, "--epochs", 3, "--learners=4", "--loss-options.nu", 1, "--validation", "--seed", 0
    )
    assert (values["epochs"], places["epochs"]) == ("3", "command line")
    assert (values["num_learners"], places["num_learners"]) == ("4", "command line")
    assert (values["validation"], places["validation"]) == ("true", "command line")
    assert (values["seed"], places["seed"]) == ("0", "command line")
    assert (values["nu"], places["nu"]) == ("1", "command line")
    assert (values["margin"], places["margin"]) == ("0.1", f"{file} line 16")
    assert (values["lr"], places["lr"]) == ("0.0001", f"{file} line 11")
    assert (values["finetune_epoch"], places["finetune_epoch"]) == ("1", f"{file} line 10")
    assert (values["head_lr"], places["head_lr"]) == ("0.001", "default")
    assert (values["data"], places["data"]) == ("", "")  # the section; source.data stands above it
    assert f"{file.parent}/photos" in run("train", "--show-config", "--config", file)[1]


def test_computed_values_are_shown(run: Run) -> None:
    _, places = shown(run, "--epochs", 9, "--lr", "1e-3")
    assert places["finetune_epoch"] == "default: 6, two thirds of the epochs"
    assert places["mask_lr"] == "default: 0.1, 100 times lr"
    assert places["flip"] == "default: as the data set says"
    assert places["miner"] == "default: distance-weighted, of MarginLoss"
    assert places["backbone"] == f"default: {AUTO['images']} for images, {AUTO['vectors']} for vectors"
    values, places = shown(run, "--method", "single", "--learners", 4, "--loss", "NTXentLoss")
    assert (values["num_learners"], places["num_learners"]) == ("1", "command line: 1, of method single")
    assert places["miner"] == "default: none, of NTXentLoss"
    assert shown(run, "--loss", "MultiSimilarityLoss")[1]["miner"].startswith("default: MultiSimilarityMiner")


def test_a_shown_config_reads_back_the_same(run: Run, file: Path, tmp_path: Path) -> None:
    for number, arguments in enumerate(
        (
            [],
            ["--config", file, "--flip", "--weights", "w x.pth", "--miner-options.cutoff", "3", "--mask-lr", "1e-7"],
            ["demo", "--config", file, "--init", "somewhere", "--method", "masks", "--head-options.kind", "fixed"],
            ["icons", "icons dir", "--no-flip", "--loss-options.p", "2", "--loss-options.q", "2.0", "--loss", "a: b"],
        )
    ):
        if "somewhere" in arguments:
            dc.EmbeddingModel("test_resnet", 16, 2, pretrained=False, image_size=32).save(tmp_path / "somewhere")
            arguments[arguments.index("somewhere")] = tmp_path / "somewhere"
        printed = run("train", "--show-config", *arguments)[1]
        again = tmp_path / f"again{number}.yaml"
        again.write_text(printed)
        second = run("train", "--show-config", "--config", again)[1]
        assert [line.partition(" # ")[0] for line in second.splitlines()] == [
            line.partition(" # ")[0] for line in printed.splitlines()
        ]
        back = RunConfig.load(again)
        current_origins(anew=True)
        assert as_file(back, None, None).count("# default") > 40
    assert back.train.loss_options == {"p": 2, "q": 2.0}
    assert [type(value) for value in back.train.loss_options.values()] == [int, float]
    assert back.train.flip is False


def test_options_of_another_loss_are_left_out(run: Run, file: Path) -> None:
    values, _ = shown(run, "--config", file, "--loss", "TripletMarginLoss", "--loss-options.swap", "true")
    assert "nu" not in values
    assert values["swap"] == "true"
    values, _ = shown(run, "--config", file, "--loss", "MarginLoss")
    assert values["nu"] == "0"


@pytest.mark.heavy
def test_a_run_is_repeated_from_its_config(run: Run, file: Path, tmp_path: Path, image_folder: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    code, _, err = run("train", "--config", file, "--out", a)
    assert code == 0, err
    code, _, err = run("train", "--config", a / "config.json", "--out", b)
    assert code == 0, err
    records = [json.loads((out / "config.json").read_text()) for out in (a, b)]
    assert records[0] == records[1]
    source = records[0]["source"]
    assert (source["data"], source["root"]) == (str(image_folder), None)
    lines = [
        [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in path.read_text().splitlines()]
        for path in (a / "metrics.jsonl", b / "metrics.jsonl")
    ]
    assert len(lines[0]) == 2
    assert lines[0] == lines[1]
    assert (a / "model/model.safetensors").read_bytes() == (b / "model/model.safetensors").read_bytes()

    # One that began from a model begins from it again.
    code, _, err = run("train", "--config", file, "--init", a, "--seed", 1, "--epochs", 1, "--out", b / "warm")
    assert code == 0, err
    code, _, err = run("train", "--config", b / "warm/config.json", "--out", c)
    assert code == 0, err
    assert json.loads((c / "config.json").read_text())["init"] == str(a)
    assert (b / "warm/model/model.safetensors").read_bytes() == (c / "model/model.safetensors").read_bytes()

    # On data that has changed it is no repetition; with DATA, it is training on that.
    image_folder.joinpath("class0", "4.png").unlink()  # to train on
    code, _, err = run("train", "--config", a / "config.json", "--out", tmp_path / "d")
    assert code == 2
    assert "config.json line" in err
    assert "the data has changed since that run" in err
    assert not (tmp_path / "d").exists()
    code, _, err = run("train", image_folder, "--config", a / "config.json", "--out", tmp_path / "d")
    assert code == 0, err
    image_folder.joinpath("class7", "4.png").unlink()  # to test on
    code, _, err = run("train", "--config", tmp_path / "d" / "config.json", "--out", tmp_path / "e")
    assert code == 2
    assert "the data has changed since that run" in err
    assert run("train", "--config", file, "--out", tmp_path / "e")[0] == 0


def test_a_run_goes_on_with_its_file(run: Run, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run("train", "--config", file, "--out", out, "--resume")[0] == 0
    code, _, err = run("train", "--config", file, "--out", out, "--resume", "--workers", 1)
    assert code == 0, err
    assert "already done: epochs 0-1" in err
    values, places = shown(run, "--resume", "--out", out, "--workers", 1)
    assert (values["epochs"], places["epochs"]) == ("2", f"run {out}")
    assert (values["workers"], places["workers"]) == ("1", "command line")
    assert (values["nu"], places["nu"]) == ("0", f"run {out}")
    for more in (["--redivide-every", 3], ["--loss-options.nu", 1]):
        code, _, err = run("train", "--config", file, "--out", out, "--resume", *more)
        assert code == 2
        assert "cannot resume with other settings" in err
    file.write_text(file.read_text().replace("lr: 1e-4", "lr: 1e-3"))
    code, _, err = run("train", "--config", file, "--out", out, "--resume")
    assert code == 2
    assert "--lr is 0.0001 in the run, 0.001 now" in err


def test_a_model_sets_what_nothing_else_sets(run: Run, file: Path, tmp_path: Path) -> None:
    model = dc.EmbeddingModel("test_resnet", 24, 3, pretrained=False, image_size=40, dropout=0.5, pooling="gem")
    model.save(tmp_path / "model")
    values, places = shown(run, "demo", "--init", tmp_path / "model", "--dim", 8)
    assert (values["image_size"], places["image_size"]) == ("40", f"model {tmp_path / 'model'}")
    assert (values["num_learners"], values["embedding_dim"], values["dropout"]) == ("3", "8", "0.5")
    assert (values["pooling"], places["pooling"]) == ("gem", f"model {tmp_path / 'model'}")
    values, places = shown(run, "--config", file, "--init", tmp_path / "model")
    assert (values["image_size"], places["image_size"]) == ("32", f"{file} line 5")
    assert (values["dropout"], places["dropout"]) == ("0.5", f"model {tmp_path / 'model'}")

    # In a file it is found from the file's folder.
    file.write_text(SETTINGS + "init: model\n")
    values, places = shown(run, "demo", "--config", file)
    assert values["dropout"] == "0.5"
    assert (values["init"], places["init"]) == (str(tmp_path / "model"), f"{file} line 18")


def test_weights_are_saved_by_their_absolute_path(
    run: Run, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = dc.EmbeddingModel("test_resnet", 16, 2, pretrained=False, image_size=32)
    torch.save(model.backbone.state_dict(), "w.pth")
    code, _, err = run("train", "--config", file, "--weights", "w.pth", "--epochs", 1, "--out", "run")
    assert code == 0, err
    assert json.loads(Path("run/config.json").read_text())["model"]["weights"] == str(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "arguments", "expected"),
    [
        ("train: {epochs: twelve}", [], "settings.yaml line 1: train.epochs: expected a whole number, not the text"),
        ("train:\n  epochs: -1", [], "settings.yaml line 2: epochs -1: must be at least 0"),
        (
            "model:\n  embedding_dim: 8",
            ["--learners", 9],
            "line 2: embedding_dim 8 cannot be divided among --learners 9",
        ),
        (
            "model:\n  embedding_dim: 8",
            ["--dim", 3, "--learners", 4],
            "error: --dim 3 cannot be divided among --learners 4",
        ),
        ("train:\n  finetune_epoch: 5", ["--joint-epoch", 6], "line 2: --joint-epoch 6 comes after finetune_epoch 5"),
        ("model:\n  learners: 3", [], "settings.yaml line 2: unknown setting 'learners'; it is called 'num_learners'"),
        ("source:\n  data: phots", [], "settings.yaml line 2: "),
        ("source:\n  data: dmo", [], "did you mean 'demo'"),
        ("init: nowhere", ["demo"], "no model there"),
        ("", [], "settings.yaml: is empty"),
        ("train: {seed: 1}", [], "DATA is missing"),
    ],
)
def test_mistakes_in_a_file_are_answered_in_a_line(
    run: Run, tmp_path: Path, content: str, arguments: list, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("settings.yaml").write_text(content)
    code, out, err = run("train", "--config", "settings.yaml", "--out", "run", *arguments)
    assert code == 2
    assert expected in err
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["settings.yaml"]


def test_what_cannot_be_a_file(run: Run, tmp_path: Path) -> None:
    assert "there is no such file of settings" in run("train", "--config", tmp_path / "x.yaml", "--out", "x")[2]
    assert "--out is missing" in run("train", "demo")[2]
    assert "--out is missing" in run("train", "--resume", "--show-config")[2]


def test_one_command_line_knows_nothing_of_the_one_before(run: Run, file: Path) -> None:
    shown(run, "--config", file)
    _, places = shown(run)
    assert not [place for place in places.values() if str(file) in place]
    run("train", "--config", file, "--epochs", -1, "--out", "x")
    assert "error: --epochs -1" in run("train", "demo", "--epochs", -1, "--out", "x")[2]


def test_every_setting_is_a_flag_with_its_help_in_flags(run: Run) -> None:
    code, out, _ = run("train", "--help")
    words = " ".join(re.sub(r"[│╭╮╰╯─]", " ", out).split())
    assert code == 0
    for section in dataclasses.fields(RunConfig):
        for field in dataclasses.fields(getattr(RunConfig(), section.name)):
            assert flag(field.name) in words, field.name
    for text in ("--num-learners", "times --lr-gamma every --lr-step-epochs", "--no-validation trains on all"):
        assert text in words
    assert "`" not in out


def test_an_old_value_is_taken_with_a_note(run: Run, file: Path) -> None:
    code, out, err = run("train", "--show-config", "--divide-on", "memory")
    assert code == 0
    assert "divide_on: bank" in out
    assert "note: --divide-on memory is called --divide-on bank now" in err
    file.write_text("train:\n  divide_on: memory\n")
    assert "divide_on: bank" in run("train", "--show-config", "--config", file)[1]
    code, _, err = run("train", "--show-config", "--divide-on", "bnk")
    assert code == 2
    assert "bank" in err


@pytest.mark.heavy
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_every_command_and_flag(shell: str, run: Run) -> None:
    code, script, _ = run("completion", shell)
    assert code == 0
    assert script == completion_script(shell)
    assert {"train", "evaluate", "encode", "demo", "completion"} <= set(re.findall(r"[\w-]+", script))
    for part in dataclasses.fields(RunConfig):
        for field in dataclasses.fields(getattr(RunConfig(), part.name)):
            assert flag(field.name).lstrip("-") in script, field.name


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        (["tr"], "train"),
        (["train", "--redivide-e"], "--redivide-every"),
        (["train", "demo", "--redivide-e"], "--redivide-every"),  # demo is a command too
        (["evaluate", "run", "demo", "--cluste"], "--clustering"),
        (["train", "--lr", "1", "--divide-by", "im"], "image"),
    ],
)
def test_bash_completes(typed: list[str], completed: str, tmp_path: Path) -> None:
    path = tmp_path / "divcon.bash"
    path.write_text(completion_script("bash"))
    subprocess.run(["bash", "-n", path], check=True)
    words = " ".join(["divcon", *typed])
    program = f'source {path}; COMP_WORDS=({words}); COMP_CWORD={len(typed)}; _divcon; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [completed], done.stderr


def test_completion_is_installed_for_a_shell(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = run("completion", "bash", "--install")
    assert code == 0
    path = Path(out.splitlines()[0])
    assert path.is_relative_to(tmp_path)
    assert path.read_text() == completion_script("bash")
    assert str(path) in (tmp_path / ".bashrc").read_text()
