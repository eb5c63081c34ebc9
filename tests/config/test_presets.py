"""The papers' recipes: what they hold, where they come from on the command line, what they leave to the user."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import divcon as dc
from divcon.config import presets
from divcon.config.presets import PUBLISHED_RESULTS
from divcon.data.augmentation import create_augmentation
from divcon.data.published import PUBLISHED_COUNTS as DATA
from divcon.errors import ConfigError
from divcon.models.heads import create_head
from divcon.training.schedule import Phase, phase_at

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("data", ["cub", "cars", "sop", "inshop", "vehicleid-large", "market1501", "photos"])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_every_preset_is_a_run_that_can_be_on_every_data_set(name: str, data: str) -> None:
    config = presets.preset(name, data)
    assert not config.data.validation
    learners = config.model.num_learners
    create_head(config.model.method, 16, config.model.embedding_dim, learners, options=config.model.head_options)
    last = phase_at(config.train.epochs - 1, config.train, learners)
    assert last is (Phase.JOINT if name.startswith("tpami2021") else Phase.FINETUNE)
    assert (config.train.full_weight > 0) == name.startswith(("modern", "people", "vehicles"))  # neither paper has it
    assert dc.RunConfig.from_dict(config.to_dict()) == config


def test_what_the_papers_and_their_code_say() -> None:
    """Numbers of the 2019 paper's section 4, the defaults of its released code, and the 2021 README's command."""
    written, released = presets.cvpr2019("sop"), presets.cvpr2019_released("sop")
    assert (written.model.method, written.model.num_learners, written.model.embedding_dim) == ("slices", 8, 128)
    assert presets.cvpr2019("cars").model.num_learners == 4
    train = written.train
    assert (train.epochs, train.batch_size, train.images_per_class, train.finetune_epoch) == (200, 80, 4, 190)
    assert (train.lr, train.head_lr, train.weight_decay, train.redivide_every) == (1e-5, 1e-5, 1e-4, 2)
    assert presets.changed(released, "cvpr2019", "sop") == {
        "joint_epoch": (None, round(190 * 8 / 19)),
        "miner": ("distance-weighted", "nearest-negatives"),
        "miner_options": ({"replacement": False}, {}),
    }
    # The code compares the epoch with finetune_epoch * 8 / 19.
    cub = presets.cvpr2019_released("cub").train
    assert (cub.finetune_epoch, cub.joint_epoch) == (60, 26)
    assert [epoch for epoch in (25, 26) if epoch >= 60 * 8 / 19] == [26]
    learned, fixed = presets.tpami2021_learned("sop"), presets.tpami2021_fixed("sop")
    assert (learned.model.num_learners, learned.model.embedding_dim) == (32, 512)
    train = learned.train
    assert (train.epochs, train.images_per_class, train.joint_epoch, train.freeze_backbone_epochs) == (180, 2, 80, 1)
    assert (train.mask_lr, train.mask_penalty, train.hierarchy, train.small_classes) == (1e-3, 0.01, True, "fill")
    # The 2021 sampler draws without replacement.
    assert train.miner_options == fixed.train.miner_options == {"replacement": False}
    assert presets.changed(fixed, "tpami2021-learned", "sop") == {
        "head_options": ({"kind": "learned"}, {"kind": "fixed"})
    }
    assert presets.changed(presets.single("cub"), "cvpr2019", "cub") == {
        "method": ("slices", "single"),
        "num_learners": (4, 1),
        "rounds": ("longest", "epoch"),
    }


def test_people_and_vehicles() -> None:
    """The numbers of the strong baseline's configuration: 256x128, bs16x4, warmup10, erase0_5; 256x256 for vehicles."""
    people, vehicles = presets.people("market1501"), presets.vehicles("vehicleid-large")
    assert (people.model.image_size, people.model.fit) == ((256, 128), "squash")
    assert (vehicles.model.image_size, vehicles.model.fit) == (256, "squash")
    for config in (people, vehicles):
        train = config.train
        assert (train.batch_size, train.images_per_class, train.warmup_epochs) == (64, 4, 10)
        assert (train.augment["erasing"]["p"], train.crop_scale) == (0.5, 1.0)
        create_augmentation(train.augment, (0, 0, 0))
    # Shifts of 10 pixels each way.
    across, down = people.train.augment["affine"]["translate"]
    assert (round(across * 128), round(down * 256)) == (10, 10)
    assert set(presets.changed(vehicles, "people", "market1501")) == {"image_size", "augment"}


