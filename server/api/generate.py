"""`POST /generate`, `/generate_stream` and `/`: text in, text out, in the shapes of text-generation-inference."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.bodies import read_generation, text_request
from server.api.disconnect import unless_gone
from server.api.documents import (
    answer_document,
    details_document,
    names_document,
    streamed_tokens,
    timing_headers,
    timings_document,
)
from server.api.schemas import GenerateRequest, GenerationParameters, TaskParameters, TaskRequest
from server.api.sse import EventStreamResponse
from server.api.wire import AsciiJsonResponse
from server.errors import InvalidRequestError
from server.generation import Generation
from server.messages import Finished
from server.service import Service
from server.variant import Variant


def generate_routes(service: Service) -> APIRouter:
    """The generating routes of one service."""
    router = APIRouter()

    @router.post("/generate")
    async def generate(request: Request) -> Response:
        """Generate for one text or a list of texts; with `stream`, as `/generate_stream`."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        if body.stream:
            return _stream(service, variant, body, body.parameters, arrived_s)
        documents, headers = await unless_gone(request, _answers(variant, body, body.parameters, arrived_s))
        return AsciiJsonResponse(documents if isinstance(body.inputs, list) else documents[0], headers=headers)

    @router.post("/generate_stream")
    async def generate_stream(request: Request) -> Response:
        """Generate for one text and send every token as it comes."""
        body, variant, arrived_s = await read_generation(request, service, GenerateRequest)
        return _stream(service, variant, body, body.parameters, arrived_s)

    @router.post("/")
    async def generate_for_task(request: Request) -> Response:
        """What huggingface_hub's InferenceClient posts to: always a list, under the name that each task reads."""
        body, variant, arrived_s = await read_generation(request, service, TaskRequest)
        parameters = _task_parameters(body.parameters)
        if body.stream:
            return _stream(service, variant, body, parameters, arrived_s)
        documents, headers = await unless_gone(request, _answers(variant, body, parameters, arrived_s))
        for document in documents:
            document["summary_text"] = document["translation_text"] = document["generated_text"]
        return AsciiJsonResponse(documents, headers=headers)

    return router


async def _answers(
    variant: Variant, body: GenerateRequest, parameters: GenerationParameters, arrived_s: float
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The answer to each text, and the headers of all."""
    details = bool(parameters.details)
    asked = text_request(body.texts, body.fields, parameters, logprobs=details, stream=False, arrived_s=arrived_s)
    generations = await variant.admit(asked, "unary")
    finished = await _results(variant, generations)
    documents = [
        answer_document(variant, generation, finished=each, details=details, seed=parameters.seed)
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


def _stream(
    service: Service, variant: Variant, body: GenerateRequest, parameters: GenerationParameters, arrived_s: float
) -> Response:
    if isinstance(body.inputs, list):
        variant.metrics.ended("client_error", len(body.inputs))
        raise InvalidRequestError("inputs is a list, which cannot stream: send one text, or leave stream out")
    events = _events(variant, body, parameters, arrived_s)
    return EventStreamResponse(events, keep_alive_s=service.settings.keep_alive_s)


async def _events(
    variant: Variant, body: GenerateRequest, parameters: GenerationParameters, arrived_s: float
) -> AsyncIterator[dict[str, Any]]:
    """One event a token; the last one has the whole text, the details and the timings."""
    asked = text_request(body.texts, body.fields, parameters, logprobs=True, stream=True, arrived_s=arrived_s)
    (generation,) = await variant.admit(asked, "stream")
    async with contextlib.aclosing(streamed_tokens(variant, generation)) as tokens:
        async for token in tokens:
            event = {"index": token.index, "token": token.document, "generated_text": None, "details": None}
            if token.end is not None:
                finished, text = token.end
                event["generated_text"] = text
                event["details"] = details_document(generation, finished, parameters.seed)
                event |= {**names_document(variant), "timings": timings_document(finished.timings)}
            yield event


def _task_parameters(parameters: TaskParameters) -> GenerationParameters:
    """Summarization and translation clients put what they know of generation one level down."""
    return parameters.generate_parameters or parameters
