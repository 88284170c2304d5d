"""The wire: status, headers and documents of every route, its errors, and the page of metrics."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import pytest

from tests.golden import masks
from tests.golden.events import events_of
from tests.golden.exchanges import (
    ADMIN_KEY,
    COMPARING,
    CONFIG,
    GENERATING,
    KEY,
    NAMED,
    REFUSED,
    STREAMING,
    WATCHING,
    Exchange,
    content_of,
)
from tests.golden.expected_files import Golden
from tests.golden.metrics_page import names_of
from tests.golden.nash_process import NashServe, nash
from tests.golden.openapi_ranges import routes_of
from tests.golden.tiny_folders import build, build_pruned

TIMES = (
    masks.times("*timings.*_ms"),
    masks.times("*.at_ms"),
    masks.times("*.speedup"),
    *(masks.whole_milliseconds(f"*.headers.x-{name}") for name in ("total-time", "queue-time", "inference-time")),
    masks.whole_milliseconds("*.headers.x-time-per-token"),
    masks.request_ids("*.headers.x-request-id"),
)
MACHINE = (
    masks.machines("*.engine"),
    masks.machines("info.body.version"),
    masks.sentences("*.dtype_why"),
    masks.sentences("*.model_dtype_why"),
    masks.machine_numbers("*.memory_bytes"),
    masks.digests("*.digest"),
    masks.digests("*.model_sha"),
)
# What every HTTP server sends, or what depends on how it sends, is none of ours.
OTHERS_HEADERS = {"date", "content-length", "transfer-encoding", "connection", "etag"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server over a store with a dense and a pruned model, that wants keys and has small limits."""
    folder = tmp_path_factory.mktemp("wire")
    dense = build("t5", folder / "dense")
    pruned = build_pruned(dense, folder / "pruned")
    for alias, model in (("dense", dense), ("pruned", pruned)):
        nash("models", "publish", "t5", model, "--alias", alias, "--json", folder=folder).document()
    (folder / "server.toml").write_text(CONFIG)
    keys = {"infer": KEY, "admin": ADMIN_KEY}
    lines = [f"{scope} {hashlib.sha256(key.encode()).hexdigest()} somebody" for scope, key in keys.items()]
    (folder / "keys").write_text("\n".join(["# keys", "", *lines]))
    options = "dtype=float32,threads=1,slots=4,max_source_tokens=60,max_new_tokens=40"
    arguments = ["--model", f"t5@dense,{options}", "--model", f"t5@pruned,{options}"]
    arguments += ["--config", "server.toml", "--api-keys", "keys", "--store", "store"]
    with (
        NashServe(folder, *arguments) as server,
        httpx.Client(base_url=server.url, timeout=60, headers={"authorization": f"Bearer {KEY}"}) as http,
    ):
        yield http


def seen(client: httpx.Client, exchange: Exchange) -> dict[str, Any]:
    """What a client sees of the answer."""
    request = client.build_request(exchange.method, exchange.path, content=content_of(exchange))
    for name, value in exchange.headers.items():
        if value is None:
            del request.headers[name]
        else:
            request.headers[name] = value
    response = client.send(request)
    headers = {name: value for name, value in sorted(response.headers.items()) if name not in OTHERS_HEADERS}
    shown: dict[str, Any] = {"status": response.status_code, "headers": headers}
    media_type = response.headers.get("content-type", "").split(";")[0]
    if media_type == "text/event-stream":
        shown["events"] = events_of(response)
    elif media_type == "application/json" and response.content:
        assert response.content.isascii()
        shown["body"] = response.json()
    return shown


def all_seen(client: httpx.Client, exchanges: Mapping[str, Exchange]) -> dict[str, Any]:
    return {name: seen(client, exchange) for name, exchange in exchanges.items()}


def test_what_watchers_read(client: httpx.Client, golden: Golden) -> None:
    golden.check("wire/watching", all_seen(client, WATCHING), *TIMES, *MACHINE)


def test_answers(client: httpx.Client, golden: Golden) -> None:
    golden.check("wire/generating", all_seen(client, GENERATING), *TIMES)


def test_streams(client: httpx.Client, golden: Golden) -> None:
    golden.check("wire/streaming", all_seen(client, STREAMING), *TIMES)


def test_comparisons(client: httpx.Client, golden: Golden) -> None:
    golden.check("wire/comparing", all_seen(client, COMPARING), *TIMES)


def test_errors(client: httpx.Client, golden: Golden) -> None:
    """Their kind, and what they name; the rest of what they say may be said better."""
    found = all_seen(client, REFUSED)
    golden.check("wire/refused", found, *TIMES, masks.sentences("*.body.error"))
    assert not [name for name, what in NAMED.items() if what not in found[name]["body"]["error"]]


def test_the_description_of_the_routes(client: httpx.Client, golden: Golden) -> None:
    """Paths, methods, and what a body may hold in which ranges."""
    golden.check("wire/routes", routes_of(client.get("/openapi.json").json()))


def test_metrics(client: httpx.Client, golden: Golden) -> None:
    """After answers of every kind, the names with their types and labels, and what labels with few values say."""
    for exchange in (GENERATING["one text"], STREAMING["stream"], COMPARING["all"], REFUSED["no JSON"]):
        seen(client, exchange)
    response = client.get("/metrics")
    golden.check("wire/metrics", {"type": response.headers["content-type"], "metrics": names_of(response.text)})


def test_a_page_that_is_known_is_not_sent_again(client: httpx.Client) -> None:
    first = client.get("/")
    again = client.get("/", headers={"if-none-match": first.headers["etag"]})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
