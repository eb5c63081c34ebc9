"""Where pretrained weights come from: packages, caches, and a hub that answers, refuses or says nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

import divcon as dc
from divcon.errors import WeightsError
from divcon.models import weights
from divcon.models.backbone import create_backbone

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:huggingface_hub")


class Hub:
    """A hub on this machine: ``status`` is what it answers, ``files`` what it has, ``pause`` seconds in a download."""

    def __init__(self) -> None:
        self.status, self.files, self.pause = 200, dict[str, bytes](), 0.0
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.requests.append(f"{self.command} {self.path}")
                content = hub.files.get(self.path)
                status = hub.status if content is not None or hub.status != 200 else 404
                self.send_response(status)
                if status == 404 and hub.files:  # the repository is there, a file of it is not
                    self.send_header("X-Error-Code", "EntryNotFound")
                if status == 200 and content is not None:
                    self.send_header("ETag", '"1"')
                    self.send_header("X-Repo-Commit", "a" * 40)
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()

            def do_GET(self) -> None:
                self.do_HEAD()
                if (content := hub.files.get(self.path)) is not None:
                    self.wfile.write(content[:1000])
                    self.wfile.flush()
                    time.sleep(hub.pause)
                    self.wfile.write(content[1000:])

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """``online(address)``: the Hugging Face hub is at this address, and its cache empty."""

    def set_hub(address: str) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        # It asks the hub for a list of programs that may be calling, and keeps that in the user's own cache.
        monkeypatch.setattr("huggingface_hub.utils._headers.detect_agent", lambda: None, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))

    return set_hub


@pytest.fixture
def hub(online: Callable[[str], None]) -> Iterator[Hub]:
    hub = Hub()
    online(hub.address)
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


FILE = "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"


def content_of(tmp_path: Path) -> tuple[bytes, torch.Tensor]:
    """A file of weights of test_resnet, and one of them."""
    torch.manual_seed(1)
    backbone, _ = create_backbone("test_resnet", pretrained=False)
    save_file({**backbone.state_dict(), "fc.weight": torch.ones(1000, 96)}, tmp_path / "w.safetensors")
    return (tmp_path / "w.safetensors").read_bytes(), backbone.state_dict()["conv1.0.weight"]


def test_a_slow_hub_is_waited_for_and_what_it_gave_needs_it_no_more(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SECONDS", 1.0)
    hub.pause = 1.5  # longer than the hub may take to answer
    hub.files[FILE], expected = content_of(tmp_path)
    assert weights.at_hand() == ["tf_efficientnet_lite0"]
    model = dc.EmbeddingModel("test_resnet", 8, image_size=32)
    assert torch.equal(model.backbone.state_dict()["conv1.0.weight"], expected)
    asked = len(hub.requests)
    assert asked
    assert weights.at_hand() == ["tf_efficientnet_lite0", "test_resnet.r160_in1k"]
    again, _ = create_backbone("test_resnet")
    assert torch.equal(again.state_dict()["conv1.0.weight"], expected)
    assert len(hub.requests) == asked
    with pytest.raises(WeightsError, match=r"at hand: tf_efficientnet_lite0, test_resnet\.r160_in1k\. Use one"):
        create_backbone("resnet18")


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (503, r"127\.0\.0\.1 answers with an error \(HTTP 503\); try again later"),
        (401, r"127\.0\.0\.1 answers, and does not have them \(HTTP 401\)"),
        (404, r"127\.0\.0\.1 answers, and does not have them \(HTTP 404\)"),
        (403, r"does not give them without permission"),
    ],
)
def test_what_the_hub_answers_is_said(hub: Hub, status: int, says: str) -> None:
    hub.status = status
    with pytest.raises(WeightsError, match=says) as error:
        dc.EmbeddingModel("test_resnet")
    assert "\n" not in str(error.value)
    assert "at hand: tf_efficientnet_lite0" in str(error.value)
    assert len(hub.requests) <= 2  # nothing is tried again


def test_a_hub_that_says_nothing_is_left_alone(
    online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "0.3")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online(f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(WeightsError, match=r"127\.0\.0\.1 did not answer in 0\.3 seconds"):
            create_backbone("test_resnet")
        silent.setblocking(False)
        silent.accept()
        with pytest.raises(BlockingIOError):  # it was asked once
            silent.accept()
    assert not caplog.records


def test_a_name_server_that_says_nothing_is_not_waited_for(
    online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SECONDS", 0.2)
    online("http://hub.invalid")
    hangs = threading.Event()

    def lookup(*arguments: object, **options: object) -> list:
        hangs.wait(20)
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    with pytest.raises(WeightsError, match=r"hub\.invalid did not answer"):
        create_backbone("test_resnet")
    hangs.set()
    with pytest.raises(WeightsError, match=r"hub\.invalid cannot be found: no network, or no name server"):
        create_backbone("test_resnet")


def test_nobody_at_the_address_or_at_the_proxy(online: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    online(address)
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1 cannot be reached \(.*refused"):
        create_backbone("test_resnet")
    from huggingface_hub.utils import close_session

    online("http://hub.invalid")
    close_session()  # it reads the environment when it begins
    monkeypatch.setenv("HTTP_PROXY", address)
    with pytest.raises(WeightsError, match=r"hub\.invalid cannot be reached through the proxy 127\.0\.0\.1"):
        create_backbone("test_resnet")
    close_session()


def test_offline_by_choice_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set, and they are in no cache"):
        create_backbone("test_resnet")
    assert not hub.requests


def test_weights_in_the_cache_of_pytorch_are_used(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(2)
    source, _ = create_backbone("resnet18", pretrained=False)
    torch.save({**source.state_dict(), "fc.weight": torch.ones(1000, 512)}, folder / "resnet18-f37072fd.pth")
    loaded, _ = create_backbone("resnet18.tv_in1k")
    assert torch.equal(loaded.state_dict()["conv1.weight"], source.state_dict()["conv1.weight"])
    assert "resnet18.tv_in1k" in weights.at_hand()
    (folder / "resnet18-f37072fd.pth").write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"could not be loaded from .*resnet18-f37072fd\.pth"):
        create_backbone("resnet18.tv_in1k")
    assert not hub.requests
