"""The names that people give their splits, and what each means."""

from __future__ import annotations

import re
from typing import Literal

Role = Literal["train", "validation", "test", "query", "gallery"]

_STRONG: dict[str, Role] = {
    **dict.fromkeys(("train", "training", "trn", "trainval", "trainvalid"), "train"),
    **dict.fromkeys(("test", "tests", "testing", "tst", "holdout", "heldout"), "test"),
    **dict.fromkeys(("val", "valid", "validate", "validating", "validation", "vali", "vld"), "validation"),
    **dict.fromkeys(("dev", "devel", "development", "eval", "evaluate", "evaluation"), "validation"),
    **dict.fromkeys(("query", "queries"), "query"),
    **dict.fromkeys(("gallery", "galleries"), "gallery"),
}
_WEAK: dict[str, Role] = {
    **dict.fromkeys(("probe", "probes"), "query"),
    **dict.fromkeys(("database", "index", "reference", "references"), "gallery"),
}
"""Names that are as often those of something else."""
_FILLERS = (
    *("boundingbox", "dataset", "data", "images", "image", "imgs", "img", "photos", "pictures", "crops", "samples"),
    *("split", "sets", "set", "folder", "files", "classes"),
)
"""Words around the name, in any order: ``train_images``, ``TestSet``, ``bounding_box_train``."""


def split_role(name: str, weak: bool = False) -> Role | None:
    """What the name of a split means, in any case and spelling: ``Training``, ``val2017``, ``01_test``, ``test-set``.

    None: it is no such name. ``dev`` and ``eval`` are validation, ``holdout`` is test.

    Args:
        weak: names that are as often those of something else count too: probe, index, database, reference.
    """
    # CycleGAN's trainA and testB: the capital stands for one of two sets.
    name = re.sub(r"(?<=[a-z])[ _-]?[A-D]$", "", name.strip())
    word = re.sub(r"[\W\d_]+", "", name.casefold())
    if word == "boundingboxtest":
        return "gallery"
    known: dict[str, Role] = {**_STRONG, **_WEAK} if weak else _STRONG
    while word not in known:
        rest = word
        for filler in _FILLERS:
            if rest != filler:
                rest = rest.removeprefix(filler).removesuffix(filler)
        if rest == word:
            return None
        word = rest
    return known[word]


def split_word(name: str) -> Role | None:
    """The split that one of the words of a name says: ``fr_train``, ``imagenet-val``, ``test clean``. None: none does,
    or several do."""
    words = re.split(r"[\W\d_]+|(?<=[a-z])(?=[A-Z])", name)
    roles: set[Role] = {_STRONG[word.casefold()] for word in words if word.casefold() in _STRONG}
    return roles.pop() if len(roles) == 1 else None


def is_fold(name: str) -> bool:
    """Whether it is the name of a fold of a cross-validation: ``fold_3``, ``split2``."""
    return re.fullmatch(r"(fold|split|cv)[\W_]*\d+", name.casefold()) is not None
