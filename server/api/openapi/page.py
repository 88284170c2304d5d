"""`/docs`: the same description for people, as one page without scripts."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from server.api.openapi.operations import OPERATIONS

_PAGE = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <meta name="color-scheme" content="light dark">
  <title>nash: the API</title>
  <link rel="icon" type="image/svg+xml" href="page/icon.svg">
  <link rel="stylesheet" href="page/docs.css">
</head>
<body>
<header>
<h1>nash <small>{version}</small></h1>
{about}
<p><a href="openapi.json">openapi.json</a> is the same for programs.
<a href="./">The comparison page</a> shows the variants.</p>
<nav aria-label="Groups of routes">{groups}</nav>
</header>
<main>
{routes}
<section aria-labelledby="schemas"><h2 id="schemas">Schemas</h2>
{schemas}
</section>
</main>
</body>
</html>
"""
_BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
}
_ENDLESS = 2**31 - 1  # a bound that only keeps numbers within their type


def docs_page(document: Mapping[str, Any]) -> str:
    """The page for an OpenAPI document; everything in it is escaped."""
    groups = list(dict.fromkeys(operation.group for operation in OPERATIONS.values()))
    about = "".join(f"<p>{_words(part)}</p>" for part in document["info"]["description"].split("\n\n"))
    return _PAGE.format(
        version=escape(document["info"]["version"]),
        about=about,
        groups=" ".join(f'<a href="#{_anchor(group)}">{escape(group)}</a>' for group in [*groups, "Schemas"]),
        routes="\n".join(_group(group, document) for group in groups),
        schemas="\n".join(_schema(name, schema) for name, schema in document["components"]["schemas"].items()),
    )


def _group(group: str, document: Mapping[str, Any]) -> str:
    routes = [_route(label, document["paths"]) for label, operation in OPERATIONS.items() if operation.group == group]
    name = _anchor(group)
    return (
        f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(group)}</h2>\n' + "\n".join(routes) + "</section>"
    )


def _route(name: str, paths: Mapping[str, Any]) -> str:
    method, path = name.split(" ")
    route = paths[path][method.lower()]
    about = route.get("description", "")
    parts = [f"<p>{_words(about)}</p>", *_parameters(route.get("parameters", ()))]
    if (body := route.get("requestBody")) is not None:
        kinds = " or ".join(f"<code>{kind}</code>" for kind in body["content"])
        schema = body["content"]["application/json"]
        parts.append(
            f"<h3>Body</h3><p>{kinds}: {_kind(schema['schema'])}{'' if body['required'] else ', optional'}</p>"
        )
        for shown, example in schema["examples"].items():
            parts.append(f"<h4>{escape(shown)}</h4>{_code(_curl(method, path, example['value'], route))}")
    parts.append("<h3>Answers</h3>")
    parts += [_answer(status, answer) for status, answer in route["responses"].items()]
    label = f'<span class="method">{method}</span> <code>{escape(path)}</code> <span>{_words(_first(about))}</span>'
    return f'<details id="{_anchor(method + path)}"><summary>{label}</summary>{"".join(parts)}</details>'


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if parameters:
        rows = [
            (f"<code>{escape(p['name'])}</code>", p["in"], _kind(p["schema"]), p["description"]) for p in parameters
        ]
        yield "<h3>Parameters</h3>" + _table(("name", "in", "values", "what it is"), rows)


def _answer(status: str, answer: Mapping[str, Any]) -> str:
    shown = []
    for kind, content in answer["content"].items():
        schema = (
            content["schema"] if "schema" in content else content["itemSchema"]["properties"]["data"]["contentSchema"]
        )
        of = "events of " if "itemSchema" in content else ""
        example = content["example"]
        text = example if isinstance(example, str) else json.dumps(example, indent=2, ensure_ascii=False)
        shown.append(f"<p><code>{kind}</code>: {of}{_kind(schema)}</p>{_code(text)}")
    summary = f"<code>{status}</code> {_words(answer['description'])}"
    return f"<details><summary>{summary}</summary>{''.join(shown)}</details>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    about = f"<p>{_words(schema.get('description', ''))}</p>"
    if "properties" not in schema:
        return f'<h3 id="{name}">{name}</h3>{about}<p>{_kind(schema)}</p>'
    required = schema.get("required", ())
    rows = [
        (f"<code>{escape(field)}</code>{'' if field in required else ' (optional)'}", _kind(each), _words(_about(each)))
        for field, each in schema["properties"].items()
    ]
    return f'<h3 id="{name}">{name}</h3>{about}{_table(("field", "values", "what it is"), rows)}'


def _about(schema: Mapping[str, Any]) -> str:
    return str(schema.get("description", ""))


def _kind(schema: Mapping[str, Any]) -> str:
    """What values a schema has, in words."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ", ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    bounds = [words.format(schema[key]) for key, words in _BOUNDS.items() if key in schema and schema[key] != _ENDLESS]
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        kind = f"object of {_kind(schema['additionalProperties'])}"
    return " ".join([kind, *bounds])


def _curl(method: str, path: str, body: Any, route: Mapping[str, Any]) -> str:
    for parameter in route.get("parameters", ()):
        path = path.replace(f"{{{parameter['name']}}}", str(parameter["example"]))
    key = " -H 'Authorization: Bearer KEY'" if "security" in route else ""
    data = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    verb = "" if method == "POST" else f" -X {method}"
    return f"curl -s{verb} http://localhost:8000{path}{key} \\\n    -H 'Content-Type: application/json' -d '{data}'"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def _words(text: str) -> str:
    """Plain words, in which code stands between backticks."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text, quote=False))


def _first(text: str) -> str:
    """The first sentence, or what stands before its colon."""
    return re.split(r"[.:;] ", text, maxsplit=1)[0].removesuffix(".")


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
