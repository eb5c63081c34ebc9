"""BatchNorm folded into convolutions: the same features, of every kind of backbone, and nothing of it left behind."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

import divcon as dc
from divcon.data.benchmark import Benchmark
from divcon.models.folding import folded

Make = Callable[..., dc.EmbeddingModel]


def uneven(backbone: nn.Module) -> nn.Module:
    """In eval mode, with BatchNorms that do something, as those of a trained network."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low in ((module.weight, 0.5), (module.bias, -0.5), (module.running_mean, -0.5)):
                if tensor is not None:
                    tensor.data = low + torch.rand(tensor.shape, generator=generator)
            if module.running_var is not None:
                module.running_var = 0.5 + torch.rand(module.running_var.shape, generator=generator)
    return backbone.eval()


def norms(backbone: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())


def images(channels: int = 3, size: int = 64) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def outputs(backbone: nn.Module, channels: int = 3, size: int = 64) -> Tensor:
    with torch.inference_mode():
        return backbone(images(channels, size))


def fold(backbone: nn.Module, channels: int = 3, size: int = 64) -> nn.Module:
    with torch.inference_mode():
        return folded(backbone, images(channels, size)[:1])


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "size", "left"),
    [
        ("resnet18", 64, 0),
        ("tf_efficientnet_lite0", 64, 0),  # convolutions that pad as TensorFlow does, norms with an activation
        ("mobilenetv3_small_050", 64, 0),
        ("densenet121", 64, 62),  # norms before convolutions
        ("repvgg_a0", 64, 17),  # norms of a sum
        ("resnetv2_50", 64, 17),
        ("hrnet_w18_small", 64, 0),
        ("levit_128", 224, 58),  # keeps biases that it computes; norms of linear layers
        ("fastvit_t8", 64, 24),
    ],
)
def test_the_features_of_a_backbone_are_the_same(name: str, size: int, left: int) -> None:
    backbone = uneven(timm.create_model(name, num_classes=0))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    expected = outputs(backbone, size=size)
    folding = fold(backbone, size=size)
    assert norms(backbone) > left == norms(folding)
    torch.testing.assert_close(outputs(folding, size=size), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    # The backbone goes on as it was.
    torch.testing.assert_close(outputs(backbone, size=size), expected, rtol=0, atol=0)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(tensor.is_inference() for tensor in backbone.state_dict().values())
    backbone.train()(torch.randn(2, 3, size, size)).sum().backward()


@pytest.mark.parametrize("size", [15, 16, 17, 18])
@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("dilation", "groups"), [(1, 1), (1, 4), (2, 1)])
def test_convolutions_that_pad_as_tensorflow_does(size: int, kernel: int, stride: int, dilation: int, groups: int):
    same = Conv2dSame(4, 8, (kernel, 3), stride=stride, dilation=dilation, groups=groups)
    backbone = uneven(nn.Sequential(same, nn.BatchNorm2d(8)))
    copy = fold(backbone, channels=4, size=size)
    assert norms(copy) == 0
    expected = outputs(backbone, channels=4, size=size)
    torch.testing.assert_close(outputs(copy, channels=4, size=size), expected, rtol=1e-4, atol=1e-5)


def test_no_random_number_is_drawn() -> None:
    backbone = uneven(timm.create_model("tf_efficientnet_lite0", num_classes=0))
    before = torch.get_rng_state()
    assert not any(isinstance(module, Conv2dSame) for module in fold(backbone).modules())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_copy_shares_what_is_not_folded() -> None:
    backbone = uneven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)))
    copy = fold(backbone)
    mine, theirs = copy.state_dict(), backbone.state_dict()
    assert mine["2.weight"].data_ptr() == theirs["2.weight"].data_ptr()
    assert mine["0.weight"].data_ptr() != theirs["0.weight"].data_ptr()


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224"])
def test_without_batch_norm_it_is_the_backbone_itself(name: str) -> None:
    backbone = timm.create_model(name, num_classes=0).eval()
    assert fold(backbone, size=224) is backbone


class Twice(nn.Module):
    """The output of the convolution is used beside the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        convolved = self.conv(x)
        return self.norm(convolved) + convolved


class Shared(nn.Module):
    """One convolution before two norms, or two before one."""

    def __init__(self, convolutions: int, norms: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 4, 3) for _ in range(convolutions))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(norms))

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[0](self.convs[0](x)) + self.norms[-1](self.convs[-1](2 * x))


class ReachedInto(nn.Module):
    """The convolution's weight is used once more, as a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + torch.conv2d(x, self.conv.weight)


