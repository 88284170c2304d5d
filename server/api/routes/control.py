"""Models that come and go while the server serves: `POST /models`, `DELETE /models/{ref}`, `POST /models/{ref}/swap`.

Where there are keys, these need one with the scope `admin`.
"""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.body import parse_body
from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.routes.models import model_document
from server.frontend.requests.request import LoadRequest
from server.frontend.service import Service


def control_routes(service: Service) -> APIRouter:
    """The routes that change what one service has loaded."""
    router = APIRouter()

    @router.post("/models")
    async def load(request: Request, wait: bool = False) -> Response:
        """Load one more model. 202 while it loads; with `wait=true`, 201 once it is ready."""
        body = parse_body(LoadRequest, await request.body())
        variant = await unless_gone(request, service.fleet.load(body.model, wait=wait))
        return AsciiJsonResponse(model_document(service, variant), status_code=201 if wait else 202)

    @router.delete("/models/{ref}")
    async def unload(ref: str) -> Response:
        """Take no more requests for a model. It is gone once what it has accepted has ended."""
        return AsciiJsonResponse(model_document(service, await service.fleet.unload(ref)), status_code=202)

    @router.post("/models/{ref}/swap")
    async def swap(ref: str) -> Response:
        """Serve the version that the model's alias names now. No request fails; the old version stays if it cannot."""
        old, new = await service.fleet.swap(ref)
        return AsciiJsonResponse({"ref": ref, "old": old, "new": new})

    return router
