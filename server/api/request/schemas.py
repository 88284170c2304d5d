"""The bodies of requests, read strictly: an unknown key, a wrong type or a value out of range is refused by name."""

from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from pydantic_core import ErrorDetails, PydanticCustomError

from server.api.request.parameters import GenerationParameters, TaskParameters
from server.errors import InvalidRequestError

_JSON_TYPES: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
_REMEDIES = {"temperature": ", or leave it out for the likeliest tokens"}


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def _texts(value: object) -> object:
    """One text or a list of texts; said by hand because a union's errors name all that it might have been."""
    items = value if isinstance(value, list) else [value]
    for i, item in enumerate(items):
        if not isinstance(item, str):
            where = f" at index {i}" if isinstance(value, list) else ""
            wanted = "a text" if isinstance(value, list) else "a text or a list of texts"
            raise PydanticCustomError("texts", f"{_JSON_TYPES[type(item)]}{where}: give {wanted}")
    if not items:
        raise PydanticCustomError("texts", "an empty list: give at least one text")
    return value


Texts = Annotated[
    str | list[str],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class GenerateRequest(_Body):
    """The body of `/generate` and `/generate_stream`."""

    inputs: Texts
    parameters: GenerationParameters | None = None
    model: str | None = None
    stream: bool | None = None

    @property
    def generation(self) -> GenerationParameters:
        """How to generate."""
        return self.parameters or GenerationParameters()

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def fields(self) -> list[str]:
        """What an error calls each of `texts`."""
        return ["inputs"] if isinstance(self.inputs, str) else [f"inputs[{i}]" for i in range(len(self.inputs))]


class CompareRequest(_Body):
    """The body of `/compare`."""

    inputs: str
    parameters: GenerationParameters | None = None
    models: Annotated[list[str], Field(min_length=1)] | None = None
    stream: bool | None = None

    @property
    def generation(self) -> GenerationParameters:
        """How to generate."""
        return self.parameters or GenerationParameters()


class TaskRequest(GenerateRequest):
    """The body of `POST /`."""

    parameters: TaskParameters | None = None

    @property
    def generation(self) -> GenerationParameters:
        """How to generate; summarization and translation clients put what they know of it one level down."""
        return self.task.generation()

    @property
    def task(self) -> TaskParameters:
        """What such clients say on top."""
        return self.parameters or TaskParameters()


B = TypeVar("B", bound=BaseModel)


def parse_body(schema: type[B], body: bytes) -> B:
    """Read a JSON body.

    Raises:
        InvalidRequestError: it is not JSON, or not what `schema` says; the message names the first fault.
    """
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequestError(_message(schema, error.errors(include_url=False)[0])) from error


def _message(schema: type[BaseModel], fault: ErrorDetails) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
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
    remedy = _REMEDIES.get(str(fault["loc"][-1]), "") if fault["loc"] else ""
    return f"{where or 'the body'} is {_shown(fault['input'])}: {fault['msg'].removeprefix('Input ')}{remedy}"


def _fields_at(schema: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The names of an object's fields, followed down from the body."""
    for part in path:
        inner = get_args(schema.model_fields[str(part)].annotation)  # of `Schema | None`
        schema = next(each for each in inner if isinstance(each, type) and issubclass(each, BaseModel))
    return list(schema.model_fields)


def _shown(value: object) -> str:
    """A faulty value: numbers as they are, else its type, for a text may be long or private."""
    if isinstance(value, int | float) and len(repr(value)) <= 30:
        return repr(value).lower() if isinstance(value, bool) else repr(value)
    return _JSON_TYPES.get(type(value), "of a wrong type")
