"""Names of methods, backbones and embeddings, and their checks, for modules that do without PyTorch."""

from __future__ import annotations

import difflib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from divcon.config.backbone_names import FAMILIES, HUB, OPEN_CLIP, OPEN_CLIP_NAMES, SOURCES, canonical
from divcon.errors import ConfigError, unknown
from divcon.runtime.importing import is_named

AUTO = {"images": "resnet50.tv_in1k", "vectors": "none"}
"""The backbone ``auto``, by what the data holds."""
VECTOR_BACKBONES = ("none", "mlp")

Embedding = Literal["head", "features", "pca"]
EMBEDDING_NAMES: dict[str, str] = {"head": "head", "features": "pooled features", "pca": "PCA of the pooled features"}
"""In words."""

METHODS = ("single", "slices", "masks")
"""The built-in methods; see `divcon.models.heads.methods` for all."""


def known_methods() -> list[str]:
    """The methods that have a short name: the built-in ones, and those of modules that are imported."""
    if "divcon.models.heads" not in sys.modules:
        return list(METHODS)
    from divcon.models.heads import methods

    return list(methods())


def check_method_name(method: object, known: Iterable[str]) -> None:
    """
    Raises:
        ConfigError: it is a short name, and none of those known.
    """
    if isinstance(method, str) and method not in known and not is_named(method):
        raise ConfigError(
            f"{unknown('method', method, known)}; for a head of your own write module:Name, or import its module first",
            field="method",
        )


def check_backbone_name(backbone: object) -> None:
    """Check, without importing timm, that a backbone's name is one of timm's, of divcon's for vectors, or your own; or
    what others call one of timm's (see `divcon.config.backbone_names.canonical`). A repository of the hub
    (``hf-hub:user/model``) is looked up later, when the model is created.

    Raises:
        ConfigError: it is none (the message suggests the nearest).
    """
    if not isinstance(backbone, str) or is_named(backbone) or backbone in ("auto", *VECTOR_BACKBONES):
        return
    name = canonical(backbone)
    if name.startswith(SOURCES):
        _check_source(name)
        return
    architecture, _, tag = name.partition(".")
    if "timm" in sys.modules:  # where a module of the user's may have registered more
        loaded: Any = sys.modules["timm"]
        architectures, missing = loaded.list_models(), not loaded.is_model(architecture)
        tagged: Collection[str] = loaded.list_pretrained()
    else:
        architectures, old, tagged = _backbones_in_source()
        missing = bool(architectures) and architecture not in architectures | old
    if missing:
        raise ConfigError(_suggested(backbone, name, architectures, tagged), field="backbone")
    tags = [known for known in tagged if known.startswith(f"{architecture}.")]
    if tag and name not in tags and name not in OPEN_CLIP_NAMES.values():
        import timm  # it takes seconds; its source may name some weights in another way than is read above

        tags = timm.list_pretrained(f"{architecture}.*")
        if not tags or name in tags:
            return
        near = [other for other in tags if other.startswith(name)]
        near += [o for o in difflib.get_close_matches(name, tags, n=_MOST, cutoff=0.5) if o not in near]
        chosen = [*near, *(other for other in tags if other not in near)][:_MOST]
        more = f" ({len(tags)} in all)" if len(tags) > len(chosen) else ""
        raise ConfigError(
            f"unknown backbone {backbone!r}: timm has no weights {tag!r} of {architecture}; it has "
            f"{', '.join(chosen)}{more}; did you mean {chosen[0]!r}?",
            field="backbone",
        )


_MOST = 5
"""The most names that a message suggests."""


def _check_source(name: str) -> None:
    if name.startswith(HUB) and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name.removeprefix(HUB)):
        raise ConfigError(
            f"`backbone` {name}: must name a repository of the Hugging Face hub, as in {HUB}user/model or "
            f"{HUB}user/model@revision",
            field="backbone",
        )


