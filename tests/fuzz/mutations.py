"""Files of every kind that divcon reads, and ways to break them. Shared by the tests and by ``guided.py``."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io
import torch
from PIL import Image

import divcon as dc
from divcon.config.files import read_config_file
from divcon.data.decode import decode
from divcon.data.published.archive import unpacked
from divcon.data.published.mat_file import read_mat
from divcon.division import Division
from divcon.errors import DivconError
from divcon.runs.folder import RunFolder
from divcon.runtime.files import DamagedTensorsError
from divcon.training.checkpoint_file import read_checkpoint, write_checkpoint

EXPECTED = (DivconError, DamagedTensorsError)
"""What a reader may raise: an error of divcon's own."""


@dataclass(frozen=True)
class Target:
    """A reader, and a whole file that it reads."""

    name: str
    """Of the file."""
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def targets() -> dict[str, Target]:
    """By name."""
    listed = [
        Target("images.csv", _csv, lambda path: dc.read(str(path))),
        Target("vectors.parquet", _vectors, lambda path: dc.read(str(path))),
        Target("encoded.parquet", _encoded, lambda path: [dc.read(str(path)).train.open(i) for i in range(4)]),
        Target("rows.jsonl", _json_lines, lambda path: dc.read(str(path))),
        Target("annos.mat", _mat, read_mat),
        Target("settings.yaml", lambda path: path.write_text(_YAML), _settings),
        Target("settings.toml", lambda path: path.write_text(_TOML), _settings),
        Target("settings.json", lambda path: path.write_text(json.dumps({"train": {"epochs": 3}})), _settings),
        Target("checkpoint", _checkpoint, read_checkpoint),
        Target("pack.json", _pack, lambda path: dc.read(str(path.parent))),
        Target("division.safetensors", _division, Division.load),
        Target("weights.safetensors", _weights, _take_weights),
        Target("weights.pth", _weights, _take_weights),
        Target("model.safetensors", _model, lambda path: dc.EmbeddingModel.load(path.parent)),
        Target("config.json", _model, lambda path: dc.EmbeddingModel.load(path.parent)),
        Target("metrics.jsonl", _metrics, lambda path: RunFolder(path.parent).lines()),
        Target("data.zip", _zip, unpacked),
        Target("data.tar.gz", _tar, unpacked),
        Target("photo.jpg", _picture, decode),
        Target("photo.png", _picture, decode),
        Target("photo.webp", _picture, decode),
        Target("photo.tiff", _picture, decode),
        Target("photo.gif", _picture, decode),
    ]
    return {target.name: target for target in listed}


def broken(whole: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    """``whole`` with parts overwritten, cut out, doubled or put in; places wrap around."""
    data = bytearray(whole)
    for kind, place, value in edits:
        place %= len(data) + 1
        if kind == "overwrite":
            data[place : place + len(value)] = value
        elif kind == "insert":
            data[place:place] = value
        elif kind == "cut":
            del data[place : place + len(value) ** 2]
        elif kind == "end":
            del data[place:]
        else:
            data[place:place] = data[place : place + 8 * len(value)]
    return bytes(data)


_YAML = "train:\n  epochs: 3\n  loss_options: {margin: 0.1}\nmodel:\n  method: slices\n"
_TOML = '[train]\nepochs = 3\n[model]\nmethod = "slices"\n'


def _csv(path: Path) -> None:
    rows = [f"{i}.png,c{i % 4},{'train' if i % 4 < 2 else 'test'}\n" for i in range(9)]
    path.write_text("path,label,split\n" + "".join(rows))
    _pictures(path.parent)


def _vectors(path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    table = pa.table({"embedding": list(rows), "label": [f"c{i % 4}" for i in range(12)]})
    pq.write_table(table, path)


def _encoded(path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 90, 200)).save(image, "PNG")
    column = [{"bytes": image.getvalue(), "path": f"{i}.png"} for i in range(8)]
    pq.write_table(pa.table({"image": column, "label": [f"c{i % 4}" for i in range(8)]}), path)


def _pack(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _encoded(Path(folder) / "encoded.parquet")
        dc.pack(dc.read(f"{folder}/encoded.parquet"), path.parent)


def _json_lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"path": f"{i}.png", "label": f"c{i % 4}"}) + "\n" for i in range(8)))
    _pictures(path.parent)


def _pictures(folder: Path) -> None:
    for i in range(9):
        Image.new("RGB", (5, 4), (i, 90, 200)).save(folder / f"{i}.png")


def _mat(path: Path) -> None:
    kind = [("relative_im_path", object), ("class", object)]
    rows = np.array([(f"car_ims/{i}.jpg", i % 4 + 1) for i in range(6)], dtype=kind)
    scipy.io.savemat(path, {"annotations": rows, "class_names": np.array(["a", "b", "c", "d"], object)})
    # It begins with the time, and the same edits are to give the same file at any time.
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + path.read_bytes()[116:])


def _settings(path: Path) -> object:
    read_config_file(path)
    return dc.RunConfig.load(path)


def _checkpoint(path: Path) -> None:
    write_checkpoint(path, {"epochs_done": 3, "model": {"w": torch.arange(6.0)}, "inside": None})


def _division(path: Path) -> None:
    Division(np.array([0, 1, 1, -1]), np.ones((2, 3), np.float32)).save(path)


def _weights(path: Path) -> None:
    model = dc.EmbeddingModel("test_resnet", 8, 1, pretrained=False, image_size=32).backbone.state_dict()
    if path.suffix == ".pth":
        torch.save(model, path)
    else:
        from safetensors.torch import save_file

        save_file(model, path)


def _take_weights(path: Path) -> object:
    return dc.EmbeddingModel("test_resnet", 8, 1, weights=path, image_size=32)


def _model(path: Path) -> None:
    dc.EmbeddingModel("none", 4, 2, vector_dim=5).save(path.parent)


def _metrics(path: Path) -> None:
    path.write_text("".join(json.dumps({"epoch": i, "loss": 0.5, "validation": None}) + "\n" for i in range(3)))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as held:
        for i in range(3):
            held.writestr(f"folder/{i}.txt", "text " * 20)


def _tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as held:
        for i in range(3):
            info = tarfile.TarInfo(f"folder/{i}.txt")
            info.size = 100
            held.addfile(info, io.BytesIO(b"x" * 100))


def _picture(path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
