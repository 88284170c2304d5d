"""`POST /compare`: run one request on several variants in turn and report speed-up and agreement.

Request: `{"inputs": str, "parameters"?: {...}, "models"?: [REF, ...], "stream"?: bool}`. Without `models`, every
loaded variant of the first loaded model's family runs, in the order of the command line.

The document, which is the whole response if `stream` is false:

    {"baseline": "g2p@dense",
     "results": [{"ref": "g2p@dense", "model": "g2p", "variant": "dense",
                  "generated_text": "HH AH L OW",
                  "timings": {"queue_ms", "encode_ms", "decode_ms", "total_ms",
                              "time_to_first_token_ms", "time_per_output_token_ms"},
                  "finish_reason": "eos_token", "generated_tokens": 5, "seed": null,
                  "speedup": 1.0,
                  "agreement": {"exact": true, "rouge_l": 1.0, "token_edit_distance": 0}},
                 ...]}

`results` are in the order in which the variants ran. All variants get the same parameters; if they sample and no seed
was given, all use the `seed` drawn for the first. `sequences` and `details` are included as in `/generate`. The
baseline is the dense variant if there is one, otherwise the first; its own speedup is 1.0 and it agrees with itself.
`speedup` = the baseline's (total - queue) over the variant's. `time_per_output_token_ms` is null if there was only one
token. `rouge_l` is the F-measure over whitespace-separated words; `token_edit_distance` counts the vocabulary's tokens,
without the end token.

With `"stream": true` the response is a stream of server-sent events, each `data:{...}` and an empty line. The keys
tell the events apart:

    has "token":          {"ref", "model", "variant", "index": 1, "at_ms": 5.31,
                           "token": {"id": 12, "text": "HH", "logprob": -0.02, "special": false}}
                          one token of one variant; index counts from 1 within the variant; at_ms is when the engine
                          made it, on the clock of the timings; the texts of one variant, joined, are its
                          generated_text (the end token is special and has the text "")
    has "generated_text": {"ref", "model", "variant", "generated_text", "timings", "finish_reason",
                           "generated_tokens", "seed"}
                          this variant is done; sent once per variant, before the next one begins
    has "results":        the document above; the last event of a stream that succeeded
    has "error":          {"error", "error_type"} and, if one variant failed, its "ref", "model", "variant";
                          the last event of a stream that failed

A line that starts with a colon is a keep-alive comment. An error before the first event is an ordinary HTTP error.
"""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import read_comparison
from server.api.http.disconnect import unless_gone
from server.api.http.errors import error_document
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.sse import EventStreamResponse, made_ahead
from server.api.routes.documents import (
    names_document,
    sequence_documents,
    timings_document,
    token_document,
    whole_details_document,
)
from server.errors import ApiError
from server.frontend.requests.request import CompareRequest
from server.frontend.service import Service
from server.frontend.traffic.routing import dense_or_first
from server.frontend.variant import Variant
from server.frontend.workers.generation import Generation
from server.messages import Finished
from server.text.agreement import agreement
from server.text.answer import Answer


def compare_routes(service: Service) -> APIRouter:
    """The comparison route of one service."""
    router = APIRouter()

    @router.post("/compare")
    async def compare(request: Request) -> Response:
        """Run one text on several variants; report how much faster each one is and how far their answers agree."""
        body, variants = await read_comparison(request, service)
        events = _events(service, body, variants)
        if body.stream:
            # Comparisons run one at a time: a client that does not read must not block the others.
            return EventStreamResponse(made_ahead(events), keep_alive_s=service.settings.keep_alive_s)
        return AsciiJsonResponse(await unless_gone(request, _last(events)))

    return router


@dataclass(frozen=True)
class _Outcome:
    """The result of one variant."""

    variant: Variant
    generation: Generation
    finished: Finished
    answers: list[Answer]  # best first
    details: bool  # whether they were requested

    @property
    def best(self) -> Answer:
        """The answer that is compared."""
        return self.answers[0]

    @property
    def working_ms(self) -> float:
        """Its total time without the queue."""
        return self.finished.timings.total_ms - self.finished.timings.queue_ms

    @property
    def plain_tokens(self) -> list[str]:
        """The best answer's tokens without special ones, as vocabulary strings: a variant may use different ids."""
        return [self.variant.codec.piece(token.id) for token in self.best.tokens if not token.special]

    def document(self) -> dict[str, Any]:
        """The result as a document, without the variant's names."""
        document = {
            "generated_text": self.best.text,
            "timings": timings_document(self.finished.timings),
            "finish_reason": self.best.finish_reason.value,
            "generated_tokens": self.best.generated_tokens,
            "seed": self.generation.parameters.seed,
        }
        if self.generation.several:
            document["sequences"] = sequence_documents(self.answers)
        if self.details:
            document["details"] = whole_details_document(self.generation, self.best)
        return document


async def _last(events: AsyncIterator[dict[str, Any]]) -> dict[str, Any]:
    async with contextlib.aclosing(events):  # type: ignore[type-var]
        async for event in events:
            last = event
    return last


async def _events(service: Service, body: CompareRequest, variants: Sequence[Variant]) -> AsyncIterator[dict[str, Any]]:
    """The events of a streamed comparison; without `stream`, no token events."""
    stream, details = bool(body.stream), bool(body.generation.details)
    outcomes: list[_Outcome] = []
    seed: int | None = None  # drawn for the first variant, used for all
    begun = False
    async with contextlib.AsyncExitStack() as stack:
        for variant in variants:
            stack.enter_context(variant.entering())  # none of them may go while it waits for its turn
        await stack.enter_async_context(service.comparisons.turn())
        for variant in variants:
            names = names_document(variant)
            try:
                (generation,) = await variant.admit(
                    body, "compare", logprobs=stream or details, streamed=stream, seed=seed
                )
                seed = generation.parameters.seed
                try:
                    async for event in _token_events(generation):
                        yield names | event
                        begun = True
                    finished = await generation.result()
                finally:
                    variant.cancel([generation])  # no-op unless the caller stopped early
            except ApiError as error:
                if not (stream and begun):
                    raise
                yield {**error_document(error), **names}
                return
            answers = generation.answers(finished, by_token=True)
            outcomes.append(_Outcome(variant, generation, finished, answers, details))
            yield {**names, **outcomes[-1].document()}
            begun = True
    yield _comparison(outcomes)


async def _token_events(generation: Generation) -> AsyncIterator[dict[str, Any]]:
    """One event per token if tokens are streamed, otherwise none."""
    if not generation.streamed:
        return
    index = 0
    async for told in generation.tokens():
        index += 1
        event = {"index": index, "at_ms": round(told.at_ms, 3), "token": token_document(told.token)}
        if told.token.top_tokens:
            event["top_tokens"] = [token_document(each) for each in told.token.top_tokens]
        yield event


def _comparison(outcomes: Sequence[_Outcome]) -> dict[str, Any]:
    """The document described in the module docstring."""
    by_variant = {outcome.variant: outcome for outcome in outcomes}
    baseline = by_variant[dense_or_first([outcome.variant for outcome in outcomes])]
    results = []
    for outcome in outcomes:
        agreed = agreement(outcome.best.text, outcome.plain_tokens, baseline.best.text, baseline.plain_tokens)
        results.append(
            {
                **names_document(outcome.variant),
                **outcome.document(),
                "speedup": round(baseline.working_ms / outcome.working_ms, 4),
                "agreement": {**agreed._asdict(), "rouge_l": round(agreed.rouge_l, 4)},
            }
        )
    return {"baseline": baseline.variant.ref, "results": results}
