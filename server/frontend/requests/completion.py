"""The body of `POST /v1/completions`, as OpenAI's clients send it, and what it means here."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from server.engine.interface.parameters import DECLARATIONS, LARGEST_COUNT
from server.frontend.requests.parameters import NOTHING, RequestParameters, Stops, schema_of, unavailable
from server.frontend.requests.request import JSON_TYPES, TextRequest

MOST_LOGPROBS = 20

# Their names for our parameters. Whatever is not here has no counterpart, or is handled below.
_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "top_p": "top_p",
    "top_k": "top_k",
    "typical_p": "typical_p",
    "seed": "seed",
    "length_penalty": "length_penalty",
    "early_stopping": "early_stopping",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "no_repeat_ngram_size",
}


def _prompt(value: object) -> object:
    """Check by hand, because a union's errors list every alternative."""
    items = value if isinstance(value, list) else [value]
    ids = bool(items) and all(type(item) is int for item in items)
    lists = bool(items) and all(isinstance(item, list) and item and _are_ids(item) for item in items)
    if isinstance(value, list) and (ids or lists):
        return value
    for i, item in enumerate(items):
        if not isinstance(item, str):
            where = f" at index {i}" if isinstance(value, list) else ""
            found = "a list" if isinstance(item, list) else JSON_TYPES.get(type(item), "of a wrong type")
            raise PydanticCustomError(
                "texts", f"{found}{where}: give a text, a list of texts, a list of token ids, or a list of such lists"
            )
    if not items:
        raise PydanticCustomError("texts", "an empty list: give at least one text")
    return value


def _are_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)


def _stop(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _temperature(value: float | None) -> float | None:
    declared = DECLARATIONS["temperature"]
    if value and (problem := declared.problem(value)) is not None:
        raise PydanticCustomError("field", f" {problem}, or 0 for the likeliest tokens")
    return value


_IDS = {"type": "integer", "minimum": 0}
_Prompt = Annotated[
    str | list[str] | list[int] | list[list[int]],
    BeforeValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": _IDS, "minItems": 1},
                {"type": "array", "items": {"type": "array", "items": _IDS, "minItems": 1}, "minItems": 1},
            ]
        }
    ),
]
_Strings = Annotated[
    Stops | None,
    BeforeValidator(_stop),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "null"}]}),
]
_Unavailable = Annotated[Any, AfterValidator(unavailable), WithJsonSchema({"enum": list(NOTHING)})]


class StreamOptions(BaseModel):
    """What a stream also tells."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    include_usage: bool | None = None


_Declared: Any = create_model(
    "_Declared",
    __config__=ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False),
    **{name: schema_of(DECLARATIONS[ours]) for name, ours in _NAMES.items()},
)


class CompletionRequest(_Declared):
    """The body of `POST /v1/completions`. A prompt is a source text: the answer is never its continuation."""

    model: str | None = None
    prompt: _Prompt
    temperature: Annotated[float, Field(ge=0, le=LARGEST_COUNT), AfterValidator(_temperature)] | None = Field(
        default=None, description="above 0 draws tokens; 0, or leaving it out, takes the likeliest"
    )
    n: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = Field(default=None, description="answers to each prompt")
    best_of: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = Field(
        default=None, description="draw this many, or search with this many beams, and return the best n"
    )
    use_beam_search: bool | None = Field(default=None, description="search with best_of beams, or n")
    stop: _Strings = Field(default=None, description="the text ends before the first of these that occurs")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = Field(
        default=None, description="report this many of the likeliest tokens at each position, and the chosen one"
    )
    echo: _Unavailable = Field(default=None, description="not available: an answer never holds its source")
    suffix: _Unavailable = Field(default=None, description="not available")
    logit_bias: _Unavailable = Field(default=None, description="not available")
    presence_penalty: _Unavailable = Field(default=None, description="not available; repetition_penalty is")
    frequency_penalty: _Unavailable = Field(default=None, description="not available; repetition_penalty is")
    user: str | None = Field(default=None, description="changes nothing")

    @property
    def answers(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    def as_texts(self) -> "CompletionTexts":
        """The same in this server's own terms.

        Raises:
            ValueError: n and best_of do not fit together; the message says why.
        """
        given = {ours: getattr(self, name) for name, ours in _NAMES.items()}
        candidates = self.best_of or self.answers
        if candidates < self.answers:
            raise ValueError(f"best_of is {candidates}, less than n, which is {self.answers}: give at least as many")
        if self.use_beam_search:
            given |= {"num_beams": candidates, "num_return_sequences": self.answers}
        elif candidates > 1:
            given["num_return_sequences"] = candidates
        if self.temperature is not None:
            given |= {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        if self.logprobs:
            given["top_n_tokens"] = self.logprobs
        prompt: Any = self.prompt
        if isinstance(prompt, list) and not isinstance(prompt[0], str):
            token_ids = [prompt] if isinstance(prompt[0], int) else prompt
            inputs: str | list[str] = [""] * len(token_ids)
        else:
            token_ids, inputs = None, prompt
        parameters = RequestParameters(**given, stop=self.stop)
        return CompletionTexts(inputs=inputs, parameters=parameters, token_ids=token_ids)


class CompletionTexts(TextRequest):
    """The prompts as texts or token ids; errors name the fields that OpenAI's clients have sent."""

    token_ids: list[list[int]] | None = None  # instead of texts

    @property
    def source_ids(self) -> list[list[int]] | None:
        """The prompts' tokens, if they came as such."""
        return self.token_ids

    @property
    def fields(self) -> list[str]:
        """The name of each prompt in error messages."""
        return ["prompt"] if isinstance(self.inputs, str) else [f"prompt[{i}]" for i in range(len(self.inputs))]

    def where(self, engine_name: str) -> str:
        """The name of an engine parameter in the body."""
        named = {ours: name for name, ours in _NAMES.items()} | {"num_beams": "best_of", "num_return_sequences": "n"}
        return named.get(engine_name, engine_name)
