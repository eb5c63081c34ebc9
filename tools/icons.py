"""Build the icons benchmark: what many people draw under the same name.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz
    pip install 'resvg-py>=0.5,<0.6'
    python tools/icons.py package --out data/icons

A class is an icon name that 4 to 40 icon sets draw; an image is one set's drawing. Like Stanford Online Products it has
thousands of classes with a few images each.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cyclopts import App, Parameter
from PIL import Image
from rich.console import Console
from rich.progress import Progress as ProgressBar

from divcon.cli.messages import in_flags
from divcon.data.readers.icons import ATTRIBUTION_FILE, ICONS_FILE, MAX_IMAGES, MIN_IMAGES, IconCounts
from divcon.errors import ConfigError, DataError, DivconError
from divcon.runtime.files import atomic_write

PACKAGE = "@iconify/json"
PACKAGE_VERSION = "2.2.535"
"""The version that the published counts are of."""

PERMISSIVE = frozenset(
    ("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "Unlicense")
)
"""SPDX names of licences without share-alike, non-commercial or attribution-on-use terms."""

_HOW_TO_GET = f"get it with `npm pack {PACKAGE}@{PACKAGE_VERSION}` and unpack the archive with `tar xzf`"

Progress = Callable[[int, int], None]
"""Called with the number of drawings done, and of all."""

_BATCH = 2_000
"""Drawings that are handed to worker processes at once."""


def build_icons(
    package_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    *,
    classes: int | None = None,
    seed: int = 0,
    licences: Literal["any", "permissive"] = "any",
    size: int = 64,
    processes: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Draw the icons benchmark: ``icons.parquet``, and ``ATTRIBUTION.md``, which names each icon set.

    The same package and options give the same bytes, whatever ``processes`` is.

    Args:
        package_dir: the unpacked npm package ``@iconify/json``.
        out_dir: the folder to write into.
        classes: the number of classes to keep, sampled by ``seed`` after all others are dropped; None: all.
        licences: "permissive" uses only sets under MIT, Apache, BSD, ISC, Unlicense or CC0.
        size: height and width in pixels.
        processes: the number of processes that draw. With more than one, the caller's main module is imported again in
            each of them.
        progress: called after every 500 drawings and the last.

    Returns:
        The path of ``icons.parquet``; columns ``path``, ``image`` (PNG), ``label``, ``split``, ``icon_set``.

    Raises:
        DataError: ``package_dir`` is not that package, or resvg-py is not installed.
        ConfigError: there are fewer classes than ``classes``.
    """
    require_resvg()
    package = IconPackage.open(package_dir)
    sets = package.sets(permissive=licences == "permissive")
    drawn, counts = _draw(sets, size, processes, progress)
    if classes is not None:
        drawn = _sample(drawn, classes, seed)
    out = Path(out_dir)
    with atomic_write(out / ICONS_FILE) as path:
        _write_parquet(_table(drawn), counts, path)
    images_by_set = Counter(drawing.icon_set for drawing in drawn)
    options = f"--classes {classes} --seed {seed}" if classes is not None else ""
    options += " --permissive" if licences == "permissive" else ""
    text = attribution(package.version, sets, images_by_set, options.strip(), str(counts))
    with atomic_write(out / ATTRIBUTION_FILE) as path:
        path.write_text(text, encoding="utf-8")
    return out / ICONS_FILE


@dataclass(frozen=True)
class _Drawing:
    name: str
    icon_set: str
    png: bytes
    digest: bytes
    """Of the pixels: equal where the pixels are."""


def _draw(
    sets: list[IconSet], size: int, processes: int, progress: Progress | None
) -> tuple[list[_Drawing], IconCounts]:
    """All drawings that are kept, by class and then by set."""
    drawn_by = Counter(name for icon_set in sets for name in icon_set.names)
    names = {name for name, n in drawn_by.items() if MIN_IMAGES <= n <= MAX_IMAGES}
    total = sum(drawn_by[name] for name in names)
    kept: dict[tuple[str, bytes], _Drawing] = {}
    names_of: defaultdict[bytes, set[str]] = defaultdict(set)
    unrenderable = blank = repeated = done = 0
    with _mapper(processes) as draw_all:
        for drawing in draw_all(partial(_draw_one, size=size), _icons_of(sets, names, size)):
            done += 1
            if progress is not None and (done % 500 == 0 or done == total):
                progress(done, total)
            if drawing == "unrenderable":
                unrenderable += 1
            elif drawing == "blank":
                blank += 1
            else:
                names_of[drawing.digest].add(drawing.name)
                repeated += (drawing.name, drawing.digest) in kept
                kept.setdefault((drawing.name, drawing.digest), drawing)
    distinct = [drawing for drawing in kept.values() if len(names_of[drawing.digest]) == 1]
    sizes = Counter(drawing.name for drawing in distinct)
    result = [drawing for drawing in distinct if sizes[drawing.name] >= MIN_IMAGES]
    counts = IconCounts(
        sets=len(sets),
        names=len(names),
        drawings=total,
        unrenderable=unrenderable,
        blank=blank,
        repeated=repeated,
        ambiguous=len(kept) - len(distinct),
        in_small_classes=len(distinct) - len(result),
        classes=sum(n >= MIN_IMAGES for n in sizes.values()),
        images=len(result),
    )
    return sorted(result, key=lambda drawing: (drawing.name, drawing.icon_set)), counts


