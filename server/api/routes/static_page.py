"""`GET /` and `/page/NAME`: the comparison page, served from the package folder `page`; and `/docs`."""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.openapi.page import docs_page
from server.errors import NotServedError

_FOLDER = Path(__file__).parents[1] / "page"
_INDEX = "index.html"
_TYPES = {  # explicit, because Python's table varies with the machine
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
_HEADERS = {
    "cache-control": "no-cache",  # cached, but revalidated by ETag: an upgrade shows at once
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    compressed: bytes
    media_type: str
    digest: str


def page_routes() -> APIRouter:
    """The page's routes. Its files are read once, in this call."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: _read(path) for path in _FOLDER.iterdir() if path.is_file()}

    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(request, files[_INDEX])

    @router.get("/page/{name}")
    async def asset(request: Request, name: str) -> Response:
        if name not in files:
            raise NotServedError(f"/page/{name} is not part of the page")
        return _answer(request, files[name])

    return router


def docs_routes(document: dict[str, Any]) -> APIRouter:
    """The page that shows an OpenAPI document. It is drawn once, in this call."""
    router = APIRouter(include_in_schema=False)
    page = _file(docs_page(document).encode(), ".html")

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return _answer(request, page)

    return router


def _read(path: Path) -> _File:
    return _file(path.read_bytes(), path.suffix)


def _file(content: bytes, suffix: str) -> _File:
    return _File(
        content=content,
        compressed=gzip.compress(content, mtime=0),
        media_type=_TYPES.get(suffix, "application/octet-stream"),
        digest=hashlib.sha256(content).hexdigest()[:32],
    )


def _answer(request: Request, file: _File) -> Response:
    packed = "gzip" in request.headers.get("accept-encoding", "")
    etag = f'"{file.digest}-gzip"' if packed else f'"{file.digest}"'
    headers = {**_HEADERS, "etag": etag, "vary": "accept-encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(file.compressed if packed else file.content, media_type=file.media_type, headers=headers)
