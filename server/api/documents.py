"""From what an engine made to what callers read."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.engine.sequence import Timings
from server.generation import Generation
from server.messages import Finished
from server.tokenization import TextStream
from server.variant import Variant


@dataclass(frozen=True, kw_only=True)
class StreamedToken:
    """One token of a stream; the last one brings the end with it."""

    index: int  # from 1
    document: dict[str, Any]
    at_ms: float  # when it was made, on the clock of the timings
    end: tuple[Finished, str] | None = None  # what was made, and its whole text


def names_document(variant: Variant) -> dict[str, Any]:
    """Which variant answered."""
    return {"model": variant.model, "variant": variant.variant, "ref": variant.ref}


def timings_document(timings: Timings) -> dict[str, Any]:
    """Milliseconds, to the microsecond."""
    return {name: None if value is None else round(value, 3) for name, value in vars(timings).items()}


def answer_document(
    variant: Variant, generation: Generation, *, finished: Finished, details: bool, seed: int | None
) -> dict[str, Any]:
    """One whole answer of `/generate`."""
    document = {
        "generated_text": variant.codec.decode(finished.tokens),
        **names_document(variant),
        "timings": timings_document(finished.timings),
    }
    if details:
        document["details"] = {
            **details_document(generation, finished, seed),
            "prefill": [],
            "tokens": [token for token, _ in _token_documents(variant, variant.codec.stream(), finished, 0)],
        }
    return document


def details_document(generation: Generation, finished: Finished, seed: int | None) -> dict[str, Any]:
    """How it ended, in the words of text-generation-inference."""
    return {
        "finish_reason": finished.finish_reason.value,
        "generated_tokens": len(finished.tokens),
        "seed": seed,
        "input_length": len(generation.submit.source_ids),
    }


def timing_headers(generations: Sequence[Generation], finished: Sequence[Finished]) -> dict[str, str]:
    """The headers of text-generation-inference, whole milliseconds; of a list, its slowest item and its sums."""
    total_ms = max(each.timings.total_ms for each in finished)
    queue_ms = max(each.timings.queue_ms for each in finished)
    inference_ms = max(each.timings.total_ms - each.timings.queue_ms for each in finished)
    generated = sum(len(each.tokens) for each in finished)
    return {
        "x-total-time": str(round(total_ms)),
        "x-queue-time": str(round(queue_ms)),
        "x-inference-time": str(round(inference_ms)),
        "x-time-per-token": str(round(inference_ms / generated)),
        "x-prompt-tokens": str(sum(len(each.submit.source_ids) for each in generations)),
        "x-generated-tokens": str(generated),
    }


async def streamed_tokens(variant: Variant, generation: Generation) -> AsyncGenerator[StreamedToken, None]:
    """Every token as it comes, with its text; the generation is cancelled if the caller stops early.

    Raises:
        RequestError: it failed.
    """
    text, index = variant.codec.stream(), 0
    try:
        async for report in generation.tokens():
            index += 1
            document = _token_document(variant, report.token, text.push(report.token), report.logprob)
            yield StreamedToken(index=index, document=document, at_ms=report.at_ms)
        finished = await generation.result()
        for document, whole in _token_documents(variant, text, finished, index):
            index += 1
            end = None if whole is None else (finished, whole)
            yield StreamedToken(index=index, document=document, at_ms=finished.timings.total_ms, end=end)
    finally:
        variant.supervisor.cancel(generation)


def _token_documents(
    variant: Variant, text: TextStream, finished: Finished, start: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The tokens from position `start` on, which `text` has not seen; with the last one, the whole text."""
    logprobs: Sequence[float | None] = finished.logprobs or [None] * len(finished.tokens)
    for token, logprob in zip(finished.tokens[start:-1], logprobs[start:-1], strict=True):
        yield _token_document(variant, token, text.push(token), logprob), None
    last, whole = text.finish(finished.tokens[-1])
    yield _token_document(variant, finished.tokens[-1], last, logprobs[-1]), whole


def _token_document(variant: Variant, token: int, text: str, logprob: float | None) -> dict[str, Any]:
    return {"id": token, "text": text, "logprob": logprob, "special": variant.codec.is_special(token)}
