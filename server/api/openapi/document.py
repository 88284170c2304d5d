"""`/openapi.json`: FastAPI's account of the paths, with bodies, answers, refusals, keys and examples from our table."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from server.api.http.errors import OPENAI_PREFIX, TRANSLATE_PATHS, error_document, status_of
from server.api.http.keys import Scope
from server.api.openapi import answers
from server.api.openapi.operations import OPERATIONS, Operation
from server.errors import (
    ApiError,
    BodyTooLargeError,
    ConflictError,
    ForbiddenError,
    GenerationError,
    InvalidInputError,
    NoRoomError,
    NotServedError,
    OverloadedError,
    TimedOutError,
    UnauthorizedError,
    UnavailableError,
)

_TEMPLATE = "#/components/schemas/{model}"
_ABOUT = """Encoder-decoder models, dense and pruned, side by side.

Where the server has keys, send one as `Authorization: Bearer KEY`. Every answer has an `x-request-id`, the caller's
own where it sent one. An error names the field or the value and the remedy; 429, 503 and 507 may carry a
`Retry-After` in seconds. A request whose head is malformed, too long or too slow gets a 400, 431 or 408 on any route,
one with another method a 405."""
_REFUSALS: dict[int, ApiError] = {
    401: UnauthorizedError("a key is needed: send it as 'Authorization: Bearer KEY'"),
    403: ForbiddenError("the key is for inference only: use one with the scope admin"),
    404: NotServedError("model 'titles@other' is not loaded: use one of titles@dense, titles@pruned"),
    409: ConflictError("titles@pruned is loaded already: unload it first, or swap it"),
    413: BodyTooLargeError("the body has more than 1048576 bytes: send less at once"),
    422: InvalidInputError("inputs is missing: give it"),
    424: GenerationError("the worker of titles@pruned was killed by signal 9: send the request again"),
    429: OverloadedError("the queue is full: 256 of at most 256 are waiting, 1 more came; try again in 3 s"),
    503: UnavailableError("titles@pruned is loading: try again in a moment, GET /health/ready says when it is ready"),
    504: TimedOutError("the request took more than 120 s: ask for fewer tokens, or send less at once"),
    507: NoRoomError("titles@pruned takes about 900 MB, and 300 MB are free: unload a model first"),
}
_MEANING = {
    401: "No key, or one that is not known.",
    403: "A key with too narrow a scope; without keys, another site's Host or Origin.",
    404: "No such model is loaded.",
    409: "It does not fit what is loaded.",
    413: "The body is too long.",
    422: "The request is malformed or asks for something impossible.",
    424: "The engine failed on this request.",
    429: "Too much at once.",
    503: "Not ready right now.",
    504: "It took longer than the server allows.",
    507: "Its memory is not there.",
}
_MAY_RETRY = (429, 503, 507)
_RETRY_AFTER = {"description": "Seconds after which a retry makes sense.", "schema": {"type": "integer", "minimum": 1}}
_REQUEST_ID = {"description": "The request's name in logs.", "schema": {"type": "string"}}
_PARAMETERS = {
    "ref": ("A variant as `GET /models` calls it.", "titles@pruned"),
    "model": ("A model, without alias or version.", "titles"),
    "wait": ("Whether to answer only once the model is ready.", False),
}


def openapi_document(app: FastAPI, *, has_keys: bool) -> dict[str, Any]:
    """The whole document. `has_keys`: whether routes need a key."""
    document = get_openapi(title=app.title, version=app.version, routes=app.routes, description=_ABOUT)
    schemas = _Schemas()
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            operation = OPERATIONS[f"{method.upper()} {path}"]
            _describe(route, path, operation, schemas, has_keys=has_keys)
    document["components"] = {
        "schemas": dict(sorted(schemas.named.items())),
        "securitySchemes": {
            "key": {"type": "http", "scheme": "bearer", "description": "A key of the file that --api-keys names."}
        },
    }
    return document


class _Schemas:
    """The named schemas of a document, collected as they are used."""

    def __init__(self) -> None:
        self.named: dict[str, Any] = {}

    def of_body(self, operation: Operation) -> dict[str, Any]:
        assert operation.body is not None, "only routes with a body are asked"
        names, definitions = models_json_schema([(operation.body, "validation")], ref_template=_TEMPLATE)
        self.named |= definitions["$defs"]
        return dict(names[(operation.body, "validation")])

    def of_answer(self, kind: Any) -> dict[str, Any]:
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        made, definitions = TypeAdapter.json_schemas([(kind, "serialization", adapter)], ref_template=_TEMPLATE)
        self.named |= definitions.get("$defs", {})
        return dict(made[kind, "serialization"])


def _describe(route: dict[str, Any], path: str, operation: Operation, schemas: _Schemas, *, has_keys: bool) -> None:
    """Complete what FastAPI says of one method of one path."""
    route["tags"] = [operation.group]
    route.pop("requestBody", None)
    for parameter in route.get("parameters", ()):
        parameter["description"], parameter["example"] = _PARAMETERS[parameter["name"]]
    if operation.body is not None:
        shown = {name: {"summary": name, "value": value} for name, value in operation.bodies.items()}
        content = {"application/json": {"schema": schemas.of_body(operation), "examples": shown}}
        if operation.form:
            content["application/x-www-form-urlencoded"] = {"schema": content["application/json"]["schema"]}
        route["requestBody"] = {"required": operation.body_needed, "content": content}
    if has_keys and operation.scope is not None:
        route["security"] = [{"key": []}]
    if operation.scope is Scope.ADMIN:
        route["description"] = f"{route.get('description', '')} The key must have the scope admin.".strip()
    route["responses"] = {
        str(status): _answer(status, operation, schemas) for status in sorted({*operation.answers} or {200})
    }
    for_the_key = (401, 403) if has_keys and operation.scope is not None else ()
    for_the_site = () if has_keys else (403,)
    for status in sorted({*operation.refuses, *for_the_key, *for_the_site}):
        route["responses"].setdefault(*_refusal(status, path, schemas))


def _answer(status: int, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if status in operation.answers:
        kind, example = operation.answers[status]
        content["application/json"] = {"schema": schemas.of_answer(kind), "example": example}
    if operation.text is not None:
        media_type, shown = operation.text
        content[media_type] = {"schema": {"type": "string"}, "example": shown}
    if operation.events is not None:
        kind, shown = operation.events
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schemas.of_answer(kind)}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"itemSchema": event, "example": shown}
    words = {200: "Done.", 201: "It is ready.", 202: "Begun.", 503: "Not ready."}
    return {"description": words[status], "headers": {"x-request-id": _REQUEST_ID}, "content": content}


def _refusal(status: int, path: str, schemas: _Schemas) -> tuple[str, dict[str, Any]]:
    """A status as the callers of a path see it, and what it says."""
    error = _REFUSALS[status]
    kind: Any = answers.ErrorDocument
    if path in TRANSLATE_PATHS:
        kind = answers.TranslateErrorDocument
    elif path.startswith(OPENAI_PREFIX):
        kind = answers.OpenAIErrorDocument
    headers = {"x-request-id": _REQUEST_ID} | ({"retry-after": _RETRY_AFTER} if status in _MAY_RETRY else {})
    content = {"application/json": {"schema": schemas.of_answer(kind), "example": error_document(error, path)}}
    return str(status_of(error, path)), {"description": _MEANING[status], "headers": headers, "content": content}
