"""Requests to a running server, and its metrics."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from nash.errors import NashError, RequestError

_SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


class ServerError(NashError):
    """The server could not be reached, or could not do what it was asked to."""


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """Where it is, and the key to send."""

    url: str
    key: str | None
    timeout_s: float = 600.0

    @classmethod
    def at(cls, url: str, key: str | None) -> "RemoteServer":
        """Check an address.

        Raises:
            RequestError: it is no http or https address.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RequestError(f"--server {url!r} is not an address: write one such as http://127.0.0.1:8000")
        return cls(url=url.rstrip("/"), key=key or None)

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The document of a successful answer.

        Raises:
            RequestError: the server refuses the request, in its own words.
            ServerError: it cannot be reached, or cannot do it.
        """
        text = self._read(method, path, None if body is None else json.dumps(body).encode("ascii"))
        try:
            return json.loads(text)
        except ValueError:
            raise ServerError(f"{self.url}{path} does not answer in JSON: is this a server of nash?") from None

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """Every sample of /metrics by its name and labels.

        Raises:
            RequestError, ServerError: as above.
        """
        samples = {}
        for line in self._read("GET", "/metrics", None).splitlines():
            match = _SAMPLE.fullmatch(line)
            if match is not None and not line.startswith("#"):
                labels = frozenset(_LABEL.findall(match["labels"] or ""))
                samples[match["name"], labels] = float(match["value"])
        return samples

    def _read(self, method: str, path: str, data: bytes | None) -> str:
        headers = {"content-type": "application/json"} if data is not None else {}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}{path}", data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as answer:
                return str(answer.read().decode("utf-8"))
        except urllib.error.HTTPError as error:
            raise _refusal(self.url, error) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ServerError(f"{self.url} cannot be reached ({reason}): check --server") from None


def in_path(ref: str) -> str:
    """A REF or a name as part of a path."""
    return quote(ref, safe="@:")


def _refusal(url: str, error: urllib.error.HTTPError) -> NashError:
    try:
        text = str(json.loads(error.read())["error"])
    except (ValueError, KeyError, TypeError, OSError):
        text = f"{error.code} {error.reason}"
    kind = ServerError if error.code >= 500 else RequestError
    return kind(f"{url}: {text}")
