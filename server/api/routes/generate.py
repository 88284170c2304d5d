"""`POST /generate`, `/generate_stream` and `/`: text in, text out, in the formats of text-generation-inference."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import may_reuse, read_generation
from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.sse import EventStreamResponse
from server.api.routes.documents import (
    answer_document,
    details_document,
    names_document,
    notes_document,
    sequence_documents,
    timing_headers,
    timings_document,
    token_document,
)
from server.api.routes.split import split_answers
from server.errors import InvalidInputError
from server.frontend.requests.request import GenerateRequest, TaskRequest
from server.frontend.service import Service
from server.frontend.variant import Variant


def generate_routes(service: Service) -> APIRouter:
    """The generation routes of one service."""
    router = APIRouter()

    @router.post("/generate")
    async def generate(request: Request) -> Response:
        """Generate for one text or a list of texts; with `stream`, works like `/generate_stream`."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        if body.stream:
            return _stream(request, service, variant, body, arrived_s)
        documents, headers = await unless_gone(request, _answers(request, service, variant, body, arrived_s))
        return AsciiJsonResponse(documents if isinstance(body.inputs, list) else documents[0], headers=headers)

    @router.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        """Generate for one text and send each token as it is made."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        return _stream(request, service, variant, body, arrived_s)

    @router.post("/")
    async def generate_for_task(request: Request) -> Response:
        """The route of huggingface_hub's InferenceClient: always returns a list, with the key that each task reads."""
        return await _for_task(request, service, None)

    @router.post("/models/{ref}")
    async def generate_on(request: Request, ref: str) -> Response:
        """The same on one variant: a base URL for clients that cannot name a model."""
        return await _for_task(request, service, ref)

    return router


async def _for_task(request: Request, service: Service, ref: str | None) -> Response:
    body, variant, arrived_s = await read_generation(request, service, TaskRequest, ref)
    if body.stream:
        return _stream(request, service, variant, body, arrived_s)
    documents, headers = await unless_gone(request, _answers(request, service, variant, body, arrived_s))
    for document in documents:
        document["summary_text"] = document["translation_text"] = document["generated_text"]
    return AsciiJsonResponse(documents, headers=headers)


async def _answers(
    request: Request, service: Service, variant: Variant, body: GenerateRequest, arrived_s: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The answer to each text, and the headers for all of them."""
    if body.generation.split not in (None, "none"):
        return await split_answers(service, variant, body, arrived_s, reuse=may_reuse(request))
    details = bool(body.generation.details)
    generations = await variant.admit(body, "unary", arrived_s=arrived_s, logprobs=details, reuse=may_reuse(request))
    finished = await variant.results(generations)
    service.traffic.answered(variant, body)
    documents = [
        answer_document(variant, generation, each, details=details)
        for generation, each in zip(generations, finished, strict=True)
    ]
    return documents, timing_headers(generations, finished)


def _stream(request: Request, service: Service, variant: Variant, body: GenerateRequest, arrived_s: float) -> Response:
    if isinstance(body.inputs, list):
        variant.metrics.ended("client_error", len(body.inputs))
        raise InvalidInputError("inputs is a list, which cannot stream: send one text, or leave stream out")
    if body.generation.split not in (None, "none"):
        variant.metrics.ended("client_error")
        raise InvalidInputError("parameters.split cannot stream: leave one of the two out")
    return EventStreamResponse(
        _events(service, variant, body, arrived_s, may_reuse(request)), keep_alive_s=service.settings.keep_alive_s
    )


async def _events(
    service: Service, variant: Variant, body: GenerateRequest, arrived_s: float, reuse: bool
) -> AsyncIterator[dict[str, Any]]:
    """One event per token; the last one also has the whole text, the details and the timings."""
    (generation,) = await variant.admit(body, "stream", arrived_s=arrived_s, logprobs=True, streamed=True, reuse=reuse)
    try:
        index = 0
        async for told in generation.tokens():
            index += 1
            event = {
                "index": index,
                "token": token_document(told.token),
                "generated_text": None,
                "details": None,
            }
            if told.token.top_tokens:
                event["top_tokens"] = [token_document(each) for each in told.token.top_tokens]
            if told.last:
                finished = await generation.result()
                answers = generation.answers(finished, by_token=False)
                event["generated_text"] = answers[0].text
                event |= notes_document(generation)
                event["details"] = details_document(generation, answers[0])
                event |= {**names_document(variant), "timings": timings_document(finished.timings)}
                if generation.several:
                    event["sequences"] = sequence_documents(answers)
                service.traffic.answered(variant, body)
            yield event
    finally:
        variant.cancel([generation])  # no-op unless the caller stopped early