def _icons_of(sets: list[IconSet], names: set[str], size: int) -> Iterator[tuple[str, str, str]]:
    """Name, set and SVG of every icon to draw; one set's file is in memory at a time."""
    for icon_set in sets:
        wanted = [name for name in icon_set.names if name in names]
        if wanted:
            content = icon_set.load()
            for name in wanted:
                yield name, icon_set.prefix, svg_text(content["icons"][name], content, size)


def _draw_one(icon: tuple[str, str, str], size: int) -> _Drawing | Literal["unrenderable", "blank"]:
    name, icon_set, svg = icon
    try:
        pixels = render(svg)
    except (ValueError, OSError):
        return "unrenderable"
    if pixels.shape != (size, size, 3):
        return "unrenderable"
    if is_blank(pixels):
        return "blank"
    return _Drawing(name, icon_set, to_png(pixels), hashlib.sha256(pixels.tobytes()).digest())


@contextmanager
def _mapper(processes: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """``map`` in this process, or in worker processes; results come in the order of the input either way."""
    if processes <= 1:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def in_batches(function: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
            # The pool's own map would read every icon before it returns the first result.
            while batch := list(islice(items, _BATCH)):
                yield from pool.map(function, batch, chunksize=100)

        yield in_batches


def _sample(drawings: list[_Drawing], classes: int, seed: int) -> list[_Drawing]:
    """The drawings of ``classes`` classes: those whose sha1 with the seed comes first, so that the sample depends on no
    library's random numbers, and a larger one contains the smaller."""
    names = {drawing.name for drawing in drawings}
    if not 1 <= classes <= len(names):
        raise ConfigError(f"`classes` {classes}: there are {len(names):,} classes to choose from", field="classes")
    chosen = set(sorted(names, key=lambda name: hashlib.sha1(f"{seed}:{name}".encode()).digest())[:classes])
    return [drawing for drawing in drawings if drawing.name in chosen]


def _table(drawings: list[_Drawing]) -> pa.Table:
    return pa.table(
        {
            "path": pa.array([f"{d.icon_set}/{d.name}.png" for d in drawings], pa.string()),
            "image": pa.array([d.png for d in drawings], pa.binary()),
            "label": pa.array([d.name for d in drawings], pa.string()),
            "split": pa.array([split_of(d.name) for d in drawings], pa.string()),
            "icon_set": pa.array([d.icon_set for d in drawings], pa.string()),
        }
    )


def _write_parquet(table: pa.Table, counts: IconCounts, path: Path) -> None:
    # All that could differ between the defaults of two versions of the writer.
    options: dict[str, Any] = {
        "version": "2.6",
        "data_page_version": "1.0",
        "row_group_size": 8_192,
        "use_dictionary": ["label", "split", "icon_set"],
        "compression": {name: "NONE" if name == "image" else "ZSTD" for name in table.column_names},
        "write_statistics": False,
    }
    metadata = {"divcon_icons": json.dumps(asdict(counts))}
    pq.write_table(table.replace_schema_metadata(metadata), path, **options)


STYLE_WORDS = frozenset(
    {"outline", "outlined", "fill", "filled", "solid", "line", "linear", "bold", "thin", "light", "regular"}
    | {"duotone", "twotone", "broken", "rounded", "round", "sharp", "alt", "variant"}
)


def stem(name: str) -> str:
    """The name without trailing words that are digits or a style: ``home`` of ``home-outline-2``. The first word always
    stays."""
    parts = name.split("-")
    while len(parts) > 1 and (parts[-1].isdecimal() or parts[-1] in STYLE_WORDS):
        parts.pop()
    return "-".join(parts)


def split_of(name: str) -> str:
    """``train`` or ``test``: by the name's stem, so that ``home`` and ``home-outline`` are in the same split."""
    return "train" if hashlib.sha1(stem(name).encode()).digest()[0] % 2 == 0 else "test"


@dataclass(frozen=True)
class IconSet:
    """An icon set: its prefix, its metadata, and the names of its own drawings (no aliases)."""

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
        """The content of the file: ``icons`` by name, and their common size."""
        return _json(self.path)


@dataclass(frozen=True)
class IconPackage:
    """An unpacked ``@iconify/json``."""

    folder: Path
    version: str

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> IconPackage:
        """Open the package in ``folder``, or in its folder ``package``, which unpacking creates.

        Raises:
            DataError: it is not there.
        """
        for place in (Path(folder), Path(folder, "package")):
            manifest = place / "package.json"
            if manifest.is_file() and (place / "json").is_dir():
                content = _json(manifest)
                if content.get("name") == PACKAGE:
                    return cls(place, str(content.get("version", "unknown")))
                raise DataError(f"{place}: this is the package {content.get('name')}, not {PACKAGE}; {_HOW_TO_GET}")
        what = "there is no such folder" if not Path(folder).exists() else f"this is not the unpacked {PACKAGE}"
        raise DataError(f"{folder}: {what}; {_HOW_TO_GET}")

    def sets(self, *, permissive: bool = False) -> list[IconSet]:
        """All icon sets that are not emoji, by prefix.

        Args:
            permissive: only those whose licence is among `PERMISSIVE`.

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


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this is not JSON ({error}); {_HOW_TO_GET}") from None


def attribution(version: str, sets: list[IconSet], images_by_set: Counter[str], options: str, counts: str) -> str:
    """The text of ATTRIBUTION.md: the command that built the benchmark, and the name, author, licence and number of
    images of each icon set in it."""
    info = {icon_set.prefix: icon_set.info for icon_set in sets}
    command = " ".join(f"python tools/icons.py PACKAGE_DIR --out DIR {options}".split())
    lines = [
        "# Where the icons are from",
        "",
        "`icons.parquet` in this folder was made by",
        "",
        f"    {command}",
        "",
        f"where PACKAGE_DIR is the npm package `{PACKAGE}` {version}, unpacked, and DIR this folder.",
        "",
        f"Counts: {counts}{', before classes were sampled' if '--classes' in options else ''}.",
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


NEAR_WHITE = 254
"""Pixels from this value up look white: a drawing without darker ones is blank."""


def svg_text(icon: Mapping[str, Any], defaults: Mapping[str, Any], size: int) -> str:
    """The icon as a ``size`` x ``size`` SVG, centred, in black unless it has its own colours.

    ``icon`` holds the drawing's ``body``; ``left``, ``top``, ``width`` and ``height`` are its own, those of its set
    (``defaults``), or 0, 0, 16, 16.
    """
    box = [icon.get(key, defaults.get(key, default)) for key, default in _BOX.items()]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{box[0]} {box[1]} {box[2]} {box[3]}" color="black">'
        f"{icon['body']}</svg>"
    )


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def render(svg: str) -> np.ndarray:
    """The drawing on white, (H, W, 3) uint8.

    Raises:
        ValueError: it cannot be drawn.
        DataError: resvg-py is not installed.
    """
    resvg = require_resvg()
    # Fonts differ from machine to machine, so none are used.
    png = bytes(resvg.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True))
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def is_blank(pixels: np.ndarray) -> bool:
    """Whether the (H, W, 3) uint8 pixels are all white, or nearly."""
    return bool(pixels.min() >= NEAR_WHITE)


def to_png(pixels: np.ndarray) -> bytes:
    """The (H, W, 3) uint8 pixels as a lossless PNG: grey levels, a palette of up to 256 colours, or RGB."""
    buffer = io.BytesIO()
    _smallest_mode(pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _smallest_mode(pixels: np.ndarray) -> Image.Image:
    red, green, blue = np.moveaxis(pixels, -1, 0)
    if (red == green).all() and (green == blue).all():
        return Image.fromarray(np.ascontiguousarray(red))
    packed = (red.astype(np.uint32) << 16) | (green.astype(np.uint32) << 8) | blue
    colours, places = np.unique(packed, return_inverse=True)
    if len(colours) > 256:
        return Image.fromarray(pixels)
    image = Image.fromarray(places.reshape(red.shape).astype(np.uint8)).convert("L")
    image.putpalette(np.stack([colours >> 16, colours >> 8 & 255, colours & 255], 1).astype(np.uint8).tobytes())
    return image


def require_resvg() -> Any:
    """The renderer's module.

    Raises:
        DataError: it is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise DataError(
            "icons are drawn by resvg-py, which is not installed: pip install 'resvg-py>=0.5,<0.6'"
        ) from None
    return resvg_py


app = App(name="tools/icons.py", help_format="plaintext")


@app.default
def main(
    package_dir: Path,
    *,
    out: Path,
    classes: int | None = None,
    seed: int = 0,
    permissive: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Build the icons benchmark: what many icon sets draw under the same name, at 64 pixels.

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz

    pip install 'resvg-py>=0.5,<0.6'

    python tools/icons.py package --out data/icons

    Parameters
    ----------
    package_dir
        The unpacked npm package @iconify/json.
    out
        The folder to write icons.parquet and ATTRIBUTION.md into.
    classes
        Keep this many classes, sampled by --seed; all by default.
    seed
        The seed of the sample of classes.
    permissive
        Only icon sets under MIT, Apache, BSD, ISC, Unlicense or CC0.
    """
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    with ProgressBar(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("drawing", total=None)
        try:
            path = build_icons(
                package_dir,
                out,
                classes=classes,
                seed=seed,
                licences="permissive" if permissive else "any",
                processes=min(4, os.cpu_count() or 1),
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        except DivconError as error:
            notes.print(f"error: {in_flags(str(error))}", markup=False)
            sys.exit(2)
    print(f"{path}\ntrain with: divcon train icons {out} --size 64 --out runs/icons")


if __name__ == "__main__":
    app()
