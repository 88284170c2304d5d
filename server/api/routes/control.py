"""What changes while the server serves: models that come and go, versions that are swapped, traffic that is divided.

`POST /models`, `DELETE /models/{ref}`, `POST /models/{ref}/swap` and `/reload`, `PUT /models/{model}/traffic`.

Where there are keys, these need one with the scope `admin`.
"""

import math
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.api.http.body import parse_body
from server.api.http.disconnect import unless_gone
from server.api.http.json_response import AsciiJsonResponse
from server.api.http.keys import KeyRing, Scope
from server.api.routes.models import model_document
from server.frontend.metrics import AGREEMENTS
from server.frontend.requests.request import LoadRequest, ReloadRequest, TrafficRequest
from server.frontend.service import Service
from server.frontend.traffic.weights import ShadowPlan


def control_routes(service: Service, keys: KeyRing | None) -> APIRouter:
    """The routes that change what one service has loaded; with `keys` they need one of the scope `admin`."""
    router = APIRouter()

    def check_admin(request: Request) -> None:
        if keys is not None:
            keys.check(request.headers.get("authorization"), Scope.ADMIN)

    # Checked where the route is matched, so that no way of writing a path can tell the two apart.
    admin = [Depends(check_admin)]

    @router.post("/models", dependencies=admin)
    async def load(request: Request, wait: bool = False) -> Response:
        """Load one more model. 202 while it loads; with `wait=true`, 201 once it is ready."""
        body = parse_body(LoadRequest, await request.body())
        variant = await unless_gone(request, service.fleet.load(body.model, wait=wait))
        return AsciiJsonResponse(model_document(service, variant), status_code=201 if wait else 202)

    @router.delete("/models/{ref}", dependencies=admin)
    async def unload(ref: str) -> Response:
        """Take no more requests for a model. It is gone once what it has accepted has ended."""
        return AsciiJsonResponse(model_document(service, await service.fleet.unload(ref)), status_code=202)

    @router.post("/models/{ref}/swap", dependencies=admin)
    async def swap(ref: str) -> Response:
        """Serve the version that the model's alias names now. No request fails; the old version stays if it cannot."""
        old, new = await service.fleet.swap(ref)
        return AsciiJsonResponse({"ref": ref, "old": old, "new": new})

    @router.post("/models/{ref}/reload", dependencies=admin)
    async def reload(request: Request, ref: str) -> Response:
        """Load a model anew in its own place, with other keys if the body names some. No request fails."""
        content = await request.body()
        keys = parse_body(ReloadRequest, content).keys if content else None
        return AsciiJsonResponse(model_document(service, await service.fleet.reload(ref, keys)))

    @router.get("/models/{model}/traffic")
    async def traffic(model: str) -> Response:
        """How a model's requests are divided, and what its shadow has shown."""
        return AsciiJsonResponse(_traffic_document(service, model))

    @router.put("/models/{model}/traffic", dependencies=admin)
    async def set_traffic(request: Request, model: str) -> Response:
        """Divide the requests that name only a model among its variants, and run a share of them on another one."""
        body = parse_body(TrafficRequest, await request.body())
        shadow = None
        if body.shadow is not None:
            shadow = ShadowPlan(source=body.shadow.source, target=body.shadow.target, fraction=body.shadow.fraction)
        service.traffic.set(model, body.weights, shadow)
        return AsciiJsonResponse(_traffic_document(service, model))

    return router


def _traffic_document(service: Service, model: str) -> dict[str, Any]:
    plan, figures = service.traffic.plan(model), service.traffic.figures(model)
    shadow = plan.shadow and {"from": plan.shadow.source, "to": plan.shadow.target, "fraction": plan.shadow.fraction}
    seen = {
        "pairs": figures.pairs,
        "agreement": {name: figures.agreement[name] for name in AGREEMENTS},
        "speedup": round(math.exp(figures.log_speedups / figures.pairs), 4) if figures.pairs else None,
    }
    return {"model": model, "weights": dict(plan.weights), "shadow": shadow, "seen": seen if shadow else None}
