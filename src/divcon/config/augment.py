"""Augmentation by name: its names and defaults, and how it is read from text, lists and mappings."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from divcon.errors import unknown

Augment = Mapping[str, Mapping[str, Any]]
"""The augmentations of training images by name, in their order, each with the arguments that are set."""

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "p": 0.8},
    "photometric_distort": {},
    "grayscale": {"p": 0.2},
    "autocontrast": {},
    "equalize": {"p": 0.2},
    "invert": {"p": 0.2},
    "posterize": {"bits": 4, "p": 0.2},
    "solarize": {"threshold": 128, "p": 0.2},
    "sharpness": {"sharpness_factor": 2.0},
    "gaussian_blur": {"kernel_size": 9, "sigma": (0.1, 2.0), "p": 0.5},
    "gaussian_noise": {"sigma": 0.05, "p": 0.5},
    "jpeg": {"quality": (50, 100), "p": 0.5},
    "rotation": {"degrees": 15, "p": 1.0},
    "affine": {"degrees": 10, "translate": (0.1, 0.1), "scale": (0.9, 1.1), "p": 1.0},
    "perspective": {"distortion_scale": 0.3},
    "elastic": {"p": 0.5},
    "vertical_flip": {},
    "erasing": {},
    "rand_augment": {},
    "trivial_augment": {},
    "auto_augment": {},
    "augmix": {},
}
"""The names, and what differs from the defaults of torchvision's classes (see `divcon.data.augmentation`)."""

EXPECTED = "names such as color_jitter,erasing(p=0.3), or a mapping of names to their arguments"


def _plain(name: str) -> str:
    """A name as it is compared: torchvision's ``RandomAdjustSharpness`` is ``sharpness``, ``RandAugment`` is
    ``rand_augment``."""
    return re.sub("random|adjust|transform|wide|_", "", name.lower())


_BY_CLASS = {_plain(name): name for name in DEFAULTS}


def read_augment(value: Any) -> dict[str, dict[str, Any]]:
    """Augmentations from text (``color_jitter(hue=0.2), erasing``; ``none`` or nothing for none), a list of names, or
    a mapping of names to arguments, None for their defaults.

    The names of torchvision's classes (``RandAugment``, ``ColorJitter``) are taken too.

    Raises:
        ValueError: it is none of these, a name is unknown (the message suggests the nearest ones and lists all) or
            comes twice, or an argument is no plain value.
    """
    if isinstance(value, str):
        items = _in_text(value)
    elif isinstance(value, Mapping):
        items = [(name, {} if arguments is None else arguments) for name, arguments in value.items()]
    elif isinstance(value, (list, tuple)):
        items = [item for each in value for item in (_in_text(each) if isinstance(each, str) else [(each, None)])]
    else:
        items = [(value, None)]
    result: dict[str, dict[str, Any]] = {}
    for name, arguments in items:
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError(f"expected {EXPECTED}, not {value!r}")
        name = _BY_CLASS.get(_plain(name), name)
        if name not in DEFAULTS:
            raise ValueError(f"{unknown('augmentation', name, DEFAULTS)} (there are {', '.join(DEFAULTS)})")
        if name in result:
            raise ValueError(f"{name} is named twice; each augmentation is applied once")
        for key, argument in arguments.items():
            if not isinstance(key, str) or not _is_plain(argument):
                raise ValueError(
                    f"{name}: the argument {key} must be a number, text, true or false, or a list of them, not "
                    f"{argument!r}"
                )
        result[name] = {key: list(v) if isinstance(v, (list, tuple)) else v for key, v in arguments.items()}
    return result


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _in_text(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Names, each with arguments in parentheses, as Python writes a call."""
    if text.strip() in ("", "none"):
        return []
    problem = ValueError(f"expected {EXPECTED}, not {text!r}")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise problem from None
    items = []
    for node in tree.elts if isinstance(tree, ast.Tuple) else [tree]:
        call = node if isinstance(node, ast.Call) else None
        named = node if call is None else call.func
        if not isinstance(named, ast.Name) or (call is not None and call.args):
            raise problem
        arguments = {}
        for keyword in () if call is None else call.keywords:
            if keyword.arg is None:
                raise problem
            arguments[keyword.arg] = _argument(keyword.value, problem)
        items.append((named.id, arguments))
    return items


def _argument(node: ast.expr, problem: ValueError) -> Any:
    if isinstance(node, ast.Name):  # text without quotes
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise problem from None
