"""Parse and route request bodies. A request refused here is counted under the label `_unknown`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar, get_args

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from server.api.http.key_limits import KeyUse
from server.engine.interface.parameters import DECLARATIONS
from server.errors import ApiError, InvalidInputError
from server.frontend.requests.completion import CompletionRequest, CompletionTexts
from server.frontend.requests.request import JSON_TYPES, CompareRequest, GenerateRequest, TokenizeRequest
from server.frontend.service import Service
from server.frontend.traffic.routing import family_of_first, route
from server.frontend.variant import Variant

KEY_USE = "nash.key_use"  # where a request's scope has the `KeyUse` of its key, if it has one
G = TypeVar("G", bound=GenerateRequest)
B = TypeVar("B", bound=BaseModel)

_LONGEST_KEY = 64  # characters of a key that is told as it is


async def read_generation(
    request: Request, service: Service, schema: type[G], ref: str | None = None
) -> tuple[G, Variant, float]:
    """The body of a generating route, the variant it goes to, and when the whole body had arrived (time.monotonic()).

    `ref` is the model that the path names; the body may then name none, or the same.

    Raises:
        ApiError: the body is too large or invalid, or names a model that is not loaded.
    """
    with counting_refusals(service):
        content = await request.body()
        arrived_s = time.monotonic()
        body = parse_body(schema, content)
        _check_count("inputs", len(body.texts), service)
        _charge(request, len(body.texts))
        if ref is not None and body.model not in (None, ref):
            raise InvalidInputError(f"model is not {ref!r}, which the path names: leave it out")
        return body, _chosen(request, service, body.model if ref is None else ref), arrived_s


async def read_completion(
    request: Request, service: Service
) -> tuple[CompletionRequest, CompletionTexts, Variant, float]:
    """The body of `/v1/completions`, the same in our own terms, and the rest as above.

    Raises:
        ApiError: as above.
    """
    with counting_refusals(service):
        content = await request.body()
        arrived_s = time.monotonic()
        body = parse_body(CompletionRequest, content)
        try:
            texts = body.as_texts()
        except ValidationError as error:
            raise InvalidInputError(error.errors()[0]["msg"]) from error
        except ValueError as error:
            raise InvalidInputError(str(error)) from error
        _check_count("prompt", len(texts.texts), service)
        _charge(request, len(texts.texts))
        return body, texts, _chosen(request, service, body.model), arrived_s


async def read_texts(request: Request, service: Service) -> tuple[TokenizeRequest, Variant]:
    """The body of `/tokenize` and the variant whose tokenizer it means.

    Raises:
        ApiError: as above.
    """
    with counting_refusals(service):
        body = parse_body(TokenizeRequest, await request.body())
        _check_count("inputs", len(body.texts), service)
        return body, route(body.model, service.variants)


def may_reuse(request: Request) -> bool:
    """Whether the caller takes the answer of an earlier request, as HTTP says it of caches."""
    asked = request.headers.get("cache-control", "").lower()
    return "no-cache" not in asked and "no-store" not in asked


def _chosen(request: Request, service: Service, ref: str | None) -> Variant:
    return service.traffic.choose(ref, request.headers.get("x-session-id"))


def _charge(request: Request, texts: int) -> None:
    """Count the further texts of a list against the limits of the caller's key."""
    use: KeyUse | None = request.scope.get(KEY_USE)
    if use is not None:
        use.charge(texts - 1)


def _check_count(field: str, count: int, service: Service) -> None:
    most = service.settings.max_batch_items
    if count > most:
        raise InvalidInputError(f"{field} has {count} texts, but a request takes at most {most}: send several requests")


async def read_comparison(request: Request, service: Service) -> tuple[CompareRequest, list[Variant]]:
    """The body of `/compare` and the variants to run, without duplicates, in the requested order.

    Raises:
        ApiError: as above.
    """
    with counting_refusals(service):
        body = parse_body(CompareRequest, await request.body())
        if body.generation.split not in (None, "none"):
            raise InvalidInputError("parameters.split is not available in comparisons: leave it out")
        if body.models is None:
            return body, family_of_first(service.variants)
        return body, list(dict.fromkeys(route(ref, service.variants) for ref in body.models))


@contextmanager
def counting_refusals(service: Service) -> Iterator[None]:
    """Count a request that is refused before its variant is known."""
    try:
        yield
    except ApiError as error:
        service.metrics.refused(error.outcome)
        raise


def parse_body(schema: type[B], body: bytes) -> B:
    """Parse a JSON body.

    Raises:
        InvalidInputError: it is not JSON or does not match `schema`; the message names the first fault.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise InvalidInputError(_message(schema, error.errors(include_url=False)[0])) from error


def _message(schema: type[BaseModel], fault: ErrorDetails) -> str:
    where = "".join(map(_step, fault["loc"])).removeprefix(".")
    match fault["type"]:
        case "json_invalid":
            return f"the body is not JSON ({fault['msg'].removeprefix('Invalid JSON: ')}): send an object"
        case "extra_forbidden":
            known = ", ".join(_fields_at(schema, fault["loc"][:-1]))
            return f"{where} is not known: leave it out, or use one of {known}"
        case "missing":
            return f"{where} is missing: give it"
        case "texts":
            return f"{where} is {fault['msg']}"
        case "field":
            return f"{where}{fault['msg']}"
        case "fields":
            return f"{where}.{fault['msg']}"
        case "too_long":
            return f"{where} has {fault['ctx']['actual_length']} items: give at most {fault['ctx']['max_length']}"
    declared = DECLARATIONS.get(str(fault["loc"][-1])) if fault["loc"] else None
    remedy = "" if declared is None else declared.remedy
    return f"{where or 'the body'} is {_shown(fault['input'])}: {fault['msg'].removeprefix('Input ')}{remedy}"


def _step(part: int | str) -> str:
    """One step on the way to a value. A caller's own key may be anything: an empty or a long one is quoted and cut."""
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if 0 < len(part) <= _LONGEST_KEY else f".{part[:_LONGEST_KEY]!r}"


def _fields_at(schema: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The field names of the object at `path` in the body."""
    for part in path:
        inner = get_args(schema.model_fields[str(part)].annotation)  # of `Schema | None`
        schema = next(each for each in inner if isinstance(each, type) and issubclass(each, BaseModel))
    return [field.alias or name for name, field in schema.model_fields.items()]


def _shown(value: object) -> str:
    """A faulty value for a message: numbers as they are, otherwise the type, since a text may be long or private."""
    if isinstance(value, int | float) and len(repr(value)) <= 30:
        return repr(value).lower() if isinstance(value, bool) else repr(value)
    return JSON_TYPES.get(type(value), "of a wrong type")
