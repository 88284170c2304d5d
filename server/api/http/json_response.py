"""JSON as it goes over the wire: ASCII only, since characters such as U+2028 break clients that split lines."""

import json
from typing import Any

from starlette.responses import Response

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode


def to_json(document: Any) -> bytes:
    """One JSON document, escaped to ASCII."""
    return _encode(document).encode("ascii")


class AsciiJsonResponse(Response):
    """A JSON response."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)
