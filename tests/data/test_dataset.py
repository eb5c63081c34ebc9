"""Decoding in workers: the same pixels whatever their number, and errors that keep their words."""

from __future__ import annotations

import multiprocessing
import os
import time
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from divcon.data.loading import Decoded, batches_of, collate, evaluation_batches, kept_workers, undecodable
from divcon.data.readers.folder import images_of
from divcon.data.transforms import EvalTransform, TrainTransform
from divcon.errors import ImageError
from divcon.runtime.context import Context

PATHS = [f"{i:02d}.png" for i in range(12)]


@pytest.fixture
def images(make_images):
    rng = np.random.default_rng(0)
    from PIL import Image

    root = make_images(PATHS)
    for path in PATHS:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / path)
    return images_of(root)


def batch(images, keys, workers: int, seed: int = 0) -> torch.Tensor:
    dataset = Decoded(images, EvalTransform(16), TrainTransform(16), seed)
    loader = DataLoader(dataset, batch_sampler=[keys[:5], keys[5:]], num_workers=workers, collate_fn=collate)
    return torch.cat([pixels for pixels, _ in batches_of(loader)])


def test_workers_change_nothing(images):
    keys = [(i, 3, i * 7) for i in range(12)]
    alone = batch(images, keys, 0)
    assert alone.shape == (12, 3, 16, 16) and alone.dtype == torch.uint8
    assert torch.equal(alone, batch(images, keys, 2))


def test_augmentation_draws_from_seed_epoch_and_position_alone(images):
    def one(seed, epoch, position):
        return batch(images, [(0, epoch, position)] * 6, 0, seed)[0]

    torch.manual_seed(1)
    first = one(0, 0, 0)
    torch.manual_seed(2)
    assert torch.equal(first, one(0, 0, 0))
    others = [one(1, 0, 0), one(0, 1, 0), one(0, 0, 1)]
    assert not any(torch.equal(first, other) for other in others)


def test_the_process_generator_is_left_as_it_was(images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset = Decoded(images, EvalTransform(16), TrainTransform(16))
    dataset[(0, 1, 2)], dataset[0]
    list(evaluation_batches(images, EvalTransform(16), batch_size=5))
    list(undecodable(images))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_all_images_in_order(images, workers):
    batches = list(evaluation_batches(images, EvalTransform(16), batch_size=5, context=Context(workers)))
    assert [len(indices) for _, indices in batches] == [5, 5, 2]
    assert torch.cat([indices for _, indices in batches]).tolist() == list(range(12))
    expected = torch.stack([EvalTransform(16)(images.open(i)) for i in range(12)])
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_does_not_decode_is_named_in_the_main_process(images, workers, tmp_path):
    (tmp_path / "images" / "07.png").write_bytes(b"no image")
    with pytest.raises(ImageError) as caught:
        list(evaluation_batches(images, EvalTransform(16), batch_size=5, context=Context(workers)))
    assert str(caught.value).startswith(str(tmp_path / "images" / "07.png"))
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_images_are_found(images, workers, tmp_path):
    (tmp_path / "images" / "03.png").write_bytes(b"")
    (tmp_path / "images" / "09.png").unlink()
    messages = dict(undecodable(images, context=Context(workers)))
    assert len(messages) == 12
    bad = {i: message for i, message in messages.items() if message}
    assert list(bad) == [3, 9]
    assert "03.png: this image does not decode" in bad[3] and "09.png: there is no such file" in bad[9]


def test_a_training_key_without_a_training_transform(images):
    with pytest.raises(ValueError, match="no training transform"):
        Decoded(images, EvalTransform(16))[(0, 0, 0)]


class WhoDecodes:
    """A transform that tells the process it is called in."""

    def __call__(self, image: object) -> torch.Tensor:
        return torch.tensor([os.getpid()])


@pytest.fixture
def spawned():
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def decoders(images, transform) -> set[int]:
    batches = evaluation_batches(images, transform, batch_size=8, context=Context(1))
    return {pid for pixels, _ in batches for pid in pixels.flatten().tolist()}


def alive(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.heavy
def test_workers_that_are_not_forked_wait_for_the_next_pass(images, spawned):
    who = WhoDecodes()
    with kept_workers():
        first = decoders(images, who)
        with kept_workers():
            assert decoders(images, who) == first != {os.getpid()}
        assert all(map(alive, first))
        # A pass that is not ended keeps nothing that the next could wait for in vain.
        next(evaluation_batches(images, who, batch_size=8, context=Context(1)))
        other = decoders(images, who)
        assert not other & first
        assert not decoders(images.subset(np.arange(8)), who) & other
    deadline = time.monotonic() + 30
    while any(map(alive, other)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, other))


@pytest.mark.heavy
def test_what_a_worker_failed_of_is_not_what_the_next_pass_gets(images, make_images, spawned, tmp_path):
    with kept_workers():
        broken = images_of(make_images(["a.png", "b.png"], "broken"))
        good = (tmp_path / "broken" / "a.png").read_bytes()
        (tmp_path / "broken" / "a.png").write_bytes(good[:40])
        with pytest.raises(ImageError, match=r"a\.png"):
            list(evaluation_batches(broken, EvalTransform(8), batch_size=2, context=Context(1)))
        (tmp_path / "broken" / "a.png").write_bytes(good)
        assert len(list(evaluation_batches(broken, EvalTransform(8), batch_size=2, context=Context(1)))) == 1


def test_equal_transforms_are_one():
    assert EvalTransform(16) == EvalTransform(16) != EvalTransform(16, interpolation="bicubic")
    assert EvalTransform(16) != EvalTransform(17)
