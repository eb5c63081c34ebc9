"""Build benchmarks of photographs from Debian's packages: photos, photos-small and tall.

    python tools/photos.py photos --out data/photos
    python tools/photos.py photos-small --out data/photos-small
    python tools/photos.py tall --out data/tall

The photographs are those that photos.txt lists: Tux Paint's photographic stamps (animals, food, tools, coins ...), the
photographs of GCompris and Scratch, and wallpapers. `apt-get download` fetches their packages, about 500 MB, and
`dpkg-deb -x` unpacks them; nothing is installed, and neither needs root. Each is under a free licence: SOURCES.md and
copyright-PACKAGE.txt, beside the images, name it.

photos and photos-small: a class is one photographed thing. The images of a stamp show it at random size, turned,
mirrored, in other light, partly covered or out of the frame, on random crops of other photographs; those of a whole
photograph are crops of it in other light. tall: a class is an outfit of three stamps, one above the other, in frames
of 1:2; stamps are shared between classes, so that no single one tells the class.

Train and test classes have no photograph in common, neither in the foreground nor in the background. The same packages,
seed, Pillow and NumPy give the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import numpy as np
from cyclopts import App, Parameter
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps
from rich.console import Console
from rich.progress import Progress as ProgressBar

from divcon.cli.messages import in_flags
from divcon.errors import ConfigError, DataError, DivconError

LIST = Path(__file__).with_suffix(".txt")
"""The packages, and the photographs in each."""

SOURCES_FILE = "SOURCES.md"

Benchmark = Literal["photos", "photos-small", "tall"]
Role = Literal["cutout", "photo", "texture"]
Split = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and of how much."""


@dataclass(frozen=True)
class Shape:
    """What a benchmark looks like.

    Attributes:
        classes: the number of classes in each split; None: as many as there are photographs.
        images: the number of images in each class.
        width: of an image, in pixels.
        height: of an image, in pixels.
    """

    classes: int | None
    images: int
    width: int
    height: int


SHAPES: dict[Benchmark, Shape] = {
    "photos": Shape(None, 8, 96, 96),
    "photos-small": Shape(56, 5, 96, 96),
    "tall": Shape(180, 8, 64, 128),
}

LONGEST_SIDE = 960
"""Photographs are scaled down to this when they are read: an image shows at least a third of one."""


@dataclass(frozen=True)
class Counts:
    """Of the photographs that photos.txt lists, how many are there, and what was built of them.

    Attributes:
        listed: photographs in the list, textures left out.
        missing: those that no package has, or that cannot be read.
        repeated: copies and near-copies of another, at any size or mirrored.
        cutouts: stamps that stay.
        photos: whole photographs that stay.
        textures: textures, used as backgrounds only.
        classes: classes built, train and test together.
        images: images built.
    """

    listed: int
    missing: int
    repeated: int
    cutouts: int
    photos: int
    textures: int
    classes: int
    images: int

    def __str__(self) -> str:
        return (
            f"{self.classes:,} classes, {self.images:,} images, from {self.cutouts:,} stamps and {self.photos:,} whole "
            f"photographs ({self.listed:,} listed, {self.missing:,} not there, {self.repeated:,} copies of others) and "
            f"{self.textures:,} textures"
        )


@dataclass(frozen=True)
class Built:
    """A benchmark that was built.

    Attributes:
        folder: of ``train``, ``test`` and SOURCES.md.
        counts: of photographs, classes and images.
        sha256: of all images and their paths.
        missing: the packages that could not be had, with the reason, and the listed files that are not in theirs.
    """

    folder: Path
    counts: Counts
    sha256: str
    missing: tuple[str, ...]


