"""From a request's bytes to what it asks of which variants; what is refused on the way is counted as unknown."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel

from server.api.request.parameters import GenerationParameters, TaskParameters
from server.api.request.schemas import CompareRequest, GenerateRequest, parse_body
from server.errors import InvalidRequestError, RequestError
from server.frontend.routing import family_of_first, route
from server.frontend.service import Service
from server.frontend.variant import TextRequest, Variant

G = TypeVar("G", bound=GenerateRequest)
B = TypeVar("B", bound=BaseModel)


async def read_generation(request: Request, service: Service, schema: type[G]) -> tuple[G, Variant, float]:
    """The body of a generating route, the variant that it goes to, and when the body was there (time.monotonic()).

    Raises:
        RequestError: the body is too large or not what it should be, or names what is not loaded.
    """
    with _counting(service):
        content = await request.body()
        arrived_s = time.monotonic()
        body = parse_body(schema, content)
        most = service.settings.max_batch_items
        if len(body.texts) > most:
            raise InvalidRequestError(f"inputs has {len(body.texts)} texts, a request takes {most}: send several")
        return body, route(body.model, service.variants), arrived_s


async def read_comparison(request: Request, service: Service) -> tuple[CompareRequest, list[Variant]]:
    """The body of `/compare` and the variants to run, each once, in the order asked for.

    Raises:
        RequestError: as above.
    """
    with _counting(service):
        body = parse_body(CompareRequest, await request.body())
        if body.models is None:
            return body, family_of_first(service.variants)
        return body, list(dict.fromkeys(route(ref, service.variants) for ref in body.models))


def text_request(
    texts: list[str],
    fields: list[str],
    parameters: GenerationParameters,
    *,
    logprobs: bool,
    stream: bool,
    task: TaskParameters | None = None,
    arrived_s: float | None = None,
) -> TextRequest:
    """What a variant is asked for; the fields are those of TextRequest."""
    given = {**parameters.given(), "logprobs": logprobs}
    if not logprobs:
        given.pop("top_n_tokens", None)  # they would be shown nowhere
    return TextRequest(
        texts=texts,
        fields=fields,
        given=given,
        names={} if parameters.best_of is None else {"num_return_sequences": "best_of"},
        stop=parameters.stop or (),
        truncate_tokens=parameters.truncate,
        truncate_to_fit=task is not None and task.truncates and parameters.truncate is None,
        forced_bos_token=parameters.forced_bos_token,
        decoder_input_text=parameters.decoder_input_text,
        source_language=None if task is None else task.src_lang,
        target_language=None if task is None else task.tgt_lang,
        stream=stream,
        arrived_s=arrived_s,
    )


@contextmanager
def _counting(service: Service) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        service.metrics.refused(error.outcome)
        raise