def _suggested(written: str, name: str, architectures: Iterable[str], tagged: Collection[str]) -> str:
    """The message for a name that timm does not have."""
    if written.lower().startswith(OPEN_CLIP):
        return _of_open_clip(written)
    if "/" in name and not name.lower().startswith(("vit-", "vit_")):
        repository = name.removeprefix("hf-hub:")
        return (
            f"unknown backbone {written!r}; for a repository of the Hugging Face hub that timm wrote, use "
            f"{HUB}{repository!s}; a model of your own is module:Name"
        )
    known = sorted(architectures)
    plain = _plain(name.partition(".")[0])
    family = next((names for word, names in FAMILIES.items() if plain == _plain(word)), None)
    if family is not None:
        return f"unknown backbone {written!r}; timm's models of this kind: {', '.join(family.split())}; {_list(plain)}"
    if (match := re.match(r"vit(ti|s|b|l|h|g)(8|14|16|32)", plain)) is not None:  # ViT-B/16, vit_b_16
        sizes = {"ti": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
        of_size = [model for model in known if model.startswith(f"vit_{sizes[match[1]]}_patch{match[2]}_")]
        near = sorted(of_size, key=lambda model: (("336" in name) is not ("336" in model), len(model)))
    else:
        near = _nearest(plain, known)
    if not near:
        return f"unknown backbone {written!r}; timm's names are {_list('resnet').removeprefix('all are ')}"
    tag = name.partition(".")[2]
    with_tag = [f"{model}.{tag}" for model in near[:3] if tag and f"{model}.{tag}" in tagged]
    return f"unknown backbone {written!r}; did you mean {' or '.join(map(repr, with_tag or near[:3]))}?"


def _nearest(plain: str, known: Iterable[str]) -> list[str]:
    """Architectures that are spelled nearly so, or begin so."""
    by_plain = {_plain(model): model for model in known}
    near = [plain] if plain in by_plain else []
    near += sorted((p for p in by_plain if len(plain) >= 4 and p.startswith(plain) and p not in near), key=len)[:3]
    near += [p for p in difflib.get_close_matches(plain, by_plain, n=3, cutoff=0.5) if p not in near]
    near += sorted(p for p in by_plain if plain in p and p not in near)
    return [by_plain[p] for p in near]


def _of_open_clip(written: str) -> str:
    model, _, tag = written[len(OPEN_CLIP) :].rpartition("/")
    stem = (model or tag).casefold()
    of_model = [name for name in OPEN_CLIP_NAMES if name.casefold().startswith(f"{stem}/")]
    near = of_model or difflib.get_close_matches(written[len(OPEN_CLIP) :], OPEN_CLIP_NAMES, n=3, cutoff=0.4)
    listed = ", ".join(OPEN_CLIP + name for name in near[:8]) or f"{OPEN_CLIP}ViT-B-32/laion2b_s34b_b79k, say"
    return (
        f"unknown backbone {written!r}: an open_clip model is {OPEN_CLIP}MODEL/PRETRAINED, and timm has the image "
        f"towers of {len(set(OPEN_CLIP_NAMES.values()))} of them; "
        + (f"of this one: {listed}" if of_model else f"did you mean {listed}?")
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name.lower())


def _list(word: str) -> str:
    return f"all are listed by python -c \"import timm; print(timm.list_pretrained('*{word}*'))\""


@cache
def _backbones_in_source() -> tuple[frozenset[str], frozenset[str], tuple[str, ...]]:
    """The models that timm registers, the names that they once had, and the names with tags of its pretrained weights,
    as its source has them: importing it takes seconds. Empty where its source is not there, or written in another way;
    then its own registry decides later."""
    spec = importlib.util.find_spec("timm")
    names: set[str] = set()
    old: set[str] = set()
    tagged: list[str] = []
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder, "models").glob("*.py")):
            text = file.read_text(encoding="utf-8")
            names.update(re.findall(r"^@register_model\s*\ndef (\w+)\(", text, re.MULTILINE))
            renamed = text.partition("register_model_deprecations(")[2]
            old.update(re.findall(r"^\s+'(\w+)': '[\w.]+',", renamed, re.MULTILINE))
            weights = text.partition("register_model_deprecations(")[0]
            found = re.findall(r"^\s+['\"](\w+\.[\w.]+)\*?['\"]\s*:", weights, re.MULTILINE)
            tagged.extend(name for name in found if name not in tagged)
    return frozenset(names), frozenset(old), tuple(tagged)


def check_learner(learner: int, num_learners: int) -> None:
    """
    Raises:
        ConfigError: a model of so many learners has no such learner.
    """
    if not 0 <= learner < num_learners:
        raise ConfigError(f"`learner` {learner}: the model has learners 0 to {num_learners - 1}", field="learner")


def own_parts(config: Mapping[str, Any]) -> list[str]:
    """The code of the user's own that a model's `EmbeddingModel.config` names, each as ``module:Name``."""
    names = [config.get("backbone"), config.get("eval_transform")]
    head: Any = config
    while isinstance(head, Mapping):  # a pruned head names the head that it was cut from
        names.append(head.get("method"))
        options = head.get("head_options")
        head = options.get("of") if isinstance(options, Mapping) else None
    return [str(name) for name in names if is_named(name) and not str(name).startswith("divcon.")]
