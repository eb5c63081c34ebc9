"""Embedding on a Ray cluster of two nodes on this machine: after workers, nodes and drivers are killed, the parts are
those that one process writes, each row once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import divcon as dc
from divcon.errors import ConfigError, ImageError, WorkerError
from divcon.runtime.context import Progress
from divcon.runtime.device import torch_threads
from divcon.search import Ray
from divcon.search.encode import write_parts
from divcon.search.items import set_of
from divcon.search.sources import ItemSource, items_to_encode

pytestmark = pytest.mark.heavy

Command = Callable[..., tuple[int, str, str]]


class TwoNodes:
    """Two nodes of one core each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "ray_client_server_port": 24_017}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.second = self.cluster.add_node(num_cpus=1)

    @property
    def engine(self) -> Ray:
        return Ray(self.cluster.address)

    def workers(self) -> list[int]:
        """The processes that have the model."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                name, parent = (folder / "cmdline").read_bytes(), (folder / "stat").read_text().rsplit(")", 1)[1]
            except OSError:
                continue
            if b"MapWorker" in name and int(parent.split()[1]) in self._raylets():
                found.append(int(folder.name))
        return found

    def _raylets(self) -> list[int]:
        return [info.process.pid for node in self.cluster.list_all_nodes() for info in node.all_processes["raylet"]]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = TwoNodes()
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture
def run(tiny_model: Callable[..., dc.EmbeddingModel], tmp_path: Path) -> Path:
    tiny_model().save(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def slow_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dc.EmbeddingModel:
    """With a transform of one's own, which only this program can import, and which is slow, so that workers die in the
    middle of a part."""
    (tmp_path / "slow_transform.py").write_text(
        "import time\n"
        "import torchvision.transforms.v2.functional as F\n"
        "def transform(image):\n"
        "    time.sleep(0.1)\n"
        "    return F.pil_to_tensor(image.resize((32, 32)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    options: dict[str, Any] = {"pretrained": False, "image_size": 32, "eval_transform": "slow_transform:transform"}
    return dc.EmbeddingModel("test_resnet", 16, **options).eval()


def rows_of(folder: Path) -> dict[str, np.ndarray]:
    """The embedding of each path; each path is there once."""
    table = pq.read_table(folder) if folder.is_file() else pq.ParquetDataset(sorted(folder.glob("*.parquet"))).read()
    paths = table["path"].to_pylist()
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, np.stack(table["embedding"].to_numpy()), strict=True))


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one)


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(
    two_nodes: TwoNodes,
    slow_model: dc.EmbeddingModel,
    image_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    alone, out = tmp_path / "alone.parquet", tmp_path / "cluster"
    with torch_threads(1):  # as a worker of one core has; with more, the last bits differ
        dc.encode(slow_model, image_folder, alone, part_rows=4, batch_size=2)
    killed: list[int] = []

    def kill(step: Progress) -> None:
        if not killed:
            killed.extend(two_nodes.workers())
            for process in killed:
                os.kill(process, signal.SIGKILL)

    notes: list[str] = []
    context = dc.Context(on_progress=kill, on_warning=notes.append)
    how: dict[str, Any] = {"engine": two_nodes.engine, "context": context}
    encoded = dc.encode(slow_model, image_folder, out, part_rows=4, batch_size=2, **how)
    assert killed
    assert [note for note in notes if "a worker was lost; part " in note]
    assert (encoded.rows, encoded.kept, encoded.dims) == (40, 0, 16)
    assert same(rows_of(out), rows_of(alone))
    assert sorted(path.name for path in out.iterdir())[10:] == ["shard-1-of-1.json"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_an_index_from_the_command_line_with_a_node_removed(
    two_nodes: TwoNodes, slow_model: dc.EmbeddingModel, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    slow_model.save(run)

    def remove() -> None:
        while len(two_nodes.workers()) < 2 or not list((tmp_path / "store.parts").glob("part-*")):
            time.sleep(0.05)
        two_nodes.cluster.remove_node(two_nodes.second, allow_graceful=False)

    thread = threading.Thread(target=remove)
    thread.start()
    address = two_nodes.cluster.address
    trusted = ("--import", "slow_transform")
    where = ("--engine", "ray", "--address", address, "--store", tmp_path / "store", "--part-rows", 2, *trusted)
    try:
        code, out, err = command("index", run, image_folder, *where)
    finally:
        thread.join()
        two_nodes.second = two_nodes.cluster.add_node(num_cpus=1)
    assert code == 0, err  # whether a part was in work on the node when it went, or not
    assert out.splitlines()[0] == f"parts: 40 embedded, 0 already there, in {tmp_path / 'store.parts'}"
    assert out.splitlines()[1].startswith("40 added, 0 changed, 0 removed, 0 kept: 40 items")
    assert command("index", run, image_folder, "--store", tmp_path / "one", "--workers", 0, *trusted)[0] == 0
    image = sorted(image_folder.rglob("*.png"))[11]
    one, other = (
        [(hit.path, hit.label) for hit in dc.Index.open(tmp_path / name, slow_model).search(image, k=10)]
        for name in ("store", "one")
    )
    assert one == other

    # An image less, and --delete-missing: the next call brings the store up to date.
    image.unlink()
    code, out, err = command("index", run, image_folder, *where, "--delete-missing")
    assert code == 0, err
    assert "1 removed, 39 kept: 39 items" in out


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on(
    two_nodes: TwoNodes, run: Path, image_folder: Path, tmp_path: Path, command: Command
) -> None:
    listing, out = tmp_path / "paths.txt", tmp_path / "parts"
    listing.write_text("".join(f"{path}\n" for path in sorted(image_folder.rglob("*.png"))))
    how = [str(run), "--stream", str(listing), "--out", str(out), "--part-rows", "2", "--batch-size", "2"]
    on_cluster = [*how, "--engine", "ray", "--address", two_nodes.cluster.address]
    driver = subprocess.Popen([sys.executable, "-m", "divcon", "encode", *on_cluster])
    while len(list(out.glob("part-*.parquet"))) < 3:
        assert driver.poll() is None
        time.sleep(0.05)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    there = len(list(out.glob("part-*.parquet")))
    assert 3 <= there < 20
    code, printed, err = command("encode", *on_cluster)
    assert (code, err) == (0, ""), err
    kept = int(printed.split()[-5])
    assert 2 * there <= kept < 40
    alone = tmp_path / "alone.parquet"
    with torch_threads(1):
        assert command("encode", *how[:4], alone, *how[5:], "--workers", 0)[0] == 0
    assert same(rows_of(out), rows_of(alone))

    # What is gone, damaged or of another image is computed, and no more.
    parts = sorted(out.glob("part-*.parquet"))
    parts[3].unlink()
    parts[5].write_bytes(b"PAR1")
    images = sorted(image_folder.rglob("*.png"))
    images[0].write_bytes(images[9].read_bytes())
    code, printed, err = command("encode", *on_cluster)
    assert (code, err) == (0, ""), err
    assert printed == f"40 embeddings of 16 dimensions in {out}, 34 of them there already\n"


@pytest.mark.slow
def test_by_ray_client_and_errors_of_images_are_one_line(
    two_nodes: TwoNodes, run: Path, image_folder: Path, tmp_path: Path, broken_png: Callable[[Path], None]
) -> None:
    engine = Ray("ray://127.0.0.1:24017", actors=1)
    bad = image_folder / "class3" / "3.png"
    broken_png(bad)
    with pytest.raises(ImageError, match=r"class3/3\.png: this image does not decode"):
        dc.encode(run, image_folder, tmp_path / "parts", part_rows=8, engine=engine)
    notes: list[str] = []
    context = dc.Context(on_warning=notes.append)
    encoded = dc.encode(
        run, image_folder, tmp_path / "parts", part_rows=8, on_bad_image="skip", engine=engine, context=context
    )
    assert encoded.rows == 39
    assert encoded.kept > 0
    assert [note for note in notes if "left out" in note and "class3/3.png" in note]
    index = dc.Index.build(run, image_folder, tmp_path / "store", engine=engine, on_bad_image="skip")
    assert len(index) == 39
    assert index.search(image_folder / "class1" / "0.png", k=1)[0].path == str(image_folder / "class1" / "0.png")
    items = items_to_encode(set_of(image_folder))
    first = image_folder / "class0" / "0.png"
    first.unlink()
    with pytest.raises(ConfigError, match=r"class0/0\.png: is not there on node"):
        write_parts(run, ItemSource(items), tmp_path / "other", engine=engine)


@pytest.mark.slow
def test_an_image_that_kills_every_worker_ends_the_work(
    two_nodes: TwoNodes, run: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def transform(image):\n"
        "    if image.getpixel((0, 0)) == (1, 2, 3):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    import torchvision.transforms.v2.functional as F\n"
        "    return F.pil_to_tensor(image.resize((32, 32)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    model = dc.EmbeddingModel("test_resnet", 16, pretrained=False, image_size=32, eval_transform="deadly:transform")
    from PIL import Image

    Image.new("RGB", (32, 32), (1, 2, 3)).save(image_folder / "class2" / "0.png")
    with pytest.raises(WorkerError, match=r"part 2 \(.*class2/0\.png .*: 4 workers died on it"):
        dc.encode(model, image_folder, tmp_path / "parts", part_rows=5, engine=two_nodes.engine)
    (image_folder / "class2" / "0.png").unlink()
    encoded = dc.encode(model, image_folder, tmp_path / "parts", part_rows=5, engine=two_nodes.engine)
    assert encoded.rows == 39


@pytest.mark.slow
def test_a_ray_of_this_machine_alone_from_s3_to_s3(
    run: Path, image_folder: Path, tmp_path: Path, command: Command, s3: Any
) -> None:
    s3.upload(image_folder, "photos/")
    names = [name for name in s3.names() if name.endswith(".png")]
    rows = pa.table({"path": [f"{s3.url}/{name}" for name in names], "price": list(range(40))})
    pq.write_table(rows, tmp_path / "images.parquet")
    s3.write({"images.parquet": (tmp_path / "images.parquet").read_bytes()})
    where = ("--stream", f"{s3.url}/images.parquet", "--part-rows", 8, "--engine", "ray")
    code, out, err = command("encode", run, *where, "--out", f"{s3.url}/vectors")
    assert (code, err) == (0, "")
    assert out == f"40 embeddings of 16 dimensions in {s3.url}/vectors\n"
    code, out, err = command("index", run, *where, "--parts", f"{s3.url}/parts", "--store", tmp_path / "store")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].startswith("40 added")
    hits = dc.Index.open(tmp_path / "store", run).search(image_folder / names[9].removeprefix("photos/"), k=1)
    assert (hits[0].path, hits[0].metadata) == (f"{s3.url}/{names[9]}", {"price": 9})
    assert len([name for name in s3.names() if name.startswith("vectors/part-")]) == 5


def test_what_is_wrong_with_the_engine_is_said_before_any_work(
    run: Path, image_folder: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*options: object) -> str:
        code, _, err = command("encode", run, image_folder, "--out", tmp_path / "out", *options)
        assert code == 2
        assert err.count("\n") == 1
        return err

    assert "--address auto is of an engine: add --engine ray" in refused("--address", "auto")
    ray = ("--engine", "ray", "--address")
    assert "no Ray cluster answers there (Connection refused)" in refused(*ray, "127.0.0.1:9")
    assert "write auto, HOST:6379 or ray://HOST:10001" in refused(*ray, "cluster")
    assert "does not go with --engine ray" in refused("--engine", "ray", "--shard", "1/2")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert 'pip install "divcon[ray]"' in refused("--engine", "ray")
    with pytest.raises(ConfigError, match="`engine` spark"):
        dc.encode(run, image_folder, tmp_path / "out", engine="spark")  # pyright: ignore[reportArgumentType]
    code, _, err = command("index", run, image_folder, "--engine", "ray", "--store", "postgresql://x/y")
    assert code == 2
    assert "--parts" in err
    assert not (tmp_path / "out").exists()
