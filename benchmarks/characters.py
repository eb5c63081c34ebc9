"""Make a data set of written characters in many fonts: a class is a character, an image is one font family's drawing.

    python benchmarks/characters.py data/characters
    divcon train data/characters --backbone tf_efficientnet_lite0 --size 64 --no-flip --out runs/characters

Its clusters of images keep most positive pairs, as those of photographs of products do and those of icons do not: a
character looks much the same in all fonts, and a cluster is of scripts and shapes. The 120 families in characters.txt
(serif, sans-serif and monospace, all under open licences, 91 MB) are fetched by npm, once. A character is a letter or a
digit that eight of them draw, black on white, 64 px, eight families drawn by lot, the same baseline and size for all.
Of characters that most of the families with both draw alike (Latin, Greek and Cyrillic o) the first is kept. Train and
test are parted by the letter without its accents, so that e and é fall on the same side.

Needs npm, and the fontTools that comes with matplotlib.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import subprocess
import tarfile
import unicodedata
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont
from rich.progress import track

FAMILIES = Path(__file__).with_suffix(".txt")
SIZE, EM, BASELINE = 64, 44, 46
IMAGES_PER_CLASS = 8


def fetch(folder: Path) -> list[Path]:
    """The families' packages, by name; those that lie there already are not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    specs = FAMILIES.read_text().split()
    paths = {spec: folder / (spec[1:].replace("/", "-").replace("@", "-") + ".tgz") for spec in specs}
    missing = [spec for spec in specs if not paths[spec].exists()]
    for start in track(range(0, len(missing), 10), "fetching fonts", disable=not missing):
        subprocess.run(
            ["npm", "pack", "--silent", *missing[start : start + 10]], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
    return list(paths.values())


def drawings(package: Path) -> dict[str, np.ndarray]:
    """What a family draws for each letter and digit that it has: (64, 64) uint8. The upright weight nearest to 400."""
    pages: dict[str, np.ndarray] = {}
    with tarfile.open(package) as packed:
        files = defaultdict(list)
        for name in packed.getnames():
            if match := re.fullmatch(r"package/files/.+?-([a-z-]+)-(\d+)-(normal|italic)\.woff", name):
                files[match[1]].append((match[3] != "normal", abs(int(match[2]) - 400), name))
        for of_subset in files.values():
            name = min(of_subset)[2]
            try:  # fontTools reads WOFF alone without more packages, and Pillow WOFF 2 alone
                contents = [packed.extractfile(n) for n in (name, name + "2")]
            except KeyError:
                continue
            characters = TTFont(contents[0], lazy=True).getBestCmap() or {}
            try:
                font = ImageFont.truetype(io.BytesIO(contents[1].read()), EM, layout_engine=ImageFont.Layout.BASIC)
            except OSError:
                continue
            for character in map(chr, characters):
                if unicodedata.category(character) in ("Lu", "Ll", "Lo", "Nd") and character not in pages:
                    page = Image.new("L", (SIZE, SIZE), 255)
                    ImageDraw.Draw(page).text((SIZE // 2, BASELINE), character, font=font, fill=0, anchor="ms")
                    pages[character] = np.asarray(page)
    return {character: page for character, page in pages.items() if (page < 128).sum() >= 15}


def same_looks(families: list[dict[str, bytes]]) -> set[str]:
    """Characters that most of the families with both draw as they draw an earlier one."""
    alike: Counter[tuple[str, str]] = Counter()
    for family in families:
        by_picture = defaultdict(list)
        for character in sorted(family):
            by_picture[family[character]].append(character)
        for characters in by_picture.values():
            alike.update(combinations(characters, 2))
    return {
        later
        for (first, later), count in alike.items()
        if 2 * count > sum(first in family and later in family for family in families)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the data set: OUT/train/CHARACTER/FAMILY.png, OUT/test/...")
    parser.add_argument("--fonts", type=Path, help="where the packages are kept (default: OUT-fonts)")
    parser.add_argument("--classes", type=int, default=1600, help="characters, drawn by lot (default: 1600)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists; remove it, or give another folder")

    packages = fetch(options.fonts or options.out.with_name(options.out.name + "-fonts"))
    pages = {package.stem: drawings(package) for package in track(packages, "drawing")}
    hashed = [{c: hashlib.sha1(page.tobytes()).digest() for c, page in family.items()} for family in pages.values()]
    families = defaultdict(list)
    for name, family in pages.items():
        for character in family:
            families[character].append(name)
    doubles = same_looks(hashed)
    classes = sorted(c for c, names in families.items() if len(names) >= IMAGES_PER_CLASS and c not in doubles)
    rng = np.random.default_rng(options.seed)
    for character in rng.permutation(classes)[: options.classes]:
        base = unicodedata.normalize("NFKD", character)[0].lower()
        part = "train" if hashlib.sha1(base.encode()).digest()[0] % 2 == 0 else "test"
        name = unicodedata.name(character, "unnamed").lower().replace(" ", "-")
        folder = options.out / part / f"{ord(character):04x}-{name}"
        folder.mkdir(parents=True)
        for family in rng.choice(families[character], IMAGES_PER_CLASS, replace=False):
            Image.fromarray(pages[family][character]).save(folder / f"{family.removeprefix('fontsource-')}.png")
    counts = {part: len(list((options.out / part).iterdir())) for part in ("train", "test")}
    print(f"{len(classes)} characters, {len(doubles)} left out that look like others; classes: {counts}")


if __name__ == "__main__":
    main()
