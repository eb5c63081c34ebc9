"""The parts of the pages that the code itself gives: settings, commands, losses and miners, published results.

A page has such a part where it says, on a line of its own, ``<!-- generated: settings -->``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from cyclopts.docs import generate_markdown_docs
from docutils import nodes
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from torch import nn

from divcon.cli.app import app as command_line
from divcon.cli.messages import flag, in_flags
from divcon.config.augment import Augment
from divcon.config.fields import Part, field_docs
from divcon.config.presets import PRESETS, PUBLISHED_RESULTS
from divcon.config.settings import AUTO_MINERS, SECTIONS, TrainConfig
from divcon.errors import ConfigError
from divcon.models import SubspaceHead, create_head
from divcon.training.cross_batch_memory import memory_losses
from divcon.training.instantiate import arguments
from divcon.training.losses import create_objectives, loss_names
from divcon.training.miners import OWN_MINERS, miner_names

PML = "https://kevinmusgrave.github.io/pytorch-metric-learning"
_FILLED_IN = ("num_classes", "embedding_size", "descriptors_dim")
"""Arguments of losses that divcon fills in."""
_LEFT_OUT = ("collect_stats", "embedding_reg_weight", "weight_reg_weight")
_MARK = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
_COMMAND = re.compile(r"(divcon|npm|source) ")


def settings() -> str:
    """Every setting: its name, flag, type, default and what it means, from the dataclasses of the settings."""
    lines = []
    for part, kind in SECTIONS.items():
        documented, hints = field_docs(kind), typing.get_type_hints(kind)
        lines += [f"## {part}: {kind.__name__}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        for field in dataclasses.fields(kind):
            flags = ", ".join(f"`{name}`" for name in _flags(field.name, hints[field.name]))
            about = in_flags(documented[field.name])
            shown = f"{flags} · {_kind(hints[field.name])} · default `{_default(field)}`"
            lines += [f"### {field.name}", "", shown, "", _text(about), ""]
    return "\n".join(lines)


def commands() -> str:
    """The help of every command, with the commands in it as code."""
    text = generate_markdown_docs(command_line, generate_toc=False)
    # Cyclopts takes how Sphinx was started, `python -m sphinx`, for a part of the commands.
    text = text.replace(" -m sphinx", "")
    lines: list[str] = []
    fenced = shown = False
    for line in text[text.index("\n## ") :].splitlines():
        fenced ^= line.startswith("```")
        is_command = not fenced and _COMMAND.match(line) is not None
        if shown and not is_command:
            if not line:
                continue
            lines += ["```", ""]
        if is_command and not shown:
            lines.append("```bash")
        shown = is_command or (shown and not line)
        lines.append(line)
    return "\n".join(lines).replace("```console", "```bash")


def losses() -> str:
    """A table of the losses that divcon trains, and why it does not train the others."""
    lines = [
        "| loss | arguments and their defaults | weights of its own | memory |",
        "|---|---|---|---|",
    ]
    for name in loss_names():
        own = "yes" if _has_weights(name) else ""
        memory = "yes" if name in memory_losses() else ""
        link = f"[{name}]({PML}/losses/#{name.lower()})"
        lines.append(f"| {link} | {_arguments(getattr(pml_losses, name))} | {own} | {memory} |")
    return "\n".join(lines)


def refused_losses() -> str:
    """What of pytorch-metric-learning's losses divcon does not train, in the words of the error."""
    lines = []
    for name, kind in vars(pml_losses).items():
        if not inspect.isclass(kind) or name in loss_names() or name.startswith("Base") or "Mixin" in name:
            continue
        try:
            create_objectives(TrainConfig(loss=name), _head(), 4)
        except ConfigError as error:
            lines.append(f"- `{name}`: {_text(str(error).removeprefix(f'loss {name!r} '))}.")
    return "\n".join(lines)


def miners() -> str:
    """A table of the miners."""
    autos = ", ".join(f"{miner} for {loss}" for loss, miner in AUTO_MINERS.items())
    lines = [
        "| miner | arguments and their defaults |",
        "|---|---|",
        f"| auto | {autos}, none for the rest |",
        "| none | all pairs or triplets of a batch |",
    ]
    for name in miner_names():
        if name in OWN_MINERS:
            lines.append(f"| {name} (divcon's) | {_arguments(OWN_MINERS[name])} |")
        elif name not in ("auto", "none"):
            lines.append(f"| [{name}]({PML}/miners/#{name.lower()}) | {_arguments(getattr(pml_miners, name))} |")
    return "\n".join(lines)


REPRODUCED = Path(__file__).parent / "results" / "reproduced"
"""What ``divcon reproduce --json`` wrote, a file a run."""
_BENCHMARKS = ("cub", "cars", "sop", "inshop", "vehicleid-large")


