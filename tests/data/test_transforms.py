"""What the backbone sees: crops of the right place and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from divcon.data.transforms import EvalTransform, TrainTransform


def picture(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


class TestEval:
    def test_an_image_of_the_size_is_taken_whole(self):
        image = picture(64, 64)
        assert np.array_equal(EvalTransform(64)(image).permute(1, 2, 0).numpy(), np.asarray(image))

    @pytest.mark.parametrize("shape", [(256, 256), (100, 300), (300, 100), (30, 40), (225, 224)])
    def test_the_shorter_side_is_resized_to_256_for_224_and_the_centre_taken(self, shape):
        transformed = EvalTransform(224)(picture(*shape))
        assert transformed.shape == (3, 224, 224) and transformed.dtype == torch.uint8
        height, width = shape
        scale = 256 / min(shape)
        for channel, dimension, length in ((0, 2, width), (1, 1, height)):
            line = transformed[channel].float().mean(2 - dimension)
            # 224 of `scale * length` pixels around the middle.
            share = 224 / (scale * length)
            assert line[0].item() == pytest.approx(255 * (1 - share) / 2, abs=4)
            assert line[-1].item() == pytest.approx(255 * (1 + share) / 2, abs=4)

    def test_interpolation(self):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
        assert not torch.equal(EvalTransform(32)(image), EvalTransform(32, interpolation="bicubic")(image))


class TestTrain:
    def test_shape_and_type(self):
        for shape in ((64, 64), (50, 200), (10, 10)):
            transformed = TrainTransform(32)(picture(*shape))
            assert transformed.shape == (3, 32, 32) and transformed.dtype == torch.uint8

    def test_crops_are_of_the_scale_asked_for(self):
        torch.manual_seed(0)
        for min_scale in (0.08, 0.5):
            transform = TrainTransform(64, min_scale=min_scale, flip=False)
            areas = []
            for _ in range(200):
                transformed = transform(picture(256, 256)).float()
                width = (transformed[0].max() - transformed[0].min()) / 255
                height = (transformed[1].max() - transformed[1].min()) / 255
                areas.append((width * height).item())
            assert min(areas) > min_scale * 0.85 and max(areas) < 1.01
            assert min(areas) < min_scale + 0.1 and max(areas) > 0.85

    def test_half_are_mirrored_and_none_without_flip(self):
        torch.manual_seed(0)

        def mirrored(flip: bool) -> int:
            transform = TrainTransform(16, min_scale=0.5, flip=flip)
            crops = [transform(picture(32, 32)).float() for _ in range(200)]
            return sum((pixels[0, :, 0] > pixels[0, :, -1]).all().item() for pixels in crops)

        assert 70 < mirrored(True) < 130 and mirrored(False) == 0

    def test_the_generator_decides(self):
        transform = TrainTransform(16)
        image = picture(64, 64)
        torch.manual_seed(3)
        one = [transform(image) for _ in range(5)]
        torch.manual_seed(3)
        assert all(torch.equal(a, transform(image)) for a in one)
