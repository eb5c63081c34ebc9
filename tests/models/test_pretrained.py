"""Models on the Hugging Face Hub and in folders of its form, on a Hub of this machine: loading, pushing, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard, ModelHubMixin, constants
from PIL import Image

import divcon as dc
from divcon.errors import ConfigError, RemoteDeniedError, RemoteError, RemoteMissingError, WeightsError
from divcon.runtime import hub as addresses
from tests.hub import READS, WRITES, Hub

EXTRAS = {"README.md", "modeling_divcon.py", "modules.json", "config_sentence_transformers.json"}
ALL = {"config.json", "model.safetensors", "preprocessor_config.json", *EXTRAS}


@pytest.fixture(scope="module")
def model() -> dc.EmbeddingModel:
    return dc.EmbeddingModel("test_resnet", 8, 2, method="slices", image_size=32, pretrained=False).eval()


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)) for _ in range(3)]


def same(model: dc.EmbeddingModel, other: dc.EmbeddingModel, images: list[Image.Image]) -> bool:
    return bool(np.array_equal(model.encode(images), other.encode(images)))


def test_addresses() -> None:
    of = addresses.address_of
    assert of("hf://user/model") == addresses.Address("user/model")
    assert of("hf://user/model@v1.0/a/b") == addresses.Address("user/model", "v1.0", "a/b")
    assert of("hf://user/model@refs/pr/1/a") == addresses.Address("user/model", "refs/pr/1", "a")
    assert str(of("hf://user/model@feature%2Fx")) == "hf://user/model@feature%2Fx"
    for other in ("hf://datasets/user/x/train.parquet", "hf://spaces/user/x", "s3://bucket/x", "/a/b", "user/model"):
        assert of(other) is None
    for wrong in ("hf://model", "hf://user/model@", "hf:///model"):
        with pytest.raises(RemoteError, match="write hf://USER/MODEL"):
            of(wrong)


def test_a_folder_is_saved_and_loaded(model: dc.EmbeddingModel, images: list[Image.Image], tmp_path: Path) -> None:
    assert isinstance(model, ModelHubMixin)
    assert model.save_pretrained(tmp_path / "mine") is None
    assert {path.name for path in (tmp_path / "mine").iterdir()} == ALL
    assert same(model, dc.EmbeddingModel.from_pretrained(tmp_path / "mine"), images)
    assert same(model, dc.EmbeddingModel.from_pretrained(tmp_path, subfolder="mine"), images)
    card = ModelCard.load(tmp_path / "mine" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("divcon", "image-feature-extraction")
    assert "# mine\n" in card.content
    (tmp_path / "mine" / "README.md").write_text("my own words")
    model.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my own words"
    vectors = dc.EmbeddingModel("none", 4, vector_dim=6)
    vectors.save_pretrained(tmp_path / "vectors")
    assert {path.name for path in (tmp_path / "vectors").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = dc.EmbeddingModel.from_pretrained(tmp_path / "vectors")
    assert again.config == vectors.config  # transformers' keys are no part of it


def test_pushed_and_loaded(
    hub: Hub, model: dc.EmbeddingModel, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", WRITES)
    address = model.push_to_hub("me/birds", private=True, commit_message="the first")
    repo = hub.repos["me/birds"]
    assert repo.private
    assert repo.messages[-1] == "the first"
    assert address == f"{hub.address}/me/birds/commit/{repo.branches['main']}"
    assert set(repo.files()) == {".gitattributes", *ALL}
    card = repo.files()["README.md"].decode()
    assert 'from_pretrained("me/birds")' in card and "divcon encode hf://me/birds" in card
    assert 'SentenceTransformer("me/birds", trust_remote_code=True)' in card

    loaded = dc.EmbeddingModel.from_pretrained("me/birds")
    assert same(model, loaded, images)
    assert set(hub.downloads()) == {"config.json", "model.safetensors", "preprocessor_config.json", "modules.json",
                                    "config_sentence_transformers.json"}  # fmt: skip
    # What the cache has is not downloaded again, and needs no Hub.
    before = len(hub.downloads())
    dc.EmbeddingModel.from_pretrained("me/birds")
    assert len(hub.downloads()) == before
    hub.refuse = 503
    assert same(model, dc.EmbeddingModel.from_pretrained("me/birds"), images)
    asked = len(hub.requests)
    assert same(model, dc.EmbeddingModel.from_pretrained("me/birds", local_files_only=True), images)
    assert len(hub.requests) == asked
    hub.refuse = None

    # Another model on a branch, and a card that its author has filled in.
    other = dc.EmbeddingModel("none", 4, vector_dim=6)
    repo.files()["README.md"] = b"filled in"
    other.push_to_hub("me/birds", revision="vectors", keep_card=True)
    assert set(repo.files("vectors")) == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert repo.files("vectors")["README.md"] == b"filled in"
    assert dc.EmbeddingModel.from_pretrained("me/birds", revision="vectors").vector_dim == 6
    assert same(model, dc.EmbeddingModel.from_pretrained("me/birds", cache_dir=tmp_path / "elsewhere"), images)
    assert (tmp_path / "elsewhere" / "models--me--birds").is_dir()
    assert (
        dc.EmbeddingModel("none", 4, vector_dim=6).save_pretrained(tmp_path / "new", repo_id="me/new", push_to_hub=True)
        == hub.address + "/me/new/commit/" + hub.repos["me/new"].branches["main"]
    )


def test_addresses_are_read_through_the_hubs_cache(
    hub: Hub, model: dc.EmbeddingModel, images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path / "m")
    first = hub.add("me/birds", tmp_path / "m")
    hub.add("me/birds", tmp_path / "m", "sub/", branch="other")
    assert same(model, dc.EmbeddingModel.load("hf://me/birds"), images)
    assert (Path(constants.HF_HUB_CACHE) / "models--me--birds" / "snapshots" / first / "model.safetensors").exists()
    assert same(model, dc.EmbeddingModel.load("hf://me/birds@other/sub"), images)
    assert same(model, dc.EmbeddingModel.from_pretrained("hf://me/birds@other/sub"), images)
    # What is pushed is what is loaded next.
    vectors = dc.EmbeddingModel("none", 4, vector_dim=6)
    vectors.save_pretrained(tmp_path / "v")
    hub.add("me/birds", tmp_path / "v")
    assert dc.EmbeddingModel.load("hf://me/birds").vector_dim == 6
    downloads = len(hub.downloads())
    hub.refuse = 500  # the cache has them
    assert dc.EmbeddingModel.load("hf://me/birds").vector_dim == 6
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert same(model, dc.EmbeddingModel.load("hf://me/birds@other/sub"), images)
    assert len(hub.downloads()) == downloads


def test_what_is_wrong_is_said_in_a_line(
    hub: Hub, model: dc.EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = dc.EmbeddingModel.from_pretrained
    for name in ("user", "a/b/c", "a b/c"):
        with pytest.raises(ConfigError, match="is no name of a repository"):
            load(name)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    hub.add("me/bert", tmp_path / "f")
    hub.add("me/hidden", tmp_path / "f", private=True)
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("me/bert", {}, WeightsError, r"hf://me/bert/config\.json: not the file of a model of divcon"),
        ("me/none", {}, RemoteMissingError, "no model me/none on the Hub, or it is private.*HF_TOKEN"),
        ("me/hidden", {}, RemoteMissingError, "private and no token allows it"),
        ("me/bert", {"revision": "v9"}, RemoteMissingError, "me/bert has no revision v9"),
        ("me/bert", {"subfolder": "x"}, WeightsError, "no model there"),
        ("me/hidden", {"token": "hf_stale"}, RemoteDeniedError, "does not accept the token"),
        ("me/other", {"local_files_only": True}, RemoteError, "not in the Hub's cache"),
    ]
    for name, options, kind, says in cases:
        with pytest.raises(kind, match=says) as raised:
            load(name, **options)
        assert "\n" not in str(raised.value)
    for url, says in (("hf://me/none", "no model me/none on the Hub"), ("hf://me/bert@v9", "has no revision v9")):
        with pytest.raises(RemoteMissingError, match=says):
            dc.EmbeddingModel.load(url)

    with pytest.raises(RemoteDeniedError, match="pushing needs a token"):
        model.push_to_hub("me/new")
    with pytest.raises(RemoteDeniedError, match="not accept the token"):
        model.push_to_hub("me/new", token="hf_stale")
    with pytest.raises(RemoteDeniedError, match="not allowed to write"):
        model.push_to_hub("me/new", token=READS)
    with pytest.raises(ConfigError, match="there already, and public"):
        model.push_to_hub("me/bert", token=WRITES, private=True)
    assert set(hub.repos) == {"me/bert", "me/hidden"}
    with pytest.raises(RemoteError, match=r"does not accept the files: .* no library_name"):
        model.push_to_hub("me/bert", token=WRITES, card="---\nlicense: mit\n---\n")
    before = hub.repos["me/bert"].branches.copy()
    hub.refuse_commits = 429
    with pytest.raises(RemoteError, match=r"HTTP 429\): no more today"):
        model.push_to_hub("me/bert", token=WRITES)
    assert hub.repos["me/bert"].branches == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
        load("me/never")
    with pytest.raises(RemoteError, match="HF_HUB_OFFLINE is set"):
        model.push_to_hub("me/bert", token=WRITES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match=r"the Hub \(http://127\.0\.0\.1:9\) cannot be reached"):
        load("me/never")
