"""`GET /health`, `/health/ready` and `/metrics`: for those who watch."""

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from server.api.http.json_response import AsciiJsonResponse
from server.frontend.service import Service


def health_routes(service: Service) -> APIRouter:
    """The watching routes of one service."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """The process is alive."""
        return AsciiJsonResponse({"status": "ok"})

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 where every variant can take requests, else 503; the body says how each one stands."""
        document = {
            "ready": service.ready,
            "models": [{"ref": variant.ref, "state": service.state_of(variant).value} for variant in service.variants],
        }
        return AsciiJsonResponse(document, status_code=200 if service.ready else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(service.metrics.exposition(), headers={"content-type": CONTENT_TYPE_LATEST})

    return router
