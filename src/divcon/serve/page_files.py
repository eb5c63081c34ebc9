"""The files of the page, with the tags by which a browser knows that its copy is still the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).parent / "page"
# The system's own table may say otherwise, and a browser runs no script of another type.
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}


@dataclass(frozen=True)
class PageFile:
    """A file of the page, which is read once."""

    content: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, path: Path) -> PageFile:
        """The file at a path; one of an unknown type is text."""
        content = path.read_bytes()
        # Weak, since the answer may be compressed.
        etag = f'W/"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
        return cls(content, _TYPES.get(path.suffix, "text/plain; charset=utf-8"), etag)

    async def answer(self, request: Request) -> Response:
        """The file, or status 304 if the browser has it."""
        headers = {"Cache-Control": "no-cache", "ETag": self.etag}
        if is_unchanged(request, self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def is_unchanged(request: Request, etag: str) -> bool:
    """Whether the client has what this tag names."""
    asked = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in asked or etag.removeprefix("W/") in asked


PAGE_FILES = {
    "/" if path.name == "index.html" else f"/{path.relative_to(_FOLDER).as_posix()}": PageFile.read(path)
    for path in sorted(_FOLDER.rglob("*"))
    if path.is_file()
}
"""By path below the root."""
