"""Reading a server's streams."""

import json
from typing import Any

import httpx


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The documents of a stream; comments, which fill silences, are left out."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == "", "a stream ends with an empty line"
    return [json.loads(block.removeprefix("data:")) for block in blocks if not block.startswith(":")]
