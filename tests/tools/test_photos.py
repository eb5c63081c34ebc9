"""The builder of the benchmarks of photographs, on packages of a few small images that are made here."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image, ImageOps

from divcon.data.read import read
from divcon.errors import ConfigError, DataError
from tools import photos
from tools.photos import LIST, Built, build_photos, fingerprint, read_list, read_rcc, without_copies

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb packs and unpacks the packages")


def picture(seed: int, size: tuple[int, int] = (160, 120), *, alpha: bool = False) -> Image.Image:
    """Soft random blobs; with ``alpha`` on transparency, with an empty margin."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    if alpha:
        mask = Image.new("L", size)
        mask.paste(255, (20, 10, size[0] - 20, size[1] - 10))
        image.putalpha(mask)
    return image


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def rcc(files: dict[str, bytes], *, version: int = 3, flags: int = 0) -> bytes:
    """A compiled Qt resource with all files in the folder ``/pictures``."""
    names, data = b"", b""

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    tail = struct.pack(">Q", 0) if version >= 2 else b""
    nodes = [struct.pack(">IHII", 0, 2, 1, 1) + tail]
    nodes.append(struct.pack(">IHII", name("pictures"), 2, len(files), 2) + tail)
    for path, content in files.items():
        at = len(data)
        stored = struct.pack(">I", len(content)) + zlib.compress(content) if flags == 1 else content
        data += struct.pack(">I", len(stored)) + stored
        nodes.append(struct.pack(">IHHHI", name(path), flags, 0, 0, at) + tail)
    start = 20 + 4 * (version >= 3)
    tree = b"".join(nodes)
    header = b"qres" + struct.pack(">4I", version, start, start + len(tree), start + len(tree) + len(data))
    return header.ljust(start, b"\0") + tree + data + names


def write_deb(debs: Path, name: str, files: dict[str, bytes], *, version: str = "1.0", licence: str = "MIT") -> Path:
    tree = debs.parent / "trees" / name
    copyright_file = f"Files: *\nLicense: {licence}\n".encode()
    files = files | {
        "DEBIAN/control": f"Package: {name}\nVersion: {version}\nArchitecture: all\n"
        f"Maintainer: A <a@example.org>\nDescription: of a test\n".encode(),
        f"usr/share/doc/{name}/copyright": copyright_file,
    }
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    debs.mkdir(parents=True, exist_ok=True)
    deb = debs / f"{name}_{version}_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb], check=True, capture_output=True)
    return deb


STAMPS, PHOTOS, TEXTURES = 20, 14, 4


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path]:
    """A cache that holds the packages, and the list of what is in them."""
    cache = tmp_path_factory.mktemp("cache")
    stamps = {f"animals/stamp-{i}.png": encoded(picture(i, alpha=True)) for i in range(STAMPS)}
    # A copy at another size, a mirrored one, and one that is no image.
    stamps["food/small.png"] = encoded(picture(0, alpha=True).resize((80, 60)))
    stamps["food/mirrored.png"] = encoded(ImageOps.mirror(picture(1, alpha=True)))
    stamps["food/broken.png"] = b"no image"
    wide = {f"photo-{i}.webp": encoded(picture(100 + i, (240, 160)), "WEBP") for i in range(PHOTOS - 2)}
    loose = {f"photo-{i}.jpg": encoded(picture(100 + i, (120, 200)), "JPEG") for i in range(PHOTOS - 2, PHOTOS)}
    textures = {f"texture-{i}.png": encoded(picture(200 + i)) for i in range(TEXTURES)}
    debs = cache / "debs"
    write_deb(debs, "stamps", {f"usr/share/stamps/{name}": content for name, content in stamps.items()})
    write_deb(debs, "wide", {"usr/share/wide/all.rcc": rcc(wide)}, licence="CC0-1.0")
    files = {f"usr/share/loose/{name}": content for name, content in (loose | textures).items()}
    write_deb(debs, "loose", files, version="2:3.1-2")
    lines = ["# A list.", "", "[stamps cutout /usr/share/stamps]", *stamps]
    lines += ["[wide photo /usr/share/wide]", *(f"all.rcc:/pictures/{name}" for name in wide)]
    lines += ["[loose photo /usr/share/loose]", *loose, "gone.jpg"]
    lines += ["[loose texture /usr/share/loose]", *textures]
    listed = cache / "list.txt"
    listed.write_text("\n".join(lines) + "\n")
    return cache, listed


