"""The description of the routes: whole, true to its own schemas, and readable without anything from elsewhere."""

import json
import re
from typing import Any

import httpx
import jsonschema_rs
import pytest

from server.api.openapi.operations import OPERATIONS


@pytest.fixture
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def routes(document: dict[str, Any]) -> dict[str, Any]:
    paths = document["paths"].items()
    return {f"{method.upper()} {path}": route for path, methods in paths for method, route in methods.items()}


def problems(example: Any, schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    whole = {**schema, "components": document["components"]}
    return [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(example)]


def test_every_route_is_described_and_nothing_else(document: dict[str, Any]) -> None:
    assert set(routes(document)) == set(OPERATIONS)
    for label, route in routes(document).items():
        assert route["description"], label
        assert any(status.startswith("2") for status in route["responses"]), label


def test_examples_are_what_their_schemas_say(document: dict[str, Any]) -> None:
    checked = 0
    for label, route in routes(document).items():
        for body in route.get("requestBody", {}).get("content", {}).values():
            for example in body.get("examples", {}).values():
                assert not problems(example["value"], body["schema"], document), label
                checked += 1
        for status, answer in route["responses"].items():
            for kind, content in answer["content"].items():
                if kind == "text/event-stream":
                    schema = content["itemSchema"]["properties"]["data"]["contentSchema"]
                    for line in filter(None, content["example"].split("\n")):
                        data = line.removeprefix("data:").strip()
                        event = data if data == "[DONE]" else json.loads(data)
                        assert not problems(event, schema, document), (label, data)
                else:
                    assert not problems(content["example"], content["schema"], document), (label, status)
                checked += 1
    assert checked > 150


def test_examples_are_taken(client: httpx.Client, document: dict[str, Any]) -> None:
    """What a reader copies works; only the models are this server's own."""
    for label in ("POST /generate", "POST /generate_stream", "POST /", "POST /compare", "POST /v1/completions"):
        route = routes(document)[label]
        for name, example in route["requestBody"]["content"]["application/json"]["examples"].items():
            body = {key: value for key, value in example["value"].items() if key not in ("model", "models")}
            for key in ("inputs", "prompt"):
                if isinstance(body.get(key), str):
                    body[key] = body[key][:20]
                elif key in body:
                    body[key] = [each[:20] if isinstance(each, str) else 5 for each in body[key]]
            answer = client.post(label.split(" ")[1], json=body)
            assert answer.status_code == 200, (label, name, answer.text)


def test_the_page_shows_all_of_it_and_loads_nothing_from_elsewhere(
    client: httpx.Client, document: dict[str, Any]
) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["content-security-policy"].startswith("default-src 'none';")
    assert "<script" not in page.text
    assert "style=" not in page.text
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page.text))
    assert links == {"page/icon.svg", "page/docs.css", "openapi.json", "./"}
    assert all(client.get(f"/{link}").status_code == 200 for link in links)
    ids = re.findall(r'id="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page.text)) <= set(ids)
    assert all(f"<code>{path}</code>" in page.text for path in document["paths"])
    assert all(f'<h3 id="{name}">' in page.text for name in document["components"]["schemas"])