class Standardized(nn.Conv2d):
    """Computes its weights, so that no scale of them lasts."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight / self.weight.norm(), self.bias)


class ByKeyword(nn.Module):
    """Passes the input of the convolution or the norm by keyword."""

    def __init__(self, named: str) -> None:
        super().__init__()
        self.conv, self.norm, self.named = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), named

    def forward(self, x: Tensor) -> Tensor:
        if self.named == "conv":
            return self.norm(self.conv(input=x))
        return self.norm(input=self.conv(x))


class Asked(nn.Module):
    """The norm is asked for what only a norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.norm.num_features


@pytest.mark.parametrize(
    "backbone",
    [
        Twice(),
        Shared(1, 2),
        Shared(2, 1),
        ReachedInto(),
        nn.Sequential(Standardized(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        Asked(),
        ByKeyword("conv"),
        ByKeyword("norm"),
    ],
    ids=lambda backbone: type(backbone).__name__,
)
def test_what_cannot_be_folded_stays(backbone: nn.Module) -> None:
    uneven(backbone)
    expected = outputs(backbone)
    copy = fold(backbone)
    assert norms(copy) == norms(backbone) > 0
    torch.testing.assert_close(outputs(copy), expected, rtol=0, atol=0)


def test_a_norm_that_trains_stays() -> None:
    backbone = uneven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    backbone.get_submodule("1").train()
    assert fold(backbone) is backbone


def test_an_affine_less_norm_and_a_convolution_with_a_bias_are_folded() -> None:
    backbone = uneven(nn.Sequential(nn.Conv2d(6, 4, 3, bias=True, groups=2), nn.BatchNorm2d(4, affine=False)))
    copy = fold(backbone, channels=6)
    assert norms(copy) == 0
    torch.testing.assert_close(outputs(copy, channels=6), outputs(backbone, channels=6), rtol=1e-4, atol=1e-5)


def test_features_of_several_batches_are_those_of_the_network_as_it_is(tiny_model: Make, few: Benchmark) -> None:
    model = tiny_model()
    uneven(model.backbone)
    images = few.query.subset(np.arange(30))
    at_once = model.features(images, batch_size=30)
    calls: list[int] = []
    handle = model.backbone.register_forward_pre_hook(lambda *_: calls.append(1))
    model.features(images, batch_size=30)
    assert len(calls) == 1, "one batch is not worth folding for"
    handle.remove()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.testing.assert_allclose(model.features(images, batch_size=7), at_once, rtol=1e-3, atol=1e-4 * at_once.std())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # What training changes is folded anew.
    with torch.no_grad():
        next(model.backbone.parameters()).mul_(-1)
    changed = model.features(images, batch_size=30)
    assert np.abs(changed - at_once).max() > at_once.std()
    np.testing.assert_allclose(model.features(images, batch_size=7), changed, rtol=1e-3, atol=1e-4 * changed.std())


def test_a_compiled_backbone_is_folded_as_it_was_written() -> None:
    backbone = uneven(timm.create_model("resnet18", num_classes=0))
    expected = outputs(backbone)
    compiled: list[int] = []
    backbone.compile(backend=lambda graph, inputs: compiled.append(1) or graph)
    copy = fold(backbone)
    torch.testing.assert_close(outputs(copy), expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert norms(copy) == 0 and not compiled


def test_where_it_would_compute_otherwise_the_backbone_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = uneven(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    monkeypatch.setattr("divcon.models.folding.fuse_conv_bn_eval", lambda convolution, norm: convolution)
    assert fold(backbone) is backbone


def test_other_threads_compute_on_meanwhile() -> None:
    backbone = uneven(timm.create_model("resnet18", num_classes=0))
    expected = outputs(backbone)
    with ThreadPoolExecutor(2) as threads:
        folding = threads.submit(lambda: [fold(backbone) for _ in range(5)])
        computed = [outputs(backbone) for _ in range(10)]
    assert [norms(copy) for copy in folding.result()] == [0] * 5
    for features in computed:
        torch.testing.assert_close(features, expected, rtol=0, atol=0)
