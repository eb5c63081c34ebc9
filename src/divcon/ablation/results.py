"""``results.json``: all that an ablation has found so far, and whether it may be gone on with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from divcon.config import RunConfig
from divcon.environment import environment
from divcon.errors import RunError
from divcon.files import written_whole

Results = dict[str, Any]
"""``settings``, ``environment``, ``trials``, ``choices`` and ``runs``."""


class ResultsFile:
    """The file, and what it holds: rewritten whole after each record."""

    NAME = "results.json"
    CHOICES = "choices.json"

    def __init__(self, out: str | Path) -> None:
        """
        Raises:
            RunError: ``out`` holds something else, or a damaged file.
        """
        self.out = Path(out)
        self.path = self.out / self.NAME
        self.results: Results = {"settings": {}, "environment": {}, "trials": [], "choices": {}, "runs": []}
        if self.path.exists():
            self.results = read_results(self.path)
        elif self.out.exists() and not self.out.is_dir():
            raise RunError(f"{self.out}: is a file; give a folder (--out)")
        elif self.out.exists() and any(self.out.iterdir()):
            raise RunError(f"{self.out}: is not empty and holds no ablation; give another folder (--out)")

    def go_on_with(self, settings: dict[str, Any]) -> None:
        """Begin, or go on where ``settings`` are those that the file has, but for arms and seeds that are new.

        Raises:
            RunError: they differ; the message says in what.
            OutputError: the file cannot be written.
        """
        held = self.results["settings"]
        if held:
            # A setting that has come since was at its default.
            defaults = RunConfig().to_dict()
            base = {part: {k: defaults[part][k] for k in now} for part, now in settings["base"].items()}
            held = {**held, "base": {part: {**base[part], **held["base"].get(part, {})} for part in base}}
            wrong = [words for key in settings for words in _differences(key, held.get(key), settings[key])]
            if wrong:
                raise RunError(
                    f"{self.path}: is of another ablation ({'; '.join(wrong)}); give what it had, or another --out"
                )
            arms = {**held["arms"], **settings["arms"]}
            seeds = [*held["seeds"], *(seed for seed in settings["seeds"] if seed not in held["seeds"])]
            settings = {**held, "arms": arms, "seeds": seeds}
        self.results["settings"] = settings
        self.write()

    def add(self, kind: str, record: dict[str, Any]) -> None:
        """Add a record of ``trials`` or ``runs``, made here and now.

        Raises:
            OutputError: the file cannot be written.
        """
        self.results["environment"] = environment()
        self.results[kind].append(record)
        self.write()

    def write(self) -> None:
        """
        Raises:
            OutputError: the file cannot be written.
        """
        with written_whole(self.path) as beside:
            beside.write_text(_text(self.results), encoding="utf-8")

    def write_choices(self) -> None:
        """
        Raises:
            OutputError: the file cannot be written.
        """
        with written_whole(self.out / self.CHOICES) as beside:
            beside.write_text(json.dumps(self.results["choices"], indent=1) + "\n", encoding="utf-8")


def read_results(path: str | Path) -> Results:
    """What an ablation has found.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(name in found for name in ("settings", "trials", "choices", "runs")):
            raise ValueError("it lacks settings, trials, choices or runs")
    except FileNotFoundError:
        raise RunError(f"{path}: there are no results of an ablation; give DATA to begin one") from None
    except (ValueError, TypeError, OSError, RecursionError) as error:
        raise RunError(f"{path}: damaged, or not of an ablation ({error})") from None
    return found


def _differences(name: str, then: Any, now: Any) -> list[str]:
    """In words, what is not as it was, down to the setting; arms and seeds may come and go."""
    if name == "seeds":
        return []
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = [key for key in {**then, **now} if not (name == "arms" and (key not in then or key not in now))]
        return [
            words
            for key in keys
            for words in _differences(key if name == "base" else f"{name} {key}", then.get(key), now.get(key))
        ]
    return [] if then == now else [f"{name} is {then} there, {now} now"]


def _text(results: Results) -> str:
    """JSON with a line a record: a list of thousands of hits is one line."""
    parts = []
    for name, value in results.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(json.dumps(record) for record in value) + "\n ]"
        else:
            text = json.dumps(value, indent=1).replace("\n", "\n ")
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"
