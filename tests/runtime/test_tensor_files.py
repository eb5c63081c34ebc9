"""A flipped bit is noticed in the file of a model and of a division."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import divcon as dc
from divcon.errors import DataError, WeightsError
from divcon.runtime.files import checked_tensors, write_tensors


def flipped(content: bytes, seed: int) -> bytes:
    rng, changed = np.random.default_rng(seed), bytearray(content)
    changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def test_any_program_reads_it_and_one_without_a_checksum_passes(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(5, dtype=torch.bfloat16), "a": torch.eye(3), "empty": torch.empty(0, 2)}
    write_tensors(tmp_path / "with", safetensors.torch.save(tensors, {"format": "pt"}))
    (tmp_path / "without").write_bytes(safetensors.torch.save(tensors))
    for name in ("with", "without"):
        assert checked_tensors(tmp_path / name) == (tmp_path / name).read_bytes()
        loaded = safetensors.torch.load_file(tmp_path / name)
        assert loaded.keys() == tensors.keys()
        assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    with safetensors.safe_open(tmp_path / "with", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_a_division_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "epoch_0000.safetensors"
    dc.Division(np.arange(40) % 3, np.ones((3, 4), np.float32)).save(path)
    whole = path.read_bytes()
    for seed in range(200):
        path.write_bytes(flipped(whole, seed))
        # Flips of the checksum's own name alone pass, and harm nothing.
        with (
            pytest.raises(DataError, match=r"epoch_0000.safetensors: this division cannot be read")
            if path.read_bytes().count(b'"sha256"')
            else nullcontext()
        ):
            np.testing.assert_array_equal(dc.Division.load(path).learner, np.arange(40) % 3)


@pytest.mark.heavy
def test_a_model_with_a_flipped_bit_is_refused(tmp_path: Path, tiny_model: Callable[..., dc.EmbeddingModel]) -> None:
    tiny_model().save(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for seed in range(20):
        path.write_bytes(flipped(whole, seed))
        with pytest.raises(WeightsError, match="the weights are missing or damaged"):
            dc.EmbeddingModel.load(tmp_path)
