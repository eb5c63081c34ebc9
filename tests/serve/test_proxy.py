"""The server behind proxies: under a path of its own, under other names, and for pages of other sites."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from playwright.sync_api import Browser, expect
from starlette.testclient import TestClient

from divcon.errors import ConfigError
from divcon.search import Index
from divcon.serve import create_app
from tests.serve.conftest import TOKEN, serving

ROOT = "/tools/divcon"
SHOP = "https://shop.example"


@contextmanager
def proxy(url: str, *, strips: bool, host: str | None = None) -> Iterator[str]:
    """The address of a proxy that serves ``url`` under ``ROOT``, and nothing else.

    Args:
        strips: the server gets paths without ``ROOT``.
        host: the Host that the server gets; None: the client's.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            below = self.path == ROOT or self.path.startswith((f"{ROOT}/", f"{ROOT}?"))
            path = self.path.removeprefix(ROOT) if strips else self.path
            if not below or not path.startswith("/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            sent = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            sent |= {"Host": host or self.headers["host"], "X-Forwarded-Host": self.headers["host"]}
            reply = httpx2.request(self.command, url + path, headers=sent, content=body)
            self.send_response(reply.status_code)
            for name, value in reply.headers.multi_items():
                # httpx has decompressed the body.
                if name not in ("content-length", "content-encoding", "connection", "transfer-encoding"):
                    self.send_header(name, value)
            content = b"" if self.command == "HEAD" else reply.content
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


def client_of(index: Index, **options: Any) -> TestClient:
    return TestClient(create_app(index, **options), base_url="http://127.0.0.1", follow_redirects=False)


@pytest.mark.heavy
@pytest.mark.parametrize("strips", [True, False], ids=["stripped", "whole"])
def test_the_page_under_a_path(
    browser: Browser, index: Index, run: Path, other: Index, photos: Path, strips: bool
) -> None:
    """A search, an upload, all views and the token's cookie, through a proxy that changes Host too."""
    app = create_app(index, token=TOKEN, run=run, compare=other, root_path=f"{ROOT}/", trust_proxy=["127.0.0.1"])
    context, wrong = browser.new_context(viewport={"width": 1400, "height": 900}), []
    with serving(app) as inner, proxy(inner, strips=strips, host="inner.example:8000") as outer:
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(f"{answer.url} {answer.status}") if answer.status > 401 else 0)
        page.on(
            "request", lambda ask: None if ask.url.startswith((f"{outer}{ROOT}/", "blob:")) else wrong.append(ask.url)
        )
        page.goto(f"{outer}{ROOT}/#token={TOKEN}")
        expect(page.locator("#results .item")).to_have_count(40)
        expect(page.locator("#results img").first).to_have_js_property("naturalWidth", 48)
        (cookie,) = context.cookies()
        assert cookie.get("path") == ROOT and cookie.get("httpOnly") and not cookie.get("secure")
        page.locator("#results .item").nth(7).click()
        expect(page.locator("#status")).to_contain_text("24 items found")
        assert page.url.startswith(f"{outer}{ROOT}/?id=")
        page.reload()
        expect(page.locator("#status")).to_contain_text("24 items found")
        page.set_input_files("#file", photos / "3-1.png")
        expect(page.locator("#query")).to_contain_text("3-1.png")
        expect(page.locator("#results .item").first.locator(".label")).to_have_text("mug 3")
        page.get_by_role("link", name="Map").click()
        expect(page.locator("#status")).to_contain_text("items shown")
        page.get_by_role("link", name="Divisions").click()
        expect(page.locator("#sheets img").first).to_have_js_property("naturalWidth", 48)
        page.go_back()
        expect(page.locator("#map-canvas")).to_be_visible()
        page.goto(f"{outer}{ROOT}/?view=compare")
        page.locator("#compare-content .row .item").first.click()
        expect(page.locator(".versus .item")).to_have_count(24)
        assert page.url.startswith(f"{outer}{ROOT}/?view=compare&id=")
        icon = page.locator("link[rel=icon]").evaluate("link => link.href")
        assert page.request.get(icon).headers["content-type"] == "image/svg+xml"
        assert page.request.get(f"{outer}{ROOT}/openapi.json").json()["servers"] == [{"url": ROOT}]
        if not strips:
            bare = httpx2.get(f"{outer}{ROOT}?view=map", follow_redirects=False)
            assert (bare.status_code, bare.headers["location"]) == (307, f"{ROOT}/?view=map")
    context.close()
    assert not wrong


