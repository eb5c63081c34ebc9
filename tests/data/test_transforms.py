"""What the backbone sees: crops of the right place and size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from divcon.config.image_size import height_width
from divcon.data.decode import decode
from divcon.data.transforms import FITS, EvalTransform, TrainTransform


def picture(height: int, width: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


class TestEval:
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    @pytest.mark.parametrize("shape", [(32, 24), (100, 301), (301, 100), (7, 9), (33, 32), (3, 900)])
    def test_it_is_torchvisions_bit_for_bit(self, shape, interpolation, fit):
        image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8))
        ours = EvalTransform((32, 24), fit=fit, interpolation=interpolation)(image)
        theirs, (high, wide), mode = image, shape, InterpolationMode(interpolation)
        if shape == (32, 24):
            pass
        elif fit == "squash":
            theirs = functional.resize(image, [32, 24], interpolation=mode)
        elif fit == "pad":
            scale = min(32 / high, 24 / wide)
            sides = [max(1, round(high * scale)), max(1, round(wide * scale))]
            theirs = Image.new("RGB", (24, 32), (124, 116, 104))
            theirs.paste(
                functional.resize(image, sides, interpolation=mode), ((24 - sides[1]) // 2, (32 - sides[0]) // 2)
            )
        else:
            if max(shape) > 32 * min(shape):
                theirs = functional.center_crop(image, [min(side, 32 * min(shape)) for side in shape])
            covered = (round(32 * 256 / 224), round(24 * 256 / 224))
            tall = covered[0] * theirs.width > covered[1] * theirs.height
            sides = [int(covered[1] * theirs.height / theirs.width), covered[1]]
            if tall:
                sides = [covered[0], int(covered[0] * theirs.width / theirs.height)]
            theirs = functional.center_crop(functional.resize(theirs, sides, interpolation=mode), [32, 24])
        theirs = functional.pil_to_tensor(theirs)
        assert torch.equal(ours, theirs)
        assert ours.stride() == theirs.stride()  # convolutions round by the order in memory, too

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

    @pytest.mark.parametrize("shape", [(128, 64), (100, 300), (300, 100), (40, 30), (33, 700)])
    @pytest.mark.parametrize("size", [(64, 32), (32, 64), 48])
    def test_crop_takes_the_middle_of_an_image_that_covers_the_size(self, shape, size):
        height, width = height_width(size)
        transformed = EvalTransform(size)(picture(*shape))
        assert transformed.shape == (3, height, width)
        scale = max(round(height * 8 / 7) / shape[0], round(width * 8 / 7) / shape[1])
        for channel, dimension, length, taken in ((0, 2, shape[1], width), (1, 1, shape[0], height)):
            line = transformed[channel].float().mean(2 - dimension)
            share = taken / (scale * length)
            assert line[0].item() == pytest.approx(255 * (1 - share) / 2, abs=8)
            assert line[-1].item() == pytest.approx(255 * (1 + share) / 2, abs=8)

    def test_a_square_crop_is_what_it_was(self):
        """The pixels of the transform as it was before other shapes."""
        rng = np.random.default_rng(0)
        for height, width in [(64, 64), (80, 120), (121, 77), (63, 500), (30, 41)]:
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            before = functional.resize(image, [round(56 * 256 / 224)], interpolation=InterpolationMode.BILINEAR)
            before = functional.pil_to_tensor(functional.center_crop(before, [56, 56]))
            assert torch.equal(EvalTransform(56)(image), before)

    @pytest.mark.parametrize("shape", [(128, 64), (100, 300), (10, 10), (1, 3000)])
    @pytest.mark.parametrize("size", [(64, 32), 48])
    def test_squash_takes_the_whole_image_whatever_its_shape(self, shape, size):
        height, width = height_width(size)
        transformed = EvalTransform(size, fit="squash")(picture(*shape)).float()
        assert transformed.shape == (3, height, width)
        by_pillow = picture(*shape).resize((width, height), Image.Resampling.BILINEAR)
        assert np.array_equal(transformed.permute(1, 2, 0).numpy(), np.asarray(by_pillow))
        if shape[1] > 1:  # from one border to the other
            assert transformed[0, :, 0].max() < 12 and transformed[0, :, -1].min() > 243

    @pytest.mark.parametrize("shape", [(128, 64), (100, 300), (10, 10), (1, 300), (63, 64)])
    @pytest.mark.parametrize("size", [(64, 32), (24, 60), 48])
    def test_pad_takes_the_whole_image_in_its_own_shape(self, shape, size):
        height, width = height_width(size)
        fill = (255, 0, 200)
        transformed = EvalTransform(size, fit="pad", fill=fill)(picture(*shape))
        assert transformed.shape == (3, height, width)
        border = (transformed == torch.tensor(fill).view(3, 1, 1)).all(0)
        rows, columns = (~border).any(1).nonzero().flatten(), (~border).any(0).nonzero().flatten()
        scale = min(height / shape[0], width / shape[1])
        assert len(rows) == max(1, round(scale * shape[0])) and len(columns) == max(1, round(scale * shape[1]))
        # In the middle, to half a pixel.
        assert abs(rows[0] - (height - 1 - rows[-1])) <= 1 and abs(columns[0] - (width - 1 - columns[-1])) <= 1
        inside = transformed[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].float()
        if shape[1] > 1:
            assert inside[0, 0, 0] < 20 and inside[0, 0, -1] > 235

    def test_an_image_of_the_size_is_taken_whole_by_every_fit(self):
        image = picture(64, 32)
        for fit in FITS:
            assert np.array_equal(EvalTransform((64, 32), fit=fit)(image).permute(1, 2, 0).numpy(), np.asarray(image))

    @pytest.mark.parametrize("fit", FITS)
    def test_decoding_at_a_smaller_scale_leaves_the_detail_that_is_needed(self, fit, tmp_path):
        """A large JPEG, decoded in full and as the transform asks for: nearly the same pixels."""
        rng = np.random.default_rng(0)
        small = Image.fromarray(rng.integers(0, 256, (20, 10, 3), np.uint8))
        small.resize((800, 1600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
        transform = EvalTransform((64, 32), fit=fit)
        full, drafted = decode(tmp_path / "a.jpg"), decode(tmp_path / "a.jpg", needs=transform.needs)
        assert drafted.width < full.width
        difference = (transform(full).float() - transform(drafted).float()).abs()
        assert difference.mean() < 1.5


class TestTrain:
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("size", [(64, 32), (32, 64), 32])
    def test_every_fit_gives_the_size(self, fit, size):
        torch.manual_seed(0)
        for shape in ((128, 64), (50, 200), (10, 10), (1, 900), (2000, 30)):
            transformed = TrainTransform(size, fit=fit)(picture(*shape))
            assert transformed.shape == (3, *height_width(size)) and transformed.dtype == torch.uint8

    @pytest.mark.parametrize(
        ("fit", "size", "shape", "expected"),
        [
            # The mean width / height of the crop in the image's own pixels: that of the size, or of the image.
            ("crop", 32, (256, 128), 1.0),
            ("crop", (64, 32), (256, 256), 0.5),
            ("squash", 32, (256, 128), 0.5),
            ("squash", (64, 32), (256, 256), 1.0),
            ("squash", (64, 32), (100, 300), 3.0),
        ],
    )
    def test_crops_have_the_shape_that_the_fit_says(self, fit, size, shape, expected):
        torch.manual_seed(0)
        transform = TrainTransform(size, fit=fit, flip=False, min_scale=0.05)
        ratios = []
        for _ in range(300):
            crop = transform(picture(*shape)).float() / 255
            width = (crop[0].max() - crop[0].min()) * shape[1]
            height = (crop[1].max() - crop[1].min()) * shape[0]
            ratios.append((width / height).log().item())
        assert np.exp(np.median(ratios)) == pytest.approx(expected, rel=0.1)

    def test_a_padded_image_is_cropped_with_its_border(self):
        torch.manual_seed(0)
        transform = TrainTransform(32, fit="pad", fill=(0, 0, 255), min_scale=0.3)
        blue = [(transform(picture(128, 64))[2] > 200).float().mean().item() for _ in range(200)]
        # Half of the padded image is border, of which crops around the middle have less.
        assert 0.25 < np.mean(blue) < 0.5 and min(blue) < 0.2 and max(blue) > 0.45

    def test_a_square_crop_is_what_it_was(self):
        """The draws and pixels of the transform as it was before other shapes."""
        before = v2.Compose(
            [
                v2.RandomResizedCrop(24, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
            ]
        )
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 50, 3), np.uint8))
        torch.manual_seed(5)
        expected = [before(image) for _ in range(10)]
        torch.manual_seed(5)
        transform = TrainTransform(24)
        assert all(torch.equal(one, transform(image)) for one in expected)

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
