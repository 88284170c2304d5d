"""The bodies of requests, read strictly: an unknown key, a wrong type or a value out of range is refused by name."""

from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

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
Count = Annotated[int, Field(ge=1, lt=2**31)]


class GenerationParameters(_Body):
    """`parameters` of a request. Decoding is greedy; what asks for anything else is refused.

    Those below `seed` are known to clients of other servers and accepted where they change nothing.
    """

    max_new_tokens: Count | None = None  # None: the model's own generation_config
    truncate: Annotated[int, Field(ge=2, lt=2**31)] | None = None  # source tokens to keep, the end token included
    details: bool | None = None
    return_full_text: bool | None = None  # means nothing here: an encoder-decoder's answer never holds its source
    do_sample: bool | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None  # greedy decoding needs none; details give it back
    temperature: Annotated[float, Field(gt=0)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    num_beams: Count | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None
    num_return_sequences: Count | None = None
    best_of: Count | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    stop: list[str] | None = None
    forced_bos_token: str | None = None
    decoder_input_text: str | None = None
    decoder_input_details: bool | None = None
    top_n_tokens: Annotated[int, Field(ge=0)] | None = None

    # What asks for sampling unless do_sample is false, and the one value of each other that changes nothing.
    _SAMPLING: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p", "typical_p")
    _NEUTRAL: ClassVar[dict[str, object]] = {
        "do_sample": False,
        "num_beams": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "num_return_sequences": 1,
        "best_of": 1,
        "min_new_tokens": 0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "stop": [],
        "forced_bos_token": "",
        "decoder_input_text": "",
        "decoder_input_details": False,
        "top_n_tokens": 0,
    }

    @model_validator(mode="after")
    def _greedy_only(self) -> "GenerationParameters":
        for name, neutral in self._NEUTRAL.items():
            value = getattr(self, name)
            if value is not None and value != neutral:
                raise PydanticCustomError("greedy_only", f"{name} {_NOT_YET}: leave it out")
        for name in self._SAMPLING:
            if getattr(self, name) is not None and self.do_sample is None:
                raise PydanticCustomError(
                    "greedy_only", f'{name} means sampling, which {_NOT_YET}: leave it out, or set "do_sample": false'
                )
        return self


_NOT_YET = "is not available, decoding is greedy only"


class GenerateRequest(_Body):
    """The body of `/generate` and `/generate_stream`."""

    inputs: Texts
    parameters: GenerationParameters = GenerationParameters()
    model: str | None = None
    stream: bool = False

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
    parameters: GenerationParameters = GenerationParameters()
    models: Annotated[list[str], Field(min_length=1)] | None = None
    stream: bool = False


class TaskParameters(GenerationParameters):
    """`parameters` of `POST /`: those of summarization and translation clients on top."""

    clean_up_tokenization_spaces: bool | None = None  # means nothing here: the tokenizer's own decoder decides
    truncation: str | None = None
    generate_parameters: GenerationParameters | None = None


class TaskRequest(GenerateRequest):
    """The body of `POST /`."""

    parameters: TaskParameters = TaskParameters()


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
        case "greedy_only":
            return f"{where}.{fault['msg']}"
    return f"{where or 'the body'} is {_shown(fault['input'])}: {fault['msg'].removeprefix('Input ')}"


def _fields_at(schema: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The names of an object's fields, followed down from the body."""
    for part in path:
        default: Any = schema.model_fields[str(part)].default
        schema = type(default) if isinstance(default, BaseModel) else GenerationParameters
    return list(schema.model_fields)


def _shown(value: object) -> str:
    """A faulty value: numbers as they are, else its type, for a text may be long or private."""
    if isinstance(value, int | float) and len(repr(value)) <= 30:
        return repr(value).lower() if isinstance(value, bool) else repr(value)
    return _JSON_TYPES.get(type(value), "of a wrong type")
