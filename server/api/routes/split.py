"""Texts that are answered in pieces: `parameters.split`."""

from typing import Any

from server.api.routes.documents import names_document, timing_headers, timings_document
from server.engine.interface.results import Timings
from server.errors import ApiError, InvalidInputError
from server.frontend.requests.request import GenerateRequest, PieceRequest
from server.frontend.service import Service
from server.frontend.variant import Variant
from server.messages import Finished
from server.text.splitting import TextPiece


async def split_answers(
    service: Service, variant: Variant, body: GenerateRequest, arrived_s: float, *, reuse: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The answer to each text, joined from those to its pieces, and the headers for all of them.

    Raises:
        ApiError: a text is white space or has too many pieces; or as for whole texts.
    """
    with variant.entering():  # it may be swapped while the texts are divided
        try:
            divided = await _divided(service, variant, body)
        except ApiError as error:
            variant.metrics.ended(error.outcome, len(body.texts))
            raise
    places = [(i, piece) for i, pieces in enumerate(divided) for piece in pieces]
    asked = PieceRequest(
        inputs=[piece.text for _, piece in places],
        parameters=body.generation,
        original=body,
        named=[body.fields[i] for i, _ in places],
    )
    generations = await variant.admit(asked, "unary", arrived_s=arrived_s, reuse=reuse)
    finished = await variant.results(generations)
    service.traffic.answered(variant, asked)
    documents = []
    for i in range(len(divided)):
        own = [number for number, (text, _) in enumerate(places) if text == i]
        texts = [generations[n].answers(finished[n], by_token=False)[0].text for n in own]
        documents.append(
            {
                "generated_text": " ".join(filter(None, (text.strip() for text in texts))),
                **names_document(variant),
                "timings": timings_document(_together([finished[n] for n in own])),
                "pieces": [
                    {"start": places[n][1].start, "stop": places[n][1].stop, "generated_text": text}
                    for n, text in zip(own, texts, strict=True)
                ],
            }
        )
    return documents, timing_headers(generations, finished)


async def _divided(service: Service, variant: Variant, body: GenerateRequest) -> list[list[TextPiece]]:
    parameters, how = body.generation, body.generation.split
    if how not in ("sentences", "windows"):
        raise AssertionError("only texts that are to be split come here")
    for name in ("details", "decoder_input_text", "truncate"):
        if getattr(parameters, name):
            raise InvalidInputError(f"parameters.{name} is not available for texts that are split: leave one out")
    if (parameters.num_return_sequences or parameters.best_of or 1) > 1:
        raise InvalidInputError("parameters.num_return_sequences is more than 1, which cannot be joined: leave it out")
    limit = variant.resolved.request.engine.max_source_tokens
    divided: list[list[TextPiece]] = []
    most = service.settings.max_pieces
    for text, where in zip(body.texts, body.fields, strict=True):
        pieces = await variant.codec.split(text, how, limit, most + 1)
        if not pieces:
            raise InvalidInputError(f"{where} is empty: give at least one character that is not white space")
        divided.append(pieces)
        if sum(map(len, divided)) > most:
            raise InvalidInputError(f"inputs has more than {most} pieces, the most of a request: send less at once")
    return divided


def _together(finished: list[Finished]) -> Timings:
    """The times of a text's pieces as those of one: until the last one is there; a piece's own times are summed."""
    timings = [each.timings for each in finished]
    return Timings(
        queue_ms=max(each.queue_ms for each in timings),
        encode_ms=sum(each.encode_ms for each in timings),
        decode_ms=sum(each.decode_ms for each in timings),
        total_ms=max(each.total_ms for each in timings),
        time_to_first_token_ms=min(each.time_to_first_token_ms for each in timings),
        time_per_output_token_ms=None,
    )
