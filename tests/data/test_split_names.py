"""What people call their splits."""

from __future__ import annotations

import pytest

from divcon.data.split_names import is_fold, split_role

NAMES = {
    "train": "train TRAIN Train training Training train2017 01_train train_images images-train TrainSet train_set "
    "trainset training_data trainA bounding_box_train trainval trn train.",
    "validation": "val Val valid VALID validation validation_set val2017 dev Dev development eval evaluation "
    "images_evaluation valset 2-val",
    "test": "test Test TEST testing tests test_set testB holdout hold-out Hold_Out held_out test2017 tst 'test'",
    "query": "query Query queries query_images",
    "gallery": "gallery Gallery galleries gallery-images bounding_box_test",
}


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in NAMES.items() for name in names.split()])
def test_names_of_splits(role, name):
    assert split_role(name) == role


@pytest.mark.parametrize(
    "name",
    ["", "2017", "trainer", "train station", "trainers", "test tube", "contest", "attest", "valley", "valerian",
     "queryx", "art_gallery", "images", "data", "dataset", "image set", "set", "pretrain", "class1", "detest", "device",
     "evil", "index", "database", "probe", "reference", "Zug", "тест"],
)  # fmt: skip
def test_names_of_classes(name):
    assert split_role(name) is None


def test_names_that_are_both():
    assert [split_role(name, weak=True) for name in ("probe", "Index", "database", "references", "mug")] == [
        "query", "gallery", "gallery", "gallery", None]  # fmt: skip


def test_folds():
    assert all(map(is_fold, ("fold1", "fold_2", "Fold-3", "split 4", "cv0")))
    assert not any(map(is_fold, ("fold", "folder1", "fold1a", "scaffold1", "1")))
