"""The builder of the icons benchmark, on a package of a few small icon sets; and how it draws."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from divcon.data.read import read
from divcon.errors import ConfigError, DataError
from tools import icons
from tools.icons import STYLE_WORDS, IconPackage, build_icons, is_blank, render, split_of, stem, svg_text, to_png

MIT = {"title": "MIT", "spdx": "MIT", "url": "https://example.org/mit"}
CC_BY = {"title": "CC BY 4.0", "spdx": "CC-BY-4.0"}
ROOT = Path(__file__).parents[2]
SETS = ("ant", "bee", "cat", "dog", "eel")


def bar(x: float, y: float = 4, fill: str = "currentColor", width: float = 3) -> dict:
    """A rectangle: one drawing for each place, colour and width."""
    return {"body": f'<rect x="{x}" y="{y}" width="{width}" height="9" fill="{fill}"/>'}


def write_package(folder: Path, sets: dict[str, dict], collections: dict | None = None) -> Path:
    (folder / "json").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "@iconify/json", "version": "9.9.9"}))
    listed = {}
    for i, (prefix, content) in enumerate(sets.items()):
        info = {"name": prefix.title(), "author": {"name": f"A. | {prefix}"}, "license": MIT} | content.pop("info", {})
        content = {"prefix": prefix, "info": info, "width": 20, "height": 20} | content
        (folder / "json" / f"{prefix}.json").write_text(json.dumps(content))
        # The last set is not listed, as some of the package are not.
        if i < len(sets) - 1:
            listed[prefix] = info
    (folder / "collections.json").write_text(json.dumps(listed))
    return folder


@pytest.fixture
def package(tmp_path) -> Path:
    """Five sets: ``home``, ``car-2``, ``map`` and ``pin`` are drawn by all, the rest is to be dropped."""
    sets: dict[str, dict] = {}
    for i, prefix in enumerate(SETS):
        drawings = {
            "home": bar(1 + 3 * i),
            "car-2": bar(1 + 3 * i, 8, fill="#c02040"),
            "map": bar(1 + 3 * i, 1, width=1),
            "pin": bar(1 + 3 * i, 1, width=2.5),
            # Pixel-identical in all sets: kept once, so too few.
            "same": bar(2, 2),
            # Blank in two sets: too few.
            "ghost": bar(1 + 3 * i, 2) if i < 3 else {"body": "<g/>"},
            # Invisible to the eye in two.
            "pale": bar(1 + 3 * i, 2, width=4) if i < 3 else bar(1 + 3 * i, fill="#fefefe"),
            # Broken in two.
            "torn": bar(1 + 3 * i, 0, width=2) if i < 3 else {"body": "<rect"},
            # Two sets' ``lock`` is another's ``unlock``: both are dropped.
            "lock": bar(1 + 3 * i, 5, width=5),
            "unlock": bar(1 + 3 * i, 5, width=5 if i < 2 else 6),
        }
        if i < 3:
            drawings["rare"] = bar(1 + 3 * i, 6, width=7)
        sets[prefix] = {
            "icons": drawings,
            # Aliases are other names of a drawing, so they count for nothing.
            "aliases": {"rare": {"parent": "home"}, "house": {"parent": "home", "hFlip": True}},
        }
    sets["cat"]["icons"]["home"] |= {"width": 40, "height": 20, "left": -10, "hidden": True}
    sets["bee"]["info"] = {"license": CC_BY}
    emoji = {name: bar(i, 9, width=9) for i, name in enumerate(("rare", "home"))}
    sets["faces"] = {"icons": dict(emoji), "info": {"category": "Emoji"}}
    sets["fluent-emoji"] = {"icons": dict(emoji)}
    sets["zoo"] = {"icons": {"other": bar(1)}}
    return write_package(tmp_path / "package", sets)


def table_of(path: Path) -> dict[str, list]:
    return pq.read_table(path).to_pydict()


def test_what_stays_and_what_is_dropped(package, tmp_path):
    table = table_of(build_icons(package, tmp_path / "out"))
    assert table["path"] == [f"{s}/{name}.png" for name in ("car-2", "home", "map", "pin") for s in SETS]
    assert table["label"] == ["car-2"] * 5 + ["home"] * 5 + ["map"] * 5 + ["pin"] * 5
    assert table["icon_set"] == list(SETS) * 4
    assert table["split"] == [split_of(name) for name in table["label"]]


def test_the_counts_add_up(package, tmp_path):
    counts = json.loads(pq.read_schema(build_icons(package, tmp_path / "out")).metadata[b"divcon_icons"])
    assert counts == {
        "sets": 6,
        "names": 10,
        "drawings": 50,
        "unrenderable": 2,
        "blank": 4,
        "repeated": 4,
        # lock and unlock look the same in two sets.
        "ambiguous": 4,
        # same 1, ghost, pale and torn 3 each, lock and unlock 3 each.
        "in_small_classes": 16,
        "classes": 4,
        "images": 20,
    }
    dropped = ("unrenderable", "blank", "repeated", "ambiguous", "in_small_classes")
    assert counts["images"] == counts["drawings"] - sum(counts[key] for key in dropped)


def test_drawings_are_black_on_white_or_in_their_own_colour(package, tmp_path):
    build_icons(package, tmp_path / "out")
    data = read("icons", tmp_path / "out")
    images = {}
    for part in (data.train, data.query):
        images |= {part.path(i): np.asarray(part.open(i)) for i in range(len(part))}
    home, car = images["ant/home.png"], images["ant/car-2.png"]
    assert home.shape == (64, 64, 3)
    # The rectangle is 3 of 20 units wide, from unit 1 on.
    assert (home[20, 5:12] == 0).all() and (home[20, 15:] == 255).all() and (home[:10] == 255).all()
    assert car[30, 8].tolist() == [0xC0, 0x20, 0x40]
    # 40 x 20 units with the left edge at -10: half the height stays white above and below.
    wide = images["cat/home.png"]
    assert (wide[:16] == 255).all() and (wide[48:] == 255).all()
    columns = np.flatnonzero((wide < 128).all(2).any(0))
    assert columns.min() == pytest.approx((7 + 10) * 1.6, abs=1) and columns.max() == pytest.approx(31, abs=1)


def test_two_builds_are_byte_identical(package, tmp_path):
    outs = [tmp_path / "one", tmp_path / "two"]
    for out in outs:
        build_icons(package, out)
    for name in ("icons.parquet", "ATTRIBUTION.md"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()
    assert sorted(p.name for p in outs[0].iterdir()) == ["ATTRIBUTION.md", "icons.parquet"]


def test_processes_change_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setattr(icons, "_BATCH", 7)
    one = build_icons(package, tmp_path / "one").read_bytes()
    assert build_icons(package, tmp_path / "two", processes=2).read_bytes() == one


@pytest.mark.heavy
def test_another_process_and_hash_seed_change_nothing(package, tmp_path):
    script = "import sys; from tools.icons import build_icons; build_icons(sys.argv[1], sys.argv[2])"
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, package, tmp_path / seed],
            check=True,
            env={"PYTHONHASHSEED": seed},
            cwd=ROOT,
        )
    assert (tmp_path / "1/icons.parquet").read_bytes() == (tmp_path / "2/icons.parquet").read_bytes()


class TestSample:
    def test_it_is_drawn_after_all_that_is_dropped_by_the_seed(self, package, tmp_path):
        everything = table_of(build_icons(package, tmp_path / "all"))
        for seed in range(4):
            table = table_of(build_icons(package, tmp_path / str(seed), classes=2, seed=seed))
            chosen = sorted(
                ("car-2", "home", "map", "pin"), key=lambda name: hashlib.sha1(f"{seed}:{name}".encode()).hexdigest()
            )[:2]
            assert set(table["label"]) == set(chosen)
            kept = [i for i, label in enumerate(everything["label"]) if label in chosen]
            assert table["image"] == [everything["image"][i] for i in kept]

    def test_too_many_classes(self, package, tmp_path):
        with pytest.raises(ConfigError, match="`classes` 5: there are 4 classes"):
            build_icons(package, tmp_path / "out", classes=5)


class TestLicences:
    def test_sets_are_left_out_before_names_are_counted(self, package, tmp_path):
        table = table_of(build_icons(package, tmp_path / "out", licences="permissive"))
        assert "bee" not in table["icon_set"] and set(table["icon_set"]) == set(SETS) - {"bee"}
        # One of the five that draw each name is gone: four are still enough.
        assert set(table["label"]) == {"car-2", "home", "map", "pin"}

    def test_attribution_names_each_set_that_is_used(self, package, tmp_path):
        build_icons(package, tmp_path / "out", classes=2, seed=3)
        text = (tmp_path / "out/ATTRIBUTION.md").read_text()
        assert "python tools/icons.py PACKAGE_DIR --out DIR --classes 2 --seed 3\n" in text
        assert "`@iconify/json` 9.9.9" in text
        assert "| ant | Ant | A. \\| ant | [MIT](https://example.org/mit) | MIT | 2 |" in text
        assert "| bee | Bee | A. \\| bee | CC BY 4.0 | CC-BY-4.0 | 2 |" in text
        assert "zoo" not in text and "faces" not in text


class TestStem:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("home", "home"),
            ("home-outline", "home"),
            ("home-2-line", "home"),
            ("home-alt-24-filled", "home"),
            ("align-left", "align-left"),
            ("line-chart", "line-chart"),
            ("4k", "4k"),
            ("circle-3d", "circle-3d"),
            # The first part always stays.
            ("outline", "outline"),
            ("24-line", "24"),
        ],
    )
    def test_examples(self, name, expected):
        assert stem(name) == expected

    @given(
        st.lists(st.sampled_from(["home", "car", "x2", "7"]), min_size=1),
        st.lists(st.sampled_from(sorted(STYLE_WORDS))),
    )
    def test_styles_never_change_the_split(self, parts, styles):
        name = "-".join(parts)
        assert split_of("-".join([*parts, *styles, "12"])) == split_of(name)
        assert stem(stem(name)) == stem(name) and name.startswith(stem(name))


class TestErrors:
    def test_a_folder_that_is_not_the_package(self, tmp_path):
        with pytest.raises(DataError, match=r"gone: there is no such folder; get it with `npm pack @iconify/json@2"):
            build_icons(tmp_path / "gone", tmp_path / "out")
        with pytest.raises(DataError, match="this is not the unpacked @iconify/json"):
            build_icons(tmp_path, tmp_path / "out")
        (tmp_path / "json").mkdir()
        (tmp_path / "package.json").write_text('{"name": "lucide"}')
        with pytest.raises(DataError, match="this is the package lucide"):
            build_icons(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_the_folder_around_the_package_will_do(self, package):
        assert IconPackage.open(package.parent).folder == package

    def test_a_broken_file(self, package, tmp_path):
        (package / "json/ant.json").write_text("{")
        with pytest.raises(DataError, match=r"ant\.json: this is not JSON"):
            build_icons(package, tmp_path / "out")
        (package / "json/ant.json").write_text('{"prefix": "ant"}')
        with pytest.raises(DataError, match=r"ant\.json: this is not an icon set, 'icons' is missing"):
            build_icons(package, tmp_path / "out")

    def test_no_sets(self, tmp_path):
        package = write_package(tmp_path / "package", {})
        with pytest.raises(DataError, match="there are no icon sets to draw"):
            build_icons(package, tmp_path / "out")

    def test_without_the_renderer(self, package, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "resvg_py", None)
        with pytest.raises(DataError, match="pip install 'resvg-py"):
            build_icons(package, tmp_path / "out")

    def test_a_build_that_fails_leaves_the_old_file(self, package, tmp_path, monkeypatch):
        path = build_icons(package, tmp_path / "out")
        before = path.read_bytes()

        def interrupted(table, path, **options):
            Path(path).write_text("half")
            raise KeyboardInterrupt

        monkeypatch.setattr(icons.pq, "write_table", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_icons(package, tmp_path / "out", classes=1)
        assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 2


class TestCommand:
    """As a user calls it: from the repository's folder, without installing it."""

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/icons.py", *map(str, words)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"})

    def test_help(self):
        done = self.run("--help")
        assert done.returncode == 0, done.stderr
        for words in (
            "tools/icons.py",
            "npm pack @iconify/json@2.2.535",
            "--out",
            "--classes",
            "--seed",
            "--permissive",
        ):
            assert words in done.stdout

    def test_build(self, package, tmp_path):
        done = self.run(package, "--out", tmp_path / "out", "--classes", 3, "--permissive")
        assert done.returncode == 0, done.stderr
        path = tmp_path / "out" / "icons.parquet"
        assert done.stdout == f"{path}\ntrain with: divcon train icons {path.parent} --size 64 --out runs/icons\n"
        assert len(set(table_of(path)["label"])) == 3

    def test_errors_are_one_line_and_name_flags(self, package, tmp_path):
        done = self.run(package, "--out", tmp_path / "out", "--classes", 5)
        assert (done.returncode, done.stderr) == (2, "error: --classes 5: there are 4 classes to choose from\n")


