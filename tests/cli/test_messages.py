"""Settings that the library names in backticks are flags on the command line."""

from __future__ import annotations

import pytest

from divcon.cli.messages import flag, in_flags


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "`batch_size` 7 is not a multiple of `images_per_class` 4",
            "--batch-size 7 is not a multiple of --images-per-class 4",
        ),
        ("divide by class (`divide_by=class`)", "divide by class (--divide-by class)"),
        ("go on with it (`resume=True`)", "go on with it (--resume)"),
        ("train on all (`validation=False`)", "train on all (--no-validation)"),
        ("give fewer `num_learners` or a larger `embedding_dim`", "give fewer --learners or a larger --dim"),
        ("leave `loss_options.embedding_size` out", "leave --loss-options.embedding_size out"),
        ("allow that: `trust=my_heads`", "allow that: --import my_heads"),
        ("a path with `Capitals` and `two words` stays", "a path with `Capitals` and `two words` stays"),
    ],
)
def test_settings_become_flags(text: str, shown: str) -> None:
    assert in_flags(text) == shown


def test_flags_are_the_names_with_dashes() -> None:
    assert [flag("lr"), flag("mask_lr"), flag("image_size")] == ["--lr", "--mask-lr", "--size"]
