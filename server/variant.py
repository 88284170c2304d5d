"""One loaded variant: its names, its tokenizer, its worker, its metrics."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.generation_config import with_seed
from server.engine.sequence import GenerationParameters
from server.errors import InvalidRequestError, RequestError, UnavailableError
from server.generation import Generation, GenerationRequest, Mode
from server.metrics import Metrics, ModelDescription, VariantMetrics
from server.resolution import ResolvedModel
from server.settings import Settings
from server.supervisor import Supervisor
from server.tokenization import TextCodec


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What callers ask of a variant, in texts."""

    texts: Sequence[str]
    fields: Sequence[str]  # how the caller's request calls each text, for the messages of errors
    max_new_tokens: int | None = None  # None: what the model's own generation_config says
    truncate_tokens: int | None = None
    logprobs: bool = False
    stream: bool = False
    arrived_s: float | None = None  # time.monotonic() when the request was there; None: when it is admitted


class Variant:
    """A `ResolvedModel` that runs."""

    def __init__(self, resolved: ResolvedModel, settings: Settings, metrics: Metrics, *, baseline: bool) -> None:
        """`baseline`: whether the metrics compare the model's other variants with this one.

        Raises:
            StartError: the model has no tokenizer that can be read.
        """
        self.resolved = resolved
        self.model = resolved.model
        self.variant = resolved.variant
        self.version = resolved.version
        self.ref = resolved.ref
        self.codec = TextCodec.load(resolved.directory, resolved.spec.eos_id)
        self.metrics = VariantMetrics(metrics, self.model, self.variant, _description(resolved, baseline))
        self.supervisor = Supervisor(resolved.ref, resolved.directory, resolved.request.engine, settings, self.metrics)

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

    async def _tokenize(self, request: TextRequest) -> list[GenerationRequest]:
        engine = self.resolved.request.engine
        parameters = self._parameters(request)
        return [
            GenerationRequest(
                source_ids=await self.codec.encode(
                    text, where=field, limit_tokens=engine.max_source_tokens, truncate=request.truncate_tokens
                ),
                parameters=with_seed(parameters),  # each its own where none was given
                stream=request.stream,
                arrived_s=time.monotonic() if request.arrived_s is None else request.arrived_s,
            )
            for text, field in zip(request.texts, request.fields, strict=True)
        ]

    def _parameters(self, request: TextRequest) -> GenerationParameters:
        """What is asked for, else what the model's own generation_config says."""
        limit = self.resolved.request.engine.max_new_tokens
        given: dict[str, Any] = {"logprobs": request.logprobs}
        if request.max_new_tokens is not None:
            if request.max_new_tokens > limit:
                raise InvalidRequestError(
                    f"parameters.max_new_tokens is {request.max_new_tokens}: {self.ref} makes at most {limit}, "
                    "ask for so many or fewer"
                )
            given["max_new_tokens"] = request.max_new_tokens
        ready = self.supervisor.ready
        if ready is None:
            raise UnavailableError(f"{self.ref} is not loaded yet: try again in a moment", retry_after_s=1.0)
        return ready.defaults.resolve(given)


def _description(resolved: ResolvedModel, baseline: bool) -> ModelDescription:
    return ModelDescription(
        version="" if resolved.version is None else str(resolved.version),
        digest=resolved.digest or "",
        parent=resolved.parent or "",
        decoder_layers=len(resolved.spec.decoder),
        encoder_sparsity=round(resolved.spec.encoder_sparsity, 4),
        dtype=resolved.request.engine.dtype,
        baseline=baseline,
    )
