"""``divcon similar`` and ``divcon index --backbone``: search before any training, as a user types it."""

from __future__ import annotations

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import divcon as dc
from divcon.cli.similar import _free_port, _open_page
from divcon.errors import ConfigError

Command = Callable[..., tuple[int, str, str]]

SMALL = ("--size", 32, "--workers", 0)


def similar(command: Command, *arguments: object) -> tuple[int, str, str]:
    return command("similar", *arguments, *SMALL)


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.heavy
def test_from_photos_to_neighbours(command: Command, image_folder: Path, broken_png: Callable[[Path], None]) -> None:
    broken_png(image_folder / "broken.png")
    before = names_below(image_folder)
    images = sorted(image_folder.rglob("*/*.png"))
    query = images[7]
    code, out, err = similar(command, image_folder, "--query", query, "-k", 3)
    assert code == 0, err
    beside = image_folder.with_name("photos.divcon")
    changes, training, *hits = out.splitlines()
    assert changes == f"40 added, 0 changed, 0 removed, 0 kept, 1 skipped: 40 items in {beside / 'index'}"
    assert f"the index is in {beside}; --store chooses another place" in err
    assert f"left out: {image_folder / 'broken.png'}" in err
    assert "Untrained: similarity is by the pretrained features of tf_efficientnet_lite0" in training
    assert len(hits) == 3 and hits[0].split() == ["1.0000", query.parent.name, str(query)]
    assert names_below(image_folder) == before  # nothing is written into it

    # The folder stands for a run, and the command that is printed can be run.
    code, out, err = command("search", beside, query, "-k", 1)
    assert code == 0 and str(query) in out, err
    code, out, err = command("index", "--info", beside)
    assert "40 items, 1280 dimensions" in out and f"model: {beside}" in out
    train = shlex.split(training.partition("To train: ")[2])
    code, out, err = command(*train[1:], "--show-config")
    assert train[:3] == ["divcon", "train", str(image_folder)] and code == 0, err
    assert len(dc.read(image_folder).train)
    (image_folder / "broken.png").unlink()

    # Only what is new is embedded again, and what is gone is removed; without --size too.
    images[0].unlink()
    (image_folder / "new.png").write_bytes(query.read_bytes())
    code, out, err = command("similar", image_folder, "--no-serve", "--workers", 0)
    assert out.startswith("1 added, 0 changed, 1 removed, 39 kept: 40 items"), err
    assert f"to see the page: divcon serve {beside}" in err
    code, out, err = command("index", "--backbone", "tf_efficientnet_lite0", image_folder, *SMALL)
    assert out.startswith("0 added, 0 changed, 0 removed, 40 kept: 40 items"), err
    code, out, err = command("index", "--backbone", "test_resnet", image_folder, *SMALL)
    assert code == 2 and "--backbone test_resnet: " in err and "choose another --store" in err
    code, out, err = command("index", "--backbone", "test_resnet", beside, image_folder)
    assert code == 2 and f"does not go with RUN {beside}" in err