def build_photos(
    benchmark: Benchmark,
    out_dir: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str],
    seed: int = 0,
    classes: int | None = None,
    list_file: str | os.PathLike[str] = LIST,
    progress: Progress | None = None,
) -> Built:
    """Build a benchmark into the folders ``train`` and ``test`` of ``out_dir``, one folder per class.

    Args:
        benchmark: which.
        out_dir: the folder to write; it must be new or empty.
        cache_dir: where packages are downloaded and unpacked; those that are there are not downloaded again.
        seed: of the split, the choice of classes and all that is random in an image.
        classes: classes in each split in place of the benchmark's own number.
        list_file: the packages and their photographs.
        progress: called after each package, photograph and class.

    Raises:
        ConfigError: ``out_dir`` is not empty, or there are fewer classes than ``classes``.
        DataError: apt-get or dpkg-deb is not installed, no package could be had, or too little is in them.
    """
    shape = SHAPES[benchmark]
    out = Path(out_dir)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"`out` {out} is not an empty folder: remove it, or choose another", field="out")
    report = progress or (lambda what, done, total: None)
    sections = read_list(list_file)
    packages, missing = fetch(sorted({s.package for s in sections}), Path(cache_dir), report)
    everything, gone = _load(sections, packages, report)
    photographs = without_copies(everything)
    pools = _pools(photographs, seed, backgrounds_only=benchmark == "tall")
    plans = _outfits if benchmark == "tall" else _things
    wanted = classes if classes is not None else shape.classes
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
        folder = Path(temporary, "built")
        todo = [(pool, plan) for pool in pools for plan in plans(pool, wanted, seed)]
        if len({(pool.split, plan.label) for pool, plan in todo}) < len(todo):
            raise DataError("two classes have one name: give the files of one of them another")
        digest = hashlib.sha256()
        # By path, so that the digest is that of the sorted files.
        todo.sort(key=lambda entry: (entry[0].split, entry[1].label))
        for done, (pool, plan) in enumerate(todo, 1):
            for i in range(shape.images):
                path = f"{pool.split}/{plan.label}/{i}.jpg"
                image = plan.draw(pool, shape, Random(seed, benchmark, path))
                content = _jpeg(image)
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
                digest.update(f"{path} {len(content)}\n".encode() + content)
            report("drawing classes", done, len(todo))
        counts = Counts(
            listed=sum(len(s.files) for s in sections if s.role != "texture"),
            missing=sum(len(files) for role, files in gone if role != "texture"),
            repeated=sum(p.role != "texture" for p in everything) - sum(p.role != "texture" for p in photographs),
            cutouts=sum(p.role == "cutout" for p in photographs),
            photos=sum(p.role == "photo" for p in photographs),
            textures=sum(p.role == "texture" for p in photographs),
            classes=len(todo),
            images=len(todo) * shape.images,
        )
        absent = [*missing, *(f"{name}: not in the package, or no image" for _, files in gone for name in files)]
        for package in packages.values():
            if package.copyright is not None:
                shutil.copyfile(package.copyright, folder / f"copyright-{package.name}.txt")
        used = Counter(p.package for p in photographs)
        command = f"python tools/photos.py {benchmark} --out DIR --seed {seed}"
        command += f" --classes {classes}" if classes is not None else ""
        text = sources(command, packages.values(), used, counts, digest.hexdigest(), absent)
        (folder / SOURCES_FILE).write_text(text, encoding="utf-8")
        if out.exists():
            out.rmdir()
        folder.chmod(0o755)
        folder.rename(out)
    return Built(out, counts, digest.hexdigest(), tuple(absent))


@dataclass(frozen=True)
class Section:
    """The photographs of one role in one package: files of ``folder``."""

    package: str
    role: Role
    folder: str
    files: tuple[str, ...]


def read_list(path: str | os.PathLike[str]) -> list[Section]:
    """The sections of a list: ``[package role folder]``, then one file a line.

    Raises:
        DataError: a line is neither.
    """
    sections: list[Section] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\S+) (cutout|photo|texture) (/\S*)\]", line):
            sections.append(Section(match[1], match[2], match[3], ()))  # type: ignore[arg-type]
        elif line.startswith("[") or not sections:
            raise DataError(f"{path}, line {number}: this is neither [package cutout|photo|texture /folder] nor a file")
        else:
            last = sections[-1]
            sections[-1] = Section(last.package, last.role, last.folder, (*last.files, line))
    return sections


@dataclass(frozen=True)
class Package:
    """A package that lies unpacked in ``folder``."""

    name: str
    version: str
    folder: Path

    @property
    def copyright(self) -> Path | None:
        path = self.folder / f"usr/share/doc/{self.name}/copyright"
        return path if path.is_file() else None

    @property
    def licences(self) -> list[str]:
        """The names of the licences in its copyright file, if that is of the machine-readable form."""
        if self.copyright is None:
            return []
        lines = self.copyright.read_text(encoding="utf-8", errors="replace").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("License:"))
        return sorted({name for name in names if name})


