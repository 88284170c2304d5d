"""The documents that routes answer with, as types, from which `/openapi.json` has their schemas.

The routes build the same documents by hand, which is faster; the tests hold the two together.
"""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from server.engine.interface.results import FinishReason
from server.frontend.workers.supervisor import ModelState

Milliseconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
ErrorType = Literal[
    "validation",
    "overloaded",
    "generation",
    "timeout",
    "not_found",
    "unauthorized",
    "forbidden",
    "unavailable",
    "conflict",
    "too_large",
    "no_room",
]


class ErrorDocument(TypedDict):
    """What is wrong, with the value and the remedy."""

    error: str
    error_type: ErrorType


class OpenAIErrorFields(TypedDict):
    """What is wrong, in OpenAI's terms."""

    message: str
    type: str
    param: str | None
    code: ErrorType


class OpenAIErrorDocument(TypedDict):
    """An error in OpenAI's shape."""

    error: OpenAIErrorFields


class TranslateErrorDocument(TypedDict):
    """An error in LibreTranslate's shape."""

    error: str


class TimingsDocument(TypedDict):
    """Durations in milliseconds."""

    queue_ms: Milliseconds
    encode_ms: Milliseconds
    decode_ms: Milliseconds
    total_ms: Milliseconds
    time_to_first_token_ms: Milliseconds
    time_per_output_token_ms: Milliseconds | None


class TokenDocument(TypedDict):
    """One token of an answer; the text of a special one is empty."""

    id: Count
    text: str
    logprob: float | None
    special: bool


class ScoredTextDocument(TypedDict):
    """One of several answers."""

    generated_text: str
    score: float | None


class EndDocument(TypedDict):
    """How an answer ended."""

    finish_reason: FinishReason
    generated_tokens: Count
    seed: int | None
    input_length: Count
    score: NotRequired[float]


class DetailsDocument(EndDocument):
    """The same with the tokens."""

    prefill: list[Any]
    tokens: list[TokenDocument]
    top_tokens: NotRequired[list[list[TokenDocument]]]


class SequenceDetailsDocument(DetailsDocument):
    """The details of a further answer."""

    generated_text: str


class BestDetailsDocument(DetailsDocument):
    """The details of the best answer, and of the others where there are some."""

    best_of_sequences: NotRequired[list[SequenceDetailsDocument]]


class PieceDocument(TypedDict):
    """A part of a text that was split, in characters, and its answer."""

    start: Count
    stop: Count
    generated_text: str


class NamesDocument(TypedDict):
    """Which variant answered."""

    model: str
    variant: str
    ref: str


class AnswerDocument(NamesDocument):
    """The answer to one text."""

    generated_text: str
    timings: TimingsDocument
    sequences: NotRequired[list[ScoredTextDocument]]
    details: NotRequired[BestDetailsDocument]
    pieces: NotRequired[list[PieceDocument]]
    truncated_tokens: NotRequired[Count]
    cached: NotRequired[bool]


class TaskAnswerDocument(AnswerDocument):
    """The same under the names that Hugging Face's tasks read."""

    summary_text: str
    translation_text: str


class AgreementDocument(TypedDict):
    """How far an answer agrees with the baseline's."""

    exact: bool
    rouge_l: Annotated[float, Field(ge=0, le=1)]
    token_edit_distance: Count


class ComparedDocument(NamesDocument):
    """One variant's answer, beside the baseline's."""

    generated_text: str
    timings: TimingsDocument
    finish_reason: FinishReason
    generated_tokens: Count
    seed: int | None
    speedup: Annotated[float, Field(gt=0)]
    agreement: AgreementDocument
    sequences: NotRequired[list[ScoredTextDocument]]
    details: NotRequired[DetailsDocument]


class ComparisonDocument(TypedDict):
    """One text on several variants, in the order in which they ran."""

    baseline: str
    results: list[ComparedDocument]


class ComparedTokenDocument(NamesDocument):
    """A token of one variant; `index` counts from 1."""

    index: Annotated[int, Field(ge=1)]
    at_ms: Milliseconds
    token: TokenDocument
    top_tokens: NotRequired[list[TokenDocument]]


class ComparedEndDocument(NamesDocument):
    """One variant is done."""

    generated_text: str
    timings: TimingsDocument
    finish_reason: FinishReason
    generated_tokens: Count
    seed: int | None
    sequences: NotRequired[list[ScoredTextDocument]]
    details: NotRequired[DetailsDocument]


class ComparedErrorDocument(ErrorDocument):
    """The end of a comparison in which a variant failed."""

    model: NotRequired[str]
    variant: NotRequired[str]
    ref: NotRequired[str]


