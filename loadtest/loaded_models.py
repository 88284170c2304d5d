"""Find out which variants the server has loaded, and choose those to put under load."""

import json
import math
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from loadtest.errors import LoadtestError, UsageError

API_KEY_VARIABLE = "NASH_API_KEY"
_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class Target:
    """One variant under load."""

    ref: str
    name: str  # its name in figures and plots
    weight: float = 1.0  # its share of the requests, relative to the others' weights

    def __str__(self) -> str:
        return f"{self.ref},weight={self.weight!r}"


class ServerClient:
    """Asks a server about itself and its models; generates nothing."""

    def __init__(self, host: str, key: str | None) -> None:
        """`host` is a URL such as `http://127.0.0.1:8000`.

        Raises:
            UsageError: it is not.
        """
        self.host = checked_host(host)
        self._headers = authorization(key)
        # No proxy: Locust's client uses none either.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def models(self) -> list[dict[str, Any]]:
        """`GET /models`, once the server has said that it is ready.

        Raises:
            LoadtestError: it cannot be reached, is not ready, refuses the key, or is not a nash server.
        """
        ready = self._get("/health/ready")
        if not isinstance(ready, dict) or ready.get("ready") is not True:
            raise LoadtestError(f"{self.host} is not ready ({_states(ready)}): wait until its models are loaded")
        models = self._get("/models")
        named = isinstance(models, list) and all(
            isinstance(model, dict) and all(_is_name(model.get(key)) for key in ("ref", "model", "variant"))
            for model in models
        )
        if not named or not models:
            raise LoadtestError(f"{self.host}/models does not list models: give the address of a nash server")
        return list(models)

    def info(self) -> Any:
        """`GET /info`.

        Raises:
            LoadtestError: it cannot be read.
        """
        return self._get("/info")

    def _get(self, path: str) -> Any:
        status, body = self._fetch(path)
        if status in (401, 403):
            raise LoadtestError(f"{self.host}{path} wants a valid API key: set {API_KEY_VARIABLE} to one")
        if status not in (200, 503):
            raise LoadtestError(f"{self.host}{path} answered {status}: give the address of a nash server")
        try:
            document = json.loads(body)
            json.dumps(document, allow_nan=False)  # it goes into summary.json, which must be strict JSON
        except (ValueError, RecursionError) as error:
            raise LoadtestError(f"{self.host}{path} is not JSON: give the address of a nash server") from error
        return document

    def _fetch(self, path: str) -> tuple[int, bytes]:
        """`GET path`: the status and the body."""
        try:
            request = urllib.request.Request(self.host + path, headers=self._headers)
            try:
                with self._opener.open(request, timeout=_TIMEOUT_S) as response:
                    return response.status, response.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()
        except HTTPException as error:
            raise LoadtestError(
                f"what answers at {self.host} does not speak HTTP ({type(error).__name__}): "
                "give the address of a nash server"
            ) from error
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise LoadtestError(
                f"no server answers at {self.host} ({reason}): start one with `nash serve`, or give its --host"
            ) from error


def checked_host(host: str) -> str:
    """The URL without trailing slashes.

    Raises:
        UsageError: it is not an http(s) URL, has a query, or has characters not allowed in a request line.
    """
    try:
        parts = urlsplit(host)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
        usable = usable and parts.port != 0 and "@" not in parts.netloc
        # Host names may have non-ASCII letters, for which there is an encoding.
        usable = usable and parts.path.isascii() and host.isprintable() and not set(host) & set(' "<>\\^`{|}')
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"host {host!r} is not an address: write one such as http://127.0.0.1:8000")
    return host.rstrip("/")


def api_key() -> str | None:
    """The key from the environment, without surrounding white space left by a file or a shell; None without a key.

    Raises:
        UsageError: it has characters not allowed in a header.
    """
    key = os.environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(f"{API_KEY_VARIABLE} has characters that an HTTP header cannot hold: set it to the key alone")
    return key or None


def authorization(key: str | None) -> dict[str, str]:
    """The headers that carry an API key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


def choose_targets(asked: Sequence[str], models: Sequence[dict[str, Any]]) -> list[Target]:
    """The variants under load: those given as `REF[,weight=N]`, otherwise all of the first model's family.

    Raises:
        UsageError: a REF is not loaded or given twice, a weight is invalid, or the sum of weights is infinite.
    """
    loaded = {model["ref"]: model for model in models}
    if asked:
        weights = dict(_with_weight(text, loaded, asked) for text in asked)
    else:
        weights = {ref: 1.0 for ref, model in loaded.items() if model["model"] == models[0]["model"]}
    if not math.isfinite(sum(weights.values())):
        raise UsageError("the weights are too large to add up: give smaller ones, only their proportion counts")
    variants = [loaded[ref]["variant"] for ref in weights]
    return [
        # Variants of two families may have the same name.
        Target(ref=ref, name=name if variants.count(name) == 1 else ref, weight=weight)
        for (ref, weight), name in zip(weights.items(), variants, strict=True)
    ]


def baseline_of(targets: Sequence[Target], models: Sequence[dict[str, Any]]) -> Target:
    """The variant that the others are compared with: `dense` if there is one, otherwise the first."""
    dense = {model["ref"] for model in models if model["variant"] == "dense"}
    return next((target for target in targets if target.ref in dense), targets[0])


def _with_weight(text: str, loaded: dict[str, dict[str, Any]], asked: Sequence[str]) -> tuple[str, float]:
    ref, separator, option = text.partition(",")
    if ref not in loaded:
        raise UsageError(f"model {ref!r} is not loaded: use one of {', '.join(loaded)}")
    if sum(other.partition(",")[0] == ref for other in asked) > 1:
        raise UsageError(f"model {ref!r} is given twice: give it once, with a weight")
    if not separator:
        return ref, 1.0
    key, _, value = option.partition("=")
    try:
        weight = float(value) if key == "weight" else math.nan
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise UsageError(f"model {text!r}: {option!r} is not weight=N with a number above 0: write {ref},weight=2")
    return ref, weight


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and value != ""


def _states(ready: Any) -> str:
    try:
        return ", ".join(f"{model['ref']}: {model['state']}" for model in ready["models"])
    except (KeyError, TypeError):
        return "it does not say why"
