"""`POST /translate` and `GET /languages`: what clients of LibreTranslate call."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import counting_refusals, may_reuse, parse_body
from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.keys import KeyRing
from server.errors import InvalidInputError
from server.frontend.requests.translation import TranslateRequest, form_fields, translation
from server.frontend.service import Service
from server.frontend.variant import Variant
from server.text.languages import language_name
from server.text.markup import Markup

_FORM = "application/x-www-form-urlencoded"


def translate_routes(service: Service, keys: KeyRing | None) -> APIRouter:
    """LibreTranslate's routes over one service. `keys`: their `api_key` in a body counts as a bearer key."""
    router = APIRouter()

    @router.post("/translate")
    async def translate(request: Request) -> Response:
        """Translate a text or a list of texts, with tags kept if `format` is html."""
        with contextlib.ExitStack() as stack, counting_refusals(service):
            body = await _read(request)
            if keys is not None:
                bearer = f"Bearer {body.api_key}" if body.api_key else request.headers.get("authorization")
                use = stack.enter_context(keys.open_request(bearer))
                use.charge(len(body.texts) - 1)
            most = service.settings.max_batch_items
            if len(body.texts) > most:
                raise InvalidInputError(f"q has {len(body.texts)} texts, but a request takes at most {most}")
            variant = _variant(request, service, body)
            held = stack.pop_all()  # until the answer is there
        with held:
            answer = await unless_gone(request, _translated(service, variant, body, may_reuse(request)))
        return AsciiJsonResponse(answer)

    @router.get("/languages")
    async def languages() -> Response:
        """What can be translated to what, by any loaded model."""
        targets: dict[str, set[str]] = {}
        for variant in service.variants:
            for source, others in variant.codec.languages.targets.items():
                targets.setdefault(source, set()).update(others)
        return AsciiJsonResponse(
            [
                {"code": code, "name": language_name(code), "targets": sorted(others)}
                for code, others in sorted(targets.items())
            ]
        )

    return router


async def _read(request: Request) -> TranslateRequest:
    content, kind = await request.body(), request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        content = json.dumps(form_fields(content)).encode("ascii")
    elif kind.startswith("multipart/"):
        raise InvalidInputError(
            "the body is a multipart form: send JSON, or a form as application/x-www-form-urlencoded"
        )
    return parse_body(TranslateRequest, content)


def _variant(request: Request, service: Service, body: TranslateRequest) -> Variant:
    """The first family that translates so; within it, as its traffic is divided."""
    able = [each for each in service.variants if each.codec.languages.translates(body.source, body.target)]
    if not able:
        known = sorted({code for each in service.variants for code in each.codec.languages.targets})
        hint = (
            f"the sources are {', '.join(known[:20])}; GET /languages says more" if known else "no model has languages"
        )
        if body.source == "auto":
            raise InvalidInputError(f"source is 'auto', and no language is detected here: name it ({hint})")
        raise InvalidInputError(f"source {body.source!r:.40} cannot be translated to {body.target!r:.40}: {hint}")
    chosen = service.traffic.choose(able[0].model, request.headers.get("x-session-id"))
    return chosen if chosen in able else able[0]


async def _translated(service: Service, variant: Variant, body: TranslateRequest, reuse: bool) -> dict[str, Any]:
    marked = [Markup(text) for text in body.texts] if body.format == "html" else None
    if marked is None:
        texts = list(zip(body.fields, body.texts, strict=True))
    else:
        texts = [(field, text) for field, each in zip(body.fields, marked, strict=True) for text in each.texts]
    most = service.settings.max_pieces
    if len(texts) > most:
        raise InvalidInputError(f"q has {len(texts)} pieces between its tags, but a request takes at most {most}")
    found = await _answers(service, variant, texts, body, reuse)
    if marked is None:
        whole = found
    else:  # each text's pieces together again, for the best answer and for each further one
        whole, rest = [], iter(found)
        for each in marked:
            pieces = [next(rest) for _ in each.texts]
            ranks = range(1 + body.alternatives)
            whole.append([each.with_texts([piece[min(rank, len(piece) - 1)] for piece in pieces]) for rank in ranks])
    document: dict[str, Any] = {"translatedText": [best for best, *_ in whole]}
    if body.alternatives:
        document["alternatives"] = [list(dict.fromkeys(others)) for _, *others in whole]
    return document if isinstance(body.q, list) else {name: values[0] for name, values in document.items()}


async def _answers(
    service: Service, variant: Variant, texts: Sequence[tuple[str, str]], body: TranslateRequest, reuse: bool
) -> list[list[str]]:
    """For each text, which stands behind its field's name, its translations, best first.

    White space is what it is in every language.
    """
    spoken = [i for i, (_, text) in enumerate(texts) if text.strip()]
    found = [[text] * (1 + body.alternatives) for _, text in texts]
    if not spoken:
        return found
    tokens = variant.codec.languages.tokens
    parameters: dict[str, Any] = {}
    if body.alternatives:
        count = 1 + body.alternatives
        parameters = {"num_beams": max(count, 4), "num_return_sequences": count, "do_sample": False}
    fields, sources = zip(*(texts[i] for i in spoken), strict=True)
    asked = translation(list(sources), list(fields), parameters, tokens.get(body.source), tokens.get(body.target))
    generations = await variant.admit(asked, "unary", reuse=reuse)
    finished = await variant.results(generations)
    service.traffic.answered(variant, asked)
    for i, generation, each in zip(spoken, generations, finished, strict=True):
        found[i] = [answer.text for answer in generation.answers(each, by_token=False)]
    return found
