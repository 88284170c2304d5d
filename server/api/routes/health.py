"""`GET /health`, `/health/ready` and `/metrics`: for monitoring."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.api.http.json_response import AsciiJsonResponse
from server.frontend.service import Service


def health_routes(service: Service, *, exemplars: bool) -> APIRouter:
    """The monitoring routes of one service. OpenMetrics takes twice the time, so only `exemplars` are worth it."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> Response:
        """The process is alive."""
        return AsciiJsonResponse({"status": "ok"})

    @router.get("/health/ready")
    async def ready() -> Response:
        """200 if every variant can take requests, otherwise 503; the body gives the state of each."""
        document = {
            "ready": service.ready,
            "models": [{"ref": variant.ref, "state": service.state_of(variant).value} for variant in service.variants],
        }
        return AsciiJsonResponse(document, status_code=200 if service.ready else 503)

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        """All metrics in Prometheus's text format; where requests are traced, in OpenMetrics if that is accepted."""
        content, content_type = service.metrics.exposition(request.headers.get("accept", "") if exemplars else "")
        return Response(content, headers={"content-type": content_type})

    return router
