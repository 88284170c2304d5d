"""Reading a server's streams, strictly."""

import json
from typing import Any

import httpx


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The documents of a stream; what is neither one of them nor a comment is a fault."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith(("data:{", ": ")) for block in blocks)
    return [json.loads(block.removeprefix("data:")) for block in blocks if block.startswith("data:")]