def fetch(names: Sequence[str], cache: Path, progress: Progress) -> tuple[dict[str, Package], list[str]]:
    """Download and unpack Debian packages.

    Returns:
        Those that could be had, by name, and a line for each other one that says why not.

    Raises:
        DataError: apt-get or dpkg-deb is not installed, or no package could be had.
    """
    debs = cache / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    packages, missing = {}, []
    for done, name in enumerate(names, 1):
        try:
            packages[name] = _fetch_one(name, debs, cache / "unpacked")
        except _PackageMissing as error:
            missing.append(f"{name}: {error}")
        progress("fetching packages", done, len(names))
    if not packages:
        raise DataError(f"no package could be had; first: {missing[0] if missing else 'none is listed'}")
    return packages, missing


class _PackageMissing(Exception):
    pass


def _fetch_one(name: str, debs: Path, unpacked: Path) -> Package:
    # The newest by time where there are several: the one that was downloaded last.
    found = sorted(debs.glob(f"{name}_*.deb"), key=lambda path: (path.stat().st_mtime, path.name))
    if not found:
        with TemporaryDirectory(dir=debs) as temporary:
            _command("apt-get", "download", "-q", name, cwd=Path(temporary))
            for path in Path(temporary).glob("*.deb"):
                found.append(path.rename(debs / path.name))
    if not found:
        raise _PackageMissing("apt-get downloaded nothing")
    deb = found[-1]
    version = _command("dpkg-deb", "-f", str(deb), "Version").strip()
    folder = unpacked / deb.stem
    if not folder.is_dir():
        unpacked.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=unpacked) as temporary:
            _command("dpkg-deb", "-x", str(deb), f"{temporary}/content")
            Path(temporary, "content").rename(folder)
    return Package(name, version, folder)


def _command(*words: str, cwd: Path | None = None) -> str:
    try:
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise DataError(f"{words[0]} is not installed: the photographs come from Debian's packages") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise _PackageMissing(lines[-1].strip() if lines else f"{words[0]} failed")
    return done.stdout


@dataclass(frozen=True, eq=False)
class Photograph:
    """A photograph. A stamp's image has transparency and is cut to what is visible, any other is RGB."""

    name: str
    package: str
    role: Role
    image: Image.Image
    area: int
    """Pixels of the file."""


def _load(
    sections: Sequence[Section], packages: dict[str, Package], progress: Progress
) -> tuple[list[Photograph], list[tuple[Role, list[str]]]]:
    """All photographs, and by section the files that are not there."""
    total = sum(len(s.files) for s in sections)
    photographs: list[Photograph] = []
    gone: list[tuple[Role, list[str]]] = []
    done = 0
    for section in sections:
        package, resources = packages.get(section.package), {}
        absent = []
        for name in section.files:
            content = _content(package, section.folder, name, resources) if package is not None else None
            photograph = _open(section, name, content) if content is not None else None
            if photograph is not None:
                photographs.append(photograph)
            else:
                absent.append(f"{section.package} {section.folder}/{name}")
            done += 1
            progress("reading photographs", done, total)
        gone.append((section.role, absent))
    return photographs, gone


def _content(package: Package, folder: str, name: str, resources: dict[str, dict[str, bytes]]) -> bytes | None:
    file, _, inner = name.partition(":")
    path = package.folder / folder.strip("/") / file
    if not path.is_file():
        return None
    if not inner:
        return path.read_bytes()
    if file not in resources:
        resources.clear()
        resources[file] = dict(read_rcc(path.read_bytes()))
    return resources[file].get(inner)


def read_rcc(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file in a compiled Qt resource (what ``rcc --binary`` writes).

    Files that are compressed with zstd are left out.

    Raises:
        DataError: it is not one.
    """
    try:
        magic, version, tree, data, names = struct.unpack_from(">4s4I", content)
        if magic != b"qres":
            raise DataError("this is not a compiled Qt resource")
        size = 14 if version < 2 else 22
        stack = [(0, "")]
        while stack:
            node, path = stack.pop()
            at = tree + node * size
            name, flags = struct.unpack_from(">IH", content, at)
            if node:
                (length,) = struct.unpack_from(">H", content, names + name)
                start = names + name + 6
                path = f"{path}/{content[start : start + 2 * length].decode('utf-16-be')}"
            if flags & _RCC_FOLDER:
                count, first = struct.unpack_from(">II", content, at + 6)
                stack += [(first + i, path) for i in reversed(range(count))]
            elif not flags & _RCC_ZSTD:
                (start,) = struct.unpack_from(">I", content, at + 10)
                (length,) = struct.unpack_from(">I", content, data + start)
                file = content[data + start + 4 : data + start + 4 + length]
                yield path, zlib.decompress(file[4:]) if flags & _RCC_ZLIB else file
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"this compiled Qt resource cannot be read: {error}") from None


_RCC_ZLIB, _RCC_FOLDER, _RCC_ZSTD = 1, 2, 4


def _open(section: Section, name: str, content: bytes) -> Photograph | None:
    """The photograph, or None if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(content)) as file:
            area = file.width * file.height
            file.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            image = ImageOps.exif_transpose(file).convert("RGBA" if section.role == "cutout" else "RGB")
    except (OSError, ValueError):
        return None
    if section.role == "cutout":
        box = image.getchannel("A").point([0] * 32 + [255] * 224).getbbox()
        if box is None:
            return None
        image = image.crop(box)
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return Photograph(name, section.package, section.role, image, area)


