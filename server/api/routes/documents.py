"""Build response documents from an engine's results."""

from collections.abc import Sequence
from typing import Any

from server.engine.interface.results import Timings
from server.frontend.variant import Variant
from server.frontend.workers.generation import Generation
from server.messages import Finished
from server.text.answer import Answer, AnswerToken


def names_document(variant: Variant) -> dict[str, Any]:
    """Which variant answered."""
    return {"model": variant.model, "variant": variant.variant, "ref": variant.ref}


def timings_document(timings: Timings) -> dict[str, Any]:
    """The timings in milliseconds, rounded to the microsecond."""
    return {name: None if value is None else round(value, 3) for name, value in vars(timings).items()}


def token_document(token: AnswerToken) -> dict[str, Any]:
    """One token, without its likely alternatives."""
    return {"id": token.id, "text": token.text, "logprob": token.logprob, "special": token.special}


def answer_document(variant: Variant, generation: Generation, finished: Finished, *, details: bool) -> dict[str, Any]:
    """One whole answer of `/generate`."""
    best, *others = generation.answers(finished, by_token=details)
    document = {
        "generated_text": best.text,
        **names_document(variant),
        "timings": timings_document(finished.timings),
    }
    document |= notes_document(generation)
    if generation.several:
        document["sequences"] = sequence_documents([best, *others])
    if details:
        document["details"] = whole_details_document(generation, best)
        if others:
            document["details"]["best_of_sequences"] = [
                {"generated_text": other.text, **whole_details_document(generation, other)} for other in others
            ]
    return document


def notes_document(generation: Generation) -> dict[str, Any]:
    """What is said only where it is so: that the source was cut, that the answer is an earlier one's."""
    notes: dict[str, Any] = {"truncated_tokens": generation.truncated} if generation.truncated else {}
    return notes | ({"cached": True} if generation.cached else {})


def sequence_documents(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """All answers, when more than one was requested."""
    return [{"generated_text": answer.text, "score": answer.score} for answer in answers]


def details_document(generation: Generation, answer: Answer) -> dict[str, Any]:
    """How an answer ended, in text-generation-inference's terms; with the score if there were other candidates."""
    document = {
        "finish_reason": answer.finish_reason.value,
        "generated_tokens": answer.generated_tokens,
        "seed": generation.parameters.seed,
        "input_length": len(generation.source_ids),
    }
    return document if answer.score is None else {**document, "score": answer.score}


def whole_details_document(generation: Generation, answer: Answer) -> dict[str, Any]:
    """The same with the tokens, which must have been requested."""
    document = {
        **details_document(generation, answer),
        "prefill": [],
        "tokens": [token_document(token) for token in answer.tokens],
    }
    top_tokens = [[token_document(each) for each in token.top_tokens] for token in answer.tokens if token.top_tokens]
    return {**document, "top_tokens": top_tokens} if top_tokens else document


def timing_headers(generations: Sequence[Generation], finished: Sequence[Finished]) -> dict[str, str]:
    """text-generation-inference's headers, in whole milliseconds. For a list: the longest times, summed tokens."""
    total_ms = max(each.timings.total_ms for each in finished)
    queue_ms = max(each.timings.queue_ms for each in finished)
    inference_ms = max(each.timings.total_ms - each.timings.queue_ms for each in finished)
    generated = sum(len(each.tokens) for each in finished)
    truncated = sum(each.truncated for each in generations)
    return {
        "x-total-time": str(round(total_ms)),
        "x-queue-time": str(round(queue_ms)),
        "x-inference-time": str(round(inference_ms)),
        "x-time-per-token": str(round(inference_ms / generated)),
        "x-prompt-tokens": str(sum(len(each.source_ids) for each in generations)),
        "x-generated-tokens": str(generated),
        **({"x-truncated-tokens": str(truncated)} if truncated else {}),
    }