@pytest.fixture
def build(made, tmp_path):
    def build(benchmark, name: str = "out", **options) -> Built:
        cache, listed = made
        return build_photos(benchmark, tmp_path / name, cache_dir=cache, list_file=listed, **options)

    return build


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@needs_dpkg
class TestBuild:
    def test_every_thing_is_a_class_in_one_split(self, build):
        built = build("photos")
        # A third of the whole photographs are backgrounds.
        classes = STAMPS + PHOTOS - PHOTOS // 3
        assert built.counts == photos.Counts(
            listed=STAMPS + 3 + PHOTOS + 1,
            missing=2,
            repeated=2,
            cutouts=STAMPS,
            photos=PHOTOS,
            textures=TEXTURES,
            classes=classes,
            images=classes * 8,
        )
        data = read(built.folder)
        assert (data.train.num_classes, data.query.num_classes) == (classes // 2, classes // 2)
        train, test = ({part.label_names[i] for i in part.labels} for part in (data.train, data.query))
        assert not train & test
        for part in (data.train, data.query):
            assert set(Counter(part.labels.tolist()).values()) == {8}
            assert np.asarray(part.open(0)).shape == (96, 96, 3)

    def test_small(self, build):
        built = build("photos-small", classes=7)
        assert (built.counts.classes, built.counts.images) == (14, 70)

    def test_tall_classes_are_outfits(self, build):
        built = build("tall", classes=5)
        assert (built.counts.classes, built.counts.images) == (10, 80)
        labels = {split: sorted(p.name for p in (built.folder / split).iterdir()) for split in photos.SPLITS}
        worn = {split: {part for label in names for part in label.split("+")[:2]} for split, names in labels.items()}
        assert not worn["train"] & worn["test"]
        with Image.open(next(built.folder.glob("test/*/0.jpg"))) as image:
            assert image.size == (64, 128)

    def test_photographs_of_the_splits_are_disjoint(self, build, monkeypatch):
        """Those of the foreground, and those of the background."""
        pools = []
        make = photos._pools
        monkeypatch.setattr(photos, "_pools", lambda *args, **options: pools.extend(make(*args, **options)) or pools)
        for benchmark in ("photos", "tall"):
            pools.clear()
            build(benchmark, benchmark, classes=3)
            used = [{*p.cutouts, *p.photos, *p.backgrounds} for p in pools]
            assert not used[0] & used[1] and sum(map(len, used)) == STAMPS + PHOTOS + TEXTURES
            for pool in pools:
                assert not {*pool.photos} & {*pool.backgrounds}

    @pytest.mark.parametrize("benchmark", ["photos", "tall"])
    def test_two_builds_are_byte_identical(self, build, benchmark):
        one, two = (build(benchmark, name, classes=4) for name in ("one", "two"))
        assert files_of(one.folder) == files_of(two.folder) and one.sha256 == two.sha256

    def test_the_sha256_is_that_of_the_sorted_files(self, build):
        built = build("photos-small", classes=3)
        digest = hashlib.sha256()
        images = {name: content for name, content in files_of(built.folder).items() if name.endswith(".jpg")}
        for name in sorted(images):
            digest.update(f"{name} {len(images[name])}\n".encode() + images[name])
        assert built.sha256 == digest.hexdigest()

    def test_another_process_and_hash_seed_change_nothing(self, made, tmp_path):
        script = (
            "import sys; from tools.photos import build_photos; "
            "print(build_photos('photos', sys.argv[1], cache_dir=sys.argv[2], list_file=sys.argv[3], classes=3).sha256)"
        )
        printed = {
            subprocess.run(
                [sys.executable, "-c", script, tmp_path / seed, *made],
                check=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
                cwd=ROOT,
                capture_output=True,
                text=True,
            ).stdout
            for seed in ("1", "2")
        }
        assert len(printed) == 1

    def test_another_seed_changes_split_and_images(self, build):
        one, two = build("photos", "one", classes=6), build("photos", "two", classes=6, seed=1)
        assert {p.name for p in (one.folder / "train").iterdir()} != {p.name for p in (two.folder / "train").iterdir()}
        assert one.sha256 != two.sha256

    def test_fewer_classes_are_some_of_the_same_images(self, build):
        few, many = (files_of(build("photos", str(n), classes=n).folder) for n in (3, 6))
        images = {name: content for name, content in few.items() if name.endswith(".jpg")}
        assert len(images) == 48 and images.items() <= many.items()

    def test_sources_name_each_package(self, build):
        built = build("photos", classes=3, seed=5)
        text = (built.folder / "SOURCES.md").read_text()
        assert "python tools/photos.py photos --out DIR --seed 5 --classes 3\n" in text
        assert f"| stamps | 1.0 | {STAMPS} | MIT |" in text and f"| wide | 1.0 | {PHOTOS - 2} | CC0-1.0 |" in text
        assert "| loose | 2:3.1-2 |" in text and built.sha256 in text
        assert "- stamps /usr/share/stamps/food/broken.png: not in the package, or no image" in text
        assert "License: CC0-1.0" in (built.folder / "copyright-wide.txt").read_text()

    def test_images_of_a_class_differ_and_show_the_thing(self, build):
        built = build("photos")
        for folder in list(built.folder.glob("train/*"))[:4]:
            images = [path.read_bytes() for path in folder.iterdir()]
            assert len(set(images)) == 8

    def test_progress(self, build):
        steps = []
        build("photos", classes=2, progress=lambda *step: steps.append(step))
        last = {what: (done, total) for what, done, total in steps}
        assert last["fetching packages"] == (3, 3) and last["drawing classes"] == (4, 4)
        assert last["reading photographs"][0] == last["reading photographs"][1] == STAMPS + 3 + PHOTOS + 1 + TEXTURES


@needs_dpkg
class TestPackages:
    """What happens when apt-get is needed: another one stands in for it."""

    def apt_get(self, tmp_path: Path, monkeypatch, script: str) -> None:
        tools = tmp_path / "bin"
        tools.mkdir()
        (tools / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (tools / "apt-get").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def with_another(self, made, tmp_path: Path) -> tuple[Path, Path]:
        cache, listed = made
        more = tmp_path / "list.txt"
        more.write_text(listed.read_text() + "[another photo /usr/share/another]\none.png\n")
        return shutil.copytree(cache, tmp_path / "cache"), more

    def test_one_that_is_gone_is_named_and_left_out(self, made, tmp_path, monkeypatch):
        self.apt_get(tmp_path, monkeypatch, "echo 'E: Unable to locate package another' >&2; exit 100")
        cache, listed = self.with_another(made, tmp_path)
        built = build_photos("photos", tmp_path / "out", cache_dir=cache, list_file=listed, classes=2)
        assert built.missing[0] == "another: E: Unable to locate package another"
        assert built.missing[0] in (built.folder / "SOURCES.md").read_text()

    def test_one_that_is_not_in_the_cache_is_downloaded_once(self, made, tmp_path, monkeypatch):
        content = encoded(picture(300, (300, 200)))
        deb = write_deb(tmp_path / "elsewhere", "another", {"usr/share/another/one.png": content})
        calls = tmp_path / "calls"
        self.apt_get(tmp_path, monkeypatch, f'echo "$@" >> {calls}; cp {deb} .')
        cache, listed = self.with_another(made, tmp_path)
        for name in ("one", "two"):
            built = build_photos("photos", tmp_path / name, cache_dir=cache, list_file=listed, classes=2)
            assert built.counts.photos == PHOTOS + 1
        assert calls.read_text() == "download -q another\n"

    def test_none_at_all(self, made, tmp_path, monkeypatch):
        self.apt_get(tmp_path, monkeypatch, "echo 'E: no network' >&2; exit 100")
        with pytest.raises(DataError, match="no package could be had; first: loose: E: no network"):
            build_photos("photos", tmp_path / "out", cache_dir=tmp_path / "cache", list_file=made[1])
        assert not (tmp_path / "out").exists()

    def test_no_apt_get(self, made, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(DataError, match="apt-get is not installed: the photographs come from Debian's packages"):
            build_photos("photos", tmp_path / "out", cache_dir=tmp_path / "cache", list_file=made[1])


@needs_dpkg
class TestErrors:
    def test_too_many_classes(self, build, tmp_path):
        with pytest.raises(ConfigError, match="`classes` 90: there are 15 train classes"):
            build("photos", classes=90)
        with pytest.raises(ConfigError, match="`classes` 90: there are 9 train classes"):
            build("tall", classes=90)
        # Nothing half-built stays.
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_is_in_use(self, build, tmp_path):
        (tmp_path / "out").mkdir()
        assert build("photos-small", classes=1).counts.classes == 2
        with pytest.raises(ConfigError, match="out is not an empty folder"):
            build("photos-small", classes=1)

    def test_too_few_photographs(self, made, tmp_path):
        listed = tmp_path / "list.txt"
        listed.write_text("[stamps cutout /usr/share/stamps]\nanimals/stamp-1.png\n")
        with pytest.raises(DataError, match="too few photographs"):
            build_photos("photos", tmp_path / "out", cache_dir=made[0], list_file=listed)


class TestList:
    def test_the_one_of_the_repository(self):
        sections = read_list(LIST)
        files = [(s.package, s.role, s.folder, name) for s in sections for name in s.files]
        assert len(files) == len(set(files)) and all(s.files for s in sections)
        counts = Counter()
        for section in sections:
            counts[section.role] += len(section.files)
        assert counts == {"cutout": 363, "photo": 396, "texture": 47}

    @pytest.mark.parametrize("text", ["a.png\n", "[one drawing /usr]\n", "[one photo]\na.png\n"])
    def test_a_line_that_is_neither(self, tmp_path, text):
        path = tmp_path / "list.txt"
        path.write_text(f"# first\n{text}")
        with pytest.raises(DataError, match=r"list\.txt, line 2: this is neither"):
            read_list(path)


class TestResources:
    FILES: ClassVar = {"a.png": b"one", "ü.webp": b"two" * 100, "empty": b""}

    @pytest.mark.parametrize("version", [1, 2, 3])
    @pytest.mark.parametrize("flags", [0, 1])
    def test_files_come_back(self, version, flags):
        read_back = dict(read_rcc(rcc(self.FILES, version=version, flags=flags)))
        assert read_back == {f"/pictures/{name}": content for name, content in self.FILES.items()}

    def test_zstd_is_left_out(self):
        assert not dict(read_rcc(rcc(self.FILES, flags=4)))

    @pytest.mark.parametrize("content", [b"", b"PNG?" + bytes(40), rcc(FILES)[:60]])
    def test_another_file(self, content):
        with pytest.raises(DataError, match="Qt resource"):
            dict(read_rcc(content))


class TestCopies:
    def photograph(self, image: Image.Image, name: str = "x") -> photos.Photograph:
        return photos.Photograph(name, "p", "photo", image, image.width * image.height)

    def test_the_largest_stays(self):
        image = picture(1, (320, 240))
        small, mirrored = image.resize((120, 90)), ImageOps.mirror(image).resize((200, 150))
        noisy = Image.open(io.BytesIO(encoded(image.resize((300, 225)), "JPEG")))
        others = [picture(seed) for seed in range(2, 8)]
        everything = [self.photograph(i) for i in (small, *others, image, mirrored, noisy)]
        assert without_copies(everything) == everything[1:8]

    def test_the_same_shape_in_another_colour_is_no_copy(self):
        image = picture(1)
        red, green, blue = image.split()
        swapped = Image.merge("RGB", (blue, green, red))
        assert len(without_copies([self.photograph(image), self.photograph(swapped)])) == 2

    def test_what_lies_under_transparent_pixels_does_not_count(self):
        one, two = picture(1, alpha=True), picture(1, alpha=True)
        pixels = np.asarray(two).copy()
        pixels[pixels[..., 3] == 0] = (255, 0, 0, 0)
        for a, b in zip(fingerprint(one), fingerprint(Image.fromarray(pixels)), strict=True):
            assert (a == b).all()


@needs_dpkg
class TestCommand:
    """As a user calls it: from the repository's folder, without installing it."""

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/photos.py", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})

    def test_help(self):
        done = self.run("--help")
        assert done.returncode == 0, done.stderr
        for words in ("tools/photos.py", "photos-small", "tall", "--out", "--seed", "--cache", "--classes", "500 MB"):
            assert words in done.stdout

    def test_errors_are_one_line_and_name_flags(self, tmp_path):
        (tmp_path / "file").touch()
        done = self.run("photos", "--out", tmp_path, "--cache", tmp_path / "cache")
        assert done.returncode == 2
        assert done.stderr == f"error: --out {tmp_path} is not an empty folder: remove it, or choose another\n"
