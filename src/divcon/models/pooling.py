"""Pooling: one vector per image from a backbone's feature map or tokens."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divcon.config.image_size import ImageSize, height_width
from divcon.errors import ConfigError, unknown

POOLINGS = ("auto", "avg", "max", "gem", "token")


class GeM(nn.Module):
    """The generalised mean over all places of an image, of each feature: ``mean(x ** p) ** (1 / p)`` (Radenović,
    Tolias, Chum, TPAMI 2018, section 3.2).

    One p for all features is learned, starting at 3. The result lies between the mean (p = 1) and the maximum (p to
    infinity). Values below ``eps`` count as ``eps``. Computed in float32 under any precision.

    Args:
        layout: the features' layout, in timm's terms: ``NCHW`` or ``NHWC`` (maps), ``NLC`` (tokens).
        num_prefix_tokens: the number of class and register tokens before those of the patches (``NLC``), which are left
            out.
    """

    def __init__(self, layout: str, num_prefix_tokens: int = 0, *, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self._layout = layout
        self._first = num_prefix_tokens
        self._eps = eps

    def forward(self, features: Float[Tensor, "B *places"]) -> Float[Tensor, "B F"]:
        """(B, F, H, W), (B, H, W, F) or (B, N, F), by the layout, to (B, F) float32."""
        places = _places(features, self._layout, self._first).float().clamp(min=self._eps)
        # Divided by the largest value, powers neither overflow nor vanish, whatever p is; multiplying with it again
        # restores the result and its gradient.
        largest = places.detach().amax(dim=1, keepdim=True)
        return (places / largest).pow(self.p).mean(dim=1).pow(1 / self.p) * largest.squeeze(1)

    def extra_repr(self) -> str:
        return f"{self._layout}, num_prefix_tokens={self._first}, p={self.p.item():.3f}"


class Pool(nn.Module):
    """The mean or the maximum over all places of an image, or its first token; for the user's own backbone.

    Args:
        kind: ``avg``, ``max`` or ``token``.
        layout, num_prefix_tokens: see `GeM`.
    """

    def __init__(self, kind: str, layout: str, num_prefix_tokens: int = 0) -> None:
        super().__init__()
        self._kind = kind
        self._layout = layout
        self._first = num_prefix_tokens

    def forward(self, features: Float[Tensor, "B *places"]) -> Float[Tensor, "B F"]:
        """(B, F, H, W), (B, H, W, F) or (B, N, F), by the layout, to (B, F)."""
        if self._kind == "token":
            return features[:, 0]
        places = _places(features, self._layout, self._first)
        return places.mean(dim=1) if self._kind == "avg" else places.amax(dim=1)

    def extra_repr(self) -> str:
        return f"{self._kind}, {self._layout}, num_prefix_tokens={self._first}"


def _places(features: Tensor, layout: str, num_prefix_tokens: int) -> Tensor:
    """(B, N, F): the features of each place."""
    if layout == "NCHW":
        return features.flatten(2).transpose(1, 2)
    return features.flatten(1, -2)[:, num_prefix_tokens:]


def create_pooling(
    backbone: nn.Module, pooling: str, *, name: str, image_size: ImageSize, channels: int = 3
) -> tuple[nn.Module, int]:
    """Set the pooling of a timm backbone, in place.

    Args:
        pooling: ``auto``: the backbone's own. ``avg`` or ``max``: over the map, or over the tokens of the patches;
            ``token``: the class token alone; these are timm's. ``gem``: `GeM` over timm's unpooled features, after the
            backbone's last norm.
        name: the backbone's name, for messages.
        image_size: of the backbone's input, in pixels: height and width both, or (height, width).

    Returns:
        The module that comes after the backbone (it has weights under ``gem`` alone), and F, the number of pooled
        features.

    Raises:
        ConfigError: there is no such pooling, or the backbone does not have it.
    """
    _check_known(pooling)
    after: nn.Module = nn.Identity()
    if pooling != "auto":
        _reset(backbone, pooling, name)
    if pooling == "gem":
        after = GeM(*_unpooled(backbone, name, image_size, channels))
    # MobileNetV3's head changes the number of features after the last map.
    return after, int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def create_pooling_of(output: Tensor, backbone: nn.Module, pooling: str, *, name: str) -> tuple[nn.Module, int]:
    """The pooling of the user's own backbone.

    Args:
        output: the backbone's, (1, F), (1, F, H, W) or (1, N, F). A backbone with maps (B, H, W, F) has the attribute
            ``output_fmt = "NHWC"``, one with tokens before those of the patches ``num_prefix_tokens``.
        pooling: ``auto`` (none for (1, F), else ``avg``), or as in `create_pooling`.

    Returns:
        The module that comes after the backbone, and F.

    Raises:
        ConfigError: there is no such pooling, or the output cannot be pooled so.
    """
    _check_known(pooling)
    if output.ndim == 2:
        if pooling != "auto":
            raise ConfigError(
                f"`pooling` {pooling}: the features of backbone {name} are pooled already; leave it out",
                field="pooling",
            )
        return nn.Identity(), output.shape[1]
    if output.ndim not in (3, 4):
        raise ConfigError(
            f"backbone {name}: its output for one image has shape {tuple(output.shape)}; it must be (B, F), a map "
            "(B, F, H, W), or tokens (B, N, F)",
            field="backbone",
        )
    layout = "NLC" if output.ndim == 3 else str(getattr(backbone, "output_fmt", "NCHW"))
    if pooling == "token" and layout != "NLC":
        raise ConfigError(
            f"`pooling` token: backbone {name} has a map and no tokens; use avg, max or gem", field="pooling"
        )
    prefix = int(getattr(backbone, "num_prefix_tokens", 0)) if layout == "NLC" else 0
    width = output.shape[1] if layout == "NCHW" else output.shape[-1]
    if pooling == "gem":
        return GeM(layout, prefix), width
    return Pool("avg" if pooling == "auto" else pooling, layout, prefix), width


def _check_known(pooling: str) -> None:
    if pooling not in POOLINGS:
        raise ConfigError(unknown("pooling", pooling, POOLINGS), field="pooling")


def _reset(backbone: Any, pooling: str, name: str) -> None:
    """Set timm's own pooling (none for ``gem``), without a classifier."""
    by_timm = "" if pooling == "gem" else pooling
    try:
        backbone.reset_classifier(0, by_timm)
    except (AssertionError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).rstrip(".")
        raise _cannot(name, pooling, f" ({reason})" if reason else "") from None
    if hasattr(backbone, "pool_include_prefix"):  # of models that pool by attention
        backbone.pool_include_prefix = False
    holder = next((m for m in (backbone, getattr(backbone, "head", None)) if hasattr(m, "global_pool")), None)
    now = getattr(holder, "global_pool", None)
    if getattr(now, "pool_type", now) != by_timm:
        raise _cannot(name, pooling)


def _cannot(name: str, pooling: str, reason: str = "") -> ConfigError:
    return ConfigError(
        f"`pooling` {pooling}: timm's {name} cannot be pooled so{reason}; `pooling=auto` is its own pooling",
        field="pooling",
    )


@torch.no_grad()
def _unpooled(backbone: nn.Module, name: str, image_size: ImageSize, channels: int) -> tuple[str, int]:
    """The layout of the unpooled features, and the number of tokens before those of the patches."""
    training = backbone.training
    output = backbone.eval()(torch.zeros(1, channels, *height_width(image_size)))
    backbone.train(training)
    if isinstance(output, Tensor) and output.ndim == 4:
        return getattr(backbone, "output_fmt", "NCHW"), 0
    prefix = getattr(backbone, "num_prefix_tokens", None)
    if isinstance(output, Tensor) and output.ndim == 3 and prefix is not None:
        return "NLC", prefix
    raise _cannot(name, "gem")