@pytest.mark.parametrize("root", ["", ROOT])
def test_redirects_name_no_host(index: Index, root: str) -> None:
    with client_of(index, root_path=root) as client:
        for path in {"/items/", f"{root}/items/"}:
            answer = client.get(f"{path}?limit=3")
            assert (answer.status_code, answer.headers["location"]) == (307, f"{root}/items?limit=3")
        for path in ("/nothing/", "http://127.0.0.1//evil.example/", "http://127.0.0.1//evil.example/items/"):
            assert client.get(path).status_code == 404


def test_a_mounted_server(index: Index) -> None:
    """The application under a path of another application, which says so itself."""
    outer = FastAPI()
    outer.mount(ROOT, create_app(index, token=TOKEN))
    with TestClient(outer, base_url="http://127.0.0.1", follow_redirects=False) as client:
        assert client.get(f"{ROOT}/").status_code == client.get(f"{ROOT}/page.css").status_code == 200
        assert client.get(f"{ROOT}/about").status_code == 401
        answer = client.post(f"{ROOT}/login", headers={"Authorization": f"Bearer {TOKEN}"})
        assert f"Path={ROOT}" in answer.headers["set-cookie"]
        assert client.get(f"{ROOT}/about").status_code == 200


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"root_path": "https://shop.example/tools"}, "such as /tools/divcon"),
        ({"root_path": "/a/../b"}, "such as /tools/divcon"),
        ({"root_path": ".."}, "such as /tools/divcon"),
        ({"root_path": "/map/divcon"}, "an address of this server itself"),
        ({"allow_host": ["https://shop.example"]}, "such as shop.example"),
        ({"allow_host": ["*"]}, "such as shop.example"),
        ({"allow_host": "shop.example"}, "pass a list"),
        ({"trust_proxy": ["proxy.example"]}, "such as 127.0.0.1"),
        ({"trust_proxy": ["10.0.0.1/8"]}, "host bits"),
        ({"cors_origin": ["*"]}, "such as https://shop.example"),
        ({"cors_origin": ["shop.example"]}, "such as https://shop.example"),
        ({"cors_origin": ["https://shop.example/app"]}, "such as https://shop.example"),
    ],
)
def test_options_of_another_form(index: Index, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        create_app(index, **options)
    assert error.value.field == next(iter(options))


def test_a_refused_host_says_what_to_do(index: Index) -> None:
    with client_of(index) as client:
        answer = client.get("/about", headers={"Host": "shop.example:80"})
        assert answer.status_code == 403 and "--allow-host shop.example" in answer.json()["error"]
        answer = client.post("/search", json={"id": 1}, headers={"Origin": SHOP})
        assert answer.status_code == 403
        assert (
            "--allow-host shop.example" in answer.json()["error"] and f"--cors-origin {SHOP}" in answer.json()["error"]
        )
        # Without trust_proxy, what a proxy says of the client counts for nothing.
        answer = client.post("/search", json={"id": 1}, headers={"Origin": SHOP, "X-Forwarded-Host": "shop.example"})
        assert answer.status_code == 403


def test_hosts_that_are_allowed(index: Index) -> None:
    def statuses(client: TestClient, **headers: str) -> int:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/search", json={"id": 1}, headers=sent).status_code

    with client_of(index, allow_host=["Shop.example", "port.example:8443"]) as client:
        assert statuses(client, host="shop.example") == statuses(client, host="SHOP.example:99") == 200
        assert statuses(client, host="127.0.0.1", origin=SHOP) == 200
        assert statuses(client, host="port.example:8443", origin="https://port.example:8443") == 200
        assert statuses(client, host="port.example") == statuses(client, host="other.example") == 403
        assert statuses(client, host="127.0.0.1", origin=f"{SHOP}:99") == 403
        assert statuses(client, host="shop.example", origin="https://evil.example") == 403


def test_a_trusted_proxy(index: Index) -> None:
    app = create_app(index, token=TOKEN, trust_proxy=["10.0.0.0/8"])
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    forwarded = {**bearer, "Origin": SHOP, "X-Forwarded-Host": "shop.example", "X-Forwarded-Proto": "https"}
    for address, status in (("10.1.2.3", 200), ("11.1.2.3", 403)):
        with TestClient(app, base_url="http://127.0.0.1", client=(address, 1)) as client:
            assert client.post("/search", json={"id": 1}, headers=forwarded).status_code == status
            cookie = client.post("/login", headers={**bearer, "X-Forwarded-Proto": "https"}).headers["set-cookie"]
            assert ("Secure" in cookie) == (status == 200)
    # A page that reaches this machine under another name can send any X-Forwarded-Host: Host counts as well.
    app = create_app(index, trust_proxy=["127.0.0.1"])
    with TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        for host, named in (("evil.example", "localhost"), ("localhost", "evil.example")):
            answer = client.get("/about", headers={"Host": host, "X-Forwarded-Host": named})
            assert answer.status_code == 403 and "evil.example" in answer.json()["error"]


def test_pages_of_other_sites(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = {"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    with client_of(index) as client:
        assert client.options("/search", headers=ask).status_code == 403
    with client_of(index, token=TOKEN, cors_origin=[f"{SHOP}:443/"]) as client:
        answer = client.options(
            "/search", headers=ask | {"Access-Control-Request-Headers": "authorization,content-type"}
        )
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == SHOP
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert client.options("/search", headers=ask | {"Origin": "https://evil.example"}).status_code == 400

        bearer = {"Authorization": f"Bearer {TOKEN}"}
        answer = client.post("/search", json={"id": 1}, headers={"Origin": SHOP, **bearer})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == SHOP
        assert "access-control-allow-credentials" not in answer.headers and "Origin" in answer.headers["vary"]
        assert "access-control-allow-origin" not in client.get("/about", headers=bearer).headers
        # Errors can be read too: of the guard, of the API, and unforeseen ones.
        for body, sent, status in (({"id": 1}, {}, 401), ({"id": 999}, bearer, 404), ({}, bearer, 400)):
            answer = client.post("/search", json=body, headers={"Origin": SHOP, **sent})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, SHOP)
            assert answer.json()["error"]
        answer = client.post("/search", json={"id": 1}, headers={"Origin": "https://evil.example", **bearer})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        # The cookie is of the server's own page alone.
        client.post("/login", headers=bearer)
        assert client.post("/search", json={"id": 1}).status_code == 200
        assert client.post("/search", json={"id": 1}, headers={"Origin": SHOP}).status_code == 401
    with TestClient(create_app(index, cors_origin=[SHOP]), "http://127.0.0.1", raise_server_exceptions=False) as client:
        monkeypatch.setattr(type(index.store), "version", lambda store: 1 / 0)
        answer = client.get("/health", headers={"Origin": SHOP})
        assert answer.status_code == 500 and answer.json()["error"].startswith("internal server error")
        assert answer.headers["access-control-allow-origin"] == SHOP and "content-security-policy" in answer.headers


@pytest.mark.heavy
def test_a_page_of_another_site_in_a_browser(browser: Browser, index: Index, tmp_path: Path) -> None:
    """It searches with the token, reads an error, and shows a picture; unless it is named, it cannot."""
    (tmp_path / "index.html").write_text("<!doctype html><title>shop</title>")
    handler = functools.partial(Quiet, directory=str(tmp_path))
    shop = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=shop.serve_forever, daemon=True).start()
    origin = f"http://127.0.0.1:{shop.server_port}"
    script = """async ([url, token]) => {
        const ask = async (body, headers) => {
            try {
                const answer = await fetch(`${url}/search`, { method: "POST", body: JSON.stringify(body),
                    headers: { "Content-Type": "application/json", ...headers } });
                const data = await answer.json();
                return [answer.status, data.hits ? data.hits.length : data.error];
            } catch (error) { return error.name; }
        };
        const shows = (crossOrigin) => new Promise((done) => {
            const image = new Image();
            if (crossOrigin) image.crossOrigin = "anonymous";
            image.onload = () => done(true);
            image.onerror = () => done(false);
            image.src = `${url}/items/1/image`;
        });
        return [await ask({ id: 1, k: 3 }, token), await ask({ id: 999 }, token), await ask({ id: 1 }, {}),
            await shows(true), await shows(false)];
    }"""
    page = browser.new_page()
    page.goto(origin)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    with serving(create_app(index, token=TOKEN, cors_origin=[origin])) as url:
        found, missing, refused, *_ = page.evaluate(script, [url, bearer])
        assert found == [200, 3] and missing[0] == 404 and "no item 999" in missing[1] and refused[0] == 401
    with serving(create_app(index, cors_origin=[origin])) as url:
        *_, refused, named, plain = page.evaluate(script, [url, {}])
        assert refused == [200, 12] and named and not plain
    with serving(create_app(index)) as url:
        assert page.evaluate(script, [url, {}]) == ["TypeError", "TypeError", "TypeError", False, False]
    page.close()
    shop.shutdown()
    shop.server_close()


def test_the_cookies_of_two_servers_on_one_host(index: Index) -> None:
    with client_of(index, token=TOKEN) as client:
        for cookies in (f"divcon_token={TOKEN}; divcon_token=other", f"divcon_token=other; divcon_token={TOKEN}"):
            assert client.get("/about", headers={"Cookie": cookies}).status_code == 200
        assert client.get("/about", headers={"Cookie": "divcon_token=other; divcon_token=x"}).status_code == 401


@pytest.mark.heavy
def test_head_for_every_get(served: Any) -> None:
    """The headers of GET, without the body, over a real connection."""
    with httpx2.Client(base_url=served.url, headers={"Accept-Encoding": "gzip"}, timeout=60) as client:
        described = client.get("/openapi.json").json()["paths"]
        paths = [path.format(item=3) for path, ways in described.items() if "get" in ways]
        paths[paths.index("/map/column")] += "?name=colour"
        assert "/items/3/image" in paths and len(paths) >= 9
        paths = [f"{path}?name=price" if path == "/map/column" else path for path in paths]
        for path in [*paths, "/", "/page.js", "/page.css", "/favicon.svg", "/openapi.json"]:
            while (got := client.get(path)).status_code == 202:
                pass
            head = client.head(path)
            assert head.status_code == got.status_code == 200, path
            assert head.content == b"", path
            for name in ("content-type", "etag", "cache-control", "content-encoding", "content-security-policy"):
                assert head.headers.get(name) == got.headers.get(name), (path, name)
            if path not in ("/metrics", "/health"):
                assert head.headers["content-length"] == got.headers["content-length"], path
        assert client.head("/search").status_code == 405
        assert client.head("/nothing").status_code == 404
        # The connection is still usable: no body was left on it.
        assert client.get("/health").json() == {"status": "ok"}


def test_files_of_the_page_are_sent_once_and_compressed(index: Index) -> None:
    with client_of(index) as client:
        for path in ("/", "/page.js", "/page.css", "/favicon.svg"):
            whole = client.get(path, headers={"Accept-Encoding": "identity"})
            zipped = client.get(path, headers={"Accept-Encoding": "gzip"})
            assert whole.content == zipped.content and whole.headers["etag"] == zipped.headers["etag"]
            if len(whole.content) > 1024:
                assert int(zipped.headers["content-length"]) < len(whole.content) / 2
                assert zipped.headers["content-encoding"] == "gzip" and "Accept-Encoding" in zipped.headers["vary"]
            again = client.get(path, headers={"If-None-Match": f'"other", {whole.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"") and again.headers["etag"] == whole.headers["etag"]
            assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
        image = client.get("/items/1/image", headers={"Accept-Encoding": "gzip"})
        assert "content-encoding" not in image.headers
        assert client.get("/items/1/image", headers={"If-None-Match": image.headers["etag"]}).status_code == 304