def published_results() -> str:
    """A row a data set and preset: what is published, and what the files in `REPRODUCED` hold."""
    ours: dict[tuple[str, str], list[str]] = {}
    for path in sorted(REPRODUCED.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        made = result["reproduced"]
        if made["fraction"] < 1:
            raise ValueError(f"{path}: is of a walk on a part, which is no result")
        words = ", ".join(f"{name} {cell}" for name, cell in zip(_COLUMNS, _cells(result), strict=True) if cell)
        words += f" (seed {made['settings']['train']['seed']}{', settings changed' if made['changed'] else ''})"
        ours.setdefault((result["benchmark"], made["preset"]), []).append(words)
    lines = [f"| data | preset | {' | '.join(_COLUMNS)} | ours |", "|---|---|---|---:|---:|---|"]
    for data in _BENCHMARKS:
        for name in PRESETS:
            known, runs = PUBLISHED_RESULTS.get(name, {}).get(data), ours.get((data, name))
            if known or runs:
                cells = _cells(known.scores) if known else [""] * len(_COLUMNS)
                lines.append(f"| {data} | `{name}` | {' | '.join(cells)} | {', '.join(runs or ['not run'])} |")
    return "\n".join(lines)


_COLUMNS = ("Recall@k", "NMI", "mARP")


def _cells(scores: Mapping[str, Any]) -> list[str]:
    """``65.9 @1, 76.6 @2``, NMI and mARP, as far as there are such scores."""
    recalls = [name for name in scores if re.fullmatch(r"recall_at_\d+", name)]
    recall = ", ".join(f"{_percent(scores[name])} @{name.removeprefix('recall_at_')}" for name in recalls)
    return [recall, *(_percent(scores[name]) if name in scores else "" for name in ("nmi", "marp"))]


def _percent(value: float) -> str:
    return f"{100 * value:.2f}".removesuffix("0")


GENERATED = {
    "settings": settings,
    "commands": commands,
    "losses": losses,
    "refused losses": refused_losses,
    "miners": miners,
    "published results": published_results,
}


def _flags(name: str, hint: Any) -> list[str]:
    plain = hint if hint is bool else typing.get_args(hint)
    if plain is bool or (isinstance(plain, tuple) and bool in plain and type(None) in plain):
        return [flag(name), flag(f"no_{name}")]
    if typing.get_origin(hint) is dict:
        return [f"{flag(name)}.NAME VALUE"]
    return list(dict.fromkeys((flag(name), "--" + name.replace("_", "-"))))


def _kind(hint: Any) -> str:
    if hint == Part:
        return "text, or a part of your own"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint == Augment:
        return "names, with arguments"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(option) for option in inner)
    if origin is dict:
        return "names and values"
    if origin is tuple:
        return "height x width" if inner == (int, int) else "two numbers"
    names = {int: "whole number", float: "number", bool: "true or false", str: "text", Path: "path"}
    return names.get(hint, "none")


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default_factory() if callable(field.default_factory) else field.default
    return {"True": "true", "False": "false", "None": "none", "{}": "none"}.get(str(value), str(value))


def _text(words: str) -> str:
    """Words of a docstring as Markdown: flags as code, and no mark that Markdown would take for its own."""
    words = words.replace("*", r"\*").replace("<", r"\<")
    return re.sub(r"(?<![\w`-])(--[a-z][\w.-]*\w)", r"`\1`", words)


def _head() -> SubspaceHead:
    return create_head("slices", 8, 16, 2)


def _has_weights(loss: str) -> bool:
    needed = [name for name, value in arguments(getattr(pml_losses, loss)).items() if value is inspect.Parameter.empty]
    options = {name: 1.0 for name in needed if name not in _FILLED_IN}
    made = create_objectives(TrainConfig(loss=loss, loss_options=options), _head(), 4)
    return any(True for _ in made.parameters())


def _arguments(kind: type[nn.Module]) -> str:
    words = []
    for name, default in arguments(kind).items():
        if name in (*_FILLED_IN, *_LEFT_OUT):
            continue
        if default is inspect.Parameter.empty:
            words.append(f"`{name}`")
        elif default is not None and not isinstance(default, (nn.Module, torch.Tensor)):
            words.append(f"`{name}={default}`")
    return ", ".join(words)


def _insert(app: Sphinx, docname: str, source: list[str]) -> None:
    def part(found: re.Match[str]) -> str:
        return GENERATED[found[1]]()

    source[0] = _MARK.sub(part, source[0])


def _outdated(app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]) -> list[str]:
    """Pages with generated parts are read again in every build: what they are made of is not in the page."""
    return [name for name in env.found_docs if _MARK.search(env.doc2path(name).read_text(encoding="utf-8"))]


def _plain(app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    """``embedding_dim: D.`` is not the fourth item of a list."""
    lines[:] = [re.sub(r"(^\s*|: )([A-Z])\.$", r"\1\\\2.", line) for line in lines]


def _dashes(app: Sphinx, doctree: nodes.document) -> None:
    """Sphinx writes `` -- `` between a parameter and what it is."""
    for text in list(doctree.findall(nodes.Text)):
        if text == " -- ":
            text.parent.replace(text, nodes.Text(" – "))


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("source-read", _insert)
    app.connect("env-get-outdated", _outdated)
    app.connect("autodoc-process-docstring", _plain, priority=400)  # before napoleon
    app.connect("doctree-read", _dashes)
    return {"parallel_read_safe": True}
