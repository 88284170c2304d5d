"""Request bodies, validated strictly: the error for an unknown key or a wrong type names it."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.frontend.requests.parameters import RequestParameters, TaskParameters

JSON_TYPES: dict[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def _texts(value: object) -> object:
    """Check one text or a list of texts. Done by hand because a union's errors list every alternative."""
    items = value if isinstance(value, list) else [value]
    for i, item in enumerate(items):
        if not isinstance(item, str):
            where = f" at index {i}" if isinstance(value, list) else ""
            wanted = "a text" if isinstance(value, list) else "a text or a list of texts"
            raise PydanticCustomError("texts", f"{JSON_TYPES[type(item)]}{where}: give {wanted}")
    if not items:
        raise PydanticCustomError("texts", "an empty list: give at least one text")
    return value


Texts = Annotated[
    str | list[str],
    BeforeValidator(_texts),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]


class TextRequest(BaseModel):
    """The fields that all bodies share: texts, and how to generate for them."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    inputs: Texts
    parameters: RequestParameters | None = None
    stream: bool | None = None

    @property
    def generation(self) -> RequestParameters:
        """The generation parameters."""
        return self.parameters or RequestParameters()

    @property
    def task(self) -> TaskParameters | None:
        """What summarization and translation clients add."""
        return None

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def source_ids(self) -> list[list[int]] | None:
        """The tokens of the sources, from callers who send those instead of texts."""
        return None

    @property
    def source_language(self) -> int | None:
        """The token of the sources' language, where the body does not name it by `src_lang`."""
        return None

    def where(self, engine_name: str) -> str:
        """The name of an engine parameter in error messages."""
        return f"parameters.{self.generation.name_of(engine_name)}"

    @property
    def fields(self) -> list[str]:
        """The name of each of `texts` in error messages."""
        return ["inputs"] if isinstance(self.inputs, str) else [f"inputs[{i}]" for i in range(len(self.inputs))]

    def alone(self, index: int) -> "TextRequest":
        """A request for one of the texts, not streamed."""
        return self.model_copy(update={"inputs": self.texts[index], "stream": None})


class PieceRequest(TextRequest):
    """Pieces of the texts of another request, each named after the field that its text stands in."""

    original: TextRequest
    named: list[str]

    @property
    def task(self) -> TaskParameters | None:
        """What the original's client adds, such as languages."""
        return self.original.task

    def where(self, engine_name: str) -> str:
        """The name of an engine parameter in error messages."""
        return self.original.where(engine_name)

    @property
    def fields(self) -> list[str]:
        """The name of each piece in error messages."""
        return self.named

    def alone(self, index: int) -> "PieceRequest":
        """A request for one of the pieces."""
        return self.model_copy(update={"inputs": self.texts[index], "named": [self.named[index]]})


class GenerateRequest(TextRequest):
    """The body of `/generate` and `/generate_stream`."""

    model: str | None = None


class TokenizeRequest(BaseModel):
    """The body of `/tokenize`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    inputs: Texts
    model: str | None = None

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def fields(self) -> list[str]:
        """The name of each of `texts` in error messages."""
        return ["inputs"] if isinstance(self.inputs, str) else [f"inputs[{i}]" for i in range(len(self.inputs))]


class ShadowRequest(BaseModel):
    """What of one variant's answers is run on another one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    source: str = Field(alias="from", description="the variant that answers")
    target: str = Field(alias="to", description="the variant that is tried")
    fraction: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class TrafficRequest(BaseModel):
    """The body of `PUT /models/{model}/traffic`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    weights: dict[str, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] = Field(
        default_factory=dict, description="shares of the requests that name only the model, by variant"
    )
    shadow: ShadowRequest | None = None


class LoadRequest(BaseModel):
    """The body of `POST /models`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=1000, description="REF[,key=value...], as --model takes it")]


class ReloadRequest(BaseModel):
    """The body of `POST /models/{ref}/reload`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    keys: Annotated[str, Field(min_length=1, max_length=1000, description="key=value,... in place of those it has")]


class CompareRequest(TextRequest):
    """The body of `/compare`."""

    inputs: str
    models: Annotated[list[str], Field(min_length=1)] | None = None


class TaskRequest(GenerateRequest):
    """The body of `POST /`."""

    parameters: TaskParameters | None = None

    @property
    def generation(self) -> RequestParameters:
        """The generation parameters; summarization and translation clients nest theirs one level down."""
        return self.task.merged()

    @property
    def task(self) -> TaskParameters:
        """What such clients add."""
        return self.parameters or TaskParameters()
