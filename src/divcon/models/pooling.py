"""Pooling: from a backbone's map of features, or its tokens, to one vector an image."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from divcon.errors import ConfigError, unknown

POOLINGS = ("auto", "avg", "max", "gem", "token")


class GeM(nn.Module):
    """The generalised mean over all places of an image, of each feature: ``mean(x ** p) ** (1 / p)`` (Radenović,
    Tolias, Chum, TPAMI 2018, section 3.2).

    One p for all features is learned, and starts at 3. Between the mean (p = 1) and the maximum (p to infinity). It is
    of positive values: what is below ``eps`` counts as ``eps``. In float32 under any precision.

    Args:
        layout: how the features come, as timm calls it: ``NCHW`` or ``NHWC`` (maps), ``NLC`` (tokens).
        num_prefix_tokens: of ``NLC``, the class and register tokens before those of the patches, which are left out.
    """

    def __init__(self, layout: str, num_prefix_tokens: int = 0, *, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self._layout = layout
        self._first = num_prefix_tokens
        self._eps = eps

    def forward(self, features: Float[Tensor, "B *places"]) -> Float[Tensor, "B F"]:
        """(B, F, H, W), (B, H, W, F) or (B, N, F), by the layout, to (B, F) float32."""
        if self._layout == "NCHW":
            places = features.flatten(2).transpose(1, 2)
        else:
            places = features.flatten(1, -2)[:, self._first :]
        places = places.float().clamp(min=self._eps)
        # Powers of a share of the largest value neither overflow nor vanish, whatever p; that the share is taken of
        # changes neither the result nor its gradient.
        largest = places.detach().amax(dim=1, keepdim=True)
        return (places / largest).pow(self.p).mean(dim=1).pow(1 / self.p) * largest.squeeze(1)

    def extra_repr(self) -> str:
        return f"{self._layout}, num_prefix_tokens={self._first}, p={self.p.item():.3f}"


def create_pooling(backbone: nn.Module, pooling: str, *, name: str, image_size: int) -> tuple[nn.Module, int]:
    """Pool a timm backbone otherwise than it does itself, in place.

    Args:
        pooling: ``auto``: the backbone's own. ``avg`` or ``max``: over the map, or over the tokens of the patches;
            ``token``: the class token alone; these are timm's. ``gem``: `GeM` over what timm gives with no pooling,
            the backbone's last norm applied.
        name: of the backbone, for messages.
        image_size: height and width of what it sees, in pixels.

    Returns:
        What comes after the backbone, which has weights under ``gem`` alone, and F, the number of pooled features.

    Raises:
        ConfigError: no such pooling, or one that the backbone does not have.
    """
    if pooling not in POOLINGS:
        raise ConfigError(unknown("pooling", pooling, POOLINGS))
    after: nn.Module = nn.Identity()
    if pooling != "auto":
        _reset(backbone, pooling, name)
    if pooling == "gem":
        after = GeM(*_unpooled(backbone, name, image_size))
    # Where the head before the classifier changes their number (MobileNetV3), it is no longer that of the last map.
    return after, int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def _reset(backbone: Any, pooling: str, name: str) -> None:
    """Without a classifier still, and pooled by timm as is said; under ``gem`` not pooled."""
    by_timm = "" if pooling == "gem" else pooling
    try:
        backbone.reset_classifier(0, by_timm)
    except (AssertionError, TypeError, ValueError, NotImplementedError) as error:
        said = str(error).rstrip(".")
        raise _cannot(name, pooling, f" ({said})" if said else "") from None
    if hasattr(backbone, "pool_include_prefix"):  # which some have for their own pooling by attention
        backbone.pool_include_prefix = False
    holder = next((part for part in (backbone, getattr(backbone, "head", None)) if hasattr(part, "global_pool")), None)
    found = getattr(holder, "global_pool", None)
    if getattr(found, "pool_type", found) != by_timm:
        raise _cannot(name, pooling)


def _cannot(name: str, pooling: str, said: str = "") -> ConfigError:
    return ConfigError(f"--pooling {pooling}: timm's {name} cannot be pooled so{said}; auto is its own pooling")


@torch.no_grad()
def _unpooled(backbone: nn.Module, name: str, image_size: int) -> tuple[str, int]:
    """How the features come that are not pooled: the layout, and how many tokens are of no patch."""
    training = backbone.training
    seen = backbone.eval()(torch.zeros(1, 3, image_size, image_size))
    backbone.train(training)
    if isinstance(seen, Tensor) and seen.ndim == 4:
        return getattr(backbone, "output_fmt", "NCHW"), 0
    prefix = getattr(backbone, "num_prefix_tokens", None)
    if isinstance(seen, Tensor) and seen.ndim == 3 and prefix is not None:
        return "NLC", prefix
    raise _cannot(name, "gem")
