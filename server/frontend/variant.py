"""One loaded variant: its names, its tokenizer, its worker, its metrics."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.engine.errors import BadRequestError
from server.engine.interface.generation_config import with_seed
from server.engine.interface.parameters import GenerationParameters
from server.engine.interface.validation import check_parameters
from server.errors import InvalidRequestError, RequestError, UnavailableError
from server.frontend.generation import Generation, GenerationRequest, Mode
from server.frontend.metrics import Metrics, ModelDescription, VariantMetrics
from server.frontend.resolution import ResolvedVariant
from server.frontend.supervisor import Supervisor
from server.messages import Ready
from server.settings import Settings
from server.text.answer_text import AnswerText
from server.text.tokenization import TextCodec


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What callers ask of a variant, in texts."""

    texts: Sequence[str]
    fields: Sequence[str]  # how the caller's request calls each text, for the messages of errors
    given: Mapping[str, Any] = field(default_factory=dict)  # engine parameters; the model's own stand for the others
    names: Mapping[str, str] = field(default_factory=dict)  # what the caller calls some of them
    stop: Sequence[str] = ()  # the answer ends before the first of these
    truncate_tokens: int | None = None
    truncate_to_fit: bool = False  # cut what is longer than the model takes
    forced_bos_token: str | None = None
    decoder_input_text: str | None = None
    source_language: str | None = None
    target_language: str | None = None
    stream: bool = False
    arrived_s: float | None = None  # time.monotonic() when the request was there; None: when it is admitted


class Variant:
    """A `ResolvedVariant` that runs."""

    def __init__(self, resolved: ResolvedVariant, settings: Settings, metrics: Metrics, *, baseline: bool) -> None:
        """`baseline`: whether the metrics compare the model's other variants with this one.

        Raises:
            StartError: the model has no tokenizer that can be read.
        """
        self.resolved = resolved
        self.model = resolved.model
        self.variant = resolved.variant
        self.version = resolved.version
        self.ref = resolved.ref
        self.codec = TextCodec.load(resolved.found.model.folder, resolved.found.model.spec.eos_id)
        self.metrics = VariantMetrics(metrics, self.model, self.variant, _description(resolved, baseline))
        self.supervisor = Supervisor(
            resolved.ref, resolved.found.model.folder, resolved.request.engine, settings, self.metrics
        )

    async def admit(self, request: TextRequest, mode: Mode) -> list[Generation]:
        """Tokenize every text and accept all of them, or none; what is refused is counted.

        Raises:
            InvalidRequestError: a text or a parameter is outside what the model takes.
            UnavailableError: the model is not loaded at the moment.
            OverloadedError: the queue has no room.
        """
        try:
            return self.supervisor.submit(await self._tokenize(request), mode)
        except RequestError as error:
            self.metrics.ended(error.outcome, len(request.texts))
            raise

    def text_of(self, generation: Generation) -> AnswerText:
        """The text of one of its answers, to be told by its tokens."""
        watch = generation.request.watch
        return AnswerText(self.codec.stream(generation.submit.parameters.prefix_ids)) if watch is None else watch()

    async def _tokenize(self, request: TextRequest) -> list[GenerationRequest]:
        ready = self.supervisor.ready
        if ready is None:
            raise UnavailableError(f"{self.ref} is not loaded yet: try again in a moment", retry_after_s=1.0)
        parameters = await self._parameters(request, ready)
        most = ready.limits.max_source_tokens
        language = self._language(request.source_language, "src_lang")
        watch = functools.partial(self._watched, parameters.prefix_ids, request.stop) if request.stop else None
        return [
            GenerationRequest(
                source_ids=await self.codec.encode(
                    text,
                    where=where,
                    limit_tokens=most,
                    truncate=most if request.truncate_to_fit else request.truncate_tokens,
                    language=language,
                ),
                parameters=with_seed(parameters),  # each its own where none was given
                stream=request.stream,
                arrived_s=time.monotonic() if request.arrived_s is None else request.arrived_s,
                watch=watch,
            )
            for text, where in zip(request.texts, request.fields, strict=True)
        ]

    def _watched(self, prefix: Sequence[int], stops: Sequence[str]) -> AnswerText:
        return AnswerText(self.codec.stream(prefix), stops)

    def _language(self, code: str | None, name: str) -> int | None:
        return None if code is None else self.codec.language_id(code, where=f"parameters.{name}")

    async def _parameters(self, request: TextRequest, ready: Ready) -> GenerationParameters:
        """What is asked for, else what the model's own generation_config says; refused where it cannot be."""
        given = dict(request.given)
        if request.forced_bos_token is not None:
            where = "parameters.forced_bos_token"
            given["forced_bos_token_id"] = self.codec.token_id(request.forced_bos_token, where=where)
        target = self._language(request.target_language, "tgt_lang")
        if target is not None:
            given["forced_bos_token_id"] = target
        if request.decoder_input_text:
            prefix = await self.codec.encode_prefix(request.decoder_input_text)
            # The token that an answer has to begin with comes first here too, else nothing would force it any more.
            first = given.get("forced_bos_token_id", ready.defaults.parameters.forced_bos_token_id)
            given["prefix_ids"] = tuple(prefix if first is None or prefix[:1] == [first] else [first, *prefix])
        try:
            parameters = ready.defaults.resolve(given)
            check_parameters(
                parameters,
                limits=ready.limits,
                vocab_size=self.resolved.found.model.spec.target_vocab_size,
                eos_ids=ready.defaults.eos_ids,
            )
        except BadRequestError as error:
            raise InvalidRequestError(_in_the_callers_words(str(error), request)) from error
        return parameters


def _in_the_callers_words(message: str, request: TextRequest) -> str:
    """What the engine says about parameters, by the names that they have in a request."""
    names = {"the decoder prefix": "decoder_input_text", "prefix_ids": "decoder_input_text", **request.names}
    for engine_name, name in names.items():
        message = message.replace(engine_name, name)
    return f"parameters.{message}"


def _description(resolved: ResolvedVariant, baseline: bool) -> ModelDescription:
    return ModelDescription(
        version="" if resolved.version is None else str(resolved.version),
        digest=resolved.digest or "",
        parent=resolved.parent or "",
        decoder_layers=len(resolved.found.model.spec.decoder),
        encoder_sparsity=round(resolved.found.model.spec.encoder_sparsity, 4),
        dtype=resolved.request.engine.dtype,
        baseline=baseline,
        engine=resolved.engine,
    )
