"""What all tests share: shapes checked at run time, the bundled icons, a small model."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reached for the network would not be the same test everywhere
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if at_once := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # they, and what they start, share out the cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // at_once)))

from hypothesis import settings
from jaxtyping import install_import_hook

# The same examples in each run, so that what passes once passes everywhere; `make test-examples` looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("new", deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

install_import_hook(
    [f"divcon.{name}" for name in ("division", "models", "training.miners", "training.losses", "training.proxies")],
    "beartype.beartype",
)

import importlib.util
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import divcon as dc
from divcon.cli import main
from divcon.data.benchmark import Benchmark
from divcon.data.labeled_set import LabeledSet
from tests.fork_server import client, fork_server
from tests.hub import hub  # noqa: F401 - a fixture
from tests.remote import cache, s3, s3_server, web  # noqa: F401 - fixtures

MOST_SECONDS = 5
"""Of a test that is not marked ``heavy``, for each of its phases; it should take less than one on an idle machine."""


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """In `make test-fast`, name the tests that are too long for it."""
    if "not heavy" not in config.option.markexpr:
        return
    reports = [report for name in ("passed", "failed", "") for report in terminalreporter.stats.get(name, [])]
    long = sorted((r for r in reports if r.duration > MOST_SECONDS), key=lambda r: -r.duration)
    if long:
        terminalreporter.section("too long for test-fast: make them shorter, or mark them heavy")
        for report in long:
            terminalreporter.line(f"{report.duration:6.1f} s {report.when:8s} {report.nodeid}")


@pytest.fixture(scope="session")
def demo() -> Benchmark:
    return dc.read("demo")


@pytest.fixture(scope="session")
def few(demo: Benchmark) -> Benchmark:
    """Real images of 24 train and 24 test classes."""
    train = demo.train.of_classes(demo.train.classes[:24])
    test = demo.query.of_classes(demo.query.classes[:24])
    return Benchmark("few", train, test, test)


@pytest.fixture(scope="session")
def trees() -> ModuleType:
    """``tests/data/published_trees.py``: writes the published data sets as their archives unpack, with tiny images."""
    path = Path(__file__).parent / "data" / "published_trees.py"
    spec = importlib.util.spec_from_file_location("published_trees", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tiny_model() -> Callable[..., dc.EmbeddingModel]:
    """A small network with random weights, the same each time."""

    def make(num_learners: int = 2, embedding_dim: int = 16, seed: int = 0, **options: object) -> dc.EmbeddingModel:
        torch.manual_seed(seed)
        return dc.EmbeddingModel("test_resnet", embedding_dim, num_learners, pretrained=False, image_size=32, **options)

    return make


@pytest.fixture
def photos_in(few: Benchmark) -> Callable[[Path, int], Path]:
    """Writes ``root/CLASS/*.png``, so many classes with 5 real images each."""

    def write(root: Path, count: int) -> Path:
        classes = [c for c in few.train.classes if (few.train.labels == c).sum() >= 5][:count]
        for number, label in enumerate(classes):
            folder = root / f"class{number:0{len(str(count - 1))}}"
            folder.mkdir(parents=True)
            for place, index in enumerate(np.flatnonzero(few.train.labels == label)[:5]):
                few.train.open(index).save(folder / f"{place}.png")
        return root

    return write


@pytest.fixture
def image_folder(tmp_path: Path, photos_in: Callable[[Path, int], Path]) -> Path:
    """``root/CLASS/*.png`` of 8 classes with 5 real images each."""
    return photos_in(tmp_path / "photos", 8)


@pytest.fixture
def subset() -> Callable[[LabeledSet, int], LabeledSet]:
    """The first classes of a set."""
    return lambda images, classes: images.of_classes(images.classes[:classes])


@pytest.fixture
def broken_png() -> Callable[[Path], None]:
    """Overwrite an image with one that is cut off in the middle."""

    def breaks(path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:200])

    return breaks


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``command("train", ...)`` as typed after ``divcon``: exit code, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "\x1b" not in out + err, "a pipe gets no codes of colours"
        return code, out, err

    return call


@pytest.fixture(scope="module")  # Playwright keeps an event loop open, in which no other test can have its own
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; it reaches nothing but files and this machine."""
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=60_000)  # the first map compiles UMAP, and a busy machine is slow
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("the tests of pages need Chromium: apt-get install chromium")
    quiet = ("gpu", "quic", "background-networking", "component-update", "sync")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{what}" for what in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A PostgreSQL with pgvector: what DIVCON_TEST_POSTGRES names, or pgserver's, in a folder of its own."""
    if given := os.environ.get("DIVCON_TEST_POSTGRES"):
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pgserver = pytest.importorskip("pgserver", reason="no pgserver for this Python; set DIVCON_TEST_POSTGRES")
    server = pgserver.get_server(tempfile.mkdtemp(prefix="divcon-pg"), cleanup_mode="delete")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def divcon_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that runs programs with PyTorch imported already; beside it are ``divcon``, and ``page``,
    which is ``run_page.py``."""
    folder = tmp_path_factory.mktemp("server")
    client(folder / "divcon", "divcon")
    client(folder / "page", str(Path(__file__).with_name("run_page.py")))
    with fork_server(folder) as address:
        yield address