def test_published_results_are_those_in_the_docstrings() -> None:
    titles = {"CUB": "cub", "Cars": "cars", "SOP": "sop", "In-shop": "inshop", "VehicleID large": "vehicleid-large"}
    for name, function in presets.PRESETS.items():
        text = " ".join((inspect.getdoc(function) or "").split())
        assert f"--preset {name} --out" in text
        assert "GB of GPU memory" in text
        documented = {
            titles[title]: float(number) for title, number in re.findall(r"([A-Z][\w -]+?) (\d\d\.\d+) \(", text)
        }
        known = {data: 100 * result.recall_at_1 for data, result in PUBLISHED_RESULTS.get(name, {}).items()}
        assert documented == pytest.approx(known), name
        assert set(known) <= set(DATA)


def test_every_column_that_is_published_is_a_score_of_the_data_set_s_protocol() -> None:
    for name, results in PUBLISHED_RESULTS.items():
        for data, result in results.items():
            recalls = [key for key in result.scores if key.startswith("recall_at_")]
            assert set(result.scores) - set(recalls) <= {"nmi", "marp"}
            assert {int(key.removeprefix("recall_at_")) for key in recalls} <= set(DATA[data].recall_at)
            values = [result.scores[key] for key in recalls]
            assert values == sorted(values)
            assert (set(result.scores) >= {"nmi", "marp"}) == name.startswith("tpami2021")
    # Rows of the 2021 repository's README, and of issue 6 of the 2019 one.
    assert dict(PUBLISHED_RESULTS["tpami2021-learned"]["sop"].scores) == pytest.approx(
        {"nmi": 0.8968, "marp": 0.7960, "recall_at_1": 0.7980, "recall_at_10": 0.9046, "recall_at_100": 0.9526}
    )
    assert dict(PUBLISHED_RESULTS["cvpr2019-released"]["cub"].scores) == pytest.approx(
        {"recall_at_1": 0.6201, "nmi": 0.6691}
    )


def test_a_preset_decides_all_but_what_is_the_user_s() -> None:
    names = {f.name for part in (dc.ModelConfig, dc.TrainConfig, dc.DataConfig) for f in dataclasses.fields(part)}
    assert names >= presets.YOURS
    assert set(presets.decided(presets.cvpr2019("cub"))) == names - presets.YOURS


def test_an_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tpami2021-fixed'"):
        presets.preset("tpami2021-fix", "cub")


def test_flags_and_files_go_over_a_preset_and_it_goes_over_defaults(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  lr: 3.0e-5\n")
    shown = ("--show-config", "--config", file, "--preset", "tpami2021-fixed", "--epochs", 20, "--joint-epoch", 12)
    code, out, err = command("train", "sop", tmp_path, *shown)
    assert code == 0, err
    lines = {line.split(":")[0].strip(): line for line in out.splitlines()}
    assert re.search(r"epochs: 20 +# command line", lines["epochs"])
    assert re.search(rf"lr: 3e-05 +# {re.escape(str(file))} line 2", lines["lr"])
    assert re.search(r"num_learners: 32 +# preset tpami2021-fixed", lines["num_learners"])
    assert re.search(r"kind: fixed +# preset tpami2021-fixed", lines["kind"])
    assert re.search(r"seed: 0 +# default", lines["seed"])
    # Another method takes no options of masks.
    code, out, err = command(
        "train", "sop", tmp_path, "--show-config", "--preset", "tpami2021-fixed", "--method", "slices"
    )
    assert code == 0, err
    assert "kind" not in out


def test_the_data_set_decides_what_a_preset_holds(command: Run, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("source:\n  data: cub\n  root: x\n")
    for arguments, learners in ((["cub", "x"], 4), (["inshop", "x"], 8), (["--config", file], 4), ([], 8)):
        _, out, err = command("train", *arguments, "--preset", "cvpr2019", "--show-config")
        assert f"num_learners: {learners} " in out, err


def test_a_run_that_is_resumed_has_its_settings(command: Run, tmp_path: Path, image_folder: Path) -> None:
    small = ("--backbone", "test_resnet", "--no-pretrained", "--size", 32, "--batch-size", 8, "--epochs", 1, "--dim", 8)
    code, _, err = command("train", image_folder, *small, "--workers", 0, "--out", tmp_path / "r", "--no-validation")
    assert code == 0, err
    code, _, err = command("train", "--out", tmp_path / "r", "--resume", "--preset", "single")
    assert code == 2
    assert "is resumed with its own settings" in err
    assert "leave it out" in err


def test_data_that_reproduce_does_not_take_is_refused(command: Run, tmp_path: Path) -> None:
    code, _, err = command("reproduce", "icons", tmp_path, "--out", tmp_path / "r")
    assert code == 2
    assert "is none of the papers' data sets (cub, cars" in err
    assert "divcon train DATA --preset cvpr2019" in err
