"""What `/openapi.json` promises, whatever its schemas are called and however they are put together."""

from collections.abc import Iterator, Mapping
from typing import Any

_FOR_PEOPLE = ("title", "description", "default")


def routes_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """By path and method the fields of the body, each with all that it may be."""
    routes: dict[str, Any] = {}
    for path, methods in sorted(document["paths"].items()):
        for method, route in sorted(methods.items()):
            content = route.get("requestBody", {}).get("content", {})
            bodies = {kind: fields_of(each["schema"], document) for kind, each in sorted(content.items())}
            routes[f"{method.upper()} {path}"] = bodies
    return routes


def fields_of(schema: Mapping[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an object; one that must be there has a star."""
    schema = _followed(schema, document)
    required = schema.get("required", [])
    return {
        name + ("*" if name in required else ""): list(_choices(each, document))
        for name, each in sorted(schema["properties"].items())
    }


def _choices(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[Any]:
    schema = _followed(schema, document)
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            for each in schema[key]:
                yield from _choices(each, document)
            return
    if "properties" in schema:
        yield fields_of(schema, document)
        return
    shown = {key: value for key, value in sorted(schema.items()) if key not in _FOR_PEOPLE}
    if "items" in shown:
        shown["items"] = list(_choices(shown["items"], document))
    yield shown


def _followed(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    return schema
