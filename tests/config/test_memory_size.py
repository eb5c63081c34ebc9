"""Sizes of memory, as text and as numbers."""

from __future__ import annotations

from typing import Any

import pytest

from divcon.config.memory_size import memory_in_words, read_memory_size
from divcon.config.settings import TrainConfig
from divcon.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("8GB", 8 * 10**9),
        ("1.5 gib", 3 * 2**29),
        ("500m", 500 * 10**6),
        ("0.25", 0.25),
        (".5", 0.5),
        (1, 1.0),
        (0, 0),
        ("0", 0),
        (2 * 10**6, 2 * 10**6),
        ("2000000", 2 * 10**6),
    ],
)
def test_sizes(value: Any, expected: float) -> None:
    read = read_memory_size(value)
    assert read == expected
    assert type(read) is type(expected)
    assert read_memory_size(read) == read  # as a file has it
    assert TrainConfig(division_memory=value).division_memory == expected


@pytest.mark.parametrize("value", ["8", 8, "8 pounds", "-1GB", -0.5, "", None, True, [1], float("inf"), float("nan")])
def test_what_is_no_size(value: Any) -> None:
    with pytest.raises(ConfigError, match="`division_memory`: expected a size such as 8GB"):
        TrainConfig(division_memory=value)


def test_words() -> None:
    assert memory_in_words(0.25) == "0.25"
    assert read_memory_size(memory_in_words(8 * 10**9)) == 8 * 10**9
