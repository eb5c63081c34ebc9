"""The icon sets in an unpacked npm package ``@iconify/json``: which there are, who drew them, under which
licence."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divcon.errors import DataError

PACKAGE = "@iconify/json"
PACKAGE_VERSION = "2.2.535"
"""The version that the published counts are of."""

PERMISSIVE = frozenset(
    ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "Unlicense")
)
"""SPDX names of licences without share-alike, non-commercial or attribution-on-use terms."""

_HOW_TO_GET = f"get it with `npm pack {PACKAGE}@{PACKAGE_VERSION}` and unpack the archive with `tar xzf`"


@dataclass(frozen=True)
class IconSet:
    """One icon set: its prefix, what it says about itself, and the names of its own drawings (no aliases)."""

    prefix: str
    path: Path
    info: Mapping[str, Any]
    names: tuple[str, ...]

    @property
    def is_emoji(self) -> bool:
        return self.info.get("category") == "Emoji" or self.prefix == "fluent-emoji"

    @property
    def licence(self) -> str:
        """The licence's SPDX name; empty where the set has none."""
        return self.info.get("license", {}).get("spdx", "")

    def load(self) -> dict[str, Any]:
        """The whole set: ``icons`` by name, and what holds for all of them."""
        return _json(self.path)


@dataclass(frozen=True)
class IconPackage:
    """An unpacked ``@iconify/json``."""

    folder: Path
    version: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> IconPackage:
        """Find the package in ``folder``, or in the folder ``package`` that unpacking makes there.

        Raises:
            DataError: it is not there.
        """
        for place in (Path(folder), Path(folder, "package")):
            manifest = place / "package.json"
            if manifest.is_file() and (place / "json").is_dir():
                found = _json(manifest)
                if found.get("name") == PACKAGE:
                    return cls(place, str(found.get("version", "unknown")))
                raise DataError(f"{place}: this is the package {found.get('name')}, not {PACKAGE}; {_HOW_TO_GET}")
        what = "there is no such folder" if not Path(folder).exists() else f"this is not the unpacked {PACKAGE}"
        raise DataError(f"{folder}: {what}; {_HOW_TO_GET}")

    def sets(self, *, permissive: bool = False) -> list[IconSet]:
        """All icon sets that are not emoji, by prefix; ``permissive``: only those whose licence is among
        PERMISSIVE.

        Raises:
            DataError: there are none, or a file is not an icon set.
        """
        collections = self.folder / "collections.json"
        listed = _json(collections) if collections.is_file() else {}
        sets = []
        for path in sorted((self.folder / "json").glob("*.json")):
            content = _json(path)
            try:
                info = listed.get(content["prefix"]) or content.get("info", {})
                sets.append(IconSet(content["prefix"], path, info, tuple(sorted(content["icons"]))))
            except KeyError as missing:
                raise DataError(f"{path}: this is not an icon set, {missing} is missing; {_HOW_TO_GET}") from None
        sets = [s for s in sets if not s.is_emoji and (not permissive or s.licence in PERMISSIVE)]
        if not sets:
            raise DataError(f"{self.folder}: there are no icon sets to draw; {_HOW_TO_GET}")
        return sorted(sets, key=lambda s: s.prefix)


def attribution(version: str, sets: list[IconSet], images_by_set: Counter[str], options: str, counts: str) -> str:
    """The text of ATTRIBUTION.md: how the file beside it was made, and of each icon set that has a drawing in
    it the name, author, licence and number of images."""
    info = {icon_set.prefix: icon_set.info for icon_set in sets}
    command = " ".join(f"divcon data icons PACKAGE_DIR --out DIR {options}".split())
    lines = [
        "# Where the icons are from",
        "",
        "`icons.parquet` in this folder was made by",
        "",
        f"    {command}",
        "",
        f"where PACKAGE_DIR is the npm package `{PACKAGE}` {version}, unpacked, and DIR this folder.",
        "",
        f"Counted on the way: {counts}{', before classes were sampled' if '--classes' in options else ''}.",
        "",
        "Each drawing was rendered from its SVG as it is, black where it has no colour of its own. It stays",
        "under the licence of its icon set. The sets, authors, licences and the number of images here:",
        "",
        "| set | name | author | licence | SPDX | images |",
        "|---|---|---|---|---|---|",
    ]
    for prefix in sorted(images_by_set):
        about = info[prefix]
        licence = about.get("license", {})
        cells = (
            prefix,
            about.get("name", prefix),
            _link(about.get("author", {}).get("name", "unknown"), about.get("author", {}).get("url")),
            _link(licence.get("title", "unknown"), licence.get("url")),
            licence.get("spdx", ""),
            f"{images_by_set[prefix]:,}",
        )
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _link(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else text


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON ({error}); {_HOW_TO_GET}") from None
