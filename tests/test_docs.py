"""The documentation: its blocks run as they stand, what the code gives is all there, and the site is built."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import divcon as dc
from divcon.cli.messages import flag
from divcon.training.losses import loss_names
from divcon.training.miners import miner_names
from tests.fork_server import VARIABLE

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
RUNNER = ROOT / "tests" / "run_page.py"
blocks_of = runpy.run_path(str(RUNNER))["blocks_of"]
PAGES = sorted(page for page in DOCS.rglob("*.md") if blocks_of(page.read_text(encoding="utf-8")))


def run(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, RUNNER, page], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, divcon_server: str) -> None:
    done = subprocess.run(
        [Path(divcon_server).with_name("page"), page],
        cwd=tmp_path,
        env={**os.environ, VARIABLE: divcon_server},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_is_run_or_only_shown() -> None:
    shown = {"text", "{toctree}", "{include} ../CHANGELOG.md", "{include} ../CONTRIBUTING.md", "{eval-rst}"}
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        opened = re.findall(r"^\s*```(\S.*)$", text, re.MULTILINE)
        assert len(blocks_of(text)) == sum(language not in shown for language in opened), page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "```python\nprint(1)\n```\n\n```output\n2\n```\n",
            "page.md:6: the page says\n2\nand the block before it printed\n1",
        ),
        ("words\n\n```python\nx = 1\n```\n<!--\n```python\n1 / (x - 1)\n```\n-->\n", 'page.md", line 8'),
        ("```bash\nfalse | true\n```\n", "page.md:2: exit code 1"),
    ],
)
def test_what_fails_on_a_page_is_said_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    done = run(tmp_path / "page.md", tmp_path)
    assert done.returncode == 1
    assert said in done.stderr


def test_blocks_of_a_page_share_names_and_folder(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 2\n```\n```bash\necho 3 > three\n```\n"
        "```python\nprint(x, open('three').read(), 'and more')\n```\n```output\n2 3 ...\n```\n"
    )
    assert run(page, tmp_path).returncode == 0


def test_each_tool_of_the_ecosystem_has_a_command_and_a_test_that_exists() -> None:
    lines = (DOCS / "ecosystem.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    rows = [row for row in rows if row[0] != "tool" and not row[0].startswith("---")]
    assert len(rows) > 25
    assert len({row[0] for row in rows}) == len(rows)
    for row in rows:
        assert len(row) == 4 and all(row), row
        tests = re.findall(r"`(tests/[^`:]+)(?:::(\w+))?`", row[3])
        assert tests, row
        for file, name in tests:
            assert (ROOT / file).is_file(), row
            assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), row


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        folder / "trees",
        DOCS,
        folder / "html",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "html"


def test_the_site_has_every_page_and_picture(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists()
    method = (site / "method.html").read_text()
    for picture in (DOCS / "pictures").iterdir():
        assert f"_images/{picture.name}" in method
    for image in re.findall(r"<img .*?/>", method):
        assert re.search(r'alt="[^"]{20,}"', image), image


def test_the_site_fetches_nothing(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|iframe)[^>]* src="(?:https?:)?//|<link[^>]* href="(?:https?:)?//[^>]*>""")
    for page in site.rglob("*.html"):
        assert not fetched.findall(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(.?(https?:)?//|@import", style.read_text()), style


def test_every_setting_is_on_its_page(site: Path) -> None:
    page = (site / "settings.html").read_text()
    for kind in (dc.ModelConfig, dc.TrainConfig, dc.DataConfig):
        for field in dataclasses.fields(kind):
            assert f'<section id="{field.name.replace("_", "-")}">' in page, field.name
            assert f">{flag(field.name)}" in page, field.name


def test_every_command_loss_and_miner_is_on_its_page(site: Path) -> None:
    from divcon.cli.app import app

    commands, losses = (site / "commands.html").read_text(), (site / "losses.html").read_text()
    for command in app:
        if not command.startswith("-"):
            assert f'<section id="divcon-{command}">' in commands, command
    for name in [*loss_names(), *miner_names()]:
        assert f">{name}<" in losses or f"<p>{name}" in losses, name
    assert "generated:" not in commands + losses
    assert "sphinx [" not in commands  # how the site is built is no part of a command


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    for name in dc.__all__:
        target = {"DivconError": "divcon.errors.DivconError", "ImageSet": "divcon.LabeledSet"}.get(
            name, f"divcon.{name}"
        )
        assert f'id="{target}"' in pages, name


def test_the_table_of_published_results_is_of_the_presets_and_of_what_was_sent_in(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from divcon.config.presets import PUBLISHED_RESULTS

    page = (site / "reproduce.html").read_text()
    rows_of_papers = sum(map(len, PUBLISHED_RESULTS.values()))
    assert page.count("<tr ") >= rows_of_papers
    for scores in PUBLISHED_RESULTS.values():
        for known in scores.values():
            for value in known.scores.values():
                assert f"{100 * value:.2f}".removesuffix("0") in page
    monkeypatch.syspath_prepend(str(DOCS))
    import generated

    made = {"preset": "single", "fraction": 1.0, "changed": {}, "settings": {"train": {"seed": 3}}}
    (tmp_path / "cub.json").write_text(json.dumps({"benchmark": "cub", "recall_at_1": 0.6123, "reproduced": made}))
    monkeypatch.setattr(generated, "REPRODUCED", tmp_path)
    rows = [line for line in generated.published_results().splitlines() if "(seed 3)" in line]
    assert rows == ["| cub | `single` |  |  |  | Recall@k 61.23 @1 (seed 3) |"]
    assert generated.published_results().count("| not run |") == rows_of_papers
    walk = {"benchmark": "cub", "recall_at_1": 0.6, "reproduced": made | {"fraction": 0.1}}
    (tmp_path / "walk.json").write_text(json.dumps(walk))
    with pytest.raises(ValueError, match="is no result"):
        generated.published_results()