NEAR_COPY = 14
"""Of two photographs whose fingerprints differ in at most this many of 256 bits one is left out."""


def without_copies(photographs: Sequence[Photograph]) -> list[Photograph]:
    """Those of which no other is a copy, at any size or mirrored: the largest of each stays, in the order given."""
    order = sorted(range(len(photographs)), key=lambda i: (-photographs[i].area, i))
    kept: list[int] = []
    prints: list[tuple[np.ndarray, np.ndarray]] = []
    for i in order:
        bits, colours = fingerprint(photographs[i].image)
        mirrored, mirrored_colours = fingerprint(ImageOps.mirror(photographs[i].image))
        if prints:
            others = np.stack([bits for bits, _ in prints])
            paint = np.stack([colours for _, colours in prints])
            same = (others != bits).sum(1) <= NEAR_COPY
            same &= np.abs(paint - colours).mean(1) <= 12
            flipped = (others != mirrored).sum(1) <= NEAR_COPY
            flipped &= np.abs(paint - mirrored_colours).mean(1) <= 12
            if (same | flipped).any():
                continue
        kept.append(i)
        prints.append((bits, colours))
    return [photographs[i] for i in sorted(kept)]


def fingerprint(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """256 bits, whether the image grows brighter from each cell to the next of a 16 x 16 grid, and the colours of a
    4 x 4 grid: alike for copies of any size."""
    flat = Image.new("RGB", image.size, (128, 128, 128))
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    grey = np.asarray(flat.convert("L").resize((17, 16), Image.Resampling.BOX), np.int16)
    colours = np.asarray(flat.resize((4, 4), Image.Resampling.BOX), np.float32)
    # Half a level of difference is noise: flat areas are not brighter on either side.
    return ((grey[:, 1:] - grey[:, :-1]) > 1).ravel(), colours.ravel()


@dataclass(frozen=True)
class Pool:
    """The photographs of one split: what classes are made of, and what lies behind them and covers them."""

    split: Split
    cutouts: tuple[Photograph, ...]
    photos: tuple[Photograph, ...]
    backgrounds: tuple[Photograph, ...]


def _pools(photographs: Sequence[Photograph], seed: int, *, backgrounds_only: bool) -> list[Pool]:
    """Every photograph is in one split. A third of the whole ones (all of them with ``backgrounds_only``) and every
    texture are backgrounds, and never classes."""

    def of(role: Role) -> list[Photograph]:
        return _by_lot([p for p in photographs if p.role == role], "split", seed)

    cutouts, photos, textures = of("cutout"), of("photo"), of("texture")
    behind = len(photos) if backgrounds_only else len(photos) // 3
    pools = []
    for i, split in enumerate(SPLITS):
        backgrounds = [*photos[:behind][i::2], *textures[i::2]]
        pools.append(Pool(split, tuple(cutouts[i::2]), tuple(photos[behind:][i::2]), tuple(backgrounds)))
    if not all(pool.cutouts and pool.backgrounds for pool in pools):
        raise DataError("there are too few photographs for two splits: a stamp and a background are needed in each")
    return pools


def _by_lot(photographs: Sequence[Photograph], *lot: object) -> list[Photograph]:
    """By the sha1 of the lot and the name: an order that depends on no library's random numbers."""
    return sorted(photographs, key=lambda p: _sha1(*lot, p.package, p.role, p.name))


def _sha1(*key: object) -> str:
    return hashlib.sha1(":".join(map(str, key)).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """A class: its name, and how an image of it is drawn."""

    label: str
    draw: Callable[[Pool, Shape, Random], Image.Image]


class Random:
    """The random numbers of one image: they depend on what is passed here and on nothing that was drawn before."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(":".join(map(str, key)).encode()).digest()
        self._bits = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self._bits.random())

    def chance(self, probability: float) -> bool:
        return float(self._bits.random()) < probability

    def below(self, n: int) -> int:
        return min(int(self._bits.random() * n), n - 1)


def _label(photograph: Photograph) -> str:
    """A folder's name: the end of the file's path, and four hexadecimal digits that make it unique."""
    path = re.sub(r"\.\w+$", "", photograph.name.rpartition(":")[2])
    path = re.sub(r"(/contents)?/images(_dark)?/\w+$", "", path)
    words = re.sub(r"[^a-z0-9]+", "-", path.rpartition("/")[2].lower()).strip("-")
    return f"{words[:32]}-{_sha1(photograph.package, photograph.role, photograph.name)[:4]}"


def _things(pool: Pool, classes: int | None, seed: int) -> list[Plan]:
    """A class per stamp and whole photograph."""
    everything = _by_lot([*pool.cutouts, *pool.photos], "class", seed)
    if classes is not None:
        _enough(classes, len(everything), pool.split)
        everything = everything[:classes]
    return [_thing(photograph) for photograph in everything]


def _thing(photograph: Photograph) -> Plan:
    if photograph.role == "cutout":
        return Plan(_label(photograph), lambda pool, shape, random: _draw_stamp(photograph, pool, shape, random))
    return Plan(_label(photograph), lambda pool, shape, random: _draw_crop(photograph, pool, shape, random))


def _outfits(pool: Pool, classes: int | None, seed: int) -> list[Plan]:
    """A class per outfit of three stamps. A third of the stamps are tops, a third middles, a third bottoms, and any two
    outfits have at most one stamp in common; few middles are in many outfits, so that the middle does not tell one."""
    n = len(pool.cutouts) // 3
    parts = [_by_lot(pool.cutouts, "part", seed)[i * n : (i + 1) * n] for i in range(3)]
    # Rows of a Latin square: (a, b, a + b) shares two of three with no other.
    triples = [(a, b, (a + b) % n) for b in range(n) for a in range(n)]
    wanted = classes if classes is not None else len(triples)
    _enough(wanted, len(triples), pool.split)
    # The outfits of a few middles, by lot, so that all tops and bottoms are used about as often.
    middles = sorted(range(n), key=lambda b: _sha1(seed, pool.split, b))
    used = middles[: max(min(n, MIDDLES), -(-wanted // n))]
    chosen = [t for t in triples if t[1] in used]
    chosen.sort(key=lambda t: _sha1(seed, pool.split, *t))
    return [_outfit([parts[i][k] for i, k in enumerate(triple)]) for triple in chosen[:wanted]]


MIDDLES = 24
"""Stamps that are the middle of some outfit of a split, at least: with 180 outfits, one of 7 or 8 that share it."""


def _outfit(stamps: list[Photograph]) -> Plan:
    return Plan(
        "+".join(_label(stamp)[:-5][:20].strip("-") for stamp in stamps) + "-" + _sha1(*(s.name for s in stamps))[:4],
        lambda pool, shape, random: _draw_outfit(stamps, pool, shape, random),
    )


def _enough(wanted: int, there: int, split: str) -> None:
    if not 1 <= wanted <= there:
        raise ConfigError(f"`classes` {wanted}: there are {there:,} {split} classes to choose from", field="classes")


def _draw_stamp(stamp: Photograph, pool: Pool, shape: Shape, random: Random) -> Image.Image:
    image = _background(pool, shape, random)
    longest = random.between(0.55, 1.0) * min(shape.width, shape.height)
    drawn = _varied(_turned(stamp.image, longest, 35, random), random)
    # Up to a tenth of the stamp may lie outside of the frame.
    x = random.between(-0.1 * drawn.width, shape.width - 0.9 * drawn.width)
    y = random.between(-0.1 * drawn.height, shape.height - 0.9 * drawn.height)
    image.paste(drawn, (round(x), round(y)), drawn)
    if random.chance(0.25):
        _cover(image, (x, y, x + drawn.width, y + drawn.height), pool, random, share=0.45)
    return _finished(image, random)


def _draw_crop(photograph: Photograph, pool: Pool, shape: Shape, random: Random) -> Image.Image:
    """A crop from a square window of the photograph: the same one for all images of the class, so that they overlap."""
    side = min(photograph.image.size)
    home = Random("window", photograph.package, photograph.name)
    left = home.between(0, photograph.image.width - side)
    top = home.between(0, photograph.image.height - side)
    crop = random.between(0.38, 0.75) * side
    x, y = left + random.between(0, side - crop), top + random.between(0, side - crop)
    image = photograph.image.resize(
        (shape.width, shape.height), Image.Resampling.LANCZOS, box=(x, y, x + crop, y + crop), reducing_gap=3
    )
    if random.chance(0.5):
        image = ImageOps.mirror(image)
    image = _varied(image, random)
    if random.chance(0.4):
        _cover(image, (0, 0, shape.width, shape.height), pool, random)
    return _finished(image, random)


def _draw_outfit(stamps: list[Photograph], pool: Pool, shape: Shape, random: Random) -> Image.Image:
    image = _background(pool, shape, random, blurred=0.8)
    zoom = random.between(0.85, 1.0)
    height = shape.height / 3 * zoom
    x_all = random.between(-0.08, 0.08) * shape.width
    y_all = random.between(0, shape.height - 3 * height)
    for i, stamp in enumerate(stamps):
        # Each fills its third of the frame, whatever its shape.
        scale = min(height / stamp.image.height, shape.width * 0.95 * zoom / stamp.image.width)
        longest = max(stamp.image.size) * scale * random.between(0.9, 1.1)
        drawn = _varied(_turned(stamp.image, longest, 12, random, mirrored=False), random)
        x = (shape.width - drawn.width) / 2 + x_all + random.between(-0.06, 0.06) * shape.width
        y = y_all + (i + 0.5) * height - drawn.height / 2 + random.between(-0.05, 0.05) * height
        image.paste(drawn, (round(x), round(y)), drawn)
    if random.chance(0.25):
        _cover(image, (0, y_all, shape.width, y_all + 3 * height), pool, random, share=0.35)
    if random.chance(0.5):
        image = ImageOps.mirror(image)
    return _finished(image, random)


def _background(pool: Pool, shape: Shape, random: Random, *, blurred: float = 0.6) -> Image.Image:
    """A random crop of one of the split's backgrounds, in other light, at times out of focus."""
    source = pool.backgrounds[random.below(len(pool.backgrounds))].image
    ratio = shape.width / shape.height
    tallest = min(source.height, source.width / ratio)
    height = random.between(0.3, 1.0) * tallest
    x = random.between(0, source.width - height * ratio)
    y = random.between(0, source.height - height)
    box = (x, y, min(x + height * ratio, source.width), min(y + height, source.height))
    image = source.resize((shape.width, shape.height), Image.Resampling.LANCZOS, box=box, reducing_gap=3)
    if random.chance(0.5):
        image = ImageOps.mirror(image)
    image = _varied(image, random)
    return image.filter(ImageFilter.GaussianBlur(random.between(1, 3.5))) if random.chance(blurred) else image


def _turned(
    stamp: Image.Image, longest: float, degrees: float, random: Random, *, mirrored: bool = True
) -> Image.Image:
    """The stamp with that longer side, turned by up to ``degrees``, squeezed a little, at times mirrored."""
    scale = longest / max(stamp.size)
    squeeze = random.between(0.85, 1.15)
    width = max(4, round(stamp.width * scale * squeeze))
    height = max(4, round(stamp.height * scale))
    # Premultiplied, so that what lies under the transparent pixels does not shine through.
    image = stamp.convert("RGBa").resize((2 * width, 2 * height), Image.Resampling.LANCZOS, reducing_gap=3)
    image = image.convert("RGBA")
    if mirrored and random.chance(0.5):
        image = ImageOps.mirror(image)
    image = image.convert("RGBa").rotate(random.between(-degrees, degrees), Image.Resampling.BILINEAR, expand=True)
    size = (max(2, image.width // 2), max(2, image.height // 2))
    return image.resize(size, Image.Resampling.BOX).convert("RGBA")


def _varied(image: Image.Image, random: Random) -> Image.Image:
    """The image in other light: brightness, contrast, saturation, and a tint."""
    colours = image.convert("RGB")
    colours = ImageEnhance.Color(colours).enhance(random.between(0.6, 1.4))
    colours = ImageEnhance.Contrast(colours).enhance(random.between(0.75, 1.3))
    colours = ImageEnhance.Brightness(colours).enhance(random.between(0.7, 1.3))
    tint = [random.between(0.9, 1.1) for _ in range(3)]
    colours = colours.point([min(255, round(value * factor)) for factor in tint for value in range(256)])
    if image.mode == "RGBA":
        colours.putalpha(image.getchannel("A"))
    return colours


def _cover(
    image: Image.Image, box: tuple[float, float, float, float], pool: Pool, random: Random, *, share: float = 0.55
) -> None:
    """Hide a corner or side of ``box`` behind a patch of another background."""
    left, top, right, bottom = box
    width = random.between(0.25, share) * (right - left)
    height = random.between(0.25, share) * (bottom - top)
    x, y = random.between(left, right - width), random.between(top, bottom - height)
    patch = _background(pool, Shape(None, 1, image.width, image.height), random)
    mask = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(mask)
    (draw.ellipse if random.chance(0.5) else draw.rectangle)((x, y, x + width, y + height), fill=255)
    image.paste(patch, mask=mask)


def _finished(image: Image.Image, random: Random) -> Image.Image:
    """The image, at times slightly out of focus as a whole."""
    if random.chance(0.3):
        image = image.filter(ImageFilter.GaussianBlur(random.between(0.3, 1.0)))
    return image


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def sources(
    command: str,
    packages: Sequence[Package] | Iterator[Package],
    used: Counter[str],
    counts: Counts,
    sha256: str,
    missing: Sequence[str],
) -> str:
    """The text of SOURCES.md: how the benchmark was built, and version and licences of each package in it."""
    lines = [
        "# Where the photographs are from",
        "",
        "The images in this folder were made by",
        "",
        f"    {command}",
        "",
        f"{counts}. sha256 of the images: `{sha256}`.",
        "",
        "The photographs were cropped, scaled, coloured and laid over one another. They stay under the licences of",
        "their packages, whose full texts are in copyright-PACKAGE.txt:",
        "",
        "| Debian package | version | photographs | licences named there |",
        "|---|---|---|---|",
    ]
    for package in sorted(packages, key=lambda p: p.name):
        licences = ", ".join(package.licences) or "see the text"
        lines.append(f"| {package.name} | {package.version} | {used[package.name]:,} | {licences} |")
    if missing:
        lines += ["", "Listed in tools/photos.txt, but not to be had when this was built:", ""]
        lines += [f"- {line}" for line in missing]
    return "\n".join(lines) + "\n"


app = App(name="tools/photos.py", help_format="plaintext")


@app.default
def main(
    benchmark: Benchmark,
    *,
    out: Path,
    seed: int = 0,
    classes: int | None = None,
    cache: Annotated[Path, Parameter(show_default=True)] = Path("~/.cache/divcon/debian"),
) -> None:
    """Build a benchmark of photographs from Debian's packages, which apt-get downloads (about 500 MB, once).

    python tools/photos.py photos --out data/photos

    photos: a class is one photographed thing on varying backgrounds, or one photograph in varying crops; 96 x 96 px.

    photos-small: the same, 112 classes of 5 images.

    tall: a class is an outfit of three things, one above the other; 64 x 128 px.

    Parameters
    ----------
    benchmark
        photos, photos-small or tall.
    out
        The folder to write: train/CLASS/*.jpg, test/CLASS/*.jpg, SOURCES.md and the packages' copyright files.
    seed
        The seed of the split, the choice of classes and all that is random in an image.
    classes
        The number of classes in each split, in place of the benchmark's own.
    cache
        Where the packages are downloaded and unpacked; those that are there are not downloaded again.
    """
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    with ProgressBar(console=notes, transient=True, disable=not notes.is_terminal) as bar:
        task = bar.add_task("starting", total=None)
        try:
            built = build_photos(
                benchmark,
                out,
                cache_dir=cache.expanduser(),
                seed=seed,
                classes=classes,
                progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            )
        except DivconError as error:
            notes.print(f"error: {in_flags(str(error))}", markup=False)
            sys.exit(2)
    for line in built.missing:
        notes.print(f"not there, left out: {line}", markup=False)
    size = "" if benchmark == "tall" else " --size 64"
    print(f"{built.folder}: {built.counts}\nsha256 {built.sha256}")
    print(f"train with: divcon train {built.folder} --backbone tf_efficientnet_lite0{size} --out runs/{benchmark}")


if __name__ == "__main__":
    app()
