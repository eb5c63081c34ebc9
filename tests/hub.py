"""A Hugging Face Hub on this machine for tests: repositories of models with branches and commits, accounts with tokens,
and the requests that huggingface_hub makes to read them, to create them and to commit."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

WRITES, READS = "hf_writes", "hf_reads"
"""Tokens of the account ``me``: one that may write, one that may not."""


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], message: str = "", branch: str = "main") -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Hub:
    """``repos`` by name; ``refuse``, the status of all answers; ``requests``, as they came."""

    repos: dict[str, Repo] = field(default_factory=dict)
    refuse: int | None = None
    refuse_commits: int | None = None
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def add(self, repo_id: str, folder: Path, below: str = "", *, branch: str = "main", private: bool = False) -> str:
        """A commit of the files of a folder."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        files = {
            below + path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return repo.commit(files, branch=branch)

    def downloads(self) -> list[str]:
        """The files that were downloaded, by their names."""
        asked = [each for each in self.requests if each.startswith("GET") and "/resolve/" in each]
        return [each.partition("/resolve/")[2].partition("/")[2] for each in asked]

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        method, path = request.command, unquote(urlsplit(request.path).path)
        token = (request.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.requests.append(f"{method} {path}")
        if self.refuse is not None:
            return _error(self.refuse, "the Hub is ill")
        if token and token not in (WRITES, READS):
            return _error(401, "Invalid credentials")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "whoami-v2"]:
            return _json({"name": "me", "type": "user"}) if token else _error(401, "Invalid credentials")
        if parts[:2] == ["api", "validate-yaml"]:
            known = "library_name: divcon" in json.loads(body)["content"]
            _, headers, content = _json({"errors": [] if known else [{"message": "no library_name"}]})
            return (200 if known else 400), headers, content
        if parts[:3] == ["api", "repos", "create"]:
            return self._create(json.loads(body), token)
        api = parts[0] == "api"
        parts = parts[2:] if api else parts
        name, rest = "/".join(parts[:2]), parts[2:]
        repo = self.repos.get(name)
        if repo is None or (repo.private and not token):
            return _error(404 if token else 401, "Repository not found", "RepoNotFound")
        if api and rest and rest[0] in ("branch", "preupload", "commit"):
            if token != WRITES:
                return _error(403, "you have no permission to write")
            return self._write(repo, name, rest[0], "/".join(rest[1:]), body)
        revision = rest[1] if len(rest) > 1 else "main"
        sha = repo.branches.get(revision, revision)
        if sha not in repo.commits:
            return _error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if rest and rest[0] == "resolve":
            return _file(repo.commits[sha].get("/".join(rest[2:])), sha)
        entries = [
            {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
            for path, content in repo.commits[sha].items()
        ]
        if rest and rest[0] == "tree":
            return _json(entries)
        siblings = [{"rfilename": each["path"], "size": each["size"], "blobId": each["oid"]} for each in entries]
        return _json({"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings})

    def _create(self, about: dict[str, Any], token: str) -> tuple[int, dict[str, str], bytes]:
        name = f"{about.get('organization') or 'me'}/{about['name']}"
        if token != WRITES:
            return _error(403, "you have no permission to create a repository")
        if name in self.repos:
            status, headers, _ = _error(409, "You already created this model repo")
            return status, headers, json.dumps({"url": f"{self.address}/{name}"}).encode()
        repo = self.repos[name] = Repo(bool(about.get("private")) or about.get("visibility") == "private")
        repo.commit({".gitattributes": b""}, "initial commit")
        return _json({"url": f"{self.address}/{name}", "id": name})

    def _write(self, repo: Repo, name: str, what: str, rest: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if what == "branch":
            if rest in repo.branches:
                return _error(409, "Reference already exists")
            repo.branches[rest] = repo.branches["main"]
            return _json({})
        if what == "preupload":
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            return _json({"files": [{"path": each["path"], **regular} for each in files]})
        if self.refuse_commits is not None:
            return _error(self.refuse_commits, "no more today")
        files, message = dict(repo.files(rest)), ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repo.commit(files, message, rest)
        return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.address}/{name}/commit/{sha}"})


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status: int, message: str, code: str = "") -> tuple[int, dict[str, str], bytes]:
    headers = {"Content-Type": "application/json", "X-Error-Message": message}
    return status, headers | ({"X-Error-Code": code} if code else {}), json.dumps({"error": message}).encode()


def _file(content: bytes | None, sha: str) -> tuple[int, dict[str, str], bytes]:
    if content is None:
        return _error(404, "Entry not found", "EntryNotFound")
    return 200, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": sha}, content


def served(hub: Hub) -> ThreadingHTTPServer:
    """A server of it, on a thread; sets its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, content = hub.answer(self, body)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = handle_one

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub without models, in place of the real one, with empty caches; nobody is logged in."""
    from huggingface_hub import constants

    hub = Hub()
    server = served(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # It asks the Hub for a list of programs that may be calling, and keeps that in the user's own cache.
    monkeypatch.setattr("huggingface_hub.utils._headers.detect_agent", lambda: None, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("DIVCON_CACHE_DIR", str(tmp_path / "cache"))
    yield hub
    server.shutdown()
    server.server_close()
