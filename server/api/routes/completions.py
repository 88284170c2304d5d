"""`POST /v1/completions` and `GET /v1/models`: what OpenAI's clients call."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import may_reuse, read_completion
from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.sse import EventStreamResponse
from server.engine.interface.results import FinishReason
from server.errors import InvalidInputError, NotServedError
from server.frontend.requests.completion import CompletionRequest, CompletionTexts
from server.frontend.service import Service
from server.frontend.traffic.routing import route
from server.frontend.variant import Variant
from server.frontend.workers.generation import Generation
from server.messages import Finished
from server.text.answer import Answer, AnswerToken


def completion_routes(service: Service) -> APIRouter:
    """OpenAI's routes over one service."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(request: Request) -> Response:
        """Answer each prompt, as OpenAI's completions do; with `stream`, token by token."""
        body, texts, variant, arrived_s = await read_completion(request, service)
        call = _Call(service, variant, body, texts, arrived_s, reuse=may_reuse(request))
        if body.stream:
            if (body.best_of or 1) > body.answers:
                raise InvalidInputError("best_of is more than n, which cannot stream: leave best_of or stream out")
            return EventStreamResponse(
                call.events(),
                keep_alive_s=service.settings.keep_alive_s,
                path=request.url.path,
                end=b"data: [DONE]\n\n",
            )
        return AsciiJsonResponse(await unless_gone(request, call.document()))

    @router.get("/v1/models")
    async def models() -> Response:
        """Every loaded variant; a request's `model` is its `id`."""
        return AsciiJsonResponse({"object": "list", "data": [_model_document(each) for each in service.variants]})

    @router.get("/v1/models/{ref:path}")
    async def model(ref: str) -> Response:
        """One variant."""
        found = route(ref, service.variants)
        if found.ref != ref:
            raise NotServedError(f"model {ref!r} is not loaded: GET /v1/models lists what is")
        return AsciiJsonResponse(_model_document(found))

    return router


def _model_document(variant: Variant) -> dict[str, Any]:
    return {"id": variant.ref, "object": "model", "created": variant.loaded_at, "owned_by": "nash"}


class _Call:
    """One request on its way: what its answer and its events have in common."""

    def __init__(
        self,
        service: Service,
        variant: Variant,
        body: CompletionRequest,
        texts: CompletionTexts,
        arrived_s: float,
        *,
        reuse: bool,
    ) -> None:
        self._reuse = reuse
        self._service = service
        self._variant = variant
        self._body = body
        self._texts = texts
        self._arrived_s = arrived_s
        self._id = f"cmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def document(self) -> dict[str, Any]:
        """The whole answer."""
        logprobs = self._body.logprobs is not None
        generations = await self._variant.admit(
            self._texts, "unary", arrived_s=self._arrived_s, logprobs=logprobs, reuse=self._reuse
        )
        try:
            finished = [await generation.result() for generation in generations]
        finally:
            self._variant.cancel(generations)
        self._service.traffic.answered(self._variant, self._texts)
        choices = []
        for i, (generation, each) in enumerate(zip(generations, finished, strict=True)):
            answers = generation.answers(each, by_token=logprobs)[: self._body.answers]
            for j, answer in enumerate(answers):
                text = answer.tokens if logprobs else None
                choices.append(self._choice(i * self._body.answers + j, answer.text, text, answer))
        return self._envelope(choices) | {"usage": _usage(generations, finished)}

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """One event per token; where a prompt has several answers, one per answer."""
        generations = await self._variant.admit(
            self._texts,
            "stream",
            arrived_s=self._arrived_s,
            logprobs=self._body.logprobs is not None,
            streamed=True,
            reuse=self._reuse,
        )
        finished: list[Finished] = []
        try:
            for i, generation in enumerate(generations):
                async for choices in self._choices(i, generation):
                    yield self._envelope(choices) | self._no_usage
                finished.append(await generation.result())
            self._service.traffic.answered(self._variant, self._texts)
            if self._with_usage:
                yield self._envelope([]) | {"usage": _usage(generations, finished)}
        finally:
            self._variant.cancel(generations)

    async def _choices(self, prompt: int, generation: Generation) -> AsyncIterator[list[dict[str, Any]]]:
        first = prompt * self._body.answers
        if generation.several:
            answers = generation.answers(await generation.result(), by_token=self._body.logprobs is not None)
            for j, answer in enumerate(answers[: self._body.answers]):
                yield [self._choice(first + j, answer.text, answer.tokens, answer)]
            return
        offset = 0
        async for told in generation.tokens():
            done = None
            if told.last:
                done, *_ = generation.answers(await generation.result(), by_token=False)
            yield [self._choice(first, told.token.text, [told.token], done, offset)]
            offset += len(told.token.text)

    @property
    def _with_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and bool(options.include_usage)

    @property
    def _no_usage(self) -> dict[str, Any]:
        return {"usage": None} if self._with_usage else {}

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._variant.ref,
            "system_fingerprint": self._variant.resolved.digest,
            "choices": choices,
        }

    def _choice(
        self, index: int, text: str, tokens: Sequence[AnswerToken] | None, answer: Answer | None, offset: int = 0
    ) -> dict[str, Any]:
        """`answer`: the whole one, once it has ended. `tokens` are reported if log-probabilities were asked for."""
        asked = self._body.logprobs is not None and tokens is not None
        return {
            "text": text,
            "index": index,
            "logprobs": _logprobs_document(tokens or (), offset) if asked else None,
            "finish_reason": None if answer is None else _reason(answer.finish_reason),
        }


def _reason(reason: FinishReason) -> str:
    return "length" if reason is FinishReason.LENGTH else "stop"


def _logprobs_document(tokens: Sequence[AnswerToken], offset: int) -> dict[str, Any]:
    shown = [token for token in tokens if not token.special]
    offsets = [offset + sum(len(before.text) for before in shown[:i]) for i in range(len(shown))]
    return {
        "tokens": [token.text for token in shown],
        "token_logprobs": [token.logprob for token in shown],
        "top_logprobs": [{each.text: each.logprob for each in reversed(token.top_tokens)} for token in shown],
        "text_offset": offsets,
    }


def _usage(generations: Sequence[Generation], finished: Sequence[Finished]) -> dict[str, int]:
    prompt = sum(len(each.source_ids) for each in generations)
    completion = sum(len(hypothesis.tokens) for each in finished for hypothesis in each.hypotheses)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
