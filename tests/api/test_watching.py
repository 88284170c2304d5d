import json
import re
import time

import httpx
import pytest

from server.engine.capabilities import engine_name
from server.engine.interface.config import EngineConfig
from tests.running_server import RunningServer


def samples(client: httpx.Client) -> dict[str, float]:
    """Every series by its name and labels."""
    lines = client.get("/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    return after[name] - before[name]


def test_every_metric_is_there_for_both_variants_from_the_start(client: httpx.Client) -> None:
    names = samples(client)
    for variant in ("dense", "pruned"):
        labels = f'model="tiny",variant="{variant}"'
        for name in (
            "nash_time_to_first_token_seconds_count",
            "nash_time_per_output_token_seconds_count",
            "nash_queue_seconds_count",
            "nash_encode_seconds_count",
            "nash_decode_step_seconds_count",
            "nash_source_tokens_count",
            "nash_generated_tokens_count",
            "nash_requests_running",
            "nash_requests_waiting",
            "nash_batch_size_count",
            "nash_worker_restarts_total",
        ):
            assert f"{name}{{{labels}}}" in names, name
        assert names[f"nash_slots{{{labels}}}"] == 4
        assert names[f"nash_model_load_seconds{{{labels}}}"] > 0
        for outcome in ("ok", "client_error", "rejected", "timeout", "cancelled", "error"):
            assert f'nash_requests_total{{model="tiny",outcome="{outcome}",variant="{variant}"}}' in names
        for mode in ("unary", "stream", "compare"):
            series = f'nash_request_duration_seconds_count{{mode="{mode}",model="tiny",variant="{variant}"}}'
            assert series in names
        for kind in ("weights", "cache"):
            assert names[f'nash_model_memory_bytes{{kind="{kind}",{labels}}}'] > 1000
        for kind in ("self", "cross"):
            assert f'nash_cache_used_ratio{{kind="{kind}",{labels}}}' in names
        for direction in ("source", "padding", "generated"):
            assert f'nash_tokens_total{{direction="{direction}",{labels}}}' in names
        info = next(name for name in names if name.startswith("nash_model_info") and f'variant="{variant}"' in name)
        assert re.search(r'digest="[0-9a-f]{64}"', info)
        assert f'decoder_layers="{3 if variant == "dense" else 1}"' in info
        assert f'engine="{engine_name(EngineConfig())}"' in info
        assert 'dtype="float32"' in info
        assert f'baseline="{"true" if variant == "dense" else "false"}"' in info
    assert not [name for name in names if "_created" in name]


def test_a_list_counts_as_its_items_and_each_mode_as_itself(client: httpx.Client) -> None:
    before = samples(client)
    body = {"inputs": ["hello"] * 16, "parameters": {"max_new_tokens": 3}}
    assert client.post("/generate", json=body).status_code == 200
    single = {**body, "inputs": "hello"}
    client.post("/generate_stream", json=single)
    client.post("/compare", json=single)
    client.post("/generate", json={**body, "inputs": ["a"] * 15 + [""]})
    client.post("/generate", json={**body, "model": "other"})
    after = samples(client)

    def outcomes(variant: str, outcome: str) -> float:
        model = "_unknown" if variant == "_unknown" else "tiny"
        name = f'nash_requests_total{{model="{model}",outcome="{outcome}",variant="{variant}"}}'
        return grown(before, after, name)

    def mode(variant: str, name: str) -> float:
        series = f'nash_request_duration_seconds_count{{mode="{name}",model="tiny",variant="{variant}"}}'
        return grown(before, after, series)

    assert (outcomes("dense", "ok"), outcomes("pruned", "ok")) == (18, 1)
    assert (outcomes("dense", "client_error"), outcomes("_unknown", "client_error")) == (16, 1)
    assert [mode("dense", name) for name in ("unary", "stream", "compare")] == [16, 1, 1]
    assert [mode("pruned", name) for name in ("unary", "stream", "compare")] == [0, 0, 1]
    assert grown(before, after, 'nash_source_tokens_sum{model="tiny",variant="dense"}') == 18 * 6


def test_the_engine_tells_of_its_steps(client: httpx.Client) -> None:
    labels = 'model="tiny",variant="pruned"'
    before = samples(client)
    body = {"inputs": "hello", "model": "tiny@pruned", "parameters": {"max_new_tokens": 7, "details": True}}
    made = client.post("/generate", json=body).json()["details"]["generated_tokens"]
    for _ in range(100):
        after = samples(client)
        if grown(before, after, f'nash_tokens_total{{direction="generated",{labels}}}') == made:
            break
        time.sleep(0.05)
    assert grown(before, after, f'nash_tokens_total{{direction="generated",{labels}}}') == made
    assert grown(before, after, f'nash_tokens_total{{direction="source",{labels}}}') == 6
    assert grown(before, after, f"nash_decode_step_seconds_count{{{labels}}}") == made
    assert grown(before, after, f"nash_encode_seconds_count{{{labels}}}") == 1
    assert after[f"nash_requests_running{{{labels}}}"] == 0


def test_models_describe_what_is_loaded(client: httpx.Client) -> None:
    dense, pruned = client.get("/models").json()
    assert (dense["ref"], dense["model"], dense["variant"]) == ("tiny@dense", "tiny", "dense")
    assert (pruned["ref"], pruned["state"], pruned["dtype"]) == ("tiny@pruned", "ready", "float32")
    assert dense["engine"] == pruned["engine"] == engine_name(EngineConfig())
    assert "no quality is recorded" in pruned["dtype_why"] or "nothing faster" in pruned["dtype_why"]
    assert len(dense["digest"]) == 64
    assert dense["memory_bytes"] > 1000
    assert [len(each["spec"]["decoder"]) for each in (dense, pruned)] == [3, 1]


def test_info_has_the_fields_of_text_generation_inference(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info["model_id"] == "tiny@dense"
    assert (info["max_input_tokens"], info["max_total_tokens"]) == (64, 264)
    assert (info["max_client_batch_size"], info["max_concurrent_requests"]) == (16, 32)
    assert info["models"] == ["tiny@dense", "tiny@pruned"]
    assert (info["model_dtype"], info["engine"]) == ("float32", engine_name(EngineConfig()))


def test_the_log_says_which_dtype_runs_and_why(server: RunningServer) -> None:
    said = [line for line in server.log if line.startswith("INFO server.frontend.resolution: tiny@")]
    assert [line.split(" on ")[0] for line in said] == [
        f"INFO server.frontend.resolution: tiny@{variant} runs in float32" for variant in ("dense", "pruned")
    ]


def test_health(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    response = client.get("/health/ready")
    assert response.status_code == 200
    assert response.json() == {
        "ready": True,
        "models": [{"ref": "tiny@dense", "state": "ready"}, {"ref": "tiny@pruned", "state": "ready"}],
    }


@pytest.mark.parametrize("path", ["/health", "/health/ready", "/models", "/metrics", "/"])
def test_what_can_be_read_answers_head_too(client: httpx.Client, path: str) -> None:
    head, whole = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-type"]) == (200, whole.headers["content-type"])
    assert head.content == b""
    assert client.head("/generate").status_code == 405


def test_the_address_is_announced(server: RunningServer) -> None:
    assert re.fullmatch(r"serving tiny@dense, tiny@pruned at http://127\.0\.0\.1:\d+/", server.announcement.strip())


def test_the_schema_of_every_body_is_published(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path in ("/generate", "/generate_stream", "/compare", "/"):
        schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["$ref"].removeprefix("#/components/schemas/") in document["components"]["schemas"]
    references = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert references <= set(document["components"]["schemas"])


def test_the_page_is_served_with_a_strict_policy(client: httpx.Client) -> None:
    index = client.get("/")
    assert index.headers["content-type"] == "text/html; charset=utf-8"
    policy = index.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self';")
    assert "unsafe" not in policy
    linked = re.findall(r'(?:src|href)="(page/[^"]+)"', index.text)
    assert linked
    types = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
    for path in linked:
        asset = client.get(f"/{path}")
        assert asset.status_code == 200, path
        assert asset.headers["content-type"] == types[path.rsplit(".", 1)[1]]
        assert asset.headers["x-content-type-options"] == "nosniff"
        again = client.get(f"/{path}", headers={"if-none-match": asset.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


def test_nothing_beside_the_page_is_served(client: httpx.Client) -> None:
    for path in ("/page/nothing.js", "/page/..%2fapp.py", "/page/../app.py", "/page/"):
        assert client.get(path).status_code == 404
