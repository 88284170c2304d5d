"""`parameters` of a request: how it wants its texts to be made. Null is the same as not given.

What is checked here needs no model; what depends on one is checked when its variant is known, and before the request
waits for anything.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

_LARGEST_COUNT = 2**31 - 1
MOST_STOPS = 16
_LONGEST_STOP = 256
_MOST_TOP_TOKENS = 20
_LEAST_TEMPERATURE = 1e-30  # scores divided by less are beyond float32

_Count = Annotated[int, Field(ge=0, le=_LARGEST_COUNT)]
_Number = Annotated[int, Field(ge=1, le=_LARGEST_COUNT)]
_Share = Annotated[float, Field(gt=0, le=1)]


def _early_stopping(value: object) -> object:
    """Said by hand because a union's errors name each of its members."""
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


def _nothing(value: object) -> object:
    if value:
        raise PydanticCustomError("field", " is not available here: leave it out")
    return value


def _divisor(value: float) -> float:
    if value < _LEAST_TEMPERATURE:
        raise PydanticCustomError(
            "field", f" is {value:g}, which is as good as 0: leave it out for the likeliest tokens"
        )
    return value


_Temperature = Annotated[float, Field(gt=0), AfterValidator(_divisor)]
_EarlyStopping = Annotated[
    bool | Literal["never"] | None,
    BeforeValidator(_early_stopping),
    WithJsonSchema({"enum": [True, False, "never", None]}),
]
_Unavailable = Annotated[Any, AfterValidator(_nothing), WithJsonSchema({"enum": [None, False, 0, ""]})]
_Stops = Annotated[list[str], Field(max_length=MOST_STOPS), AfterValidator(_stops)]


class GenerationParameters(BaseModel):
    """How one generation is decoded; what is not given is as the model's own generation_config says.

    The last ones are known to clients of other servers. They are accepted where they change nothing.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    max_new_tokens: _Number | None = Field(default=None, description="at most as many as the model is loaded for")
    min_new_tokens: _Count | None = Field(default=None, description="no end token before so many others")
    truncate: Annotated[int, Field(ge=2, le=_LARGEST_COUNT)] | None = Field(
        default=None, description="how many source tokens to keep, those that the tokenizer puts around a text included"
    )
    stop: _Stops | None = Field(default=None, description="the text ends before the first of these that comes")

    do_sample: bool | None = Field(
        default=None,
        description="true where temperature, top_k, top_p or typical_p is given; false makes those mean nothing",
    )
    temperature: _Temperature | None = None
    top_k: _Count | None = Field(default=None, description="0: all")
    top_p: _Share | None = None
    typical_p: _Share | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = Field(
        default=None, description="the same gives the same texts; else one is drawn, and details tell which"
    )

    num_beams: _Number | None = Field(default=None, description="at most as many as the model has slots")
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = Field(
        default=None, description="a beam's score is divided by its length to this power: above 0 favours long ones"
    )
    early_stopping: _EarlyStopping = Field(default=None, description="when beams are given up, as transformers has it")
    num_return_sequences: _Number | None = Field(default=None, description="so many beams or samples, best first")
    best_of: _Number | None = Field(default=None, description="another name for num_return_sequences")

    repetition_penalty: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    no_repeat_ngram_size: _Count | None = Field(default=None, description="0: n-grams may repeat")
    forced_bos_token_id: _Count | None = Field(default=None, description="the first token")
    forced_bos_token: str | None = Field(
        default=None, description="the same as the vocabulary writes it, or the code of a language"
    )
    decoder_input_text: str | None = Field(
        default=None, description="the answer goes on from this text, and does not hold it"
    )

    details: bool | None = Field(
        default=None, description="also tell tokens, log-probabilities, the seed and how it ended"
    )
    top_n_tokens: Annotated[int, Field(ge=0, le=_MOST_TOP_TOKENS)] | None = Field(
        default=None, description="so many of the likeliest tokens at each place, in details and in streams"
    )

    return_full_text: bool | None = Field(default=None, description="means nothing: an answer never holds its source")
    decoder_input_details: bool | None = Field(default=None, description="means nothing: prefill is empty")
    watermark: _Unavailable = None
    frequency_penalty: _Unavailable = Field(default=None, description="not available, repetition_penalty is")
    grammar: _Unavailable = None
    adapter_id: _Unavailable = None

    _SAMPLING: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p", "typical_p")
    _OF_THE_ENGINE: ClassVar[tuple[str, ...]] = (
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        *_SAMPLING,
        "seed",
        "num_beams",
        "length_penalty",
        "early_stopping",
        "num_return_sequences",
        "repetition_penalty",
        "no_repeat_ngram_size",
        "forced_bos_token_id",
        "top_n_tokens",
    )

    @model_validator(mode="after")
    def _one_name_for_one_thing(self) -> "GenerationParameters":
        if None not in (self.forced_bos_token, self.forced_bos_token_id):
            raise PydanticCustomError(
                "fields", "forced_bos_token and forced_bos_token_id say the same: give one of them"
            )
        asked = {self.best_of, self.num_return_sequences} - {None}
        if len(asked) > 1:
            raise PydanticCustomError("fields", "best_of and num_return_sequences say the same: give one of them")
        return self

    def given(self) -> dict[str, Any]:
        """What is asked of the engine, by the names of its parameters; without what is left to the model."""
        given = {name: value for name in self._OF_THE_ENGINE if (value := getattr(self, name)) is not None}
        if self.best_of is not None:
            given["num_return_sequences"] = self.best_of
        if self.do_sample is None and any(name in given for name in self._SAMPLING):
            given["do_sample"] = True
        return given


class TaskParameters(GenerationParameters):
    """`parameters` of `POST /`: those of summarization and translation clients on top."""

    generate_parameters: GenerationParameters | None = Field(
        default=None, description="what those clients know of the above; it has precedence"
    )
    truncation: Literal["do_not_truncate", "longest_first", "only_first", "only_second"] | None = Field(
        default=None, description="longest_first and only_first use the beginning of a text that is too long"
    )
    clean_up_tokenization_spaces: bool | None = Field(
        default=None, description="means nothing: the tokenizer's decoder decides"
    )
    src_lang: str | None = Field(default=None, description="where the model has languages: that of the source")
    tgt_lang: str | None = Field(default=None, description="where the model has languages: that of the answer")

    @model_validator(mode="after")
    def _one_target(self) -> "TaskParameters":
        try:
            merged = self.generation()
        except ValidationError as error:
            raise PydanticCustomError("fields", error.errors()[0]["msg"]) from error
        if self.tgt_lang is not None and (merged.forced_bos_token, merged.forced_bos_token_id) != (None, None):
            raise PydanticCustomError("fields", "tgt_lang and a forced_bos_token say the same: give one of them")
        return self

    @property
    def truncates(self) -> bool:
        """Whether a text that is too long is cut to what the model takes."""
        return self.truncation in ("longest_first", "only_first")

    def generation(self) -> GenerationParameters:
        """Both levels in one."""
        upper = {name: getattr(self, name) for name in GenerationParameters.model_fields}
        lower = vars(self.generate_parameters) if self.generate_parameters is not None else {}
        return GenerationParameters(**(upper | {name: value for name, value in lower.items() if value is not None}))