@pytest.mark.heavy
def test_the_page_is_served_with_what_training_needs(
    command: Command, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi.testclient import TestClient

    about: dict[str, Any] = {}

    def answer(app: Any, host: str, port: int, **options: Any) -> None:
        with TestClient(app, base_url=f"http://127.0.0.1:{port}") as client:
            about.update(client.get("/about").json(), port=port, host=host)

    monkeypatch.setattr("divcon.serve.server.serve", answer)
    opened: list[str] = []
    monkeypatch.setattr("divcon.cli.similar._open_page", lambda host, port: opened.append(f"{host}:{port}"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(image_folder.rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = similar(command, flat, "--port", port)
        assert code == 2 and f"--port {port}: cannot listen there" in err
        assert not (tmp_path / "flat.divcon").exists()  # it is found before anything is embedded
        assert _free_port("127.0.0.1", None) >= 8000
    code, out, err = similar(command, flat, "--store", tmp_path / "here", "--port", port, "--open")
    assert code == 0, err
    assert f"40 items of {tmp_path / 'here' / 'index'} at http://127.0.0.1:{port}/" in out
    assert opened == [f"127.0.0.1:{port}"]
    assert (about["items"], about["untrained"], about["port"]) == (40, True, port)
    assert "To train, label at least 6 classes of 2 images each (on the page: Label items" in about["training"]
    assert about["training"] in out
    record = json.loads((tmp_path / "here" / "untrained.json").read_text())
    assert record["data"] == [str(flat)]


@pytest.mark.heavy
def test_a_backbone_and_its_options_in_index(
    command: Command, image_folder: Path, tmp_path: Path, tiny_model: Callable[..., dc.EmbeddingModel]
) -> None:
    table = tmp_path / "t.csv"
    images = sorted(image_folder.rglob("*.png"))
    table.write_text("file,label,price\n" + "".join(f"{p},{p.parent.name},{i}\n" for i, p in enumerate(images)))
    options = ["--image-column", "file", "--store", tmp_path / "shop", "--column-type", "price=int"]
    code, out, err = command("index", "--backbone", "tf_efficientnet_lite0", table, *options, *SMALL)
    assert code == 0, err
    assert out.startswith(f"40 added, 0 changed, 0 removed, 0 kept: 40 items in {tmp_path / 'shop' / 'index'}\n")
    assert f"To train: divcon train {table} --image-column file --backbone tf_efficientnet_lite0 --out runs/t" in out
    code, out, err = command("search", tmp_path / "shop", images[3], "--where", "price<2", "-k", 5)
    assert len(out.splitlines()) == 2, err
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{path}\n" for path in images[:5]))
    code, out, err = command(
        "index", "--backbone", "tf_efficientnet_lite0", "--stream", listing, "--store", tmp_path / "listed", *SMALL
    )
    assert code == 0 and "5 added" in out and "To train, label at least" in out, err

    tiny_model().save(tmp_path / "run")
    wrong: list[tuple[list[object], str]] = [
        (["--backbone", "resnet18", tmp_path / "run", image_folder], "does not go with RUN"),
        (["--backbone", "resnet18", image_folder, "--parts", tmp_path / "p"], "does not go with --parts"),
        (["--backbone", "resnet18"], "IMAGES are missing"),
        (["--backbone", "resnet18", "--stream", listing], "add --store FOLDER"),
        (["--backbone", "resnt18", image_folder], "did you mean"),
        (["--backbone", "test_resnet", image_folder], "The weights of these backbones are at hand: tf_eff"),
        ([tmp_path / "run", image_folder, "--fit", "pad"], "--fit pad is of a backbone: add --backbone NAME"),
        ([], "before any training, divcon index --backbone NAME IMAGES"),
    ]
    for arguments, says in wrong:
        code, _, err = command("index", *arguments)
        assert code == 2 and says in err, (arguments, err)
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
    assert not image_folder.with_name("photos.divcon").exists()


def test_mistakes_are_found_without_pytorch(tmp_path: Path) -> None:
    photo, archive = tmp_path / "a.jpg", tmp_path / "photos.zip"
    photo.touch()
    archive.touch()
    wrong = [
        (["phtos"], "phtos: there is no such file or folder"),
        ([tmp_path / "none"], "none: there is no such file or folder"),
        ([photo, "--query", tmp_path / "q.jpg"], "q.jpg: there is no such file"),
        ([photo, "--size", "large"], "--size: expected"),
        ([photo, "-k", "3"], "-k 3 is of --query"),
        ([photo, "--no-serve", "--port", "8001"], "--port is of the page, which --no-serve leaves out"),
        ([photo, "--query", photo, "--open"], "--open is of the page, which --query leaves out"),
        ([photo, "--weights", tmp_path / "w.pth", "--no-serve"], "w.pth: there is no such file of weights"),
        ([photo, "--store", photo / "x", "--no-serve"], "cannot be written"),
        ([archive], "photos.zip: is an archive; unpack it"),
    ]
    program = (
        "import json, sys\nfrom divcon.cli import main\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try: main(['similar', *arguments])\n"
        "    except SystemExit as stop: assert stop.code == 2, stop.code\n"
        "assert 'torch' not in sys.modules"
    )
    typed = json.dumps([[str(word) for word in arguments] for arguments, _ in wrong])
    done = subprocess.run([sys.executable, "-c", program, typed], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for line, (_, says) in zip(errors, wrong, strict=True):
        assert says in line


def test_what_the_page_needs_is_checked_first(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = command("similar", tmp_path / "a.jpg")
    assert code == 2 and 'pip install "divcon[serve]"; or leave it out (--no-serve)' in err
    with pytest.raises(ConfigError, match="cannot listen there"):
        _free_port("192.0.2.1", 8000)


def test_the_browser_is_opened_when_the_page_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    tries: list[tuple[str, int]] = []
    connect = socket.create_connection

    def later(address: tuple[str, int], timeout: float) -> socket.socket:
        tries.append(address)
        if len(tries) < 3:
            raise ConnectionRefusedError
        return connect(address, timeout=timeout)

    monkeypatch.setattr("socket.create_connection", later)
    with socket.create_server(("127.0.0.1", 0)) as page:
        port = page.getsockname()[1]
        _open_page("127.0.0.1", port)
    assert len(tries) == 3 and opened == [f"http://127.0.0.1:{port}/"]


@pytest.mark.heavy
def test_a_store_elsewhere_has_its_model_beside_the_photos(command: Command, image_folder: Path, postgres: str) -> None:
    table = f"{postgres}{'&' if '?' in postgres else '?'}table=similar_photos"
    query = sorted(image_folder.rglob("*.png"))[3]
    code, out, err = similar(command, image_folder, "--store", table, "--query", query, "-k", 1)
    assert code == 0 and out.splitlines()[-1].endswith(str(query)), err
    beside = image_folder.with_name("photos.divcon")
    assert sorted(path.name for path in beside.iterdir()) == ["model", "untrained.json"]
    query.write_bytes(sorted(image_folder.rglob("*.png"))[30].read_bytes())
    copy = query.rename(image_folder.parent / "new.png")  # its embedding is in no store
    code, out, err = command("search", table, copy, "-k", 1)
    assert code == 0 and out.startswith(" 1.0000"), err
