"""`POST /generate`, `/generate_stream` and `/`: text in, text out, in the shapes of text-generation-inference."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.sse import EventStreamResponse
from server.api.request.bodies import read_generation, text_request
from server.api.request.schemas import GenerateRequest, TaskRequest
from server.api.routes.answers import streamed_tokens
from server.api.routes.documents import (
    answer_document,
    answers_of,
    details_document,
    is_several,
    names_document,
    sequence_documents,
    timing_headers,
    timings_document,
)
from server.errors import InvalidRequestError
from server.frontend.generation import Generation
from server.frontend.service import Service
from server.frontend.variant import TextRequest, Variant
from server.messages import Finished


def generate_routes(service: Service) -> APIRouter:
    """The generating routes of one service."""
    router = APIRouter()

    @router.post("/generate")
    async def generate(request: Request) -> Response:
        """Generate for one text or a list of texts; with `stream`, as `/generate_stream`."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        if body.stream:
            return _stream(service, variant, body, arrived_s)
        documents, headers = await unless_gone(request, _answers(variant, body, arrived_s))
        return AsciiJsonResponse(documents if isinstance(body.inputs, list) else documents[0], headers=headers)

    @router.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        """Generate for one text and send every token as it comes."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        return _stream(service, variant, body, arrived_s)

    @router.post("/")
    async def generate_for_task(request: Request) -> Response:
        """What huggingface_hub's InferenceClient posts to: always a list, under the name that each task reads."""
        body, variant, arrived_s = await read_generation(request, service, TaskRequest)
        if body.stream:
            return _stream(service, variant, body, arrived_s)
        documents, headers = await unless_gone(request, _answers(variant, body, arrived_s))
        for document in documents:
            document["summary_text"] = document["translation_text"] = document["generated_text"]
        return AsciiJsonResponse(documents, headers=headers)

    return router


def _asked(body: GenerateRequest, arrived_s: float, *, logprobs: bool, stream: bool) -> TextRequest:
    task = body.task if isinstance(body, TaskRequest) else None
    return text_request(
        body.texts, body.fields, body.generation, logprobs=logprobs, stream=stream, task=task, arrived_s=arrived_s
    )


async def _answers(
    variant: Variant, body: GenerateRequest, arrived_s: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The answer to each text, and the headers of all."""
    details = bool(body.generation.details)
    generations = await variant.admit(_asked(body, arrived_s, logprobs=details, stream=False), "unary")
    finished = await _results(variant, generations)
    documents = [
        answer_document(variant, generation, each, details=details)
        for generation, each in zip(generations, finished, strict=True)
    ]
    return documents, timing_headers(generations, finished)


async def _results(variant: Variant, generations: Sequence[Generation]) -> list[Finished]:
    """Wait for all; where one fails, or the caller is cancelled, the others are not run to their end."""
    try:
        return [await generation.result() for generation in generations]
    finally:
        for generation in generations:
            variant.supervisor.cancel(generation)


def _stream(service: Service, variant: Variant, body: GenerateRequest, arrived_s: float) -> Response:
    if isinstance(body.inputs, list):
        variant.metrics.ended("client_error", len(body.inputs))
        raise InvalidRequestError("inputs is a list, which cannot stream: send one text, or leave stream out")
    events = _events(variant, _asked(body, arrived_s, logprobs=True, stream=True))
    return EventStreamResponse(events, keep_alive_s=service.settings.keep_alive_s)


async def _events(variant: Variant, asked: TextRequest) -> AsyncIterator[dict[str, Any]]:
    """One event a token; the last one has the whole text, the details and the timings."""
    (generation,) = await variant.admit(asked, "stream")
    async with contextlib.aclosing(streamed_tokens(variant, generation)) as tokens:
        async for token in tokens:
            event = {"index": token.index, "token": token.document, "generated_text": None, "details": None}
            if token.top_tokens:
                event["top_tokens"] = token.top_tokens
            if token.end is not None:
                finished, answer = token.end
                event["generated_text"] = answer.text
                event["details"] = details_document(generation, answer)
                event |= {**names_document(variant), "timings": timings_document(finished.timings)}
                if is_several(generation):
                    answers = answers_of(variant, generation, finished, details=False)
                    event["sequences"] = sequence_documents(answers)
            yield event
