"""`GET /` and `/page/NAME`: the comparison page, served from the package folder `page`; and `/docs`."""

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
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True, kw_only=True)
class _File:
    content: bytes
    media_type: str
    etag: str


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
        media_type=_TYPES.get(suffix, "application/octet-stream"),
        etag=f'"{hashlib.sha256(content).hexdigest()[:32]}"',
    )


def _answer(request: Request, file: _File) -> Response:
    headers = {**_HEADERS, "etag": file.etag}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