ComparedEventDocument = ComparedTokenDocument | ComparedEndDocument | ComparisonDocument | ComparedErrorDocument


class ToldTokenDocument(TypedDict):
    """A token; `index` counts from 1."""

    index: Annotated[int, Field(ge=1)]
    token: TokenDocument
    top_tokens: NotRequired[list[TokenDocument]]
    generated_text: None
    details: None


class LastTokenDocument(NamesDocument):
    """The last token, with the whole answer."""

    index: Annotated[int, Field(ge=1)]
    token: TokenDocument
    top_tokens: NotRequired[list[TokenDocument]]
    generated_text: str
    details: EndDocument
    timings: TimingsDocument
    sequences: NotRequired[list[ScoredTextDocument]]
    truncated_tokens: NotRequired[Count]
    cached: NotRequired[bool]


TokenEventDocument = ToldTokenDocument | LastTokenDocument | ErrorDocument


class TokenizedDocument(TypedDict):
    """A token of a source, and where it stands in the text, in characters; null for one that stands nowhere."""

    id: Count
    text: str
    start: int | None
    stop: int | None


class LogprobsDocument(TypedDict):
    """The log-probabilities of a choice, in OpenAI's shape."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None]]
    text_offset: list[Count]


class ChoiceDocument(TypedDict):
    """One answer to one prompt."""

    text: str
    index: Count
    logprobs: LogprobsDocument | None
    finish_reason: Literal["stop", "length"] | None


class UsageDocument(TypedDict):
    """What was read and written, in tokens."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count


class CompletionPartDocument(TypedDict):
    """OpenAI's text_completion, or a part of it in a stream, of which the last may tell the usage."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    system_fingerprint: str | None
    choices: list[ChoiceDocument]
    usage: NotRequired[UsageDocument | None]


class CompletionDocument(CompletionPartDocument):
    """OpenAI's text_completion."""

    usage: UsageDocument  # type: ignore[misc] # narrower than in a part


CompletionEventDocument = CompletionPartDocument | OpenAIErrorDocument | Literal["[DONE]"]


class OpenAIModelDocument(TypedDict):
    """A variant as OpenAI's clients list it."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str


class OpenAIModelsDocument(TypedDict):
    """All variants."""

    object: Literal["list"]
    data: list[OpenAIModelDocument]


class TranslationDocument(TypedDict):
    """A translation, or a list for a list."""

    translatedText: str | list[str]
    alternatives: NotRequired[list[str] | list[list[str]]]


class LanguageDocument(TypedDict):
    """A source language, and what can be translated to from it."""

    code: str
    name: str
    targets: list[str]


class SpecDocument(TypedDict):
    """A model's shape. There is more: what its config.json says."""

    width: Count
    encoder_layers: Count
    decoder_layers: Count
    encoder_sparsity: float
    parameters: int | None
    kind: Literal["dense", "pruned"]


class ModelDocument(TypedDict):
    """A variant. `memory_bytes` is null while no worker has it loaded."""

    ref: str
    model: str
    variant: str
    digest: str | None
    state: ModelState
    dtype: str
    dtype_why: str
    engine: str
    memory_bytes: int | None
    spec: SpecDocument


class SwapDocument(TypedDict):
    """The digests of what was served, and of what is served now; null for a folder outside the store."""

    ref: str
    old: str | None
    new: str | None


_ShadowNames = TypedDict("_ShadowNames", {"from": str, "to": str})  # a keyword is no name of a field


class ShadowDocument(_ShadowNames):
    """Which share of one variant's answers is run again on another one."""

    fraction: float


class ShadowSeenDocument(TypedDict):
    """What the shadow's pairs have shown; the speed-up is their geometric mean."""

    pairs: Count
    agreement: dict[str, Count]
    speedup: float | None


class TrafficDocument(TypedDict):
    """How the requests that name only a model are divided."""

    model: str
    weights: dict[str, float]
    shadow: ShadowDocument | None
    seen: ShadowSeenDocument | None


class InfoDocument(TypedDict):
    """text-generation-inference's fields, of which there are more, for the first variant, and the names of all."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    max_concurrent_requests: Count
    max_input_tokens: Count
    max_total_tokens: Count
    max_client_batch_size: Count
    router: str
    version: str
    models: list[str]


class HealthDocument(TypedDict):
    """The process is alive."""

    status: Literal["ok"]


class VariantStateDocument(TypedDict):
    """A variant's state."""

    ref: str
    state: ModelState


class ReadyDocument(TypedDict):
    """Whether requests can be taken."""

    ready: bool
    models: list[VariantStateDocument]