def test_progress(package, tmp_path):
    reported = []
    build_icons(package, tmp_path / "out", progress=lambda done, total: reported.append((done, total)))
    assert reported[-1] == (50, 50)


SQUARE = {"body": '<rect width="8" height="8" fill="currentColor"/>'}


def decoded(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_an_icons_own_size_goes_before_its_sets():
    defaults = {"width": 16, "height": 16}
    pixels = render(svg_text(SQUARE, defaults, 32))
    assert (pixels[:16, :16] == 0).all() and (pixels[16:] == 255).all() and (pixels[:, 16:] == 255).all()
    assert (render(svg_text(SQUARE | {"width": 8, "height": 8}, defaults, 32)) == 0).all()
    assert (render(svg_text(SQUARE, {}, 32)) == pixels).all()


def test_left_and_top_move_the_drawing():
    pixels = render(svg_text(SQUARE | {"left": -8, "top": -8}, {}, 32))
    assert (pixels[16:, 16:] == 0).all() and (pixels[:16] == 255).all()


def test_a_drawing_that_is_no_xml():
    with pytest.raises(ValueError):
        render(svg_text({"body": "<rect"}, {}, 32))


def test_text_is_not_drawn_since_fonts_differ():
    assert is_blank(render(svg_text({"body": '<text x="1" y="12">Ag</text>'}, {}, 32)))


@pytest.mark.parametrize(("value", "blank"), [(255, True), (254, True), (253, False)])
def test_blank(value, blank):
    pixels = np.full((4, 4, 3), 255, np.uint8)
    pixels[1, 2, 0] = value
    assert is_blank(pixels) == blank


@given(arrays(np.uint8, (6, 5, 3)))
def test_any_pixels_come_back(pixels):
    assert (decoded(to_png(pixels)) == pixels).all()


@given(arrays(np.uint8, (6, 5)), st.integers(1, 255))
def test_few_colours_come_back_from_a_palette(places, n):
    palette = np.random.default_rng(n).integers(0, 256, (n, 3), np.uint8)
    pixels = palette[places % n]
    assert (decoded(to_png(pixels)) == pixels).all()


def test_the_smallest_mode_is_taken():
    grey = np.repeat(np.arange(64, dtype=np.uint8).reshape(8, 8, 1), 3, axis=2)
    many = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    few = many // 128 * 255
    assert [Image.open(io.BytesIO(to_png(p))).mode for p in (grey, few, many)] == ["L", "P", "RGB"]
