"""Every command takes addresses for what it reads and writes."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from divcon.cli import main
from divcon.runtime import copies

pytestmark = pytest.mark.heavy

TRAIN = "--backbone test_resnet --no-pretrained --size 32 --learners 2 --dim 8 --batch-size 8 --workers 0"


@pytest.fixture
def bucket(s3, demo):
    """Ten classes of four real images, and the table of them."""
    rows = ["path,label"]
    for label in demo.train.classes[:10]:
        name = demo.train.label_names[label]
        for number, i in enumerate(np.flatnonzero(demo.train.labels == label)[:4]):
            s3.write({f"photos/{name}/{number}.png": demo.train.content(int(i))})
            rows.append(f"photos/{name}/{number}.png,{name}")
    s3.write({"t.csv": "\n".join(rows).encode()})
    return s3


def test_commands(bucket, tmp_path, capsys):
    url, other = bucket.url, tmp_path / "other"

    def divcon(words, code=0):
        copies._known.clear()  # each is a process of its own
        ended = 0
        try:
            main([*shlex.split(words), "--cache-dir", str(other)])
        except SystemExit as error:
            ended = error.code or 0
        printed = capsys.readouterr()
        assert ended == code, printed.err
        assert str(tmp_path) not in printed.out + printed.err.replace("\n", "")
        return printed.out + printed.err

    out = f"{url}/runs/x"
    bucket.write({"settings.yaml": f"source: {{data: {url}/t.csv}}\ntrain: {{epochs: 1}}\n".encode()})
    said = divcon(f"train --config {url}/settings.yaml {TRAIN} --out {out}")
    assert f"kept epoch 0 in {out}/model" in said and f"report in {out}/report.html" in said
    assert "holds a run already" in divcon(f"train {url}/t.csv {TRAIN} --out {out}", code=2)
    divcon(f"train --out {out} --resume --epochs 2")
    assert json.loads(bucket.read("runs/x/config.json"))["train"]["epochs"] == 2
    divcon(f"train {url}/t.csv {TRAIN} --epochs 1 --init {out} --out {url}/runs/y")
    assert json.loads(bucket.read("runs/y/config.json"))["init"] == out
    divcon(f"evaluate {out} --json {url}/e.json")
    divcon(f"evaluate {url}/runs/y --json {url}/f.json")
    assert json.loads(bucket.read("e.json"))["num_queries"] > 0 and "runs/x/test.json" in bucket.names()
    divcon(f"compare {url}/e.json {url}/f.json --json {url}/c.json")
    divcon(f"check {url}/t.csv --json {url}/check.json --fix {url}/fixed.csv")
    divcon(f"pack {url}/t.csv --short-side 40 --out {url}/packed")
    divcon(f"encode {out} {url}/photos --out {url}/v.parquet")
    divcon(f"export {out} --format hf --out {url}/hf")
    divcon(f"prune {out} --dims 4 --out {url}/pruned")
    divcon(f"report {out} --out {url}/r.html")
    divcon(f"index {out} {url}/photos --parts {url}/parts --shard 1/1")
    divcon(f"map {out} --out {url}/map.html")
    names = {name for name in bucket.names() if not name.startswith(("photos/", "runs/"))}
    assert names >= {
        *("c.json", "check.json", "v.parquet", "hf/README.md", "hf/model.safetensors", "pruned/model.safetensors"),
        *("r.html", "packed/pack.json", "packed/train-00000-of-00001.parquet", "parts/shard-1-of-1.json", "map.html"),
    }
    assert not any(name.endswith((".lock", ".test", ".new")) for name in bucket.names())
    assert "no such bucket" in divcon("train s3://no-such-bucket/t.csv --out runs", code=2)
    assert "no such bucket" in divcon(f"evaluate {out} --json s3://no-such-bucket/e.json", code=2)
    assert f"{url}/runs/z: no model there" in divcon(f"evaluate {url}/runs/z {url}/photos", code=2)
    assert "is no size" in divcon(f"check {url}/t.csv --cache-size lots", code=2)
