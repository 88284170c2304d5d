"""`parameters` of a request: how its texts are generated. Null means not given.

The engine's own parameters are not listed here: their schema is derived from the declarations of
`GenerationParameters`. This module defines the parameters that concern text. The checks here need no model; those that
do run once the variant is known, before the request waits for anything.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from server.engine.interface.parameters import DECLARATIONS, LARGEST_COUNT, Declaration

MOST_STOPS = 16
NOTHING = (None, False, 0, "")  # what clients send who do not want a parameter
_LONGEST_STOP = 256


def _early_stopping(value: object) -> object:
    """Check by hand, because a union's errors list every member."""
    if value is None or isinstance(value, bool) or value == "never":
        return value
    raise PydanticCustomError("field", ' is neither true, false nor "never": give one of them')


def _stops(value: list[str]) -> list[str]:
    for i, stop in enumerate(value):
        if not 1 <= len(stop) <= _LONGEST_STOP:
            raise PydanticCustomError(
                "field", f"[{i}] has {len(stop)} characters: give from 1 to {_LONGEST_STOP}, or leave it out"
            )
    return value


def unavailable(value: object) -> object:
    """Refuse whatever would change something: the parameter is known, and not available."""
    if value not in NOTHING:
        raise PydanticCustomError("field", " is not available here: leave it out")
    return value


_EarlyStopping = Annotated[
    bool | Literal["never"] | None,
    BeforeValidator(_early_stopping),
    WithJsonSchema({"enum": [True, False, "never", None]}),
]
_Unavailable = Annotated[Any, AfterValidator(unavailable), WithJsonSchema({"enum": list(NOTHING)})]
Stops = Annotated[list[str], Field(max_length=MOST_STOPS), AfterValidator(_stops)]
_SourceTokens = Annotated[int, Field(ge=2, le=LARGEST_COUNT)]


def schema_of(declared: Declaration) -> Any:
    """A declared parameter as an optional field of a request."""
    if declared.kind == "early stopping":
        return _EarlyStopping, Field(default=None, description=declared.about)
    if declared.kind == "flag":
        kind: Any = bool
    else:
        lowest = {"gt": declared.above} if declared.above is not None else {"ge": declared.least}
        number = float if declared.kind == "number" else int
        kind = Annotated[
            number,
            Field(**lowest, le=declared.most, lt=declared.below),
            AfterValidator(_possible(declared)),
        ]
    return kind | None, Field(default=None, description=declared.about or None)


def _possible(declared: Declaration) -> Any:
    """A validator that refuses values within the declared bounds that still cannot be computed with."""

    def check(value: float) -> float:
        if (problem := declared.problem(value)) is not None:
            raise PydanticCustomError("field", f" {problem}")
        return value

    return check


_EngineParameters: Any = create_model(
    "_EngineParameters",
    __config__=ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False),
    **{name: schema_of(declared) for name, declared in DECLARATIONS.items() if declared.in_requests},
)


class RequestParameters(_EngineParameters):
    """How one generation is decoded. Parameters not given default to the model's own generation_config.

    The last ones exist for clients of other servers. They are accepted only with values that change nothing.
    """

    truncate: _SourceTokens | None = Field(
        default=None, description="keep this many source tokens, including those that the tokenizer adds around a text"
    )
    stop: Stops | None = Field(default=None, description="the text ends before the first of these that occurs")
    best_of: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = Field(
        default=None, description="another name for num_return_sequences"
    )
    forced_bos_token: str | None = Field(
        default=None, description="the first token as the vocabulary writes it, or the code of a language"
    )
    decoder_input_text: str | None = Field(
        default=None, description="the answer continues this text and does not repeat it"
    )
    priority: Literal["interactive", "batch"] | None = Field(
        default=None, description="batch makes way for others; interactive is the default"
    )
    timeout_ms: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] | None = Field(
        default=None, description="give up after so long, from the request's arrival"
    )
    split: Literal["none", "sentences", "windows"] | None = Field(
        default=None, description="divide a text, answer each piece alone, and join the answers; pieces tells them"
    )
    details: bool | None = Field(
        default=None, description="also return tokens, log-probabilities, the seed and the finish reason"
    )

    return_full_text: bool | None = Field(default=None, description="changes nothing: an answer never holds its source")
    decoder_input_details: bool | None = Field(default=None, description="changes nothing: prefill is empty")
    watermark: _Unavailable = Field(default=None, description="not available")
    frequency_penalty: _Unavailable = Field(default=None, description="not available; repetition_penalty is")
    grammar: _Unavailable = Field(default=None, description="not available")
    adapter_id: _Unavailable = Field(default=None, description="not available")

    @model_validator(mode="after")
    def _one_name_for_one_thing(self) -> "RequestParameters":
        if None not in (self.forced_bos_token, self.forced_bos_token_id):
            raise PydanticCustomError(
                "fields", "forced_bos_token and forced_bos_token_id mean the same: give one of them"
            )
        asked = {self.best_of, self.num_return_sequences} - {None}
        if len(asked) > 1:
            raise PydanticCustomError("fields", "best_of and num_return_sequences mean the same: give one of them")
        return self

    def given(self) -> dict[str, Any]:
        """The requested engine parameters by the engine's names, without those left to the model."""
        given = {
            name: value
            for name, declared in DECLARATIONS.items()
            if declared.in_requests and (value := getattr(self, name)) is not None
        }
        if self.best_of is not None:
            given["num_return_sequences"] = self.best_of
        if self.do_sample is None and any(DECLARATIONS[name].samples for name in given):
            given["do_sample"] = True
        return given

    def name_of(self, engine_name: str) -> str:
        """The name of an engine parameter in this request."""
        names = {"prefix_ids": "decoder_input_text"}
        if self.best_of is not None:
            names["num_return_sequences"] = "best_of"
        return names.get(engine_name, engine_name)


class TaskParameters(RequestParameters):
    """`parameters` of `POST /`: the parameters above, plus those of summarization and translation clients."""

    generate_parameters: RequestParameters | None = Field(
        default=None, description="the parameters above, as those clients send them; these win"
    )
    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] | None = Field(
        default=None, description="longest_first and only_first use the beginning of a text that is too long"
    )
    clean_up_tokenization_spaces: bool | None = Field(
        default=None, description="changes nothing: the tokenizer's decoder decides"
    )
    src_lang: str | None = Field(default=None, description="language of the source, for a model with languages")
    tgt_lang: str | None = Field(default=None, description="language of the answer, for a model with languages")

    @model_validator(mode="after")
    def _one_target(self) -> "TaskParameters":
        try:
            merged = self.merged()
        except ValidationError as error:
            raise PydanticCustomError("fields", error.errors()[0]["msg"]) from error
        if self.tgt_lang is not None and (merged.forced_bos_token, merged.forced_bos_token_id) != (None, None):
            raise PydanticCustomError("fields", "tgt_lang and a forced_bos_token mean the same: give one of them")
        return self

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is truncated to what the model accepts."""
        return self.truncation in ("longest_first", "only_first")

    def merged(self) -> RequestParameters:
        """Both levels merged; the nested one has precedence."""
        upper = {name: getattr(self, name) for name in RequestParameters.model_fields}
        lower = vars(self.generate_parameters) if self.generate_parameters is not None else {}
        return RequestParameters(**(upper | {name: value for name, value in lower.items() if value is not None}))
