"""The icons benchmark: what many people draw under the same name.

A class is an icon name that 4 to 40 icon sets draw, an image is one set's drawing. Like Stanford Online
Products it has thousands of classes of a few images each, and any machine can build it, from the npm package
``@iconify/json``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from divcon.data.icon_sets import IconPackage, IconSet, attribution
from divcon.data.svg import is_blank, render, require_resvg, svg_text, to_png
from divcon.errors import DataError
from divcon.files import written_whole

ICONS_FILE = "icons.parquet"
ATTRIBUTION_FILE = "ATTRIBUTION.md"

MIN_IMAGES, MAX_IMAGES = 4, 40
STYLE_WORDS = frozenset(
    {"outline", "outlined", "fill", "filled", "solid", "line", "linear", "bold", "thin", "light", "regular"}
    | {"duotone", "twotone", "broken", "rounded", "round", "sharp", "alt", "variant"}
)
_BATCH = 2_000

Progress = Callable[[int, int], None]
"""Called with the number of drawings done and of all."""


@dataclass(frozen=True)
class IconCounts:
    """What the build counted, from all that was drawn to what is left."""

    sets: int
    names: int
    drawings: int
    unrenderable: int
    blank: int
    repeated: int
    """Pixel-identical to another drawing of the same name."""
    ambiguous: int
    """Pixel-identical to a drawing of another name: both are dropped."""
    in_small_classes: int
    classes: int
    images: int

    def __str__(self) -> str:
        return (
            f"{self.sets} icon sets, {self.names:,} names drawn by {MIN_IMAGES} to {MAX_IMAGES} of them, "
            f"{self.drawings:,} drawings; dropped {self.unrenderable:,} that cannot be drawn, "
            f"{self.blank:,} blank, {self.repeated:,} repeated, {self.ambiguous:,} found under two names, "
            f"{self.in_small_classes:,} of names with fewer than {MIN_IMAGES} left; {self.classes:,} classes "
            f"and {self.images:,} images remain"
        )


@dataclass(frozen=True)
class _Drawing:
    name: str
    icon_set: str
    png: bytes
    digest: bytes
    """Of the pixels: equal where the pixels are."""


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
    """Draw the icons benchmark into ``out_dir``: ``icons.parquet``, and ``ATTRIBUTION.md`` which names each
    icon set.

    The same package and options give the same bytes, whatever ``processes`` is.

    Args:
        package_dir: the unpacked npm package ``@iconify/json``.
        classes: how many classes to keep, drawn by ``seed`` after everything that is dropped; None: all.
        licences: "permissive" uses only sets under MIT, Apache, BSD, ISC, Unlicense or CC0.
        size: height and width in pixels.
        processes: how many draw at once; more than one needs a caller that Python can import without side
            effects.

    Returns:
        The path of ``icons.parquet``; columns ``path``, ``image`` (PNG), ``label``, ``split``, ``icon_set``.

    Raises:
        DataError: ``package_dir`` is not that package, resvg-py is not installed, or fewer classes than asked
            for.
    """
    require_resvg()
    package = IconPackage.open(package_dir)
    sets = package.sets(permissive=licences == "permissive")
    drawn, counts = _draw(sets, size, processes, progress)
    if classes is not None:
        drawn = _sample(drawn, classes, seed)
    out = Path(out_dir)
    with written_whole(out / ICONS_FILE) as path:
        _write_parquet(_table(drawn), counts, path)
    images_by_set = Counter(drawing.icon_set for drawing in drawn)
    options = f"--classes {classes} --seed {seed}" if classes is not None else ""
    options += " --permissive" if licences == "permissive" else ""
    text = attribution(package.version, sets, images_by_set, options.strip(), str(counts))
    with written_whole(out / ATTRIBUTION_FILE) as path:
        path.write_text(text, encoding="utf-8")
    return out / ICONS_FILE


def stem(name: str) -> str:
    """The name without its last dash-separated parts that are digits or a style: ``home-outline-2`` gives
    ``home``.

    The first part always stays.
    """
    parts = name.split("-")
    while len(parts) > 1 and (parts[-1].isdecimal() or parts[-1] in STYLE_WORDS):
        parts.pop()
    return "-".join(parts)


def split_of(name: str) -> str:
    """``train`` or ``test``: by the name's stem, so that ``home`` and ``home-outline`` are on the same
    side."""
    return "train" if hashlib.sha1(stem(name).encode()).digest()[0] % 2 == 0 else "test"


def _draw(
    sets: list[IconSet], size: int, processes: int, progress: Progress | None
) -> tuple[list[_Drawing], IconCounts]:
    """All drawings that stay, by class and then by set."""
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
    """Name, set and SVG of every drawing to be made; one set's file is in memory at a time."""
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
    """``map`` in this process, or in others; results come in the order of the input either way."""
    if processes <= 1:
        yield map
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:

        def in_batches(function: Callable[[Any], Any], items: Iterator[Any]) -> Iterator[Any]:
            # The pool's own map would take in every icon's text before it gives the first result.
            while batch := list(islice(items, _BATCH)):
                yield from pool.map(function, batch, chunksize=100)

        yield in_batches


def _sample(drawings: list[_Drawing], classes: int, seed: int) -> list[_Drawing]:
    """The drawings of ``classes`` classes: those whose sha1 with the seed comes first, so that no library's
    random numbers decide and a larger sample contains the smaller."""
    names = {drawing.name for drawing in drawings}
    if not 1 <= classes <= len(names):
        raise DataError(f"--classes {classes}: there are {len(names):,} classes to choose from")
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
    # Everything that could change from one writer's defaults to the next is said.
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
