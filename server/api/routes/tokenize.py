"""`POST /tokenize`: the tokens of a text as a model sees it, in the form of text-generation-inference."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import read_texts
from server.api.http.json_response import AsciiJsonResponse
from server.frontend.service import Service
from server.text.tokenization import Piece


def tokenize_routes(service: Service) -> APIRouter:
    """The tokenizing route of one service."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        """The tokens of each text: id, text, and where it stands, in characters. Those around a text stand nowhere."""
        body, variant = await read_texts(request, service)
        limit = variant.resolved.request.engine.max_source_tokens
        texts = await variant.codec.pieces(body.texts, fields=body.fields, limit_tokens=limit)
        documents = [[_document(piece) for piece in pieces] for pieces in texts]
        return AsciiJsonResponse(documents if isinstance(body.inputs, list) else documents[0])

    return router


def _document(piece: Piece) -> dict[str, Any]:
    return {"id": piece.id, "text": piece.text, "start": piece.start, "stop": piece.stop}
